//! What std lacks: a device's registers in this process, and memory whose physical addresses are known.
//!
//! UNSAFETY: both are mappings that others write. They are reached by copy operations only; no reference exists.

use std::arch::asm;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use gvt_defs::Gpa;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A mapping of this process, kept to its end.
#[derive(Clone, Copy)]
struct Mapping {
    base: *mut u8,
    bytes: usize,
}

impl Mapping {
    fn new(file: Option<&File>, bytes: usize, flags: i32) -> io::Result<Self> {
        let descriptor = file.map_or(-1, AsRawFd::as_raw_fd);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: 1. No MAP_FIXED: the kernel chooses an unused range. 2. Failure is checked below.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, descriptor, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), bytes })
    }

    fn at(self, offset: usize, width: usize) -> *mut u8 {
        assert!(offset + width <= self.bytes, "offset {offset:#x} outside the map");
        self.base.wrapping_add(offset)
    }
}

/// Registers of the device. Any width of 1, 2, 4 or 8 bytes, at any offset.
pub struct Registers(Mapping);

impl Registers {
    /// Maps a BAR by its file in sysfs.
    pub fn map(path: &str, bytes: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Mapping::new(Some(&file), bytes, libc::MAP_SHARED).map(Self)
    }

    /// How many there are.
    pub const fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// One load.
    pub fn load(&self, offset: u32, width: usize) -> u64 {
        let at = self.0.at(offset as usize, width);
        let value: u64;
        // SAFETY: 1. `at` checked the bounds. 2. One load of the mapping, at any alignment, as x86 allows.
        unsafe {
            match width {
                1 => asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
                2 => asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
                4 => asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
                _ => asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at, options(nostack)),
            }
        }
        value
    }

    /// One store.
    pub fn store(&self, offset: u32, width: usize, value: u64) {
        let at = self.0.at(offset as usize, width);
        // SAFETY: 1. `at` checked the bounds. 2. One store to the mapping, at any alignment, as x86 allows. 3. Nothing of
        // this process lies behind it.
        unsafe {
            match width {
                1 => asm!("mov byte ptr [{0}], {1}", in(reg) at, in(reg_byte) value as u8, options(nostack)),
                2 => asm!("mov word ptr [{0}], {1:x}", in(reg) at, in(reg) value, options(nostack)),
                4 => asm!("mov dword ptr [{0}], {1:e}", in(reg) at, in(reg) value, options(nostack)),
                _ => asm!("mov qword ptr [{0}], {1}", in(reg) at, in(reg) value, options(nostack)),
            }
        }
    }
}

// SAFETY: 1. The mapping lives as long as the process. 2. Every access is one load or store by `asm`, of which the compiler
// assumes nothing.
unsafe impl Send for Registers {}

/// Memory that stays where it is, by page number.
pub struct Memory {
    mapping: Mapping,
    frames: Vec<Gpa>,
}

// SAFETY: 1. The mapping lives as long as the process. 2. Every access is one volatile load or store of an aligned word.
unsafe impl Send for Memory {}
// SAFETY: as above: threads race on words only as the GPU does with them all the time.
unsafe impl Sync for Memory {}

impl Memory {
    /// Takes `pages` pages of zeros.
    pub fn new(pages: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_LOCKED;
        let mapping = Mapping::new(None, pages * PAGE, flags)?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut entries = vec![0; pages * 8];
        pagemap.read_exact_at(&mut entries, (mapping.base as u64) / PAGE as u64 * 8)?;
        // Bit 63: present; 54:0: the frame (Documentation/admin-guide/mm/pagemap.rst).
        let frame = |entry: &[u8]| {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            (entry >> 63 == 1).then_some(Gpa((entry & ((1 << 55) - 1)) * PAGE as u64)).filter(|gpa| gpa.0 != 0)
        };
        let frames = entries.chunks_exact(8).map(frame).collect::<Option<_>>();
        Ok(Self { mapping, frames: frames.ok_or_else(|| io::Error::other("frames are hidden: not root?"))? })
    }

    /// Where a page is in guest memory.
    pub fn gpa(&self, page: usize) -> Gpa {
        self.frames[page]
    }

    /// Loads dword `index` of a page.
    pub fn get(&self, page: usize, index: usize) -> u32 {
        // SAFETY: 1. `at` checked the bounds, and the offset is a multiple of four. 2. Volatile, since the GPU writes it.
        unsafe { self.mapping.at(page * PAGE + index * 4, 4).cast::<u32>().read_volatile() }
    }

    /// Stores dword `index` of a page.
    pub fn set(&self, page: usize, index: usize, value: u32) {
        // SAFETY: 1. `at` checked the bounds, and the offset is a multiple of four. 2. Volatile, since the GPU reads it.
        unsafe { self.mapping.at(page * PAGE + index * 4, 4).cast::<u32>().write_volatile(value) }
    }

    /// Stores entry `index` of a page table.
    pub fn set_entry(&self, page: usize, index: usize, value: u64) {
        // SAFETY: 1. `at` checked the bounds, and the offset is a multiple of eight. 2. Volatile, since the GPU reads it.
        unsafe { self.mapping.at(page * PAGE + index * 8, 8).cast::<u64>().write_volatile(value) }
    }
}
