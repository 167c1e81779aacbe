//! The logical ring context image (LRC): page 0 is the context's status page, page 1 holds registers as a stream of
//! MI_LOAD_REGISTER_IMM commands, the rest is the render engine's own.
//!
//! Positions are dword indices into page 1. At a position lies a register offset, its value one dword later.

use crate::{Engine, ring};

/// Byte offset of the register page in the image.
pub const REGISTER_PAGE: u32 = 0x1000;
/// Dwords in the register page.
pub const DWORDS: usize = 1024;
/// Dwords of the ring context; the engine context follows.
pub const RING_CONTEXT_DWORDS: usize = 0x50;
/// Byte offset in page 0 of the scratch dword that i915 aims "store data index" at.
pub const PPHWSP_SCRATCH: u32 = 0xD0;

pub mod value {
    //! Positions of values (not of the register offsets before them).
    #![allow(missing_docs, reason = "the names are the datasheet's")]
    pub const CTX_CONTROL: usize = 0x03;
    pub const RING_HEAD: usize = 0x05;
    pub const RING_TAIL: usize = 0x07;
    pub const RING_START: usize = 0x09;
    pub const RING_CTL: usize = 0x0B;
    pub const BB_ADDR_UDW: usize = 0x0D;
    pub const BB_ADDR: usize = 0x0F;
    pub const BB_STATE: usize = 0x11;
    pub const SBB_ADDR_UDW: usize = 0x13;
    pub const SBB_ADDR: usize = 0x15;
    pub const SBB_STATE: usize = 0x17;
    pub const BB_PER_CTX_PTR: usize = 0x19;
    pub const INDIRECT_CTX: usize = 0x1B;
    pub const INDIRECT_CTX_OFFSET: usize = 0x1D;
    pub const CTX_TIMESTAMP: usize = 0x23;
    pub const PDP3_UDW: usize = 0x25;
    pub const PDP3_LDW: usize = 0x27;
    pub const PDP2_UDW: usize = 0x29;
    pub const PDP2_LDW: usize = 0x2B;
    pub const PDP1_UDW: usize = 0x2D;
    pub const PDP1_LDW: usize = 0x2F;
    pub const PDP0_UDW: usize = 0x31;
    pub const PDP0_LDW: usize = 0x33;
    /// RCS: R_PWR_CLK_STATE.
    pub const RPCS: usize = 0x43;
    pub const MI_MODE: usize = 0x55;
    pub const BB_OFFSET: usize = 0x65;
    /// RCS: OACTXCONTROL.
    pub const OACTXCONTROL: usize = 0x129;
    /// RCS: first of seven flexible EU counters, two dwords apart.
    pub const FLEX_EU0: usize = 0x3DF;
}

/// INDIRECT_CTX: bits 5:0 cache lines, 31:6 GGTT address.
pub const INDIRECT_SIZE_MASK: u32 = 0x3F;
/// Bytes of a cache line.
pub const CACHELINE: u32 = 64;
/// BB_PER_CTX_PTR bit 0.
pub const PER_CTX_VALID: u32 = 1 << 0;

/// A run of register/value pairs behind one MI_LOAD_REGISTER_IMM header.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Position of the header.
    pub header: usize,
    /// Registers; relative to the engine's base unless `absolute`.
    pub registers: &'static [u32],
    /// Whether the offsets are absolute.
    pub absolute: bool,
    /// Whether it is part of the engine context, which restore-inhibit skips.
    pub engine_context: bool,
}

impl Group {
    /// The header that stands before the pairs (force-posted, as hardware writes it).
    pub const fn header_dword(&self) -> u32 {
        crate::mi::header(crate::mi::LOAD_REGISTER_IMM) | 1 << 12 | (self.registers.len() as u32 * 2 - 1)
    }

    /// Position and absolute offset of register `i`.
    pub fn pair(&self, engine: Engine, i: usize) -> Option<(usize, u32)> {
        let register = *self.registers.get(i)?;
        let offset = if self.absolute { register } else { engine.base() + register };
        Some((self.header + 1 + 2 * i, offset))
    }
}

const RING: [u32; 14] = [
    ring::CTX_CONTROL,
    ring::HEAD,
    ring::TAIL,
    ring::START,
    ring::CTL,
    ring::BB_ADDR_UDW,
    ring::BB_ADDR,
    ring::BB_STATE,
    ring::SBB_ADDR_UDW,
    ring::SBB_ADDR,
    ring::SBB_STATE,
    ring::BB_PER_CTX_PTR,
    ring::INDIRECT_CTX,
    ring::INDIRECT_CTX_OFFSET,
];

const PDPS: [u32; 9] = [ring::CTX_TIMESTAMP, 0x28C, 0x288, 0x284, 0x280, 0x27C, 0x278, 0x274, 0x270];

const COMMON: [u32; 44] = [
    ring::EXCC,
    ring::MI_MODE,
    ring::INSTPM,
    ring::BB_START_178,
    ring::BB_START_17C,
    ring::TIMESTAMP,
    ring::BB_START_170,
    ring::BB_START_ADDR,
    ring::BB_START_ADDR_UDW,
    ring::BB_OFFSET,
    ring::MI_PREDICATE_RESULT_1,
    0x600,
    0x604,
    0x608,
    0x60C,
    0x610,
    0x614,
    0x618,
    0x61C,
    0x620,
    0x624,
    0x628,
    0x62C,
    0x630,
    0x634,
    0x638,
    0x63C,
    0x640,
    0x644,
    0x648,
    0x64C,
    0x650,
    0x654,
    0x658,
    0x65C,
    0x660,
    0x664,
    0x668,
    0x66C,
    0x670,
    0x674,
    0x678,
    0x67C,
    ring::IPEHR,
];

/// Per-context registers of the render engine, first part (our layout; opaque on silicon). COMMON_SLICE_CHICKEN2 and
/// ROW_CHICKEN2 stand in i915's list of workarounds that a context keeps.
const RENDER_A: [u32; 62] = [
    0x7000, 0x7004, 0x7008, 0x7014, 0x7034, 0x7300, 0x7304, 0xE100, 0xE180, 0xE184, 0xE188, 0xE194, 0xE400, 0xE404,
    0xE4F0, 0x2580, 0x2290, 0x2294, 0x2300, 0x2304, 0x2308, 0x230C, 0x2310, 0x2314, 0x2318, 0x231C, 0x2320, 0x2324,
    0x2328, 0x232C, 0x2330, 0x2334, 0x2338, 0x233C, 0x2340, 0x2344, 0x2348, 0x234C, 0x2350, 0x2354, 0x22C8, 0x22CC,
    0x22D8, 0x22DC, 0x22F0, 0x22F4, 0x22F8, 0x22FC, 0x2448, 0x244C, 0x2450, 0x2454, 0x2364, 0x2420, 0x2430, 0x2434,
    0x2438, 0x243C, 0x2440, 0x2500, 0x7010, 0xE4F4,
];

/// Second part; it begins where drivers look for OACTXCONTROL.
const RENDER_B: [u32; 30] = [
    0x2360, 0x2504, 0x2508, 0x2400, 0x2404, 0x2408, 0x240C, 0x2410, 0x2414, 0x2418, 0x5200, 0x5204, 0x5208, 0x520C,
    0x5210, 0x5214, 0x5218, 0x521C, 0x5240, 0x5244, 0x5248, 0x524C, 0x5250, 0x5254, 0x5258, 0x525C, 0x5280, 0x5284,
    0x5288, 0x528C,
];

/// The flexible EU counters, where drivers look for them.
const FLEX_EU: [u32; 7] = [0xE458, 0xE558, 0xE658, 0xE758, 0xE45C, 0xE55C, 0xE65C];

const HEAD_GROUPS: [Group; 2] = [
    Group { header: 0x01, registers: &RING, absolute: false, engine_context: false },
    Group { header: 0x21, registers: &PDPS, absolute: false, engine_context: false },
];

const RENDER_LAYOUT: [Group; 7] = [
    HEAD_GROUPS[0],
    HEAD_GROUPS[1],
    Group { header: 0x41, registers: &[ring::RPCS], absolute: false, engine_context: true },
    Group { header: 0x51, registers: &COMMON, absolute: false, engine_context: true },
    Group { header: 0xAA, registers: &RENDER_A, absolute: true, engine_context: true },
    Group { header: 0x127, registers: &RENDER_B, absolute: true, engine_context: true },
    Group { header: 0x3DD, registers: &FLEX_EU, absolute: true, engine_context: true },
];

const OTHER_LAYOUT: [Group; 4] = [
    HEAD_GROUPS[0],
    HEAD_GROUPS[1],
    Group { header: 0x41, registers: &[ring::SWCTRL], absolute: false, engine_context: true },
    Group { header: 0x51, registers: &COMMON, absolute: false, engine_context: true },
];

/// The groups of an engine's register page, in order. Dwords between groups are MI_NOOP.
pub const fn layout(engine: Engine) -> &'static [Group] {
    match engine {
        Engine::Rcs => &RENDER_LAYOUT,
        _ => &OTHER_LAYOUT,
    }
}

/// Position of MI_BATCH_BUFFER_END after the last group.
pub fn end_position(engine: Engine) -> usize {
    layout(engine).last().map_or(0, |group| group.header + 1 + 2 * group.registers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(engine: Engine, offset: u32) -> Option<usize> {
        layout(engine)
            .iter()
            .flat_map(|g| (0..g.registers.len()).filter_map(|i| g.pair(engine, i)))
            .find(|(_, o)| *o == offset)
            .map(|(p, _)| p)
    }

    #[test]
    fn groups_do_not_overlap_and_fit() {
        for engine in Engine::ALL {
            let mut end = 1;
            for g in layout(engine) {
                assert!(g.header >= end, "{engine:?} {:#x}", g.header);
                assert!(g.registers.len() <= 63);
                end = g.header + 1 + 2 * g.registers.len();
            }
            assert!(end < DWORDS);
        }
    }

    #[test]
    fn no_register_twice() {
        let mut all: Vec<u32> = layout(Engine::Rcs)
            .iter()
            .flat_map(|g| (0..g.registers.len()).filter_map(|i| g.pair(Engine::Rcs, i)).map(|p| p.1))
            .collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }

    #[test]
    fn known_positions() {
        use value as v;
        let rcs = Engine::Rcs;
        for (register, value) in [
            (0x2244, v::CTX_CONTROL),
            (0x2034, v::RING_HEAD),
            (0x2030, v::RING_TAIL),
            (0x2038, v::RING_START),
            (0x203C, v::RING_CTL),
            (0x2140, v::BB_ADDR),
            (0x2110, v::BB_STATE),
            (0x21C0, v::BB_PER_CTX_PTR),
            (0x21C4, v::INDIRECT_CTX),
            (0x23A8, v::CTX_TIMESTAMP),
            (0x228C, v::PDP3_UDW),
            (0x2274, v::PDP0_UDW),
            (0x2270, v::PDP0_LDW),
            (0x20C8, v::RPCS),
            (0x209C, v::MI_MODE),
            (0x2158, v::BB_OFFSET),
            (0x2360, v::OACTXCONTROL),
            (0xE458, v::FLEX_EU0),
        ] {
            assert_eq!(position(rcs, register), Some(value - 1), "{register:#x}");
        }
        assert_eq!(position(Engine::Bcs, 0x2_2200), Some(0x42));
        assert_eq!(position(Engine::Vcs0, 0x1_2600), Some(0x68));
        assert_eq!(position(rcs, 0x2068), Some(0xA8));
        assert_eq!(HEAD_GROUPS[0].header_dword(), 0x1100_101B);
    }
}
