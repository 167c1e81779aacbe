//! Counters: typed, bounded, never reset (design D12).

use crate::units::units;
use gvt_defs::{ENGINES, Engine, Nanos};

/// Registers counted one by one; the rest goes to `Exits::other`.
const SLOTS: usize = 512;
const PROBES: usize = 16;

/// Exits at one register.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RegisterExits {
    /// Offset in BAR0, dword aligned, plus 1 (0 = free slot).
    key: u32,
    /// Loads.
    pub reads: u32,
    /// Stores.
    pub writes: u32,
}

impl RegisterExits {
    /// Offset in BAR0.
    pub fn offset(&self) -> u32 {
        self.key.wrapping_sub(1)
    }
}

/// Exits by register.
#[derive(Clone, Debug)]
pub struct Exits {
    slots: [RegisterExits; SLOTS],
    /// Exits at registers that found no slot.
    pub other: u64,
    /// Loads in all.
    pub reads: u64,
    /// Stores in all.
    pub writes: u64,
    /// Accesses to the page-table half of BAR0 that exited.
    pub gtt: u64,
    /// Accesses to PCI configuration space.
    pub config: u64,
}

/// Load or store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
}

impl Exits {
    const fn new() -> Self {
        Self {
            slots: [RegisterExits { key: 0, reads: 0, writes: 0 }; SLOTS],
            other: 0,
            reads: 0,
            writes: 0,
            gtt: 0,
            config: 0,
        }
    }

    pub(crate) fn count(&mut self, offset: u32, access: Access) {
        match access {
            Access::Read => self.reads += 1,
            Access::Write => self.writes += 1,
        }
        let key = (offset & !3) + 1;
        let start = (offset >> 2).wrapping_mul(0x9E37_79B1) as usize >> 8;
        for probe in 0..PROBES {
            let Some(slot) = self.slots.get_mut((start + probe) % SLOTS) else { continue };
            if slot.key == 0 {
                slot.key = key;
            }
            if slot.key == key {
                let counter = if access == Access::Read { &mut slot.reads } else { &mut slot.writes };
                *counter = counter.wrapping_add(1);
                return;
            }
        }
        self.other += 1;
    }

    /// Every register that was counted, in no particular order.
    pub fn registers(&self) -> impl Iterator<Item = &RegisterExits> {
        self.slots.iter().filter(|slot| slot.key != 0)
    }

    /// Stores to one register.
    pub fn writes_at(&self, offset: u32) -> u64 {
        self.registers().find(|register| register.offset() == offset).map_or(0, |register| register.writes.into())
    }

    /// Loads and stores of registers in all.
    pub fn registers_total(&self) -> u64 {
        self.reads + self.writes
    }
}

/// What one engine did for one vGPU.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EngineStats {
    /// ELSP submissions by the guest.
    pub submissions: u64,
    /// Contexts that ran to their end.
    pub completions: u64,
    /// Time on the hardware.
    pub busy: Nanos,
    /// Times the hardware was given one of its contexts.
    pub loads: u64,
    /// Times another vGPU took over because the slice had ended.
    pub preemptions: u64,
    /// Resets that this vGPU caused or asked for on the physical engine.
    pub resets: u64,
}

/// Counters of one vGPU.
#[derive(Clone, Debug)]
pub struct Stats {
    /// By engine, in the order of `Engine::ALL`.
    pub engines: [EngineStats; ENGINES],
    /// Exits by register.
    pub exits: Exits,
    /// Interrupts raised.
    pub msis: u64,
    /// What interrupts for its commands' events cost, in units (`crate::units`).
    pub interrupt_units: u64,
    /// Times that its events were held back and merged, since that was too much.
    pub merges: u64,
    /// Bytes of commands audited.
    pub audit_bytes: u64,
    /// Commands audited.
    pub audit_commands: u64,
    /// Submissions refused.
    pub refused: u64,
    /// Engine TLB flushes on its behalf.
    pub tlb_flushes: u64,
    /// GGTT flushes on its behalf.
    pub ggtt_flushes: u64,
    /// Sync points (design D6).
    pub syncs: u64,
    /// Page-table entries that sync points changed, GGTT and PPGTT.
    pub synced_entries: u64,
    /// Bytes of context images copied from the guest.
    pub image_bytes_in: u64,
    /// Bytes of context images copied to the guest.
    pub image_bytes_out: u64,
    /// Times an engine came to it from another vGPU.
    pub switches: u64,
    /// Register accesses to the physical GPU while serving it.
    pub physical: u64,
    /// What the longest call that it made cost, in parts of a unit.
    pub(crate) longest: u64,
}

impl Stats {
    /// What the longest call that it made cost, in units (`crate::units`).
    pub fn longest(&self) -> u32 {
        units(self.longest)
    }

    pub(crate) const fn new() -> Self {
        const NONE: EngineStats =
            EngineStats { submissions: 0, completions: 0, busy: Nanos(0), loads: 0, preemptions: 0, resets: 0 };
        Self {
            engines: [NONE; ENGINES],
            exits: Exits::new(),
            msis: 0,
            interrupt_units: 0,
            merges: 0,
            audit_bytes: 0,
            audit_commands: 0,
            refused: 0,
            tlb_flushes: 0,
            ggtt_flushes: 0,
            syncs: 0,
            synced_entries: 0,
            image_bytes_in: 0,
            image_bytes_out: 0,
            switches: 0,
            physical: 0,
            longest: 0,
        }
    }

    /// Counters of one engine.
    pub fn engine(&self, engine: Engine) -> EngineStats {
        self.engines.get(engine.index()).copied().unwrap_or_default()
    }

    pub(crate) fn engine_mut(&mut self, engine: Engine) -> &mut EngineStats {
        let [rcs, bcs, vcs0, vcs1, vecs] = &mut self.engines;
        match engine {
            Engine::Rcs => rcs,
            Engine::Bcs => bcs,
            Engine::Vcs0 => vcs0,
            Engine::Vcs1 => vcs1,
            Engine::Vecs => vecs,
        }
    }

    /// Submissions on all engines.
    pub fn submissions(&self) -> u64 {
        self.engines.iter().map(|e| e.submissions).sum()
    }
}

/// Counters of the physical side.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Register reads.
    pub reads: u64,
    /// Register writes.
    pub writes: u64,
    /// Global page-table entries written.
    pub ptes: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Engine resets.
    pub resets: u64,
    /// What the longest call cost, whoever made it, in parts of a unit.
    pub(crate) longest: u64,
}

impl Totals {
    /// What the longest call cost, whoever made it, in units (`crate::units`).
    pub fn longest(&self) -> u32 {
        units(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_by_register() {
        let mut exits = Exits::new();
        for _ in 0..3 {
            exits.count(0x2230, Access::Write);
        }
        exits.count(0x2231, Access::Read);
        let found: Vec<_> = exits.registers().map(|r| (r.offset(), r.reads, r.writes)).collect();
        assert_eq!(found, [(0x2230, 1, 3)]);
        assert_eq!((exits.registers_total(), exits.writes_at(0x2230), exits.writes_at(0x2234)), (4, 3, 0));
    }

    #[test]
    fn a_flood_of_registers_stays_bounded() {
        let mut exits = Exits::new();
        for offset in (0..0x20_0000).step_by(4) {
            exits.count(offset, Access::Read);
        }
        let counted: u64 = exits.registers().map(|r| u64::from(r.reads)).sum();
        assert_eq!(counted + exits.other, 0x8_0000);
    }
}
