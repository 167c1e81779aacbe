//! A guest's RAM: stretches of host memory that belong to this VM for its life (design D4). Reached by copying only.

use arrayvec::ArrayVec;
use hv_defs::{Gfn, Gpa, Hpa, PAGE_SIZE};
use hv_dev::e820::{HIGH_RAM, Layout};

use super::clean::Clean;
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

/// A stretch of RAM that one large page maps, or what there is of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub gpa: Gpa,
    pub hpa: Hpa,
    pub bytes: u64,
}

/// All RAM of a guest.
pub struct GuestMemory {
    slots: ArrayVec<Slot, 3>,
    clean: Clean,
}

impl GuestMemory {
    /// Takes host memory for `layout`, in pieces as large and as aligned as can be had.
    ///
    /// What was in that memory before Prism started is zeroed when the VM first gets at it, by whichever way: there is
    /// none but `read`, `store`, `translate` and `clean_piece`. No frame ever goes from one VM to another.
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
        let slots: ArrayVec<Slot, 3> = slots.collect();
        Some(Self { clean: Clean::new(first), slots })
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
        if self.is_clean(slot, offset, buf.len() as u64) {
            return slot.window.read(offset, buf).map_err(|_| NotRam);
        }
        self.read_first(gpa, buf)
    }

    /// The same where something may not be clean yet. Apart, so that the usual copy saves no registers for it.
    #[cold]
    #[inline(never)]
    fn read_first(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let (slot, offset) = self.locate(gpa, buf.len() as u64).ok_or(NotRam)?;
        self.make_clean(slot, offset, buf.len() as u64);
        slot.window.read(offset, buf).map_err(|_| NotRam)
    }

    /// Copies in, without telling anybody: see `Vm::write` for stores that must be seen by a harvest.
    ///
    /// # Errors
    /// `NotRam`, and nothing is copied.
    pub(super) fn store(&self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let (slot, offset) = self.locate(gpa, data.len() as u64).ok_or(NotRam)?;
        if self.is_clean(slot, offset, data.len() as u64) {
            return slot.window.write(offset, data).map_err(|_| NotRam);
        }
        self.store_first(gpa, data)
    }

    #[cold]
    #[inline(never)]
    fn store_first(&self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let (slot, offset) = self.locate(gpa, data.len() as u64).ok_or(NotRam)?;
        let end = offset + data.len() as u64;
        let whole = offset.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
        for (edge, bytes) in [(offset, offset % PAGE_SIZE), (end.saturating_sub(1), end % PAGE_SIZE)] {
            // Only what of a frame is not overwritten need be zeroed.
            self.make_clean(slot, edge, bytes.min(1));
        }
        let store = || slot.window.write(offset, data).map_err(|_| NotRam);
        if whole.is_empty() { store() } else { self.clean.overwrite(slot.first, whole, store) }
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

    /// Host address of a frame, and how many frames from there on are contiguous and clean, so that a device may be
    /// given them. It cleans that one only, or one call could take as long as there is memory.
    pub fn translate(&self, gfn: Gfn) -> Option<(Hpa, u64)> {
        let (slot, offset) = self.locate(gfn.gpa(), PAGE_SIZE)?;
        self.make_clean(slot, offset, PAGE_SIZE);
        let left = ((slot.bytes() - offset) / PAGE_SIZE).min(LARGE / PAGE_SIZE);
        let clean = self.clean.run(slot.first + (offset / PAGE_SIZE) as usize, left as usize);
        Some((Hpa(slot.hpa().0 + offset), clean as u64))
    }

    /// What a guest that touches `gpa` is given: a large page, or what there is of it, clean.
    pub(super) fn clean_piece(&self, gpa: Gpa) -> Option<Piece> {
        let (slot, _) = self.locate(gpa, 1)?;
        let large = gpa.0 & !(LARGE - 1);
        let start = large.max(slot.gpa.0) - slot.gpa.0;
        let end = (large.saturating_add(LARGE) - slot.gpa.0).min(slot.bytes());
        self.make_clean(slot, start, end - start);
        Some(Piece { gpa: Gpa(slot.gpa.0 + start), hpa: Hpa(slot.hpa().0 + start), bytes: end - start })
    }

    /// Whether a range is clean that lies in one frame: what all is about but loaders' copies, and on each exit's path.
    fn is_clean(&self, slot: &Slot, offset: u64, bytes: u64) -> bool {
        offset % PAGE_SIZE + bytes <= PAGE_SIZE && self.clean.contains(slot.first + (offset / PAGE_SIZE) as usize)
    }

    fn make_clean(&self, slot: &Slot, offset: u64, bytes: u64) {
        if bytes > 0 {
            let frames = offset / PAGE_SIZE..(offset + bytes).div_ceil(PAGE_SIZE);
            self.clean.make(slot.window, slot.first, frames);
        }
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
        assert_eq!((hpa.0, frames), (memory.slots()[0].hpa().0 + 0x10_1000, 1));
        memory.clean_piece(Gpa(0x10_0000)).unwrap();
        assert_eq!(memory.translate(Gfn(0x101)).unwrap(), (hpa, 0x200 - 0x101));
        memory.clean_piece(Gpa(0x20_0000)).unwrap();
        assert_eq!(memory.translate(Gfn(0x101)).unwrap(), (hpa, 512));
    }

    /// RAM that holds what another VM left there before a warm restart.
    fn stale() -> GuestMemory {
        let memory = memory(Layout { low: 8 << 20, high: 4 << 20 });
        for slot in &memory.slots {
            slot.window.write(0, &vec![0xA5; slot.bytes() as usize]).unwrap();
        }
        memory
    }

    /// What lies in host memory, whoever may see it.
    fn raw(hpa: Hpa, bytes: u64) -> Vec<u8> {
        let mut raw = vec![0; bytes as usize];
        // SAFETY: 1. Inside the test's memory. 2. Which is only accessed by copying.
        unsafe { Window::new(hpa, bytes) }.read(0, &mut raw).unwrap();
        raw
    }

    /// Each way to memory shows zeros where nothing was stored: a copy out, around a copy in, a device, a page.
    #[test]
    fn nothing_of_an_earlier_owner_is_seen() {
        let memory = stale();
        let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let mut back = [1; 0x1800];
        memory.read(Gpa(0x20_0800), &mut back).unwrap();
        assert!(zeros(&back));
        for (at, bytes) in [(0x30_0010, 4), (0x30_2FFE, 4), (0x30_4000, 0x1000), (0x30_6800, 0x3000), (HIGH_RAM, 1)] {
            memory.store(Gpa(at), &vec![7; bytes]).unwrap();
            let (first, end) = (at & !0xFFF, (at + bytes as u64).next_multiple_of(0x1000));
            let mut all = vec![1; (end - first) as usize];
            memory.read(Gpa(first), &mut all).unwrap();
            let stored = (at - first) as usize..(at - first) as usize + bytes;
            assert!(all[stored.clone()].iter().all(|byte| *byte == 7), "{at:#x}");
            assert!(zeros(&all[..stored.start]) && zeros(&all[stored.end..]), "{at:#x}");
        }
        for gfn in [Gfn(0x9F), Gfn(0xC0), Gfn(0x7FF), Gpa(HIGH_RAM + 0x5000).gfn()] {
            let (hpa, frames) = memory.translate(gfn).unwrap();
            assert!(zeros(&raw(hpa, frames * PAGE_SIZE)), "{gfn:?}");
        }
        for gpa in [0x9_0000, 0xC_0000, 0x40_1234, 0x7F_FFFF, HIGH_RAM + 0x20_0000] {
            let piece = memory.clean_piece(Gpa(gpa)).unwrap();
            assert!((piece.gpa.0..piece.gpa.0 + piece.bytes).contains(&gpa));
            assert!(zeros(&raw(piece.hpa, piece.bytes)), "{gpa:#x}");
        }
        assert_eq!(memory.clean_piece(Gpa(0xA_0000)), None);
    }

    /// What was stored stays when its surroundings are cleaned, and is not zeroed a second time.
    #[test]
    fn a_frame_is_cleaned_once() {
        let memory = stale();
        memory.store(Gpa(0x20_3004), b"kept").unwrap();
        memory.store(Gpa(0x20_6000), &[9; 0x2000]).unwrap();
        memory.clean_piece(Gpa(0x20_0000)).unwrap();
        memory.clean_piece(Gpa(0x20_0000)).unwrap();
        let mut back = [0; 4];
        memory.read(Gpa(0x20_3004), &mut back).unwrap();
        assert_eq!(&back, b"kept");
        memory.read(Gpa(0x20_7FFC), &mut back).unwrap();
        assert_eq!(back, [9; 4]);
        assert_eq!(memory.read(Gpa(8 << 20), &mut []), Ok(()), "nothing is touched at the end of a slot");
        let mut high = [1];
        memory.read(Gpa(HIGH_RAM), &mut high).unwrap();
        assert_eq!(high, [0]);
    }
}
