//! Values of registers after power-on (Kaby Lake GT2). What is not listed is 0.

use crate::{Engine, execlist, reg, ring};

/// Whether the part has a display.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Display {
    /// All pipes fused off (DFSM).
    Fused,
    /// Present, nothing connected.
    Dark,
}

/// Registers that exist once: offset and value; sorted. The topology is one slice of three subslices of eight EUs.
pub const GLOBAL: [(u32, u32); 33] = [
    (reg::SC_INSTDONE, 0xFFFF_FFFF),
    (reg::SLICE_PGCTL_ACK, 0x55),
    (reg::SS01_EU_PGCTL_ACK, 0x5555),
    (reg::SS23_EU_PGCTL_ACK, 0x5555),
    (reg::RC6_CTX_INFO, 1),
    (reg::FUSE2, 0x0280_0000),
    (reg::MISCCPCTL, 0x55),
    (reg::CTC_MODE, 0x4),
    (reg::GUC_STATUS, 0x1),
    (reg::SAMPLER_INSTDONE, 0xFFFF_FFFF),
    (reg::ROW_INSTDONE, 0xFFFF_FFFF),
    (reg::display::VGA_CONTROL, 0x8000_0000),
    (reg::display::FUSE_STATUS, 0x8E00_0000),
    (reg::irq::GT_BANK0 + 0x04, 0xFFFF_FFFF),
    (reg::irq::GT_BANK0 + 0x14, 0xFFFF_FFFF),
    (reg::irq::GT_BANK0 + 0x24, 0xFFFF_FFFF),
    (reg::irq::GT_BANK0 + 0x34, 0xFFFF_FFFF),
    (reg::irq::DE_PIPE_A + 4, 0xFFFF_FFFF),
    (reg::irq::DE_PIPE_B + 4, 0xFFFF_FFFF),
    (reg::irq::DE_PIPE_C + 4, 0xFFFF_FFFF),
    (reg::irq::DE_PORT + 4, 0xFFFF_FFFF),
    (reg::irq::DE_MISC + 4, 0xFFFF_FFFF),
    (reg::irq::PCU + 4, 0xFFFF_FFFF),
    (reg::display::DDI_BUF_CTL_A, 0x90),
    (reg::display::DDI_BUF_CTL_A + 0x100, 0x80),
    (reg::display::DDI_BUF_CTL_A + 0x200, 0x80),
    (reg::display::DDI_BUF_CTL_A + 0x300, 0x80),
    (reg::display::DDI_BUF_CTL_A + 0x400, 0x80),
    (reg::irq::SDE + 4, 0xFFFF_FFFF),
    (reg::MAD_DIMM_CH0, 8),
    (reg::MAD_DIMM_CH1, 8),
    (reg::RP_STATE_CAP, 0x0007_0717),
    (reg::BIOS_DATA, 8),
];

/// Registers of each engine, relative to its base; sorted.
pub const ENGINE: [(u32, u32); 4] = [
    (ring::INSTDONE, 0xFFFF_FFFE),
    (ring::MI_MODE, ring::MI_MODE_IDLE),
    (ring::IMR, 0xFFFF_FFFF),
    (ring::CSB_PTR, execlist::CSB_PTR_RESET),
];

/// DFSM for a display option.
pub const fn dfsm(display: Display) -> u32 {
    match display {
        Display::Fused => reg::display::DFSM_ALL_PIPES_OFF,
        Display::Dark => 0,
    }
}

/// The value of the register at `offset` after power-on.
pub fn value(offset: u32, display: Display) -> u32 {
    if offset == reg::display::DFSM {
        return dfsm(display);
    }
    let (table, key): (&[(u32, u32)], u32) = match Engine::of_register(offset) {
        Some((_, local)) if local < 0x800 => (&ENGINE, local),
        _ => (&GLOBAL, offset),
    };
    table.binary_search_by_key(&key, |entry| entry.0).ok().and_then(|i| table.get(i)).map_or(0, |entry| entry.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(GLOBAL.windows(2).all(|p| p[0].0 < p[1].0));
        assert!(ENGINE.windows(2).all(|p| p[0].0 < p[1].0));
    }

    #[test]
    fn lookups() {
        assert_eq!(value(0x2209C, Display::Fused), 0x200);
        assert_eq!(value(reg::display::DFSM, Display::Fused), 0x5020_0000);
        assert_eq!(value(reg::display::DFSM, Display::Dark), 0);
        assert_eq!(value(reg::RP_STATE_CAP, Display::Dark), 0x70717);
        assert_eq!(value(0x1234, Display::Dark), 0);
    }
}
