//! AMD-V: the virtual machine control block, exit codes and intercepts (APM volume 2, chapter 15 and appendices B, C).
#![allow(missing_docs, reason = "constant tables: each name is the manual's own")]

use zerocopy::FromZeros;

pub use crate::Segment;

/// CPUID leaf that describes SVM, and the feature bit of leaf 0x8000_0001 ECX.
pub const CPUID_SVM: u32 = 0x8000_000A;
pub const CPUID_8000_0001_ECX_SVM: u32 = 1 << 2;
/// CPUID 0x8000_000A EDX.
pub const FEATURE_NP: u32 = 1 << 0;
pub const FEATURE_NRIPS: u32 = 1 << 3;

/// VM_CR (MSR 0xC001_0114): SVM was disabled by firmware.
pub const VM_CR_SVMDIS: u64 = 1 << 4;

/// The control area (offset 0 of the VMCB).
#[derive(Clone)]
#[repr(C)]
pub struct Control {
    pub intercept_cr_read: u16,
    pub intercept_cr_write: u16,
    pub intercept_dr_read: u16,
    pub intercept_dr_write: u16,
    pub intercept_exceptions: u32,
    pub intercept_misc1: u32,
    pub intercept_misc2: u32,
    pub intercept_misc3: u32,
    reserved_018: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base_pa: u64,
    pub msrpm_base_pa: u64,
    pub tsc_offset: u64,
    pub guest_asid: u32,
    pub tlb_control: u32,
    pub vintr: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub np_enable: u64,
    pub avic_apic_bar: u64,
    pub ghcb: u64,
    pub event_inj: u64,
    pub n_cr3: u64,
    pub lbr_virtualization_enable: u64,
    pub vmcb_clean: u64,
    pub nrip: u64,
    pub fetched: u8,
    pub guest_instruction_bytes: [u8; 15],
    reserved_0e0: [u8; 0x320],
}

/// The state save area (offset 0x400 of the VMCB).
#[derive(Clone, FromZeros)]
#[repr(C)]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved_0a0: [u8; 0x2B],
    pub cpl: u8,
    reserved_0cc: [u8; 4],
    pub efer: u64,
    reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    reserved_1e0: [u8; 0x18],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    pub g_pat: u64,
    pub dbgctl: u64,
    pub br_from: u64,
    pub br_to: u64,
    pub lastexcpfrom: u64,
    pub lastexcpto: u64,
    reserved_298: [u8; 0x968],
}

/// A virtual machine control block: one 4 KiB page.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: Control,
    pub save: Save,
}

/// Intercepts, vector 3 (offset 0x00C).
pub mod misc1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const RSM: u32 = 1 << 19;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO_PROT: u32 = 1 << 27;
    pub const MSR_PROT: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const FERR_FREEZE: u32 = 1 << 30;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts, vector 4 (offset 0x010).
pub mod misc2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const RDTSCP: u32 = 1 << 7;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const XSETBV: u32 = 1 << 13;
}

/// Virtual interrupt control (offset 0x060).
pub mod vintr {
    pub const V_TPR_MASK: u64 = 0xFF;
    pub const V_IRQ: u64 = 1 << 8;
    pub const V_INTR_PRIO_MASK: u64 = 0xF << 16;
    pub const V_IGN_TPR: u64 = 1 << 20;
    pub const V_INTR_MASKING: u64 = 1 << 24;
}

/// EVENTINJ and EXITINTINFO.
pub mod event {
    pub const VECTOR_MASK: u64 = 0xFF;
    pub const TYPE_SHIFT: u32 = 8;
    pub const TYPE_MASK: u64 = 7 << 8;
    pub const TYPE_INTR: u64 = 0;
    pub const TYPE_NMI: u64 = 2;
    pub const TYPE_EXCEPTION: u64 = 3;
    pub const TYPE_SOFTWARE: u64 = 4;
    pub const ERROR_CODE_VALID: u64 = 1 << 11;
    pub const VALID: u64 = 1 << 31;
    pub const ERROR_CODE_SHIFT: u32 = 32;
}

/// Bit 0 of the interrupt-shadow qword: one instruction after STI or MOV SS.
pub const INTERRUPT_SHADOW: u64 = 1;
/// NP_ENABLE.
pub const NP_ENABLE: u64 = 1;
/// TLB_CONTROL: flush the entire TLB (all ASIDs). The one value that every implementation has.
pub const TLB_FLUSH_ALL: u32 = 1;

/// Exit codes (appendix C).
pub mod exit {
    pub const EXCEPTION_0: u64 = 0x40;
    pub const EXCEPTION_31: u64 = 0x5F;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6F;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPGA: u64 = 0x7A;
    pub const IOIO: u64 = 0x7B;
    pub const MSR: u64 = 0x7C;
    pub const TASK_SWITCH: u64 = 0x7D;
    pub const FERR_FREEZE: u64 = 0x7E;
    pub const SHUTDOWN: u64 = 0x7F;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const VMSAVE: u64 = 0x83;
    pub const STGI: u64 = 0x84;
    pub const CLGI: u64 = 0x85;
    pub const SKINIT: u64 = 0x86;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8A;
    pub const MWAIT: u64 = 0x8B;
    pub const MWAIT_CONDITIONAL: u64 = 0x8C;
    pub const XSETBV: u64 = 0x8D;
    pub const NPF: u64 = 0x400;
    /// VMRUN found the guest state illegal. QEMU before 11 leaves the upper half zero.
    pub const INVALID: u64 = u64::MAX;
    pub const INVALID_32: u64 = 0xFFFF_FFFF;
}

/// EXITINFO1 of an IOIO exit.
pub mod ioio {
    pub const TYPE_IN: u64 = 1 << 0;
    pub const STR: u64 = 1 << 2;
    pub const REP: u64 = 1 << 3;
    pub const SZ8: u64 = 1 << 4;
    pub const SZ16: u64 = 1 << 5;
    pub const SZ32: u64 = 1 << 6;
    pub const PORT_SHIFT: u32 = 16;
}

/// EXITINFO1 of a nested page fault: a page-fault error code and where in the walk it happened.
pub mod npf {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const RESERVED: u64 = 1 << 3;
    pub const FETCH: u64 = 1 << 4;
    pub const FINAL_ADDRESS: u64 = 1 << 32;
    pub const TABLE_WALK: u64 = 1 << 33;
}

/// Sizes of the permission maps, in bytes; both are contiguous and page-aligned.
pub const IOPM_BYTES: usize = 12 * 1024;
pub const MSRPM_BYTES: usize = 8 * 1024;

/// Which two bits of the MSR permission map stand for `msr`: (byte, shift); read is the lower bit, write the upper.
pub const fn msrpm_position(msr: u32) -> Option<(usize, u32)> {
    let (base, index) = match msr {
        0..=0x1FFF => (0x000, msr),
        0xC000_0000..=0xC000_1FFF => (0x800, msr - 0xC000_0000),
        0xC001_0000..=0xC001_1FFF => (0x1000, msr - 0xC001_0000),
        _ => return None,
    };
    Some((base + (index as usize) / 4, (index % 4) * 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn offsets_are_those_of_appendix_b() {
        assert_eq!(size_of::<Vmcb>(), 4096);
        let offsets = [
            (offset_of!(Vmcb, save), 0x400),
            (offset_of!(Control, intercept_misc1), 0x00C),
            (offset_of!(Control, intercept_misc2), 0x010),
            (offset_of!(Control, pause_filter_threshold), 0x03C),
            (offset_of!(Control, iopm_base_pa), 0x040),
            (offset_of!(Control, tsc_offset), 0x050),
            (offset_of!(Control, guest_asid), 0x058),
            (offset_of!(Control, tlb_control), 0x05C),
            (offset_of!(Control, vintr), 0x060),
            (offset_of!(Control, exit_code), 0x070),
            (offset_of!(Control, exit_int_info), 0x088),
            (offset_of!(Control, np_enable), 0x090),
            (offset_of!(Control, event_inj), 0x0A8),
            (offset_of!(Control, n_cr3), 0x0B0),
            (offset_of!(Control, vmcb_clean), 0x0C0),
            (offset_of!(Control, nrip), 0x0C8),
            (offset_of!(Control, guest_instruction_bytes), 0x0D1),
            (offset_of!(Save, gdtr), 0x060),
            (offset_of!(Save, tr), 0x090),
            (offset_of!(Save, cpl), 0x0CB),
            (offset_of!(Save, efer), 0x0D0),
            (offset_of!(Save, cr4), 0x148),
            (offset_of!(Save, rip), 0x178),
            (offset_of!(Save, rsp), 0x1D8),
            (offset_of!(Save, rax), 0x1F8),
            (offset_of!(Save, cr2), 0x240),
            (offset_of!(Save, g_pat), 0x268),
            (offset_of!(Save, lastexcpto), 0x290),
        ];
        for (index, (actual, expected)) in offsets.into_iter().enumerate() {
            assert_eq!(actual, expected, "row {index}");
        }
    }

    #[test]
    fn msr_permission_bits() {
        assert_eq!(msrpm_position(0), Some((0, 0)));
        assert_eq!(msrpm_position(0x1FFF), Some((0x7FF, 6)));
        assert_eq!(msrpm_position(0xC000_0080), Some((0x820, 0)));
        assert_eq!(msrpm_position(0xC001_0114), Some((0x1045, 0)));
        assert_eq!(msrpm_position(0x4b56_4d00), None);
        assert_eq!(msrpm_position(0x2000), None);
    }
}
