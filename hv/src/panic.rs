//! The end of Prism by a bug of its own: one report, the other CPUs stopped, and out.
//!
//! A fault may come at any instruction, locks held and GS a guest's: nothing here waits for a lock or looks at GS.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::percpu::{self, CpuId};
use crate::power::{self, Exit};
use crate::trace::{self, What};
use crate::{apic, console, say, smp, tables, time};

/// Entries of its trace that a report shows for each CPU.
const SHOWN: u64 = 12;
/// Turns of the loop that waits for the others to stop: one that never does must not stop the report.
const PATIENCE: u32 = 2_000_000;

/// The CPU that reports, counted from 1; 0: none.
static REPORTER: AtomicU32 = AtomicU32::new(0);
/// Faults of the report itself.
static FAILURES: AtomicU32 = AtomicU32::new(0);
/// CPUs that have stopped for the report.
static STOPPED: AtomicU32 = AtomicU32::new(0);

/// For a CPU that takes an NMI: halts, if another one is reporting.
pub(crate) fn stop_if_over(cpu: CpuId) {
    let reporter = REPORTER.load(Ordering::Acquire);
    if reporter != 0 && reporter != cpu.0 + 1 {
        STOPPED.fetch_add(1, Ordering::AcqRel);
        power::halt();
    }
}

/// The first CPU to come here takes the console and stops the others; a later one halts. Of a fault in the report there
/// is one line, of a fault in that nothing: the run ends in any case.
pub(crate) fn begin(why: fmt::Arguments<'_>) -> CpuId {
    let cpu = tables::current();
    match REPORTER.compare_exchange(0, cpu.0 + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(reporter) if reporter == cpu.0 + 1 => match FAILURES.fetch_add(1, Ordering::AcqRel) {
            0 => {
                console::seize();
                // It may have ended within a line.
                say!("");
                say!("PANIC: CPU {}: {why}, in the report", cpu.0);
                power::exit(Exit::Panic)
            }
            _ => power::leave(Exit::Panic),
        },
        Err(_) => power::halt(),
    }
    for other in others(cpu) {
        apic::send_nmi(other.id());
    }
    console::seize();
    console::flush();
    cpu
}

/// CPUs that can take an NMI.
fn others(cpu: CpuId) -> impl Iterator<Item = &'static percpu::PerCpu> {
    percpu::all().filter(move |other| other.id() != cpu && other.state.load(Ordering::Acquire) != smp::STARTING)
}

/// What every CPU did last, and the end.
pub(crate) fn end(cpu: CpuId) -> ! {
    let running = others(cpu).count() as u32;
    (0..PATIENCE).find(|_| {
        core::hint::spin_loop();
        STOPPED.load(Ordering::Acquire) >= running
    });
    for id in others(cpu).map(percpu::PerCpu::id).chain([cpu]) {
        say!("  CPU {} did last:", id.0);
        trace::print(id, SHOWN, &mut |line| say!("    {line}"));
    }
    power::exit(Exit::Panic)
}

/// Reports a panic and ends the run. For the panic handler.
pub fn report(info: &PanicInfo<'_>) -> ! {
    trace::record(tables::current(), time::tsc(), What::Panic, [0; 3], [0; 2]);
    let cpu = begin(format_args!("panic"));
    match info.location() {
        Some(at) => say!("PANIC: CPU {}: {} ({}:{})", cpu.0, info.message(), at.file(), at.line()),
        None => say!("PANIC: CPU {}: {}", cpu.0, info.message()),
    }
    end(cpu)
}
