//! The machine's memory. It is the runner's, so that it can be read when the emulator is no more.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Context, Result};

/// Memory without a name, shared with whoever opens `path`.
#[derive(Debug)]
pub struct Ram(File);

impl Ram {
    /// So much, all zeros.
    pub fn new(mib: u32) -> Result<Self> {
        let doing = || format!("cannot make {mib} MiB of memory for the machine");
        let file = memfd_create("prism-ram", MemfdFlags::CLOEXEC).map(File::from).context(doing)?;
        file.set_len(u64::from(mib) << 20).context(doing)?;
        Ok(Self(file))
    }

    /// Where another process of this user opens it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Puts something there.
    #[cfg(test)]
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, at).unwrap();
    }

    /// What lies at a physical address below the hole under 4 GiB.
    pub fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    }
}
