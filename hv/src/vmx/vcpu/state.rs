//! Guest state after INIT, and as Linux' 64-bit boot protocol wants it.

use hv_defs::regs::{self, Efer, Rflags};
use hv_defs::vmx::{Segment, SegmentFields, field, rights};

use super::{CR0_OWNED, Stale, VmxVcpu};
use crate::vendor::VirtualCpu;
use crate::x86;

/// Access rights after INIT: read/write data, execute/read code, busy TSS; all present and accessed.
const DATA: u64 = 0x93;
const CODE: u64 = 0x9B;
const BUSY_TSS: u64 = 0x8B;
/// Flat segments of 64-bit code, and of data.
const FLAT_CODE: u64 = 0xA09B;
const FLAT_DATA: u64 = 0xC093;
const LONG_CODE_SELECTOR: u64 = 0x10;
const LONG_DATA_SELECTOR: u64 = 0x18;
const FLAT_LIMIT: u64 = 0xFFFF_FFFF;

const DATA_SEGMENTS: [Segment; 5] = [Segment::Ds, Segment::Es, Segment::Ss, Segment::Fs, Segment::Gs];

impl VmxVcpu {
    /// State after INIT (SDM volume 3, table 10-1); controls stay.
    pub(super) fn reset(&mut self) {
        self.gprs.0 = [0; 16];
        self.gprs.0[2] = u64::from(x86::cpuid(1, 0).eax);
        (self.queued, self.fresh) = (None, true);
        // What the identifier has cached belongs to another life.
        self.stale = Stale { nested: true, linear: true };
        for segment in DATA_SEGMENTS {
            self.set_segment(segment, 0, DATA, 0xFFFF);
        }
        self.set_segment(Segment::Cs, 0, CODE, 0xFFFF);
        self.set_segment(Segment::Tr, 0, BUSY_TSS, 0xFFFF);
        self.set_segment(Segment::Ldtr, 0, rights::UNUSABLE, 0);
        self.write_all(&[
            (field::GUEST_GDTR_BASE, 0),
            (field::GUEST_GDTR_LIMIT, 0xFFFF),
            (field::GUEST_IDTR_BASE, 0),
            (field::GUEST_IDTR_LIMIT, 0xFFFF),
            (field::GUEST_CR3, 0),
            (field::GUEST_RIP, 0),
            (field::GUEST_RSP, 0),
            (field::GUEST_RFLAGS, Rflags::FIXED.bits()),
            (field::GUEST_DR7, regs::DR7_RESET),
            (field::GUEST_IA32_DEBUGCTL, 0),
            (field::GUEST_IA32_PAT, regs::PAT_RESET),
            (field::GUEST_IA32_SYSENTER_CS, 0),
            (field::GUEST_IA32_SYSENTER_ESP, 0),
            (field::GUEST_IA32_SYSENTER_EIP, 0),
            (field::GUEST_INTERRUPTIBILITY_STATE, 0),
            (field::GUEST_ACTIVITY_STATE, 0),
            (field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0),
            (field::ENTRY_INTERRUPTION_INFORMATION, 0),
        ]);
        self.set_control_registers(regs::CR0_RESET, 0);
        self.set_efer(0);
        self.set_cr8(0);
    }

    pub(super) fn start_long(&mut self) {
        for segment in DATA_SEGMENTS {
            self.set_segment(segment, LONG_DATA_SELECTOR, FLAT_DATA, FLAT_LIMIT);
        }
        self.set_segment(Segment::Cs, LONG_CODE_SELECTOR, FLAT_CODE, FLAT_LIMIT);
        self.set_control_registers(0x8000_0011, 0x20);
        self.set_efer((Efer::LME | Efer::LMA).bits());
    }

    fn set_segment(&mut self, segment: Segment, number: u64, access: u64, limit: u64) {
        let fields: SegmentFields = segment.fields();
        let values = [(fields.selector, number), (fields.rights, access), (fields.limit, limit), (fields.base, 0)];
        self.write_all(&values);
    }

    /// Sets CR0 and CR4 as the guest is to see them.
    fn set_control_registers(&mut self, cr0: u64, cr4: u64) {
        self.write_all(&[
            (field::GUEST_CR0, cr0 & !CR0_OWNED | regs::Cr0::NE.bits()),
            (field::CR0_READ_SHADOW, cr0 & CR0_OWNED),
        ]);
        self.set_cr4(cr4);
    }
}
