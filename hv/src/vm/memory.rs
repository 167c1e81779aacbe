//! A guest's RAM: stretches of host memory that belong to this VM for its life (design D4). Reached by copying only.

use arrayvec::ArrayVec;
use hv_defs::{Gfn, Gpa, Hpa, PAGE_SIZE};
use hv_dev::e820::{HIGH_RAM, Layout};

use crate::frame::{self, OwnerId, Placement};
use crate::load::{OutOfRange, Sink};
use crate::phys::Window;

/// A guest-physical range that is not RAM of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRam;

/// The legacy video window: never RAM, or guests find a text console there.
const VIDEO: core::ops::Range<u64> = 0xA_0000..0xC_0000;
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;

/// A stretch of RAM.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// First guest-physical address.
    pub gpa: Gpa,
    window: Window,
    /// Number of the first frame, counted over all slots.
    first: usize,
}

impl Slot {
    /// Host-physical address of the first byte.
    pub fn hpa(&self) -> Hpa {
        self.window.base()
    }
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.window.len()
    }
}

/// All RAM of a guest.
#[derive(Debug)]
pub struct GuestMemory {
    slots: ArrayVec<Slot, 3>,
}

impl GuestMemory {
    /// Takes host memory for `layout`, in pieces as large and as aligned as can be had.
    ///
    /// What was in that memory before Prism started is left there, as after a warm reboot of a real machine; no frame
    /// ever goes from one VM to another.
    pub fn allocate(owner: OwnerId, layout: &Layout, placement: Placement) -> Option<Self> {
        let low = run(owner, layout.low, placement)?;
        let mut pieces: ArrayVec<(u64, Window), 3> = ArrayVec::new();
        if layout.low > VIDEO.end {
            pieces.push((0, low.part(0, VIDEO.start)?));
            pieces.push((VIDEO.end, low.part(VIDEO.end, layout.low - VIDEO.end)?));
        } else {
            pieces.push((0, low.part(0, layout.low.min(VIDEO.start))?));
        }
        if layout.high > 0 {
            pieces.push((HIGH_RAM, run(owner, layout.high, placement)?));
        }
        let mut first = 0;
        let slots = pieces.into_iter().map(|(gpa, window)| {
            let slot = Slot { gpa: Gpa(gpa), window, first };
            first += (window.len() / PAGE_SIZE) as usize;
            slot
        });
        Some(Self { slots: slots.collect() })
    }

    /// The stretches of RAM, in ascending order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Frames of RAM in all slots.
    pub fn frames(&self) -> usize {
        self.slots.iter().map(|slot| (slot.bytes() / PAGE_SIZE) as usize).sum()
    }

    /// Whether the byte at `gpa` is RAM.
    pub fn contains(&self, gpa: Gpa) -> bool {
        self.locate(gpa, 1).is_some()
    }

    /// Whether any byte of the range is RAM.
    pub fn overlaps(&self, gpa: Gpa, bytes: u64) -> bool {
        let end = gpa.0.saturating_add(bytes);
        self.slots.iter().any(|slot| gpa.0 < slot.gpa.0 + slot.bytes() && slot.gpa.0 < end)
    }

    /// Copies out.
    ///
    /// # Errors
    /// `NotRam`, and nothing is copied.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let (slot, offset) = self.locate(gpa, buf.len() as u64).ok_or(NotRam)?;
        slot.window.read(offset, buf).map_err(|_| NotRam)
    }

    /// Copies in, without telling anybody: see `Vm::write` for stores that must be seen by a harvest.
    ///
    /// # Errors
    /// `NotRam`, and nothing is copied.
    pub(super) fn store(&self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let (slot, offset) = self.locate(gpa, data.len() as u64).ok_or(NotRam)?;
        slot.window.write(offset, data).map_err(|_| NotRam)
    }

    /// Number of a frame of RAM, counted over all slots.
    pub fn index_of(&self, gfn: Gfn) -> Option<usize> {
        let (slot, offset) = self.locate(gfn.gpa(), PAGE_SIZE)?;
        Some(slot.first + (offset / PAGE_SIZE) as usize)
    }

    /// The frame with this number.
    pub fn frame_at(&self, index: usize) -> Option<Gfn> {
        let slot = self.slots.iter().rev().find(|slot| slot.first <= index)?;
        let frames = (slot.bytes() / PAGE_SIZE) as usize;
        let within = index - slot.first;
        (within < frames).then_some(Gfn(slot.gpa.0 / PAGE_SIZE + within as u64))
    }

    /// Host address of a frame, and how many frames from there on are contiguous.
    pub fn translate(&self, gfn: Gfn) -> Option<(Hpa, u64)> {
        let (slot, offset) = self.locate(gfn.gpa(), PAGE_SIZE)?;
        Some((Hpa(slot.hpa().0 + offset), (slot.bytes() - offset) / PAGE_SIZE))
    }

    /// The slot that holds the whole range, and the offset in it.
    fn locate(&self, gpa: Gpa, bytes: u64) -> Option<(&Slot, u64)> {
        self.slots.iter().find_map(|slot| {
            let offset = gpa.0.checked_sub(slot.gpa.0)?;
            let end = offset.checked_add(bytes)?;
            (end <= slot.bytes()).then_some((slot, offset))
        })
    }
}

/// A loader writes before the guest runs: nothing is tracked yet.
impl Sink for &GuestMemory {
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), OutOfRange> {
        self.store(gpa, data).map_err(|_| OutOfRange)
    }
}

/// Host memory for `bytes`, aligned to 1 GiB where it is that large, else to 2 MiB, else to a page.
fn run(owner: OwnerId, bytes: u64, placement: Placement) -> Option<Window> {
    let frames = bytes / PAGE_SIZE;
    let other = if placement == Placement::Low { Placement::High } else { Placement::Low };
    let aligned = |align: u64, place| frame::alloc_run(owner, frames, align / PAGE_SIZE, place);
    let huge = if bytes >= HUGE { aligned(HUGE, placement) } else { None };
    let first = huge.or_else(|| aligned(LARGE, placement)).or_else(|| aligned(LARGE, other))?;
    // SAFETY: 1. The allocator gave these frames: RAM in the direct map. 2. They become guest RAM, of which no reference
    // is ever made.
    Some(unsafe { Window::new(first.hpa(), frames * PAGE_SIZE) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::fake;

    fn memory(layout: Layout) -> GuestMemory {
        fake::install(32 << 20);
        GuestMemory::allocate(OwnerId(1), &layout, Placement::Low).unwrap()
    }

    #[test]
    fn ram_has_a_hole_for_video_and_one_below_4_gib() {
        let memory = memory(Layout { low: 8 << 20, high: 4 << 20 });
        assert!(memory.contains(Gpa(0x9_FFFF)));
        assert!(!memory.contains(Gpa(0xB_8000)));
        assert!(memory.contains(Gpa(0xC_0000)));
        assert!(!memory.contains(Gpa(8 << 20)));
        assert!(memory.contains(Gpa(HIGH_RAM)));
        assert!(!memory.contains(Gpa(HIGH_RAM + (4 << 20))));
        assert!(memory.overlaps(Gpa(0xA_0000), 0x2_0001));
        assert!(!memory.overlaps(Gpa(0xA_0000), 0x2_0000));
        assert!(!memory.overlaps(Gpa(u64::MAX), 10));
    }

    #[test]
    fn copies_stay_inside_a_slot() {
        let memory = memory(Layout { low: 8 << 20, high: 4 << 20 });
        memory.store(Gpa(HIGH_RAM + 5), b"prism").unwrap();
        let mut back = [0; 5];
        memory.read(Gpa(HIGH_RAM + 5), &mut back).unwrap();
        assert_eq!(&back, b"prism");
        assert_eq!(memory.store(Gpa((8 << 20) - 2), &[0; 4]), Err(NotRam));
        assert_eq!(memory.read(Gpa(0x9_FFFE), &mut back), Err(NotRam));
        assert_eq!(memory.read(Gpa(u64::MAX), &mut back), Err(NotRam));
    }

    #[test]
    fn frames_and_numbers_agree() {
        let memory = memory(Layout { low: 8 << 20, high: 4 << 20 });
        for index in 0..memory.frames() {
            let gfn = memory.frame_at(index).unwrap();
            assert_eq!(memory.index_of(gfn), Some(index));
        }
        assert_eq!(memory.frame_at(memory.frames()), None);
        let (hpa, frames) = memory.translate(Gfn(0x101)).unwrap();
        assert_eq!(frames, (8 << 20) / 4096 - 0x101);
        assert_eq!(hpa.0, memory.slots()[0].hpa().0 + 0x10_1000);
    }
}
