//! Tables that wait for something: each at most once, oldest first. A guest decides how often a table is put in, not how
//! long the list becomes (design D18): it has a place for each table there can be, made when the vGPU is made.

use super::store::NodeId;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

/// Bits of a word of the set of members.
const WORD: usize = u64::BITS as usize;

/// The list. What it names may have been removed since, and another table put in its place.
#[derive(Debug)]
pub(super) struct NodeSet {
    list: VecDeque<NodeId>,
    limit: usize,
    members: Vec<u64>,
}

impl NodeSet {
    /// Nothing, with room for the tables with numbers below `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self { list: VecDeque::with_capacity(limit), limit, members: vec![0; limit.div_ceil(WORD)] }
    }

    /// Puts a table in, unless it is there already.
    pub(super) fn insert(&mut self, id: NodeId) {
        let Some((word, bit)) = self.member(id) else { return };
        if *word & bit == 0 {
            *word |= bit;
            self.list.push_back(id);
        }
    }

    /// Takes out the one that was put in first.
    pub(super) fn pop(&mut self) -> Option<NodeId> {
        let id = self.list.pop_front()?;
        if let Some((word, bit)) = self.member(id) {
            *word &= !bit;
        }
        Some(id)
    }

    /// The one at a place, counted from the oldest.
    pub(super) fn get(&self, place: usize) -> Option<NodeId> {
        self.list.get(place).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.members.fill(0);
    }

    fn member(&mut self, id: NodeId) -> Option<(&mut u64, u64)> {
        let number = Some(id.number()).filter(|number| *number < self.limit)?;
        Some((self.members.get_mut(number / WORD)?, 1 << (number % WORD)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_and_oldest_first() {
        let mut set = NodeSet::new(70);
        for number in [69, 3, 69, 5, 3] {
            set.insert(NodeId::from(number));
        }
        assert_eq!((set.len(), set.get(1)), (3, Some(NodeId::from(3))));
        assert_eq!(set.pop(), Some(NodeId::from(69)));
        set.insert(NodeId::from(69));
        let rest: Vec<_> = core::iter::from_fn(|| set.pop()).collect();
        assert_eq!(rest, [3, 5, 69].map(NodeId::from));
        set.insert(NodeId::from(1));
        set.clear();
        set.insert(NodeId::from(1));
        assert!(!set.is_empty() && set.len() == 1);
        // One that cannot be.
        set.insert(NodeId::from(1000));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn it_never_asks_for_memory() {
        let mut set = NodeSet::new(4);
        let room = set.list.capacity();
        for round in 0..1000 {
            set.insert(NodeId::from(round % 4));
            if round % 3 == 0 {
                set.pop();
            }
            assert!(set.len() <= 4 && set.list.capacity() == room);
        }
    }
}
