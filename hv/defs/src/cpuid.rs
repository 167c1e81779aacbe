//! What CPUID says to a guest: which bits of the host's answer stay, which are set, which leaves are made up.
//!
//! Leaf and bit names: SDM volume 2 "CPUID", APM volume 3 appendix E, Linux `Documentation/virt/kvm/x86/cpuid.rst`.

use crate::regs::Cr4;

/// The four result registers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Regs {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// What happens to one result register: `host & keep | set`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bits {
    /// Bits taken from the host.
    pub keep: u32,
    /// Bits that are one whatever the host says.
    pub set: u32,
}

/// All of the host's register.
pub const ALL: Bits = Bits { keep: !0, set: 0 };
/// Nothing.
pub const ZERO: Bits = Bits { keep: 0, set: 0 };

/// A mask of these bits.
const fn bits(mut numbers: &[u32]) -> u32 {
    let mut mask = 0;
    while let [first, rest @ ..] = numbers {
        mask |= 1 << *first;
        numbers = rest;
    }
    mask
}
const fn keep(mask: u32) -> Bits {
    Bits { keep: mask, set: 0 }
}
const fn clear(mask: u32) -> Bits {
    Bits { keep: !mask, set: 0 }
}
const fn fixed(value: u32) -> Bits {
    Bits { keep: 0, set: value }
}

/// What is computed for a leaf after the masks: the part that depends on the vCPU or the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adjust {
    /// Nothing.
    None,
    /// Leaf 0: the highest basic leaf is capped.
    MaxBasic,
    /// Leaf 1: APIC id, logical processors, OSXSAVE.
    Leaf1,
    /// Leaf 4: how many logical processors share a cache.
    CacheSharing,
    /// Leaf 0xB: one thread a core, all cores in one package.
    Topology,
    /// Leaf 0xD: sizes and components that match what XCR0 may hold.
    Xsave,
    /// Leaf 0x8000_0000: the highest extended leaf is capped.
    MaxExtended,
    /// Leaf 0x8000_0008: address widths and the core count.
    AddressSizes,
}

/// One row: a leaf, or a run of subleaves of it.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// EAX on entry.
    pub leaf: u32,
    /// ECX on entry, `None` for any.
    pub subleaf: Option<u32>,
    /// Result policy.
    pub eax: Bits,
    /// Result policy.
    pub ebx: Bits,
    /// Result policy.
    pub ecx: Bits,
    /// Result policy.
    pub edx: Bits,
    /// What follows.
    pub adjust: Adjust,
}

const fn row(leaf: u32, subleaf: Option<u32>, regs: [Bits; 4], adjust: Adjust) -> Leaf {
    Leaf { leaf, subleaf, eax: regs[0], ebx: regs[1], ecx: regs[2], edx: regs[3], adjust }
}

/// Highest basic leaf shown. 0x15 and 0x16 lie in some emulators (design D14): the clock rate is told by kvmclock.
pub const MAX_BASIC: u32 = 0xD;
/// Highest extended leaf shown. 0x8000_001D and 1E are left out, so that AMD topology comes from 0x8000_0008.
pub const MAX_EXTENDED: u32 = 0x8000_0008;

/// Leaf 1 ECX: DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA, OSXSAVE (recomputed).
const LEAF1_ECX_HIDDEN: u32 = bits(&[2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18, 27]);
/// Leaf 1 ECX: x2APIC, TSC-deadline and the hypervisor bit: all emulated, whatever the host has.
const LEAF1_ECX_SET: u32 = bits(&[21, 24, 31]);
/// Leaf 1 EDX: DS, ACPI (thermal), TM, PBE.
const LEAF1_EDX_HIDDEN: u32 = bits(&[21, 22, 29, 31]);
/// Leaf 1 EDX: TSC, MSR, MCE, APIC, MTRR, MCA, PAT: 64-bit Windows refuses to start without MCE and MCA.
const LEAF1_EDX_SET: u32 = bits(&[4, 5, 7, 9, 12, 14, 16]);

/// Leaf 7 EBX, kept: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, AVX512F/DQ, RDSEED, ADX, SMAP, IFMA, CLFLUSHOPT,
/// CLWB, AVX512CD, SHA, AVX512BW/VL. (SGX, TSC_ADJUST, RTM, PQM, MPX, PQE and PT are not.)
const LEAF7_EBX_KEPT: u32 = bits(&[0, 3, 5, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
/// Leaf 7 ECX, kept: AVX512_VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID.
/// Protection keys stay off: PKRU lies outside XCR0 when a guest leaves it there.
const LEAF7_ECX_KEPT: u32 = bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 22]);
/// Leaf 7 EDX, kept: AVX512_4VNNIW, 4FMAPS, FSRM, VP2INTERSECT, MD_CLEAR, SERIALIZE.
/// (Speculation-control MSRs are not passed through yet, so their bits are hidden.)
const LEAF7_EDX_KEPT: u32 = bits(&[2, 3, 4, 8, 10, 14]);

/// Leaf 0x8000_0001 ECX, hidden: SVM, extended APIC space, OSVW, IBS, SKINIT, WDT, LWP, NodeId, TOPOEXT, PerfCtrExt*,
/// DBE, PTSC, MWAITX.
const EXT1_ECX_HIDDEN: u32 = bits(&[2, 3, 9, 10, 12, 13, 15, 19, 22, 23, 24, 26, 27, 28, 29]);
/// Leaf 0x8000_0008 EBX, kept: CLZERO, XSaveErPtr, WBNOINVD.
const EXT8_EBX_KEPT: u32 = bits(&[0, 2, 9]);

const LEAF1_ECX: Bits = Bits { keep: !LEAF1_ECX_HIDDEN, set: LEAF1_ECX_SET };
const LEAF1_EDX: Bits = Bits { keep: !LEAF1_EDX_HIDDEN, set: LEAF1_EDX_SET };
/// Leaf 7 EBX, set: IA32_TSC_ADJUST is emulated.
const LEAF7_EBX: Bits = Bits { keep: LEAF7_EBX_KEPT, set: bits(&[1]) };

/// The policy. Sorted by leaf, then subleaf; a leaf that is not here reads zero.
pub const LEAVES: &[Leaf] = &[
    row(0x0, None, [ALL, ALL, ALL, ALL], Adjust::MaxBasic),
    row(0x1, None, [ALL, keep(0xFF00), LEAF1_ECX, LEAF1_EDX], Adjust::Leaf1),
    row(0x2, None, [ALL, ALL, ALL, ALL], Adjust::None),
    row(0x4, None, [ALL, ALL, ALL, ALL], Adjust::CacheSharing),
    // ARAT alone: the emulated APIC timer never stops. No HWP, no thermal sensors.
    row(0x6, None, [fixed(1 << 2), ZERO, ZERO, ZERO], Adjust::None),
    row(0x7, Some(0), [ZERO, LEAF7_EBX, keep(LEAF7_ECX_KEPT), keep(LEAF7_EDX_KEPT)], Adjust::None),
    row(0xB, None, [ZERO, ZERO, ZERO, ZERO], Adjust::Topology),
    row(0xD, None, [ALL, ALL, ALL, ALL], Adjust::Xsave),
    row(0x8000_0000, None, [ALL, ALL, ALL, ALL], Adjust::MaxExtended),
    row(0x8000_0001, None, [ALL, ALL, clear(EXT1_ECX_HIDDEN), ALL], Adjust::None),
    row(0x8000_0002, None, [ALL, ALL, ALL, ALL], Adjust::None),
    row(0x8000_0003, None, [ALL, ALL, ALL, ALL], Adjust::None),
    row(0x8000_0004, None, [ALL, ALL, ALL, ALL], Adjust::None),
    row(0x8000_0005, None, [ALL, ALL, ALL, ALL], Adjust::None),
    row(0x8000_0006, None, [ALL, ALL, ALL, ALL], Adjust::None),
    // Invariant TSC alone.
    row(0x8000_0007, None, [ZERO, ZERO, ZERO, fixed(1 << 8)], Adjust::None),
    row(0x8000_0008, None, [keep(0xFFFF), keep(EXT8_EBX_KEPT), ZERO, ZERO], Adjust::AddressSizes),
];

/// Extended features of leaf 0xD subleaf 1 that need no MSR: XSAVEOPT, XSAVEC, XGETBV(1).
pub const XSAVE_EXTENDED_KEPT: Bits = keep(0x7);

/// A result register of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Output {
    Ebx,
    Ecx,
    Edx,
}

/// A feature: leaf (subleaf 0), register, bit.
pub type Feature = (u32, Output, u32);

/// Which feature each bit of CR4 comes with (SDM volume 3, 2.5; APM volume 2, 3.1.3).
/// PCE comes with every CPU, which `None` says.
pub const CR4_FEATURES: &[(Cr4, Option<Feature>)] = &[
    (Cr4::VME, Some((1, Output::Edx, 1))),
    (Cr4::PVI, Some((1, Output::Edx, 1))),
    (Cr4::TSD, Some((1, Output::Edx, 4))),
    (Cr4::DE, Some((1, Output::Edx, 2))),
    (Cr4::PSE, Some((1, Output::Edx, 3))),
    (Cr4::PAE, Some((1, Output::Edx, 6))),
    (Cr4::MCE, Some((1, Output::Edx, 7))),
    (Cr4::PGE, Some((1, Output::Edx, 13))),
    (Cr4::PCE, None),
    (Cr4::OSFXSR, Some((1, Output::Edx, 24))),
    (Cr4::OSXMMEXCPT, Some((1, Output::Edx, 25))),
    (Cr4::UMIP, Some((7, Output::Ecx, 2))),
    (Cr4::LA57, Some((7, Output::Ecx, 16))),
    (Cr4::VMXE, Some((1, Output::Ecx, 5))),
    (Cr4::FSGSBASE, Some((7, Output::Ebx, 0))),
    (Cr4::PCIDE, Some((1, Output::Ecx, 17))),
    (Cr4::OSXSAVE, Some((1, Output::Ecx, 26))),
    (Cr4::SMEP, Some((7, Output::Ebx, 7))),
    (Cr4::SMAP, Some((7, Output::Ebx, 20))),
    (Cr4::PKE, Some((7, Output::Ecx, 3))),
];

/// The bits of CR4 that a guest may set: those whose feature it is shown. `host` executes CPUID on the host.
pub fn offered_cr4(host: impl Fn(u32, u32) -> Regs) -> Cr4 {
    let shown = |leaf| find(leaf, 0).map_or(Regs::default(), |row| row.apply(host(leaf, 0)));
    let (basic, structured) = (shown(1), shown(7));
    let offered = CR4_FEATURES.iter().filter(|(_, feature)| {
        feature.is_none_or(|(leaf, output, bit)| {
            let regs = if leaf == 7 { &structured } else { &basic };
            let value = match output {
                Output::Ebx => regs.ebx,
                Output::Ecx => regs.ecx,
                Output::Edx => regs.edx,
            };
            value >> bit & 1 != 0
        })
    });
    offered.fold(Cr4::empty(), |all, (bit, _)| all | *bit)
}

/// First leaf of Prism's own block and its vendor text.
pub const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// EBX, ECX, EDX of the base leaf, as text.
pub const HYPERVISOR_VENDOR: [u8; 12] = *b"PrismHvPrism";
/// First leaf of the KVM-compatible block, which tells Linux the clock rate.
pub const KVM_BASE: u32 = 0x4000_0100;
/// Vendor text of the KVM block.
pub const KVM_VENDOR: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// KVM features offered: NOP_IO_DELAY (1), CLOCKSOURCE2 (3), CLOCKSOURCE_STABLE (24).
pub const KVM_FEATURES: u32 = bits(&[1, 3, 24]);

/// The row that answers `leaf`, `subleaf`.
pub fn find(leaf: u32, subleaf: u32) -> Option<&'static Leaf> {
    LEAVES.iter().find(|row| row.leaf == leaf && row.subleaf.is_none_or(|only| only == subleaf))
}

impl Bits {
    /// Applies the policy to the host's value.
    pub const fn apply(self, host: u32) -> u32 {
        host & self.keep | self.set
    }
}

impl Leaf {
    /// Applies the masks to the host's answer.
    pub const fn apply(&self, host: Regs) -> Regs {
        Regs {
            eax: self.eax.apply(host.eax),
            ebx: self.ebx.apply(host.ebx),
            ecx: self.ecx.apply(host.ecx),
            edx: self.edx.apply(host.edx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_unique() {
        for pair in LEAVES.windows(2) {
            assert!((pair[0].leaf, pair[0].subleaf) < (pair[1].leaf, pair[1].subleaf), "{:#x}", pair[1].leaf);
        }
    }

    #[test]
    fn rows_lie_below_the_caps() {
        for row in LEAVES {
            let cap = if row.leaf < HYPERVISOR_BASE { MAX_BASIC } else { MAX_EXTENDED };
            assert!(row.leaf <= cap, "{:#x}", row.leaf);
        }
    }

    /// Also where the CPU has everything.
    #[test]
    fn cr4_offers_what_cpuid_shows() {
        let every = CR4_FEATURES.iter().fold(Cr4::empty(), |all, (bit, _)| all | *bit);
        assert_eq!((every, CR4_FEATURES.len()), (Cr4::all(), Cr4::all().bits().count_ones() as usize));
        let all = Regs { eax: !0, ebx: !0, ecx: !0, edx: !0 };
        assert_eq!(offered_cr4(|_, _| all), Cr4::all() - (Cr4::VMXE | Cr4::LA57 | Cr4::PKE));
        let least = offered_cr4(|_, _| Regs::default());
        assert!(least.contains(Cr4::PCE) && !least.intersects(Cr4::SMAP | Cr4::OSXSAVE));
    }

    #[test]
    fn no_nested_virtualization_is_offered() {
        let all = Regs { eax: !0, ebx: !0, ecx: !0, edx: !0 };
        assert_eq!(find(1, 0).unwrap().apply(all).ecx & (1 << 5), 0, "VMX");
        assert_eq!(find(0x8000_0001, 0).unwrap().apply(all).ecx & (1 << 2), 0, "SVM");
        assert!(find(0x8000_000A, 0).is_none());
        assert!(find(7, 1).is_none());
    }

    #[test]
    fn what_guests_need_is_there_on_any_host() {
        let leaf1 = find(1, 0).unwrap().apply(Regs::default());
        assert_eq!(leaf1.ecx & LEAF1_ECX_SET, LEAF1_ECX_SET);
        assert_eq!(leaf1.edx & LEAF1_EDX_SET, LEAF1_EDX_SET);
        assert_eq!(find(0x8000_0007, 0).unwrap().apply(Regs::default()).edx, 1 << 8);
        assert_eq!(find(6, 0).unwrap().apply(Regs::default()).eax, 1 << 2);
    }
}
