//! A bitmap of free frames in three levels.

/// Bits in a word, and so words below a bit of the next level.
const BITS: u64 = 64;

/// Words that a bitmap of `frames` frames needs, all levels together.
pub const fn words_for(frames: u64) -> usize {
    let low = frames.div_ceil(BITS);
    let middle = low.div_ceil(BITS);
    (low + middle + middle.div_ceil(BITS)) as usize
}

/// A set bit in `low` is a free frame; a set bit in `middle` or `top` is a word below that is not zero.
pub(super) struct Bitmap<'a> {
    low: &'a mut [u64],
    middle: &'a mut [u64],
    top: &'a mut [u64],
    frames: u64,
    free: u64,
}

impl<'a> Bitmap<'a> {
    /// A bitmap of `frames` frames, none free, in `words`; `None` if those are too few.
    pub(super) fn new(words: &'a mut [u64], frames: u64) -> Option<Self> {
        let words = words.get_mut(..words_for(frames))?;
        words.fill(0);
        let low_len = frames.div_ceil(BITS) as usize;
        let (low, above) = words.split_at_mut_checked(low_len)?;
        let (middle, top) = above.split_at_mut_checked(low_len.div_ceil(BITS as usize))?;
        Some(Self { low, middle, top, frames, free: 0 })
    }

    /// Free frames.
    pub(super) const fn free(&self) -> u64 {
        self.free
    }

    /// Takes the lowest free frame.
    pub(super) fn take_lowest(&mut self) -> Option<u64> {
        let at_top = self.top.iter().position(|&word| word != 0)?;
        let at_middle = at_top * 64 + self.top.get(at_top)?.trailing_zeros() as usize;
        let at_low = at_middle * 64 + self.middle.get(at_middle)?.trailing_zeros() as usize;
        let frame = at_low as u64 * BITS + u64::from(self.low.get(at_low)?.trailing_zeros());
        self.set_used(frame, 1);
        Some(frame)
    }

    /// Makes a run free; frames beyond the end are left out, free ones stay free.
    pub(super) fn set_free(&mut self, first: u64, count: u64) {
        self.for_words(first, count, |map, index, mask| {
            if let Some(word) = map.low.get_mut(index) {
                map.free += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
        });
    }

    /// Takes a run out; frames beyond the end are left out, used ones stay used.
    pub(super) fn set_used(&mut self, first: u64, count: u64) {
        self.for_words(first, count, |map, index, mask| {
            if let Some(word) = map.low.get_mut(index) {
                map.free -= u64::from((mask & *word).count_ones());
                *word &= !mask;
            }
        });
    }

    /// Whether a run lies inside the bitmap and no frame of it is free.
    pub(super) fn all_used(&self, first: u64, count: u64) -> bool {
        let Some(end) = first.checked_add(count) else {
            return false;
        };
        end <= self.frames
            && words(first, end).all(|(index, mask)| self.low.get(index).is_some_and(|word| word & mask == 0))
    }

    /// The lowest run of `count` free frames at a multiple of `align` (a power of two).
    pub(super) fn find_low(&self, count: u64, align: u64) -> Option<u64> {
        let mut first = 0u64;
        loop {
            let end = first.checked_add(count)?;
            if end > self.frames {
                return None;
            }
            match self.last_used(first, end) {
                None => return Some(first),
                Some(used) => first = (used + 1).checked_next_multiple_of(align)?,
            }
        }
    }

    /// The highest run of `count` free frames at a multiple of `align` (a power of two).
    pub(super) fn find_high(&self, count: u64, align: u64) -> Option<u64> {
        let mut first = self.frames.checked_sub(count)? & !(align - 1);
        loop {
            match self.first_used(first, first.checked_add(count)?) {
                None => return Some(first),
                Some(used) => first = used.checked_sub(count)? & !(align - 1),
            }
        }
    }

    fn first_used(&self, first: u64, end: u64) -> Option<u64> {
        words(first, end).find_map(|(index, mask)| {
            let used = mask & !self.low.get(index).copied().unwrap_or(0);
            (used != 0).then(|| index as u64 * BITS + u64::from(used.trailing_zeros()))
        })
    }

    fn last_used(&self, first: u64, end: u64) -> Option<u64> {
        let (low, high) = (first / BITS, end.div_ceil(BITS));
        (low..high).rev().find_map(|index| {
            let mask = mask_within(index, first, end);
            let used = mask & !self.low.get(index as usize).copied().unwrap_or(0);
            (used != 0).then(|| index * BITS + u64::from(used.ilog2()))
        })
    }

    fn for_words(&mut self, first: u64, count: u64, mut change: impl FnMut(&mut Self, usize, u64)) {
        let end = first.saturating_add(count).min(self.frames);
        for (index, mask) in words(first, end) {
            change(self, index, mask);
            self.mark(index);
        }
    }

    /// Carries the state of one low word to the levels above.
    fn mark(&mut self, low: usize) {
        let middle = low / 64;
        set_bit(self.middle, low, self.low.get(low).is_some_and(|&word| word != 0));
        set_bit(self.top, middle, self.middle.get(middle).is_some_and(|&word| word != 0));
    }
}

/// The words that `first..end` touches, each with the mask of its bits inside.
fn words(first: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    let range = if first < end { first / BITS..end.div_ceil(BITS) } else { 0..0 };
    range.map(move |index| (index as usize, mask_within(index, first, end)))
}

fn mask_within(index: u64, first: u64, end: u64) -> u64 {
    let base = index * BITS;
    let from = first.saturating_sub(base).min(BITS);
    let to = end.saturating_sub(base).min(BITS);
    if from >= to { 0 } else { (u64::MAX >> (BITS - (to - from))) << from }
}

fn set_bit(words: &mut [u64], bit: usize, to: bool) {
    if let Some(word) = words.get_mut(bit / 64) {
        let mask = 1 << (bit % 64);
        *word = if to { *word | mask } else { *word & !mask };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(frames: u64) -> Bitmap<'static> {
        Bitmap::new(vec![u64::MAX; words_for(frames)].leak(), frames).unwrap()
    }

    #[test]
    fn starts_with_nothing_free() {
        let mut map = bitmap(5000);
        assert_eq!(map.free(), 0);
        assert_eq!(map.take_lowest(), None);
    }

    #[test]
    fn hands_out_each_frame_once_from_below() {
        let mut map = bitmap(300_000);
        map.set_free(299_990, 100);
        map.set_free(63, 2);
        let taken: Vec<u64> = core::iter::from_fn(|| map.take_lowest()).collect();
        let expected: Vec<u64> = [63, 64].into_iter().chain(299_990..300_000).collect();
        assert_eq!(taken, expected);
        assert_eq!(map.free(), 0);
    }

    #[test]
    fn agrees_with_a_plain_list() {
        // A fixed linear congruential sequence: the same runs at every test.
        let mut seed = 12345u64;
        let mut next = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % bound
        };
        let mut map = bitmap(1000);
        let mut plain = vec![false; 1000];
        for _ in 0..2000 {
            let (first, count) = (next(1000), next(150));
            let to = next(2) == 0;
            let end = (first + count).min(1000) as usize;
            plain[first as usize..end].fill(to);
            if to {
                map.set_free(first, count)
            } else {
                map.set_used(first, count)
            }
            assert_eq!(map.free(), plain.iter().filter(|&&free| free).count() as u64);

            let (count, align) = (1 + next(80), 1 << next(6));
            let fits = |&start: &u64| {
                start % align == 0
                    && plain.get(start as usize..(start + count) as usize).is_some_and(|r| !r.contains(&false))
            };
            assert_eq!(map.find_low(count, align), (0..1000).find(fits));
            assert_eq!(map.find_high(count, align), (0..1000).rev().find(fits));
        }
    }

    #[test]
    fn used_means_inside_and_not_free() {
        let mut map = bitmap(200);
        map.set_free(100, 1);
        assert!(map.all_used(0, 100));
        assert!(!map.all_used(0, 101));
        assert!(!map.all_used(150, 51));
        assert!(!map.all_used(u64::MAX, 2));
    }
}
