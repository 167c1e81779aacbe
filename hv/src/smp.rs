//! The other CPUs: started one after the other, parked, and sent into the run loop together.

mod bringup;

use core::sync::atomic::Ordering;

use spin::Once;

use crate::percpu::{self, CpuId, PerCpu};
use crate::{apic, console, irq, power};

pub(crate) use self::bringup::start_others;

/// States of a CPU, in `PerCpu::state`.
pub(crate) const STARTING: u32 = 0;
pub(crate) const PARKED: u32 = 1;
pub(crate) const RUNNING: u32 = 2;

/// What every CPU runs, once there is something to run.
static ENTRY: Once<fn() -> !> = Once::new();

/// Every CPU calls `run`, each on its own stack, this one included. The console goes over to being polled.
pub fn start(run: fn() -> !) -> ! {
    console::start_polling();
    ENTRY.call_once(|| run);
    for cpu in 1..percpu::count() {
        apic::kick(CpuId(cpu));
    }
    let this = percpu::this();
    this.state.store(RUNNING, Ordering::Release);
    let top = this.stack_top.load(Ordering::Relaxed);
    // SAFETY: 1. The stack is mapped, this CPU's own, and empty. 2. `run` does not return, so nothing on the old stack
    // is needed again.
    unsafe {
        core::arch::asm!("mov rsp, {top}", "xor ebp, ebp", "call {enter}", "ud2", top = in(reg) top, enter = sym enter, options(noreturn))
    }
}

extern "C" fn enter() -> ! {
    match ENTRY.get() {
        Some(run) => run(),
        None => power::halt(),
    }
}

/// A CPU that was started waits here for `start`.
pub(crate) fn park(cpu: &PerCpu) -> ! {
    cpu.state.store(PARKED, Ordering::Release);
    loop {
        if let Some(run) = ENTRY.get() {
            cpu.state.store(RUNNING, Ordering::Release);
            run();
        }
        irq::wait();
    }
}
