//! Addresses and registers that a hostile guest would try: few, so that two commands meet at the same.

use crate::bytes::Bytes;
use gvt_defs::{Engine, GgttAddr, Gpa, nonpriv, reg, ring};

/// Whose addresses are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The guest's.
    Own,
    /// The neighbour's, Prism's, nobody's, or the guest's.
    Anybody,
}

/// Where things are for one guest.
#[derive(Debug)]
pub struct Places {
    /// Global addresses of its own: first and last page of each range, status pages, images, rings, data.
    pub own: Vec<u32>,
    /// Global addresses of others.
    pub others: Vec<u32>,
    /// A page with a dword on which rings wait, in either space.
    pub flag: GgttAddr,
    /// The same in processes.
    pub flag_va: u64,
    /// A page of commands, in the global space.
    pub batch: GgttAddr,
    /// The same page, and where other batches lie in processes.
    pub batches: [u64; 3],
    /// Frames of the guest: of data, page tables, images, status pages.
    pub frames: Vec<Gpa>,
    /// Frames that are not the guest's.
    pub foreign: Vec<u64>,
}

/// Where processes have data.
pub const DATA: u64 = 0x40_0000;

impl Places {
    /// A global address.
    pub fn global(&self, b: &mut Bytes<'_>, whose: Whose) -> u32 {
        let page = match whose {
            Whose::Anybody if !b.rarely(4) => b.pick(&self.others),
            _ => b.pick(&self.own),
        };
        let within = b.pick(&[0, 0, 8, 0x40, 0x7C, 0xFF8, 0xFFC, 0x100]);
        page + within
    }

    /// An address of a process.
    pub fn process(&self, b: &mut Bytes<'_>) -> u64 {
        let page = match b.below(8) {
            0 => b.pick(&self.batches),
            1 => b.pick(&[0, 0x1000, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_FFFF_F000, 0xFFFF_8000_0000_0000, 0xFC00_0000]),
            _ => DATA + 0x1000 * u64::from(b.below(4)),
        };
        page + u64::from(b.pick(&[0, 8, 0x40, 0xFF8, 0xFFC]) & !7u32)
    }

    /// Where a process has a batch, or the middle of one.
    pub fn batch_va(&self, b: &mut Bytes<'_>) -> u64 {
        let at = b.pick(&self.batches);
        if b.rarely(6) { at + u64::from(4 * b.below(32)) } else { at }
    }

    /// Frames for page-table entries: the guest's own physical addresses, and others.
    pub fn frame(&self, b: &mut Bytes<'_>) -> u64 {
        if b.rarely(3) { b.pick(&self.foreign) } else { b.pick(&self.frames).0 }
    }

    /// A register.
    pub fn register(&self, b: &mut Bytes<'_>, engine: Engine) -> u32 {
        match b.below(12) {
            0 => engine.base() + b.pick(&CONTROL),
            1 => engine.base() + 4 * b.below(0x200),
            2 => b.pick(&Engine::ALL).base() + b.pick(&CONTROL),
            3 => b.pick(&SHARED),
            4 => reg::FENCE0 + 4 * b.below(64),
            5 => engine.info().mocs + 4 * b.below(reg::MOCS_ENTRIES),
            6..=8 if engine == Engine::Rcs => b.pick(&OPENED),
            9 | 10 if engine == Engine::Rcs => {
                let (first, last) = b.pick(&nonpriv::RENDER);
                first + 4 * b.below((last - first) / 4 + 1)
            }
            11 if b.rarely(4) => b.dword() & 0x007F_FFFC,
            _ => engine.base() + ring::GPR + 4 * b.below(2 * ring::GPRS),
        }
    }
}

/// Registers of an engine that say where it runs and who is told, from its base.
pub const CONTROL: [u32; 20] = [
    ring::TAIL,
    ring::HEAD,
    ring::START,
    ring::CTL,
    ring::HWS_PGA,
    ring::HWSTAM,
    ring::IMR,
    ring::EIR,
    ring::EMR,
    ring::ELSP,
    ring::GFX_MODE,
    ring::PDP0_LDW,
    ring::CSB_PTR,
    ring::RESET_CTL,
    ring::MI_MODE,
    ring::ACTHD,
    ring::CTX_CONTROL,
    ring::NOPID,
    ring::CTX_TIMESTAMP,
    ring::FORCE_TO_NONPRIV,
];

/// Registers that all engines share.
pub const SHARED: [u32; 12] = [
    reg::GDRST,
    reg::GFX_FLSH_CNTL,
    reg::irq::MASTER,
    reg::irq::GT_BANK0,
    reg::irq::GT_BANK0 + 0x4,
    reg::irq::GT_BANK0 + 0xC,
    reg::forcewake::RENDER_REQUEST,
    reg::PCODE_MAILBOX,
    0x4260,
    0x4264,
    0x4_5000,
    reg::LNCFCMOCS,
];

/// Registers that drivers open to batches, that GVT-g lets guests open, or that lie beside those.
pub const OPENED: [u32; 32] = [
    0x20EC, 0x2248, 0x2340, 0x2348, 0x2350, 0x2580, 0x2690, 0x2694, 0x2698, 0x2754, 0x28A0, 0x4DE0, 0x4DE4, 0x4DF4,
    0x4DFC, 0x7010, 0x7014, 0x7018, 0x7300, 0x7304, 0x7700, 0x7704, 0x7708, 0x770C, 0x83A8, 0xB110, 0xB118, 0xB11C,
    0xE18C, 0xE100, 0xE180, 0xE4F0,
];
