//! VT-x: the virtual-machine control structure's fields, control bits, exit reasons and capability registers
//! (SDM volume 3, chapters 25 to 29 and appendices A to C).
#![allow(missing_docs, reason = "constant tables: each name is the manual's own")]

/// Capability and enable MSRs (appendix A; 24.7 for the last).
pub mod msr {
    pub const IA32_FEATURE_CONTROL: u32 = 0x3A;
    pub const IA32_VMX_BASIC: u32 = 0x480;
    pub const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
    pub const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
    pub const IA32_VMX_EXIT_CTLS: u32 = 0x483;
    pub const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
    pub const IA32_VMX_MISC: u32 = 0x485;
    pub const IA32_VMX_CR0_FIXED0: u32 = 0x486;
    pub const IA32_VMX_CR0_FIXED1: u32 = 0x487;
    pub const IA32_VMX_CR4_FIXED0: u32 = 0x488;
    pub const IA32_VMX_CR4_FIXED1: u32 = 0x489;
    pub const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48B;
    pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48C;
    pub const IA32_VMX_TRUE_PINBASED_CTLS: u32 = 0x48D;
    pub const IA32_VMX_TRUE_PROCBASED_CTLS: u32 = 0x48E;
    pub const IA32_VMX_TRUE_EXIT_CTLS: u32 = 0x48F;
    pub const IA32_VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
}

/// CPUID leaf 1 ECX: VMX.
pub const CPUID_1_ECX_VMX: u32 = 1 << 5;

/// IA32_FEATURE_CONTROL: locked; VMXON allowed outside SMX.
pub const FEATURE_CONTROL_LOCK: u64 = 1 << 0;
pub const FEATURE_CONTROL_VMXON: u64 = 1 << 2;

/// IA32_VMX_BASIC.
pub mod basic {
    pub const REVISION_MASK: u64 = 0x7FFF_FFFF;
    pub const MEMORY_TYPE_SHIFT: u32 = 50;
    pub const MEMORY_TYPE_MASK: u64 = 0xF;
    pub const MEMORY_TYPE_WB: u64 = 6;
    pub const TRUE_CONTROLS: u64 = 1 << 55;
}

/// IA32_VMX_MISC.
pub mod misc {
    /// Which bit of the TSC the preemption timer counts with.
    pub const TIMER_SHIFT_MASK: u64 = 0x1F;
}

/// IA32_VMX_EPT_VPID_CAP.
pub mod ept_vpid {
    pub const WALK_4: u64 = 1 << 6;
    pub const UC: u64 = 1 << 8;
    pub const WB: u64 = 1 << 14;
    pub const PAGE_2M: u64 = 1 << 16;
    pub const PAGE_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
}

/// Types of INVEPT and INVVPID that both share (tables 31-1 and 31-2).
pub const INVALIDATE_SINGLE_CONTEXT: u64 = 1;
pub const INVALIDATE_ALL_CONTEXTS: u64 = 2;

/// EPT pointer: write-back tables, four levels (25.6.11).
pub const EPTP_WB_4_LEVELS: u64 = 6 | 3 << 3;

/// Pin-based controls (25.6.1).
pub mod pin {
    pub const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    pub const NMI_EXITING: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
}

/// Primary processor-based controls (25.6.2).
pub mod primary {
    pub const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    pub const USE_TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT_EXITING: u32 = 1 << 7;
    pub const INVLPG_EXITING: u32 = 1 << 9;
    pub const MWAIT_EXITING: u32 = 1 << 10;
    pub const RDPMC_EXITING: u32 = 1 << 11;
    pub const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub const CR3_STORE_EXITING: u32 = 1 << 16;
    pub const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub const CR8_STORE_EXITING: u32 = 1 << 20;
    pub const USE_TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW_EXITING: u32 = 1 << 22;
    pub const UNCONDITIONAL_IO_EXITING: u32 = 1 << 24;
    pub const USE_IO_BITMAPS: u32 = 1 << 25;
    pub const USE_MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR_EXITING: u32 = 1 << 29;
    pub const SECONDARY_CONTROLS: u32 = 1 << 31;
}

/// Secondary processor-based controls (25.6.2).
pub mod secondary {
    pub const ENABLE_EPT: u32 = 1 << 1;
    pub const ENABLE_RDTSCP: u32 = 1 << 3;
    pub const VIRTUALIZE_X2APIC: u32 = 1 << 4;
    pub const ENABLE_VPID: u32 = 1 << 5;
    pub const WBINVD_EXITING: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const VIRTUAL_INTERRUPT_DELIVERY: u32 = 1 << 9;
    pub const ENABLE_INVPCID: u32 = 1 << 12;
    pub const ENCLS_EXITING: u32 = 1 << 15;
}

/// VM-exit controls (25.7.1).
pub mod exit_control {
    pub const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    pub const HOST_64_BIT: u32 = 1 << 9;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls (25.8.1).
pub mod entry_control {
    pub const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    pub const IA32E_GUEST: u32 = 1 << 9;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// Interruption information: at entry, at exit, and of interrupted deliveries (25.8.3, 25.9.2, 25.9.3).
pub mod event {
    pub const VECTOR_MASK: u32 = 0xFF;
    pub const TYPE_SHIFT: u32 = 8;
    pub const TYPE_MASK: u32 = 7 << 8;
    pub const EXTERNAL_INTERRUPT: u32 = 0;
    pub const NMI: u32 = 2;
    pub const HARDWARE_EXCEPTION: u32 = 3;
    pub const SOFTWARE_INTERRUPT: u32 = 4;
    pub const SOFTWARE_EXCEPTION: u32 = 6;
    pub const ERROR_CODE: u32 = 1 << 11;
    /// At exit: the NMI blocking that an IRET had just ended.
    pub const NMI_UNBLOCKING: u32 = 1 << 12;
    pub const VALID: u32 = 1 << 31;
}

/// Guest interruptibility state (25.4.2).
pub mod interruptibility {
    pub const STI: u64 = 1 << 0;
    pub const MOV_SS: u64 = 1 << 1;
    pub const NMI: u64 = 1 << 3;
}

/// Exit qualification of an I/O instruction (table 28-5).
pub mod io {
    pub const SIZE_MASK: u64 = 7;
    pub const IN: u64 = 1 << 3;
    pub const STRING: u64 = 1 << 4;
    pub const PORT_SHIFT: u32 = 16;
}

/// Exit qualification of an EPT violation (table 28-7). Newer CPUs add bits 9 to 11 and above 12.
pub mod violation {
    pub const WRITE: u64 = 1 << 1;
    pub const NMI_UNBLOCKING: u64 = 1 << 12;
}

/// Exit qualification of a control-register access (table 28-3).
pub mod cr_access {
    pub const REGISTER_MASK: u64 = 0xF;
    pub const TYPE_SHIFT: u32 = 4;
    pub const TYPE_MASK: u64 = 3;
    pub const MOV_TO: u64 = 0;
    pub const MOV_FROM: u64 = 1;
    pub const GPR_SHIFT: u32 = 8;
    pub const GPR_MASK: u64 = 0xF;
}

/// Exit qualification of a debug exception: the bits that belong into DR6 (table 28-1).
pub const DEBUG_EXCEPTION_DR6: u64 = 0xF | 1 << 13 | 1 << 14;

/// Segment access rights as the control structure has them (25.4.1): descriptor bits 40-55 without the limit's.
pub mod rights {
    pub const DPL_SHIFT: u32 = 5;
    pub const DPL_MASK: u64 = 3;
    pub const LONG: u64 = 1 << 13;
    pub const DEFAULT_BIG: u64 = 1 << 14;
    pub const UNUSABLE: u64 = 1 << 16;

    /// The same packed as in `Segment`; nothing of a segment that is unusable.
    pub const fn packed(rights: u64) -> u16 {
        if rights & UNUSABLE != 0 { 0 } else { (rights & 0xFF | rights >> 4 & 0xF00) as u16 }
    }
}

/// Bit 31 of the exit reason: the entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;
/// The VMCS link pointer of a guest without nested guests.
pub const NO_LINK: u64 = u64::MAX;

/// Basic exit reasons (appendix C).
pub mod exit {
    pub const EXCEPTION_OR_NMI: u32 = 0;
    pub const EXTERNAL_INTERRUPT: u32 = 1;
    pub const TRIPLE_FAULT: u32 = 2;
    pub const INIT: u32 = 3;
    pub const SIPI: u32 = 4;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const GETSEC: u32 = 11;
    pub const HLT: u32 = 12;
    pub const INVD: u32 = 13;
    pub const RDPMC: u32 = 15;
    pub const VMCALL: u32 = 18;
    pub const VMCLEAR: u32 = 19;
    pub const VMXON: u32 = 27;
    pub const CR_ACCESS: u32 = 28;
    pub const IO: u32 = 30;
    pub const RDMSR: u32 = 31;
    pub const WRMSR: u32 = 32;
    pub const MWAIT: u32 = 36;
    pub const MONITOR: u32 = 39;
    pub const PAUSE: u32 = 40;
    pub const TPR_BELOW_THRESHOLD: u32 = 43;
    pub const VIRTUALIZED_EOI: u32 = 45;
    pub const EPT_VIOLATION: u32 = 48;
    pub const EPT_MISCONFIGURATION: u32 = 49;
    pub const INVEPT: u32 = 50;
    pub const PREEMPTION_TIMER: u32 = 52;
    pub const INVVPID: u32 = 53;
    pub const WBINVD: u32 = 54;
    pub const XSETBV: u32 = 55;
    pub const VMFUNC: u32 = 59;
    pub const ENCLS: u32 = 60;
}

/// A field of the control structure: its encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Field(pub u32);

impl Field {
    /// The bits that it holds: bits 14:13 of the encoding tell its width (appendix B).
    pub const fn mask(self) -> u64 {
        match self.0 >> 13 & 3 {
            0 => 0xFFFF,
            2 => 0xFFFF_FFFF,
            _ => u64::MAX,
        }
    }

    /// The manual's name.
    pub fn name(self) -> &'static str {
        FIELDS.iter().find(|(field, _)| *field == self).map_or("?", |(_, name)| name)
    }
}

macro_rules! fields {
    ($($name:ident = $encoding:literal,)*) => {
        /// The fields by name.
        pub mod field {
            use super::Field;
            $(pub const $name: Field = Field($encoding);)*
        }
        /// All of them, by encoding.
        pub const FIELDS: &[(Field, &str)] = &[$((Field($encoding), stringify!($name)),)*];
    };
}

fields! {
    VIRTUAL_PROCESSOR_ID = 0x0000,
    GUEST_ES_SELECTOR = 0x0800,
    GUEST_CS_SELECTOR = 0x0802,
    GUEST_SS_SELECTOR = 0x0804,
    GUEST_DS_SELECTOR = 0x0806,
    GUEST_FS_SELECTOR = 0x0808,
    GUEST_GS_SELECTOR = 0x080A,
    GUEST_LDTR_SELECTOR = 0x080C,
    GUEST_TR_SELECTOR = 0x080E,
    GUEST_INTERRUPT_STATUS = 0x0810,
    HOST_ES_SELECTOR = 0x0C00,
    HOST_CS_SELECTOR = 0x0C02,
    HOST_SS_SELECTOR = 0x0C04,
    HOST_DS_SELECTOR = 0x0C06,
    HOST_FS_SELECTOR = 0x0C08,
    HOST_GS_SELECTOR = 0x0C0A,
    HOST_TR_SELECTOR = 0x0C0C,
    MSR_BITMAPS = 0x2004,
    TSC_OFFSET = 0x2010,
    VIRTUAL_APIC_ADDRESS = 0x2012,
    EPT_POINTER = 0x201A,
    EOI_EXIT_BITMAP_0 = 0x201C,
    EOI_EXIT_BITMAP_1 = 0x201E,
    EOI_EXIT_BITMAP_2 = 0x2020,
    EOI_EXIT_BITMAP_3 = 0x2022,
    ENCLS_EXITING_BITMAP = 0x202E,
    GUEST_PHYSICAL_ADDRESS = 0x2400,
    VMCS_LINK_POINTER = 0x2800,
    GUEST_IA32_DEBUGCTL = 0x2802,
    GUEST_IA32_PAT = 0x2804,
    GUEST_IA32_EFER = 0x2806,
    HOST_IA32_PAT = 0x2C00,
    HOST_IA32_EFER = 0x2C02,
    PIN_BASED_CONTROLS = 0x4000,
    PRIMARY_CONTROLS = 0x4002,
    EXCEPTION_BITMAP = 0x4004,
    PAGE_FAULT_ERROR_CODE_MASK = 0x4006,
    PAGE_FAULT_ERROR_CODE_MATCH = 0x4008,
    CR3_TARGET_COUNT = 0x400A,
    EXIT_CONTROLS = 0x400C,
    EXIT_MSR_STORE_COUNT = 0x400E,
    EXIT_MSR_LOAD_COUNT = 0x4010,
    ENTRY_CONTROLS = 0x4012,
    ENTRY_MSR_LOAD_COUNT = 0x4014,
    ENTRY_INTERRUPTION_INFORMATION = 0x4016,
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
    ENTRY_INSTRUCTION_LENGTH = 0x401A,
    TPR_THRESHOLD = 0x401C,
    SECONDARY_CONTROLS = 0x401E,
    INSTRUCTION_ERROR = 0x4400,
    EXIT_REASON = 0x4402,
    EXIT_INTERRUPTION_INFORMATION = 0x4404,
    EXIT_INTERRUPTION_ERROR_CODE = 0x4406,
    IDT_VECTORING_INFORMATION = 0x4408,
    IDT_VECTORING_ERROR_CODE = 0x440A,
    EXIT_INSTRUCTION_LENGTH = 0x440C,
    EXIT_INSTRUCTION_INFORMATION = 0x440E,
    GUEST_ES_LIMIT = 0x4800,
    GUEST_CS_LIMIT = 0x4802,
    GUEST_SS_LIMIT = 0x4804,
    GUEST_DS_LIMIT = 0x4806,
    GUEST_FS_LIMIT = 0x4808,
    GUEST_GS_LIMIT = 0x480A,
    GUEST_LDTR_LIMIT = 0x480C,
    GUEST_TR_LIMIT = 0x480E,
    GUEST_GDTR_LIMIT = 0x4810,
    GUEST_IDTR_LIMIT = 0x4812,
    GUEST_ES_RIGHTS = 0x4814,
    GUEST_CS_RIGHTS = 0x4816,
    GUEST_SS_RIGHTS = 0x4818,
    GUEST_DS_RIGHTS = 0x481A,
    GUEST_FS_RIGHTS = 0x481C,
    GUEST_GS_RIGHTS = 0x481E,
    GUEST_LDTR_RIGHTS = 0x4820,
    GUEST_TR_RIGHTS = 0x4822,
    GUEST_INTERRUPTIBILITY_STATE = 0x4824,
    GUEST_ACTIVITY_STATE = 0x4826,
    GUEST_IA32_SYSENTER_CS = 0x482A,
    PREEMPTION_TIMER_VALUE = 0x482E,
    HOST_IA32_SYSENTER_CS = 0x4C00,
    CR0_GUEST_HOST_MASK = 0x6000,
    CR4_GUEST_HOST_MASK = 0x6002,
    CR0_READ_SHADOW = 0x6004,
    CR4_READ_SHADOW = 0x6006,
    EXIT_QUALIFICATION = 0x6400,
    GUEST_LINEAR_ADDRESS = 0x640A,
    GUEST_CR0 = 0x6800,
    GUEST_CR3 = 0x6802,
    GUEST_CR4 = 0x6804,
    GUEST_ES_BASE = 0x6806,
    GUEST_CS_BASE = 0x6808,
    GUEST_SS_BASE = 0x680A,
    GUEST_DS_BASE = 0x680C,
    GUEST_FS_BASE = 0x680E,
    GUEST_GS_BASE = 0x6810,
    GUEST_LDTR_BASE = 0x6812,
    GUEST_TR_BASE = 0x6814,
    GUEST_GDTR_BASE = 0x6816,
    GUEST_IDTR_BASE = 0x6818,
    GUEST_DR7 = 0x681A,
    GUEST_RSP = 0x681C,
    GUEST_RIP = 0x681E,
    GUEST_RFLAGS = 0x6820,
    GUEST_PENDING_DEBUG_EXCEPTIONS = 0x6822,
    GUEST_IA32_SYSENTER_ESP = 0x6824,
    GUEST_IA32_SYSENTER_EIP = 0x6826,
    HOST_CR0 = 0x6C00,
    HOST_CR3 = 0x6C02,
    HOST_CR4 = 0x6C04,
    HOST_FS_BASE = 0x6C06,
    HOST_GS_BASE = 0x6C08,
    HOST_TR_BASE = 0x6C0A,
    HOST_GDTR_BASE = 0x6C0C,
    HOST_IDTR_BASE = 0x6C0E,
    HOST_IA32_SYSENTER_ESP = 0x6C10,
    HOST_IA32_SYSENTER_EIP = 0x6C12,
    HOST_RSP = 0x6C14,
    HOST_RIP = 0x6C16,
}

/// The four fields of one guest segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentFields {
    pub selector: Field,
    pub limit: Field,
    pub rights: Field,
    pub base: Field,
}

/// A segment register: its place in each run of fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl Segment {
    /// Where it is kept.
    pub const fn fields(self) -> SegmentFields {
        let step = 2 * self as u32;
        SegmentFields {
            selector: Field(field::GUEST_ES_SELECTOR.0 + step),
            limit: Field(field::GUEST_ES_LIMIT.0 + step),
            rights: Field(field::GUEST_ES_RIGHTS.0 + step),
            base: Field(field::GUEST_ES_BASE.0 + step),
        }
    }
}

/// What a capability register allows of a set of controls (appendix A.3): the lower half must be one, the upper may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed(pub u64);

impl Allowed {
    /// Bits that cannot be zero.
    pub const fn forced(self) -> u32 {
        self.0 as u32
    }

    /// Bits that may be one.
    pub const fn possible(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The controls with all of `needed` and what there is of `wanted`, or the needed bits that are not to be had.
    ///
    /// # Errors
    /// The bits that lack.
    pub const fn choose(self, needed: u32, wanted: u32) -> Result<u32, u32> {
        let lacks = needed & !self.possible();
        if lacks != 0 {
            return Err(lacks);
        }
        Ok(needed | wanted & self.possible() | self.forced())
    }
}

/// Offsets in the virtual-APIC page: registers as an xAPIC's page has them (30.1.1).
pub mod virtual_apic {
    pub const VTPR: u64 = 0x80;
    pub const VISR: u64 = 0x100;
    pub const VIRR: u64 = 0x200;
    /// From 32 vectors to the next 32.
    pub const STRIDE: usize = 16;
}

/// Bytes of the MSR bitmaps.
pub const MSR_BITMAP_BYTES: usize = 4096;

/// Where the bit for reading `msr` is in the MSR bitmaps: (byte, bit); the one for writing lies 2 KiB above (25.6.9).
pub const fn msr_bitmap_position(msr: u32) -> Option<(usize, u32)> {
    let (base, index) = match msr {
        0..=0x1FFF => (0, msr),
        0xC000_0000..=0xC000_1FFF => (0x400, msr - 0xC000_0000),
        _ => return None,
    };
    Some((base + (index / 8) as usize, index % 8))
}

/// Distance from the bitmaps for reads to those for writes.
pub const MSR_BITMAP_WRITES: usize = 0x800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_sorted_and_unique() {
        for pair in FIELDS.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{} and {}", pair[0].1, pair[1].1);
        }
        for (field, name) in FIELDS {
            assert_eq!(field.0 & !0x6FFE, 0, "{name}: reserved bits, and the high half of a 64-bit field");
        }
    }

    #[test]
    fn names_say_what_fields_belong_to() {
        const CONTROL: u32 = 0;
        const EXIT_INFORMATION: u32 = 1;
        const GUEST: u32 = 2;
        const HOST: u32 = 3;
        for (field, name) in FIELDS {
            let kind = match name {
                _ if name.starts_with("HOST_") => HOST,
                &"GUEST_PHYSICAL_ADDRESS" | &"GUEST_LINEAR_ADDRESS" => EXIT_INFORMATION,
                _ if name.starts_with("GUEST_") => GUEST,
                &"VMCS_LINK_POINTER" | &"PREEMPTION_TIMER_VALUE" => GUEST,
                &"INSTRUCTION_ERROR" | &"EXIT_REASON" | &"EXIT_QUALIFICATION" => EXIT_INFORMATION,
                _ if name.starts_with("IDT_VECTORING") => EXIT_INFORMATION,
                _ if name.starts_with("EXIT_IN") => EXIT_INFORMATION,
                _ => CONTROL,
            };
            // Bits 11:10 of the encoding (appendix B).
            assert_eq!(field.0 >> 10 & 3, kind, "{name}");
        }
    }

    #[test]
    fn names_say_how_wide_fields_are() {
        const BITS_16: u32 = 0;
        const BITS_64: u32 = 1;
        const BITS_32: u32 = 2;
        const NATURAL: u32 = 3;
        for (field, name) in FIELDS {
            let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
            if ends(&["_SELECTOR", "PROCESSOR_ID"]) {
                assert_eq!(field.0 >> 13 & 3, BITS_16, "{name}");
            } else if ends(&["_LIMIT", "_RIGHTS", "_CONTROLS", "_COUNT", "_STATE", "_INFORMATION", "_CODE"]) {
                assert_eq!(field.0 >> 13 & 3, BITS_32, "{name}");
            } else if ends(&["_BASE", "_RIP", "_RSP", "_CR0", "_CR3", "_CR4", "_SHADOW", "QUALIFICATION"]) {
                assert_eq!(field.0 >> 13 & 3, NATURAL, "{name}");
            } else if ends(&["_PAT", "_EFER", "_POINTER", "_OFFSET", "_BITMAPS"]) {
                assert_eq!(field.0 >> 13 & 3, BITS_64, "{name}");
            }
        }
        assert_eq!(field::GUEST_RIP.name(), "GUEST_RIP");
        assert_eq!(field::GUEST_CS_SELECTOR.mask(), 0xFFFF);
        assert_eq!((field::GUEST_CS_LIMIT.mask(), field::TSC_OFFSET.mask()), (0xFFFF_FFFF, u64::MAX));
    }

    #[test]
    fn segments_find_their_fields() {
        let tr = Segment::Tr.fields();
        assert_eq!(tr.selector, field::GUEST_TR_SELECTOR);
        assert_eq!(
            (tr.limit, tr.rights, tr.base),
            (field::GUEST_TR_LIMIT, field::GUEST_TR_RIGHTS, field::GUEST_TR_BASE)
        );
        assert_eq!(Segment::Cs.fields().rights, field::GUEST_CS_RIGHTS);
        assert_eq!(Segment::Ldtr.fields().base, field::GUEST_LDTR_BASE);
    }

    #[test]
    fn capabilities() {
        let allowed = Allowed(0x0000_00FF_0000_0016);
        assert_eq!(allowed.choose(0x01, 0x308), Ok(0x1F), "forced bits join, wanted bits only where possible");
        assert_eq!(allowed.choose(0x300, 0), Err(0x300));
    }

    #[test]
    fn msr_bitmap_bits() {
        assert_eq!(msr_bitmap_position(0x174), Some((0x2E, 4)));
        assert_eq!(msr_bitmap_position(0xC000_0080), Some((0x410, 0)));
        assert_eq!(msr_bitmap_position(0x2000), None);
        assert_eq!(msr_bitmap_position(0xC001_0114), None);
    }
}
