//! CPUID: the policy of `hv_defs::cpuid`, and what depends on the virtual CPU.

use hv_defs::cpuid::{self, Adjust, Regs};
use hv_defs::regs::Cr4;

use crate::fpu;
use crate::vcpu::Vcpu;
use crate::vendor::VirtualCpu;
use crate::x86;

/// Widest guest-physical address shown: what the smaller Gen9 machines' IOMMUs and QEMU's CPUs have.
const MAX_ADDRESS_BITS: u32 = 39;

/// What an answer depends on besides the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestView {
    /// APIC id of the virtual CPU.
    pub apic_id: u32,
    /// Virtual CPUs of the VM.
    pub vcpus: u32,
    /// CR4.
    pub cr4: u64,
    /// XCR0 as it is.
    pub xcr0: u64,
    /// What XCR0 may hold.
    pub xcr0_supported: u64,
}

/// Executes CPUID.
pub(super) fn execute<V: VirtualCpu>(vcpu: &mut Vcpu<V>) {
    let view = GuestView {
        apic_id: vcpu.index as u32,
        vcpus: vcpu.vm.cpus().len() as u32,
        cr4: vcpu.hw.cr4(),
        xcr0: vcpu.guest.xcr0,
        xcr0_supported: fpu::supported(),
    };
    let (leaf, subleaf) = (vcpu.hw.gpr(0) as u32, vcpu.hw.gpr(1) as u32);
    let answer = answer(leaf, subleaf, &view, &x86::cpuid);
    for (number, value) in [(0, answer.eax), (3, answer.ebx), (1, answer.ecx), (2, answer.edx)] {
        vcpu.hw.set_gpr(number, u64::from(value));
    }
}

/// What a guest reads. `host` executes CPUID on the host.
fn answer(leaf: u32, subleaf: u32, view: &GuestView, host: &dyn Fn(u32, u32) -> Regs) -> Regs {
    match leaf {
        cpuid::HYPERVISOR_BASE => vendor(leaf, &cpuid::HYPERVISOR_VENDOR),
        cpuid::KVM_BASE => vendor(leaf + 1, &cpuid::KVM_VENDOR),
        leaf if leaf == cpuid::KVM_BASE + 1 => Regs { eax: cpuid::KVM_FEATURES, ..Regs::default() },
        _ => match cpuid::find(leaf, subleaf) {
            Some(row) => adjust(row.adjust, subleaf, row.apply(host(leaf, subleaf)), view, host),
            None => Regs::default(),
        },
    }
}

fn vendor(highest: u32, text: &[u8; 12]) -> Regs {
    let word = |at: usize| text.iter().skip(at).take(4).rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    Regs { eax: highest, ebx: word(0), ecx: word(4), edx: word(8) }
}

/// Bits of an APIC id that number the cores.
fn core_bits(vcpus: u32) -> u32 {
    vcpus.max(1).next_power_of_two().trailing_zeros()
}

fn adjust(what: Adjust, subleaf: u32, mut regs: Regs, view: &GuestView, host: &dyn Fn(u32, u32) -> Regs) -> Regs {
    match what {
        Adjust::None => {}
        Adjust::MaxBasic => regs.eax = regs.eax.clamp(1, cpuid::MAX_BASIC),
        Adjust::MaxExtended => regs.eax = regs.eax.clamp(0x8000_0000, cpuid::MAX_EXTENDED),
        Adjust::Leaf1 => leaf_1(&mut regs, view),
        Adjust::CacheSharing => cache_sharing(&mut regs, view),
        Adjust::Topology => regs = topology(subleaf, view),
        Adjust::Xsave => xsave(subleaf, &mut regs, view, host),
        Adjust::AddressSizes => {
            let bits = (regs.eax & 0xFF).min(MAX_ADDRESS_BITS);
            regs.eax = regs.eax & 0xFF00 | bits;
            regs.ecx = core_bits(view.vcpus) << 12 | (view.vcpus - 1);
        }
    }
    regs
}

fn leaf_1(regs: &mut Regs, view: &GuestView) {
    const HTT: u32 = 1 << 28;
    const OSXSAVE: u32 = 1 << 27;
    regs.ebx |= view.apic_id << 24 | view.vcpus << 16;
    regs.edx = if view.vcpus > 1 { regs.edx | HTT } else { regs.edx & !HTT };
    if view.cr4 & Cr4::OSXSAVE.bits() != 0 {
        regs.ecx |= OSXSAVE;
    }
}

/// Leaf 4: each core has its own caches but the last level, which all share.
fn cache_sharing(regs: &mut Regs, view: &GuestView) {
    const LAST_LEVEL: u32 = 3;
    if regs.eax & 0x1F == 0 {
        return;
    }
    let sharing = if regs.eax >> 5 & 7 >= LAST_LEVEL { (1 << core_bits(view.vcpus)) - 1 } else { 0 };
    let cores = (1 << core_bits(view.vcpus)) - 1;
    regs.eax = regs.eax & 0x3FFF | sharing << 14 | cores << 26;
}

/// Leaf 0xB: one thread a core, all cores in one package.
fn topology(subleaf: u32, view: &GuestView) -> Regs {
    let (shift, count, kind) = match subleaf {
        0 => (0, 1, 1),
        1 => (core_bits(view.vcpus), view.vcpus, 2),
        _ => (0, 0, 0),
    };
    Regs { eax: shift, ebx: count, ecx: kind << 8 | subleaf & 0xFF, edx: view.apic_id }
}

/// Leaf 0xD: what XCR0 may hold, how large the area is now, and where each component lies.
fn xsave(subleaf: u32, regs: &mut Regs, view: &GuestView, host: &dyn Fn(u32, u32) -> Regs) {
    const HEADER_END: u32 = 576;
    let area = |components: u64| {
        let ends = (2..63).filter(|n| components >> n & 1 != 0).map(|n| {
            let component = host(0xD, n);
            component.eax.saturating_add(component.ebx)
        });
        ends.fold(HEADER_END, u32::max)
    };
    let supported = view.xcr0_supported;
    match subleaf {
        _ if supported == 0 => *regs = Regs::default(),
        0 => {
            *regs = Regs {
                eax: supported as u32,
                ebx: area(view.xcr0),
                ecx: area(supported),
                edx: (supported >> 32) as u32,
            };
        }
        1 => *regs = Regs { eax: cpuid::XSAVE_EXTENDED_KEPT.apply(regs.eax), ebx: area(view.xcr0), ecx: 0, edx: 0 },
        2..63 if supported >> subleaf & 1 != 0 => {}
        _ => *regs = Regs::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: GuestView = GuestView { apic_id: 2, vcpus: 3, cr4: 0, xcr0: 7, xcr0_supported: 7 };

    fn host(leaf: u32, subleaf: u32) -> Regs {
        match (leaf, subleaf) {
            (0, _) => Regs { eax: 0x16, ..Regs::default() },
            (0xD, 0) => Regs { eax: 0x207, ebx: 0x340, ecx: 0xA88, edx: 0 },
            (0xD, 1) => Regs { eax: 0xF, ebx: 0x340, ecx: 0x100, edx: 0 },
            (0xD, 2) => Regs { eax: 256, ebx: 576, ecx: 0, edx: 0 },
            (0xD, 9) => Regs { eax: 8, ebx: 0xA80, ecx: 0, edx: 0 },
            (0x8000_0008, _) => Regs { eax: 0x3034, ebx: !0, ecx: 0xFF, edx: 5 },
            (0x8000_0000, _) => Regs { eax: 0x8000_001F, ..Regs::default() },
            _ => Regs { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        }
    }

    fn ask(leaf: u32, subleaf: u32) -> Regs {
        answer(leaf, subleaf, &VIEW, &host)
    }

    #[test]
    fn hypervisor_leaves_are_found_where_linux_looks() {
        assert_eq!(ask(1, 0).ecx >> 31, 1);
        let kvm = ask(0x4000_0100, 0);
        assert_eq!((kvm.eax, kvm.ebx, kvm.ecx, kvm.edx), (0x4000_0101, 0x4b4d_564b, 0x564b_4d56, 0x4d));
        assert_eq!(ask(0x4000_0101, 0).eax & (1 << 3 | 1 << 24), 1 << 3 | 1 << 24);
        assert_eq!(ask(0x4000_0000, 0).ebx.to_le_bytes(), *b"Pris");
        assert_eq!(ask(0x4000_0002, 0), Regs::default());
    }

    #[test]
    fn topology_leaves_agree() {
        let leaf1 = ask(1, 0);
        assert_eq!((leaf1.ebx >> 24, leaf1.ebx >> 16 & 0xFF, leaf1.edx >> 28 & 1), (2, 3, 1));
        assert_eq!(ask(0xB, 0), Regs { eax: 0, ebx: 1, ecx: 0x100, edx: 2 });
        assert_eq!(ask(0xB, 1), Regs { eax: 2, ebx: 3, ecx: 0x201, edx: 2 });
        assert_eq!(ask(0xB, 2).ebx, 0);
        assert_eq!(ask(0x8000_0008, 0).ecx, 2 << 12 | 2);
        let one = GuestView { apic_id: 0, vcpus: 1, ..VIEW };
        assert_eq!(answer(1, 0, &one, &host).edx >> 28 & 1, 0);
        assert_eq!(answer(0xB, 1, &one, &host), Regs { eax: 0, ebx: 1, ecx: 0x201, edx: 0 });
    }

    #[test]
    fn caps_hold() {
        assert_eq!(ask(0, 0).eax, cpuid::MAX_BASIC);
        assert_eq!(ask(0x8000_0000, 0).eax, cpuid::MAX_EXTENDED);
        assert_eq!(ask(0x8000_0008, 0).eax & 0xFF, 39);
        assert_eq!(ask(0x15, 0), Regs::default());
        assert_eq!(ask(0x8000_000A, 0), Regs::default());
        assert_eq!(ask(0xFFFF_FFFF, 0), Regs::default());
    }

    #[test]
    fn leaf_d_matches_what_xcr0_may_hold() {
        assert_eq!(ask(0xD, 0), Regs { eax: 7, ebx: 832, ecx: 832, edx: 0 });
        let small = GuestView { xcr0: 1, ..VIEW };
        assert_eq!(answer(0xD, 0, &small, &host).ebx, 576);
        assert_eq!(ask(0xD, 1).eax, 7, "no XSAVES");
        assert_eq!(ask(0xD, 2).eax, 256);
        assert_eq!(ask(0xD, 9), Regs::default(), "PKRU is not offered");
        let none = GuestView { xcr0_supported: 0, ..VIEW };
        assert_eq!(answer(0xD, 0, &none, &host), Regs::default());
    }

    #[test]
    fn osxsave_follows_cr4() {
        assert_eq!(ask(1, 0).ecx >> 27 & 1, 0);
        let on = GuestView { cr4: 1 << 18, ..VIEW };
        assert_eq!(answer(1, 0, &on, &host).ecx >> 27 & 1, 1);
    }
}
