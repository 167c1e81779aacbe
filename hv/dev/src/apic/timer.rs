//! The local APIC's timer (SDM Vol. 3A, 11.5.4). It counts on demand: nothing runs between two looks at it.

use hv_defs::Nanos;

/// Shortest period that is honoured (issue 7, row 10). A periodic timer of a few nanoseconds would leave the CPU no time
/// for the guest.
const MIN_PERIOD_NS: u64 = 100_000;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// When the timer fires next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deadline {
    /// At this host time.
    At(Nanos),
    /// When the guest's TSC reaches this value.
    Tsc(u64),
}

/// Timer mode: bits 18:17 of the LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum TimerMode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    pub(super) fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            // 3 is reserved; real CPUs treat it as they please.
            _ => Self::TscDeadline,
        }
    }
}

#[derive(Clone, Default, Debug)]
pub(super) struct Timer {
    hz: u32,
    mode: TimerMode,
    divide: u32,
    initial: u32,
    /// When the current count began; meaningful while `initial` is not 0.
    start: Nanos,
    running: bool,
    tsc_deadline: u64,
}

impl Timer {
    pub(super) fn new(hz: u32) -> Self {
        Self { hz: hz.max(1), ..Self::default() }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.hz);
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        let crosses = (mode == TimerMode::TscDeadline) != (self.mode == TimerMode::TscDeadline);
        if crosses {
            (self.initial, self.running, self.tsc_deadline) = (0, false, 0);
        }
        self.mode = mode;
    }

    pub(super) fn set_initial(&mut self, value: u32, now: Nanos) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        (self.initial, self.start, self.running) = (value, now, value != 0);
    }

    pub(super) fn set_divide(&mut self, value: u32, now: Nanos) {
        let elapsed = self.elapsed_ticks(now);
        self.divide = value & 0xB;
        // The count goes on from where it stood, at the new pace.
        self.start = Nanos(now.0.saturating_sub(self.ticks_to_ns(elapsed)));
    }

    pub(super) fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    pub(super) fn current(&self, now: Nanos) -> u32 {
        if !self.running || self.initial == 0 {
            return 0;
        }
        let elapsed = self.elapsed_ticks(now);
        let initial = u64::from(self.initial);
        let left = match self.mode {
            TimerMode::Periodic => initial - elapsed % initial,
            _ => initial.saturating_sub(elapsed),
        };
        left as u32
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        if self.mode == TimerMode::TscDeadline {
            return (self.tsc_deadline != 0).then_some(Deadline::Tsc(self.tsc_deadline));
        }
        self.running.then(|| Deadline::At(Nanos(self.start.0.saturating_add(self.period_ns()))))
    }

    /// Whether the timer has come due; it then is disarmed or set to its next period.
    pub(super) fn expire(&mut self, now: Nanos, tsc: u64) -> bool {
        match self.deadline() {
            Some(Deadline::Tsc(at)) if tsc >= at => {
                self.tsc_deadline = 0;
                true
            }
            Some(Deadline::At(at)) if now >= at => {
                self.advance(now);
                true
            }
            _ => false,
        }
    }

    /// Missed periods are dropped: the pending bit of a vector could not hold them anyway.
    fn advance(&mut self, now: Nanos) {
        if self.mode == TimerMode::Periodic {
            let period = self.period_ns();
            let passed = now.0.saturating_sub(self.start.0) / period;
            self.start = Nanos(self.start.0.saturating_add(passed.saturating_mul(period)));
        } else {
            self.running = false;
        }
    }

    fn divisor(&self) -> u64 {
        // Divide configuration: bits 3, 1, 0; 111 divides by 1, others by 2, 4 .. 128.
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        1 << ((code + 1) & 7)
    }

    fn period_ns(&self) -> u64 {
        let ns = self.ticks_to_ns(u64::from(self.initial)).max(1);
        if self.mode == TimerMode::Periodic { ns.max(MIN_PERIOD_NS) } else { ns }
    }

    fn ticks_to_ns(&self, ticks: u64) -> u64 {
        let ns = u128::from(ticks) * u128::from(self.divisor()) * NANOS_PER_SECOND;
        u64::try_from(ns.div_ceil(u128::from(self.hz))).unwrap_or(u64::MAX)
    }

    fn elapsed_ticks(&self, now: Nanos) -> u64 {
        let ns = u128::from(now.0.saturating_sub(self.start.0));
        let ticks = ns * u128::from(self.hz) / NANOS_PER_SECOND / u128::from(self.divisor());
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}
