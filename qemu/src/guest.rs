//! What a Linux guest starts with: an initrd of busybox, kernel modules, programs and a script.

use std::path::Path;

use crate::cpio::Archive;
use crate::error::{Error, Result, read};
use crate::provision::{self, Kernel};

/// An initrd being put together.
#[derive(Debug)]
pub struct Initrd {
    archive: Archive,
    script: String,
}

/// Shells, the script's own among them, end the machine with the GPU at rest, as it is at the end of an orderly
/// shutdown. i915 turns its interrupts off before it waits for the engines (`i915_driver_shutdown`, at least up to 7.2):
/// while an engine is just going idle, nobody then reads the status entry that the wait is for, and the kernel hangs
/// without a word. That is so on any GPU; 0x44 is to retire what is complete and to wait for the rest.
const SHELL: &str = "rest() {
    for drop in /sys/kernel/debug/dri/*/i915_gem_drop_caches; do [ -e $drop ] && echo 0x44 > $drop; done
}
poweroff() { rest; /bin/poweroff \"$@\"; }
reboot() { rest; /bin/reboot \"$@\"; }
";

/// Gives the script every applet as a command and the file systems that programs expect.
const PROLOGUE: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
export ENV=/root/shell
. /root/shell
";

impl Initrd {
    /// Busybox and empty folders.
    pub fn new() -> Result<Self> {
        let mut archive = Archive::new();
        for folder in ["bin", "dev", "proc", "sys", "tmp", "root", "modules"] {
            archive.folder(folder);
        }
        archive.file("root/shell", SHELL.as_bytes());
        archive.file("bin/busybox", &read(&provision::busybox()?)?);
        Ok(Self { archive, script: PROLOGUE.into() })
    }

    /// Adds the kernel's modules but loads none: `load` does.
    pub fn modules(mut self, kernel: &Kernel) -> Result<Self> {
        for module in &kernel.modules {
            self.archive.file(&format!("modules/{}", file_name(module)?), &read(module)?);
        }
        Ok(self)
    }

    /// Loads the kernel's modules, i915 last, with these parameters for i915.
    pub fn load(mut self, kernel: &Kernel, parameters: &str) -> Result<Self> {
        for module in &kernel.modules {
            let name = file_name(module)?;
            let parameters = if name == "i915.ko" { parameters } else { "" };
            self.script.push_str(&format!("insmod /modules/{name} {parameters}\n"));
        }
        Ok(self)
    }

    /// Adds a file under its own name in `/bin`.
    pub fn program(mut self, program: &Path) -> Result<Self> {
        self.archive.file(&format!("bin/{}", file_name(program)?), &read(program)?);
        Ok(self)
    }

    /// Adds a file.
    pub fn file(mut self, name: &str, content: &[u8]) -> Self {
        self.archive.file(name, content);
        self
    }

    /// Adds lines to the script that runs at boot. Busybox' shell reads them; end with `poweroff -f`.
    pub fn script(mut self, lines: &str) -> Self {
        self.script.push_str(lines);
        self.script.push('\n');
        self
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.archive.file("init", self.script.as_bytes());
        self.archive.finish()
    }
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| Error::new(format!("{} has no usable name", path.display())))
}
