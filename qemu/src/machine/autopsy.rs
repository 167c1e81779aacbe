//! What a machine is doing when its time is up: asked of the emulator, of the host's kernel, and of the GPU process,
//! for somebody who has only the log of a failed test.

use std::fs::{File, read_dir, read_to_string};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::command;
use crate::error::{Context, Error, Result};

/// The emulator's monitor, in the run's folder.
pub const MONITOR: &str = "monitor.sock";
/// Where the findings go, in the run's folder.
pub const REPORT: &str = "autopsy.log";

/// An emulator whose main loop is stuck answers nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is asked of the emulator. Code and stack are those of its first CPU.
const QUESTIONS: [&str; 6] = ["info status", "info registers -a", "info lapic", "info pic", "x/12i $pc", "x/40gx $sp"];
/// Registers that tell nothing about a machine that does not go on.
const NOISE: [&str; 6] = ["FCW", "FPR", "XMM", "YMM", "Opmask", "ZMM"];
/// The most lines taken from the end of a log.
const LOG_LINES: usize = 80;

/// Looks at a machine that still runs. An emulator with a monitor is also told to send an interrupt that the guest's
/// kernel cannot mask: one that takes it for the reason to panic then says itself, on the serial line, where it was.
pub fn examine(dir: &Path, emulator: &Child, gpu: Option<&Child>) -> String {
    let mut text = threads("emulator", emulator.id());
    if let Some(gpu) = gpu {
        text.push_str(&threads("GPU process", gpu.id()));
        text.push_str(&ask_gpu(dir, gpu.id()));
    }
    if dir.join(MONITOR).exists() {
        text.push_str(&ask_emulator(dir).unwrap_or_else(|error| format!("{error}\n")));
    }
    text.push_str(&tail(dir, command::EMULATOR_LOG));
    text
}

/// Each thread: whether it runs, how much it did in a tenth of a second, what it waits for in the host's kernel.
fn threads(name: &str, pid: u32) -> String {
    let tasks: Vec<_> = read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().collect();
    let times = || tasks.iter().map(|task| field(&task.path(), 11) + field(&task.path(), 12)).collect::<Vec<u64>>();
    let before = times();
    std::thread::sleep(Duration::from_millis(100));
    let mut text = String::new();
    for ((task, before), after) in tasks.iter().zip(before).zip(times()) {
        let read = |file: &str| read_to_string(task.path().join(file)).unwrap_or_default().trim().to_owned();
        let (thread, wait, call) = (read("comm"), read("wchan"), read("syscall"));
        let ran = after.saturating_sub(before);
        text.push_str(&format!("{name}, thread {thread}: {ran} of 10 ticks, {after} in all; in {wait}; {call}\n"));
    }
    text
}

/// A number of `/proc/PID/task/TID/stat`, counted from the one after the name.
fn field(task: &Path, index: usize) -> u64 {
    let stat = read_to_string(task.join("stat")).unwrap_or_default();
    // The name in parentheses may hold spaces.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').nth(index).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// The GPU process says on stderr where it is; if it does not, it is that which hangs.
fn ask_gpu(dir: &Path, pid: u32) -> String {
    let before = tail(dir, "gpu.log");
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return before;
    };
    let asked = kill_process(pid, Signal::USR2);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let now = tail(dir, "gpu.log");
        if asked.is_err() || now != before {
            return now;
        }
    }
    format!("{before}the GPU process does not answer\n")
}

/// The kernel's last words without the threads that only wait for work: who reads this has a log of bounded length.
pub fn telling(words: &str) -> String {
    const IDLE: [&str; 5] = ["rescuer_thread", "worker_thread", "smpboot_thread_fn", "kthreadd+", " kthread_worker_fn"];
    let mut pieces = vec![String::new()];
    for line in words.lines() {
        if line.contains("task:") {
            pieces.push(String::new());
        }
        let Some(piece) = pieces.last_mut() else { continue };
        *piece += line;
        *piece += "\n";
    }
    pieces.retain(|piece| !IDLE.iter().any(|word| piece.contains(word) && !piece.contains("process_one_work+")));
    pieces.concat()
}

fn ask_emulator(dir: &Path) -> Result<String> {
    let mut monitor = Monitor::connect(dir, MONITOR)?;
    let text = answers(&mut monitor, &QUESTIONS)?;
    monitor.ask("inject-nmi", &json!({}))?;
    Ok(text)
}

/// The registers of every CPU.
pub fn registers(monitor: &mut Monitor) -> Result<String> {
    answers(monitor, &["info registers -a"])
}

fn answers(monitor: &mut Monitor, questions: &[&str]) -> Result<String> {
    let mut text = String::new();
    for question in questions {
        let answer = monitor.ask("human-monitor-command", &json!({ "command-line": question }))?;
        text.push_str(&format!("{question}:\n"));
        let noise = |line: &&str| NOISE.iter().any(|register| line.starts_with(register));
        for line in answer.as_str().unwrap_or_default().lines().filter(|line| !noise(line)) {
            text.push_str(&format!("{}\n", line.trim_end()));
        }
    }
    Ok(text)
}

/// A connection to the emulator's monitor (QMP).
pub struct Monitor {
    replies: BufReader<UnixStream>,
}

impl Monitor {
    /// By the socket of this name in the run's folder.
    pub fn connect(dir: &Path, name: &str) -> Result<Self> {
        let silent = || "the emulator's monitor".into();
        // By way of the folder's descriptor: the address of a socket has room for a short path only.
        let folder = File::open(dir).context(silent)?;
        let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
        let socket = UnixStream::connect(path).context(silent)?;
        socket.set_read_timeout(Some(PATIENCE)).context(silent)?;
        socket.set_write_timeout(Some(PATIENCE)).context(silent)?;
        let mut monitor = Self { replies: BufReader::new(socket) };
        monitor.line()?;
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// From now on, a line may take as long as it likes.
    pub fn wait_long(&self) -> Result<()> {
        self.replies.get_ref().set_read_timeout(None).context(|| "the emulator's monitor".into())
    }

    /// The answer to one command; events before it are lost.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let silent = || format!("the emulator's monitor, asked for {command}");
        writeln!(self.replies.get_mut(), "{request}").context(silent)?;
        loop {
            let mut reply: Value = serde_json::from_str(&self.line()?).context(silent)?;
            // Events come in between.
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                return Err(Error::new(format!("{}: {error}", silent())));
            }
        }
    }

    /// The next line, an answer or an event.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.replies.read_line(&mut line) {
            Ok(1..) => Ok(line),
            Ok(0) => Err(Error::new("the emulator's monitor closed")),
            Err(_) => Err(Error::new("the emulator's monitor does not answer: its main loop is stuck")),
        }
    }
}

fn tail(dir: &Path, name: &str) -> String {
    let log = read_to_string(dir.join(name)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
    format!("{name}:\n{}\n", tail.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_kernel_threads_are_left_out() {
        let task = |name: &str, call: &str| format!("[ 5.9] task:{name} state:S\n[ 5.9]  {call}+0x1/0x2\n");
        let (head, init) = ("[ 5.9] Kernel panic\n", task("init", "do_wait"));
        let (idle, busy) = (task("kworker/0:1", "worker_thread"), task("kworker/0:2", "process_one_work"));
        let busy = busy + "[ 5.9]  worker_thread+0x1/0x2\n";
        assert_eq!(telling(&format!("{head}{init}{idle}{busy}")), format!("{head}{init}{busy}"));
    }
}
