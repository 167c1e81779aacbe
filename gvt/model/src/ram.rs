//! Plain memory for tests and for in-process users.

use alloc::vec;
use alloc::vec::Vec;

use gvt_defs::Hpa;

use crate::memory::{BusError, Memory};

/// A range of zeroed memory at a physical address.
pub struct Ram {
    base: u64,
    bytes: Vec<u8>,
}

impl Ram {
    /// `bytes` of memory at `base`.
    pub fn new(base: Hpa, bytes: usize) -> Self {
        Self { base: base.0, bytes: vec![0; bytes] }
    }

    fn range(&self, hpa: Hpa, len: usize) -> Result<core::ops::Range<usize>, BusError> {
        let start = hpa.0.checked_sub(self.base).and_then(|s| usize::try_from(s).ok()).ok_or(BusError)?;
        let end = start.checked_add(len).filter(|end| *end <= self.bytes.len()).ok_or(BusError)?;
        Ok(start..end)
    }

    /// The dword at `hpa`; all ones outside.
    pub fn read_u32(&mut self, hpa: Hpa) -> u32 {
        let mut buf = [0xFF; 4];
        let _ = self.read(hpa, &mut buf);
        u32::from_le_bytes(buf)
    }

    /// Stores a dword; dropped outside.
    pub fn write_u32(&mut self, hpa: Hpa, value: u32) {
        let _ = self.write(hpa, &value.to_le_bytes());
    }

    /// The qword at `hpa`; all ones outside.
    pub fn read_u64(&mut self, hpa: Hpa) -> u64 {
        let mut buf = [0xFF; 8];
        let _ = self.read(hpa, &mut buf);
        u64::from_le_bytes(buf)
    }

    /// Stores a qword; dropped outside.
    pub fn write_u64(&mut self, hpa: Hpa, value: u64) {
        let _ = self.write(hpa, &value.to_le_bytes());
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Memory for Ram {
    fn read(&mut self, hpa: Hpa, buf: &mut [u8]) -> Result<(), BusError> {
        let range = self.range(hpa, buf.len())?;
        buf.copy_from_slice(self.bytes.get(range).ok_or(BusError)?);
        Ok(())
    }

    fn write(&mut self, hpa: Hpa, data: &[u8]) -> Result<(), BusError> {
        let range = self.range(hpa, data.len())?;
        self.bytes.get_mut(range).ok_or(BusError)?.copy_from_slice(data);
        Ok(())
    }
}
