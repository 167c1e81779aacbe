//! GRUB, to boot the image as a PC with a disk does: by multiboot2, with modules of its choosing.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Item, kernel, unpack};
use crate::cpio::Archive;
use crate::error::{Context, Error, Result, read, write};

/// GRUB for BIOS machines, run from a private root.
#[derive(Debug, Clone)]
pub struct Grub {
    root: PathBuf,
}

/// What it needs to read a second disk that is a cpio archive and to start an ELF file.
const MODULES: [&str; 7] = ["biosdisk", "newc", "multiboot", "multiboot2", "normal", "serial", "terminal"];
const FOLDER: &str = "usr/lib/grub/i386-pc";

impl Grub {
    /// Finds or fetches it.
    pub fn get() -> Result<Self> {
        let item = Item::new("grub", "1");
        item.get("GRUB", |store| {
            let suites = store.suites(&[kernel::oldest_suite(&store.archive)])?;
            let version = suites.version("grub-pc-bin", |_| true)?;
            let version = version.ok_or_else(|| Error::new("no package grub-pc-bin in this distribution"))?;
            unpack::fresh(&item.dir, &suites.fetch_closure("grub-pc-bin", &version)?)?;
            Ok(version)
        })?;
        Ok(Self { root: item.dir })
    }

    /// Two disks: one that GRUB starts from and one, an archive, with the files that `script` names as `(hd1)/name`.
    pub fn disks(&self, script: &str, files: &[(&str, &[u8])]) -> Result<[Vec<u8>; 2]> {
        let mut archive = Archive::new();
        for (name, content) in files {
            archive.file(name, content);
        }
        Ok([self.boot_disk(script)?, archive.finish()])
    }

    /// The boot sector with GRUB's core right behind it, where its BIOS build expects it.
    fn boot_disk(&self, script: &str) -> Result<Vec<u8>> {
        // Several threads of several processes make disks at the same time.
        static DISKS: AtomicU32 = AtomicU32::new(0);
        let number = DISKS.fetch_add(1, Ordering::Relaxed);
        let scratch = std::env::temp_dir().join(format!("prism-grub-{}-{number}", std::process::id()));
        let (config, core) = (scratch.with_extension("cfg"), scratch.with_extension("img"));
        write(&config, script)?;
        let out = unpack::command(&self.root, "usr/bin/grub-mkimage")?
            .args(["--format=i386-pc", "--prefix=/", "--output"])
            .arg(&core)
            .arg("--directory")
            .arg(self.root.join(FOLDER))
            .arg("--config")
            .arg(&config)
            .args(MODULES)
            .output()
            .context(|| "cannot run grub-mkimage".into())?;
        if !out.status.success() {
            let why = String::from_utf8_lossy(&out.stderr).into_owned();
            return Err(Error::new(format!("grub-mkimage: {}", why.lines().next().unwrap_or("failed"))));
        }
        let mut disk = read(&self.root.join(FOLDER).join("boot.img"))?;
        disk.extend(read(&core)?);
        // A disk of whole cylinders, so that the BIOS reads all of it.
        disk.resize(disk.len().next_multiple_of(1 << 20), 0);
        let _ = (fs::remove_file(config), fs::remove_file(core));
        Ok(disk)
    }
}
