//! Client memory: a file of the client (its RAM) mapped into this process, read and written by copy only.
//!
//! UNSAFETY: mapping a file that another process writes at any moment cannot be expressed in safe Rust. This module
//! keeps the mapping private, never makes a reference into it, and copies with volatile accesses: aligned 8- and
//! 4-byte pieces whole and in ascending order, since the guest looks at sequence numbers and page tables meanwhile.
#![expect(unsafe_code, reason = "the only place that maps memory of another process")]

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Whether a mapping can be stored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// A shared mapping of a whole file.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    access: Access,
}

impl SharedMemory {
    /// Maps the first `len` bytes of `file`.
    ///
    /// # Errors
    /// What `mmap` answers; `InvalidInput` for a length of zero.
    pub fn map(file: BorrowedFd<'_>, len: usize, access: Access) -> io::Result<Self> {
        let protection = match access {
            Access::ReadOnly => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: 1. A null hint without MAP_FIXED lets the kernel choose an unused range, so no memory that Rust
        // knows of is replaced. 2. A bad length or descriptor is an error value.
        let base = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, len, access })
    }

    /// Copies out of the mapping. Says `None`, having copied nothing, if the range is not inside.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Option<()> {
        let mut from = self.pointer(offset, buf.len())?;
        let mut rest = buf;
        while !rest.is_empty() {
            let size = piece(from as usize, rest.len());
            let (head, tail) = rest.split_at_mut(size);
            // SAFETY: 1. `pointer` checked that the whole range lies inside the mapping, which lives as long as
            // `self`. 2. `piece` never exceeds what is left and never the alignment of `from`. 3. Volatile: the
            // guest may write at the same time; every bit pattern is a valid integer.
            unsafe {
                match size {
                    8 => head.copy_from_slice(&from.cast::<u64>().read_volatile().to_ne_bytes()),
                    4 => head.copy_from_slice(&from.cast::<u32>().read_volatile().to_ne_bytes()),
                    _ => head.fill(from.read_volatile()),
                }
                from = from.add(size);
            }
            rest = tail;
        }
        Some(())
    }

    /// Copies into the mapping. Says `None`, having copied nothing, if the range is not inside or not writable.
    pub fn write(&self, offset: usize, data: &[u8]) -> Option<()> {
        if self.access == Access::ReadOnly {
            return None;
        }
        let mut to = self.pointer(offset, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let size = piece(to as usize, rest.len());
            let (head, tail) = rest.split_at(size);
            // SAFETY: 1. As in `read`, the range is inside the live mapping and aligned for its size. 2. The
            // mapping was made writable, checked above. 3. No Rust reference to this memory exists anywhere.
            unsafe {
                match head {
                    &[a, b, c, d, e, f, g, h] => {
                        to.cast::<u64>().write_volatile(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                    }
                    &[a, b, c, d] => to.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d])),
                    bytes => bytes.iter().for_each(|byte| to.write_volatile(*byte)),
                }
                to = to.add(size);
            }
            rest = tail;
        }
        Some(())
    }

    /// The address of `offset`, if `size` bytes from there on are inside.
    fn pointer(&self, offset: usize, size: usize) -> Option<*mut u8> {
        if offset.checked_add(size)? > self.len {
            return None;
        }
        Some(self.base.as_ptr().wrapping_add(offset))
    }
}

/// How many bytes to copy in one access: 8, 4 or 1, by alignment and by what is left.
fn piece(address: usize, left: usize) -> usize {
    match (address % 8, left) {
        (0, 8..) => 8,
        (0 | 4, 4..) => 4,
        _ => 1,
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: 1. Exactly the range that `map` made. 2. No pointer into it outlives a method of this value.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn memory(len: usize, access: Access) -> SharedMemory {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, len as u64).unwrap();
        SharedMemory::map(file.as_fd(), len, access).unwrap()
    }

    #[test]
    fn copies_of_every_alignment_and_length_agree() {
        let memory = memory(4096, Access::ReadWrite);
        for offset in 0..9 {
            for len in 0..40 {
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + offset + 1) as u8).collect();
                memory.write(0, &[0xee; 64]).unwrap();
                memory.write(offset, &data).unwrap();
                let mut all = [0; 64];
                memory.read(0, &mut all).unwrap();
                assert!(all[..offset].iter().all(|byte| *byte == 0xee));
                assert_eq!(all[offset..offset + len], data);
                assert!(all[offset + len..].iter().all(|byte| *byte == 0xee));
                let mut back = vec![0; len];
                memory.read(offset, &mut back).unwrap();
                assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn ranges_beyond_the_end_are_refused() {
        let memory = memory(4096, Access::ReadWrite);
        assert_eq!(memory.read(4095, &mut [0; 2]), None);
        assert_eq!(memory.write(4096, &[0]), None);
        assert_eq!(memory.read(usize::MAX, &mut [0; 2]), None);
        assert_eq!(memory.read(4096, &mut []), Some(()));
    }

    #[test]
    fn read_only_memory_takes_no_store() {
        let memory = memory(4096, Access::ReadOnly);
        assert_eq!(memory.write(0, &[1]), None);
        assert_eq!(memory.read(0, &mut [0; 8]), Some(()));
    }

    #[test]
    fn a_mapping_of_nothing_is_an_error() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(SharedMemory::map(file.as_fd(), 0, Access::ReadWrite).is_err());
    }
}
