//! Counters: every exit, by reason, with the time that Prism spent on it (design D12). Lock-free and bounded.

use core::sync::atomic::{AtomicU64, Ordering};

use strum::{FromRepr, VariantNames};

/// Why guests exit, as fine as it is worth counting. Tables and `@stat` lines have the names in kebab case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Reason {
    HostInterrupt,
    Window,
    Cpuid,
    Hlt,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
    PortString,
    MmioApic,
    MmioChipset,
    MmioBar,
    TrackedWrite,
    StaleMapping,
    RamFilled,
    MmioUnknown,
    Xsetbv,
    CacheFlush,
    Hypercall,
    Undefined,
    Exception,
    Nmi,
    Cr8,
    ControlRegister,
    Fatal,
    Other,
}

/// How many reasons there are.
const REASONS: usize = Reason::VARIANTS.len();

/// Different unknown places that are remembered.
const UNKNOWN: usize = 48;

/// Something that nobody answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromRepr)]
#[repr(u8)]
pub enum Nobody {
    /// A port.
    Port = 1,
    /// A memory address (counted by page).
    Memory = 2,
    /// A model-specific register.
    Msr = 3,
}

/// Counters of one VM.
pub struct VmStats {
    counts: [AtomicU64; REASONS],
    /// TSC ticks in root mode.
    ticks: [AtomicU64; REASONS],
    guest_ticks: AtomicU64,
    interrupts: AtomicU64,
    unknown: [Unknown; UNKNOWN],
    unknown_lost: AtomicU64,
}

struct Unknown {
    key: AtomicU64,
    count: AtomicU64,
}

impl Default for VmStats {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; REASONS],
            ticks: [const { AtomicU64::new(0) }; REASONS],
            guest_ticks: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            unknown: [const { Unknown { key: AtomicU64::new(0), count: AtomicU64::new(0) } }; UNKNOWN],
            unknown_lost: AtomicU64::new(0),
        }
    }
}

impl VmStats {
    /// Counts one exit and the time it took.
    pub fn exit(&self, reason: Reason, ticks: u64) {
        if let (Some(count), Some(time)) = (self.counts.get(reason as usize), self.ticks.get(reason as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
            time.fetch_add(ticks, Ordering::Relaxed);
        }
    }

    /// Adds time in guest mode.
    pub fn ran(&self, ticks: u64) {
        self.guest_ticks.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Counts interrupts that a guest took.
    pub fn injected(&self, count: u32) {
        self.interrupts.fetch_add(u64::from(count), Ordering::Relaxed);
    }

    fn at(&self, index: usize) -> (u64, u64) {
        let load = |counters: &[AtomicU64; REASONS]| counters.get(index).map_or(0, |n| n.load(Ordering::Relaxed));
        (load(&self.counts), load(&self.ticks))
    }

    /// All reasons that occurred: name, exits, ticks.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let rows = Reason::VARIANTS.iter().enumerate().map(|(index, name)| (*name, self.at(index).0, self.at(index).1));
        rows.filter(|row| row.1 > 0)
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.rows().map(|(_, count, _)| count).sum()
    }

    /// Ticks in guest mode.
    pub fn guest_ticks(&self) -> u64 {
        self.guest_ticks.load(Ordering::Relaxed)
    }

    /// Interrupts injected.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Counts an access that nobody answers. The first few different places are kept apart.
    pub fn nobody(&self, kind: Nobody, place: u64) {
        let place = if kind == Nobody::Memory { place & !0xFFF } else { place };
        let key = (kind as u64) << 56 | place & ((1 << 56) - 1);
        for slot in &self.unknown {
            let claimed = slot.key.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed);
            if claimed.is_ok() || claimed == Err(key) {
                slot.count.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        self.unknown_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// What nobody answered: kind, place, count.
    pub fn unanswered(&self) -> impl Iterator<Item = (Nobody, u64, u64)> {
        self.unknown.iter().filter_map(|slot| {
            let key = slot.key.load(Ordering::Relaxed);
            let kind = Nobody::from_repr((key >> 56) as u8)?;
            Some((kind, key & ((1 << 56) - 1), slot.count.load(Ordering::Relaxed)))
        })
    }

    /// Unanswered accesses at further places.
    pub fn unanswered_elsewhere(&self) -> u64 {
        self.unknown_lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_find_the_names_that_they_know() {
        for name in ["host-interrupt", "msr-read", "port-string", "mmio-apic", "mmio-bar", "mmio-unknown", "cr8", "nmi"]
        {
            assert!(Reason::VARIANTS.contains(&name), "{name}");
        }
    }

    #[test]
    fn exits_are_counted_by_reason() {
        let stats = VmStats::default();
        stats.exit(Reason::Cpuid, 10);
        stats.exit(Reason::Cpuid, 20);
        stats.exit(Reason::MmioBar, 5);
        assert_eq!(stats.at(Reason::Cpuid as usize), (2, 30));
        assert_eq!(stats.rows().collect::<Vec<_>>(), [("cpuid", 2, 30), ("mmio-bar", 1, 5)]);
        assert_eq!(stats.total(), 3);
    }

    #[test]
    fn unanswered_places_are_bounded() {
        let stats = VmStats::default();
        for n in 0..1000 {
            stats.nobody(Nobody::Port, n);
            stats.nobody(Nobody::Port, 0x2E);
        }
        assert_eq!(stats.unanswered().count(), UNKNOWN);
        let port_2e = stats.unanswered().find(|row| row.1 == 0x2E).unwrap();
        assert_eq!(port_2e.2, 1001);
        assert_eq!(stats.unanswered_elsewhere(), 1000 - UNKNOWN as u64);
        let stats = VmStats::default();
        stats.nobody(Nobody::Memory, 0xFED4_0123);
        assert_eq!(stats.unanswered().next(), Some((Nobody::Memory, 0xFED4_0000, 1)));
    }
}
