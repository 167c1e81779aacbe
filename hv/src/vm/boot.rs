//! Putting a guest's software into its RAM, at the start and at every reset.

use alloc::sync::Arc;

use hv_dev::{acpi, e820};

use super::Vm;
use crate::load::linux::{self, Entry, ImageError, Params, Which};
use crate::load::{self, Bundle, LoadError, Sink, VmConfig};

/// Fills the RAM of a VM.
pub trait Loader: Send + Sync {
    /// Writes everything that must be there at the first instruction.
    ///
    /// # Errors
    /// One line for the user.
    fn load(&self, vm: &Vm) -> Result<Entry, LoadError>;
}

/// Boots the kernel that `prism.toml` names.
pub struct BundleLoader {
    /// The bundle.
    pub bundle: Arc<Bundle<'static>>,
    /// The VM's part of the configuration.
    pub config: VmConfig,
}

impl Loader for BundleLoader {
    fn load(&self, vm: &Vm) -> Result<Entry, LoadError> {
        let config = &self.config;
        let kernel = load::find(&self.bundle, config, "kernel", &config.kernel)?;
        let initrd = match &config.initrd {
            Some(name) => Some(load::find(&self.bundle, config, "initrd", name)?),
            None => None,
        };
        let mut memory = vm.memory();
        let layout = vm.layout();
        let tables = acpi::build(&acpi::Config { vcpus: vm.cpus().len() as u32, layout: *layout, ecam: e820::ECAM });
        let no_room = |_| self.file_error(Which::Kernel, ImageError::NoRoom { needs_mib: 16 });
        memory.write(tables.base, &tables.bytes).map_err(no_room)?;
        let params = Params { cmdline: &config.cmdline, layout, rsdp: tables.rsdp };
        linux::load(kernel, initrd, &params, &mut memory).map_err(|(which, cause)| self.file_error(which, cause))
    }
}

impl BundleLoader {
    fn file_error(&self, which: Which, cause: ImageError) -> LoadError {
        let (field, file) = match which {
            Which::Kernel => ("kernel", self.config.kernel.as_str()),
            Which::Initrd => ("initrd", self.config.initrd.as_deref().unwrap_or_default()),
        };
        load::file_error(&self.config, field, file, cause)
    }
}
