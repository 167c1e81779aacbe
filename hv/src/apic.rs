//! The local APIC of each CPU: x2APIC where there is one, else its page of registers. And the I/O APIC's one line.

mod io;

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

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

/// IA32_APIC_BASE and its bits (SDM volume 3A, 11.4.4 and 11.12.1). The enable bit is never cleared: some emulators
/// never set it again.
const IA32_APIC_BASE: u32 = 0x1B;
const APIC_ENABLE: u64 = 1 << 11;
const X2APIC_ENABLE: u64 = 1 << 10;
const BASE_MASK: u64 = 0x000F_FFFF_FFFF_F000;
/// The deadline of the timer, in ticks of the TSC.
const IA32_TSC_DEADLINE: u32 = 0x6E0;
/// First MSR of the x2APIC; each stands for 16 bytes of the page.
const X2APIC_BASE: u32 = 0x800;

/// Registers by their offset in the page (SDM volume 3A, table 11-1).
mod reg {
    pub const ID: u32 = 0x20;
    pub const TPR: u32 = 0x80;
    pub const EOI: u32 = 0xB0;
    pub const SVR: u32 = 0xF0;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3E0;
}

const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const TIMER_TSC_DEADLINE: u32 = 0b10 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

/// ICR: delivery modes, level, destination shorthand, and delivery status (SDM volume 3A, figure 11-12).
const ICR_NMI: u32 = 0b100 << 8;
const ICR_INIT: u32 = 0b101 << 8;
const ICR_STARTUP: u32 = 0b110 << 8;
const ICR_BUSY: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_ALL_BUT_SELF: u32 = 0b11 << 18;

/// How much later than asked a counted-down timer fires: this, and this power of two's part of the whole.
const LATE_NANOS: u64 = 1_000;
const LATE_SHIFT: u32 = 13;

const MODE_NONE: u8 = 0;
const MODE_PAGE: u8 = 1;
const MODE_X2APIC: u8 = 2;

/// How all CPUs reach their APIC; they agree.
static MODE: AtomicU8 = AtomicU8::new(MODE_NONE);
static PAGE: Once<Mmio> = Once::new();
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

/// Stops every other CPU for good, by NMI: it reaches them with interrupts disabled too.
pub(crate) fn stop_others() {
    if MODE.load(Ordering::Acquire) != MODE_NONE {
        send(0, ICR_NMI | ICR_ASSERT | ICR_ALL_BUT_SELF);
    }
}

/// Arms this CPU's timer. It fires at the deadline or, when that is far, earlier: compare and arm again.
pub fn arm(deadline: Nanos) {
    match TICKS_PER_NANO.load(Ordering::Relaxed) {
        // A deadline of 0 would disarm; one in the past fires at once.
        0 => write_deadline(time::nanos_to_tsc(deadline).max(1)),
        ticks_per_nano => {
            let left = deadline.0.saturating_sub(time::now().0);
            // The two rates were measured: a little late costs nothing, a little early one more interrupt.
            let left = left.saturating_add(LATE_NANOS).saturating_add(left >> LATE_SHIFT);
            let ticks = time::scale(left, ticks_per_nano).clamp(1, u64::from(u32::MAX));
            write(reg::INITIAL_COUNT, ticks as u32);
        }
    }
}

/// Stops this CPU's timer.
pub fn disarm() {
    match TICKS_PER_NANO.load(Ordering::Relaxed) {
        0 if read(reg::LVT_TIMER) & TIMER_TSC_DEADLINE != 0 => write_deadline(0),
        _ => write(reg::INITIAL_COUNT, 0),
    }
}

/// The handlers' last act.
pub(crate) fn end_of_interrupt() {
    write(reg::EOI, 0);
}

/// Finds the APIC and enables this CPU's, everything masked. The boot CPU comes first.
pub(crate) fn init_cpu() -> Result<(), paging::NoFrame> {
    let mut base = Msr::new(IA32_APIC_BASE);
    // SAFETY: 1. Every CPU with long mode has this MSR. 2. The bits written only ever enable.
    let value = unsafe { base.read() };
    let has_x2apic = Cpuid::new().get_feature_info().is_some_and(|features| features.has_x2apic());
    let mode = if has_x2apic { MODE_X2APIC } else { MODE_PAGE };
    let wanted = value | APIC_ENABLE | if has_x2apic { X2APIC_ENABLE } else { 0 };
    if wanted != value {
        // SAFETY: 1. As above.
        unsafe { base.write(wanted) };
    }
    if mode == MODE_PAGE && !PAGE.is_completed() {
        let page = paging::map_device(Hpa(value & BASE_MASK), 0x1000)?;
        PAGE.call_once(|| page);
    }
    MODE.store(mode, Ordering::Release);
    reset_registers();
    Ok(())
}

fn reset_registers() {
    for lvt in [reg::LVT_TIMER, reg::LVT_LINT0, reg::LVT_LINT1] {
        write(lvt, LVT_MASKED);
    }
    write(reg::LVT_ERROR, LVT_MASKED | u32::from(vector::SPURIOUS));
    write(reg::TPR, 0);
    write(reg::SVR, SVR_ENABLE | u32::from(vector::SPURIOUS));
    write(reg::ESR, 0);
    write(reg::DIVIDE, DIVIDE_BY_1);
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
    write(reg::INITIAL_COUNT, u32::MAX);
}

pub(crate) fn timer_count() -> u32 {
    read(reg::CURRENT_COUNT)
}

/// Tells the rate of the timer, once it is measured.
pub(crate) fn set_timer_rate(hz: u64) {
    if !takes_deadlines() {
        TICKS_PER_NANO.store(time::factor(1_000_000_000, hz).max(1), Ordering::Relaxed);
    }
}

/// Makes this CPU's timer interrupt (after `set_timer_rate`).
pub(crate) fn start_timer() {
    let mode = if takes_deadlines() { TIMER_TSC_DEADLINE } else { 0 };
    write(reg::LVT_TIMER, mode | u32::from(vector::TIMER));
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
    match MODE.load(Ordering::Relaxed) {
        MODE_X2APIC => read(reg::ID),
        _ => read(reg::ID) >> 24,
    }
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
    match MODE.load(Ordering::Relaxed) {
        MODE_X2APIC => {
            let value = u64::from(apic_id) << 32 | u64::from(command);
            // SAFETY: 1. The CPU is in x2APIC mode. 2. The messages sent are to CPUs of ours, for vectors of ours.
            unsafe {
                core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
                Msr::new(X2APIC_BASE + (reg::ICR_LOW >> 4)).write(value);
            }
        }
        _ => {
            wait_until_sent();
            write(reg::ICR_HIGH, apic_id << 24);
            write(reg::ICR_LOW, command);
            wait_until_sent();
        }
    }
}

fn wait_until_sent() {
    for _ in 0..1_000_000 {
        if read(reg::ICR_LOW) & ICR_BUSY == 0 {
            return;
        }
        core::hint::spin_loop();
    }
}

fn read(register: u32) -> u32 {
    match MODE.load(Ordering::Relaxed) {
        // SAFETY: 1. The CPU is in x2APIC mode, and the register is one of `reg`, all readable but EOI (never read).
        MODE_X2APIC => unsafe { Msr::new(X2APIC_BASE + (register >> 4)).read() as u32 },
        _ => PAGE.get().map_or(0, |page| page.read32(u64::from(register))),
    }
}

fn write(register: u32, value: u32) {
    match MODE.load(Ordering::Relaxed) {
        // SAFETY: 1. The CPU is in x2APIC mode, and the register is one of `reg`. 2. No interrupt that it enables has
        // a handler that does more than set bits.
        MODE_X2APIC => unsafe { Msr::new(X2APIC_BASE + (register >> 4)).write(u64::from(value)) },
        _ => {
            if let Some(page) = PAGE.get() {
                page.write32(u64::from(register), value);
            }
        }
    }
}
