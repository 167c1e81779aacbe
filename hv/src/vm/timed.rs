//! A device behind its lock, and when it wants to be called, which anybody may read without the lock.

use hv_defs::Nanos;
use spin::Mutex;

use crate::sync::{AtomicU64, Ordering};

const NEVER: u64 = u64::MAX;

pub(crate) struct Timed<T> {
    device: Mutex<T>,
    deadline: AtomicU64,
}

impl<T> Timed<T> {
    pub fn new(device: T) -> Self {
        Self { device: Mutex::new(device), deadline: AtomicU64::new(NEVER) }
    }

    /// Runs `action`, then publishes what `deadline` yields. True if that is sooner than before: whoever waits for it
    /// must be told.
    pub fn with<R>(&self, action: impl FnOnce(&mut T) -> R, deadline: impl FnOnce(&T) -> Option<Nanos>) -> (R, bool) {
        let mut device = self.device.lock();
        let result = action(&mut device);
        let deadline = deadline(&device).map_or(NEVER, |deadline| deadline.0);
        // Under the lock, or a CPU that was here first could replace the deadline of one that came later.
        let before = self.deadline.swap(deadline, Ordering::AcqRel);
        (result, deadline < before)
    }

    /// The deadline published last.
    pub fn deadline(&self) -> Option<Nanos> {
        let deadline = self.deadline.load(Ordering::Acquire);
        (deadline != NEVER).then_some(Nanos(deadline))
    }
}
