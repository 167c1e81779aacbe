//! The virtual register file: which pages of BAR0 are stored, what an access to each register does, and what a
//! register starts with. Everything that is not listed as an exception is plain storage in a stored page; what is in
//! no stored page reads 0 and ignores writes. No access reaches hardware unless a handler says so.
//!
//! Offsets from the KBL PRM vol 2c; classes from spec/gen9.md B.1 and spec/gvt.md D.

use alloc::vec;
use alloc::vec::Vec;
use gvt_defs::reg::{self, display, forcewake, irq};
use gvt_defs::reset::Display;
use gvt_defs::{ENGINES, Engine, GgttAddr, masked, pvinfo, reset, ring};

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Policy {
    /// Keeps what is written.
    Plain,
    /// Bits 31:16 of a write select which of bits 15:0 change.
    Masked,
    /// Ignores writes.
    ReadOnly,
    /// Bits written as 1 become 0.
    WriteOneToClear,
    /// Has behaviour of its own.
    Handled(Handler),
}

/// Behaviours. Registers of an engine are told apart by their offset from its base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handler {
    /// RING_TAIL, HEAD, START, CTL: mirror the running context.
    Ring,
    /// ACTHD, its upper half, INSTDONE, IPEHR: live while the vGPU runs on the engine.
    Live,
    /// RING_TIMESTAMP: always live.
    Timestamp,
    HwsPga,
    MiMode,
    RingImr,
    ResetCtl,
    Elsp,
    ExeclistStatus,
    CsbPointer,
    ForceNonpriv,
    GfxMode,
    Forcewake,
    Pcode,
    Gdrst,
    RpStat,
    GucStatus,
    EngineTlb,
    GgttFlush,
    Fence,
    IrqMaster,
    IrqBank,
    /// PWR_WELL_CTL1..4: what is requested in any of them is granted, and seen in all.
    PowerWell,
    /// Request in bit 31, answer in bit 30: PLLs, the display buffer.
    Granted,
    Pvinfo,
}

/// A run of registers with one policy: first and last offset, both inclusive.
pub(crate) type Row = (u32, u32, Policy);

use Handler as H;
use Policy::{Handled, ReadOnly, WriteOneToClear};

/// Exceptions among the registers of an engine, by offset from its base; sorted.
pub(crate) const ENGINE_ROWS: [Row; 24] = [
    (ring::TAIL, ring::CTL, Handled(H::Ring)),
    (ring::ACTHD_UDW, ring::ACTHD_UDW, Handled(H::Live)),
    (ring::IPEHR, ring::INSTDONE, Handled(H::Live)),
    (ring::ACTHD, ring::ACTHD, Handled(H::Live)),
    (ring::HWS_PGA, ring::HWS_PGA, Handled(H::HwsPga)),
    (ring::MI_MODE, ring::MI_MODE, Handled(H::MiMode)),
    (ring::IMR, ring::IMR, Handled(H::RingImr)),
    (ring::EIR, ring::EIR, WriteOneToClear),
    (ring::ESR, ring::ESR, ReadOnly),
    (ring::RESET_CTL, ring::RESET_CTL, Handled(H::ResetCtl)),
    (ring::BB_STATE, ring::BB_STATE, ReadOnly),
    (ring::SBB_ADDR, ring::SBB_ADDR_UDW, ReadOnly),
    (ring::BB_ADDR, ring::BB_ADDR, ReadOnly),
    (ring::BB_START_ADDR, ring::BB_OFFSET, ReadOnly),
    (ring::BB_ADDR_UDW, ring::BB_ADDR_UDW, ReadOnly),
    (ring::ELSP, ring::ELSP, Handled(H::Elsp)),
    (ring::EXECLIST_STATUS_LO, ring::EXECLIST_STATUS_HI, Handled(H::ExeclistStatus)),
    (ring::CTX_CONTROL, ring::CTX_CONTROL, ReadOnly),
    (ring::GFX_MODE, ring::GFX_MODE, Handled(H::GfxMode)),
    (ring::TIMESTAMP, ring::TIMESTAMP_UDW, Handled(H::Timestamp)),
    (ring::CSB, ring::CSB + 0x2C, ReadOnly),
    (ring::CSB_PTR, ring::CSB_PTR, Handled(H::CsbPointer)),
    (ring::CTX_TIMESTAMP, ring::CTX_TIMESTAMP, ReadOnly),
    (ring::FORCE_TO_NONPRIV, ring::FORCE_TO_NONPRIV + 4 * (ring::FORCE_TO_NONPRIV_SLOTS - 1), Handled(H::ForceNonpriv)),
];

/// Exceptions among registers that exist once; sorted.
pub(crate) const GLOBAL_ROWS: [Row; 48] = [
    (forcewake::RENDER_ACK, forcewake::RENDER_ACK, ReadOnly),
    (forcewake::MEDIA_ACK, forcewake::MEDIA_ACK, ReadOnly),
    (0x4260, reg::GUC_TLB_INVALIDATE, Handled(H::EngineTlb)),
    (reg::SC_INSTDONE, reg::SC_INSTDONE, ReadOnly),
    (reg::SLICE_PGCTL_ACK, reg::SLICE_PGCTL_ACK, ReadOnly),
    (reg::SS01_EU_PGCTL_ACK, reg::SS23_EU_PGCTL_ACK, ReadOnly),
    (reg::RC6_CTX_INFO, reg::RC6_CTX_INFO, ReadOnly),
    (0x9118, reg::EU_DISABLE2, ReadOnly),
    (reg::GDRST, reg::GDRST, Handled(H::Gdrst)),
    (reg::RPSTAT1, reg::RPSTAT1, Handled(H::RpStat)),
    (forcewake::GT_REQUEST, forcewake::GT_REQUEST, Handled(H::Forcewake)),
    (reg::CTC_MODE, reg::CTC_MODE, ReadOnly),
    (forcewake::MEDIA_REQUEST, forcewake::MEDIA_REQUEST, Handled(H::Forcewake)),
    (forcewake::RENDER_REQUEST, forcewake::RENDER_REQUEST, Handled(H::Forcewake)),
    (reg::GUC_STATUS, reg::GUC_STATUS, Handled(H::GucStatus)),
    (0xC050, 0xC050, ReadOnly),
    (0xC340, 0xC340, ReadOnly),
    (reg::SAMPLER_INSTDONE, reg::ROW_INSTDONE, ReadOnly),
    (display::FUSE_STATUS, display::FUSE_STATUS, ReadOnly),
    (display::FPGA_DBG, display::FPGA_DBG, WriteOneToClear),
    (irq::MASTER, irq::MASTER, Handled(H::IrqMaster)),
    (irq::GT_BANK0, irq::GT_BANK0 + 0x3C, Handled(H::IrqBank)),
    (irq::DE_PIPE_A, irq::DE_PIPE_C + 0xC, Handled(H::IrqBank)),
    (irq::DE_PORT, irq::DE_PORT + 0xC, Handled(H::IrqBank)),
    (irq::DE_MISC, irq::DE_MISC + 0xC, Handled(H::IrqBank)),
    (irq::PCU, irq::PCU + 0xC, Handled(H::IrqBank)),
    (display::DBUF_CTL, display::DBUF_CTL, Handled(H::Granted)),
    (display::PWR_WELL_CTL1, display::PWR_WELL_CTL1 + 0xC, Handled(H::PowerWell)),
    (display::LCPLL1_CTL, display::LCPLL2_CTL, Handled(H::Granted)),
    (display::DFSM, display::DSSM, ReadOnly),
    (display::PSR_IIR, display::PSR_IIR, WriteOneToClear),
    (0x7_0000, 0x7_0000, ReadOnly),
    (0x7_0040, 0x7_0044, ReadOnly),
    (pvinfo::BASE, pvinfo::BASE + pvinfo::SIZE - 4, Handled(H::Pvinfo)),
    (display::SFUSE_STRAP, display::SFUSE_STRAP, ReadOnly),
    (irq::SDE, irq::SDE + 0xC, Handled(H::IrqBank)),
    (display::PCH_PORT_HOTPLUG2, display::PCH_PORT_HOTPLUG2, ReadOnly),
    (reg::FENCE0, reg::FENCE0 + 8 * reg::FENCES - 4, Handled(H::Fence)),
    (reg::GFX_FLSH_CNTL, reg::GFX_FLSH_CNTL, Handled(H::GgttFlush)),
    (reg::STOLEN_RESERVED, reg::STOLEN_RESERVED, ReadOnly),
    (reg::EDRAM_CAP, reg::EDRAM_CAP, ReadOnly),
    (forcewake::GT_ACK, forcewake::GT_ACK, ReadOnly),
    (reg::GT_THREAD_STATUS, reg::GT_THREAD_STATUS, ReadOnly),
    (reg::GT_GFX_RC6, reg::GT_GFX_RC6, ReadOnly),
    (reg::PCODE_MAILBOX, reg::PCODE_MAILBOX, Handled(H::Pcode)),
    (reg::MCHBAR_MIRROR, reg::MCHBAR_MIRROR + 0x5990, ReadOnly),
    (reg::RP_STATE_LIMITS, reg::RP_STATE_CAP, ReadOnly),
    (reg::RP_STATE_CAP + 4, reg::MCHBAR_MIRROR + 0x7FFC, ReadOnly),
];

/// Pages of BAR0 (4 KiB units) that are stored: first and last, both inclusive; sorted.
const STORED_PAGES: [(u16, u16); 24] = [
    (0x0, 0x0),
    (0x2, 0x2),
    (0x4, 0xE),
    (0x12, 0x12),
    (0x1A, 0x1A),
    (0x1C, 0x1C),
    (0x22, 0x22),
    (0x24, 0x24),
    (0x40, 0x46),
    (0x48, 0x4B),
    (0x4F, 0x51),
    (0x60, 0x65),
    (0x68, 0x6C),
    (0x6F, 0x72),
    (0x78, 0x78),
    (0x7F, 0x7F),
    (0xC0, 0xC0),
    (0xC2, 0xC2),
    (0xC4, 0xC7),
    (0xE1, 0xE6),
    (0x100, 0x101),
    (0x108, 0x108),
    (0x120, 0x120),
    (0x130, 0x130),
];
/// The same, second part (arrays stay short enough to read).
const STORED_PAGES_HIGH: [(u16, u16); 2] = [(0x138, 0x138), (0x140, 0x147)];

/// Registers whose value before anything touched the GPU is what a vGPU starts with: first and last offset, both
/// inclusive; sorted. Display registers are not among them: they start with reset values, whatever firmware left.
pub(crate) const SNAPSHOT: [(u32, u32); 38] = [
    (0x0FDC, 0x0FDC),
    (0x2088, 0x2090),
    (0x20A0, 0x20A0),
    (0x20D4, 0x20EC),
    (0x224C, 0x224C),
    (0x2580, 0x2580),
    (0x4030, 0x4030),
    (0x4080, 0x4080),
    (0x4090, 0x4090),
    (0x40E0, 0x40E4),
    (0x4AB0, 0x4AB8),
    (0x4DDC, 0x4DDC),
    (0x7000, 0x7018),
    (0x7034, 0x7034),
    (0x7300, 0x7304),
    (0x804C, 0x804C),
    (0x805C, 0x8060),
    (0x83A4, 0x83A4),
    (0x8504, 0x8504),
    (0x9030, 0x9044),
    (0x907C, 0x907C),
    (0x9118, 0x913C),
    (0x9400, 0x9418),
    (0x9424, 0x9430),
    (0xA008, 0xA0FC),
    (0xA168, 0xA168),
    (0xA26C, 0xA26C),
    (0xB004, 0xB008),
    (0xB020, 0xB09C),
    (0xB110, 0xB11C),
    (0xC800, 0xCCFC),
    (0xE100, 0xE100),
    (0xE180, 0xE194),
    (0xE4F0, 0xE4F4),
    (0x4_4074, 0x4_4074),
    (0x10_1000, 0x10_1000),
    (0x12_0010, 0x12_0010),
    (0x14_5000, 0x14_5FFC),
];

const PAGES: usize = (reg::MMIO_SIZE / 4096) as usize;
const ABSENT: u16 = u16::MAX;

/// For each page of BAR0 its place in storage.
const SLOT: [u16; PAGES] = slots();
/// Pages stored.
const STORED: usize = stored();

#[allow(clippy::indexing_slicing, reason = "evaluated at compile time only")]
const fn slots() -> [u16; PAGES] {
    let mut slots = [ABSENT; PAGES];
    let mut next = 0;
    let mut i = 0;
    while i < STORED_PAGES.len() + STORED_PAGES_HIGH.len() {
        let (first, last) =
            if i < STORED_PAGES.len() { STORED_PAGES[i] } else { STORED_PAGES_HIGH[i - STORED_PAGES.len()] };
        let mut page = first;
        while page <= last {
            slots[page as usize] = next;
            next += 1;
            page += 1;
        }
        i += 1;
    }
    slots
}

#[allow(clippy::indexing_slicing, reason = "evaluated at compile time only")]
const fn stored() -> usize {
    let mut count = 0;
    let mut i = 0;
    while i < PAGES {
        if SLOT[i] != ABSENT {
            count += 1;
        }
        i += 1;
    }
    count
}

fn find(rows: &[Row], offset: u32) -> Option<Policy> {
    let after = rows.partition_point(|row| row.0 <= offset);
    let row = rows.get(after.checked_sub(1)?)?;
    (offset <= row.1).then_some(row.2)
}

/// The engine block that `offset` lies in. The second half of the render engine's page holds fixed functions.
pub(crate) fn engine_register(offset: u32) -> Option<(Engine, u32)> {
    Engine::of_register(offset).filter(|(_, local)| *local < 0x800)
}

/// What an access to the register at `offset` (dword aligned) does.
pub(crate) fn policy(offset: u32) -> Policy {
    let row = match engine_register(offset) {
        Some((_, local)) => find(&ENGINE_ROWS, local),
        None => find(&GLOBAL_ROWS, offset),
    };
    match row {
        Some(policy) => policy,
        None if masked::is_masked(offset) => Policy::Masked,
        None => Policy::Plain,
    }
}

/// The stored registers of one vGPU.
#[derive(Clone, Default)]
pub(crate) struct RegisterFile(Vec<u32>);

impl RegisterFile {
    /// Lines that it takes in memory.
    pub(crate) const LINES: usize = STORED * 64;

    /// Reset values, overlaid with what was read from the hardware before anything touched it.
    pub(crate) fn new(snapshot: &[(u32, u32)]) -> Self {
        let mut file = Self(vec![0; STORED * 1024]);
        for (offset, value) in reset::GLOBAL {
            file.set(offset, value);
        }
        for (offset, value) in snapshot {
            file.set(*offset, *value);
        }
        for engine in Engine::ALL {
            file.reset_engine(engine);
        }
        file.set(display::DFSM, reset::dfsm(Display::Fused));
        file.set(reg::GUC_STATUS, 1);
        file.set(reg::EDRAM_CAP, 0);
        file
    }

    /// Takes every value of another file, in the room that it has.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        for (to, from) in self.0.iter_mut().zip(&other.0) {
            *to = *from;
        }
    }

    fn index(offset: u32) -> Option<usize> {
        let slot = *SLOT.get((offset / 4096) as usize)?;
        (slot != ABSENT).then(|| usize::from(slot) * 1024 + (offset % 4096 / 4) as usize)
    }

    /// Whether a write to `offset` is kept.
    pub(crate) fn is_stored(offset: u32) -> bool {
        Self::index(offset).is_some()
    }

    /// The value at `offset`; 0 where nothing is stored.
    pub(crate) fn get(&self, offset: u32) -> u32 {
        Self::index(offset).and_then(|index| self.0.get(index)).copied().unwrap_or(0)
    }

    /// Stores; nothing happens where nothing is stored.
    pub(crate) fn set(&mut self, offset: u32, value: u32) {
        if let Some(slot) = Self::index(offset).and_then(|index| self.0.get_mut(index)) {
            *slot = value;
        }
    }

    /// A register of an engine.
    pub(crate) fn engine(&self, engine: Engine, local: u32) -> u32 {
        self.get(engine.base() + local)
    }

    /// Where the guest has the status page of an engine; 0 if nowhere.
    pub(crate) fn status_page(&self, engine: Engine) -> GgttAddr {
        GgttAddr(self.engine(engine, ring::HWS_PGA))
    }

    /// Stores a register of an engine.
    pub(crate) fn set_engine(&mut self, engine: Engine, local: u32, value: u32) {
        self.set(engine.base() + local, value);
    }

    /// Puts the ring, status and error registers of an engine back to their reset values. Workaround registers keep
    /// what the driver wrote: it writes them again after every reset, and the switch list holds them.
    pub(crate) fn reset_engine(&mut self, engine: Engine) {
        const CLEARED: [(u32, u32); 8] = [
            (ring::TAIL, ring::CTL),
            (ring::ACTHD_UDW, ring::ACTHD_UDW),
            (ring::IPEIR, ring::INSTDONE),
            (ring::ACTHD, ring::ACTHD),
            (ring::HWS_PGA, ring::HWS_PGA),
            (ring::HWSTAM, ring::ESR),
            (ring::RESET_CTL, ring::RESET_CTL),
            (ring::GFX_MODE, ring::GFX_MODE),
        ];
        const STATUS: [(u32, u32); 3] =
            [(ring::BB_STATE, ring::BB_ADDR_UDW), (ring::ELSP, ring::CTX_CONTROL), (ring::CSB, ring::CSB_PTR)];
        for (first, last) in CLEARED.into_iter().chain(STATUS) {
            for local in (first..=last).step_by(4) {
                self.set_engine(engine, local, 0);
            }
        }
        for (local, value) in reset::ENGINE {
            self.set_engine(engine, local, value);
        }
    }

    /// A page of BAR0 as bytes, for a page that is mapped to the guest.
    pub(crate) fn page(&self, page: u32) -> Option<&[u32]> {
        let start = Self::index(page.checked_mul(4096)?)?;
        self.0.get(start..start + 1024)
    }
}

/// Every register that the snapshot reads.
pub(crate) fn snapshot_offsets() -> impl Iterator<Item = u32> {
    SNAPSHOT.into_iter().flat_map(|(first, last)| (first..=last).step_by(4))
}

/// Number of engines, as a check that tables indexed by engine agree.
const _: () = assert!(ENGINES == 5);

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_sorted(rows: &[Row]) {
        for pair in rows.windows(2) {
            assert!(pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0, "{:#x} {:#x}", pair[0].0, pair[1].0);
        }
        assert!(rows.iter().all(|row| row.0 % 4 == 0 && row.1 % 4 == 0));
    }

    #[test]
    fn tables_are_sorted_and_disjoint() {
        assert_sorted(&ENGINE_ROWS);
        assert_sorted(&GLOBAL_ROWS);
        for pair in SNAPSHOT.windows(2) {
            assert!(pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0, "{:#x}", pair[1].0);
        }
        let pages: Vec<_> = STORED_PAGES.iter().chain(&STORED_PAGES_HIGH).collect();
        for pair in pages.windows(2) {
            assert!(pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0, "{:#x}", pair[1].0);
        }
    }

    #[test]
    fn every_exception_and_snapshot_is_stored() {
        for row in GLOBAL_ROWS {
            assert!(RegisterFile::is_stored(row.0) && RegisterFile::is_stored(row.1), "{:#x}", row.0);
            assert_eq!(engine_register(row.0), None, "{:#x}", row.0);
        }
        assert!(ENGINE_ROWS.iter().all(|row| row.1 < 0x800));
        for offset in snapshot_offsets() {
            assert!(RegisterFile::is_stored(offset), "{offset:#x}");
        }
        assert!(snapshot_offsets().count() <= 2000, "{}", snapshot_offsets().count());
    }

    #[test]
    fn policies() {
        assert_eq!(policy(0x2_2230), Handled(H::Elsp));
        assert_eq!(policy(0x7004), Policy::Masked);
        assert_eq!(policy(0x1_20C0), Policy::Masked);
        assert_eq!(policy(0xB118), Policy::Plain);
        assert_eq!(policy(0x2848), Policy::Plain);
        assert_eq!(policy(display::DFSM), ReadOnly);
    }

    #[test]
    fn display_is_absent_whatever_the_snapshot_says() {
        let file = RegisterFile::new(&[(display::DFSM, 0), (0xB118, 0x1234)]);
        assert_eq!(file.get(display::DFSM), display::DFSM_ALL_PIPES_OFF);
        assert_eq!(file.get(0xB118), 0x1234);
        assert_eq!(file.get(0x2209C), ring::MI_MODE_IDLE);
        assert_eq!(file.get(0x1F_F000), 0);
    }

    #[test]
    fn reset_keeps_workarounds_and_clears_status() {
        let mut file = RegisterFile::new(&[]);
        file.set(0x20E4, 5);
        file.set(0x2080, 0x1000);
        file.set(0x2370, 9);
        file.reset_engine(Engine::Rcs);
        assert_eq!((file.get(0x20E4), file.get(0x2080), file.get(0x2370)), (5, 0, 0));
        assert_eq!(file.get(0x23A0), 7);
    }
}
