//! The frame allocator: everything page-sized, from single page-table pages to the RAM of a guest.
//!
//! A bitmap in three levels (a set bit is a free frame, or a word below that has one), so that a single frame costs
//! a few look-ups and can be taken on an exit path. Runs are searched a word at a time; they are for set-up.

mod bitmap;

use hv_defs::{Frame, Hpa, PAGE_SIZE};
use spin::Mutex;

use self::bitmap::Bitmap;
use crate::phys::Window;

pub use self::bitmap::words_for;

/// Owners that can be told apart.
pub const MAX_OWNERS: usize = 64;

/// Who a frame is charged to. 0 is Prism itself; the others are for the caller to give out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OwnerId(pub u8);

impl OwnerId {
    /// Prism itself.
    pub const HYPERVISOR: Self = Self(0);
}

/// Which end of memory a run is taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// As low as possible.
    Low,
    /// As high as possible.
    High,
}

/// What an owner holds and may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Frames held.
    pub frames: u64,
    /// Frames it may hold.
    pub quota: u64,
}

/// Takes one frame; its content is whatever it was. `None` when the quota or the memory is spent.
pub fn alloc(owner: OwnerId) -> Option<Frame> {
    with(|allocator| allocator.alloc(owner)).flatten()
}

/// Takes one frame filled with zeros.
pub fn alloc_zeroed(owner: OwnerId) -> Option<Frame> {
    let frame = alloc(owner)?;
    // SAFETY: 1. A frame of the allocator is RAM in the direct map. 2. It has just been taken: nobody refers to it.
    let window = unsafe { Window::new(frame.hpa(), PAGE_SIZE) };
    window.zero(0, PAGE_SIZE).ok().map(|()| frame)
}

/// Takes `count` frames in a row, the first a multiple of `align` frames (1, 512 for 2 MiB, 262144 for 1 GiB).
pub fn alloc_run(owner: OwnerId, count: u64, align: u64, placement: Placement) -> Option<Frame> {
    with(|allocator| allocator.alloc_run(owner, count, align, placement)).flatten()
}

/// Returns a frame. A frame that is not taken stays as it is: the error is counted, see `mistakes`.
pub fn free(owner: OwnerId, frame: Frame) {
    free_run(owner, frame, 1);
}

/// Returns a run of frames, or a part of one. What was in them goes with the owner (design D21).
pub fn free_run(owner: OwnerId, first: Frame, count: u64) {
    if with(|allocator| allocator.holds(owner, first, count)) == Some(true) {
        // SAFETY: 1. Frames of the allocator are RAM in the direct map. 2. Their owner is done with them: nobody refers to
        // them.
        let window = unsafe { Window::new(first.hpa(), count * PAGE_SIZE) };
        let _ = window.zero(0, window.len());
    }
    with(|allocator| allocator.free_run(owner, first, count));
}

/// Limits what an owner may hold from now on.
pub fn set_quota(owner: OwnerId, frames: u64) {
    with(|allocator| allocator.set_quota(owner, frames));
}

/// What an owner holds.
pub fn usage(owner: OwnerId) -> Usage {
    with(|allocator| allocator.usage(owner)).unwrap_or_default()
}

/// Frames that nobody holds.
pub fn free_frames() -> u64 {
    with(|allocator| allocator.map.free()).unwrap_or(0)
}

/// Frames returned that were not taken, or by an owner that holds fewer. Always 0 unless Prism has a bug.
pub fn mistakes() -> u64 {
    with(|allocator| allocator.mistakes).unwrap_or(0)
}

/// The allocator proper: the bitmap and who holds how much of it.
pub(crate) struct Allocator {
    map: Bitmap<'static>,
    owners: [Usage; MAX_OWNERS],
    mistakes: u64,
}

impl Allocator {
    /// An allocator of `frames` frames from address 0 on, all taken, with its bitmap in `words` (see `words_for`).
    pub(crate) fn new(words: &'static mut [u64], frames: u64) -> Option<Self> {
        let map = Bitmap::new(words, frames)?;
        Some(Self { map, owners: [Usage { frames: 0, quota: u64::MAX }; MAX_OWNERS], mistakes: 0 })
    }

    /// Makes the whole frames inside `start..end` free (set-up).
    pub(crate) fn add(&mut self, start: Hpa, end: Hpa) {
        let first = start.0.div_ceil(PAGE_SIZE);
        let last = end.0 / PAGE_SIZE;
        self.map.set_free(first, last.saturating_sub(first));
    }

    /// Takes every frame touched by `start..end` out of use for good (set-up).
    pub(crate) fn reserve(&mut self, start: Hpa, end: Hpa) {
        let first = start.0 / PAGE_SIZE;
        let last = end.0.div_ceil(PAGE_SIZE);
        self.map.set_used(first, last.saturating_sub(first));
    }

    fn alloc(&mut self, owner: OwnerId) -> Option<Frame> {
        self.room(owner, 1)?;
        let frame = self.map.take_lowest()?;
        self.charge(owner, 1);
        Some(Frame(frame))
    }

    fn alloc_run(&mut self, owner: OwnerId, count: u64, align: u64, placement: Placement) -> Option<Frame> {
        if count == 0 || !align.is_power_of_two() {
            return None;
        }
        self.room(owner, count)?;
        let first = match placement {
            Placement::Low => self.map.find_low(count, align)?,
            Placement::High => self.map.find_high(count, align)?,
        };
        self.map.set_used(first, count);
        self.charge(owner, count);
        Some(Frame(first))
    }

    fn free_run(&mut self, owner: OwnerId, first: Frame, count: u64) {
        let holds = self.holds(owner, first, count);
        match self.owners.get_mut(usize::from(owner.0)) {
            Some(usage) if holds => {
                usage.frames -= count;
                self.map.set_free(first.0, count);
            }
            _ => self.mistakes += 1,
        }
    }

    /// Whether these can be its own.
    fn holds(&self, owner: OwnerId, first: Frame, count: u64) -> bool {
        count <= self.usage(owner).frames && self.map.all_used(first.0, count)
    }

    fn set_quota(&mut self, owner: OwnerId, frames: u64) {
        if let Some(usage) = self.owners.get_mut(usize::from(owner.0)) {
            usage.quota = frames;
        }
    }

    fn usage(&self, owner: OwnerId) -> Usage {
        self.owners.get(usize::from(owner.0)).copied().unwrap_or_default()
    }

    fn room(&self, owner: OwnerId, count: u64) -> Option<()> {
        let usage = self.owners.get(usize::from(owner.0))?;
        (usage.frames.checked_add(count)? <= usage.quota).then_some(())
    }

    fn charge(&mut self, owner: OwnerId, count: u64) {
        if let Some(usage) = self.owners.get_mut(usize::from(owner.0)) {
            usage.frames += count;
        }
    }
}

#[cfg(not(test))]
static ALLOCATOR: Mutex<Option<Allocator>> = Mutex::new(None);

#[cfg(not(test))]
pub(crate) fn install(allocator: Allocator) {
    *ALLOCATOR.lock() = Some(allocator);
}

#[cfg(not(test))]
pub(crate) fn with<R>(f: impl FnOnce(&mut Allocator) -> R) -> Option<R> {
    ALLOCATOR.lock().as_mut().map(f)
}

// Unit tests run in threads of one process: each has memory of its own.
#[cfg(test)]
std::thread_local! {
    static ALLOCATOR: Mutex<Option<Allocator>> = const { Mutex::new(None) };
}

#[cfg(test)]
pub(crate) fn with<R>(f: impl FnOnce(&mut Allocator) -> R) -> Option<R> {
    ALLOCATOR.with(|allocator| allocator.lock().as_mut().map(f))
}

#[cfg(test)]
pub(crate) fn install(allocator: Allocator) {
    ALLOCATOR.with(|slot| *slot.lock() = Some(allocator));
}

#[cfg(test)]
pub(crate) fn fake_install(bytes: u64) {
    let frames = bytes / PAGE_SIZE;
    let mut allocator = Allocator::new(vec![0; words_for(frames)].leak(), frames).unwrap();
    allocator.add(Hpa(0x1_0000), Hpa(bytes));
    install(allocator);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::fake;

    const VM: OwnerId = OwnerId(1);

    #[test]
    fn charges_and_limits_owners() {
        fake::install(0x10_0000);
        let all = free_frames();
        assert_eq!(all, 240);
        set_quota(VM, 3);
        let frame = alloc(VM).unwrap();
        assert_eq!(frame, Frame(16));
        assert_eq!(alloc_run(VM, 3, 1, Placement::Low), None);
        assert_eq!(alloc_run(VM, 2, 1, Placement::Low), Some(Frame(17)));
        assert_eq!(alloc(VM), None);
        assert_eq!(usage(VM), Usage { frames: 3, quota: 3 });
        free_run(VM, frame, 3);
        assert_eq!((usage(VM).frames, free_frames(), mistakes()), (0, all, 0));
    }

    #[test]
    fn a_frame_is_freed_once_and_by_its_owner() {
        fake::install(0x10_0000);
        let frame = alloc(VM).unwrap();
        free(OwnerId(2), frame);
        assert_eq!(mistakes(), 1);
        free(VM, frame);
        free(VM, frame);
        assert_eq!(mistakes(), 2);
        free(VM, Frame(u64::MAX));
        assert_eq!(mistakes(), 3);
        assert_eq!(free_frames(), 240);
    }

    #[test]
    fn frames_come_back_empty() {
        fake::install(0x10_0000);
        let first = alloc_run(VM, 3, 1, Placement::Low).unwrap();
        // SAFETY: 1. Inside the test's memory. 2. Which is only accessed by copying.
        let window = unsafe { Window::new(first.hpa(), 3 * PAGE_SIZE) };
        window.write(0, &[0xA5; 3 * PAGE_SIZE as usize]).unwrap();
        free(OwnerId(2), first);
        assert_eq!(window.read_u32(0), Some(0xA5A5_A5A5), "not its own");
        free_run(VM, first, 2);
        let mut left = [1; 3 * PAGE_SIZE as usize];
        window.read(0, &mut left).unwrap();
        let zeros = left.iter().take_while(|byte| **byte == 0).count();
        assert_eq!(zeros, 2 * PAGE_SIZE as usize);
    }

    #[test]
    fn placement_and_alignment_are_kept() {
        fake::install(0x80_0000);
        assert_eq!(alloc_run(VM, 512, 512, Placement::Low), Some(Frame(512)));
        assert_eq!(alloc_run(VM, 512, 512, Placement::High), Some(Frame(1536)));
        assert_eq!(alloc_run(VM, 513, 512, Placement::High), None);
        assert_eq!(alloc_run(VM, 5, 1, Placement::High), Some(Frame(1531)));
        assert_eq!(alloc_run(VM, 1, 3, Placement::High), None);
        assert_eq!(alloc_run(VM, 0, 1, Placement::High), None);
    }
}
