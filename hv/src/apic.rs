//! The local APIC of each CPU: x2APIC where there is one, else its page of registers. And the I/O APIC's one line.

mod io;

use core::sync::atomic::{AtomicU64, Ordering, fence};

use hv_defs::apic::*;
use hv_defs::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST};
use hv_defs::{Hpa, Nanos};
use raw_cpuid::CpuId as Cpuid;
use spin::Once;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

use crate::irq::{self, Pending, vector};
use crate::mmio::Mmio;
use crate::percpu::{self, CpuId};
use crate::{paging, time};

pub(crate) use self::io::route_isa;

const DIVIDE_BY_1: u32 = 0b1011;

/// How much later than asked a counted-down timer fires: this, and this power of two's part of the whole.
const LATE_NANOS: u64 = 1_000;
const LATE_SHIFT: u32 = 13;

/// The page of registers that every CPU's APIC has at the same place; none where they are MSRs (x2APIC).
static PAGE: Once<Option<Mmio>> = Once::new();
/// Timer ticks a nanosecond, times 2^32; 0 when the timer takes TSC deadlines.
static TICKS_PER_NANO: AtomicU64 = AtomicU64::new(0);

/// Asks a CPU to look at its posted work: wakes it from `irq::wait`, or takes it out of its guest.
pub fn kick(cpu: CpuId) {
    irq::post(cpu, Pending::KICK);
    send_to(cpu, u32::from(vector::KICK));
}

/// Takes a CPU out of guest mode so that it flushes. Its `Pending::FLUSH` is set when it has taken the interrupt.
pub fn flush_ipi(cpu: CpuId) {
    irq::post(cpu, Pending::FLUSH);
    send_to(cpu, u32::from(vector::FLUSH));
}

/// Makes an interrupt wait for this CPU, whose interrupts are off: it exits its guest before the first instruction.
pub(crate) fn interrupt_self(vector: u8) {
    send(0, u32::from(vector) | ICR_ASSERT | ICR_SELF);
}

/// Sends a CPU an NMI, which reaches it with interrupts disabled too.
pub fn send_nmi(cpu: CpuId) {
    send_to(cpu, ICR_NMI);
}

/// Arms this CPU's timer. It fires at the deadline or, when that is far, earlier: compare and arm again.
pub fn arm(deadline: Nanos) {
    match TICKS_PER_NANO.load(Ordering::Relaxed) {
        // A deadline of 0 would disarm; one in the past fires at once.
        0 => write_deadline(time::nanos_to_tsc(deadline).max(1)),
        ticks_per_nano => {
            write(TIMER_INITIAL, countdown(deadline.0.saturating_sub(time::now().0), ticks_per_nano));
        }
    }
}

/// Ticks to count for so many nanoseconds.
pub(crate) fn countdown(left: u64, ticks_per_nano: u64) -> u32 {
    // The two rates were measured: a little late costs nothing, a little early one more interrupt.
    let left = left.saturating_add(LATE_NANOS).saturating_add(left >> LATE_SHIFT);
    time::scale(left, ticks_per_nano).clamp(1, u64::from(u32::MAX)) as u32
}

/// Stops this CPU's timer.
pub fn disarm() {
    match TICKS_PER_NANO.load(Ordering::Relaxed) {
        0 if read(LVT_TIMER) & LVT_TIMER_TSC_DEADLINE != 0 => write_deadline(0),
        _ => write(TIMER_INITIAL, 0),
    }
}

/// The handlers' last act.
pub(crate) fn end_of_interrupt() {
    write(EOI, 0);
}

/// Finds the APIC and enables this CPU's, everything masked. The boot CPU comes first.
pub(crate) fn init_cpu() -> Result<(), paging::NoFrame> {
    let mut base = Msr::new(IA32_APIC_BASE);
    // SAFETY: 1. Every CPU with long mode has this MSR. 2. The bits written only ever enable: some emulators never
    // enable an APIC again that was off.
    let value = unsafe { base.read() };
    let has_x2apic = Cpuid::new().get_feature_info().is_some_and(|features| features.has_x2apic());
    let wanted = value | BASE_EN | if has_x2apic { BASE_EXTD } else { 0 };
    if wanted != value {
        // SAFETY: 1. As above.
        unsafe { base.write(wanted) };
    }
    if !PAGE.is_completed() {
        let page = if has_x2apic { None } else { Some(paging::map_device(Hpa(value & BASE_ADDRESS), 0x1000)?) };
        PAGE.call_once(|| page);
    }
    reset_registers();
    Ok(())
}

fn reset_registers() {
    for lvt in [LVT_TIMER, LVT_LINT0, LVT_LINT1] {
        write(lvt, LVT_MASKED);
    }
    write(LVT_ERROR, LVT_MASKED | u32::from(vector::SPURIOUS));
    write(TPR, 0);
    write(SVR, SVR_ENABLE | u32::from(vector::SPURIOUS));
    write(ESR, 0);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
}

/// Masks both 8259s: everything comes by the APICs.
pub(crate) fn mask_legacy() {
    for port in [0x21, 0xA1] {
        // SAFETY: 1. These ports are the masks of the 8259s on every PC; Prism uses neither.
        unsafe { Port::<u8>::new(port).write(0xFF) };
    }
}

/// Lets the timer count down from its top, for `time::measure`.
pub(crate) fn free_run() {
    write(TIMER_INITIAL, u32::MAX);
}

pub(crate) fn timer_count() -> u32 {
    read(TIMER_CURRENT)
}

/// Tells the rate of the timer, once it is measured.
pub(crate) fn set_timer_rate(hz: u64) {
    if !takes_deadlines() {
        TICKS_PER_NANO.store(time::factor(1_000_000_000, hz).max(1), Ordering::Relaxed);
    }
}

/// Makes this CPU's timer interrupt (after `set_timer_rate`).
pub(crate) fn start_timer() {
    let mode = if takes_deadlines() { LVT_TIMER_TSC_DEADLINE } else { 0 };
    write(LVT_TIMER, mode | u32::from(vector::TIMER));
    // The mode must be in force before the first deadline (SDM volume 3A, 11.5.4.1).
    fence(Ordering::SeqCst);
}

fn takes_deadlines() -> bool {
    Cpuid::new().get_feature_info().is_some_and(|features| features.has_tsc_deadline())
}

fn write_deadline(tsc: u64) {
    // SAFETY: 1. Only called when CPUID has the feature. 2. The timer's handler only sets a bit.
    unsafe { Msr::new(IA32_TSC_DEADLINE).write(tsc) };
}

/// This CPU's APIC ID.
pub(crate) fn id() -> u32 {
    if is_x2apic() { read(ID) } else { read(ID) >> 24 }
}

/// Starts the CPU with this APIC ID at `page` (below 1 MiB), the first of two times.
pub(crate) fn send_init(apic_id: u32) {
    send(apic_id, ICR_INIT | ICR_ASSERT);
}

/// The start-up message that follows INIT.
pub(crate) fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, ICR_STARTUP | ICR_ASSERT | u32::from(page));
}

fn send_to(cpu: CpuId, command: u32) {
    if let Some(cpu) = percpu::get(cpu) {
        send(cpu.apic_id(), command | ICR_ASSERT);
    }
}

fn send(apic_id: u32, command: u32) {
    // What was posted must be seen by whoever the message wakes; a WRMSR to the x2APIC does not wait for stores.
    fence(Ordering::SeqCst);
    if is_x2apic() {
        let value = u64::from(apic_id) << 32 | u64::from(command);
        // SAFETY: 1. The CPU is in x2APIC mode. 2. The messages sent are to CPUs of ours, for vectors of ours.
        unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            Msr::new(X2APIC_FIRST + u32::from(ICR)).write(value);
        }
    } else {
        wait_until_sent();
        write(ICR_HIGH, apic_id << 24);
        write(ICR, command);
        wait_until_sent();
    }
}

fn wait_until_sent() {
    for _ in 0..1_000_000 {
        if read(ICR) & ICR_BUSY == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

fn is_x2apic() -> bool {
    matches!(PAGE.get(), Some(None))
}

fn read(register: u8) -> u32 {
    match PAGE.get() {
        Some(Some(page)) => page.read32(16 * u64::from(register)),
        // SAFETY: 1. The CPU is in x2APIC mode, and the register is one of `hv_defs::apic`, all readable but EOI (never
        // read).
        Some(None) => unsafe { Msr::new(X2APIC_FIRST + u32::from(register)).read() as u32 },
        None => 0,
    }
}

fn write(register: u8, value: u32) {
    match PAGE.get() {
        Some(Some(page)) => page.write32(16 * u64::from(register), value),
        // SAFETY: 1. The CPU is in x2APIC mode, and the register is one of `hv_defs::apic`. 2. No interrupt that it enables
        // has a handler that does more than set bits.
        Some(None) => unsafe { Msr::new(X2APIC_FIRST + u32::from(register)).write(u64::from(value)) },
        None => {}
    }
}
