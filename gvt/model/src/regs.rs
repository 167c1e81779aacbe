//! The register file: one dword of storage and one class for each register below 2 MiB.

use alloc::vec;
use alloc::vec::Vec;

use gvt_defs::reg::{self, MMIO_SIZE, display, forcewake};
use gvt_defs::{ENGINES, Engine, masked, pvinfo, reset, ring};

use crate::profile::Profile;

/// How a register behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Class {
    /// Not in the tables: storage, and a finding in strict mode.
    Unknown,
    /// Reads back what was written.
    Plain,
    /// Bits 31:16 of a write select what changes.
    Masked,
    /// Writes are ignored.
    ReadOnly,
    /// Bits written as 1 become 0.
    WriteOneToClear,
    /// Has behaviour; see `mmio`.
    Handler,
}

/// First offset, offset after the last, class. Later lines override earlier ones.
const GLOBAL: &[(u32, u32, Class)] = &[
    // Render and GT power domains: command streamers, caches, chickens, MOCS, RPS and RC6.
    (0x0B00, 0x2000, Class::Plain),
    (0x2000, 0x2000 + 0xD00, Class::Plain),
    (0x4000, 0x4200, Class::Plain),
    (0x4A00, 0x4E00, Class::Plain),
    (0x5200, 0x5300, Class::Plain),
    (0x5588, 0x558C, Class::Plain),
    (0x7000, 0x7400, Class::Plain),
    (0x8000, 0x8100, Class::Plain),
    (0x8300, 0x8400, Class::Plain),
    (0x8504, 0x8508, Class::Plain),
    (0x9000, 0x9500, Class::Plain),
    (0xA000, 0xA300, Class::Plain),
    (0xB000, 0xB200, Class::Plain),
    (0xC000, 0xC400, Class::Plain),
    (reg::MOCS_FIRST, reg::MOCS_END, Class::Plain),
    (0xE100, 0xE800, Class::Plain),
    // Display.
    (0x4_1000, 0x4_1004, Class::Plain),
    (0x4_2000, 0x4_7000, Class::Plain),
    (0x4_8000, 0x4_C000, Class::Plain),
    (0x4_F000, 0x4_F100, Class::Plain),
    (0x5_1000, 0x5_1008, Class::Plain),
    (0x6_0000, 0x7_4000, Class::Plain),
    (0x7_F000, 0x8_0000, Class::Plain),
    (pvinfo::BASE, pvinfo::BASE + pvinfo::SIZE, Class::ReadOnly),
    (0x8_0000, 0x9_0000, Class::Plain),
    (0xC_2000, 0xC_9000, Class::Plain),
    (0xE_0000, 0xE_4000, Class::Plain),
    // Memory interface, fences, power control, host bridge mirror.
    (0x10_0000, 0x10_2000, Class::Plain),
    (0x10_8000, 0x10_9000, Class::ReadOnly),
    (0x12_0010, 0x12_0014, Class::ReadOnly),
    (0x13_0040, 0x13_0048, Class::Plain),
    (0x13_8000, 0x13_8200, Class::Plain),
    (reg::MCHBAR_MIRROR, reg::MCHBAR_MIRROR_END, Class::Plain),
    // Singles.
    (reg::FUSE2, reg::FUSE2 + 4, Class::ReadOnly),
    (reg::EU_DISABLE0, reg::EU_DISABLE2 + 4, Class::ReadOnly),
    (reg::RC6_CTX_INFO, reg::RC6_CTX_INFO + 4, Class::ReadOnly),
    (reg::GT_THREAD_STATUS, reg::GT_THREAD_STATUS + 4, Class::ReadOnly),
    (reg::RP_STATE_CAP, reg::RP_STATE_CAP + 4, Class::ReadOnly),
    (reg::RPSTAT1, reg::RPSTAT1 + 4, Class::Handler),
    (forcewake::RENDER_ACK, forcewake::MEDIA_ACK + 4, Class::ReadOnly),
    (forcewake::GT_ACK, forcewake::GT_ACK + 4, Class::ReadOnly),
    (forcewake::GT_REQUEST, forcewake::GT_REQUEST + 4, Class::Handler),
    (forcewake::MEDIA_REQUEST, forcewake::MEDIA_REQUEST + 4, Class::Handler),
    (forcewake::RENDER_REQUEST, forcewake::RENDER_REQUEST + 4, Class::Handler),
    (reg::GDRST, reg::GDRST + 4, Class::Handler),
    (0x4260, 0x4278, Class::Handler),
    (reg::GFX_FLSH_CNTL, reg::GFX_FLSH_CNTL + 4, Class::Handler),
    (reg::FENCE0, reg::FENCE0 + 8 * reg::FENCES, Class::Handler),
    (reg::PCODE_MAILBOX, reg::PCODE_MAILBOX + 4, Class::Handler),
    (reg::irq::MASTER, reg::irq::MASTER + 4, Class::Handler),
    (display::FUSE_STATUS, display::FUSE_STATUS + 4, Class::ReadOnly),
    (display::FPGA_DBG, display::FPGA_DBG + 4, Class::WriteOneToClear),
    (display::DFSM, display::DSSM + 4, Class::ReadOnly),
    (display::PSR_IIR, display::PSR_IIR + 4, Class::WriteOneToClear),
    (display::DPLL_STATUS, display::DPLL_STATUS + 4, Class::ReadOnly),
    (display::PCH_PORT_HOTPLUG, display::PCH_PORT_HOTPLUG + 4, Class::Handler),
    (display::PCH_PORT_HOTPLUG2, display::PCH_PORT_HOTPLUG2 + 4, Class::Handler),
    (display::SFUSE_STRAP, display::SFUSE_STRAP + 4, Class::ReadOnly),
    (display::PP_STATUS, display::PP_STATUS + 4, Class::ReadOnly),
    (display::GMBUS0, display::GMBUS0 + 0x24, Class::Handler),
];

/// Registers with side effects in the display, single dwords.
const DISPLAY_HANDLERS: [u32; 8] = [
    display::DBUF_CTL,
    display::LCPLL1_CTL,
    display::LCPLL2_CTL,
    display::WRPLL1_CTL,
    display::WRPLL2_CTL,
    display::SBI_CTL_STAT,
    display::PP_CONTROL,
    display::PIPECONF_EDP,
];

/// What every engine has, relative to its base; later lines override earlier ones.
const ENGINE: &[(u32, u32, Class)] = &[
    (0x000, 0x800, Class::Plain),
    (ring::ACTHD_UDW, ring::INSTPS + 4, Class::ReadOnly),
    (ring::MI_MODE, ring::MI_MODE + 4, Class::Handler),
    (ring::EIR, ring::EIR + 4, Class::Handler),
    (ring::EMR, ring::EMR + 4, Class::Handler),
    (ring::ESR, ring::ESR + 4, Class::ReadOnly),
    (ring::RESET_CTL, ring::RESET_CTL + 4, Class::Handler),
    (ring::ELSP, ring::ELSP + 4, Class::Handler),
    (ring::EXECLIST_STATUS_LO, ring::EXECLIST_STATUS_HI + 4, Class::ReadOnly),
    (ring::TIMESTAMP, ring::TIMESTAMP_UDW + 4, Class::Handler),
    (ring::CSB, ring::CSB + 0x30, Class::ReadOnly),
    (ring::CTX_TIMESTAMP, ring::CTX_TIMESTAMP + 4, Class::Handler),
    (ring::NOPID, ring::NOPID + 4, Class::Plain),
];

pub(crate) struct RegFile {
    values: Vec<u32>,
    classes: Vec<u8>,
}

impl RegFile {
    pub fn new(profile: &Profile) -> Self {
        let count = (MMIO_SIZE / 4) as usize;
        let mut file = Self { values: vec![0; count], classes: vec![Class::Unknown as u8; count] };
        file.classify();
        file.power_on(profile);
        file
    }

    fn classify(&mut self) {
        for (start, end, class) in GLOBAL {
            self.mark(*start, *end, *class);
        }
        for offset in DISPLAY_HANDLERS {
            self.mark(offset, offset + 4, Class::Handler);
        }
        for n in 0..display::PWR_WELL_CTLS {
            let offset = display::PWR_WELL_CTL1 + 4 * n;
            self.mark(offset, offset + 4, Class::Handler);
        }
        for port in 0..display::DDI_PORTS {
            let (ddi, aux) = (display::DDI_BUF_CTL_A + 0x100 * port, display::AUX_CTL_A + 0x100 * port);
            self.mark(ddi, ddi + 4, Class::Handler);
            self.mark(aux, aux + 4, Class::Handler);
        }
        for pipe in 0..display::PIPES {
            let conf = display::PIPECONF_A + display::PIPE_STRIDE * pipe;
            self.mark(conf, conf + 4, Class::Handler);
        }
        for bank in reg::irq::BANKS {
            self.mark(bank.base, bank.base + 0x10, Class::Handler);
        }
        for engine in Engine::ALL {
            for (start, end, class) in ENGINE {
                self.mark(engine.base() + start, engine.base() + end, *class);
            }
            for local in masked::ENGINE {
                self.mark_masked(engine.base() + local);
            }
        }
        for offset in masked::GLOBAL {
            self.mark_masked(offset);
        }
    }

    fn mark(&mut self, start: u32, end: u32, class: Class) {
        if let Some(range) = self.classes.get_mut((start / 4) as usize..(end / 4) as usize) {
            range.fill(class as u8);
        }
    }

    /// Handlers take care of the mask themselves.
    fn mark_masked(&mut self, offset: u32) {
        if self.class(offset) != Class::Handler {
            self.mark(offset, offset + 4, Class::Masked);
        }
    }

    fn power_on(&mut self, profile: &Profile) {
        for (offset, value) in reset::GLOBAL {
            self.set(offset, value);
        }
        self.set(display::DFSM, reset::dfsm(profile.display));
        for engine in Engine::ALL {
            for (local, value) in reset::ENGINE {
                self.set(engine.base() + local, value);
            }
        }
    }

    /// Puts the registers from `start` to `end` to their power-on values.
    pub fn reset_range(&mut self, start: u32, end: u32, profile: &Profile) {
        for offset in (start..end).step_by(4) {
            self.set(offset, reset::value(offset, profile.display));
        }
    }

    /// The class of the register at a dword-aligned offset.
    #[inline]
    pub fn class(&self, offset: u32) -> Class {
        match self.classes.get((offset / 4) as usize) {
            Some(1) => Class::Plain,
            Some(2) => Class::Masked,
            Some(3) => Class::ReadOnly,
            Some(4) => Class::WriteOneToClear,
            Some(5) => Class::Handler,
            _ => Class::Unknown,
        }
    }

    /// Stored value; 0 beyond the file.
    #[inline]
    pub fn get(&self, offset: u32) -> u32 {
        self.values.get((offset / 4) as usize).copied().unwrap_or(0)
    }

    /// Stores; dropped beyond the file.
    #[inline]
    pub fn set(&mut self, offset: u32, value: u32) {
        if let Some(slot) = self.values.get_mut((offset / 4) as usize) {
            *slot = value;
        }
    }

    /// Two neighbouring dwords as one value.
    pub fn get64(&self, offset: u32) -> u64 {
        u64::from(self.get(offset + 4)) << 32 | u64::from(self.get(offset))
    }
}

const _: () = assert!(ENGINES == Engine::ALL.len());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let file = RegFile::new(&Profile::default());
        assert_eq!(file.class(0x2_209C), Class::Handler);
        assert_eq!(file.class(0x2_20C0), Class::Masked);
        assert_eq!(file.class(0x7014), Class::Masked);
        assert_eq!(file.class(0x4_4208), Class::Plain);
        assert_eq!(file.class(0x4_4308), Class::Handler);
        assert_eq!(file.class(0x3_0000), Class::Unknown);
        assert_eq!(file.class(0xFFFF_FFFC), Class::Unknown);
        assert_eq!(file.get(reg::FUSE2), 0x0280_0000);
        assert_eq!(file.get(0x1_20A8), 0xFFFF_FFFF);
    }

    #[test]
    fn every_table_line_is_a_range() {
        for (start, end, _) in GLOBAL.iter().chain(ENGINE) {
            assert!(start < end && start % 4 == 0 && end % 4 == 0 && *end <= MMIO_SIZE);
        }
    }
}
