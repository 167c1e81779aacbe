//! Loading: the bundle that comes with the image, its `prism.toml`, and guest kernels.
//!
//! The bundle stays where the boot loader put it; only what is needed is copied out of it, through `Source`.

pub mod bundle;
pub mod config;
pub mod linux;

pub use bundle::{Bundle, BundleError, Part};
pub use config::{Config, ConfigError, GpuConfig, OnCrash, VgpuConfig, VmConfig};

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use hv_defs::Gpa;

/// Name of the configuration file in the bundle.
pub const CONFIG_NAME: &str = "prism.toml";
/// Longest configuration that is read, in bytes.
const CONFIG_LIMIT: u64 = 64 * 1024;

/// A range that reaches outside what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRange;

/// Bytes that can be copied out of: a module, or a file in it.
pub trait Source {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies `buf.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// `OutOfRange` if that reaches past the end.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), OutOfRange>;
}

impl Source for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let start = usize::try_from(offset).map_err(|_| OutOfRange)?;
        let end = start.checked_add(buf.len()).ok_or(OutOfRange)?;
        buf.copy_from_slice(self.get(start..end).ok_or(OutOfRange)?);
        Ok(())
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        (**self).read(offset, buf)
    }
}

/// Guest memory as a loader writes it.
pub trait Sink {
    /// Copies bytes to guest RAM.
    ///
    /// # Errors
    /// `OutOfRange` if any byte is not RAM.
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), OutOfRange>;
}

/// Why a bundle cannot be used. Displays as one line that names the file and the field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// The bundle itself.
    Bundle(BundleError),
    /// `prism.toml` is missing or too long, or not text.
    NoConfig(&'static str),
    /// `prism.toml` says something impossible.
    Config(ConfigError),
    /// A file named in `prism.toml` is not in the bundle.
    Missing {
        /// The VM.
        vm: String,
        /// The field that names it.
        field: &'static str,
        /// The file.
        file: String,
    },
    /// A file is there but cannot be used.
    File {
        /// The VM.
        vm: String,
        /// The field that names it.
        field: &'static str,
        /// The file.
        file: String,
        /// What is wrong with it.
        cause: linux::ImageError,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(error) => write!(f, "bundle: {error}"),
            Self::NoConfig(what) => write!(f, "bundle: {CONFIG_NAME}: {what}"),
            Self::Config(error) => write!(f, "{CONFIG_NAME}: {error}"),
            Self::Missing { vm, field, file } => {
                write!(
                    f,
                    "{CONFIG_NAME}: vm \"{vm}\", field {field}: \"{file}\" is not in the bundle; add the file or correct the name"
                )
            }
            Self::File { vm, field, file, cause } => {
                write!(f, "{CONFIG_NAME}: vm \"{vm}\", field {field}: \"{file}\" {cause}")
            }
        }
    }
}

impl From<BundleError> for LoadError {
    fn from(error: BundleError) -> Self {
        Self::Bundle(error)
    }
}

/// Opens a bundle, reads its configuration and checks that every file it names is there.
///
/// # Errors
/// One line for the user; nothing has been started.
pub fn open<S: Source>(source: S) -> Result<(Bundle<S>, Config), LoadError> {
    let bundle = Bundle::open(source)?;
    let file = bundle.file(CONFIG_NAME).ok_or(LoadError::NoConfig("missing; a bundle must hold it"))?;
    if file.len() > CONFIG_LIMIT {
        return Err(LoadError::NoConfig("longer than 64 KiB"));
    }
    let mut bytes = alloc::vec![0; file.len() as usize];
    file.read(0, &mut bytes).map_err(|_| LoadError::NoConfig("cannot be read"))?;
    let text = core::str::from_utf8(&bytes).map_err(|_| LoadError::NoConfig("not UTF-8 text"))?;
    let config = Config::parse(text).map_err(LoadError::Config)?;
    for vm in &config.vm {
        let named: Vec<(&'static str, &str)> = core::iter::once(("kernel", vm.kernel.as_str()))
            .chain(vm.initrd.as_deref().map(|initrd| ("initrd", initrd)))
            .collect();
        for (field, name) in named {
            if bundle.file(name).is_none() {
                return Err(LoadError::Missing { vm: vm.name.clone(), field, file: name.to_string() });
            }
        }
    }
    Ok((bundle, config))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A cpio archive in newc form, made as `cpio -H newc` does.
    pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
        for (name, data) in files.iter().copied().chain([("TRAILER!!!", &[][..])]) {
            let fields = [0, 0o100_644, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
            out.extend(b"070701");
            for field in fields {
                out.extend(std::format!("{field:08x}").bytes());
            }
            out.extend(name.bytes());
            out.push(0);
            pad(&mut out);
            out.extend(data);
            pad(&mut out);
        }
        out
    }

    const TOML: &str = "[[vm]]\nname = \"a\"\nmemory_mib = 512\nkernel = \"vmlinuz\"\ninitrd = \"i\"\n";

    #[test]
    fn a_good_bundle_opens() {
        let data = archive(&[(CONFIG_NAME, TOML.as_bytes()), ("vmlinuz", b"k"), ("./i", b"xyz")]);
        let (bundle, config) = open(&data[..]).unwrap();
        assert_eq!(config.vm[0].name, "a");
        let file = bundle.file("i").unwrap();
        let mut bytes = [0; 3];
        file.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"xyz");
        assert_eq!(file.read(1, &mut bytes), Err(OutOfRange));
    }

    #[test]
    fn what_is_missing_is_named_in_one_line() {
        let line = |files: &[(&str, &[u8])]| open(&archive(files)[..]).map(|_| ()).unwrap_err().to_string();
        assert_eq!(line(&[("x", b"")]), "bundle: prism.toml: missing; a bundle must hold it");
        let text = line(&[(CONFIG_NAME, TOML.as_bytes()), ("vmlinuz", b"k")]);
        assert_eq!(
            text,
            "prism.toml: vm \"a\", field initrd: \"i\" is not in the bundle; add the file or correct the name"
        );
        assert_eq!(line(&[(CONFIG_NAME, &[0xFF, 0xFE])]), "bundle: prism.toml: not UTF-8 text");
    }
}
