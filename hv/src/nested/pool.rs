//! Frames for nested tables, set aside when the VM is built: changing a mapping later cannot fail for want of memory
//! that another VM has taken.

use alloc::vec::Vec;

use hv_defs::{Frame, PAGE_SIZE};

use crate::frame::{self, OwnerId, Placement};
use crate::phys::Window;

/// A bounded stock of frames. Retired frames wait for a flush before they are given out again.
pub struct Pool {
    free: Vec<Frame>,
    /// With the seal under which each was retired.
    retired: Vec<(Frame, u64)>,
    seal: u64,
}

impl Pool {
    /// Sets `count` frames aside, charged to `owner`.
    pub fn new(owner: OwnerId, count: usize) -> Option<Self> {
        let first = frame::alloc_run(owner, count as u64, 1, Placement::High)?;
        let free = (0..count as u64).rev().map(|n| Frame(first.0 + n)).collect();
        Some(Self { free, retired: Vec::with_capacity(count), seal: 0 })
    }

    /// Frames enough to split all of `ram` bytes into 4 KiB pages and to map `window` bytes of devices likewise.
    pub fn frames_for(ram: u64, window: u64) -> usize {
        let tables = |bytes: u64| bytes.div_ceil(2 << 20) + bytes.div_ceil(1 << 30) + 4;
        // The root, and the tables above one BAR anywhere in the address space.
        (tables(ram) + tables(window) + 16) as usize
    }

    /// Takes a frame, filled with zeros.
    pub(super) fn take(&mut self) -> Option<Frame> {
        let frame = self.free.pop()?;
        // SAFETY: 1. The frame allocator gave the frame to this pool: RAM in the direct map. 2. It is in no table.
        let window = unsafe { Window::new(frame.hpa(), PAGE_SIZE) };
        window.zero(0, PAGE_SIZE).ok().map(|()| frame)
    }

    /// Takes a table back that no entry names any more.
    pub(super) fn retire(&mut self, frame: Frame) {
        self.retired.push((frame, self.seal));
    }

    pub(super) fn seal(&mut self) -> Option<u64> {
        let current = self.seal;
        (!self.retired.is_empty()).then(|| {
            self.seal += 1;
            current
        })
    }

    pub(super) fn reclaim(&mut self, sealed: u64) {
        let free = &mut self.free;
        self.retired.retain(|(frame, seal)| {
            let keep = *seal > sealed;
            if !keep {
                free.push(*frame);
            }
            keep
        });
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> (usize, usize) {
        (self.free.len(), self.retired.len())
    }
}
