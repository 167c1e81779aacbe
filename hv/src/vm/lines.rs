//! How often a guest can make Prism say something: a guest that breaks rules in a loop must not fill the log, nor the
//! console's room for what is said of others.

use hv_defs::Nanos;

/// Lines at once.
const BURST: u64 = 256;
/// Time for one more.
const EVERY: u64 = 200_000_000;

/// What a guest has left to make Prism say.
pub(super) struct Lines {
    left: u64,
    /// When the last one was added.
    since: Nanos,
    held: u64,
}

impl Lines {
    pub const fn new() -> Self {
        Self { left: BURST, since: Nanos(0), held: 0 }
    }

    /// Whether a line may be said now: then, how many were held back before it.
    pub fn ask(&mut self, now: Nanos) -> Option<u64> {
        let earned = now.0.saturating_sub(self.since.0) / EVERY;
        self.left = self.left.saturating_add(earned).min(BURST);
        self.since = Nanos(self.since.0.saturating_add(earned.saturating_mul(EVERY)));
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(self.take_held())
            }
            None => {
                self.held += 1;
                None
            }
        }
    }

    /// How many were held back since that was last told.
    pub const fn take_held(&mut self) -> u64 {
        core::mem::replace(&mut self.held, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_says_little_and_tells_of_the_rest() {
        let mut lines = Lines::new();
        let asked = 60_000;
        let said: Vec<u64> = (0..asked).filter_map(|n| lines.ask(Nanos(EVERY * 5 + n * EVERY / 1000))).collect();
        assert_eq!(said.len() as u64, BURST + 59);
        assert_eq!(said[..256], [0; 256]);
        assert_eq!(said.len() as u64 + said.iter().sum::<u64>() + lines.take_held(), asked, "each is said or counted");
        assert_eq!((lines.ask(Nanos(1000 * EVERY)), lines.left), (Some(0), BURST - 1), "after a long silence");
        assert_eq!(lines.ask(Nanos(0)), Some(0), "a clock that another CPU read later");
    }
}
