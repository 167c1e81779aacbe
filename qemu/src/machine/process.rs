//! A running machine: two processes, the serial line between them and us, and the end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::display::Display;
use super::ram::Ram;
use super::symbols::Symbols;
use super::{Gpu, Kind, Machine, OnReset, Show, autopsy, bochs, command, rings, watch};
use crate::error::{Context, Error, Result, make_dir, remove_dir, write};
use crate::lock::Lock;
use crate::paths;
use crate::provision::{Bochs, Qemu};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The machine powered off, or reset where a reset ends it.
    PowerOff,
    /// What ran wrote this value to the exit device.
    Verdict(u32),
    /// The emulator itself failed with this status.
    Emulator(i32),
    /// A signal ended the emulator.
    Signal,
    /// Time was up; the emulator was killed.
    TimedOut,
}

/// What a run leaves.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// All that came over the serial line.
    pub serial: String,
    /// What the machine was at when its time was up, or when it ended without a word of Prism's.
    pub autopsy: String,
    /// The folder of its logs.
    pub dir: PathBuf,
    /// How long it took.
    pub time: Duration,
}

/// A machine that runs; dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    emulator: Child,
    gpu: Option<Child>,
    input: Option<File>,
    serial: Arc<Serial>,
    dir: PathBuf,
    started: Instant,
    /// What the emulator takes for a screen, if it needs one.
    screen: Option<bochs::Terminal>,
    /// The machine's memory, where it is the runner's.
    ram: Option<Ram>,
    /// Reads the registers when the machine resets itself.
    watch: Option<JoinHandle<Option<String>>>,
    /// What the machine booted.
    image: PathBuf,
    _slots: Vec<Lock>,
}

/// The output of the serial line so far.
#[derive(Debug, Default)]
struct Serial {
    state: Mutex<SerialState>,
    changed: Condvar,
    /// Set when the user is to see no more of it.
    hushed: AtomicBool,
}

#[derive(Debug, Default)]
struct SerialState {
    bytes: Vec<u8>,
    /// Where the next `expect` begins to look.
    seen: usize,
    closed: bool,
}

impl Running {
    pub(super) fn start(machine: Machine) -> Result<Self> {
        // Fetched, where that is due, before others have to wait for this machine.
        let qemu = match (machine.kind, &machine.qemu) {
            (Kind::VmxBochs, _) => Bochs::get().map(|_| None)?,
            (_, Some(qemu)) => Some(qemu.clone()),
            (_, None) => Some(Qemu::get()?),
        };
        let threads = if qemu.is_none() { 1 } else { machine.cpus };
        let (slots, core) = take_slots(threads)?;
        let dir = paths::run(&machine.name);
        remove_dir(&dir)?;
        make_dir(&dir)?;
        if let Some(module) = &machine.module {
            write(&dir.join(command::MODULE), module)?;
        }
        for (name, disk) in command::DISKS.iter().zip(machine.disks.iter().flatten()) {
            write(&dir.join(name), disk)?;
        }
        let gpu = match &machine.gpu {
            Gpu::Model(options) => Some(start_gpu(&dir, options, core)?),
            Gpu::None => None,
        };
        let ram = qemu.as_ref().map(|_| Ram::new(machine.memory_mib)).transpose()?;
        let (mut emulator, wires) = match (qemu, &ram) {
            (None, _) | (_, None) => bochs::prepare(&machine, &dir).map(|(emulator, wires)| (emulator, Some(wires)))?,
            (Some(qemu), Some(ram)) => {
                let mut emulator = command::qemu(&machine, &qemu, ram, &dir);
                emulator.stdin(Stdio::piped()).stdout(Stdio::piped());
                (emulator, None)
            }
        };
        emulator.stderr(log(&dir, command::EMULATOR_LOG)?);
        write(&dir.join("command"), format!("{emulator:?}\n"))?;
        let mut emulator = spawn(emulator, core)?;
        let (input, output) = match &wires {
            None => (emulator.stdin.take().map(OwnedFd::from), emulator.stdout.take().map(OwnedFd::from)),
            Some(wires) => {
                let line = wires.connect(&mut emulator, &dir)?;
                (line.try_clone().ok().map(OwnedFd::from), Some(OwnedFd::from(line)))
            }
        };
        let serial = Arc::new(Serial::default());
        let (sink, file, show) = (serial.clone(), log(&dir, "serial.log")?, machine.show);
        std::thread::spawn(move || collect(output.map(File::from), &sink, file, show));
        let prism = matches!(machine.kind, Kind::SvmTcg | Kind::VmxKvm);
        let watched = prism && machine.on_reset == OnReset::End;
        let watch = watched.then(|| watch::start(&dir, emulator.id()));
        Ok(Self {
            input: input.map(File::from),
            emulator,
            gpu,
            serial,
            dir,
            started: Instant::now(),
            screen: wires.map(|wires| wires.screen),
            ram,
            watch,
            image: machine.kernel,
            _slots: slots,
        })
    }

    /// The folder of its logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sends bytes down the serial line.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(input) = &mut self.input else {
            return Err(Error::new("the serial line is taken"));
        };
        let sent = input.write_all(bytes).and_then(|()| input.flush());
        sent.context(|| "cannot write to the serial line".into()).map_err(|error| {
            self.drain();
            Error::new(format!("{error}: {}", self.ended()))
        })
    }

    /// The serial line's sending end, for somebody else to write to.
    pub fn take_input(&mut self) -> Option<File> {
        self.input.take()
    }

    /// Waits until `text` appears after what earlier calls have seen; gives all from there to its end.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut state = self.serial.lock();
        loop {
            let fresh = state.bytes.get(state.seen..).unwrap_or_default();
            if let Some(at) = find(fresh, text.as_bytes()) {
                let end = at + text.len();
                let found = String::from_utf8_lossy(&fresh[..end]).into_owned();
                state.seen += end;
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let closed = state.closed;
                drop(state);
                return Err(self.missed(text, closed));
            }
            state = self.serial.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What to say when `text` did not come.
    fn missed(&mut self, text: &str, closed: bool) -> Error {
        let log = self.dir.join("serial.log");
        let see = format!("before \"{text}\" came; see {}", log.display());
        if closed {
            return Error::new(format!("the machine ended {see}: {}", self.ended()));
        }
        Error::new(format!("time was up {see}\n{}{}", self.examine(), self.rings()))
    }

    /// How a machine that nobody waited for has ended, and what its CPUs did last.
    fn ended(&mut self) -> String {
        let end = self.emulator.try_wait().ok().flatten().map_or(End::TimedOut, decode);
        format!("{end:?}\n{}", self.last_deeds(&self.so_far(), ""))
    }

    /// Shows the user no more of the serial line; it is still kept.
    pub fn hush(&self) {
        self.serial.hushed.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing has come over the serial line for `pause`, for `limit` at most.
    pub fn settle(&self, pause: Duration, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut before = None;
        while Instant::now() < deadline {
            let now = self.serial.lock().bytes.len();
            if before.replace(now) == Some(now) {
                return;
            }
            std::thread::sleep(pause);
        }
    }

    /// Whether the emulator still runs, and what is in it.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.emulator.try_wait(), Ok(None)) && !self.is_lost()
    }

    /// Waits for the end, for `limit` at most.
    pub fn wait(mut self, limit: Duration) -> Result<Outcome> {
        let deadline = Instant::now() + limit;
        // The serial line closes when the emulator ends.
        let mut state = self.serial.lock();
        while !state.closed && Instant::now() < deadline && !self.is_lost() {
            let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
            state = self.serial.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let status = if self.serial.lock().closed { self.emulator.wait().map(Some) } else { self.emulator.try_wait() };
        let end = status.context(|| "cannot wait for the emulator".into())?.map_or(End::TimedOut, decode);
        let ended = end != End::TimedOut;
        let mut autopsy = if ended || limit.is_zero() { String::new() } else { self.examine() };
        self.kill();
        self.drain();
        let serial = self.so_far();
        let last_word = serial.lines().any(|line| line.starts_with("@exit value="));
        if !matches!(end, End::Verdict(_)) && !last_word {
            autopsy.push_str(&self.last_deeds(&serial, &autopsy));
        }
        let end = if self.screen.is_some() && (ended || self.is_lost()) { bochs::end(&serial, &self.dir) } else { end };
        Ok(Outcome { end, serial, autopsy, dir: self.dir.clone(), time: self.started.elapsed() })
    }

    /// What every CPU did last on a machine that is no more; kept in the folder too.
    fn last_deeds(&mut self, serial: &str, before: &str) -> String {
        let reset = self.watch.take().and_then(|watch| watch.join().ok().flatten());
        let (rings, reset) = (self.rings(), reset.map(|reset| self.named(&reset)).unwrap_or_default());
        if rings.is_empty() && reset.is_empty() {
            return String::new();
        }
        let text = if before.is_empty() { format!("{}\n", last_lines(serial, 30)) } else { String::new() };
        let text = format!("{text}{reset}{rings}");
        // The report is also returned.
        let _ = write(&self.dir.join(autopsy::REPORT), format!("{before}{text}"));
        text
    }

    /// What every CPU of Prism did last, as its memory tells.
    fn rings(&self) -> String {
        self.ram.as_ref().map_or(String::new(), |ram| rings::print(ram, &Symbols::read(&self.image)))
    }

    /// Registers, each RIP that is in the image with its name.
    fn named(&self, registers: &str) -> String {
        let symbols = Symbols::read(&self.image);
        let name = |line: &str| {
            let rip = line.strip_prefix("RIP=")?.split(' ').next()?;
            symbols.name(u64::from_str_radix(rip, 16).ok()?)
        };
        registers
            .lines()
            .map(|line| name(line).map_or(format!("{line}\n"), |name| format!("{line} ({name})\n")))
            .collect()
    }

    /// All that came over the serial line so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.serial.lock().bytes).into_owned()
    }

    /// What a machine whose time is up was at; it may say some last words on the serial line for it.
    fn examine(&self) -> String {
        let before = self.so_far();
        let state = autopsy::examine(&self.dir, &self.emulator, self.gpu.as_ref());
        self.settle(Duration::from_secs(2), Duration::from_secs(30));
        let now = self.so_far();
        let words = now.get(before.len()..).unwrap_or_default();
        let words = autopsy::telling(words);
        let text = format!("{}\n{state}said when asked by NMI:\n{words}", last_lines(&before, 30));
        // The report is also returned: a folder that takes no file does not matter.
        let _ = write(&self.dir.join(autopsy::REPORT), &text);
        text
    }

    /// Whether the emulator will neither go on nor end.
    fn is_lost(&self) -> bool {
        self.screen.is_some() && bochs::is_lost(&self.dir)
    }

    /// Waits until all that the dead emulator wrote has been read.
    fn drain(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut state = self.serial.lock();
        while !state.closed && Instant::now() < deadline {
            let pause = Duration::from_millis(100);
            state = self.serial.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn kill(&mut self) {
        // The GPU process leaves by itself when its emulator is gone, its statistics written.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
        let Some(gpu) = &mut self.gpu else { return };
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(gpu.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = gpu.kill();
        let _ = gpu.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Serial {
    fn lock(&self) -> MutexGuard<'_, SerialState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outcome {
    /// The last lines of the serial line, for a message about a failure.
    pub fn tail(&self, lines: usize) -> String {
        last_lines(&self.serial, lines)
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// One core for a machine of one CPU; all of them for a larger one, which is then alone.
fn take_slots(cpus: u32) -> Result<(Vec<Lock>, Option<usize>)> {
    let cores = allowed_cores();
    if cpus == 1 {
        let (lock, core) = Lock::take_any("machine", &cores)?;
        return Ok((vec![lock], Some(core)));
    }
    let locks = cores.iter().map(|core| Lock::take(&format!("machine.{core}"))).collect::<Result<_>>()?;
    Ok((locks, None))
}

fn allowed_cores() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return vec![0];
    };
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// Starts the GPU process and waits until it listens: the emulator does not try twice.
fn start_gpu(dir: &Path, options: &[String], core: Option<usize>) -> Result<Child> {
    let mut gpu = command::tied(&helper_program()?);
    gpu.current_dir(dir).args(["gpu-model", "--socket", command::SOCKET]).args(options);
    gpu.stdin(Stdio::null()).stdout(log(dir, "gpu.out")?).stderr(log(dir, "gpu.log")?);
    let mut child = spawn(gpu, core)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !dir.join(command::SOCKET).exists() {
        if !matches!(child.try_wait(), Ok(None)) || Instant::now() > deadline {
            let _ = child.kill();
            return Err(Error::new(format!("the GPU process did not start; see {}", dir.join("gpu.log").display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

/// The program that has the GPU process in it: this one, or the one that cargo built beside a test.
fn helper_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context(|| "cannot find this program".into())?;
    if own.file_stem().is_some_and(|stem| stem == "prism") {
        return Ok(own);
    }
    let name = "prism-gpu";
    let folders = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    folders
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| Error::new(format!("{name} is not beside {}: run `cargo build -p tests`", own.display())))
}

/// Starts a process from a thread of its own, pinned to `core`, which lives until the process ends.
fn spawn(mut command: Command, core: Option<usize>) -> Result<Child> {
    let program = format!("{:?}", command.get_program());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        if let Some(core) = core {
            let mut set = CpuSet::new();
            set.set(core);
            // A hint for speed: a host that refuses it still runs the machine.
            let _ = sched_setaffinity(None, &set);
        }
        let spawned = command.spawn();
        let pid = spawned.as_ref().ok().map(Child::id);
        if sender.send(spawned).is_err() {
            return;
        }
        // The kernel would kill the process with this thread.
        while pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let child = receiver.recv().context(|| format!("cannot start {program}"))?;
    child.context(|| format!("cannot start {program}"))
}

/// Reads the serial line to its end, into the log and to whoever waits.
fn collect(mut line: Option<File>, serial: &Serial, mut file: File, show: Show) {
    let mut buffer = [0; 4096];
    let mut display = Display::default();
    while let Some(Ok(count @ 1..)) = line.as_mut().map(|line| line.read(&mut buffer)) {
        let fresh = &buffer[..count];
        let _ = file.write_all(fresh);
        if show == Show::Serial && !serial.hushed.load(Ordering::Relaxed) {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(&display.show(fresh)).and_then(|()| out.flush());
        }
        serial.lock().bytes.extend(fresh);
        serial.changed.notify_all();
    }
    serial.lock().closed = true;
    serial.changed.notify_all();
}

fn decode(status: ExitStatus) -> End {
    match status.code() {
        None => End::Signal,
        Some(0) => End::PowerOff,
        Some(1) => End::Emulator(1),
        Some(code) if code & 1 == 1 => End::Verdict((code >> 1) as u32),
        Some(code) => End::Emulator(code),
    }
}

fn log(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    File::create(&path).context(|| format!("cannot create {}", path.display()))
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn exit_status_tells_verdict_from_failure() {
        let decode = |code: i32| decode(ExitStatus::from_raw(code << 8));
        assert_eq!(decode(0), End::PowerOff);
        assert_eq!(decode(1), End::Emulator(1));
        assert_eq!(decode(33), End::Verdict(16));
        assert_eq!(decode(35), End::Verdict(17));
        assert_eq!(decode(2), End::Emulator(2));
        assert_eq!(super::decode(ExitStatus::from_raw(9)), End::Signal);
    }

    #[test]
    fn a_process_outlives_the_call_that_spawned_it() {
        let mut command = command::tied(Path::new("/bin/sleep"));
        command.arg("0.3");
        let mut child = spawn(command, Some(0)).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
