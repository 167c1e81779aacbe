//! Time from the TSC, whose rate is measured on the PM timer (CPUID leaves 0x15 and 0x16 lie in some emulators).

use core::sync::atomic::{AtomicU64, Ordering};

use hv_defs::Nanos;
use x86_64::instructions::port::Port;

use crate::acpi::PmTimer;
use crate::apic;

/// Rate of the PM timer (ACPI 6.5, 4.8.3.3).
const PM_HZ: u64 = 3_579_545;
/// The counter has 24 bits on every machine; some have more, which are not needed.
const PM_MASK: u32 = 0x00FF_FFFF;
/// How long the measurement takes: 20 ms.
const PM_TICKS: u32 = (PM_HZ / 50) as u32;
/// Rate of the 8254.
const PIT_HZ: u64 = 1_193_182;
/// The same 20 ms.
const PIT_TICKS: u16 = (PIT_HZ / 50) as u16;
/// Reads after which a counter that does not move is given up.
const PATIENCE: u32 = 50_000_000;

static TSC_BASE: AtomicU64 = AtomicU64::new(0);
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds a tick, times 2^32.
static NANOS_PER_TICK: AtomicU64 = AtomicU64::new(0);

/// How time follows from the TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Timeline {
    base: u64,
    /// Times 2^32.
    nanos_per_tick: u64,
}

impl Timeline {
    /// Starts when the TSC is `base`, and goes at this rate.
    pub fn new(tsc_hz: u64, base: u64) -> Self {
        Self { base, nanos_per_tick: factor(tsc_hz, 1_000_000_000) }
    }

    /// The time at which the TSC had or will have this value; 0 before the start.
    pub fn nanos(self, tsc: u64) -> Nanos {
        Nanos(scale(tsc.saturating_sub(self.base), self.nanos_per_tick))
    }

    /// The first value of the TSC at which it is `time`. By the same factor as `nanos`: a timer that is set to this value
    /// never fires before `nanos` says that its time has come, however long the machine has been up.
    pub fn tsc(self, time: Nanos) -> u64 {
        let ticks = (u128::from(time.0) << 32).div_ceil(u128::from(self.nanos_per_tick.max(1)));
        self.base.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }
}

/// The rates of the two counters that Prism runs by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    /// Of the TSC.
    pub tsc_hz: u64,
    /// Of the local APIC's timer.
    pub apic_hz: u64,
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: 1. RDTSC only reads; CR4.TSD is clear in ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Time since the start of Prism.
pub fn now() -> Nanos {
    tsc_to_nanos(tsc())
}

/// The measured rate of the TSC.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// The time at which the TSC had or will have this value; 0 before the start.
pub fn tsc_to_nanos(tsc: u64) -> Nanos {
    timeline().nanos(tsc)
}

/// The TSC's first value at a time.
pub fn nanos_to_tsc(time: Nanos) -> u64 {
    timeline().tsc(time)
}

/// Prism's own.
pub(crate) fn timeline() -> Timeline {
    Timeline { base: TSC_BASE.load(Ordering::Relaxed), nanos_per_tick: NANOS_PER_TICK.load(Ordering::Relaxed) }
}

/// `value` times `factor` over 2^32.
pub(crate) fn scale(value: u64, factor: u64) -> u64 {
    u64::try_from((u128::from(value) * u128::from(factor)) >> 32).unwrap_or(u64::MAX)
}

/// `to` over `from`, times 2^32.
pub(crate) fn factor(from: u64, to: u64) -> u64 {
    u64::try_from((u128::from(to) << 32) / u128::from(from.max(1))).unwrap_or(u64::MAX)
}

/// Time started when the TSC was `base`, and goes at this rate.
pub(crate) fn start(tsc_hz: u64, base: u64) {
    let timeline = Timeline::new(tsc_hz, base);
    TSC_BASE.store(timeline.base, Ordering::Relaxed);
    TSC_HZ.store(tsc_hz, Ordering::Relaxed);
    NANOS_PER_TICK.store(timeline.nanos_per_tick, Ordering::Relaxed);
}

/// Waits by the TSC.
pub fn spin(nanos: u64) {
    let end = now().0.saturating_add(nanos);
    while now().0 < end {
        core::hint::spin_loop();
    }
}

/// Measures the TSC and the local APIC timer for 20 ms; `None` when neither reference moves.
pub(crate) fn measure(pm_timer: Option<PmTimer>) -> Option<Rates> {
    pm_timer.and_then(measure_by_pm_timer).or_else(measure_by_pit)
}

/// The counters at one moment.
#[derive(Clone, Copy)]
struct Sample {
    reference: u32,
    tsc: u64,
    apic: u32,
}

impl Sample {
    fn rates(self, end: Self, reference_hz: u64, elapsed: u32) -> Option<Rates> {
        let per_second = |ticks: u64| ticks.checked_mul(reference_hz)?.checked_div(u64::from(elapsed));
        // The APIC's timer counts down.
        let apic = self.apic.wrapping_sub(end.apic);
        let rates =
            Rates { tsc_hz: per_second(end.tsc.checked_sub(self.tsc)?)?, apic_hz: per_second(u64::from(apic))? };
        (rates.tsc_hz > 1_000_000).then_some(rates)
    }
}

fn measure_by_pm_timer(timer: PmTimer) -> Option<Rates> {
    let mut port = Port::<u32>::new(timer.port);
    // SAFETY: 1. The FADT names this port as the PM timer; reading it has no effect.
    let mut read = || unsafe { port.read() } & PM_MASK;
    apic::free_run();
    let start = sample(&mut read);
    let mut patience = PATIENCE;
    while read().wrapping_sub(start.reference) & PM_MASK < PM_TICKS {
        patience = patience.checked_sub(1)?;
    }
    let end = sample(&mut read);
    apic::disarm();
    start.rates(end, PM_HZ, end.reference.wrapping_sub(start.reference) & PM_MASK)
}

/// The tightest of a few samples: one taken while an emulator's host was away would spoil the rate.
fn sample(read: &mut dyn FnMut() -> u32) -> Sample {
    let mut best = (u64::MAX, Sample { reference: 0, tsc: 0, apic: 0 });
    for _ in 0..8 {
        let before = tsc();
        let reference = read();
        let apic = apic::timer_count();
        let gap = tsc() - before;
        if gap < best.0 {
            best = (gap, Sample { reference, tsc: before + gap / 2, apic });
        }
    }
    best.1
}

/// Counts the 8254's channel 2 down once, its gate and output being in port 0x61 (bits 0 and 5).
fn measure_by_pit() -> Option<Rates> {
    let (mut command, mut data, mut control) = (Port::<u8>::new(0x43), Port::<u8>::new(0x42), Port::<u8>::new(0x61));
    // SAFETY: 1. These ports are the 8254 and its gate on every PC, and nobody else uses channel 2 (the speaker, whose
    // bit 1 stays clear).
    let mut ended = unsafe {
        let gate_off = control.read() & !0b11;
        control.write(gate_off);
        // Channel 2, low byte then high byte, mode 0 (output rises at the end), binary.
        command.write(0b1011_0000);
        let [low, high] = PIT_TICKS.to_le_bytes();
        data.write(low);
        data.write(high);
        control.write(gate_off | 1);
        move || control.read() & 0x20 != 0
    };
    apic::free_run();
    let start = Sample { reference: 0, tsc: tsc(), apic: apic::timer_count() };
    let mut patience = PATIENCE;
    while !ended() {
        patience = patience.checked_sub(1)?;
    }
    let end = Sample { reference: 0, tsc: tsc(), apic: apic::timer_count() };
    apic::disarm();
    start.rates(end, PIT_HZ, u32::from(PIT_TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_two_samples() {
        let start = Sample { reference: 0xFF_FFF0, tsc: 1000, apic: u32::MAX };
        let end = Sample { reference: PM_TICKS - 0x10, tsc: 1000 + 40_000_000, apic: u32::MAX - 2_000_000 };
        let elapsed = end.reference.wrapping_sub(start.reference) & PM_MASK;
        let rates = start.rates(end, PM_HZ, elapsed).unwrap();
        assert!(rates.tsc_hz.abs_diff(2_000_000_000) < 30_000, "{rates:?}");
        assert!(rates.apic_hz.abs_diff(100_000_000) < 1_500, "{rates:?}");
        assert_eq!(end.rates(start, PM_HZ, elapsed), None);
        assert_eq!(start.rates(end, PM_HZ, 0), None);
    }

    #[test]
    fn there_and_back_loses_little() {
        for hz in [1_000_000_000, 2_399_987_654, 5_000_000_000] {
            let (to, back) = (factor(hz, 1_000_000_000), factor(1_000_000_000, hz));
            for ticks in [0, 1_000, 10_u64.pow(12), 10_u64.pow(16)] {
                let error = scale(scale(ticks, to), back).abs_diff(ticks);
                assert!(error <= 8 + ticks / 100_000_000, "{hz} {ticks} {error}");
            }
        }
        assert_eq!(scale(u64::MAX, u64::MAX), u64::MAX);
    }
}
