//! What the user sees while something takes time: one line that moves on a terminal, two lines in a log.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// One job of known size in bytes.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u64,
    started: Instant,
    drawn: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins to show `what`; `total` bytes are expected (0 if unknown).
    pub fn start(what: &str, total: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            eprintln!("{what} ({}) ...", megabytes(total));
        }
        Self {
            what: what.into(),
            total,
            started: Instant::now(),
            drawn: None,
            terminal,
        }
    }

    /// Shows that `permille` of the job is done.
    pub fn update(&mut self, permille: u64) {
        let pause = Duration::from_millis(100);
        if !self.terminal || self.drawn.is_some_and(|t| t.elapsed() < pause) {
            return;
        }
        self.drawn = Some(Instant::now());
        let done = self.total.saturating_mul(permille) / 1000;
        eprint!(
            "\r\x1b[K{}: {} of {} ({} %)",
            self.what,
            megabytes(done),
            megabytes(self.total),
            permille / 10
        );
        let _ = std::io::stderr().flush();
    }

    /// Ends the line.
    pub fn finish(self) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let seconds = self.started.elapsed().as_secs_f32();
        eprintln!(
            "{start}{}: done, {} in {seconds:.1} s",
            self.what,
            megabytes(self.total)
        );
    }

    /// Clears the line, for an error to follow.
    pub fn abandon(self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
