//! Command fetch: a small window over the stream, so that most commands cost no memory access. The window is dropped
//! at every jump, at every slice, and when the engine itself writes to the page it was read from.

use gvt_defs::PAGE_SIZE;

use crate::translate::{Found, Space};

/// Bytes read after a jump; doubled while the stream goes on in order.
const FIRST: usize = 256;
const WINDOW: usize = PAGE_SIZE as usize;

pub(crate) struct Fetch {
    bytes: [u8; WINDOW],
    /// Address of the first byte and number of bytes held.
    start: u64,
    len: usize,
    space: Space,
    /// Bytes to read next time.
    next: usize,
    /// The page was not mapped: what is held are zeros.
    pub absent: bool,
}

impl Fetch {
    pub const fn new() -> Self {
        Self { bytes: [0; WINDOW], start: 0, len: 0, space: Space::Global, next: FIRST, absent: false }
    }

    /// Forgets what it holds.
    pub fn drop_window(&mut self) {
        self.len = 0;
        self.next = FIRST;
    }

    /// The dword at `address` if it is held.
    #[inline]
    pub fn get(&self, space: Space, address: u64) -> Option<u32> {
        let at = address.wrapping_sub(self.start);
        if at >= self.len as u64 || space != self.space {
            return None;
        }
        let at = at as usize;
        self.bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    }

    /// How many dwords from `address` on are zero, as far as is held, `limit` at most.
    #[inline]
    pub fn zeros(&self, address: u64, limit: usize) -> usize {
        let at = address.wrapping_sub(self.start);
        if at >= self.len as u64 {
            return 0;
        }
        let held = self.bytes.get(at as usize..self.len).unwrap_or(&[]);
        held.chunks_exact(4).take(limit).take_while(|dword| **dword == [0; 4]).count()
    }

    /// Reads a new window at `address` (dword-aligned) by `read`, within its page.
    pub fn refill(&mut self, space: Space, address: u64, read: impl FnOnce(&mut [u8]) -> Found) {
        let follows = self.len != 0 && space == self.space && address == self.start.wrapping_add(self.len as u64);
        self.next = if follows { (self.next * 2).min(WINDOW) } else { FIRST };
        let room = (PAGE_SIZE - address % PAGE_SIZE) as usize;
        let len = self.next.min(room);
        (self.start, self.len, self.space) = (address, len, space);
        if let Some(window) = self.bytes.get_mut(..len) {
            self.absent = read(window) == Found::Missing;
        }
    }
}
