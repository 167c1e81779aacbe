//! Guest time (design D14): the TSC as an offset to the host's, and the KVM clock that tells its rate.
//!
//! The clock page is constant: TSC and system time start together, at the beginning of the VM's life.

use hv_defs::{Gpa, Nanos};
use hv_dev::apic::Deadline;

use crate::time::Timeline;

/// Bit 0 of the MSRs: the clock is in use.
const ENABLED: u64 = 1;
/// PVCLOCK_TSC_STABLE_BIT.
const TSC_STABLE: u8 = 1;

/// The TSC of one virtual CPU.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GuestTsc {
    /// Guest TSC minus host TSC.
    pub offset: u64,
    /// IA32_TSC_ADJUST.
    pub adjust: u64,
}

impl GuestTsc {
    /// A TSC that was zero when the host's was `base`.
    pub fn starting_at(base: u64) -> Self {
        Self { offset: base.wrapping_neg(), adjust: 0 }
    }

    /// The guest's TSC when the host's is `host`.
    pub fn read(&self, host: u64) -> u64 {
        host.wrapping_add(self.offset)
    }

    /// WRMSR to the TSC.
    pub fn write(&mut self, host: u64, value: u64) {
        let change = value.wrapping_sub(self.read(host));
        self.offset = self.offset.wrapping_add(change);
        self.adjust = self.adjust.wrapping_add(change);
    }

    /// WRMSR to IA32_TSC_ADJUST.
    pub fn write_adjust(&mut self, value: u64) {
        self.offset = self.offset.wrapping_add(value.wrapping_sub(self.adjust));
        self.adjust = value;
    }

    /// Whether a timer with this deadline fires.
    pub fn is_due(&self, deadline: Deadline, now: Nanos, tsc: u64) -> bool {
        match deadline {
            Deadline::At(deadline) => deadline <= now,
            Deadline::Tsc(deadline) => deadline <= self.read(tsc),
        }
    }

    /// When a deadline that is not due when the host's TSC is `tsc` is due for sure.
    pub fn when(&self, deadline: Deadline, tsc: u64, timeline: Timeline) -> Nanos {
        match deadline {
            Deadline::At(deadline) => deadline,
            Deadline::Tsc(deadline) => {
                // Counted from now: what lies beyond the host's last tick must not come out in its past.
                let ahead = deadline.saturating_sub(self.read(tsc));
                // One more, as the conversion rounds down.
                Nanos(timeline.nanos(tsc.saturating_add(ahead)).0.saturating_add(1))
            }
        }
    }
}

/// `nanoseconds = (ticks << shift) * multiplier >> 32`, as the pvclock page has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    /// tsc_to_system_mul.
    pub multiplier: u32,
    /// tsc_shift.
    pub shift: i8,
}

impl Scale {
    /// The scale for a TSC of `hz` ticks a second.
    pub fn of(hz: u64) -> Self {
        let mut shift = 0;
        let mut ticks = u128::from(hz.max(1));
        // Bring the rate into (1 GHz, 2 GHz], so that the multiplier keeps 31 bits or more.
        while ticks > 2_000_000_000 {
            ticks = ticks.div_ceil(2);
            shift -= 1;
        }
        while ticks <= 1_000_000_000 {
            ticks *= 2;
            shift += 1;
        }
        // From the exact rate, not the rounded one.
        let exact = (1_000_000_000_u128 << 64) / u128::from(hz.max(1));
        let multiplier = if shift >= 0 { exact >> (32 + shift) } else { exact >> 32 << -shift };
        Self { multiplier: multiplier.min(u128::from(u32::MAX)) as u32, shift: shift as i8 }
    }

    /// Nanoseconds of `ticks`, as a guest computes them.
    #[cfg(test)]
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let shifted = if self.shift >= 0 { ticks << self.shift } else { ticks >> -self.shift };
        ((shifted * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// Where a virtual CPU's clock page is: the value of the system-time MSR.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KvmClock {
    /// As written.
    pub msr: u64,
}

impl KvmClock {
    /// Guest-physical address of the page's 32 bytes, if the clock is in use.
    pub fn place(self) -> Option<Gpa> {
        (self.msr & ENABLED != 0).then_some(Gpa(self.msr & !ENABLED))
    }
}

/// The 32 bytes of `struct pvclock_vcpu_time_info` (Linux Documentation/virt/kvm/x86/msr.rst). `tsc` is the guest's TSC
/// at system time zero.
pub fn time_info(scale: Scale, tsc: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    let fields: [(usize, &[u8]); 5] = [
        (0, &2u32.to_le_bytes()), // version: even, so stable
        (8, &tsc.to_le_bytes()),
        (24, &scale.multiplier.to_le_bytes()),
        (28, &scale.shift.to_le_bytes()),
        (29, &[TSC_STABLE]),
    ];
    for (at, value) in fields {
        for (place, byte) in bytes.iter_mut().skip(at).zip(value) {
            *place = *byte;
        }
    }
    bytes
}

/// The 12 bytes of `struct pvclock_wall_clock`: the wall time at system time zero.
pub fn wall_clock(seconds: u64, nanoseconds: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    let words = [2, seconds as u32, nanoseconds];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_exact_to_a_millionth() {
        for hz in [1_000_000, 999_999_999, 1_000_000_000, 1_000_000_001, 2_100_000_000, 2_893_202_000, 5_700_000_000] {
            let scale = Scale::of(hz);
            let hour = scale.nanoseconds(hz * 3600);
            let error = hour.abs_diff(3_600_000_000_000);
            assert!(error < 3_600_000, "{hz}: {error} ns an hour");
            assert!(scale.multiplier >= 1 << 30, "{hz}: {scale:?}");
        }
    }

    #[test]
    fn tsc_adjust_follows_the_tsc() {
        let mut tsc = GuestTsc::starting_at(1000);
        assert_eq!(tsc.read(1500), 500);
        tsc.write(1500, 0);
        assert_eq!((tsc.read(1500), tsc.adjust), (0, 500u64.wrapping_neg()));
        tsc.write_adjust(0);
        assert_eq!(tsc.read(1500), 500);
    }

    #[test]
    fn the_page_has_the_layout_of_pvclock() {
        let info = time_info(Scale { multiplier: 0x1122_3344, shift: -1 }, 0x5566);
        assert_eq!(&info[0..4], &[2, 0, 0, 0]);
        assert_eq!(&info[8..10], &[0x66, 0x55]);
        assert_eq!(&info[16..24], &[0; 8]);
        assert_eq!(&info[24..30], &[0x44, 0x33, 0x22, 0x11, 0xFF, 1]);
        assert_eq!(KvmClock { msr: 0x1001 }.place(), Some(Gpa(0x1000)));
        assert_eq!(KvmClock { msr: 0x1000 }.place(), None);
        assert_eq!(wall_clock(5, 6), [2, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
    }
}
