//! Host-physical memory, reached by copying only.
//!
//! Prism maps all RAM at `DIRECT_BASE`, readable, writable, never executable. Nothing here ever makes a reference to
//! that memory: guests and devices change it at any time, and a reference promises the compiler that they do not.

use hv_defs::Hpa;

/// Where physical address 0 appears in Prism's own address space.
pub const DIRECT_BASE: u64 = 0xFFFF_8000_0000_0000;

/// An access that is not wholly inside its window. Nothing was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfWindow;

macro_rules! aligned {
    ($read:ident, $write:ident, $type:ty) => {
        /// Reads an aligned word of that size; `None` outside the window or when misaligned.
        pub fn $read(self, offset: u64) -> Option<$type> {
            let at = self.aligned(offset, size_of::<$type>() as u64)?;
            // SAFETY: 1. Inside the window and aligned. 2. `Window::new` promises RAM without references.
            Some(unsafe { pointer(at).cast::<$type>().read_volatile() })
        }

        /// Writes an aligned word of that size; `None` outside the window or when misaligned.
        pub fn $write(self, offset: u64, value: $type) -> Option<()> {
            let at = self.aligned(offset, size_of::<$type>() as u64)?;
            // SAFETY: 1. Inside the window and aligned. 2. `Window::new` promises RAM without references.
            unsafe { pointer(at).cast::<$type>().write_volatile(value) };
            Some(())
        }
    };
}

/// A stretch of RAM that is only ever accessed by copying.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    base: Hpa,
    len: u64,
}

impl Window {
    /// A window over `len` bytes at `base`.
    ///
    /// # Safety
    /// 1. Every byte that is accessed through the window is RAM in the direct map.
    /// 2. No Rust reference to any of it exists during an access (owned frames, guest RAM, loader data; never the
    ///    image, the heap, a stack or a page table that the CPU walks for Prism itself, its owner excepted).
    pub const unsafe fn new(base: Hpa, len: u64) -> Self {
        Self { base, len }
    }

    /// Host-physical address of the first byte.
    pub const fn base(self) -> Hpa {
        self.base
    }

    /// Size in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether the window is empty.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part of the window that starts at `offset` and is `len` bytes long.
    pub fn part(self, offset: u64, len: u64) -> Option<Self> {
        self.locate(offset, len).ok().map(|base| Self { base, len })
    }

    /// Copies out. Aligned 8-byte pieces are loaded whole.
    ///
    /// # Errors
    /// `OutOfWindow`, and nothing is copied.
    pub fn read(self, offset: u64, buf: &mut [u8]) -> Result<(), OutOfWindow> {
        // Entries of page tables, mostly.
        if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *buf)
            && let Some(value) = self.read_u64(offset)
        {
            *word = value.to_ne_bytes();
            return Ok(());
        }
        let from = pointer(self.locate(offset, buf.len() as u64)?);
        // SAFETY: 1. `locate` has checked the range against the window. 2. `Window::new` promises that it is RAM in
        // the direct map without references to it. 3. `buf` is exclusively ours and as long as the range.
        unsafe { copy_out(from, buf) };
        Ok(())
    }

    /// Copies in. Aligned 4- and 8-byte pieces are stored whole, in ascending order.
    ///
    /// # Errors
    /// `OutOfWindow`, and nothing is copied.
    pub fn write(self, offset: u64, data: &[u8]) -> Result<(), OutOfWindow> {
        let to = pointer(self.locate(offset, data.len() as u64)?);
        // SAFETY: 1. `locate` has checked the range against the window. 2. `Window::new` promises that it is RAM in
        // the direct map without references to it. 3. `data` is as long as the range.
        unsafe { copy_in(to, data) };
        Ok(())
    }

    /// Fills a range with zeros.
    ///
    /// # Errors
    /// `OutOfWindow`, and nothing is written.
    pub fn zero(self, offset: u64, len: u64) -> Result<(), OutOfWindow> {
        let to = pointer(self.locate(offset, len)?);
        let len = usize::try_from(len).map_err(|_| OutOfWindow)?;
        // SAFETY: 1. `locate` has checked the range against the window. 2. `Window::new` promises that it is RAM in
        // the direct map without references to it.
        unsafe { to.write_bytes(0, len) };
        Ok(())
    }

    aligned!(read_u32, write_u32, u32);
    aligned!(read_u64, write_u64, u64);

    fn locate(self, offset: u64, len: u64) -> Result<Hpa, OutOfWindow> {
        let end = offset.checked_add(len).ok_or(OutOfWindow)?;
        if end > self.len {
            return Err(OutOfWindow);
        }
        self.base.checked_add(offset).ok_or(OutOfWindow)
    }

    fn aligned(self, offset: u64, size: u64) -> Option<Hpa> {
        let at = self.locate(offset, size).ok()?;
        at.0.is_multiple_of(size).then_some(at)
    }
}

/// Where `hpa` is mapped.
#[cfg(not(test))]
pub(crate) fn pointer(hpa: Hpa) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(DIRECT_BASE.wrapping_add(hpa.0) as usize)
}

#[cfg(test)]
pub(crate) use fake::pointer;

/// # Safety
/// 1. `from` is readable for `buf.len()` bytes.
unsafe fn copy_out(from: *const u8, buf: &mut [u8]) {
    let mut at = from;
    let head = buf.len().min(from.align_offset(8));
    let (head, rest) = buf.split_at_mut(head);
    let (words, tail) = rest.as_chunks_mut::<8>();
    // SAFETY: 1. Inside the source: as many bytes are loaded as `buf` has. 2. `at` is 8-byte aligned after the head.
    unsafe {
        for byte in head {
            *byte = at.read_volatile();
            at = at.add(1);
        }
        for word in words {
            *word = at.cast::<u64>().read_volatile().to_ne_bytes();
            at = at.add(8);
        }
        for byte in tail {
            *byte = at.read_volatile();
            at = at.add(1);
        }
    }
}

/// # Safety
/// 1. `to` is writable for `data.len()` bytes, and no reference to them exists.
unsafe fn copy_in(to: *mut u8, data: &[u8]) {
    let mut at = to;
    let mut rest = data;
    while let Some((&byte, after_byte)) = rest.split_first() {
        // SAFETY: 1. Each arm stores as many bytes as it takes from `rest`, so all stay inside the target. 2. The
        // arms check the alignment that their store needs.
        unsafe {
            if at.addr().is_multiple_of(8)
                && let Some((word, after)) = rest.split_first_chunk::<8>()
            {
                at.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
                (at, rest) = (at.add(8), after);
            } else if at.addr().is_multiple_of(4)
                && let Some((word, after)) = rest.split_first_chunk::<4>()
            {
                at.cast::<u32>().write_volatile(u32::from_ne_bytes(*word));
                (at, rest) = (at.add(4), after);
            } else {
                at.write_volatile(byte);
                (at, rest) = (at.add(1), after_byte);
            }
        }
    }
}

/// Stand-in for physical memory in unit tests: one arena per test thread.
#[cfg(test)]
pub mod fake {
    use std::cell::Cell;

    use hv_defs::Hpa;

    thread_local! {
        static ARENA: Cell<Option<(*mut u8, u64)>> = const { Cell::new(None) };
    }

    /// Gives this thread `bytes` of zeroed "physical memory" from address 0 on, and a frame allocator over all of it
    /// but the first 64 KiB.
    pub fn install(bytes: u64) {
        #[derive(Clone)]
        #[repr(align(4096))]
        struct Page(#[allow(dead_code, reason = "only its room is used")] [u8; 4096]);
        let pages = vec![Page([0; 4096]); bytes.div_ceil(4096) as usize].leak();
        ARENA.set(Some((pages.as_mut_ptr().cast(), bytes)));
        crate::frame::fake_install(bytes);
    }

    pub(crate) fn pointer(hpa: Hpa) -> *mut u8 {
        let (base, len) = ARENA.get().expect("phys::fake::install was not called in this test");
        assert!(hpa.0 <= len, "{hpa:?} lies outside the test's memory");
        base.wrapping_add(hpa.0 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(len: u64) -> Window {
        fake::install(0x2_0000);
        // SAFETY: 1. Inside the arena. 2. The arena is only accessed by copying.
        unsafe { Window::new(Hpa(0x1000), len) }
    }

    #[test]
    fn copies_at_every_alignment() {
        let window = window(64);
        for start in 0..9u64 {
            for len in 0..20usize {
                let data: Vec<u8> = (0..len).map(|i| (i as u8) ^ (start as u8) ^ 0x5A).collect();
                window.zero(0, 64).unwrap();
                window.write(start, &data).unwrap();
                let mut back = vec![0; len];
                window.read(start, &mut back).unwrap();
                assert_eq!(back, data);
                let mut all = [0u8; 64];
                window.read(0, &mut all).unwrap();
                assert!(all[..start as usize].iter().chain(&all[start as usize + len..]).all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn refuses_what_is_not_inside() {
        let window = window(64);
        assert_eq!(window.write(60, &[1; 5]), Err(OutOfWindow));
        assert_eq!(window.read(u64::MAX, &mut [0; 2]), Err(OutOfWindow));
        assert_eq!(window.read_u64(57), None);
        assert_eq!(window.read_u64(56), Some(0));
        assert_eq!(window.write_u64(4, 0), None);
        assert_eq!(window.read_u32(62), None);
        assert_eq!(window.part(32, 33), None);
        assert_eq!(window.part(32, 32).map(Window::base), Some(Hpa(0x1020)));
    }
}
