//! Loading: the bundle that comes with the image, its `prism.toml`, and guest kernels.
//!
//! The bundle stays where the boot loader put it; only what is needed is copied out of it.

pub mod bundle;
pub mod config;
pub mod linux;

pub use bundle::{Bundle, BundleError};
pub use config::{Config, ConfigError, GpuConfig, OnCrash, VgpuConfig, VmConfig};

use alloc::string::{String, ToString};
use hv_defs::Gpa;
use thiserror::Error;

/// Name of the configuration file in the bundle.
pub const CONFIG_NAME: &str = "prism.toml";
/// Longest configuration that is read, in bytes.
const CONFIG_LIMIT: usize = 64 * 1024;

/// A range that reaches outside what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRange;

/// Guest memory as a loader writes it.
pub trait Sink {
    /// Copies bytes to guest RAM.
    ///
    /// # Errors
    /// `OutOfRange` if any byte is not RAM.
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), OutOfRange>;
}

/// Why a bundle cannot be used. Displays as one line that names the file and the field.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LoadError {
    /// The bundle itself.
    #[error("bundle: {0}")]
    Bundle(#[from] BundleError),
    /// `prism.toml` is missing or too long, or not text.
    #[error("bundle: {CONFIG_NAME}: {0}")]
    NoConfig(&'static str),
    /// `prism.toml` says something impossible.
    #[error("{CONFIG_NAME}: {0}")]
    Config(#[from] ConfigError),
    /// A file named in `prism.toml` cannot be used.
    #[error("{CONFIG_NAME}: vm \"{vm}\", field {field}: \"{file}\" {cause}")]
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

/// Opens a bundle, reads its configuration and checks that every file it names is there.
///
/// # Errors
/// One line for the user; nothing has been started.
pub fn open(archive: &[u8]) -> Result<(Bundle<'_>, Config), LoadError> {
    let bundle = Bundle::open(archive)?;
    let file = bundle.file(CONFIG_NAME).ok_or(LoadError::NoConfig("missing; a bundle must hold it"))?;
    if file.len() > CONFIG_LIMIT {
        return Err(LoadError::NoConfig("longer than 64 KiB"));
    }
    let text = core::str::from_utf8(file).map_err(|_| LoadError::NoConfig("not UTF-8 text"))?;
    let config = Config::parse(text)?;
    for vm in &config.vm {
        find(&bundle, vm, "kernel", &vm.kernel)?;
        vm.initrd.as_ref().map(|initrd| find(&bundle, vm, "initrd", initrd)).transpose()?;
    }
    Ok((bundle, config))
}

/// A file that a field of `prism.toml` names.
pub(crate) fn find<'a>(
    bundle: &Bundle<'a>,
    vm: &VmConfig,
    field: &'static str,
    file: &str,
) -> Result<&'a [u8], LoadError> {
    bundle.file(file).ok_or_else(|| file_error(vm, field, file, linux::ImageError::Missing))
}

pub(crate) fn file_error(vm: &VmConfig, field: &'static str, file: &str, cause: linux::ImageError) -> LoadError {
    LoadError::File { vm: vm.name.clone(), field, file: file.to_string(), cause }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec::Vec;

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
        assert_eq!(bundle.file("i"), Some(&b"xyz"[..]));
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
