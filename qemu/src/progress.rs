//! What the user sees while something takes time: one line that moves on a terminal, two lines in a log.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// One download.
#[derive(Debug)]
pub struct Progress {
    what: String,
    bytes: Option<u64>,
    started: Instant,
    drawn: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins to show `what`, a job of so many bytes where that is known beforehand.
    pub fn start(what: &str, bytes: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            let size = bytes.map_or_else(String::new, |b| format!(" ({})", megabytes(b)));
            eprintln!("{what}{size} ...");
        }
        Self { what: what.into(), bytes, started: Instant::now(), drawn: None, terminal }
    }

    /// Shows that `permille` of the job is done.
    pub fn update(&mut self, permille: u64) {
        let pause = Duration::from_millis(100);
        if !self.terminal || self.drawn.is_some_and(|t| t.elapsed() < pause) {
            return;
        }
        self.drawn = Some(Instant::now());
        let part = |all: u64| megabytes(all.saturating_mul(permille) / 1000);
        let size = self.bytes.map_or_else(String::new, |all| format!("{} of {}, ", part(all), megabytes(all)));
        eprint!("\r\x1b[K{}: {size}{} %", self.what, permille / 10);
        let _ = std::io::stderr().flush();
    }

    /// Ends the line.
    pub fn finish(self) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let size = self.bytes.map_or_else(String::new, |b| format!("{} in ", megabytes(b)));
        let seconds = self.started.elapsed().as_secs_f32();
        eprintln!("{start}{}: done, {size}{seconds:.1} s", self.what);
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
