//! Which frames of a VM's RAM hold nothing of anybody else (design D21). What was there before Prism started, another
//! guest's memory after a warm restart, say, is zeroed frame by frame, when the VM first gets at it.

use core::ops::Range;

use hv_defs::PAGE_SIZE;
use spin::Mutex;

use super::bits::AtomicBits;
use crate::phys::Window;

/// The frames of a VM that are clean, by number. Read without a lock.
pub(super) struct Clean {
    frames: AtomicBits,
    /// Whoever fills a frame that is not yet clean holds it, so that nobody zeroes what another has stored.
    filling: Mutex<()>,
}

impl Clean {
    /// None of `frames` frames is.
    pub fn new(frames: usize) -> Self {
        Self { frames: AtomicBits::new(frames), filling: Mutex::new(()) }
    }

    /// Whether this frame is.
    pub fn contains(&self, index: usize) -> bool {
        self.frames.get(index)
    }

    /// How many frames in a row are, from `first` on, of `most`.
    pub fn run(&self, first: usize, most: usize) -> usize {
        (first..first.saturating_add(most)).take_while(|index| self.frames.get(*index)).count()
    }

    /// Cleans the frames `which` of `window`, whose first frame has the number `first`.
    pub fn make(&self, window: Window, first: usize, which: Range<u64>) {
        for frame in which {
            if !self.frames.get(first.saturating_add(frame as usize)) {
                self.zero(window, first, frame);
            }
        }
    }

    #[cold]
    fn zero(&self, window: Window, first: usize, frame: u64) {
        let index = first.saturating_add(frame as usize);
        let _filling = self.filling.lock();
        if !self.frames.get(index) && window.zero(frame * PAGE_SIZE, PAGE_SIZE).is_ok() {
            self.frames.insert(index);
        }
    }

    /// Runs `store`, which overwrites the frames `which` whole: none need be zeroed first.
    pub fn overwrite<R>(&self, first: usize, which: Range<u64>, store: impl FnOnce() -> R) -> R {
        let frames = first.saturating_add(which.start as usize)..first.saturating_add(which.end as usize);
        if self.run(frames.start, frames.len()) == frames.len() {
            return store();
        }
        let _filling = self.filling.lock();
        let result = store();
        for index in frames {
            self.frames.insert(index);
        }
        result
    }
}
