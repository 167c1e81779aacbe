//! One virtual CPU as a control block.

use core::fmt;
use core::ops::{Deref, DerefMut};

use hv_defs::regs::{self, Efer, Rflags};
use hv_defs::svm::{Save, Segment, Vmcb, event, exit, ioio, misc1, misc2, npf, vintr};
use hv_defs::{Frame, Gpa, Nanos, Width, msr, svm as defs};
use hv_emu::{Bitness, Registers};
use zerocopy::FromZeros;

use super::Svm;
use super::entry;
use super::permissions;
use super::quirk::{Injection, PriorityWrite};
use crate::frame::{self, OwnerId};
use crate::load::linux::Entry;
use crate::switch::Gprs;
use crate::vendor::{Direction, Event, Exit, Setup, Start, VirtualCpu, Window};
use crate::{apic, irq, percpu, phys, speculation, x86};

/// Exceptions that exit: #DB and #AC, as a guest can make their delivery loop for ever, and #MC.
const WATCHED: u32 = 1 << regs::vector::DB | 1 << regs::vector::AC | 1 << regs::vector::MC;
/// Exceptions that push an error code (APM volume 2, table 8-1).
const PUSH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;
const INTERCEPTS_1: u32 = misc1::INTR
    | misc1::NMI
    | misc1::SMI
    | misc1::INIT
    | misc1::RDPMC
    | misc1::CPUID
    | misc1::RSM
    | misc1::INVD
    | misc1::HLT
    | misc1::INVLPGA
    | misc1::IOIO_PROT
    | misc1::MSR_PROT
    | misc1::TASK_SWITCH
    | misc1::FERR_FREEZE
    | misc1::SHUTDOWN;
const INTERCEPTS_2: u32 = misc2::VMRUN
    | misc2::VMMCALL
    | misc2::VMLOAD
    | misc2::VMSAVE
    | misc2::STGI
    | misc2::CLGI
    | misc2::SKINIT
    | misc2::WBINVD
    | misc2::MONITOR
    | misc2::MWAIT
    | misc2::XSETBV;
/// Moves to CR4 exit, or guests could set what CPUID hides: PKE, say, with the CPU's one PKRU, which nothing switches.
const CR4: u16 = 1 << 4;
const CR8: u16 = 1 << 8;
const MOVE_TO_CR4: u64 = 0x14;
const MOVE_TO_CR8: u64 = 0x18;

/// A virtual CPU on AMD-V.
pub struct SvmVcpu {
    block: Block,
    gprs: Gprs,
    nmi: NmiState,
    next_rip: bool,
    flush_always: bool,
    priority_write: PriorityWrite,
}

/// Whether NMIs are blocked: SVM tells of the IRET that unblocks them before it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NmiState {
    Open,
    Blocked,
    /// The IRET is about to run, by single step: the trap after it is the window in which the next NMI comes.
    Returning,
}

impl VirtualCpu for SvmVcpu {
    type Extension = Svm;

    fn new(setup: &Setup) -> Option<Self> {
        let permissions = permissions::get()?;
        let mut block = Block::new()?;
        let tags = x86::cpuid(defs::CPUID_SVM, 0).ebx.clamp(2, 0xFFFF) as u16;
        let control = &mut block.control;
        control.intercept_exceptions = WATCHED;
        control.intercept_misc1 = INTERCEPTS_1;
        control.intercept_misc2 = INTERCEPTS_2;
        control.iopm_base_pa = permissions.io.0;
        control.msrpm_base_pa = permissions.msr.0;
        control.guest_asid = 1 + u32::from(setup.tag.saturating_sub(1) % (tags - 1));
        control.vintr = vintr::V_INTR_MASKING;
        control.np_enable = defs::NP_ENABLE;
        control.n_cr3 = setup.nested_root.0;
        let next_rip = x86::cpuid(defs::CPUID_SVM, 0).edx & defs::FEATURE_NRIPS != 0;
        let flush_always = setup.tag >= tags;
        let priority_write = PriorityWrite::of_this_cpu();
        Some(Self { block, gprs: Gprs::default(), nmi: NmiState::Open, next_rip, flush_always, priority_write })
    }

    fn start(&mut self, start: Start) {
        self.reset();
        match start {
            Start::Real { vector } => {
                let save = &mut self.block.save;
                save.cs.selector = u16::from(vector) << 8;
                save.cs.base = u64::from(vector) << 12;
            }
            Start::Long(Entry { rip, rsi, rsp, cr3, gdt, gdt_limit }) => {
                self.gprs.0[6] = rsi;
                let save = &mut self.block.save;
                (save.rip, save.rsp, save.cr3) = (rip, rsp, cr3);
                save.gdtr = Segment { limit: u32::from(gdt_limit), base: gdt.0, ..Segment::default() };
                save.cs = Segment { selector: 0x10, attrib: 0xA9B, limit: u32::MAX, base: 0 };
                let data = Segment { selector: 0x18, attrib: 0xC93, limit: u32::MAX, base: 0 };
                (save.ds, save.es, save.ss) = (data, data, data);
                (save.fs, save.gs) = (data, data);
                save.efer = (Efer::SVME | Efer::LME | Efer::LMA).bits();
                save.cr0 = 0x8000_0011;
                save.cr4 = 0x20;
            }
        }
    }

    fn run(&mut self, svm: &mut Svm) -> Exit {
        if self.flush_always {
            self.flush_tlb();
        }
        let before = (self.nmi == NmiState::Returning).then(|| self.begin_step());
        if svm.injection == Injection::UntilExit && self.interrupt_queued() {
            apic::interrupt_self(irq::vector::BOUNCE);
        }
        svm.barriers.on_entry(speculation::command);
        // SAFETY: 1. `svm` exists: SVM is on and the save area set on this CPU. 2. The block was built by `new`, whose
        // nested tables map only what the VM owns; `&mut self` says that no other CPU uses it. 3. `svm.host` is filled.
        // 4. Root mode runs with interrupts off (see `irq`).
        unsafe { entry::enter(&raw mut self.gprs, self.block.frame.hpa().0, svm.host().0) };
        svm.barriers.on_exit(speculation::command);
        self.block.control.tlb_control = 0;
        self.requeue();
        match before {
            Some(before) if self.end_step(before) => Exit::NmiUnblocked,
            _ => self.decode(),
        }
    }

    fn registers(&self) -> Registers {
        let save = &self.block.save;
        let mut gpr = self.gprs.0;
        (gpr[0], gpr[4]) = (save.rax, save.rsp);
        let long = save.efer & Efer::LMA.bits() != 0;
        Registers {
            gpr,
            rip: save.rip,
            rflags: save.rflags,
            cr0: save.cr0,
            cr3: save.cr3,
            cr4: save.cr4,
            efer: save.efer,
            cpl: save.cpl,
            bitness: match (long && save.cs.attrib & 0x200 != 0, save.cs.attrib & 0x400 != 0) {
                (true, _) => Bitness::Bits64,
                (false, true) => Bitness::Bits32,
                (false, false) => Bitness::Bits16,
            },
            cs: save.cs,
            ds: save.ds,
            es: save.es,
            ss: save.ss,
            fs: save.fs,
            gs: save.gs,
            tr: save.tr,
        }
    }

    fn retire(&mut self, registers: &Registers) {
        self.gprs.0 = registers.gpr;
        let save = &mut self.block.save;
        (save.rax, save.rsp) = (registers.gpr[0], registers.gpr[4]);
        (save.rip, save.rflags) = (registers.rip, registers.rflags);
        self.block.control.interrupt_shadow = 0;
    }

    fn skip(&mut self, length: u8) {
        let long = self.registers().bitness == Bitness::Bits64;
        let save = &mut self.block.save;
        let next = save.rip.wrapping_add(u64::from(length));
        save.rip = if long { next } else { next & 0xFFFF_FFFF };
        self.block.control.interrupt_shadow = 0;
        self.trap();
    }

    fn trap(&mut self) {
        if self.block.save.rflags & Rflags::TF.bits() != 0 && !self.event_queued() {
            self.block.save.dr6 |= regs::DR6_BS;
            self.inject(Event::Exception { vector: regs::vector::DB, error_code: None });
        }
    }

    fn instruction_length(&self) -> Option<u8> {
        self.next_rip.then(|| self.length_to(self.block.control.nrip)).flatten()
    }

    fn gpr(&self, number: u8) -> u64 {
        match number {
            0 => self.block.save.rax,
            4 => self.block.save.rsp,
            _ => self.gprs.0.get(usize::from(number)).copied().unwrap_or(0),
        }
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        match number {
            0 => self.block.save.rax = value,
            4 => self.block.save.rsp = value,
            _ => {
                if let Some(gpr) = self.gprs.0.get_mut(usize::from(number)) {
                    *gpr = value;
                }
            }
        }
    }

    fn rip(&self) -> u64 {
        self.block.save.rip
    }

    fn set_cr2(&mut self, value: u64) {
        self.block.save.cr2 = value;
    }

    fn cr4(&self) -> u64 {
        self.block.save.cr4
    }

    fn set_cr4(&mut self, value: u64) {
        self.block.save.cr4 = value;
    }

    fn efer(&self) -> u64 {
        self.block.save.efer & !Efer::SVME.bits()
    }

    fn set_efer(&mut self, value: u64) {
        self.block.save.efer = value | Efer::SVME.bits();
    }

    fn pat(&self) -> u64 {
        self.block.save.g_pat
    }

    fn set_pat(&mut self, value: u64) {
        self.block.save.g_pat = value;
    }

    fn native_msr(&self, msr: u32) -> Option<u64> {
        let save = &self.block.save;
        Some(match msr {
            msr::IA32_SYSENTER_CS => save.sysenter_cs,
            msr::IA32_SYSENTER_ESP => save.sysenter_esp,
            msr::IA32_SYSENTER_EIP => save.sysenter_eip,
            msr::STAR => save.star,
            msr::LSTAR => save.lstar,
            msr::CSTAR => save.cstar,
            msr::SFMASK => save.sfmask,
            msr::FS_BASE => save.fs.base,
            msr::GS_BASE => save.gs.base,
            msr::KERNEL_GS_BASE => save.kernel_gs_base,
            _ => return None,
        })
    }

    fn set_native_msr(&mut self, msr: u32, value: u64) -> Option<()> {
        let save = &mut self.block.save;
        let place = match msr {
            msr::IA32_SYSENTER_CS => &mut save.sysenter_cs,
            msr::IA32_SYSENTER_ESP => &mut save.sysenter_esp,
            msr::IA32_SYSENTER_EIP => &mut save.sysenter_eip,
            msr::STAR => &mut save.star,
            msr::LSTAR => &mut save.lstar,
            msr::CSTAR => &mut save.cstar,
            msr::SFMASK => &mut save.sfmask,
            msr::FS_BASE => &mut save.fs.base,
            msr::GS_BASE => &mut save.gs.base,
            msr::KERNEL_GS_BASE => &mut save.kernel_gs_base,
            _ => return None,
        };
        *place = value;
        Some(())
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.block.control.tsc_offset = offset;
    }

    fn cr8(&self) -> u8 {
        (self.block.control.vintr & 0xF) as u8
    }

    fn set_cr8(&mut self, value: u8) {
        let control = &mut self.block.control;
        control.vintr = control.vintr & !vintr::V_TPR_MASK | u64::from(value & 0xF);
    }

    fn interruptible(&self) -> bool {
        self.block.save.rflags & Rflags::IF.bits() != 0
            && self.block.control.interrupt_shadow & defs::INTERRUPT_SHADOW == 0
            && !self.event_queued()
    }

    fn nmi_allowed(&self) -> bool {
        self.nmi == NmiState::Open
            && self.block.control.interrupt_shadow & defs::INTERRUPT_SHADOW == 0
            && !self.event_queued()
    }

    fn event_queued(&self) -> bool {
        self.block.control.event_inj & event::VALID != 0
    }

    fn inject(&mut self, what: Event) {
        // Another handler runs before the IRET does: its own IRET will unblock NMIs.
        if what == Event::Nmi || self.nmi == NmiState::Returning {
            self.nmi = NmiState::Blocked;
            self.block.control.intercept_misc1 |= misc1::IRET;
        }
        let kind = |kind: u64| kind << event::TYPE_SHIFT | event::VALID;
        self.block.control.event_inj = match what {
            Event::Interrupt(vector) => kind(event::TYPE_INTR) | u64::from(vector),
            Event::Nmi => kind(event::TYPE_NMI) | u64::from(regs::vector::NMI),
            Event::Exception { vector, error_code } => {
                let error =
                    error_code.map_or(0, |code| u64::from(code) << event::ERROR_CODE_SHIFT | event::ERROR_CODE_VALID);
                kind(event::TYPE_EXCEPTION) | u64::from(vector) | error
            }
        };
    }

    fn set_window(&mut self, window: Window) {
        let control = &mut self.block.control;
        control.vintr &= vintr::V_TPR_MASK | vintr::V_INTR_MASKING;
        control.intercept_misc1 &= !misc1::VINTR;
        control.intercept_cr_write &= !CR8;
        match window {
            Window::Closed => {}
            Window::Interrupt => {
                // A virtual interrupt that is never delivered: taking it exits first. Its priority has been checked.
                control.vintr |= vintr::V_IRQ | vintr::V_INTR_PRIO_MASK | vintr::V_IGN_TPR;
                control.intercept_misc1 |= misc1::VINTR;
                if self.priority_write == PriorityWrite::Fatal {
                    control.intercept_cr_write |= CR8;
                }
            }
            Window::Priority { .. } => control.intercept_cr_write |= CR8,
        }
    }

    /// While an NMI is served, its IRET exits (see `inject`). Behind an event that is queued, an interrupt of Prism's own
    /// ends the guest as soon as that is delivered. For what a shadow holds back the interrupt window is the nearest that
    /// there is; with interrupts off as well it waits for the next exit.
    fn await_nmi(&mut self) {
        if self.nmi == NmiState::Open && self.event_queued() {
            apic::kick(percpu::current());
        } else if self.nmi == NmiState::Open {
            self.set_window(Window::Interrupt);
        }
    }

    fn set_deadline(&mut self, _: Option<Nanos>) {}

    fn flush_tlb(&mut self) {
        self.block.control.tlb_control = defs::TLB_FLUSH_ALL;
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (save, control) = (&self.block.save, &self.block.control);
        writeln!(
            out,
            "cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} rflags={:#x} cpl={}",
            save.cr0, save.cr2, save.cr3, save.cr4, save.efer, save.rflags, save.cpl
        )?;
        writeln!(
            out,
            "exit={:#x} info1={:#x} info2={:#x} delivering={:#x} shadow={:#x} vintr={:#x}",
            control.exit_code,
            control.exit_info1,
            control.exit_info2,
            control.exit_int_info,
            control.interrupt_shadow,
            control.vintr
        )?;
        for (name, segment) in [("cs", &save.cs), ("ss", &save.ss), ("ds", &save.ds), ("tr", &save.tr)] {
            writeln!(
                out,
                "{name}={:#06x} base={:#x} limit={:#x} attributes={:#x}",
                segment.selector, segment.base, segment.limit, segment.attrib
            )?;
        }
        Ok(())
    }
}

impl SvmVcpu {
    /// State after INIT (APM volume 2, table 14-1); control-block settings of `new` stay.
    fn reset(&mut self) {
        self.gprs = Gprs::default();
        self.gprs.0[2] = u64::from(x86::cpuid(1, 0).eax);
        self.nmi = NmiState::Open;
        let save = &mut self.block.save;
        *save = Save::new_zeroed();
        let data = Segment { selector: 0, attrib: 0x93, limit: 0xFFFF, base: 0 };
        (save.ds, save.es, save.ss, save.fs, save.gs) = (data, data, data, data, data);
        save.cs = Segment { attrib: 0x9B, ..data };
        save.ldtr = Segment { attrib: 0x82, ..data };
        save.tr = Segment { attrib: 0x8B, ..data };
        save.gdtr.limit = 0xFFFF;
        save.idtr.limit = 0xFFFF;
        save.efer = Efer::SVME.bits();
        save.cr0 = regs::CR0_RESET;
        save.rflags = Rflags::FIXED.bits();
        (save.dr6, save.dr7) = (regs::DR6_RESET, regs::DR7_RESET);
        save.g_pat = regs::PAT_RESET;
        let control = &mut self.block.control;
        control.interrupt_shadow = 0;
        control.event_inj = 0;
        control.vintr = vintr::V_INTR_MASKING;
        control.intercept_misc1 = INTERCEPTS_1;
        control.intercept_cr_write = CR4;
        control.tlb_control = defs::TLB_FLUSH_ALL;
    }

    /// Whether the event queued is an external interrupt.
    fn interrupt_queued(&self) -> bool {
        self.block.control.event_inj & (event::VALID | event::TYPE_MASK) == event::VALID | event::TYPE_INTR
    }

    /// Queues again what was being delivered when the exit came. INT n, INT3 and INTO run again by themselves, as RIP
    /// still points at them.
    fn requeue(&mut self) {
        let control = &mut self.block.control;
        let info = control.exit_int_info;
        let vector = (info & event::VECTOR_MASK) as u8;
        let by_instruction = match (info & event::TYPE_MASK) >> event::TYPE_SHIFT {
            event::TYPE_SOFTWARE => true,
            event::TYPE_EXCEPTION => matches!(vector, regs::vector::BP | regs::vector::OF),
            _ => false,
        };
        let again = info & event::VALID != 0 && !by_instruction && control.exit_code != exit::SHUTDOWN;
        control.event_inj = if again { info } else { 0 };
        if again {
            // Delivery ends a shadow: what is told here is that of the STI before VMRUN, which some CPUs let through when
            // the exit comes in the middle of an injection.
            control.interrupt_shadow = 0;
        }
    }

    /// Lets the guest execute one instruction, with the flag that traps after it; any exception exits, or its frame would
    /// hold that flag. Gives RFLAGS and DR6 as they were.
    fn begin_step(&mut self) -> (u64, u64) {
        self.block.control.intercept_exceptions = u32::MAX;
        let save = &mut self.block.save;
        let before = (save.rflags, save.dr6);
        save.rflags |= Rflags::TF.bits();
        before
    }

    /// After the exit: whether it was by the trap, which the guest then does not see.
    fn end_step(&mut self, (rflags, dr6): (u64, u64)) -> bool {
        let trapped = self.block.control.exit_code == exit::EXCEPTION_0 + u64::from(regs::vector::DB);
        self.block.control.intercept_exceptions = WATCHED;
        let own = rflags & Rflags::TF.bits() != 0;
        let save = &mut self.block.save;
        if trapped {
            self.nmi = NmiState::Open;
        } else if !own {
            save.rflags &= !Rflags::TF.bits();
        }
        if trapped && !own {
            save.dr6 = dr6;
        }
        trapped && !own
    }

    fn decode(&mut self) -> Exit {
        let control = &self.block.control;
        let (code, info1, info2) = (control.exit_code, control.exit_info1, control.exit_info2);
        match code {
            exit::INTR => Exit::HostInterrupt,
            exit::NMI => Exit::HostNmi,
            exit::VINTR => Exit::Window,
            exit::CPUID => Exit::Cpuid,
            exit::HLT => Exit::Hlt,
            exit::MSR if info1 & 1 != 0 => Exit::Msr(Direction::Write),
            exit::MSR => Exit::Msr(Direction::Read),
            exit::IOIO => self.port(info1, info2),
            exit::NPF => Exit::NestedFault {
                gpa: Gpa(info2),
                direction: if info1 & npf::WRITE != 0 { Direction::Write } else { Direction::Read },
            },
            exit::XSETBV => Exit::Xsetbv,
            exit::INVD | exit::WBINVD => Exit::CacheFlush,
            exit::VMMCALL => Exit::Hypercall,
            exit::RDPMC => Exit::Rdpmc,
            MOVE_TO_CR4 => Exit::MoveToCr4,
            MOVE_TO_CR8 => Exit::MoveToCr8,
            exit::EXCEPTION_0..=exit::EXCEPTION_31 => {
                let vector = (code - exit::EXCEPTION_0) as u8;
                if vector == regs::vector::PF {
                    self.block.save.cr2 = info2;
                }
                let error_code = (PUSH_ERROR_CODE >> vector & 1 != 0).then_some(info1 as u32);
                Exit::Exception { vector, error_code }
            }
            exit::IRET => {
                self.nmi = NmiState::Returning;
                self.block.control.intercept_misc1 &= !misc1::IRET;
                Exit::NmiUnblocked
            }
            exit::TASK_SWITCH => Exit::TaskSwitch,
            exit::SHUTDOWN => Exit::Shutdown,
            exit::INVALID | exit::INVALID_32 => Exit::EntryFailed(code),
            exit::VMRUN..=exit::SKINIT | exit::INVLPGA | exit::RSM => Exit::Undefined,
            exit::MONITOR | exit::MWAIT | exit::MWAIT_CONDITIONAL => Exit::Undefined,
            _ => Exit::Unknown(code),
        }
    }

    fn port(&self, info1: u64, next_rip: u64) -> Exit {
        let width = if info1 & ioio::SZ8 != 0 {
            Width::B1
        } else if info1 & ioio::SZ16 != 0 {
            Width::B2
        } else {
            Width::B4
        };
        match self.length_to(next_rip) {
            Some(length) if info1 & ioio::STR == 0 => Exit::Port {
                port: (info1 >> ioio::PORT_SHIFT) as u16,
                width,
                direction: if info1 & ioio::TYPE_IN != 0 { Direction::Read } else { Direction::Write },
                length,
            },
            _ => Exit::StringPort,
        }
    }

    /// Distance from RIP to `next`, if it is that of one instruction.
    fn length_to(&self, next: u64) -> Option<u8> {
        let length = next.wrapping_sub(self.block.save.rip);
        (1..=15).contains(&length).then_some(length as u8)
    }
}

/// A control block in a frame of its own.
struct Block {
    frame: Frame,
}

impl Block {
    fn new() -> Option<Self> {
        frame::alloc_zeroed(OwnerId::HYPERVISOR).map(|frame| Self { frame })
    }

    fn pointer(&self) -> *mut Vmcb {
        phys::pointer(self.frame.hpa()).cast()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        frame::free(OwnerId::HYPERVISOR, self.frame);
    }
}

impl Deref for Block {
    type Target = Vmcb;
    fn deref(&self) -> &Vmcb {
        // SAFETY: 1. The frame is ours alone, page-aligned and initialised (all zeros is a valid block). 2. The CPU
        // touches it only inside `entry::enter`, during which no reference is live.
        unsafe { &*self.pointer() }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut Vmcb {
        // SAFETY: 1. and 2. as in `deref`. 3. `&mut self` makes it the only reference.
        unsafe { &mut *self.pointer() }
    }
}

#[cfg(test)]
mod tests;
