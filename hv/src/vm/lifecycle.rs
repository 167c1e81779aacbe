//! Starting, stopping and resetting a VM.
//!
//! A request makes every virtual CPU park itself on its own CPU. When all are parked, the home CPU (that of the first
//! one) carries the request out and begins a new life; each virtual CPU then finds the new number and starts over. So
//! nobody ever touches the state of a virtual CPU but the CPU that it lives on.

use hv_defs::Nanos;
use hv_dev::apic::Posted;
use spin::Mutex;
use strum::FromRepr;

use super::Vm;
use super::restart::{RestartPolicy, Restarts, Verdict};
use crate::load::OnCrash;
use crate::load::linux::Entry;
use crate::percpu::CpuId;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::trace::{self, What};
use crate::{cpus, say, time};

/// What is asked of a VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, FromRepr)]
#[repr(u8)]
pub enum Request {
    /// Nothing.
    None = 0,
    /// Start again, as the guest wants (or as its configuration says after a crash): after a wait, and not too often.
    Restart = 1,
    /// Start again, as the user wants: at once.
    Reset = 2,
    /// The guest switched itself off.
    PowerOff = 3,
    /// It crashed, and its configuration says to leave it so.
    Crash = 4,
    /// The user stops it.
    Kill = 5,
}

/// What a VM is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromRepr)]
#[repr(u8)]
pub enum Status {
    /// Not yet started.
    New = 0,
    /// Running.
    Running = 1,
    /// Switched off by itself.
    Off = 2,
    /// Stopped after a crash.
    Crashed = 3,
    /// Stopped by the user.
    Killed = 4,
}

/// In `restart_at`: no restart waits for its time.
const NOT_SET: u64 = u64::MAX;

/// State of a VM as a whole.
pub(super) struct Lifecycle {
    request: AtomicU8,
    status: AtomicU8,
    /// Virtual CPUs that have parked.
    parked: AtomicUsize,
    vcpus: usize,
    /// Number of the present life; 0 before the first.
    life: AtomicU32,
    /// Host TSC at which the guest's TSC is zero.
    tsc_base: AtomicU64,
    entry: Mutex<Option<Entry>>,
    /// One word for why it crashed last.
    cause: Mutex<&'static str>,
    resets: AtomicU32,
    crashes: AtomicU32,
    restarts: Mutex<Restarts>,
    /// When a restart that waits is due.
    restart_at: AtomicU64,
}

impl Lifecycle {
    pub fn new(vcpus: usize, restarts: RestartPolicy) -> Self {
        Self {
            request: AtomicU8::new(Request::Reset as u8),
            status: AtomicU8::new(Status::New as u8),
            parked: AtomicUsize::new(vcpus),
            vcpus,
            life: AtomicU32::new(0),
            tsc_base: AtomicU64::new(0),
            entry: Mutex::new(None),
            cause: Mutex::new("unknown"),
            resets: AtomicU32::new(0),
            crashes: AtomicU32::new(0),
            restarts: Mutex::new(Restarts::new(restarts)),
            restart_at: AtomicU64::new(NOT_SET),
        }
    }

    fn requested(&self) -> Request {
        Request::from_repr(self.request.load(Ordering::SeqCst)).unwrap_or(Request::None)
    }

    /// When a restart is due that nothing stronger has overtaken.
    fn restart_deadline(&self) -> Option<Nanos> {
        let at = self.restart_at.load(Ordering::SeqCst);
        (at != NOT_SET && self.requested() == Request::Restart).then_some(Nanos(at))
    }
}

impl Vm {
    /// Asks for a change of state. The stronger of two requests wins. Returns at once.
    pub fn request(&self, request: Request) {
        self.lifecycle.request.fetch_max(request as u8, Ordering::SeqCst);
        for cpu in &self.cpus {
            cpus::nudge(*cpu);
        }
    }

    /// What the VM is doing.
    pub fn status(&self) -> Status {
        Status::from_repr(self.lifecycle.status.load(Ordering::SeqCst)).unwrap_or(Status::New)
    }

    /// Whether it has stopped for good, unless the user resets it.
    pub fn is_stopped(&self) -> bool {
        !matches!(self.status(), Status::New | Status::Running) && self.lifecycle.requested() == Request::None
    }

    /// Resets so far.
    pub fn resets(&self) -> u32 {
        self.lifecycle.resets.load(Ordering::Relaxed)
    }

    /// Crashes so far.
    pub fn crashes(&self) -> u32 {
        self.lifecycle.crashes.load(Ordering::Relaxed)
    }

    /// A virtual CPU cannot go on: stop or restart the VM, as configured. `cause` is one word.
    pub(crate) fn crashed(&self, cause: &'static str) {
        *self.lifecycle.cause.lock() = cause;
        self.lifecycle.crashes.fetch_add(1, Ordering::Relaxed);
        match self.on_crash() {
            OnCrash::Stop => self.request(Request::Crash),
            OnCrash::Restart => self.request(Request::Restart),
        }
    }

    /// Whether a crash now is worth a whole report: a guest can crash again and again.
    pub(crate) fn takes_report(&self, now: Nanos) -> bool {
        self.lifecycle.restarts.lock().take_report(now)
    }

    /// Whether virtual CPUs must park.
    pub(crate) fn must_park(&self) -> bool {
        self.lifecycle.request.load(Ordering::SeqCst) != Request::None as u8
    }

    /// A virtual CPU has parked.
    pub(crate) fn parked(&self) {
        self.lifecycle.parked.fetch_add(1, Ordering::SeqCst);
        cpus::nudge(self.home());
    }

    /// Number of the present life, and the entry point if it has begun.
    pub(crate) fn life(&self) -> u32 {
        self.lifecycle.life.load(Ordering::SeqCst)
    }

    /// Where the first virtual CPU starts.
    pub(crate) fn entry(&self) -> Option<Entry> {
        *self.lifecycle.entry.lock()
    }

    /// Host TSC at which this life's guest TSC is zero.
    pub(crate) fn tsc_base(&self) -> u64 {
        self.lifecycle.tsc_base.load(Ordering::SeqCst)
    }

    /// Whether a request waits that can be carried out now.
    pub(crate) fn is_ready(&self) -> bool {
        self.must_park() && self.is_parked() && self.restart_deadline().is_none_or(|at| at <= time::now())
    }

    /// Home CPU: when a restart is due that waits for its time.
    pub(crate) fn restart_deadline(&self) -> Option<Nanos> {
        self.lifecycle.restart_deadline()
    }

    fn is_parked(&self) -> bool {
        self.lifecycle.parked.load(Ordering::SeqCst) == self.lifecycle.vcpus
    }

    /// Home CPU: carries out a request once all virtual CPUs are parked.
    pub(crate) fn carry_out(&self) {
        if self.must_park() && self.is_parked() {
            self.carry_out_at(time::now());
        }
    }

    /// The same, when it is `now` and all are parked.
    pub(crate) fn carry_out_at(&self, now: Nanos) {
        let request = self.lifecycle.requested();
        let verdict = (request == Request::Restart).then(|| self.may_restart(now));
        if matches!(verdict, Some(Verdict::At(at)) if now < at) {
            return;
        }
        self.lifecycle.restart_at.store(NOT_SET, Ordering::SeqCst);
        self.reset_devices(now);
        match request {
            Request::Restart if verdict == Some(Verdict::Enough) => {
                say!("{self}: started again too often (restart_limit in restart_window): stopped; the others go on");
                self.end(request, Status::Crashed, "crashed", "restart-limit");
            }
            Request::Restart => self.begin(request, now),
            Request::Reset | Request::None => {
                self.lifecycle.restarts.lock().forget();
                self.begin(request, now);
            }
            Request::PowerOff => self.end(request, Status::Off, "off", "poweroff"),
            Request::Crash => {
                let cause = *self.lifecycle.cause.lock();
                say!("{self}: stopped after a crash; the others go on");
                self.end(request, Status::Crashed, "crashed", cause);
            }
            Request::Kill => self.end(request, Status::Killed, "stopped", "killed"),
        }
    }

    /// Decides once about a restart that is asked for. While it waits, its devices rest.
    fn may_restart(&self, now: Nanos) -> Verdict {
        let decided = self.lifecycle.restart_at.load(Ordering::SeqCst);
        if decided != NOT_SET {
            return Verdict::At(Nanos(decided));
        }
        let verdict = self.lifecycle.restarts.lock().ask(now);
        if let Verdict::At(at) = verdict {
            self.reset_devices(now);
            self.lifecycle.restart_at.store(at.0, Ordering::SeqCst);
            let seconds = at.0.saturating_sub(now.0) / 1_000_000_000;
            if seconds > 0 {
                say!("{self}: starts again and again; next in {seconds} s");
            }
        }
        verdict
    }

    fn reset_devices(&self, now: Nanos) {
        self.reset_functions();
        self.with_chipset(|chipset, wires| chipset.reset(now, wires));
    }

    /// Loads the guest's software and lets the virtual CPUs start over.
    fn begin(&self, request: Request, now: Nanos) {
        match self.loader.load(self) {
            Ok(entry) => {
                *self.lifecycle.entry.lock() = Some(entry);
                if self.status() == Status::Running {
                    self.lifecycle.resets.fetch_add(1, Ordering::Relaxed);
                    self.tell("reset", "");
                }
                self.tell("running", "");
                // Now, while all are parked: the first one may start the others before they have begun the new life.
                self.posted().iter().for_each(Posted::reset);
                self.lifecycle.tsc_base.store(time::tsc(), Ordering::SeqCst);
                self.lifecycle.restarts.lock().begun(now);
                self.lifecycle.parked.store(0, Ordering::SeqCst);
                self.done(request, Status::Running);
                self.lifecycle.life.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                say!("{self}: cannot start: {error}");
                self.end(request, Status::Crashed, "crashed", "load");
            }
        }
        for cpu in &self.cpus {
            cpus::nudge(*cpu);
        }
    }

    fn end(&self, request: Request, status: Status, state: &str, cause: &str) {
        self.say_rest();
        self.tell(state, cause);
        self.done(request, status);
    }

    /// One line for programs, on every change of state.
    fn tell(&self, state: &str, cause: &str) {
        let key = if cause.is_empty() { "" } else { " cause=" };
        say!("@vm vm={} n={} state={state}{key}{cause}", self.name, self.id.0);
    }

    /// The request is done with, unless a stronger one came meanwhile.
    fn done(&self, request: Request, status: Status) {
        self.lifecycle.status.store(status as u8, Ordering::SeqCst);
        trace::note(What::Vm, [status as u8, self.id.0, 0], [0; 2]);
        let (old, none) = (request as u8, Request::None as u8);
        let _ = self.lifecycle.request.compare_exchange(old, none, Ordering::SeqCst, Ordering::SeqCst);
        // It prints, and ends the run when all have stopped.
        cpus::nudge(CpuId(0));
    }
}
