//! A guest program that keeps a kernel's CPUs, timers and page tables busy at once and checks that nothing is lost.
//!
//!     churn SECONDS SEED
//!
//! Workers, each of which counts what it has done, until the time is over and every one has done something once more: one
//! that does not within `PATIENCE` has lost an interrupt or a wake-up.
//! - on each CPU: memory barriers and unmapping, which interrupt every other CPU of the process
//! - two threads that wake each other by turns, on two CPUs if there are as many
//! - timers: sleeping, a periodic timer read from a file, a periodic signal, the ticks of the real-time clock (which Linux
//!   makes by a timer of its own)
//! - on each CPU: registers (general, SSE, FS) that are filled, kept for a while and compared
//!
//! Ends with `VERDICT churn pass|fail n/m`; the exit status says the same.

mod registers;
mod storm;
mod timers;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a worker may take for another turn in the end: many times what it takes in an emulator on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a worker shows of itself.
#[derive(Default)]
pub struct Progress {
    turns: AtomicU64,
    over: AtomicBool,
    wrong: std::sync::Mutex<Option<String>>,
}

impl Progress {
    /// Counts a turn; whether there is to be another.
    pub fn turn(&self) -> bool {
        self.turns.fetch_add(1, Ordering::Relaxed);
        !self.over.load(Ordering::Relaxed)
    }

    /// What it checks is not as it should be.
    pub fn wrong(&self, what: String) {
        self.wrong.lock().expect("no worker panics").get_or_insert(what);
    }
}

/// A worker.
struct Worker {
    name: String,
    progress: Arc<Progress>,
}

impl Worker {
    fn turns(&self) -> u64 {
        self.progress.turns.load(Ordering::Relaxed)
    }
}

/// Numbers that look random: xorshift, as good as any here.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next one below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

/// Ties the thread that calls to a CPU.
pub fn pin(cpu: usize) {
    // SAFETY: 1. The set is initialised and of the size that is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

fn start(name: String, work: impl FnOnce(&Progress) + Send + 'static) -> Worker {
    let progress = Arc::new(Progress::default());
    let own = progress.clone();
    std::thread::spawn(move || work(&own));
    Worker { name, progress }
}

fn workers(seed: u64) -> Vec<Worker> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut all = Vec::new();
    for cpu in 0..cpus {
        let seed = seed.wrapping_add(1000 * cpu as u64);
        all.push(start(format!("barriers-{cpu}"), move |progress| storm::barriers(progress, cpu, seed)));
        all.push(start(format!("unmapping-{cpu}"), move |progress| storm::unmapping(progress, cpu, seed + 1)));
        all.push(start(format!("registers-{cpu}"), move |progress| registers::keep(progress, cpu, seed + 2)));
        all.push(start(format!("sleeping-{cpu}"), move |progress| timers::sleeping(progress, cpu, seed + 3)));
    }
    all.push(start("wake-ups".into(), move |progress| storm::wake_ups(progress, cpus)));
    all.push(start("periodic".into(), move |progress| timers::periodic(progress, seed + 4)));
    all.push(start("signals".into(), timers::signals));
    if timers::has_clock() {
        all.push(start("clock".into(), timers::clock));
    }
    all
}

/// Lets all workers work for a time, then waits until each has done something once more; tells those that do not.
fn watch(workers: &[Worker], time: Duration) {
    std::thread::sleep(time);
    let before: Vec<u64> = workers.iter().map(Worker::turns).collect();
    let stands = |worker: &Worker, before: u64| worker.turns() == before;
    let deadline = Instant::now() + PATIENCE;
    while workers.iter().zip(&before).any(|(worker, &before)| stands(worker, before)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    for (worker, &before) in workers.iter().zip(&before).filter(|(worker, before)| stands(worker, **before)) {
        worker.progress.wrong(format!("stands still after {before} turns"));
    }
}

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [seconds, seed] = numbers[..] else {
        eprintln!("usage: churn SECONDS SEED");
        return ExitCode::from(2);
    };
    let workers = workers(seed);
    watch(&workers, Duration::from_secs(seconds));
    let mut passed = 0;
    for worker in &workers {
        worker.progress.over.store(true, Ordering::Relaxed);
        let turns = worker.turns();
        match &*worker.progress.wrong.lock().expect("no worker panics") {
            None if turns > 0 => {
                passed += 1;
                println!("CASE churn {} ok {turns} turns", worker.name);
            }
            None => println!("CASE churn {} FAIL never began", worker.name),
            Some(what) => println!("CASE churn {} FAIL {what}", worker.name),
        }
    }
    let pass = passed == workers.len();
    println!("VERDICT churn {} {passed}/{}", if pass { "pass" } else { "fail" }, workers.len());
    if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
