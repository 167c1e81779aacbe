//! Bochs 2.7, the judge of VT-x: later packages compute 64-bit divisions wrongly (its first test shows it).

use std::path::PathBuf;
use std::process::Command;

use super::{Item, kernel, unpack};
use crate::error::{Error, Result};

/// The version whose arithmetic is known to be right.
const VERSION: &str = "2.7";
const PLUGINS: &str = "usr/lib/x86_64-linux-gnu/bochs/plugins";

/// Bochs, run from a private root.
#[derive(Debug, Clone)]
pub struct Bochs {
    root: PathBuf,
}

impl Bochs {
    /// Finds or fetches it.
    pub fn get() -> Result<Self> {
        let item = Item::new("bochs", "1");
        item.get("Bochs", |store| {
            let suites = store.suites(&[kernel::oldest_suite(&store.archive)])?;
            // The display that needs no window system; it depends on the emulator and the firmware.
            let version = suites.version("bochs-term", |v| v == VERSION || v.starts_with(&format!("{VERSION}+")))?;
            let version = version.ok_or_else(|| {
                Error::new(format!("no package bochs-term {VERSION} in this distribution; machine vmx-bochs needs it"))
            })?;
            unpack::fresh(&item.dir, &suites.fetch_closure("bochs-term", &version)?)?;
            Ok(version)
        })?;
        Ok(Self { root: item.dir })
    }

    /// The firmware images: BIOS, VGA BIOS.
    pub fn firmware(&self) -> [PathBuf; 2] {
        ["usr/share/bochs/BIOS-bochs-latest", "usr/share/vgabios/vgabios.bin"].map(|path| self.root.join(path))
    }

    /// A command that starts it, without arguments.
    pub fn command(&self) -> Result<Command> {
        let mut command = unpack::command(&self.root, "usr/bin/bochs-bin")?;
        command.env("LTDL_LIBRARY_PATH", self.root.join(PLUGINS));
        command.env("BXSHARE", self.root.join("usr/share/bochs"));
        Ok(command)
    }
}
