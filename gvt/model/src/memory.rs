//! DMA: what the caller provides, and the wrapper that every access of the GPU goes through.

use gvt_defs::{Hpa, PAGE_SIZE};

use crate::recorder::{Recorder, Touch};

/// Nobody answers at that address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusError;

/// Memory as the GPU sees it. A call never crosses a 4 KiB frame. Aligned pieces of 1, 2, 4 and 8 bytes are copied
/// whole, and calls take effect in order, as other CPUs see them.
pub trait Memory {
    /// Copies memory into `buf`.
    ///
    /// # Errors
    /// `BusError` if any byte is not memory.
    fn read(&mut self, hpa: Hpa, buf: &mut [u8]) -> Result<(), BusError>;

    /// Copies `data` into memory.
    ///
    /// # Errors
    /// `BusError` if any byte is not writable memory.
    fn write(&mut self, hpa: Hpa, data: &[u8]) -> Result<(), BusError>;
}

/// Memory plus the record of what was touched. Reads that fail give zeros, writes that fail are dropped.
pub(crate) struct Dma<'a> {
    pub memory: &'a mut dyn Memory,
    pub recorder: &'a mut Recorder,
}

impl Dma<'_> {
    #[inline]
    pub fn read(&mut self, hpa: Hpa, buf: &mut [u8]) -> Result<(), BusError> {
        debug_assert!((hpa.0 % PAGE_SIZE) as usize + buf.len() <= PAGE_SIZE as usize);
        self.recorder.note(hpa, Touch::Read);
        let result = self.memory.read(hpa, buf);
        if result.is_err() {
            buf.fill(0);
        }
        result
    }

    #[inline]
    pub fn write(&mut self, hpa: Hpa, data: &[u8]) -> Result<(), BusError> {
        debug_assert!((hpa.0 % PAGE_SIZE) as usize + data.len() <= PAGE_SIZE as usize);
        self.recorder.note(hpa, Touch::Write);
        self.memory.write(hpa, data)
    }

    #[inline]
    pub fn read_u64(&mut self, hpa: Hpa) -> Result<u64, BusError> {
        let mut buf = [0; 8];
        self.read(hpa, &mut buf)?;
        Ok(u64::from_le_bytes(buf))
    }
}
