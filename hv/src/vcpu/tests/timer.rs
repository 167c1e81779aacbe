//! Whatever a guest's timer is set to: it is due, or the host's timer is set to a time at which it is.

use hv_defs::{Nanos, msr};
use hv_dev::Message;
use hv_dev::apic::{ApicBus, Bootstrap, Deadline, Lapic};
use proptest::prelude::*;

use crate::apic::countdown;
use crate::clock::GuestTsc;
use crate::time::{Timeline, factor};

const SECOND: u64 = 1_000_000_000;
/// What is further off than this does not come.
const CENTURY: u64 = 100 * 365 * 86_400 * SECOND;

struct Nowhere;

impl ApicBus for Nowhere {
    fn send(&mut self, _: Message) {}
    fn eoi(&mut self, _: u8) {}
}

/// A guest's local APIC and its TSC, on a host.
#[derive(Clone, Debug)]
struct Machine {
    tsc_hz: u64,
    apic_hz: u64,
    timeline: Timeline,
    tsc: GuestTsc,
    lapic: Lapic,
}

impl Machine {
    fn write(&mut self, number: u32, value: u64, now: Nanos) {
        self.lapic.msr_write(number, value, now, &mut Nowhere).unwrap();
    }

    fn is_due(&self, now: Nanos, tsc: u64) -> bool {
        self.lapic.deadline().is_some_and(|deadline| self.tsc.is_due(deadline, now, tsc))
    }

    /// As the run loop looks at it: the time first, the TSC a little later.
    fn look(&self, tsc: u64, later: u64) -> (Nanos, u64) {
        (self.timeline.nanos(tsc), tsc + later)
    }
}

/// TSC of the host, and how far the guest's deadline is from there.
fn far() -> impl Strategy<Value = u64> {
    prop_oneof![0..10_000u64, 0..10_000_000_000u64, any::<u64>(), (0..64u32).prop_map(|bit| 1 << bit)]
}

prop_compose! {
    fn machine()(
        tsc_hz in prop_oneof![1_000_001..10_000_000u64, 800_000_000..6_000_000_000u64],
        apic_hz in prop_oneof![1_000_000..100_000_000u64, 100_000_000..2_000_000_000u64],
        base in prop_oneof![Just(0), 0..1u64 << 50],
        // Ten years of up-time at most.
        up in prop_oneof![0..1_000_000u64, 0..300_000_000 * SECOND],
        mode in 0..3u32,
        (divide, initial) in (0..16u64, any::<u32>()),
        (offset, ahead, sign) in (any::<u64>(), far(), any::<bool>()),
        set_before in 0..1_000_000_000u64,
    ) -> (Machine, u64) {
        let timeline = Timeline::new(tsc_hz, base);
        let host = base + (u128::from(up) * u128::from(tsc_hz) / u128::from(SECOND)) as u64;
        let tsc = GuestTsc { offset, adjust: 0 };
        let lapic = Lapic::new(0, Bootstrap::Yes, SECOND as u32);
        let mut machine = Machine { tsc_hz, apic_hz, timeline, tsc, lapic };
        let set = Nanos(timeline.nanos(host).0.saturating_sub(set_before));
        machine.write(msr::IA32_APIC_BASE, machine.lapic.base() | 0xC00, set);
        machine.write(0x80F, 0x1FF, set);
        machine.write(0x832, u64::from(mode << 17 | 0x41), set);
        machine.write(0x83E, divide & 0xB, set);
        machine.write(0x838, initial.into(), set);
        let deadline = tsc.read(host);
        let deadline = if sign { deadline.wrapping_add(ahead) } else { deadline.wrapping_sub(ahead) };
        machine.write(msr::IA32_TSC_DEADLINE, deadline, set);
        (machine, host)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is due fires, and is then no longer due at once.
    #[test]
    fn what_is_due_fires((mut machine, tsc) in machine(), later in 0..10_000u64) {
        let (now, tsc) = machine.look(tsc, later);
        let due = machine.is_due(now, tsc);
        machine.lapic.expire(now, machine.tsc.read(tsc));
        prop_assert_eq!(machine.lapic.has_pending(), due);
        prop_assert!(!machine.is_due(now, tsc));
    }

    /// A timer that takes TSC deadlines fires once, when the guest's is due.
    #[test]
    fn what_is_not_due_is_armed_by_deadline((machine, tsc) in machine(), later in 0..10_000u64, delay in 0..1_000u64) {
        let (now, tsc) = machine.look(tsc, later);
        let Some(deadline) = machine.lapic.deadline().filter(|_| !machine.is_due(now, tsc)) else { return Ok(()) };
        let when = machine.tsc.when(deadline, tsc, machine.timeline);
        let fires = machine.timeline.tsc(when).max(1);
        if fires.saturating_add(delay) == u64::MAX || when.0 == u64::MAX {
            prop_assert!(u128::from(u64::MAX - tsc) * u128::from(SECOND) / u128::from(machine.tsc_hz) > CENTURY.into());
            return Ok(());
        }
        let (now, at) = machine.look(fires.max(tsc) + delay, 0);
        prop_assert!(machine.is_due(now, at), "{when:?} {now:?} {tsc} {at}");
        // And not much later than the guest asked.
        if let Deadline::Tsc(deadline) = deadline {
            let late = machine.tsc.read(fires).saturating_sub(deadline);
            prop_assert!(late <= 2 + 2 * machine.tsc_hz / SECOND, "{late} ticks late");
        }
    }

    /// A timer that counts down brings the deadline nearer each time, at most by its whole count, and is then late by a
    /// ten-thousandth at most. Both rates were measured with an error of up to fifty in a million.
    #[test]
    fn what_is_not_due_is_armed_by_count((machine, tsc) in machine(), later in 0..10_000u64, wrong in -50..50i64) {
        let (mut now, mut tsc) = machine.look(tsc, later);
        let ticks_per_nano = factor(SECOND, machine.apic_hz).max(1);
        for _ in 0..8 {
            let Some(deadline) = machine.lapic.deadline().filter(|_| !machine.is_due(now, tsc)) else { return Ok(()) };
            let when = machine.tsc.when(deadline, tsc, machine.timeline);
            // `apic::arm` asks for the time itself.
            let before = machine.timeline.nanos(tsc);
            let left = when.0.saturating_sub(before.0);
            let count = countdown(left, ticks_per_nano);
            prop_assert!(count > 0, "0 would stop the timer");
            let hz = machine.apic_hz.checked_add_signed(machine.apic_hz as i64 / 1_000_000 * wrong).unwrap();
            let ticks = (u128::from(count) * u128::from(machine.tsc_hz)).div_ceil(hz.into()) as u64;
            let Some(at) = tsc.checked_add(ticks) else { return Ok(()) };
            let ticks_of_either = SECOND / machine.apic_hz + 2 * (SECOND / machine.tsc_hz);
            (now, tsc) = machine.look(at, 0);
            let whole = u64::from(u32::MAX) * SECOND / machine.apic_hz;
            prop_assert!(count == u32::MAX || machine.is_due(now, tsc), "{left} ns left, {count} ticks");
            prop_assert!(count < u32::MAX || now.0 - before.0 >= whole - whole / 1_000, "a whole count is little");
            let late = (now.0 - before.0).saturating_sub(left);
            prop_assert!(late <= left / 4_000 + 3_000 + ticks_of_either, "{late} ns late");
        }
    }
}
