//! Nested page tables: guest-physical to host-physical, generic over the vendor's entry format.
//!
//! Whoever changes a mapping calls `Vm`'s flush afterwards; tables that became empty are used again only then
//! (`reclaim`), since a CPU may still be walking them. Each change is one 8-byte store, so a concurrent walk sees the old
//! mapping or the new one; a split fills the new table before it is linked.

mod pool;

use alloc::boxed::Box;
use core::marker::PhantomData;

use hv_defs::paging::{Access, Caching, Entry, EntryFormat, Level};
use hv_defs::{Frame, Gpa, Hpa, PAGE_SIZE};

use crate::phys::Window;

pub use self::pool::Pool;

/// No frame is left for a table, or the range is not made of whole pages below 2^48.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoTable;

/// What a guest-physical address is mapped to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Host-physical address of the byte.
    pub hpa: Hpa,
    /// What the guest may do.
    pub access: Access,
    /// Level of the entry.
    pub level: Level,
}

/// The nested tables of one VM, whatever the vendor.
pub trait NestedMap: Send {
    /// Host-physical address of the root table.
    fn root(&self) -> Hpa;
    /// Maps whole pages, replacing what was there, with the largest pages that fit.
    ///
    /// # Errors
    /// `NoTable`; part of the range may have been mapped.
    fn map(&mut self, gpa: Gpa, bytes: u64, hpa: Hpa, access: Access, caching: Caching) -> Result<(), NoTable>;
    /// Unmaps whole pages.
    ///
    /// # Errors
    /// `NoTable` when a large page cannot be split.
    fn unmap(&mut self, gpa: Gpa, bytes: u64) -> Result<(), NoTable>;
    /// Changes what the guest may do with the mapped pages of a range.
    ///
    /// # Errors
    /// `NoTable` when a large page cannot be split.
    fn protect(&mut self, gpa: Gpa, bytes: u64, access: Access) -> Result<(), NoTable>;
    /// Looks an address up.
    fn lookup(&self, gpa: Gpa) -> Option<Mapped>;
    /// Seals the tables emptied so far, if there are any. Flush every CPU, then hand the number to `reclaim`.
    fn seal(&mut self) -> Option<u64>;
    /// Returns sealed tables to the pool: every CPU has been flushed since `seal`.
    fn reclaim(&mut self, sealed: u64);
}

/// Nested tables in format `F`.
pub struct Nested<F> {
    root: Frame,
    pool: Pool,
    largest: Level,
    format: PhantomData<fn() -> F>,
}

/// A change to a range of entries.
#[derive(Clone, Copy)]
enum Change {
    /// Guest-physical address plus this (wrapping) is the host-physical address.
    Map {
        delta: u64,
        access: Access,
        caching: Caching,
    },
    Unmap,
    Protect(Access),
}

/// The part of a range that one entry of a table covers.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

impl<F: EntryFormat + 'static> Nested<F> {
    /// Empty tables; frames come from `pool`, leaves are at most of level `largest`.
    pub fn new(mut pool: Pool, largest: Level) -> Option<Self> {
        let root = pool.take()?;
        Some(Self { root, pool, largest, format: PhantomData })
    }

    /// The same behind the vendor-neutral trait.
    pub fn boxed(pool: Pool, largest: Level) -> Option<Box<dyn NestedMap>> {
        Some(Box::new(Self::new(pool, largest)?))
    }

    fn change(&mut self, gpa: Gpa, bytes: u64, change: Change) -> Result<(), NoTable> {
        let end = gpa.0.checked_add(bytes).ok_or(NoTable)?;
        let whole = (gpa.0 | bytes).is_multiple_of(PAGE_SIZE);
        if !whole || end > 1 << 48 {
            return Err(NoTable);
        }
        self.change_table(self.root, Level::L4, Span { start: gpa.0, end }, change)
    }

    /// Changes the entries of one table that `span` touches. Recursion ends with the levels.
    fn change_table(&mut self, table: Frame, level: Level, span: Span, change: Change) -> Result<(), NoTable> {
        let mut at = span.start;
        while at < span.end {
            let next = (at & !(level.bytes() - 1)) + level.bytes();
            let piece = Span { start: at, end: span.end.min(next) };
            self.change_entry(table, level, piece, change)?;
            at = next;
        }
        Ok(())
    }

    fn change_entry(&mut self, table: Frame, level: Level, span: Span, change: Change) -> Result<(), NoTable> {
        let index = level.index(span.start);
        let old = self.load(table, level, index);
        if let Some(new) = self.direct(level, span, old, change) {
            self.store(table, level, index, new);
            if let Entry::Table(below) = old {
                self.discard(below.frame(), level);
            }
            return Ok(());
        }
        if old == Entry::Empty && !matches!(change, Change::Map { .. }) {
            return Ok(());
        }
        let (Some(lower), below) = (level.below(), self.descend(table, level, index, old)?) else {
            return Err(NoTable);
        };
        self.change_table(below, lower, span, change)?;
        if matches!(change, Change::Unmap) && self.is_empty(below, lower) {
            self.store(table, level, index, Entry::Empty);
            self.pool.retire(below);
        }
        Ok(())
    }

    /// The new entry, if this change can be made at this level.
    fn direct(&self, level: Level, span: Span, old: Entry, change: Change) -> Option<Entry> {
        let whole = span.end - span.start == level.bytes();
        match (change, old) {
            (Change::Map { delta, access, caching }, _) => {
                let hpa = Hpa(span.start.wrapping_add(delta));
                let fits = whole && level <= self.largest && hpa.0.is_multiple_of(level.bytes());
                fits.then_some(Entry::Leaf { hpa, access, caching })
            }
            (Change::Unmap, _) => whole.then_some(Entry::Empty),
            (Change::Protect(access), Entry::Leaf { hpa, caching, access: before }) => {
                (whole || before == access).then_some(Entry::Leaf { hpa, access, caching })
            }
            (Change::Protect(_), _) => None,
        }
    }

    /// The table below an entry; made of the entry's own content if there is none yet.
    fn descend(&mut self, table: Frame, level: Level, index: usize, old: Entry) -> Result<Frame, NoTable> {
        if let Entry::Table(hpa) = old {
            return Ok(hpa.frame());
        }
        let lower = level.below().ok_or(NoTable)?;
        let below = self.pool.take().ok_or(NoTable)?;
        if let Entry::Leaf { hpa, access, caching } = old {
            for slot in 0..512 {
                let piece = Hpa(hpa.0 + slot as u64 * lower.bytes());
                self.store(below, lower, slot, Entry::Leaf { hpa: piece, access, caching });
            }
        }
        self.store(table, level, index, Entry::Table(below.hpa()));
        Ok(below)
    }

    /// Retires a table that was unlinked from an entry of `level`, and all below it.
    fn discard(&mut self, table: Frame, level: Level) {
        if let Some(lower) = level.below() {
            for slot in 0..512 {
                if let Entry::Table(below) = self.load(table, lower, slot) {
                    self.discard(below.frame(), lower);
                }
            }
        }
        self.pool.retire(table);
    }

    fn is_empty(&self, table: Frame, level: Level) -> bool {
        (0..512).all(|slot| self.load(table, level, slot) == Entry::Empty)
    }

    fn load(&self, table: Frame, level: Level, index: usize) -> Entry {
        let raw = window(table).read_u64(index as u64 * 8);
        raw.map_or(Entry::Empty, |raw| F::decode(level, raw))
    }

    fn store(&mut self, table: Frame, level: Level, index: usize, entry: Entry) {
        let _ = window(table).write_u64(index as u64 * 8, F::encode(level, entry));
    }
}

impl<F: EntryFormat + 'static> NestedMap for Nested<F> {
    fn root(&self) -> Hpa {
        self.root.hpa()
    }

    fn map(&mut self, gpa: Gpa, bytes: u64, hpa: Hpa, access: Access, caching: Caching) -> Result<(), NoTable> {
        let delta = hpa.0.wrapping_sub(gpa.0);
        self.change(gpa, bytes, Change::Map { delta, access, caching })
    }

    fn unmap(&mut self, gpa: Gpa, bytes: u64) -> Result<(), NoTable> {
        self.change(gpa, bytes, Change::Unmap)
    }

    fn protect(&mut self, gpa: Gpa, bytes: u64, access: Access) -> Result<(), NoTable> {
        self.change(gpa, bytes, Change::Protect(access))
    }

    fn lookup(&self, gpa: Gpa) -> Option<Mapped> {
        if gpa.0 >= 1 << 48 {
            return None;
        }
        let (mut table, mut level) = (self.root, Level::L4);
        loop {
            match self.load(table, level, level.index(gpa.0)) {
                Entry::Empty => return None,
                Entry::Table(below) => (table, level) = (below.frame(), level.below()?),
                Entry::Leaf { hpa, access, .. } => {
                    let hpa = Hpa(hpa.0 + (gpa.0 & (level.bytes() - 1)));
                    return Some(Mapped { hpa, access, level });
                }
            }
        }
    }

    fn seal(&mut self) -> Option<u64> {
        self.pool.seal()
    }

    fn reclaim(&mut self, sealed: u64) {
        self.pool.reclaim(sealed);
    }
}

/// The content of a table of ours.
fn window(table: Frame) -> Window {
    // SAFETY: 1. Every table comes from the pool, whose frames are RAM that the frame allocator gave to it alone. 2. They
    // are only ever accessed by copying, here, and by the CPUs' table walk.
    unsafe { Window::new(table.hpa(), PAGE_SIZE) }
}

#[cfg(test)]
mod tests;
