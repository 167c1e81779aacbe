//! The system calls that std lacks: ioctl and mmap of a DRM device, and poll.
//!
//! UNSAFETY: a kernel interface of numbers and structs has no safe form. A request is tied to its struct by `Request`,
//! and mapped memory, which the GPU writes, is reached by volatile copies only.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// The argument of one ioctl.
///
/// # Safety
/// The type is `repr(C)` without padding that matters, exactly as the kernel's struct of the same name; any addresses
/// in it are of live memory of the stated size when it is passed.
pub unsafe trait Request {
    /// The request number, whose size field is the size of this type.
    const NUMBER: u32;
}

/// Issues an ioctl, again if it was interrupted.
pub fn ioctl<T: Request>(file: BorrowedFd<'_>, argument: &mut T) -> io::Result<()> {
    loop {
        // SAFETY: 1. By the contract of `Request`, the kernel reads and writes exactly `T`, and what it points at.
        // 2. `argument` is exclusive and lives through the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(T::NUMBER), &raw mut *argument) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// Waits until `file` is readable; false when `milliseconds` have passed.
pub fn readable(file: BorrowedFd<'_>, milliseconds: i32) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: 1. One entry, exclusive, alive through the call.
    match unsafe { libc::poll(&raw mut entry, 1, milliseconds) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready == 1),
    }
}

/// A buffer of the GPU in this process.
pub struct Map {
    base: NonNull<u8>,
    size: usize,
}

impl Map {
    /// Maps `size` bytes of the DRM file at the offset that it gave out.
    pub fn new(file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: 1. No MAP_FIXED: the kernel chooses an unused range. 2. Failure is checked below.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        match NonNull::new(base.cast()) {
            Some(start) if base != libc::MAP_FAILED => Ok(Self { base: start, size }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads a dword.
    pub fn get(&self, offset: usize) -> u32 {
        // SAFETY: 1. `at` checked bounds and alignment. 2. Volatile, since the GPU writes this memory.
        unsafe { self.at(offset).read_volatile() }
    }

    /// Stores a dword.
    pub fn set(&self, offset: usize, value: u32) {
        // SAFETY: 1. `at` checked bounds and alignment. 2. Volatile, since the GPU reads this memory.
        unsafe { self.at(offset).write_volatile(value) }
    }

    /// All of it.
    pub fn read_all(&self) -> Vec<u32> {
        (0..self.size).step_by(4).map(|offset| self.get(offset)).collect()
    }

    /// Stores all of it.
    pub fn write_all(&self, data: &[u32]) {
        for (index, dword) in data.iter().enumerate() {
            self.set(index * 4, *dword);
        }
    }

    fn at(&self, offset: usize) -> *mut u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.size, "offset {offset:#x} outside the map");
        self.base.as_ptr().wrapping_add(offset).cast()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: 1. Exactly the range that `new` mapped; no pointer into it is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}
