//! Architectural registers and event numbers (SDM volume 3 chapters 2, 4, 6; APM volume 2 chapters 3, 5, 8).
#![allow(missing_docs, reason = "constant tables: each name is the manual's own")]

use bitflags::bitflags;

bitflags! {
    /// Control register 0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
    }

    /// Control register 4.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const LA57 = 1 << 12;
        const VMXE = 1 << 13;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
        const PKE = 1 << 22;
    }

    /// Extended feature enable register (MSR 0xC000_0080).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
        const SVME = 1 << 12;
        const LMSLE = 1 << 13;
        const FFXSR = 1 << 14;
    }

    /// RFLAGS, the bits a hypervisor looks at.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Rflags: u64 {
        const FIXED = 1 << 1;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
    }

    /// Extended control register 0: state components that XSAVE manages.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Xcr0: u64 {
        const X87 = 1 << 0;
        const SSE = 1 << 1;
        const AVX = 1 << 2;
        const OPMASK = 1 << 5;
        const ZMM_HI256 = 1 << 6;
        const HI16_ZMM = 1 << 7;
        const PKRU = 1 << 9;
    }
}

/// Exception vectors.
pub mod vector {
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const UD: u8 = 6;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
}

/// Value of the page attribute table after RESET: WB, WT, UC-, UC, twice.
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// DR6 and DR7 after RESET.
pub const DR6_RESET: u64 = 0xFFFF_0FF0;
pub const DR7_RESET: u64 = 0x400;
/// DR6: the exception is a single step's.
pub const DR6_BS: u64 = 1 << 14;

/// CR0 after RESET and INIT: ET, NW, CD.
pub const CR0_RESET: u64 = 0x6000_0010;

impl Rflags {
    /// First bit of the I/O privilege level, which has two.
    pub const IOPL_SHIFT: u32 = 12;
}

impl Cr4 {
    /// What a change of makes the CPU drop its translations (SDM volume 3, 5.10.4.1).
    pub const FLUSHES: Self = Self::PSE.union(Self::PAE).union(Self::PGE).union(Self::PCIDE).union(Self::SMEP);

    /// Whether a move to CR4 may replace `old` by `new` where the bits `offered` exist (SDM volume 2B "MOV"; APM volume 2,
    /// 3.1.3): no other bit, PAE as long as long mode is active, and PCIDE only set there, with PCID 0 in CR3.
    pub const fn may_become(old: u64, new: u64, offered: Self, cr3: u64, efer: u64) -> bool {
        let long = efer & Efer::LMA.bits() != 0;
        let begins_pcid = new & !old & Self::PCIDE.bits() != 0;
        new & !offered.bits() == 0
            && (!long || new & Self::PAE.bits() != 0)
            && (!begins_pcid || (long && cr3 & 0xFFF == 0))
    }
}

impl Xcr0 {
    /// Whether XSETBV may load this value on a CPU that offers `supported` (SDM volume 1, 13.3).
    pub const fn is_valid(value: u64, supported: u64) -> bool {
        let avx = Self::SSE.bits() | Self::AVX.bits();
        let avx512 = Self::OPMASK.bits() | Self::ZMM_HI256.bits() | Self::HI16_ZMM.bits();
        let has_x87 = value & Self::X87.bits() != 0;
        let avx_has_sse = value & Self::AVX.bits() == 0 || value & avx == avx;
        let avx512_whole = value & avx512 == 0 || (value & avx512 == avx512 && value & avx == avx);
        has_x87 && avx_has_sse && avx512_whole && value & !supported == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cr4_rules_of_mov() {
        let (pae, pcide) = (Cr4::PAE.bits(), Cr4::PCIDE.bits());
        let offered = Cr4::PAE | Cr4::PCIDE | Cr4::PGE;
        let may = |old, new, cr3, efer| Cr4::may_become(old, new, offered, cr3, efer);
        let lma = Efer::LMA.bits();
        assert!(may(0, Cr4::PGE.bits(), 0, 0) && may(pae, 0, 0, 0) && may(pae, pae | pcide, 0x5000, lma));
        assert!(may(pae | pcide, pae | pcide | Cr4::PGE.bits(), 0x5001, lma), "it is set already");
        assert!(!may(pae, 0, 0, lma), "long mode needs PAE");
        assert!(!may(pae, pae | pcide, 0x5001, lma) && !may(pae, pae | pcide, 0x5000, 0));
        assert!(!may(0, Cr4::PKE.bits(), 0, 0) && !may(0, 1 << 63, 0, 0) && !may(0, 1 << 23, 0, 0));
    }

    #[test]
    fn xcr0_rules_of_xsetbv() {
        assert!(Xcr0::is_valid(0x7, 0x7));
        assert!(Xcr0::is_valid(0x1, 0x7));
        assert!(!Xcr0::is_valid(0x6, 0x7), "x87 may not be cleared");
        assert!(!Xcr0::is_valid(0x5, 0x7), "AVX needs SSE");
        assert!(!Xcr0::is_valid(0x27, 0xE7), "AVX-512 comes whole");
        assert!(Xcr0::is_valid(0xE7, 0xE7));
        assert!(!Xcr0::is_valid(0xF, 0x7), "unsupported component");
    }
}
