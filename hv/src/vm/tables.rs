//! The nested tables of a VM together with all that is recorded about its pages: write tracking (design D6) and what
//! appears in the BARs of its PCI functions. One lock, which nothing waits under.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_defs::paging::{Access, Caching};
use hv_defs::{Gfn, Gpa, Hpa, PAGE_SIZE};

use super::bits::AtomicBits;
use super::memory::GuestMemory;
use crate::nested::NestedMap;
use crate::phys::Window;

/// A page that was written since the last harvest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DirtyPage {
    /// A frame of RAM.
    Ram(Gfn),
    /// A page of a BAR.
    Bar {
        /// PCI device number on bus 0.
        device: u8,
        /// The BAR.
        bar: u8,
        /// 4 KiB page in it.
        page: u32,
    },
}

/// How a page of a BAR appears to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageMapping {
    /// Every access goes to the function's model.
    Trapped,
    /// Reads go to the frame, writes to the model.
    ReadOnly(Hpa),
    /// All accesses go to the frame; writes are recorded.
    Tracked(Hpa),
}

/// What a fault on mapped memory comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The first write to a tracked page since the last harvest: recorded, go on.
    Tracked,
    /// The mapping allows the access: it changed meanwhile, go on.
    Stale,
    /// The first access to a stretch of RAM: zeroed and mapped, go on.
    Filled,
    /// Not memory: a device answers.
    Device,
}

/// Whether a stretch of RAM is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    Before,
    Now,
    Not,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageState {
    Trapped,
    ReadOnly(Hpa),
    Tracked { hpa: Hpa, dirty: bool },
}

/// A stretch of a BAR that is mapped for good.
#[derive(Clone, Copy)]
struct Range {
    offset: u64,
    bytes: u64,
    hpa: Hpa,
    access: Access,
}

/// What is mapped into one BAR.
struct BarMap {
    device: u8,
    bar: u8,
    placed: Option<(Gpa, u64)>,
    pages: Vec<PageState>,
    ranges: ArrayVec<Range, 4>,
}

/// Dirty pages that are listed; more are found by scanning.
pub(super) const LISTED: usize = 4096;
/// Pages of a BAR that can be mapped one by one: 256 MiB.
const MAX_PAGES: u64 = 1 << 16;

/// Nested tables, tracking and BAR mappings of one VM.
pub(super) struct Tables {
    map: Box<dyn NestedMap>,
    bars: Vec<BarMap>,
    list: Vec<DirtyPage>,
    /// The list was too short: scan.
    overflow: bool,
    dirty_pages: usize,
}

/// Bits that are read without the lock.
pub(super) struct Tracking {
    tracked: AtomicBits,
    dirty: AtomicBits,
}

impl Tracking {
    pub fn new(frames: usize) -> Self {
        Self { tracked: AtomicBits::new(frames), dirty: AtomicBits::new(frames) }
    }

    /// Whether a store to the frame with this number must be recorded.
    pub fn is_tracked(&self, index: usize) -> bool {
        self.tracked.get(index)
    }
}

// ---- RAM ---------------------------------------------------------------------------------------------------------------

impl Tables {
    /// Nothing is mapped: RAM is, piece by piece, when the guest first touches it (see `GuestMemory`).
    pub fn new(map: Box<dyn NestedMap>) -> Self {
        Self { map, bars: Vec::new(), list: Vec::with_capacity(LISTED), overflow: false, dirty_pages: 0 }
    }

    /// Maps the stretch of RAM around `gpa`, zeroed, unless it is mapped.
    fn fill(&mut self, memory: &GuestMemory, gpa: Gpa) -> Filled {
        if self.map.lookup(gpa).is_some() {
            return Filled::Before;
        }
        let Some(piece) = memory.clean_piece(gpa) else { return Filled::Not };
        let mapped = self.map.map(piece.gpa, piece.bytes, piece.hpa, Access::ReadWrite, Caching::WriteBack);
        if mapped.is_ok() { Filled::Now } else { Filled::Not }
    }

    pub fn root(&self) -> Hpa {
        self.map.root()
    }

    /// Begins to track a frame; whether CPUs must be flushed.
    pub fn track(&mut self, tracking: &Tracking, memory: &GuestMemory, index: usize, gfn: Gfn) -> bool {
        if tracking.tracked.insert(index) {
            return false;
        }
        // What is not mapped cannot be protected; mapped later, it would not be.
        self.fill(memory, gfn.gpa());
        self.map.protect(gfn.gpa(), PAGE_SIZE, Access::Read).is_ok()
    }

    pub fn untrack(&mut self, tracking: &Tracking, index: usize, gfn: Gfn) {
        if !tracking.tracked.remove(index) {
            return;
        }
        if tracking.dirty.remove(index) {
            self.dirty_pages -= 1;
        }
        let _ = self.map.protect(gfn.gpa(), PAGE_SIZE, Access::ReadWrite);
    }

    /// A guest or Prism itself wrote to a tracked frame: record it and let further writes pass.
    pub fn mark(&mut self, tracking: &Tracking, index: usize, gfn: Gfn) {
        if tracking.tracked.get(index) && !tracking.dirty.insert(index) {
            self.record(DirtyPage::Ram(gfn));
            let _ = self.map.protect(gfn.gpa(), PAGE_SIZE, Access::ReadWrite);
        }
    }

    fn record(&mut self, page: DirtyPage) {
        self.dirty_pages += 1;
        if self.list.len() < LISTED {
            self.list.push(page);
        } else {
            self.overflow = true;
        }
    }

    /// Decides about a nested fault.
    pub fn fault(&mut self, tracking: &Tracking, memory: &GuestMemory, gpa: Gpa, write: bool) -> Fault {
        if let Some(index) = memory.index_of(gpa.gfn()) {
            if self.fill(memory, gpa) == Filled::Now {
                return Fault::Filled;
            }
            if write && tracking.tracked.get(index) {
                self.mark(tracking, index, gpa.gfn());
                return Fault::Tracked;
            }
            return self.stale(gpa, write);
        }
        match self.bar_page(gpa) {
            Some(page) if write && self.mark_bar(page) => Fault::Tracked,
            _ => self.stale(gpa, write),
        }
    }

    fn stale(&self, gpa: Gpa, write: bool) -> Fault {
        let allowed = self.map.lookup(gpa).is_some_and(|mapped| !write || mapped.access == Access::ReadWrite);
        if allowed { Fault::Stale } else { Fault::Device }
    }

    /// Moves the pages written since the last call to `out` and protects them again; whether CPUs must be flushed before
    /// `out` is looked at.
    pub fn harvest(&mut self, tracking: &Tracking, memory: &GuestMemory, out: &mut Vec<DirtyPage>) -> bool {
        out.clear();
        if self.dirty_pages == 0 {
            self.list.clear();
            return false;
        }
        if core::mem::take(&mut self.overflow) {
            self.list.clear();
            self.scan(tracking, memory, out);
        } else {
            core::mem::swap(&mut self.list, out);
        }
        out.retain(|page| self.rearm(tracking, memory, *page));
        self.dirty_pages = 0;
        true
    }

    /// Protects a dirty page again; false if it is not dirty any more.
    fn rearm(&mut self, tracking: &Tracking, memory: &GuestMemory, page: DirtyPage) -> bool {
        match page {
            DirtyPage::Ram(gfn) => {
                let is_dirty = memory.index_of(gfn).is_some_and(|index| tracking.dirty.remove(index));
                if is_dirty {
                    let _ = self.map.protect(gfn.gpa(), PAGE_SIZE, Access::Read);
                }
                is_dirty
            }
            DirtyPage::Bar { device, bar, page } => self.rearm_bar(device, bar, page),
        }
    }

    /// All dirty pages, found the long way.
    fn scan(&self, tracking: &Tracking, memory: &GuestMemory, out: &mut Vec<DirtyPage>) {
        out.extend(tracking.dirty.iter().filter_map(|index| memory.frame_at(index)).map(DirtyPage::Ram));
        for map in &self.bars {
            let dirty = map
                .pages
                .iter()
                .enumerate()
                .filter(|(_, state)| matches!(state, PageState::Tracked { dirty: true, .. }));
            let (device, bar) = (map.device, map.bar);
            out.extend(dirty.map(|(page, _)| DirtyPage::Bar { device, bar, page: page as u32 }));
        }
    }

    /// The tables that were emptied so far are sealed; see `reclaim`.
    pub fn seal(&mut self) -> Option<u64> {
        self.map.seal()
    }

    /// Every CPU was flushed after `seal` gave `sealed`.
    pub fn reclaim(&mut self, sealed: u64) {
        self.map.reclaim(sealed);
    }
}

// ---- BARs --------------------------------------------------------------------------------------------------------------

impl Tables {
    fn bar(&mut self, device: u8, bar: u8) -> &mut BarMap {
        let found = self.bars.iter().position(|map| (map.device, map.bar) == (device, bar));
        let at = found.unwrap_or_else(|| {
            let ranges = ArrayVec::new();
            self.bars.push(BarMap { device, bar, placed: None, pages: Vec::new(), ranges });
            self.bars.len() - 1
        });
        &mut self.bars[at]
    }

    /// The tracked page of a BAR at `gpa`: index of the BAR's map, and the page.
    fn bar_page(&self, gpa: Gpa) -> Option<(usize, usize)> {
        self.bars.iter().enumerate().find_map(|(n, map)| {
            let (base, bytes) = map.placed?;
            let offset = gpa.0.checked_sub(base.0).filter(|offset| *offset < bytes)?;
            Some((n, (offset / PAGE_SIZE) as usize))
        })
    }

    /// Records a write to a tracked page of a BAR; false if it is not tracked.
    fn mark_bar(&mut self, (n, page): (usize, usize)) -> bool {
        let Some(map) = self.bars.get_mut(n) else {
            return false;
        };
        let Some(PageState::Tracked { hpa, dirty }) = map.pages.get_mut(page) else {
            return false;
        };
        let (hpa, was_dirty) = (*hpa, core::mem::replace(dirty, true));
        let (device, bar, placed) = (map.device, map.bar, map.placed);
        if !was_dirty {
            self.record(DirtyPage::Bar { device, bar, page: page as u32 });
        }
        self.show(placed, page, Some((hpa, Access::ReadWrite)));
        true
    }

    /// The frame behind a page of a BAR, and whether the guest may write it.
    fn frame_behind(&self, (n, page): (usize, usize)) -> Option<(Hpa, Access)> {
        match *self.bars.get(n)?.pages.get(page)? {
            PageState::Trapped => None,
            PageState::ReadOnly(hpa) => Some((hpa, Access::Read)),
            PageState::Tracked { hpa, .. } => Some((hpa, Access::ReadWrite)),
        }
    }

    /// Reads what the guest would, where a page of a BAR is mapped (an instruction with two operands was emulated).
    pub fn read_mapped(&self, gpa: Gpa, buf: &mut [u8]) -> Option<()> {
        let (hpa, _) = self.frame_behind(self.bar_page(gpa)?)?;
        page_window(hpa).read(gpa.page_offset(), buf).ok()
    }

    /// Writes likewise, and records it.
    pub fn write_mapped(&mut self, gpa: Gpa, data: &[u8]) -> Option<()> {
        let page = self.bar_page(gpa)?;
        let (hpa, access) = self.frame_behind(page)?;
        if access == Access::Read {
            return None;
        }
        page_window(hpa).write(gpa.page_offset(), data).ok()?;
        self.mark_bar(page).then_some(())
    }

    fn rearm_bar(&mut self, device: u8, bar: u8, page: u32) -> bool {
        let map = self.bar(device, bar);
        let placed = map.placed;
        let Some(PageState::Tracked { hpa, dirty: dirty @ true }) = map.pages.get_mut(page as usize) else {
            return false;
        };
        *dirty = false;
        let hpa = *hpa;
        self.show(placed, page as usize, Some((hpa, Access::Read)));
        true
    }

    /// Puts one page of a placed BAR into the tables, or takes it out.
    fn show(&mut self, placed: Option<(Gpa, u64)>, page: usize, what: Option<(Hpa, Access)>) {
        let Some((base, bytes)) = placed else { return };
        let offset = page as u64 * PAGE_SIZE;
        if offset >= bytes {
            return;
        }
        let gpa = base.wrapping_add(offset);
        let _ = match what {
            Some((hpa, access)) => self.map.map(gpa, PAGE_SIZE, hpa, access, Caching::WriteBack),
            None => self.map.unmap(gpa, PAGE_SIZE),
        };
    }

    /// Changes how a page of a BAR appears; whether CPUs must be flushed.
    pub fn map_page(&mut self, device: u8, bar: u8, page: u32, mapping: PageMapping) -> bool {
        let map = self.bar(device, bar);
        let placed = map.placed;
        let index = page as usize;
        if u64::from(page) >= MAX_PAGES {
            return false;
        }
        if map.pages.len() <= index {
            map.pages.resize((index + 1).next_multiple_of(512), PageState::Trapped);
        }
        let new = match mapping {
            PageMapping::Trapped => PageState::Trapped,
            PageMapping::ReadOnly(hpa) => PageState::ReadOnly(hpa),
            PageMapping::Tracked(hpa) => PageState::Tracked { hpa, dirty: false },
        };
        let Some(state) = map.pages.get_mut(index) else { return false };
        let old = core::mem::replace(state, new);
        if let PageState::Tracked { dirty: true, .. } = old {
            self.dirty_pages -= 1;
        }
        if old == new {
            return false;
        }
        self.show(placed, index, visible(new));
        old != PageState::Trapped
    }

    /// Maps a stretch of a BAR to host memory (device memory, say) until the VM ends.
    pub fn map_range(
        &mut self,
        device: u8,
        bar: u8,
        (offset, bytes): (u64, u64),
        hpa: Hpa,
        access: Access,
    ) -> Option<()> {
        let range = Range { offset, bytes, hpa, access };
        let map = self.bar(device, bar);
        let placed = map.placed;
        map.ranges.try_push(range).ok()?;
        self.show_range(placed, range);
        Some(())
    }

    fn show_range(&mut self, placed: Option<(Gpa, u64)>, range: Range) {
        let Some((base, bytes)) = placed else { return };
        if range.offset.checked_add(range.bytes).is_some_and(|end| end <= bytes) {
            let gpa = base.wrapping_add(range.offset);
            let _ = self.map.map(gpa, range.bytes, range.hpa, range.access, Caching::Uncached);
        }
    }

    /// A BAR moved, appeared or went; whether CPUs must be flushed. RAM is never covered by a BAR.
    pub fn place(&mut self, memory: &GuestMemory, device: u8, bar: u8, window: Option<(Gpa, u64)>) -> bool {
        let window = window.filter(|(base, bytes)| !memory.overlaps(*base, *bytes));
        let map = self.bar(device, bar);
        let old = core::mem::replace(&mut map.placed, window);
        if old == window {
            return false;
        }
        let ranges = map.ranges.clone();
        let pages = map.pages.len();
        if let Some((base, bytes)) = old {
            let _ = self.map.unmap(base, bytes);
        }
        for range in ranges {
            self.show_range(window, range);
        }
        for page in 0..pages {
            let state = self.bar(device, bar).pages.get(page).copied();
            if let Some(what) = state.and_then(visible) {
                self.show(window, page, Some(what));
            }
        }
        old.is_some()
    }
}

/// A frame that the mediator gave to be shown in a BAR.
fn page_window(hpa: Hpa) -> Window {
    // SAFETY: 1. `map_page` takes frames of the frame allocator only: RAM in the direct map. 2. The guest and Prism reach
    // them by copying only.
    unsafe { Window::new(hpa, PAGE_SIZE) }
}

/// What the guest sees of a page.
fn visible(state: PageState) -> Option<(Hpa, Access)> {
    match state {
        PageState::Trapped => None,
        PageState::ReadOnly(hpa) | PageState::Tracked { hpa, dirty: false } => Some((hpa, Access::Read)),
        PageState::Tracked { hpa, dirty: true } => Some((hpa, Access::ReadWrite)),
    }
}

#[cfg(test)]
mod tests;
