//! How soon a VM that resets itself or crashes starts again, and when no more (issue 7, row 10): to start a guest costs
//! the host tens of milliseconds of copying, which no guest's time pays for.

use hv_defs::Nanos;

/// Restarts within the window that can be configured at most: each is remembered.
pub const MAX_RESTARTS: u32 = 100;
/// The first wait.
const SHORTEST: u64 = 10_000_000;
/// The longest: each wait is twice the last one up to this.
const LONGEST: u64 = 10_000_000_000;
/// Least time between two whole crash reports of a VM.
const REPORT_EVERY: u64 = 10_000_000_000;

/// How often a VM may start again by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestartPolicy {
    /// Restarts within `window`; one more ends the VM.
    pub limit: u32,
    /// A run that is longer than this starts the count and the waits anew.
    pub window: Nanos,
}

/// What follows when a VM wants to start again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It does, then.
    At(Nanos),
    /// It does not.
    Enough,
}

/// The restarts of a VM that its guest caused.
pub(super) struct Restarts {
    policy: RestartPolicy,
    /// When the last ones were asked for: a ring.
    recent: [Option<Nanos>; MAX_RESTARTS as usize],
    next: usize,
    /// The next wait.
    wait: u64,
    began: Nanos,
    report_after: Option<Nanos>,
}

impl Restarts {
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            recent: [None; MAX_RESTARTS as usize],
            next: 0,
            wait: SHORTEST,
            began: Nanos(0),
            report_after: None,
        }
    }

    /// The guest wants to start again.
    pub fn ask(&mut self, now: Nanos) -> Verdict {
        let window = self.policy.window.0;
        if now.0.saturating_sub(self.began.0) > window {
            self.forget();
        }
        let is_recent = |at: &&Nanos| now.0.saturating_sub(at.0) <= window;
        if self.recent.iter().flatten().filter(is_recent).count() >= self.policy.limit as usize {
            return Verdict::Enough;
        }
        if let Some(slot) = self.recent.get_mut(self.next) {
            *slot = Some(now);
        }
        self.next = (self.next + 1) % self.recent.len();
        let wait = self.wait;
        self.wait = wait.saturating_mul(2).min(LONGEST);
        Verdict::At(Nanos(now.0.saturating_add(wait)))
    }

    /// A life begins.
    pub fn begun(&mut self, now: Nanos) {
        self.began = now;
    }

    /// As if it had never started again: it ran well for long, or the user starts it.
    pub fn forget(&mut self) {
        self.recent = [None; MAX_RESTARTS as usize];
        self.wait = SHORTEST;
        self.report_after = None;
    }

    /// Whether a crash is reported in full: one is in ten seconds.
    pub fn take_report(&mut self, now: Nanos) -> bool {
        let due = self.report_after.is_none_or(|after| now >= after);
        if due {
            self.report_after = Some(Nanos(now.0.saturating_add(REPORT_EVERY)));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn restarts(limit: u32, seconds: u64) -> Restarts {
        Restarts::new(RestartPolicy { limit, window: Nanos(seconds * SECOND) })
    }

    /// Asks as soon as it runs again; when each run begins, until it is enough.
    fn again_and_again(restarts: &mut Restarts, from: u64, most: usize) -> Vec<u64> {
        let mut now = from;
        let mut starts = Vec::new();
        while let Verdict::At(at) = restarts.ask(Nanos(now))
            && starts.len() < most
        {
            assert!(at.0 > now);
            now = at.0;
            restarts.begun(at);
            starts.push(now - from);
        }
        starts
    }

    #[test]
    fn waits_double_up_to_ten_seconds() {
        let starts = again_and_again(&mut restarts(MAX_RESTARTS, 3600), 0, 14);
        let waits: Vec<u64> = starts.iter().zip([&0].into_iter().chain(&starts)).map(|(to, from)| to - from).collect();
        let expected = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_000, 10_000, 10_000, 10_000];
        assert_eq!(waits, expected.map(|wait| wait * 1_000_000));
    }

    #[test]
    fn one_more_than_the_limit_within_the_window_is_enough() {
        let mut all = restarts(10, 60);
        assert_eq!(again_and_again(&mut all, 5, 1000).len(), 10);
        assert_eq!(all.ask(Nanos(6 * SECOND)), Verdict::Enough, "and stays so");
        assert_eq!(restarts(0, 60).ask(Nanos(0)), Verdict::Enough);
        // One restart in seven seconds never comes to ten in a minute; one in five does.
        for (every, ends) in [(7, false), (5, true)] {
            let mut all = restarts(10, 60);
            let last = (1..100).find(|n| {
                let now = Nanos(n * every * SECOND);
                all.begun(now);
                all.ask(now) == Verdict::Enough
            });
            assert_eq!(last, ends.then_some(11), "one in {every} s");
        }
    }

    #[test]
    fn a_long_run_and_the_user_reset_the_back_off() {
        let mut all = restarts(3, 60);
        assert_eq!(again_and_again(&mut all, 0, 1000).len(), 3);
        all.begun(Nanos(SECOND));
        let ask = |all: &mut Restarts, now: u64| match all.ask(Nanos(now)) {
            Verdict::At(at) => at.0 - now,
            Verdict::Enough => 0,
        };
        assert_eq!(ask(&mut all, 61 * SECOND), 8 * SHORTEST, "after a run as long as the window");
        assert_eq!(ask(&mut all, 61 * SECOND + 1), SHORTEST, "after a longer one");
        assert_eq!(ask(&mut all, 61 * SECOND + 2), SHORTEST);
        all.begun(Nanos(61 * SECOND + 3));
        assert_eq!(ask(&mut all, 61 * SECOND + 4), 2 * SHORTEST);
        all.forget();
        assert_eq!(ask(&mut all, 62 * SECOND), SHORTEST, "the user starts it");
    }

    #[test]
    fn reports_are_limited_by_time() {
        let mut all = restarts(10, 60);
        let reports = (0..300).filter(|n| all.take_report(Nanos(n * SECOND / 10))).count();
        assert_eq!(reports, 3, "in 30 seconds");
        all.forget();
        assert!(all.take_report(Nanos(30 * SECOND)));
    }
}
