//! What each physical CPU is doing, so that others interrupt it only when they must.
//!
//! A CPU in root mode is never interrupted and never waited for: it looks whether somebody wants its attention, and
//! compares the flush generation of the VM, after it has published that it is about to enter a guest or to sleep. Both
//! sides store first and load afterwards, with a sequentially consistent fence between the two, so at least one of them
//! sees the other. `tests/protocol` checks this file as it is.

use crate::apic;
use crate::irq::{self, Pending};
use crate::percpu::{self, CpuId, MAX_CPUS};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence, for_each_cpu, spin_loop};
use crate::trace::{self, What};

const ROOT: u32 = 0;
const IDLE: u32 = 1;
const GUEST: u32 = 0x100;

/// Names a virtual machine: its number on the console, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(pub u8);

struct Activity {
    mode: AtomicU32,
    /// Counts the times that the CPU came back to root mode.
    returns: AtomicU32,
    /// Somebody has work for it.
    attention: AtomicBool,
    /// It will look at the console by itself, since it has a deadline for it. (Only the first CPU does.)
    watches_console: AtomicBool,
}

for_each_cpu!(
    static CPUS: Activity = Activity {
        mode: AtomicU32::new(ROOT),
        returns: AtomicU32::new(0),
        attention: AtomicBool::new(false),
        watches_console: AtomicBool::new(false),
    }
);

fn of(cpu: CpuId) -> Option<&'static Activity> {
    CPUS.get(cpu.0 as usize)
}

fn publish(mode: u32) {
    if let Some(activity) = of(percpu::current()) {
        activity.mode.store(mode, Ordering::Relaxed);
        // Whoever does not yet see the mode has posted what this CPU sees from here on.
        fence(Ordering::SeqCst);
    }
}

/// This CPU enters a guest of `vm` if nothing came: `news` compares the flush generation and tells what was posted.
/// False: it is back in root mode, with something to do.
pub(crate) fn enter(vm: VmId, news: impl FnOnce() -> bool) -> bool {
    publish(GUEST + u32::from(vm.0));
    let enters = !news() && !is_wanted();
    if !enters {
        returned();
    }
    enters
}

/// Sleeps until an interrupt, unless there is something to do: `news` tells what was posted. Then takes what is pending.
pub(crate) fn sleep(news: impl FnOnce() -> bool) -> Pending {
    publish(IDLE);
    let pending = if is_wanted() || news() { irq::poll() } else { irq::wait() };
    returned();
    pending
}

/// This CPU is back in root mode.
pub(crate) fn returned() {
    if let Some(activity) = of(percpu::current()) {
        // What the guest did comes before either, for `shootdown`. Only this CPU writes the count.
        activity.mode.store(ROOT, Ordering::Release);
        let returns = activity.returns.load(Ordering::Relaxed);
        activity.returns.store(returns.wrapping_add(1), Ordering::Release);
    }
}

/// Makes `cpu` look at what there is to do. Post the work first.
pub(crate) fn nudge(cpu: CpuId) {
    let Some(activity) = of(cpu) else { return };
    // Whoever set it before interrupts the CPU, or found it in root mode, where it will look.
    let first = !activity.attention.swap(true, Ordering::AcqRel);
    if first && cpu != percpu::current() {
        fence(Ordering::SeqCst);
        if activity.mode.load(Ordering::Relaxed) != ROOT {
            apic::kick(cpu);
        }
    }
}

/// This CPU begins to look at what there is to do.
pub(crate) fn attend() {
    let wanted = of(percpu::current()).filter(|activity| activity.attention.load(Ordering::Relaxed));
    if let Some(activity) = wanted {
        // It takes the mark from the last one to leave it, and sees what all of them posted: a swap, not a store.
        activity.attention.swap(false, Ordering::AcqRel);
    }
}

/// Whether there is something to do that came after `attend`.
pub(crate) fn is_wanted() -> bool {
    of(percpu::current()).is_some_and(|activity| activity.attention.load(Ordering::Relaxed))
}

/// The first CPU finds out when it must look at the console: `deadline` is asked after writers can see that it is not
/// yet decided, so that what they write meanwhile is either counted in or announced. (It takes the lock under which
/// they write, and that orders the two.)
pub(crate) fn watch_console<T>(deadline: impl FnOnce() -> Option<T>) -> Option<T> {
    let activity = of(CpuId(0))?;
    activity.watches_console.store(false, Ordering::Relaxed);
    let deadline = deadline();
    activity.watches_console.store(deadline.is_some(), Ordering::Relaxed);
    deadline
}

/// Something was written to the console.
pub(crate) fn console_written() {
    if !of(CpuId(0)).is_some_and(|activity| activity.watches_console.load(Ordering::Relaxed)) {
        nudge(CpuId(0));
    }
}

/// Counts changes of a VM's nested tables after which virtual CPUs must flush before they enter.
pub(crate) struct Generation(AtomicU64);

impl Generation {
    pub fn new() -> Self {
        Self(AtomicU64::new(1))
    }

    /// The present one. Compare it after the CPU has published that it enters.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Begins the next one, and gets every other CPU out of `vm`, once. On return, each one that was in guest mode has
    /// left it and will compare the generation before it enters again.
    pub fn advance(&self, vm: VmId) {
        self.0.fetch_add(1, Ordering::AcqRel);
        // A CPU that is not yet seen in guest mode compares after this.
        fence(Ordering::SeqCst);
        shootdown(vm);
    }
}

fn shootdown(vm: VmId) {
    let guest = GUEST + u32::from(vm.0);
    let me = percpu::current();
    trace::note(What::BeginsShootdown, [0, vm.0, 0], [0; 2]);
    let inside = |cpu: CpuId| of(cpu).filter(|activity| cpu != me && activity.mode.load(Ordering::Acquire) == guest);
    let mut before = [None; MAX_CPUS];
    for cpu in (0..percpu::count()).map(CpuId) {
        // The count is read before the mode: if the CPU leaves between the two, one of both tells.
        let returns = of(cpu).map(|activity| activity.returns.load(Ordering::Acquire));
        if inside(cpu).is_some() {
            apic::flush_ipi(cpu);
            if let Some(slot) = before.get_mut(cpu.0 as usize) {
                *slot = returns;
            }
        }
    }
    for (cpu, returns) in (0..).map(CpuId).zip(before) {
        while let Some(returns) = returns
            && inside(cpu).is_some_and(|activity| activity.returns.load(Ordering::Acquire) == returns)
        {
            spin_loop();
        }
    }
    trace::note(What::EndsShootdown, [0, vm.0, 0], [0; 2]);
}
