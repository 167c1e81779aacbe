//! What each physical CPU is doing, so that others interrupt it only when they must.
//!
//! A CPU in root mode is never interrupted and never waited for: it looks whether somebody wants its attention, and
//! compares the flush generation of the VM, after it has published that it is about to enter a guest or to sleep. Both
//! sides store first and load afterwards (sequentially consistent), so at least one of them sees the other.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::apic;
use crate::percpu::{self, CpuId, MAX_CPUS};

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
}

static CPUS: [Activity; MAX_CPUS] =
    [const { Activity { mode: AtomicU32::new(ROOT), returns: AtomicU32::new(0), attention: AtomicBool::new(false) } };
        MAX_CPUS];

fn of(cpu: CpuId) -> Option<&'static Activity> {
    CPUS.get(cpu.0 as usize)
}

fn publish(mode: u32) {
    if let Some(activity) = of(percpu::current()) {
        activity.mode.store(mode, Ordering::SeqCst);
    }
}

/// This CPU is about to enter a guest of `vm`. Check what was posted, and the flush generation, after this.
pub(crate) fn entering(vm: VmId) {
    publish(GUEST + u32::from(vm.0));
}

/// This CPU is about to sleep. Check what was posted after this.
pub(crate) fn sleeping() {
    publish(IDLE);
}

/// This CPU is back in root mode.
pub(crate) fn returned() {
    if let Some(activity) = of(percpu::current()) {
        activity.mode.store(ROOT, Ordering::SeqCst);
        activity.returns.fetch_add(1, Ordering::SeqCst);
    }
}

/// Makes `cpu` look at what there is to do. Post the work first.
pub(crate) fn nudge(cpu: CpuId) {
    let Some(activity) = of(cpu) else { return };
    // Whoever set it before interrupts the CPU, or found it in root mode, where it will look.
    let first = !activity.attention.swap(true, Ordering::SeqCst);
    if first && cpu != percpu::current() && activity.mode.load(Ordering::SeqCst) != ROOT {
        apic::kick(cpu);
    }
}

/// This CPU begins to look at what there is to do.
pub(crate) fn attend() {
    if let Some(activity) = of(percpu::current()) {
        activity.attention.store(false, Ordering::SeqCst);
    }
}

/// Whether there is something to do that came after `attend`.
pub(crate) fn is_wanted() -> bool {
    of(percpu::current()).is_some_and(|activity| activity.attention.load(Ordering::SeqCst))
}

/// Whether the first CPU will look at the console by itself, since it has a deadline for it.
static CONSOLE_WATCHED: AtomicBool = AtomicBool::new(false);

/// The first CPU finds out when it must look at the console: `deadline` is asked after writers can see that it is not
/// yet decided, so that what they write meanwhile is either counted in or announced.
pub(crate) fn watch_console<T>(deadline: impl FnOnce() -> Option<T>) -> Option<T> {
    CONSOLE_WATCHED.store(false, Ordering::SeqCst);
    let deadline = deadline();
    CONSOLE_WATCHED.store(deadline.is_some(), Ordering::SeqCst);
    deadline
}

/// Something was written to the console.
pub(crate) fn console_written() {
    if !CONSOLE_WATCHED.load(Ordering::SeqCst) {
        nudge(CpuId(0));
    }
}

/// Gets every other CPU out of `vm`, once. On return, each one that was in guest mode has left it and will compare the
/// generation before it enters again.
pub(crate) fn shootdown(vm: VmId) {
    let guest = GUEST + u32::from(vm.0);
    let me = percpu::current();
    let inside = |cpu: CpuId| of(cpu).filter(|activity| cpu != me && activity.mode.load(Ordering::SeqCst) == guest);
    let mut before = [None; MAX_CPUS];
    for cpu in (0..percpu::count()).map(CpuId) {
        // The count is read before the mode: if the CPU leaves between the two, one of both tells.
        let returns = of(cpu).map(|activity| activity.returns.load(Ordering::SeqCst));
        if inside(cpu).is_some() {
            apic::flush_ipi(cpu);
            if let Some(slot) = before.get_mut(cpu.0 as usize) {
                *slot = returns;
            }
        }
    }
    for (cpu, returns) in (0..).map(CpuId).zip(before) {
        while let Some(returns) = returns
            && inside(cpu).is_some_and(|activity| activity.returns.load(Ordering::SeqCst) == returns)
        {
            core::hint::spin_loop();
        }
    }
}
