//! The trace ring: bounded, oldest entries go first.

use alloc::vec::Vec;

use gvt_defs::Nanos;
use gvt_defs::trace::{By, Entry, Kind};

pub(crate) struct Trace {
    entries: Vec<Entry>,
    capacity: usize,
    next: usize,
}

impl Trace {
    pub const fn new(capacity: usize) -> Self {
        Self { entries: Vec::new(), capacity, next: 0 }
    }

    #[inline]
    pub fn add(&mut self, time: Nanos, kind: Kind, by: By, offset: u32, value: u64) {
        if self.capacity != 0 {
            self.push(Entry { time, kind, by, offset, value });
        }
    }

    fn push(&mut self, entry: Entry) {
        match self.entries.get_mut(self.next) {
            Some(slot) => *slot = entry,
            None => self.entries.push(entry),
        }
        self.next = (self.next + 1) % self.capacity;
    }

    /// Hands out everything, oldest first, and forgets it.
    pub fn take(&mut self) -> Vec<Entry> {
        let all = self.iter().copied().collect();
        self.entries.clear();
        self.next = 0;
        all
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        let (new, old) = self.entries.split_at(self.next.min(self.entries.len()));
        old.iter().chain(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let mut t = Trace::new(3);
        for i in 0..5 {
            t.add(Nanos(0), Kind::Read, By::Host, i, 0);
        }
        assert_eq!(t.iter().map(|e| e.offset).collect::<Vec<_>>(), [2, 3, 4]);
        let mut off = Trace::new(0);
        off.add(Nanos(0), Kind::Read, By::Host, 0, 0);
        assert_eq!(off.iter().count(), 0);
    }
}
