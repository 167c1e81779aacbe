//! The global page table of one vGPU. The guest's table pages that touch its partition are frames that the guest
//! reads and writes as plain memory; at a sync point the dirty ones are compared with what was last seen, and only
//! what changed is translated and written to the physical table (design D6).

use super::partition::Partition;
use super::translate::Translator;
use crate::host::{Host, Mapping, NoFrame, Owner, VmId};
use crate::hw::Hw;
use crate::units::{Meter, Work as Priced};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use gvt_defs::pte::{ADDRESS_MASK, GgttPte};
use gvt_defs::{Gfn, GgttAddr, Gpa, Hpa, PAGE_SIZE, reg};

/// Entries in one page of the table.
const ENTRIES: u32 = 512;
/// BAR0 page of the first table page.
const FIRST_PAGE: u32 = (reg::GGTT_OFFSET / PAGE_SIZE) as u32;
/// Entries that share one change stamp.
const GRANULE: u32 = 16;
/// Entries compared at a time: bounds the stack, not the work.
const CHUNK: usize = 128;

/// Moment in the history of a GGTT; see [`Ggtt::changed_since`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Stamp(u32);

/// A graphics address that maps no RAM of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmapped;

/// What a sync did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Table pages compared.
    pub tables: u32,
    /// Entries written.
    pub entries: u32,
}

/// How much of a sync is done at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Table pages compared at most.
    tables: u32,
    /// Entries written at most; one page is always followed whole.
    entries: u32,
}

impl Share {
    /// All that waits.
    pub const ALL: Self = Self { tables: u32::MAX, entries: u32::MAX };
    /// What takes about a millisecond at most, a register write taking a microsecond (design D19).
    pub const PART: Self = Self { tables: 16, entries: 900 };
}

/// Consecutive table pages that have a copy.
#[derive(Clone, Debug)]
struct Span {
    tables: Range<u32>,
    slot: u32,
}

/// The guest's view and what became of it.
#[derive(Debug)]
pub struct Ggtt {
    vm: VmId,
    partition: Partition,
    spans: [Span; 2],
    /// The copy of each table page, mapped into BAR0.
    copies: Vec<Hpa>,
    /// Per entry: 0 if it leads to scratch, else its guest frame + 1.
    seen: Vec<u32>,
    /// Per granule: when an entry in it last changed.
    stamps: Vec<u32>,
    now: u32,
    /// Oldest first, each once.
    dirty: VecDeque<u32>,
    is_dirty: Vec<bool>,
    scratch: Hpa,
    translator: Translator,
    pub(super) meter: Meter,
}

impl Ggtt {
    /// Allocates the copies, maps them into BAR0 and points every entry of the partition at `scratch`.
    ///
    /// # Errors
    /// `NoFrame` if the quota of the VM does not hold the copies; nothing is kept then.
    pub fn new(
        host: &mut dyn Host,
        hw: &mut (impl Hw + ?Sized),
        vm: VmId,
        partition: Partition,
        scratch: Hpa,
    ) -> Result<Self, NoFrame> {
        let spans = spans(&partition);
        let tables = spans.iter().map(Span::len).sum::<u32>();
        let copies = allocate(host, vm, tables)?;
        let entries = tables as usize * ENTRIES as usize;
        let this = Self {
            vm,
            partition,
            spans,
            copies,
            seen: vec![0; entries],
            stamps: vec![0; entries / GRANULE as usize],
            now: 0,
            dirty: VecDeque::with_capacity(tables as usize),
            is_dirty: vec![false; tables as usize],
            scratch,
            translator: Translator::new(vm),
            meter: Meter::default(),
        };
        this.map_copies(host);
        this.point_all_at(hw, scratch);
        Ok(this)
    }

    /// Notes that BAR0 page `page` was written; false if it is no table page of this vGPU.
    pub fn mark(&mut self, page: u32) -> bool {
        let Some(slot) = page.checked_sub(FIRST_PAGE).and_then(|table| self.slot(table)) else {
            return false;
        };
        if let Some(flag) = self.is_dirty.get_mut(slot as usize)
            && !*flag
        {
            *flag = true;
            self.dirty.push_back(slot);
        }
        true
    }

    /// Brings the physical table up to date with a share of the pages marked, those first that were marked first, and
    /// flushes if an entry changed.
    pub fn sync(&mut self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized), share: Share) -> Work {
        let mut work = Work::default();
        if self.dirty.is_empty() {
            return work;
        }
        self.now = self.now.wrapping_add(1);
        while work.tables < share.tables
            && (work.tables == 0 || work.entries <= share.entries.saturating_sub(ENTRIES))
            && let Some(slot) = self.dirty.pop_front()
        {
            if let Some(flag) = self.is_dirty.get_mut(slot as usize) {
                *flag = false;
            }
            work.tables += 1;
            work.entries += self.sync_table(host, hw, slot);
        }
        if work.entries > 0 {
            hw.write(reg::GFX_FLSH_CNTL, 1);
        }
        work
    }

    /// Pages marked that wait for `sync`.
    pub fn waiting(&self) -> usize {
        self.dirty.len()
    }

    /// A trapped load of `bytes` bytes (at most 8) at `offset` of the GGTT half: 0 outside the copies.
    pub fn load(&self, host: &mut dyn Host, offset: u32, bytes: usize) -> u64 {
        let mut value = [0; 8];
        if let (Some((_, frame, at)), Some(buf)) = (self.copy_at(offset, bytes), value.get_mut(..bytes)) {
            host.read_frame(frame, at, buf);
        }
        u64::from_le_bytes(value)
    }

    /// A trapped store of `bytes` bytes (at most 8) at `offset` of the GGTT half: ignored outside the copies.
    /// Halves of an entry may come apart: the copy holds them until the next sync.
    pub fn store(&mut self, host: &mut dyn Host, offset: u32, bytes: usize, value: u64) {
        let value = value.to_le_bytes();
        if let (Some((table, frame, at)), Some(data)) = (self.copy_at(offset, bytes), value.get(..bytes)) {
            host.write_frame(frame, at, data);
            self.mark(FIRST_PAGE + table);
        }
    }

    /// Guest RAM behind a graphics address, as of the last sync.
    pub fn gpa(&self, addr: GgttAddr) -> Option<Gpa> {
        let index = addr.index();
        if !self.partition.owns(index) {
            return None;
        }
        let slot = self.slot(index / ENTRIES)?;
        let seen = *self.seen.get((slot * ENTRIES + index % ENTRIES) as usize)?;
        let gfn = Gfn(u64::from(seen.checked_sub(1)?));
        Some(Gpa(gfn.gpa().0 + u64::from(addr.0) % PAGE_SIZE))
    }

    /// When it is.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.now)
    }

    /// Whether an entry under `bytes` bytes from `addr` on (or a close neighbour) changed after `since`.
    pub fn changed_since(&self, addr: GgttAddr, bytes: u32, since: Stamp) -> bool {
        let Some(last) = addr.0.checked_add(bytes.saturating_sub(1)) else {
            return true;
        };
        let granules = addr.index() / GRANULE..=GgttAddr(last).index() / GRANULE;
        granules.into_iter().any(|granule| {
            let per_table = ENTRIES / GRANULE;
            self.slot(granule / per_table)
                .and_then(|slot| self.stamps.get((slot * per_table + granule % per_table) as usize))
                .is_none_or(|stamp| *stamp > since.0)
        })
    }

    /// Forgets everything the guest wrote: its table reads 0 and leads to scratch (virtual reset).
    pub fn clear(&mut self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized)) {
        self.now = self.now.wrapping_add(1);
        for copy in &self.copies {
            for half in [0, PAGE_SIZE as usize / 2] {
                host.write_frame(*copy, half, &[0; PAGE_SIZE as usize / 2]);
            }
        }
        // Only what leads elsewhere: a guest that resets in a loop must not keep the others waiting.
        let scratch = GgttPte::new(self.scratch).0;
        for (slot, table) in (0..).zip(self.seen.chunks_mut(ENTRIES as usize)) {
            let Some(first) = self.spans.iter().find_map(|span| span.table_of(slot)).map(|t| t * ENTRIES) else {
                break;
            };
            for (index, seen) in (first..).zip(table).filter(|(_, seen)| **seen != 0) {
                *seen = 0;
                hw.ggtt_write(index, scratch);
            }
        }
        hw.write(reg::GFX_FLSH_CNTL, 1);
        self.stamps.fill(self.now);
        self.is_dirty.fill(false);
        self.dirty.clear();
    }

    /// Gives the frames back; the entries of the partition lead to `dead` from now on.
    pub fn destroy(self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized), dead: Hpa) {
        self.point_all_at(hw, dead);
        for table in self.tables() {
            host.map_register_page(self.vm, FIRST_PAGE + table, Mapping::Trapped);
        }
        for copy in self.copies {
            host.free_frame(Owner::Vm(self.vm), copy);
        }
    }

    fn sync_table(&mut self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized), slot: u32) -> u32 {
        let (Some(&copy), Some(table)) = (self.copies.get(slot as usize), self.table_of(slot)) else {
            return 0;
        };
        self.meter.charge(Priced::Entry, ENTRIES as usize);
        let mut written = 0;
        let mut bytes = [0u8; CHUNK * 8];
        for chunk in 0..ENTRIES / CHUNK as u32 {
            let first = chunk * CHUNK as u32;
            host.read_frame(copy, first as usize * 8, &mut bytes);
            for (i, entry) in (first..).zip(bytes.as_chunks::<8>().0) {
                let index = table * ENTRIES + i;
                let position = (slot * ENTRIES + i) as usize;
                written += u32::from(self.sync_entry(host, hw, index, position, u64::from_le_bytes(*entry)));
            }
        }
        written
    }

    /// Compares one entry, and writes the physical one if it leads elsewhere now.
    #[inline]
    fn sync_entry(
        &mut self,
        host: &mut dyn Host,
        hw: &mut (impl Hw + ?Sized),
        index: u32,
        position: usize,
        raw: u64,
    ) -> bool {
        let wanted = key(raw);
        let Some(seen) = self.seen.get_mut(position) else {
            return false;
        };
        if wanted == *seen || !self.partition.owns(index) {
            return false;
        }
        let frame = wanted.checked_sub(1).and_then(|gfn| self.translator.frame(host, Gfn(u64::from(gfn))));
        let becomes = if frame.is_some() { wanted } else { 0 };
        if becomes == *seen {
            return false;
        }
        *seen = becomes;
        if let Some(stamp) = self.stamps.get_mut(position / GRANULE as usize) {
            *stamp = self.now;
        }
        hw.ggtt_write(index, GgttPte::new(frame.unwrap_or(self.scratch)).0);
        true
    }

    fn map_copies(&self, host: &mut dyn Host) {
        for (table, copy) in self.tables().zip(&self.copies) {
            host.map_register_page(self.vm, FIRST_PAGE + table, Mapping::Tracked(*copy));
        }
    }

    fn point_all_at(&self, hw: &mut (impl Hw + ?Sized), frame: Hpa) {
        let pte = GgttPte::new(frame).0;
        for index in self.partition.aperture().chain(self.partition.hidden()) {
            hw.ggtt_write(index, pte);
        }
        hw.write(reg::GFX_FLSH_CNTL, 1);
    }

    fn tables(&self) -> impl Iterator<Item = u32> + use<> {
        let [first, second] = &self.spans;
        first.tables.clone().chain(second.tables.clone())
    }

    fn slot(&self, table: u32) -> Option<u32> {
        let span = self.spans.iter().find(|span| span.tables.contains(&table))?;
        Some(span.slot + (table - span.tables.start))
    }

    fn table_of(&self, slot: u32) -> Option<u32> {
        self.spans.iter().find_map(|span| span.table_of(slot))
    }

    /// Table, frame and offset in the frame of an access that stays in one page.
    fn copy_at(&self, offset: u32, bytes: usize) -> Option<(u32, Hpa, usize)> {
        let at = offset as usize % PAGE_SIZE as usize;
        if at + bytes > PAGE_SIZE as usize {
            return None;
        }
        let table = offset / PAGE_SIZE as u32;
        let frame = *self.copies.get(self.slot(table)? as usize)?;
        Some((table, frame, at))
    }
}

impl Span {
    fn len(&self) -> u32 {
        self.tables.end - self.tables.start
    }

    fn table_of(&self, slot: u32) -> Option<u32> {
        let ahead = slot.checked_sub(self.slot)?;
        (ahead < self.len()).then(|| self.tables.start + ahead)
    }
}

/// What an entry asks for: 0 for nothing, else its guest frame + 1. Addresses above 39 bits lead nowhere.
#[inline]
fn key(raw: u64) -> u32 {
    const ABOVE: u64 = !(ADDRESS_MASK | 0xFFF) & 0xF_FFFF_FFFF_FFFF;
    if raw & GgttPte::PRESENT == 0 || raw & ABOVE != 0 {
        return 0;
    }
    (GgttPte(raw).frame().0 / PAGE_SIZE) as u32 + 1
}

/// Table pages that touch the partition, a page that both ranges touch counted once.
fn spans(partition: &Partition) -> [Span; 2] {
    let tables = |range: Range<u32>| {
        let end = if range.is_empty() { range.start / ENTRIES } else { range.end.div_ceil(ENTRIES) };
        range.start / ENTRIES..end
    };
    let low = tables(partition.aperture());
    let mut high = tables(partition.hidden());
    high.start = high.start.max(low.end).min(high.end);
    let slot = low.end - low.start;
    [Span { tables: low, slot: 0 }, Span { tables: high, slot }]
}

fn allocate(host: &mut dyn Host, vm: VmId, count: u32) -> Result<Vec<Hpa>, NoFrame> {
    let mut frames = Vec::with_capacity(count as usize);
    for _ in 0..count {
        match host.alloc_frame(Owner::Vm(vm)) {
            Ok(frame) => frames.push(frame),
            Err(NoFrame) => {
                for frame in frames {
                    host.free_frame(Owner::Vm(vm), frame);
                }
                return Err(NoFrame);
            }
        }
    }
    Ok(frames)
}
