//! The command streamers of Gen9 and where each is found.

/// A command streamer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Engine {
    /// Render and compute.
    Rcs,
    /// Blitter.
    Bcs,
    /// First video decode engine.
    Vcs0,
    /// Second video decode engine (GT3 and GT4 only).
    Vcs1,
    /// Video enhancement.
    Vecs,
}

/// Number of engines that the architecture names.
pub const ENGINES: usize = 5;

/// Event bits of an engine inside its half of an interrupt bank, and in RING_IMR after the shift.
pub mod event {
    #![allow(missing_docs, reason = "the names are the datasheet's")]
    pub const USER_INTERRUPT: u32 = 1 << 0;
    pub const CS_MASTER_ERROR: u32 = 1 << 3;
    pub const FLUSH_NOTIFY: u32 = 1 << 4;
    pub const CONTEXT_SWITCH: u32 = 1 << 8;
    pub const SEMAPHORE_WAIT: u32 = 1 << 11;
}

/// What differs between engines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineInfo {
    /// The engine described.
    pub engine: Engine,
    /// Lower-case name as drivers print it.
    pub name: &'static str,
    /// Base of the engine's registers in BAR0; offsets of [`crate::ring`] are added.
    pub base: u32,
    /// Bit of GDRST (0x941C) that resets it.
    pub reset: u32,
    /// Number of its GT interrupt bank (0..=3).
    pub irq_bank: u32,
    /// First bit of its half of that bank.
    pub irq_shift: u32,
    /// Its bit in the master interrupt register.
    pub master: u32,
    /// Its TLB invalidation register (bit 0, self-clearing).
    pub tlb: u32,
    /// First of its 64 MOCS control registers.
    pub mocs: u32,
    /// Pages of a context image, the status page included.
    pub context_pages: u32,
    /// Value of the target field of MI_SEMAPHORE_SIGNAL.
    pub signal: u32,
    /// Id that fault registers report.
    pub fault_id: u32,
}

/// All engines, in the order of [`Engine`].
pub const INFO: [EngineInfo; ENGINES] = [
    EngineInfo {
        engine: Engine::Rcs,
        name: "rcs0",
        base: 0x2000,
        reset: 1 << 1,
        irq_bank: 0,
        irq_shift: 0,
        master: 1 << 0,
        tlb: 0x4260,
        mocs: 0xC800,
        context_pages: 22,
        signal: 0,
        fault_id: 0,
    },
    EngineInfo {
        engine: Engine::Bcs,
        name: "bcs0",
        base: 0x2_2000,
        reset: 1 << 3,
        irq_bank: 0,
        irq_shift: 16,
        master: 1 << 1,
        tlb: 0x426C,
        mocs: 0xCC00,
        context_pages: 2,
        signal: 2,
        fault_id: 3,
    },
    EngineInfo {
        engine: Engine::Vcs0,
        name: "vcs0",
        base: 0x1_2000,
        reset: 1 << 2,
        irq_bank: 1,
        irq_shift: 0,
        master: 1 << 2,
        tlb: 0x4264,
        mocs: 0xC900,
        context_pages: 2,
        signal: 1,
        fault_id: 1,
    },
    EngineInfo {
        engine: Engine::Vcs1,
        name: "vcs1",
        base: 0x1_C000,
        reset: 1 << 7,
        irq_bank: 1,
        irq_shift: 16,
        master: 1 << 3,
        tlb: 0x4268,
        mocs: 0xCA00,
        context_pages: 2,
        signal: 4,
        fault_id: 4,
    },
    EngineInfo {
        engine: Engine::Vecs,
        name: "vecs0",
        base: 0x1_A000,
        reset: 1 << 4,
        irq_bank: 3,
        irq_shift: 0,
        master: 1 << 6,
        tlb: 0x4270,
        mocs: 0xCB00,
        context_pages: 2,
        signal: 3,
        fault_id: 2,
    },
];

impl Engine {
    /// Every engine, in table order.
    pub const ALL: [Self; ENGINES] = [Self::Rcs, Self::Bcs, Self::Vcs0, Self::Vcs1, Self::Vecs];

    /// The engine's description.
    pub const fn info(self) -> &'static EngineInfo {
        &INFO[self as usize]
    }

    /// Position in tables of [`ENGINES`] entries.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Base of its registers.
    pub const fn base(self) -> u32 {
        self.info().base
    }

    /// Bit of this engine in an [`EngineMask`].
    pub const fn mask(self) -> EngineMask {
        EngineMask(1 << self as u8)
    }

    /// The engine in whose 4 KiB of registers `offset` lies, and the offset from its base.
    ///
    /// On Gen9 an engine's block is 0x800 bytes; what follows in the RCS page belongs to fixed functions.
    pub fn of_register(offset: u32) -> Option<(Self, u32)> {
        let engine = match offset & !0xFFF {
            0x2000 => Self::Rcs,
            0x2_2000 => Self::Bcs,
            0x1_2000 => Self::Vcs0,
            0x1_C000 => Self::Vcs1,
            0x1_A000 => Self::Vecs,
            _ => return None,
        };
        Some((engine, offset & 0xFFF))
    }

    /// The engine with this number in [`Engine::ALL`].
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }
}

/// A set of engines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineMask(pub u8);

impl EngineMask {
    /// No engine.
    pub const NONE: Self = Self(0);
    /// Render only.
    pub const RCS: Self = Engine::Rcs.mask();
    /// Blitter only.
    pub const BCS: Self = Engine::Bcs.mask();
    /// Both video decoders.
    pub const VCS: Self = Self(Engine::Vcs0.mask().0 | Engine::Vcs1.mask().0);
    /// Video enhancement only.
    pub const VECS: Self = Engine::Vecs.mask();
    /// Every engine.
    pub const ALL: Self = Self(0x1F);
    /// What a GT2 part has: no second VCS.
    pub const GT2: Self = Self(Self::ALL.0 & !Engine::Vcs1.mask().0);

    /// Whether `engine` is in the set.
    pub const fn has(self, engine: Engine) -> bool {
        self.0 & engine.mask().0 != 0
    }

    /// The union.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_enum_order_and_unambiguous() {
        for (i, info) in INFO.iter().enumerate() {
            assert_eq!(info.engine.index(), i);
            assert_eq!(Engine::of_register(info.base + 0x230), Some((info.engine, 0x230)));
            for other in &INFO[i + 1..] {
                assert_ne!(info.reset, other.reset);
                assert_ne!(info.tlb, other.tlb);
                assert_ne!(info.mocs, other.mocs);
                assert_ne!(info.master, other.master);
                assert_ne!((info.irq_bank, info.irq_shift), (other.irq_bank, other.irq_shift));
            }
        }
    }

    #[test]
    fn gt2_has_no_second_vcs() {
        assert!(EngineMask::GT2.has(Engine::Vcs0) && !EngineMask::GT2.has(Engine::Vcs1));
        assert_eq!(EngineMask::RCS.or(EngineMask::BCS).0, 3);
    }
}
