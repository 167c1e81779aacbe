//! Registers that exist once: GT, forcewake, interrupts, memory interface, power, display and fuses. Byte offsets
//! into GTTMMADR (BAR0). Engine registers are in [`crate::ring`].
#![allow(missing_docs, reason = "the names are the datasheet's")]

/// Bytes of BAR0.
pub const GTTMMADR_SIZE: u64 = 16 << 20;
/// Registers lie below; drivers map this much.
pub const MMIO_SIZE: u32 = 2 << 20;
/// Where the global page table begins in BAR0.
pub const GGTT_OFFSET: u64 = 8 << 20;

pub mod forcewake {
    //! Forcewake: request registers are masked; an acknowledge register shows the low half of its request.
    pub const RENDER_REQUEST: u32 = 0xA278;
    pub const RENDER_ACK: u32 = 0xD84;
    pub const GT_REQUEST: u32 = 0xA188;
    pub const GT_ACK: u32 = 0x13_0044;
    pub const MEDIA_REQUEST: u32 = 0xA270;
    pub const MEDIA_ACK: u32 = 0xD88;
    pub const KERNEL: u32 = 1 << 0;
    pub const USER: u32 = 1 << 1;
    pub const FALLBACK_KERNEL: u32 = 1 << 15;

    /// Request and acknowledge register of each domain.
    pub const DOMAINS: [(u32, u32); 3] =
        [(RENDER_REQUEST, RENDER_ACK), (GT_REQUEST, GT_ACK), (MEDIA_REQUEST, MEDIA_ACK)];

    /// A power domain of the GT.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Domain {
        /// Render well.
        Render,
        /// GT (blitter) well.
        Gt,
        /// Media well.
        Media,
        /// Both render and media.
        RenderMedia,
    }

    /// First offset, last offset, domain; sorted. What is not listed needs no forcewake.
    pub const RANGES: [(u32, u32, Domain); 40] = [
        (0x0000, 0x0AFF, Domain::Gt),
        (0x2000, 0x26FF, Domain::Render),
        (0x2700, 0x2FFF, Domain::Gt),
        (0x3000, 0x3FFF, Domain::Render),
        (0x4000, 0x51FF, Domain::Gt),
        (0x5200, 0x7FFF, Domain::Render),
        (0x8000, 0x812F, Domain::Gt),
        (0x8130, 0x813F, Domain::Media),
        (0x8140, 0x815F, Domain::Render),
        (0x8160, 0x82FF, Domain::Gt),
        (0x8300, 0x84FF, Domain::Render),
        (0x8500, 0x87FF, Domain::Gt),
        (0x8800, 0x89FF, Domain::Media),
        (0x8A00, 0x8BFF, Domain::Gt),
        (0x8C00, 0x8CFF, Domain::Render),
        (0x8D00, 0x93FF, Domain::Gt),
        (0x9400, 0x97FF, Domain::RenderMedia),
        (0x9800, 0xAFFF, Domain::Gt),
        (0xB000, 0xB47F, Domain::Render),
        (0xB480, 0xCFFF, Domain::Gt),
        (0xD000, 0xD7FF, Domain::Media),
        (0xD800, 0xDFFF, Domain::Gt),
        (0xE000, 0xE8FF, Domain::Render),
        (0xE900, 0x1_1FFF, Domain::Gt),
        (0x1_2000, 0x1_2FFF, Domain::Media),
        (0x1_3000, 0x1_3FFF, Domain::Media),
        (0x1_4000, 0x1_9FFF, Domain::Gt),
        (0x1_A000, 0x1_BFFF, Domain::Media),
        (0x1_C000, 0x1_E9FF, Domain::Media),
        (0x1_EA00, 0x2_1FFF, Domain::Gt),
        (0x2_2000, 0x2_3FFF, Domain::Gt),
        (0x2_4000, 0x2_43FF, Domain::Gt),
        (0x2_4400, 0x2_47FF, Domain::Render),
        (0x2_4800, 0x2_FFFF, Domain::Gt),
        (0x3_0000, 0x3_1FFF, Domain::Media),
        (0x3_2000, 0x3_3FFF, Domain::Media),
        (0x3_4000, 0x3_7FFF, Domain::Media),
        (0x3_8000, 0x3_BFFF, Domain::Media),
        (0x3_C000, 0x3_DFFF, Domain::Media),
        (0x3_E000, 0x3_FFFF, Domain::Media),
    ];

    /// The domain that must be awake for an access to `offset`, if any.
    pub fn domain_of(offset: u32) -> Option<Domain> {
        RANGES.iter().find(|(first, last, _)| (*first..=*last).contains(&offset)).map(|(_, _, domain)| *domain)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn ranges_are_sorted_and_disjoint() {
            for pair in RANGES.windows(2) {
                assert!(pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0);
            }
            assert_eq!(domain_of(0x2030), Some(Domain::Render));
            assert_eq!(domain_of(0x22230), Some(Domain::Gt));
            assert_eq!(domain_of(0x44200), None);
        }
    }
}

pub mod irq {
    //! Interrupts: a master register over banks of four registers.
    pub const MASTER: u32 = 0x4_4200;
    pub const MASTER_ENABLE: u32 = 1 << 31;
    pub const MASTER_PCU: u32 = 1 << 30;
    pub const MASTER_PCH: u32 = 1 << 23;
    pub const MASTER_DE_MISC: u32 = 1 << 22;
    pub const MASTER_DE_PORT: u32 = 1 << 20;
    pub const MASTER_DE_PIPE_A: u32 = 1 << 16;
    pub const MASTER_DE_PIPE_B: u32 = 1 << 17;
    pub const MASTER_DE_PIPE_C: u32 = 1 << 18;
    pub const MASTER_GUC: u32 = 1 << 5;
    pub const MASTER_GT_PM: u32 = 1 << 4;
    /// Four GT banks, 0x10 apart.
    pub const GT_BANK0: u32 = 0x4_4300;
    pub const GT_BANKS: u32 = 4;
    pub const DE_PIPE_A: u32 = 0x4_4400;
    pub const DE_PIPE_B: u32 = 0x4_4410;
    pub const DE_PIPE_C: u32 = 0x4_4420;
    pub const DE_PORT: u32 = 0x4_4440;
    pub const DE_MISC: u32 = 0x4_4460;
    pub const PCU: u32 = 0x4_44E0;
    pub const SDE: u32 = 0xC_4000;
    /// Offsets inside a bank.
    pub const ISR: u32 = 0x0;
    pub const IMR: u32 = 0x4;
    pub const IIR: u32 = 0x8;
    pub const IER: u32 = 0xC;

    /// An interrupt bank: where it is and which bits of the master register its two halves raise.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Bank {
        /// Name of the IIR in the datasheet.
        pub name: &'static str,
        /// Offset of its ISR.
        pub base: u32,
        /// Master bits raised by bits 15:0.
        pub low: u32,
        /// Master bits raised by bits 31:16.
        pub high: u32,
    }

    /// Every bank of Gen9.
    pub const BANKS: [Bank; 11] = [
        Bank { name: "GT_INTR_0", base: GT_BANK0, low: 1 << 0, high: 1 << 1 },
        Bank { name: "GT_INTR_1", base: GT_BANK0 + 0x10, low: 1 << 2, high: 1 << 3 },
        Bank { name: "GT_INTR_2", base: GT_BANK0 + 0x20, low: MASTER_GT_PM, high: MASTER_GUC },
        Bank { name: "GT_INTR_3", base: GT_BANK0 + 0x30, low: 1 << 6, high: 1 << 6 },
        Bank { name: "DE_PIPE_A", base: DE_PIPE_A, low: MASTER_DE_PIPE_A, high: MASTER_DE_PIPE_A },
        Bank { name: "DE_PIPE_B", base: DE_PIPE_B, low: MASTER_DE_PIPE_B, high: MASTER_DE_PIPE_B },
        Bank { name: "DE_PIPE_C", base: DE_PIPE_C, low: MASTER_DE_PIPE_C, high: MASTER_DE_PIPE_C },
        Bank { name: "DE_PORT", base: DE_PORT, low: MASTER_DE_PORT, high: MASTER_DE_PORT },
        Bank { name: "DE_MISC", base: DE_MISC, low: MASTER_DE_MISC, high: MASTER_DE_MISC },
        Bank { name: "PCU", base: PCU, low: MASTER_PCU, high: MASTER_PCU },
        Bank { name: "SDE", base: SDE, low: MASTER_PCH, high: MASTER_PCH },
    ];

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn banks_are_sorted_and_apart() {
            for pair in BANKS.windows(2) {
                assert!(pair[0].base + 0x10 <= pair[1].base);
            }
        }
    }
}

/// Global graphics TLB flush: any write.
pub const GFX_FLSH_CNTL: u32 = 0x10_1008;
pub const GUC_TLB_INVALIDATE: u32 = 0x4274;
/// Bit 0 of the engine TLB registers and of [`GUC_TLB_INVALIDATE`]: busy, clears itself.
pub const TLB_INVALIDATE: u32 = 1 << 0;

pub const MCR_SELECTOR: u32 = 0xFDC;
pub const ARB_MODE: u32 = 0x4030;
pub const GAMW_ECO_DEV_RW_IA: u32 = 0x4080;
pub const GAM_ECOCHK: u32 = 0x4090;
pub const RING_FAULT: u32 = 0x4094;
pub const ERROR_GEN6: u32 = 0x40A0;
pub const PRIVATE_PAT_LO: u32 = 0x40E0;
pub const PRIVATE_PAT_HI: u32 = 0x40E4;
pub const FAULT_TLB_DATA0: u32 = 0x4B10;
pub const FAULT_TLB_DATA1: u32 = 0x4B14;
pub const GAMT_ECO_RW_IA: u32 = 0x4AB0;
pub const L3CNTLREG: u32 = 0x7034;
pub const RC6_CTX_INFO: u32 = 0x8504;
pub const FUSE2: u32 = 0x9120;
pub const EU_DISABLE0: u32 = 0x9134;
pub const EU_DISABLE1: u32 = 0x9138;
pub const EU_DISABLE2: u32 = 0x913C;
pub const GDRST: u32 = 0x941C;
pub const GDRST_FULL: u32 = 1 << 0;
pub const GDRST_GUC: u32 = 1 << 5;
pub const MISCCPCTL: u32 = 0x9424;
pub const RPNSWREQ: u32 = 0xA008;
pub const RPSTAT1: u32 = 0xA01C;
pub const RC_CONTROL: u32 = 0xA090;
pub const RC_STATE: u32 = 0xA094;
pub const PMINTRMSK: u32 = 0xA168;
pub const PG_ENABLE: u32 = 0xA210;
pub const CTC_MODE: u32 = 0xA26C;
/// Thirty-two dwords of two L3 MOCS entries each.
pub const LNCFCMOCS: u32 = 0xB020;
pub const LNCFCMOCS_COUNT: u32 = 32;
pub const L3SQCREG4: u32 = 0xB118;
/// L3SQCREG4: a data cache flush takes lines that are coherent with the CPU, too; and what the register holds besides.
pub const L3SQ_FLUSH_COHERENT: u32 = 1 << 21;
pub const L3SQ_DEFAULT: u32 = 0x4040_0000;
pub const SCRATCH1: u32 = 0xB11C;
pub const GUC_STATUS: u32 = 0xC000;
/// First of the MOCS tables: 64 dwords an engine, five engines.
pub const MOCS_FIRST: u32 = 0xC800;
pub const MOCS_END: u32 = 0xCD00;
pub const MOCS_ENTRIES: u32 = 64;
pub const SLICE_PGCTL_ACK: u32 = 0x804C;
pub const SS01_EU_PGCTL_ACK: u32 = 0x805C;
pub const SS23_EU_PGCTL_ACK: u32 = 0x8060;
/// Render engine INSTDONE detail registers.
pub const SC_INSTDONE: u32 = 0x7100;
pub const SAMPLER_INSTDONE: u32 = 0xE160;
pub const ROW_INSTDONE: u32 = 0xE164;

/// Tiled resource translation tables of the render engine (TRTT; kept in its context image).
pub const TRTT_FIRST: u32 = 0x4DE0;
pub const TRTT_LAST: u32 = 0x4DFC;
/// Their control: bit 0 on, bit 1 with virtual addresses (GVT-g refuses the first without the second).
pub const TRTTE: u32 = 0x4DF4;
pub const TRTTE_ON: u32 = 1 << 0;
pub const TRTTE_VIRTUAL: u32 = 1 << 1;
/// Thirty-two fence registers of 64 bits.
pub const FENCE0: u32 = 0x10_0000;
pub const FENCES: u32 = 32;
pub const FENCE_VALID: u64 = 1 << 0;
pub const FENCE_TILING_Y: u64 = 1 << 1;
pub const TILECTL: u32 = 0x10_1000;
pub const STOLEN_RESERVED: u32 = 0x10_82C0;
pub const EDRAM_CAP: u32 = 0x12_0010;
pub const GT_THREAD_STATUS: u32 = 0x13_805C;
pub const GT_GFX_RC6: u32 = 0x13_8108;
pub const PCODE_MAILBOX: u32 = 0x13_8124;
pub const PCODE_DATA0: u32 = 0x13_8128;
pub const PCODE_DATA1: u32 = 0x13_812C;
pub const PCODE_READY: u32 = 1 << 31;
/// Mirror of the host bridge's memory controller registers.
pub const MCHBAR_MIRROR: u32 = 0x14_0000;
pub const MCHBAR_MIRROR_END: u32 = 0x18_0000;
pub const MAD_INTER_CHANNEL: u32 = 0x14_5000;
pub const MAD_DIMM_CH0: u32 = 0x14_500C;
pub const MAD_DIMM_CH1: u32 = 0x14_5010;
pub const RP_STATE_LIMITS: u32 = 0x14_5994;
pub const RP_STATE_CAP: u32 = 0x14_5998;
pub const BIOS_DATA: u32 = 0x14_5E04;

pub mod pcode {
    //! Commands of the PCODE mailbox (bits 7:0).
    pub const READ_MEM_LATENCY: u32 = 0x06;
    pub const CDCLK_CONTROL: u32 = 0x07;
    pub const WRITE_MIN_FREQ_TABLE: u32 = 0x08;
    pub const READ_MIN_FREQ_TABLE: u32 = 0x09;
    pub const READ_RC6VIDS: u32 = 0x05;
    pub const DYNAMIC_DUTY_CYCLE: u32 = 0x1A;
    pub const SAGV_CONTROL: u32 = 0x21;
    pub const SUCCESS: u32 = 0;
    pub const ILLEGAL_COMMAND: u32 = 1;
}

pub mod display {
    //! The display registers that a driver meets when nothing is attached.
    pub const VGA_CONTROL: u32 = 0x4_1000;
    pub const FUSE_STATUS: u32 = 0x4_2000;
    pub const FPGA_DBG: u32 = 0x4_2300;
    pub const FPGA_DBG_UNCLAIMED: u32 = 1 << 31;
    pub const TIMESTAMP_OVERRIDE: u32 = 0x4_4074;
    pub const DBUF_CTL: u32 = 0x4_5008;
    pub const PWR_WELL_CTL1: u32 = 0x4_5400;
    pub const PWR_WELL_CTLS: u32 = 4;
    pub const DC_STATE_EN: u32 = 0x4_5504;
    pub const CDCLK_CTL: u32 = 0x4_6000;
    pub const LCPLL1_CTL: u32 = 0x4_6010;
    pub const LCPLL2_CTL: u32 = 0x4_6014;
    pub const WRPLL1_CTL: u32 = 0x4_6040;
    pub const WRPLL2_CTL: u32 = 0x4_6060;
    pub const DFSM: u32 = 0x5_1000;
    /// DFSM with pipes A, B and C fused off.
    pub const DFSM_ALL_PIPES_OFF: u32 = 0x5020_0000;
    pub const DSSM: u32 = 0x5_1004;
    pub const DDI_BUF_CTL_A: u32 = 0x6_4000;
    pub const DDI_PORTS: u32 = 5;
    pub const DDI_BUF_ENABLE: u32 = 1 << 31;
    pub const DDI_BUF_IDLE: u32 = 1 << 7;
    pub const AUX_CTL_A: u32 = 0x6_4010;
    pub const PSR_IIR: u32 = 0x6_4838;
    pub const PSR_IMR: u32 = 0x6_4834;
    pub const DPLL_CTRL1: u32 = 0x6_C058;
    pub const DPLL_CTRL2: u32 = 0x6_C05C;
    pub const DPLL_STATUS: u32 = 0x6_C060;
    pub const PIPECONF_A: u32 = 0x7_0008;
    pub const PIPECONF_EDP: u32 = 0x7_F008;
    pub const PIPES: u32 = 3;
    pub const PIPE_STRIDE: u32 = 0x1000;
    pub const SFUSE_STRAP: u32 = 0xC_2014;
    pub const PCH_PORT_HOTPLUG: u32 = 0xC_4030;
    pub const PCH_PORT_HOTPLUG2: u32 = 0xC_403C;
    pub const GMBUS0: u32 = 0xC_5100;
    pub const GMBUS1: u32 = 0xC_5104;
    pub const GMBUS2: u32 = 0xC_5108;
    pub const SBI_CTL_STAT: u32 = 0xC_6008;
    pub const PCH_RAWCLK_FREQ: u32 = 0xC_6204;
    pub const PP_STATUS: u32 = 0xC_7200;
    pub const PP_CONTROL: u32 = 0xC_7204;
}
