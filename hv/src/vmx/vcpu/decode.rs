//! What an exit was, in terms that both vendors share; and the exits that never leave this backend.

use hv_defs::regs::{Cr0, Efer, vector};
use hv_defs::vmx::{
    DEBUG_EXCEPTION_DR6, ENTRY_FAILURE, cr_access, event, exit as reason, field, interruptibility, io, violation,
};
use hv_defs::{Gpa, Width};

use super::super::switched;
use super::{CR0_OWNED, CR4_FORCED, CR4_OFFERED, VmxVcpu, vmx};
use crate::vendor::{Direction, Event, Exit, VirtualCpu};

/// Exceptions that exit: #DB and #AC, as a guest can make their delivery loop for ever, and #MC.
pub(super) const WATCHED: u32 = 1 << vector::DB | 1 << vector::AC | 1 << vector::MC;

const GENERAL_PROTECTION: Event = Event::Exception { vector: vector::GP, error_code: Some(0) };

impl VmxVcpu {
    pub(super) fn decode(&mut self) -> Exit {
        let told = self.vmcs.read(field::EXIT_REASON) as u32;
        self.reason = told & 0xFFFF;
        if told & ENTRY_FAILURE != 0 {
            return Exit::EntryFailed(u64::from(told));
        }
        self.requeue();
        match self.reason {
            reason::EXCEPTION_OR_NMI => self.exception_or_nmi(),
            reason::EXTERNAL_INTERRUPT | reason::PREEMPTION_TIMER => Exit::HostInterrupt,
            reason::TRIPLE_FAULT => Exit::Shutdown,
            reason::INTERRUPT_WINDOW => Exit::Window,
            reason::NMI_WINDOW => Exit::NmiUnblocked,
            reason::TASK_SWITCH => Exit::TaskSwitch,
            reason::CPUID => Exit::Cpuid,
            reason::HLT => Exit::Hlt,
            reason::INVD | reason::WBINVD => Exit::CacheFlush,
            reason::RDPMC => Exit::Rdpmc,
            reason::VMCALL => Exit::Hypercall,
            reason::CR_ACCESS => self.control_register(),
            reason::IO => self.port(),
            reason::RDMSR => Exit::Msr(Direction::Read),
            reason::WRMSR => Exit::Msr(Direction::Write),
            reason::TPR_BELOW_THRESHOLD => Exit::PriorityLowered,
            reason::VIRTUALIZED_EOI => Exit::EndOfInterrupt(self.vmcs.read(field::EXIT_QUALIFICATION) as u8),
            reason::EPT_VIOLATION => self.violation(),
            reason::XSETBV => Exit::Xsetbv,
            reason::VMCLEAR..=reason::VMXON | reason::INVEPT | reason::INVVPID | reason::VMFUNC => Exit::Undefined,
            reason::GETSEC | reason::MWAIT | reason::MONITOR | reason::ENCLS => Exit::Undefined,
            other => Exit::Unknown(u64::from(other)),
        }
    }

    /// Queues again what was being delivered when the exit came. INT n, INT1, INT3 and INTO run again by themselves, as
    /// RIP still points at them.
    fn requeue(&mut self) {
        self.queued = None;
        let information = self.vmcs.read(field::IDT_VECTORING_INFORMATION) as u32;
        if information & event::VALID == 0 || self.reason == reason::TRIPLE_FAULT {
            return;
        }
        let kind = (information & event::TYPE_MASK) >> event::TYPE_SHIFT;
        if !matches!(kind, event::EXTERNAL_INTERRUPT | event::NMI | event::HARDWARE_EXCEPTION) {
            return;
        }
        if kind == event::NMI {
            // Its delivery blocks NMIs; it has not been delivered.
            self.set_nmi_blocking(0);
        }
        let kept = event::VALID | event::ERROR_CODE | event::TYPE_MASK | event::VECTOR_MASK;
        let code = self.vmcs.read(field::IDT_VECTORING_ERROR_CODE) as u32;
        self.queued = Some((information & kept, code));
    }

    /// An IRET had ended the blocking of NMIs when its own accesses faulted: it will run again, and do so then (28.2.3).
    fn nmi_blocked_again(&mut self) {
        if self.queued.is_none() {
            self.set_nmi_blocking(interruptibility::NMI);
        }
    }

    fn set_nmi_blocking(&mut self, blocking: u64) {
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, state & !interruptibility::NMI | blocking);
    }

    fn exception_or_nmi(&mut self) -> Exit {
        let information = self.vmcs.read(field::EXIT_INTERRUPTION_INFORMATION) as u32;
        if (information & event::TYPE_MASK) >> event::TYPE_SHIFT == event::NMI {
            vmx::deliver_nmi();
            return Exit::HostNmi;
        }
        if information & event::NMI_UNBLOCKING != 0 {
            self.nmi_blocked_again();
        }
        let vector = (information & event::VECTOR_MASK) as u8;
        if vector == vector::DB {
            // The exit leaves to us what the exception would have put into DR6 (28.2.1). Bit 16 is inverted.
            let cause = self.vmcs.read(field::EXIT_QUALIFICATION) & DEBUG_EXCEPTION_DR6;
            switched::set_dr6(switched::dr6() & !0xF | cause);
        }
        let code = self.vmcs.read(field::EXIT_INTERRUPTION_ERROR_CODE) as u32;
        Exit::Exception { vector, error_code: (information & event::ERROR_CODE != 0).then_some(code) }
    }

    fn violation(&mut self) -> Exit {
        let qualification = self.vmcs.read(field::EXIT_QUALIFICATION);
        if qualification & violation::NMI_UNBLOCKING != 0 {
            self.nmi_blocked_again();
        }
        Exit::NestedFault {
            gpa: Gpa(self.vmcs.read(field::GUEST_PHYSICAL_ADDRESS)),
            direction: if qualification & violation::WRITE != 0 { Direction::Write } else { Direction::Read },
        }
    }

    fn port(&self) -> Exit {
        let qualification = self.vmcs.read(field::EXIT_QUALIFICATION);
        let width = match qualification & io::SIZE_MASK {
            0 => Width::B1,
            1 => Width::B2,
            _ => Width::B4,
        };
        match self.instruction_length() {
            Some(length) if qualification & io::STRING == 0 => Exit::Port {
                port: (qualification >> io::PORT_SHIFT) as u16,
                width,
                direction: if qualification & io::IN != 0 { Direction::Read } else { Direction::Write },
                length,
            },
            _ => Exit::StringPort,
        }
    }

    /// Moves to CR0 and CR4 exit when they change a bit that the guest only believes to own. The belief is adjusted, and
    /// the same instruction runs again: without an exit now, so that the CPU itself does all that the move entails
    /// (long mode, page-directory pointers, flushes, faults).
    fn control_register(&mut self) -> Exit {
        let qualification = self.vmcs.read(field::EXIT_QUALIFICATION);
        let number = qualification & cr_access::REGISTER_MASK;
        let kind = qualification >> cr_access::TYPE_SHIFT & cr_access::TYPE_MASK;
        let gpr = (qualification >> cr_access::GPR_SHIFT & cr_access::GPR_MASK) as u8;
        let narrow = if self.efer() & Efer::LMA.bits() != 0 { u64::MAX } else { 0xFFFF_FFFF };
        let value = self.gpr(gpr) & narrow;
        match (kind, number) {
            (cr_access::MOV_TO, 0) => self.believe_cr0(value),
            (cr_access::MOV_TO, 4) => self.believe_cr4(value),
            (cr_access::MOV_TO, 8) => return Exit::MoveToCr8,
            (cr_access::MOV_FROM, 8) => {
                self.set_gpr(gpr, u64::from(self.cr8));
                self.skip(self.instruction_length().unwrap_or(0));
            }
            _ => return Exit::Unknown(qualification << 32 | u64::from(self.reason)),
        }
        Exit::ControlRegister
    }

    fn believe_cr0(&mut self, value: u64) {
        let uncached = value & (Cr0::CD.bits() | Cr0::NW.bits());
        if value >> 32 != 0 || uncached == Cr0::NW.bits() {
            self.inject(GENERAL_PROTECTION);
        } else {
            self.vmcs.write(field::CR0_READ_SHADOW, value & CR0_OWNED);
        }
    }

    fn believe_cr4(&mut self, value: u64) {
        if value & !CR4_OFFERED != 0 {
            self.inject(GENERAL_PROTECTION);
        } else {
            self.vmcs.write(field::CR4_READ_SHADOW, value & CR4_FORCED);
        }
    }
}
