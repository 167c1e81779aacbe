//! Making a shadow table equal to its guest table: building, comparing, scrapping, reviving.

use super::entry::{Attributes, Entry, Kind, link};
use super::store::{Node, NodeId};
use super::{Buffers, Ppgtt};
use crate::host::Host;
use crate::units::Work;
use gvt_defs::pte::{Level, PpgttEntry, TABLE_ENTRIES};
use gvt_defs::{Gfn, Hpa};

/// A table with more malformed entries than this is not a table.
const MALFORMED_LIMIT: u16 = 8;

/// Which entries an update looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// All: the shadow frame holds nothing yet.
    Fresh,
    /// Those that differ from what was last seen.
    Changed,
    /// Those too that lead to scratch though they should lead to a table.
    Missing,
}

/// The outcome of looking for a child table.
enum Child {
    Found(NodeId),
    /// No frames or no time left; to be tried again.
    Starved,
    /// Cannot be a table.
    Refused,
}

/// First and last slot written.
#[derive(Clone, Copy, Default)]
struct Span(Option<(usize, usize)>);

impl Span {
    fn add(&mut self, i: usize) {
        let (first, last) = self.0.unwrap_or((i, i));
        self.0 = Some((first.min(i), last.max(i)));
    }
}

impl Ppgtt {
    /// Makes the shadow of a guest table, with one reference, as far as frames and budget go.
    pub(super) fn build(&mut self, host: &mut dyn Host, gfn: Gfn, kind: Kind) -> Option<NodeId> {
        match self.make(host, gfn, kind) {
            Child::Found(id) => Some(id),
            Child::Starved | Child::Refused => None,
        }
    }

    /// Compares a guest table with its shadow and mends the shadow.
    pub(super) fn update(&mut self, host: &mut dyn Host, id: NodeId, mode: Mode) {
        let Some(node) = self.store.get_mut(id).map(|node| {
            node.dirty = false;
            *node
        }) else {
            return;
        };
        if !node.kind.is_guest_table() || node.garbage {
            return;
        }
        let level = node.kind.level() as usize;
        // Levels only go down from here, so the buffers of this one are free.
        let Some(mut buffers) = self.buffers.get_mut(level).and_then(Option::take) else {
            return;
        };
        self.work.tables += 1;
        self.meter.charge(Work::Entry, TABLE_ENTRIES);
        self.update_with(host, id, &node, mode, &mut buffers);
        if let Some(slot) = self.buffers.get_mut(level) {
            *slot = Some(buffers);
        }
    }

    /// Looks at a garbage table again: if it parses now, it is watched and shadowed.
    pub(super) fn revive(&mut self, host: &mut dyn Host, id: NodeId) {
        let Some(node) = self.store.get(id).copied() else {
            return;
        };
        self.meter.charge(Work::Entry, TABLE_ENTRIES);
        let mut sample = [[0u8; 8]; 64];
        let mut malformed = 0;
        for at in 0..TABLE_ENTRIES / sample.len() {
            let gpa = gvt_defs::Gpa(node.gfn.gpa().0 + (at * size_of_val(&sample)) as u64);
            if host.read(self.vm, gpa, sample.as_flattened_mut()).is_err() {
                sample = [[0xFF; 8]; 64];
            }
            for (i, raw) in sample.iter().enumerate() {
                malformed += u16::from(self.is_malformed(host, node.kind, u64::from_le_bytes(*raw), i));
            }
        }
        if malformed > MALFORMED_LIMIT || host.track(self.vm, node.gfn).is_err() {
            self.garbage.insert(id);
            return;
        }
        if let Some(node) = self.store.get_mut(id) {
            node.garbage = false;
        }
        self.update(host, id, Mode::Changed);
    }

    /// Drops the references that a table's entries hold.
    pub(super) fn unlink_children(&mut self, host: &mut dyn Host, id: NodeId) {
        let Some(node) = self.store.get(id).copied() else {
            return;
        };
        if node.kind.level() == Level::Pt {
            return;
        }
        let level = node.kind.level() as usize;
        let Some(mut buffers) = self.buffers.get_mut(level).and_then(Option::take) else {
            return;
        };
        self.meter.charge(Work::Entry, TABLE_ENTRIES);
        host.read_frame(node.shadow, 0, buffers.shadow.as_flattened_mut());
        for entry in &buffers.shadow {
            self.unlink(u64::from_le_bytes(*entry));
        }
        if let Some(slot) = self.buffers.get_mut(level) {
            *slot = Some(buffers);
        }
    }

    fn update_with(&mut self, host: &mut dyn Host, id: NodeId, node: &Node, mode: Mode, buffers: &mut Buffers) {
        let Buffers { guest, seen, shadow } = buffers;
        if host.read(self.vm, node.gfn.gpa(), guest.as_flattened_mut()).is_err() {
            guest.fill([0; 8]);
        }
        let nothing = self.scratch.entry(node.kind.level()).to_le_bytes();
        match mode {
            Mode::Fresh => {
                seen.fill([0; 8]);
                shadow.fill(nothing);
            }
            Mode::Changed | Mode::Missing => {
                host.read_frame(node.seen, 0, seen.as_flattened_mut());
                host.read_frame(node.shadow, 0, shadow.as_flattened_mut());
            }
        }
        let malformed = self.count_malformed(host, node, guest, seen);
        if malformed > MALFORMED_LIMIT {
            self.scrap(host, id, node, buffers);
            return;
        }
        if let Some(node) = self.store.get_mut(id) {
            node.malformed = malformed;
        }
        let (mut span, mut changed) = (Span::default(), 0);
        for i in 0..TABLE_ENTRIES {
            let (Some(now), Some(was)) = (guest.get(node.kind.source(i)), seen.get(node.kind.source(i))) else {
                break;
            };
            let Some(slot) = shadow.get_mut(i) else { break };
            if now == was && !(mode == Mode::Missing && *slot == nothing) {
                continue;
            }
            changed += 1;
            let entry = self.shadow_entry(host, id, node.kind, u64::from_le_bytes(*now), i).to_le_bytes();
            if entry != *slot {
                let old = core::mem::replace(slot, entry);
                self.unlink_from(node.kind, u64::from_le_bytes(old));
                span.add(i);
            } else if node.kind.level() != Level::Pt {
                // The same child was found, and counted, once more.
                self.unlink_from(node.kind, u64::from_le_bytes(entry));
            }
        }
        self.meter.charge(Work::Change, changed);
        self.store_table(host, node, mode, span, buffers);
    }

    /// Writes what `update_with` changed.
    fn store_table(&mut self, host: &mut dyn Host, node: &Node, mode: Mode, span: Span, buffers: &Buffers) {
        if mode == Mode::Fresh {
            host.write_frame(node.shadow, 0, buffers.shadow.as_flattened());
            host.write_frame(node.seen, 0, buffers.guest.as_flattened());
            return;
        }
        if buffers.guest != buffers.seen {
            host.write_frame(node.seen, 0, buffers.guest.as_flattened());
        }
        if let Span(Some((first, last))) = span
            && let Some(changed) = buffers.shadow.get(first..=last)
        {
            self.write_shadow(host, node.shadow, first, changed);
            self.work.entries += (last - first + 1) as u32;
            self.store.touch();
        }
    }

    /// Makes a table lead to scratch and stops watching it: it holds something else than entries.
    fn scrap(&mut self, host: &mut dyn Host, id: NodeId, node: &Node, buffers: &mut Buffers) {
        if node.kind.level() != Level::Pt {
            for entry in &buffers.shadow {
                self.unlink(u64::from_le_bytes(*entry));
            }
        }
        buffers.shadow.fill(self.scratch.entry(node.kind.level()).to_le_bytes());
        buffers.seen.fill([0; 8]);
        self.write_shadow(host, node.shadow, 0, &buffers.shadow);
        host.write_frame(node.seen, 0, buffers.seen.as_flattened());
        self.store.touch();
        self.untrack(host, id);
        if let Some(node) = self.store.get_mut(id) {
            node.malformed = 0;
            node.garbage = true;
            self.garbage.insert(id);
        }
    }

    /// What the shadow entry of slot `i` must be. Takes a reference to the child if it leads to one.
    fn shadow_entry(&mut self, host: &mut dyn Host, id: NodeId, kind: Kind, raw: u64, i: usize) -> u64 {
        let nothing = self.scratch.entry(kind.level());
        let (child, attributes) = match kind.decode(raw, i) {
            Entry::Absent | Entry::Malformed => return nothing,
            Entry::Page(gfn, attributes) => {
                return self.translator.frame(host, gfn).map_or(nothing, |hpa| attributes.page(hpa));
            }
            Entry::Large(gfn, attributes) => {
                if let Some(hpa) = self.translator.contiguous(host, gfn, TABLE_ENTRIES as u64) {
                    return attributes.large(hpa);
                }
                (self.child(host, gfn, Kind::Split(attributes)), PpgttEntry::WRITABLE)
            }
            Entry::Table(gfn, kind, attributes) => (self.child(host, gfn, kind), attributes),
        };
        match child {
            Child::Found(child) => self.store.get(child).map_or(nothing, |child| link(child.shadow, attributes)),
            Child::Refused => nothing,
            Child::Starved => {
                self.leave_incomplete(id);
                nothing
            }
        }
    }

    /// Finds or makes a child table, with one more reference.
    fn child(&mut self, host: &mut dyn Host, gfn: Gfn, kind: Kind) -> Child {
        if let Some(id) = self.store.find(gfn, kind) {
            if let Some(node) = self.store.get_mut(id) {
                node.refs = node.refs.saturating_add(1);
            }
            return Child::Found(id);
        }
        if self.translator.frame(host, gfn).is_none() {
            return Child::Refused;
        }
        self.make(host, gfn, kind)
    }

    fn make(&mut self, host: &mut dyn Host, gfn: Gfn, kind: Kind) -> Child {
        let Some(left) = self.budget.checked_sub(1) else {
            return Child::Starved;
        };
        self.budget = left;
        let Ok(id) = self.store.add(host, gfn, kind) else {
            self.starved = true;
            return Child::Starved;
        };
        if let Kind::Split(attributes) = kind {
            self.fill_split(host, id, gfn, attributes);
            return Child::Found(id);
        }
        // Watched before it is read: a store that the reading misses is then recorded.
        if host.track(self.vm, gfn).is_err() {
            self.unref(id);
            return Child::Refused;
        }
        self.update(host, id, Mode::Fresh);
        Child::Found(id)
    }

    fn fill_split(&mut self, host: &mut dyn Host, id: NodeId, first: Gfn, attributes: Attributes) {
        self.meter.charge(Work::Entry, TABLE_ENTRIES);
        let nothing = self.scratch.entry(Level::Pt);
        let Some(shadow) = self.store.get(id).map(|node| node.shadow) else {
            return;
        };
        let mut row = [[0u8; 8]; 64];
        for at in (0..TABLE_ENTRIES).step_by(row.len()) {
            for (i, slot) in (at..).zip(&mut row) {
                let frame = self.translator.frame(host, Gfn(first.0 + i as u64));
                *slot = frame.map_or(nothing, |hpa| attributes.page(hpa)).to_le_bytes();
            }
            host.write_frame(shadow, at * 8, row.as_flattened());
        }
    }

    fn leave_incomplete(&mut self, id: NodeId) {
        if let Some(node) = self.store.get_mut(id)
            && !core::mem::replace(&mut node.incomplete, true)
        {
            self.incomplete.insert(id);
        }
    }

    /// Malformed entries of the table as it is now.
    fn count_malformed(&mut self, host: &mut dyn Host, node: &Node, guest: &[[u8; 8]], seen: &[[u8; 8]]) -> u16 {
        let mut count = node.malformed;
        for (i, (now, was)) in guest.iter().zip(seen).enumerate() {
            if now != was && node.kind.source(i) == i {
                count += u16::from(self.is_malformed(host, node.kind, u64::from_le_bytes(*now), i));
                count =
                    count.saturating_sub(u16::from(self.is_malformed(host, node.kind, u64::from_le_bytes(*was), i)));
            }
        }
        count
    }

    fn is_malformed(&mut self, host: &mut dyn Host, kind: Kind, raw: u64, i: usize) -> bool {
        if kind.source(i) != i {
            return false;
        }
        match kind.decode(raw, i) {
            Entry::Absent => false,
            Entry::Malformed => true,
            Entry::Table(gfn, ..) | Entry::Large(gfn, _) | Entry::Page(gfn, _) => {
                self.translator.frame(host, gfn).is_none()
            }
        }
    }

    fn unlink_from(&mut self, kind: Kind, entry: u64) {
        if kind.level() != Level::Pt {
            self.unlink(entry);
        }
    }

    /// Drops the reference that a shadow entry above the page tables holds, if it leads to a table.
    fn unlink(&mut self, entry: u64) {
        let entry = PpgttEntry(entry);
        if entry.is_large() {
            return;
        }
        if let Some(child) = self.store.by_shadow(Hpa(entry.frame().0)) {
            self.unref(child);
        }
    }
}
