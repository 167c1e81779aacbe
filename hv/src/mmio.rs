//! Device registers: handles with volatile copies of exactly one width, never references.

use core::ptr::NonNull;

use volatile::VolatilePtr;

/// A range of device registers. An access outside reads all ones and writes nothing, as on a bus without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: u64,
    len: u64,
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads the register at `offset`.
        pub fn $read(self, offset: u64) -> $type {
            self.at::<$type>(offset).map_or(<$type>::MAX, VolatilePtr::read)
        }

        /// Writes the register at `offset`.
        pub fn $write(self, offset: u64, value: $type) {
            if let Some(register) = self.at::<$type>(offset) {
                register.write(value);
            }
        }
    };
}

impl Mmio {
    /// # Safety
    /// 1. `len` bytes at virtual address `base` are device registers, mapped uncached for good.
    pub(crate) const unsafe fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// Size in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether there is no register at all.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);

    fn at<T: Copy>(self, offset: u64) -> Option<VolatilePtr<'static, T>> {
        let size = size_of::<T>() as u64;
        let end = offset.checked_add(size)?;
        let address = self.base.checked_add(offset)?;
        if end > self.len || !address.is_multiple_of(size) {
            return None;
        }
        let pointer = NonNull::new(core::ptr::with_exposed_provenance_mut::<T>(address as usize))?;
        // SAFETY: 1. Inside the range and aligned, as checked above. 2. `Mmio::new` promises mapped device registers,
        // for which every bit pattern is a value.
        Some(unsafe { VolatilePtr::new(pointer) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_inside_and_to_the_width() {
        let bytes: &'static mut [u64] = vec![0u64; 2].leak();
        // SAFETY: 1. 16 leaked bytes stand in for registers.
        let mmio = unsafe { Mmio::new(bytes.as_mut_ptr().expose_provenance() as u64, 16) };
        mmio.write32(4, 0x1234_5678);
        assert_eq!((mmio.read64(0), mmio.read16(6), mmio.read8(4)), (0x1234_5678_0000_0000, 0x1234, 0x78));
        mmio.write32(14, 1);
        mmio.write64(u64::MAX - 3, 1);
        assert_eq!((mmio.read32(14), mmio.read64(16), mmio.read32(2)), (u32::MAX, u64::MAX, u32::MAX));
        assert_eq!(mmio.read64(8), 0);
    }
}
