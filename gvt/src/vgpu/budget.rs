//! How much of Prism's time a vGPU's interrupts may take while others want it: a tenth of a CPU. It is counted in units
//! (`crate::units`), which are microseconds on metal. Whoever has used up his part gets what comes next in one message.

use gvt_defs::{Engine, EngineMask, Nanos};

/// One part in so many of a CPU's time.
const PART: u64 = 10;
/// Nanoseconds of a unit.
const UNIT: i64 = 1_000;
/// What is not used is kept up to this much, and what is used too much is owed up to this much: a millisecond's part.
const BURST: i64 = 1_000_000 / PART as i64;
/// How long events are held back: with what a timer may be late, less than the millisecond that is promised.
const HELD: u64 = 500_000;
/// To leave a guest for an interrupt, and to come back to it, in units. Nothing else counts that.
pub(crate) const ENTRY: u32 = 2;

/// One vGPU's part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Nanoseconds of Prism's time that are left.
    left: i64,
    /// When that was so.
    counted: Nanos,
    /// Since when events are held back.
    held: Option<Nanos>,
    /// Engines that may have had some since: what is masked leaves no trace.
    engines: EngineMask,
}

/// Whether a vGPU has time left.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Balance {
    Left,
    Spent,
}

impl Budget {
    pub(crate) const fn new(now: Nanos) -> Self {
        Self { left: BURST, counted: now, held: None, engines: EngineMask::NONE }
    }

    /// Interrupts took this many units until now.
    pub(crate) fn take(&mut self, units: u32, now: Nanos) -> Balance {
        let passed = now.0.saturating_sub(self.counted.0) / PART;
        self.counted = self.counted.max(now);
        let filled = self.left.saturating_add_unsigned(passed).min(BURST);
        self.left = filled.saturating_sub(i64::from(units) * UNIT).max(-BURST);
        if self.left > 0 { Balance::Left } else { Balance::Spent }
    }

    /// Events are held back from now on.
    pub(crate) fn hold_back(&mut self, now: Nanos) {
        self.held = Some(now);
    }

    /// Whether they are.
    pub(crate) fn holds_back(&self) -> bool {
        self.held.is_some()
    }

    /// An engine whose events are held back is the vGPU's.
    pub(crate) fn hide(&mut self, engine: Engine) {
        self.engines = self.engines.or(engine.mask());
    }

    /// Whether an engine may have had an event that is held back.
    pub(crate) fn hides(&self, engine: Engine) -> bool {
        self.held.is_some() && self.engines.has(engine)
    }

    /// Until when events are held back.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.held.map(|since| Nanos(since.0.saturating_add(HELD)))
    }

    /// Events are held back no longer; gives the engines that may have had some.
    pub(crate) fn let_go(&mut self) -> EngineMask {
        self.held = None;
        core::mem::replace(&mut self.engines, EngineMask::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_and_no_more() {
        let mut budget = Budget::new(Nanos(0));
        assert_eq!(budget.take(99, Nanos(0)), Balance::Left);
        assert_eq!(budget.take(1, Nanos(0)), Balance::Spent);
        assert_eq!(budget.take(10, Nanos(100_000)), Balance::Spent);
        assert_eq!(budget.take(9, Nanos(200_000)), Balance::Left);
        // Neither what is kept nor what is owed grows for ever.
        assert_eq!(budget.take(100, Nanos(10_000_000_000)), Balance::Spent);
        assert_eq!(budget.take(u32::MAX, Nanos(10_000_000_000)), Balance::Spent);
        assert_eq!(budget.take(0, Nanos(10_001_000_000)), Balance::Spent);
        assert_eq!(budget.take(0, Nanos(10_001_000_010)), Balance::Left);
    }
}
