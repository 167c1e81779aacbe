use super::*;
use crate::phys::fake;
use hv_defs::Hpa;

fn vcpu() -> SvmVcpu {
    fake::install(1 << 20);
    let block = Block::new().unwrap();
    let (gprs, nmi, priority_write) = (Gprs::default(), NmiState::Open, PriorityWrite::Sound);
    let mut vcpu = SvmVcpu { block, gprs, nmi, next_rip: false, flush_always: false, priority_write };
    vcpu.block.control.n_cr3 = Hpa(0x5000).0;
    vcpu.start(Start::Real { vector: 0x9A });
    vcpu
}

fn exit_with(code: u64, info1: u64, info2: u64) -> Exit {
    let mut vcpu = vcpu();
    vcpu.block.save.rip = 0x1000;
    let control = &mut vcpu.block.control;
    (control.exit_code, control.exit_info1, control.exit_info2) = (code, info1, info2);
    vcpu.decode()
}

#[test]
fn start_up_ipi_sets_the_code_segment() {
    let vcpu = vcpu();
    let regs = vcpu.registers();
    assert_eq!((regs.cs.base, regs.rip, regs.bitness), (0x9A000, 0, Bitness::Bits16));
    let (data, task) = (Segment::REAL_DATA, (0x8B, 0xFFFF));
    assert_eq!((regs.ds, regs.ss, regs.gs, regs.cs.attrib, regs.cs.limit), (data, data, data, 0x9B, 0xFFFF));
    assert_eq!((regs.tr.attrib, regs.tr.limit), task);
    assert_eq!(vcpu.block.save.cs.selector, 0x9A00);
    assert_eq!(vcpu.efer(), 0, "SVME is not shown");
    assert!(!vcpu.interruptible());
}

#[test]
fn long_start_is_64_bit_with_flat_segments() {
    let mut vcpu = vcpu();
    let entry = Entry { rip: 0x100_0200, rsi: 0x7000, rsp: 0x8000, cr3: 0x9000, gdt: Gpa(0x500), gdt_limit: 31 };
    vcpu.start(Start::Long(entry));
    let regs = vcpu.registers();
    assert_eq!(regs.bitness, Bitness::Bits64);
    assert_eq!((regs.gpr[6], regs.gpr[4], regs.cr3), (0x7000, 0x8000, 0x9000));
    assert_eq!(vcpu.gpr(6), 0x7000);
}

#[test]
fn exits_become_neutral() {
    assert_eq!(exit_with(exit::INTR, 0, 0), Exit::HostInterrupt);
    assert_eq!(exit_with(exit::MSR, 1, 0), Exit::Msr(Direction::Write));
    assert_eq!(exit_with(exit::INVALID, 0, 0), Exit::EntryFailed(u64::MAX));
    assert_eq!(exit_with(exit::INVALID_32, 0, 0), Exit::EntryFailed(0xFFFF_FFFF));
    assert_eq!(
        exit_with(exit::NPF, 0x1_0000_0006, 0xFEE0_0300),
        Exit::NestedFault { gpa: Gpa(0xFEE0_0300), direction: Direction::Write }
    );
    assert_eq!(exit_with(exit::VMRUN, 0, 0), Exit::Undefined);
    assert_eq!(exit_with(0x14, 0, 0), Exit::MoveToCr4);
    assert_eq!(exit_with(0x93, 0, 0), Exit::Unknown(0x93));
    assert_eq!(exit_with(0x51, 0, 0), Exit::Exception { vector: 17, error_code: Some(0) });
}

#[test]
fn no_move_to_cr8_meets_a_virtual_interrupt_where_that_is_fatal() {
    for (priority_write, exits) in [(PriorityWrite::Sound, 0), (PriorityWrite::Fatal, CR8)] {
        let mut vcpu = SvmVcpu { priority_write, ..vcpu() };
        for (window, exits) in [(Window::Interrupt, exits), (Window::Closed, 0), (Window::Priority { class: 3 }, CR8)] {
            vcpu.set_window(window);
            assert_eq!(vcpu.block.control.intercept_cr_write, exits | CR4, "{priority_write:?}, {window:?}");
        }
    }
}

#[test]
fn port_accesses() {
    let info = |port: u64, bits: u64| port << 16 | bits;
    assert_eq!(
        exit_with(exit::IOIO, info(0x3F8, ioio::SZ8 | ioio::TYPE_IN), 0x1001),
        Exit::Port { port: 0x3F8, width: Width::B1, direction: Direction::Read, length: 1 }
    );
    assert_eq!(
        exit_with(exit::IOIO, info(0xCF8, ioio::SZ32), 0x1001),
        Exit::Port { port: 0xCF8, width: Width::B4, direction: Direction::Write, length: 1 }
    );
    assert_eq!(exit_with(exit::IOIO, info(0x1F0, ioio::SZ16 | ioio::STR | ioio::REP), 0x1002), Exit::StringPort);
    assert_eq!(exit_with(exit::IOIO, info(0x80, ioio::SZ8), 0x9000), Exit::StringPort, "odd length: decode");
}

#[test]
fn interrupted_deliveries_are_queued_again() {
    let queued = |info: u64| {
        let mut vcpu = vcpu();
        vcpu.block.control.exit_int_info = info;
        vcpu.requeue();
        vcpu.block.control.event_inj
    };
    let interrupt = event::VALID | 0x31;
    assert_eq!(queued(interrupt), interrupt);
    assert_eq!(queued(interrupt & !event::VALID), 0);
    let page_fault = event::VALID | event::TYPE_EXCEPTION << 8 | 14 | event::ERROR_CODE_VALID | 2 << 32;
    assert_eq!(queued(page_fault), page_fault);
    assert_eq!(queued(event::VALID | event::TYPE_SOFTWARE << 8 | 0x80), 0, "INT 0x80 runs again");
    assert_eq!(queued(event::VALID | event::TYPE_EXCEPTION << 8 | 3), 0, "INT3 runs again");
}

#[test]
fn windows_and_shadows() {
    let mut vcpu = vcpu();
    vcpu.block.save.rflags |= Rflags::IF.bits();
    assert!(vcpu.interruptible());
    vcpu.block.control.interrupt_shadow = 1;
    assert!(!vcpu.interruptible());
    vcpu.skip(2);
    assert!(vcpu.interruptible(), "a skipped instruction ends the shadow");
    vcpu.set_cr8(5);
    vcpu.set_window(Window::Interrupt);
    assert_ne!(vcpu.block.control.intercept_misc1 & misc1::VINTR, 0);
    assert_eq!(vcpu.cr8(), 5);
    vcpu.set_window(Window::Priority { class: 4 });
    assert_eq!(vcpu.block.control.intercept_misc1 & misc1::VINTR, 0);
    assert_eq!(vcpu.block.control.intercept_cr_write, CR8 | CR4);
    vcpu.set_window(Window::Closed);
    assert_eq!(vcpu.block.control.vintr, vintr::V_INTR_MASKING | 5);
}

#[test]
fn an_nmi_blocks_the_next_until_after_iret() {
    let mut vcpu = vcpu();
    assert!(vcpu.nmi_allowed());
    vcpu.inject(Event::Nmi);
    assert!(!vcpu.nmi_allowed());
    vcpu.block.control.event_inj = 0;
    assert!(!vcpu.nmi_allowed());
    vcpu.block.control.exit_code = exit::IRET;
    assert_eq!(vcpu.decode(), Exit::NmiUnblocked);
    assert!(!vcpu.nmi_allowed(), "IRET has not run yet");
    assert_eq!(vcpu.block.control.intercept_misc1 & misc1::IRET, 0);
}

/// One that is about to return from an NMI.
fn returning() -> SvmVcpu {
    let mut vcpu = vcpu();
    vcpu.nmi = NmiState::Returning;
    vcpu
}

#[test]
fn the_trap_after_iret_opens_the_window_for_nmis() {
    let mut vcpu = returning();
    let before = vcpu.begin_step();
    assert_eq!((vcpu.block.save.rflags, vcpu.block.control.intercept_exceptions), (0x102, u32::MAX));
    // IRET takes the flags from the stack.
    vcpu.block.save.rflags = 2;
    vcpu.block.save.dr6 |= regs::DR6_BS;
    vcpu.block.control.exit_code = exit::EXCEPTION_0 + 1;
    assert!(vcpu.end_step(before) && vcpu.nmi_allowed());
    assert_eq!((vcpu.block.save.dr6, vcpu.block.control.intercept_exceptions), (regs::DR6_RESET, WATCHED));

    let mut stepping = returning();
    stepping.block.save.rflags |= Rflags::TF.bits();
    let before = stepping.begin_step();
    stepping.block.control.exit_code = exit::EXCEPTION_0 + 1;
    assert!(!stepping.end_step(before) && stepping.nmi_allowed(), "the guest's own trap is passed on");
}

#[test]
fn an_iret_that_did_not_run_is_stepped_again_or_gives_way() {
    let mut vcpu = returning();
    let before = vcpu.begin_step();
    vcpu.block.control.exit_code = exit::INTR;
    assert!(!vcpu.end_step(before) && vcpu.nmi == NmiState::Returning);
    assert_eq!(vcpu.block.save.rflags, 2);
    let before = vcpu.begin_step();
    let control = &mut vcpu.block.control;
    (control.exit_code, control.exit_info1, control.exit_info2) = (exit::EXCEPTION_0 + 14, 2, 0x1234_5000);
    assert!(!vcpu.end_step(before));
    assert_eq!(vcpu.decode(), Exit::Exception { vector: 14, error_code: Some(2) });
    assert_eq!(vcpu.block.save.cr2, 0x1234_5000);
    vcpu.inject(Event::Exception { vector: 14, error_code: Some(2) });
    assert_eq!(vcpu.nmi, NmiState::Blocked, "until the handler's IRET");
}
