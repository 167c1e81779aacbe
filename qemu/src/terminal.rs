//! The user's terminal as the machine's serial line.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::Result;
use crate::machine::{Outcome, Running};

/// Ctrl-]: Prism's console takes what follows as a command, and so do we for one letter.
const ESCAPE: u8 = 0x1d;

/// Prism's monitor, and its command that prints all counts.
const COUNTS: &[u8] = b"mstats\r";

/// Connects the terminal until the machine or the user ends the run, or `limit` has passed.
pub fn attach(mut machine: Running, limit: Duration) -> Result<Outcome> {
    let raw = Raw::enter();
    let quit = Arc::new(AtomicBool::new(false));
    if let Some(input) = machine.take_input() {
        let quit = quit.clone();
        std::thread::spawn(move || forward(input, &quit));
    }
    let deadline = Instant::now() + limit;
    while machine.is_alive() && !quit.load(Ordering::Relaxed) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    if quit.load(Ordering::Relaxed) {
        machine.hush();
        machine.settle(Duration::from_millis(300), Duration::from_secs(3));
    }
    // One that ended by itself has its status collected at once; another is killed.
    let outcome = machine.wait(Duration::ZERO);
    drop(raw);
    outcome
}

/// Copies standard input to the serial line; `Ctrl-] q` ends the run.
fn forward(mut input: File, quit: &AtomicBool) {
    let mut escaped = false;
    let mut byte = [0];
    let mut stdin = std::io::stdin().lock();
    while let Ok(1) = stdin.read(&mut byte) {
        if escaped && byte == [b'q'] {
            // Ctrl-] has been sent: `m` makes it the monitor's, which is asked for the counts of the final table.
            let _ = input.write_all(COUNTS).and_then(|()| input.flush());
            quit.store(true, Ordering::Relaxed);
            return;
        }
        escaped = byte == [ESCAPE];
        if input.write_all(&byte).and_then(|()| input.flush()).is_err() {
            return;
        }
    }
    // The line stays open: its end is no news for the machine.
    std::mem::forget(input);
}

/// The terminal in raw mode; dropped, it is as it was.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output keeps its line ends: our own messages have plain ones.
        raw.output_modes = before.output_modes;
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}
