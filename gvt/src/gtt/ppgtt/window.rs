//! Roots of contexts' own. Such a root holds the guest's entries but for one, the window, which leads to pages of
//! Prism's that the context can read and cannot write: copies of its batches. Below the root nothing is copied, for the
//! tables there are shared; the root itself is kept in step with the guest's as long as an engine may walk it.

use super::entry::link;
use super::{Pin, Ppgtt};
use crate::host::{Host, NoFrame};
use crate::units::Work;
use core::ops::RangeInclusive;
use gvt_defs::pte::{ADDRESS_MASK, Level, PpgttEntry, TABLE_ENTRIES, strip};
use gvt_defs::{Gpa, Hpa, PAGE_SIZE, PpgttAddr};

/// Entries of a root that may become the window, which is searched from the last one down. What the first one maps
/// has addresses like those of the global space.
const PLACES: RangeInclusive<usize> = 1..=509;
/// Page tables of a window.
const TABLES: usize = 2;
/// Pages that a window shows at most.
pub(crate) const WINDOW_PAGES: usize = TABLES * TABLE_ENTRIES;

/// A root of a context's own, and the tables below its window.
#[derive(Debug)]
pub struct Window {
    root: Hpa,
    pointers: Hpa,
    directory: Hpa,
    tables: [Hpa; TABLES],
    place: Option<usize>,
}

impl Window {
    /// Where its first page appears in the process space, if it has a place there.
    pub fn address(&self) -> Option<PpgttAddr> {
        self.place.map(|place| PpgttAddr((place as u64) << Level::Pml4.shift()))
    }

    /// How far behind its first page an address lies, canonical or not.
    pub fn offset(&self, at: u64) -> Option<u64> {
        let ahead = strip(at).0.checked_sub(self.address()?.0)?;
        (ahead < WINDOW_PAGES as u64 * PAGE_SIZE).then_some(ahead)
    }

    fn frames(&self) -> [Hpa; 3 + TABLES] {
        let [first, second] = self.tables;
        [self.root, self.pointers, self.directory, first, second]
    }
}

/// The root that is kept in step with a guest's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follower {
    /// The shadow of the guest's root.
    of: Hpa,
    root: Hpa,
    place: usize,
}

impl Ppgtt {
    /// A root of a context's own, with a window that has no place yet.
    ///
    /// # Errors
    /// `NoFrame` if the VM's quota is spent.
    pub fn open_window(&mut self, host: &mut dyn Host) -> Result<Window, NoFrame> {
        let mut frames = [None; 3 + TABLES];
        for frame in &mut frames {
            *frame = self.store.take_frame(host).ok();
        }
        let [Some(root), Some(pointers), Some(directory), Some(first), Some(second)] = frames else {
            frames.into_iter().flatten().for_each(|frame| self.store.retire_frame(frame));
            self.store.settle();
            return Err(NoFrame);
        };
        // As drivers have it: what is read-only is so by its last entry.
        let lead = |table| link(table, PpgttEntry::WRITABLE).to_le_bytes();
        host.write_frame(pointers, 0, &lead(directory));
        host.write_frame(directory, 0, [first, second].map(lead).as_flattened());
        Ok(Window { root, pointers, directory, tables: [first, second], place: None })
    }

    /// Gives a window's tables up. No engine runs its context; what TLBs hold of it is flushed before they are used again.
    pub fn close_window(&mut self, window: &Window) {
        window.frames().into_iter().for_each(|frame| self.store.retire_frame(frame));
        self.store.settle();
    }

    /// Finds a place for the window in which the guest has nothing: an entry that is not present, or the one that fills
    /// more than half of its root (i915 leads all that it does not use to one tree). The context is off the engine.
    pub fn place_window(&mut self, host: &mut dyn Host, pml4: Gpa, window: &mut Window) {
        window.place = None;
        self.meter.charge(Work::Entry, 2 * TABLE_ENTRIES);
        let level = Level::Pml4 as usize;
        let Some(mut buffers) = self.buffers.get_mut(level).and_then(Option::take) else { return };
        if host.read(self.vm, pml4, buffers.guest.as_flattened_mut()).is_err() {
            buffers.guest.fill([0; 8]);
        }
        let filler = majority(&buffers.guest);
        let is_free = |place: &usize| {
            buffers
                .guest
                .get(*place)
                .is_some_and(|raw| u64::from_le_bytes(*raw) & PpgttEntry::PRESENT == 0 || Some(*raw) == filler)
        };
        window.place = PLACES.rev().find(is_free);
        if let Some(slot) = self.buffers.get_mut(level) {
            *slot = Some(buffers);
        }
    }

    /// Shows pages in the window, in this order; what it showed is gone. The context is off the engine.
    pub fn show(&mut self, host: &mut dyn Host, window: &Window, mut pages: impl Iterator<Item = Hpa>) {
        let mut row = [[0u8; 8]; 64];
        for table in window.tables {
            for at in (0..TABLE_ENTRIES).step_by(row.len()) {
                for entry in &mut row {
                    let page = pages.next().map_or(0, |page| page.0 & ADDRESS_MASK | PpgttEntry::PRESENT);
                    *entry = page.to_le_bytes();
                }
                host.write_frame(table, at * 8, row.as_flattened());
            }
        }
        self.stale = true;
    }

    /// Makes the root of a window that has a place equal to the guest's, and keeps it so until the pin is released. Gives
    /// the root. The context is off the engine.
    pub fn attach(&mut self, host: &mut dyn Host, pin: &mut Pin, window: &Window) -> Option<Hpa> {
        let place = window.place?;
        self.meter.charge(Work::Entry, TABLE_ENTRIES);
        let of = pin.node.and_then(|id| self.store.get(id)).map_or(self.scratch.root(), |node| node.shadow);
        let level = Level::Pml4 as usize;
        let mut buffers = self.buffers.get_mut(level).and_then(Option::take)?;
        host.read_frame(of, 0, buffers.shadow.as_flattened_mut());
        host.read_frame(window.root, 0, buffers.seen.as_flattened_mut());
        if let Some(entry) = buffers.shadow.get_mut(place) {
            *entry = link(window.pointers, PpgttEntry::WRITABLE).to_le_bytes();
        }
        if buffers.shadow != buffers.seen {
            host.write_frame(window.root, 0, buffers.shadow.as_flattened());
            self.stale = true;
        }
        if let Some(slot) = self.buffers.get_mut(level) {
            *slot = Some(buffers);
        }
        pin.follows = true;
        self.follower = Some(Follower { of, root: window.root, place });
        Some(window.root)
    }

    /// Whether entries of a window, or of its root, have changed since this was asked last: the TLB of the engine is to be
    /// flushed before the context runs.
    pub fn take_stale(&mut self) -> bool {
        core::mem::take(&mut self.stale)
    }

    /// Writes entries of a shadow table, and those of a root into the one that follows it.
    pub(super) fn write_shadow(&self, host: &mut dyn Host, shadow: Hpa, first: usize, entries: &[[u8; 8]]) {
        host.write_frame(shadow, first * 8, entries.as_flattened());
        let Some(Follower { root, place, .. }) = self.follower.filter(|follower| follower.of == shadow) else { return };
        let (before, behind) = entries.split_at(place.saturating_sub(first).min(entries.len()));
        host.write_frame(root, first * 8, before.as_flattened());
        let skip = usize::from(first <= place);
        if let Some(behind) = behind.get(skip..) {
            host.write_frame(root, (first + before.len() + skip) * 8, behind.as_flattened());
        }
    }
}

/// The value that more than half of the entries have.
fn majority(table: &[[u8; 8]]) -> Option<[u8; 8]> {
    let mut candidate = None;
    let mut lead = 0_usize;
    for raw in table {
        if lead == 0 {
            candidate = Some(*raw);
        }
        lead = if candidate == Some(*raw) { lead + 1 } else { lead - 1 };
    }
    candidate.filter(|candidate| table.iter().filter(|raw| *raw == candidate).count() > table.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fills_more_than_half_is_nothing() {
        let table = |used: usize| {
            let mut table = [[7; 8]; TABLE_ENTRIES];
            table.iter_mut().take(used).enumerate().for_each(|(i, raw)| *raw = (i as u64).to_le_bytes());
            table
        };
        assert_eq!(majority(&table(0)), Some([7; 8]));
        assert_eq!(majority(&table(255)), Some([7; 8]));
        assert_eq!(majority(&table(256)), None);
        assert_eq!(majority(&table(512)), None);
    }
}
