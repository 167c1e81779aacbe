//! The end of Prism by a bug of its own: one report, the other CPUs stopped, and out.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::power::{self, Exit};
use crate::{apic, console, say};

static OVER: AtomicBool = AtomicBool::new(false);

/// Whether a CPU is reporting a panic: the others halt.
pub(crate) fn is_over() -> bool {
    OVER.load(Ordering::Acquire)
}

/// The first CPU to come here stops the others and takes the console; a later one, or a panic in the report, halts.
pub(crate) fn begin() {
    if OVER.swap(true, Ordering::AcqRel) {
        power::halt();
    }
    apic::stop_others();
    console::seize();
}

/// Reports a panic and ends the run. For the panic handler.
pub fn report(info: &PanicInfo<'_>) -> ! {
    begin();
    match info.location() {
        Some(at) => say!("PANIC: {} ({}:{})", info.message(), at.file(), at.line()),
        None => say!("PANIC: {}", info.message()),
    }
    power::exit(Exit::Panic)
}
