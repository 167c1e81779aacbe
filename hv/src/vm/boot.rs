//! Putting a guest's software into its RAM, at the start and at every reset.

use alloc::string::ToString;
use alloc::sync::Arc;

use hv_dev::{acpi, e820};

use super::Vm;
use crate::load::linux::{self, Entry, Params, Which};
use crate::load::{Bundle, LoadError, OutOfRange, Sink, Source, VmConfig};
use crate::phys::Window;

/// Fills the RAM of a VM.
pub trait Loader: Send + Sync {
    /// Writes everything that must be there at the first instruction.
    ///
    /// # Errors
    /// One line for the user.
    fn load(&self, vm: &Vm) -> Result<Entry, LoadError>;
}

/// The bytes of a boot module.
#[derive(Clone, Copy, Debug)]
pub struct ModuleSource(pub Window);

impl Source for ModuleSource {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.0.read(offset, buf).map_err(|_| OutOfRange)
    }
}

/// Boots the kernel that `prism.toml` names.
pub struct BundleLoader<S> {
    /// The bundle.
    pub bundle: Arc<Bundle<S>>,
    /// The VM's part of the configuration.
    pub config: VmConfig,
}

impl<S: Source + Send + Sync> Loader for BundleLoader<S> {
    fn load(&self, vm: &Vm) -> Result<Entry, LoadError> {
        let config = &self.config;
        let missing = |field: &'static str, file: &str| LoadError::Missing {
            vm: config.name.clone(),
            field,
            file: file.to_string(),
        };
        let kernel = self.bundle.file(&config.kernel).ok_or_else(|| missing("kernel", &config.kernel))?;
        let initrd = match &config.initrd {
            Some(name) => Some(self.bundle.file(name).ok_or_else(|| missing("initrd", name))?),
            None => None,
        };
        let mut memory = vm.memory();
        let layout = vm.layout();
        let tables = acpi::build(&acpi::Config { vcpus: vm.cpus().len() as u32, layout: *layout, ecam: e820::ECAM });
        let no_room = |_| self.file_error(Which::Kernel, linux::ImageError::NoRoom { needs_mib: 16 });
        memory.write(tables.base, &tables.bytes).map_err(no_room)?;
        let params = Params { cmdline: &config.cmdline, layout, rsdp: tables.rsdp };
        let initrd = initrd.as_ref().map(|part| part as &dyn Source);
        linux::load(&kernel, initrd, &params, &mut memory).map_err(|(which, cause)| self.file_error(which, cause))
    }
}

impl<S> BundleLoader<S> {
    fn file_error(&self, which: Which, cause: linux::ImageError) -> LoadError {
        let (field, file) = match which {
            Which::Kernel => ("kernel", self.config.kernel.clone()),
            Which::Initrd => ("initrd", self.config.initrd.clone().unwrap_or_default()),
        };
        LoadError::File { vm: self.config.name.clone(), field, file, cause }
    }
}
