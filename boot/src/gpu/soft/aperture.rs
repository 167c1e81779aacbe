//! The aperture of a GPU that has no physical one: each page of a guest's slice is the frame that the global page table
//! names. Pages under a fence are left to the model, which knows how their bytes lie, and so is what leads nowhere.

use alloc::vec::Vec;
use core::ops::Range;

use gvt::ApertureSlice;
use gvt_defs::fence::Fence;
use gvt_defs::pte::GgttPte;
use gvt_defs::{PAGE_SIZE, reg};
use gvt_model::{Bar, Gpu as Model, Hpa};
use hv::vm::{PageMapping, VmId};
use hv_defs::Width;

use super::super::function::GMADR;
use super::super::host::Services;
use super::super::{DEVICE, now};

/// Pages of the largest aperture: 4 GiB.
const MOST_PAGES: usize = 1 << 20;

/// A set of pages of the aperture.
pub struct Pages(Vec<u64>);

impl Pages {
    /// None of them.
    pub fn new() -> Self {
        Self(alloc::vec![0; MOST_PAGES / 64])
    }

    /// Puts a page in or takes it out; whether it was in.
    fn set(&mut self, page: u32, is_in: bool) -> bool {
        let Some(word) = self.0.get_mut((page / 64) as usize) else { return false };
        let bit = 1 << (page % 64);
        let before = *word & bit != 0;
        if is_in {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        before
    }
}

/// Pages whose appearance may have changed since guests were last shown them, each once.
pub struct Changes {
    list: Vec<u32>,
    listed: Pages,
}

impl Changes {
    /// None so far.
    pub fn new() -> Self {
        Self { list: Vec::new(), listed: Pages::new() }
    }

    /// A page may look different.
    pub fn note(&mut self, page: u32) {
        if (page as usize) < MOST_PAGES && !self.listed.set(page, true) {
            self.list.push(page);
        }
    }

    /// All pages under a fence may, if `offset` is a register of one.
    pub fn note_fence(&mut self, model: &mut Model, offset: u32) {
        if (reg::FENCE0..reg::FENCE0 + 8 * reg::FENCES).contains(&offset) {
            fence(model, (offset - reg::FENCE0) / 8).into_iter().flatten().for_each(|page| self.note(page));
        }
    }

    fn take(&mut self) -> Vec<u32> {
        let list = core::mem::take(&mut self.list);
        for page in &list {
            self.listed.set(*page, false);
        }
        list
    }
}

/// The pages under a fence, if it is valid.
fn fence(model: &mut Model, number: u32) -> Option<Range<u32>> {
    let at = reg::FENCE0 + 8 * number;
    let [low, high] = [at, at + 4].map(|offset| model.read32(offset, now()));
    let page = |address: u64| (address / PAGE_SIZE) as u32;
    Fence::decode(low, high).map(|fence| page(fence.start)..page(fence.end))
}

/// A guest's slice of the aperture: its pages, and which of them it has been shown.
pub struct Slice {
    vm: VmId,
    pages: Range<u32>,
    shown: Pages,
}

impl Services {
    /// A guest's aperture begins to appear.
    pub fn show_aperture(&mut self, vm: VmId, slice: ApertureSlice) {
        let page = |bytes: u64| (bytes / PAGE_SIZE) as u32;
        let pages = page(slice.offset)..page(slice.offset.saturating_add(slice.size));
        if let Some(gpu) = self.soft.gpu {
            let mut state = gpu.0.lock();
            pages.clone().for_each(|page| state.changes.note(page));
        }
        self.soft.slices.push(Slice { vm, pages, shown: Pages::new() });
    }

    /// Lets guests see what became of their apertures.
    pub fn refresh_apertures(&mut self) {
        let Some(gpu) = self.soft.gpu else { return };
        let mut state = gpu.0.lock();
        let changes = state.changes.take();
        if changes.is_empty() {
            return;
        }
        let fences: Vec<_> = (0..reg::FENCES).filter_map(|number| fence(&mut state.model, number)).collect();
        for page in changes {
            let Some(slice) = self.soft.slices.iter_mut().find(|slice| slice.pages.contains(&page)) else { continue };
            let entry = GgttPte(state.model.ggtt_read(page));
            let frame = entry.present().then(|| entry.frame());
            let fenced = fences.iter().any(|pages| pages.contains(&page));
            let frame = frame.filter(|frame| !fenced && self.soft.guests.iter().any(|range| range.contains(&frame.0)));
            let was_shown = slice.shown.set(page, frame.is_some());
            if let Some(vm) = hv::machine::vm(slice.vm)
                && (was_shown || frame.is_some())
            {
                let mapping = frame.map(|Hpa(frame)| PageMapping::Tracked(hv_defs::Hpa(frame)));
                vm.map_page(DEVICE, GMADR, page, mapping.unwrap_or(PageMapping::Trapped));
            }
        }
    }

    /// A guest's load from a page that it is not shown.
    pub fn aperture_read(&mut self, offset: u64, width: Width) -> u64 {
        let Some(gpu) = self.soft.gpu else { return width.mask() };
        let mut bytes = [0; 8];
        if let Some(bytes) = bytes.get_mut(..width.bytes()) {
            gpu.0.lock().model.bar_read(self, Bar::Gmadr, offset, bytes, now());
        }
        u64::from_le_bytes(bytes)
    }

    /// A guest's store.
    pub fn aperture_write(&mut self, offset: u64, width: Width, value: u64) {
        let Some(gpu) = self.soft.gpu else { return };
        if let Some(data) = value.to_le_bytes().get(..width.bytes()) {
            gpu.0.lock().model.bar_write(self, Bar::Gmadr, offset, data, now());
        }
    }
}
