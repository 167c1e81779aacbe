//! Holds a machine that resets itself until its registers are read: the emulator would end, and they with it.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::autopsy::{self, Monitor};
use crate::error::Result;

/// The emulator's second monitor, in the run's folder.
pub const SOCKET: &str = "watch.sock";

/// How long the emulator may take to make its socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// Watches the machine whose folder this is. What it finds at a reset is there when the emulator has ended.
pub fn start(dir: &Path, emulator: u32) -> JoinHandle<Option<String>> {
    let dir = PathBuf::from(dir);
    std::thread::spawn(move || watch(connect(&dir, emulator)?).ok().flatten())
}

fn connect(dir: &Path, emulator: u32) -> Option<Monitor> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && Path::new(&format!("/proc/{emulator}")).exists() {
        if let Ok(monitor) = Monitor::connect(dir, SOCKET) {
            return Some(monitor);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// From here on, an end of what runs only stops the emulator, which tells us, and which we then end. Its exit status is
/// what the exit device was given, or 0.
fn watch(mut monitor: Monitor) -> Result<Option<String>> {
    // First: an emulator that is slow to answer has heard it all the same.
    monitor.wait_long()?;
    monitor.ask("set-action", &json!({ "shutdown": "pause" }))?;
    let reason = loop {
        let event: Value = serde_json::from_str(&monitor.line()?).unwrap_or_default();
        if event["event"] == "SHUTDOWN" {
            break event["data"]["reason"].as_str().unwrap_or_default().to_owned();
        }
    };
    let found = if reason == "guest-reset" { autopsy::registers(&mut monitor).ok() } else { None };
    // It may be gone before it answers.
    let _ = monitor.ask("quit", &json!({}));
    Ok(found.map(|registers| format!("the machine was reset; registers then:\n{registers}")))
}
