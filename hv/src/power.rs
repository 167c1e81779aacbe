//! The ends of a run: emulator exit ports, ACPI power-off, or a halt.

use core::sync::atomic::{AtomicU32, Ordering};

use x86_64::instructions::port::Port;

/// How a run ends. QEMU's isa-debug-exit makes `2 * value + 1` of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Exit {
    /// All went well (QEMU exits with 33).
    Success = 0x10,
    /// Prism panicked: a bug (35).
    Panic = 0x11,
    /// No bundle was given, or none that opens (37).
    NoBundle = 0x12,
    /// Too little memory (39).
    Memory = 0x13,
    /// The configuration is wrong (41).
    Config = 0x14,
    /// The CPU or its firmware lacks what Prism needs (43).
    Machine = 0x15,
    /// The self-test failed (45).
    SelfTest = 0x16,
    /// A guest ended by a fault of its own (47).
    Guest = 0x17,
}

/// QEMU: isa-debug-exit, as the runner places it.
const DEBUG_EXIT: u16 = 0xF4;
/// Bochs: takes the letters of `Shutdown`.
const BOCHS_SHUTDOWN: u16 = 0x8900;
/// SLP_EN in PM1_CNT (ACPI 6.5, 4.8.3.2.1); SLP_TYP is the three bits below.
const SLP_EN: u16 = 1 << 13;

/// PM1a_CNT in the low half, the S5 value of SLP_TYP above; 0 while unknown.
static POWER_OFF: AtomicU32 = AtomicU32::new(0);

/// Tells how ACPI turns this machine off.
pub(crate) fn set_power_off(pm1a_cnt: u16, slp_typ: u8) {
    POWER_OFF.store(u32::from(pm1a_cnt) | u32::from(slp_typ & 7) << 16, Ordering::Relaxed);
}

/// Ends the run: tells the emulator, turns the machine off, or halts.
pub fn exit(exit: Exit) -> ! {
    // For emulators that have no exit status of their own to give.
    crate::say!("@exit value={}", exit as u32);
    crate::console::flush();
    leave(exit)
}

/// The same without a word.
pub(crate) fn leave(exit: Exit) -> ! {
    // SAFETY: 1. Nobody listens on port 0xF4 but isa-debug-exit, which ends the machine.
    unsafe { Port::new(DEBUG_EXIT).write(exit as u32) };
    for letter in *b"Shutdown" {
        // SAFETY: 1. Nobody listens on port 0x8900 but Bochs, which ends the machine at the last letter.
        unsafe { Port::new(BOCHS_SHUTDOWN).write(letter) };
    }
    let power_off = POWER_OFF.load(Ordering::Relaxed);
    if power_off != 0 {
        let value = SLP_EN | ((power_off >> 16) as u16) << 10;
        // SAFETY: 1. The port is PM1a_CNT by the FADT; the value turns the machine off.
        unsafe { Port::new(power_off as u16).write(value) };
    }
    halt()
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
