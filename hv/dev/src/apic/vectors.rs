//! Sets of the 256 interrupt vectors: plain, and atomic.

use crate::sync::{AtomicU64, Ordering};

/// 256 bits, one a vector.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VectorSet(pub [u64; 4]);

const fn bit(vector: u8) -> u64 {
    1 << (vector & 63)
}

impl VectorSet {
    fn word(&mut self, vector: u8) -> Option<&mut u64> {
        self.0.get_mut(usize::from(vector >> 6))
    }

    pub(super) fn insert(&mut self, vector: u8) {
        if let Some(word) = self.word(vector) {
            *word |= bit(vector);
        }
    }

    pub(super) fn remove(&mut self, vector: u8) {
        if let Some(word) = self.word(vector) {
            *word &= !bit(vector);
        }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0.get(usize::from(vector >> 6)).is_some_and(|word| word & bit(vector) != 0)
    }

    /// The vector of the highest priority.
    pub fn highest(&self) -> Option<u8> {
        let (index, word) = (0u8..).zip(self.0).filter(|(_, word)| *word != 0).last()?;
        Some(index * 64 + (63 - word.leading_zeros() as u8))
    }

    /// Number of vectors.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The 32 vectors from `32 * index` on, as IRR, ISR and TMR show them.
    pub(super) fn dword(&self, index: u8) -> u32 {
        let word = self.0.get(usize::from(index >> 1)).copied().unwrap_or(0);
        (word >> (32 * u32::from(index & 1))) as u32
    }

    /// Adds 64 vectors at once.
    pub(super) fn merge(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.0.get_mut(index) {
            *word |= bits;
        }
    }

    /// Takes 64 vectors out at once.
    pub(super) fn strip(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.0.get_mut(index) {
            *word &= !bits;
        }
    }
}

/// 256 bits that any CPU may set.
#[derive(Default, Debug)]
pub(super) struct AtomicVectorSet([AtomicU64; 4]);

impl AtomicVectorSet {
    pub(super) fn insert(&self, vector: u8) {
        if let Some(word) = self.0.get(usize::from(vector >> 6)) {
            word.fetch_or(bit(vector), Ordering::AcqRel);
        }
    }

    pub(super) fn remove(&self, vector: u8) {
        if let Some(word) = self.0.get(usize::from(vector >> 6)) {
            word.fetch_and(!bit(vector), Ordering::AcqRel);
        }
    }

    /// Removes and yields word `index`.
    pub(super) fn take(&self, index: usize) -> u64 {
        match self.0.get(index) {
            // A plain load first: most words are empty and a swap would dirty the line.
            Some(word) if word.load(Ordering::Acquire) != 0 => word.swap(0, Ordering::AcqRel),
            _ => 0,
        }
    }

    /// Word `index`, left as it is.
    pub(super) fn peek(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// Number of 64-bit words in a set.
pub(super) const WORDS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_is_found() {
        let mut set = VectorSet::default();
        assert_eq!(set.highest(), None);
        for vector in 0..=255 {
            set.insert(vector);
            assert_eq!(set.highest(), Some(vector));
            assert!(set.contains(vector));
        }
        for vector in (1..=255).rev() {
            set.remove(vector);
            assert_eq!(set.highest(), Some(vector - 1));
        }
    }

    #[test]
    fn dwords_show_the_architectural_layout() {
        let mut set = VectorSet::default();
        set.insert(0x21);
        set.insert(0xFF);
        assert_eq!((set.dword(0), set.dword(1), set.dword(7)), (0, 2, 0x8000_0000));
    }
}
