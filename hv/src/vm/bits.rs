//! A set of small numbers that any CPU reads without a lock.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// One bit a number.
pub(super) struct AtomicBits {
    words: Box<[AtomicU64]>,
}

impl AtomicBits {
    /// The empty set of numbers below `len`.
    pub fn new(len: usize) -> Self {
        Self { words: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether `index` is in the set.
    pub fn get(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word.load(Ordering::SeqCst) >> (index % 64) & 1 != 0)
    }

    /// Adds `index`; whether it was in the set before.
    pub fn insert(&self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        self.words.get(index / 64).is_none_or(|word| word.fetch_or(bit, Ordering::SeqCst) & bit != 0)
    }

    /// Takes `index` out; whether it was in the set.
    pub fn remove(&self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        self.words.get(index / 64).is_some_and(|word| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }

    /// The numbers in the set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(n, word)| {
            let word = word.load(Ordering::SeqCst);
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| n * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set() {
        let bits = AtomicBits::new(130);
        assert!(!bits.insert(129));
        assert!(bits.insert(129));
        assert!(!bits.insert(3));
        assert!(bits.get(3) && !bits.get(4) && !bits.get(5000));
        assert_eq!(bits.iter().collect::<Vec<_>>(), [3, 129]);
        assert!(bits.remove(3) && !bits.remove(3));
        assert!(bits.insert(5000), "out of range is never new");
    }
}
