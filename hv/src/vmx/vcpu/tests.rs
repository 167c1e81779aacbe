use super::*;
use crate::phys::fake;
use crate::vendor::Direction;
use hv_defs::regs::vector;
use hv_defs::{Gpa, Width};

fn vcpu() -> VmxVcpu {
    fake::install(1 << 20);
    let mut vcpu = VmxVcpu {
        vmcs: Vmcs::new(1).unwrap(),
        gprs: Gprs::default(),
        base_controls: primary::HLT_EXITING,
        controls: primary::HLT_EXITING,
        secondary: secondary::ENABLE_EPT,
        queued: None,
        apic_page: ApicPage::new(),
        can_carry: true,
        carries: false,
        ends_watched: VectorSet::default(),
        cr8: 0,
        timer_shift: Some(5),
        tag: 1,
        reason: 0,
        launched: false,
        fresh: true,
        stale: Stale::default(),
    };
    vcpu.start(Start::Real { vector: 0x9A });
    vcpu
}

fn long() -> VmxVcpu {
    let mut vcpu = vcpu();
    let entry = Entry { rip: 0x100_0200, rsi: 0x7000, rsp: 0x8000, cr3: 0x9000, gdt: Gpa(0x500), gdt_limit: 31 };
    vcpu.start(Start::Long(entry));
    vcpu
}

/// Makes the exit that these fields describe.
fn exit(vcpu: &mut VmxVcpu, number: u32, fields: &[(Field, u64)]) -> Exit {
    vcpu.vmcs.write(field::IDT_VECTORING_INFORMATION, 0);
    vcpu.vmcs.write(field::EXIT_REASON, u64::from(number));
    vcpu.write_all(fields);
    vcpu.decode()
}

#[test]
fn start_up_ipi_sets_the_code_segment() {
    let vcpu = vcpu();
    let regs = vcpu.registers();
    assert_eq!((regs.cs.base, regs.rip, regs.bitness), (0x9A000, 0, Bitness::Bits16));
    let (data, task) = (hv_defs::Segment::REAL_DATA, (0x8B, 0xFFFF));
    assert_eq!((regs.ds, regs.ss, regs.gs, regs.cs.attrib, regs.cs.limit), (data, data, data, 0x9B, 0xFFFF));
    assert_eq!((regs.tr.attrib, regs.tr.limit), task);
    assert_eq!(vcpu.vmcs.read(field::GUEST_CS_SELECTOR), 0x9A00);
    assert_eq!((vcpu.efer(), regs.cr0, regs.cr4), (0, regs::CR0_RESET, 0), "as the guest sees them");
    assert_eq!(vcpu.vmcs.read(field::GUEST_CR0) & CR0_OWNED, Cr0::NE.bits());
    assert_eq!(vcpu.vmcs.read(field::GUEST_CR4), CR4_FORCED);
    assert!(!vcpu.interruptible());
}

#[test]
fn long_start_is_64_bit_with_flat_segments() {
    let vcpu = long();
    let regs = vcpu.registers();
    assert_eq!((regs.bitness, regs.cpl), (Bitness::Bits64, 0));
    assert_eq!((regs.gpr[6], regs.gpr[4], regs.cr3, regs.cr4), (0x7000, 0x8000, 0x9000, 0x20));
    assert_eq!((vcpu.gpr(6), regs.cr0), (0x7000, 0x8000_0011));
    assert_ne!(vcpu.vmcs.read(field::ENTRY_CONTROLS) & u64::from(entry_control::IA32E_GUEST), 0);
}

/// 64-bit code needs two bases and the task; other code all of it, in AMD-V's format.
#[test]
fn segments_are_read_where_they_count() {
    let mut vcpu = long();
    vcpu.write_all(&[(field::GUEST_FS_BASE, 0x1234), (field::GUEST_DS_BASE, 0x5678), (field::GUEST_TR_LIMIT, 0x67)]);
    let regs = vcpu.registers();
    assert_eq!((regs.fs.base, regs.ds, regs.tr.attrib, regs.tr.limit), (0x1234, Default::default(), 0x8B, 0x67));
    vcpu.write_all(&[(field::GUEST_CS_RIGHTS, 0xC09B), (field::GUEST_ES_RIGHTS, rights::UNUSABLE | 0xC093)]);
    let regs = vcpu.registers();
    let flat = hv_defs::Segment::FLAT_DATA;
    assert_eq!((regs.bitness, regs.ss, regs.es.attrib), (Bitness::Bits32, flat, 0));
    assert_eq!(regs.ds, hv_defs::Segment { base: 0x5678, ..flat });
}

#[test]
fn exits_become_neutral() {
    let mut vcpu = long();
    let mut ask = |number| exit(&mut vcpu, number, &[]);
    assert_eq!(ask(reason::EXTERNAL_INTERRUPT), Exit::HostInterrupt);
    assert_eq!(ask(reason::WRMSR), Exit::Msr(Direction::Write));
    assert_eq!(ask(reason::INTERRUPT_WINDOW), Exit::Window);
    assert_eq!(ask(reason::TPR_BELOW_THRESHOLD), Exit::PriorityLowered);
    assert_eq!(ask(reason::VMXON), Exit::Undefined);
    assert_eq!(ask(0x8000_0021), Exit::EntryFailed(0x8000_0021));
    assert_eq!(ask(reason::EPT_MISCONFIGURATION), Exit::Unknown(49));
}

/// Bits that newer CPUs add to the qualification change nothing.
#[test]
fn nested_faults() {
    for (qualification, direction) in
        [(0x181, Direction::Read), (0x781, Direction::Read), (0x182, Direction::Write), (0x78A, Direction::Write)]
    {
        let fields = [(field::EXIT_QUALIFICATION, qualification), (field::GUEST_PHYSICAL_ADDRESS, 0xFEE0_0300)];
        let fault = exit(&mut long(), reason::EPT_VIOLATION, &fields);
        assert_eq!(fault, Exit::NestedFault { gpa: Gpa(0xFEE0_0300), direction });
    }
}

#[test]
fn port_accesses() {
    let mut vcpu = long();
    let mut ask = |qualification, length| {
        let fields = [(field::EXIT_QUALIFICATION, qualification), (field::EXIT_INSTRUCTION_LENGTH, length)];
        exit(&mut vcpu, reason::IO, &fields)
    };
    let port = |port, width, direction, length| Exit::Port { port, width, direction, length };
    assert_eq!(ask(0x3F8 << 16 | io::IN, 1), port(0x3F8, Width::B1, Direction::Read, 1));
    assert_eq!(ask(0xCF8 << 16 | 3, 1), port(0xCF8, Width::B4, Direction::Write, 1));
    assert_eq!(ask(0x80 << 16 | 1 | 1 << 6, 3), port(0x80, Width::B2, Direction::Write, 3));
    assert_eq!(ask(0x1F0 << 16 | 1 | io::STRING | 1 << 5, 2), Exit::StringPort);
}

use hv_defs::vmx::{cr_access, io};

#[test]
fn interrupted_deliveries_are_queued_again() {
    let queued = |information: u32, code: u32| {
        let mut vcpu = long();
        vcpu.vmcs.write(field::EXIT_REASON, u64::from(reason::EPT_VIOLATION));
        vcpu.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, interruptibility::NMI);
        vcpu.vmcs.write(field::IDT_VECTORING_INFORMATION, u64::from(information));
        vcpu.vmcs.write(field::IDT_VECTORING_ERROR_CODE, u64::from(code));
        vcpu.decode();
        (vcpu.queued, vcpu.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE) & interruptibility::NMI)
    };
    let of = |kind: u32, vector: u32| event::VALID | kind << event::TYPE_SHIFT | vector;
    let interrupt = of(event::EXTERNAL_INTERRUPT, 0x31);
    assert_eq!(queued(interrupt, 0).0, Some((interrupt, 0)));
    assert_eq!(queued(interrupt & !event::VALID, 0).0, None);
    let fault = of(event::HARDWARE_EXCEPTION, 14) | event::ERROR_CODE;
    assert_eq!(queued(fault | 1 << 12, 2).0, Some((fault, 2)), "a reserved bit would make the entry fail");
    assert_eq!(queued(of(event::NMI, 2), 0), (Some((of(event::NMI, 2), 0)), 0), "or the entry would be refused");
    assert_eq!(queued(of(event::SOFTWARE_INTERRUPT, 0x80), 0).0, None, "INT 0x80 runs again");
    assert_eq!(queued(of(event::SOFTWARE_EXCEPTION, 3), 0).0, None, "INT3 runs again");
}

#[test]
fn an_iret_that_faulted_blocks_nmis_again() {
    let mut vcpu = long();
    exit(&mut vcpu, reason::EPT_VIOLATION, &[(field::EXIT_QUALIFICATION, 0x1081)]);
    assert!(!vcpu.nmi_allowed());
}

#[test]
fn windows_and_shadows() {
    let mut vcpu = vcpu();
    vcpu.vmcs.write(field::GUEST_RFLAGS, Rflags::IF.bits() | 2);
    assert!(vcpu.interruptible());
    vcpu.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, interruptibility::STI);
    assert!(!vcpu.interruptible() && !vcpu.nmi_allowed());
    vcpu.skip(2);
    assert!(vcpu.interruptible(), "a skipped instruction ends the shadow");
    vcpu.set_cr8(5);
    vcpu.set_window(Window::Interrupt);
    vcpu.await_nmi();
    let windows = primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING;
    assert_eq!(vcpu.vmcs.read(field::PRIMARY_CONTROLS) as u32 & windows, windows);
    assert_eq!(vcpu.cr8(), 5);
    vcpu.set_window(Window::Priority { class: 9 });
    assert_eq!(vcpu.vmcs.read(field::PRIMARY_CONTROLS) as u32 & windows, 0);
    assert_eq!(vcpu.vmcs.read(field::TPR_THRESHOLD), 5, "an entry with more would be refused");
    vcpu.set_window(Window::Closed);
    assert_eq!(vcpu.vmcs.read(field::TPR_THRESHOLD), 0);
}

/// The virtual-APIC page and the fields beside it hold what the CPU is to carry, and say what became of it.
#[test]
fn interrupts_are_carried() {
    let mut vcpu = long();
    assert_eq!(vcpu.carried(), None);
    let set = |vectors: &[u8]| {
        VectorSet(vectors.iter().fold([0; 4], |mut words, vector| {
            words[usize::from(vector >> 6)] |= 1 << (vector & 63);
            words
        }))
    };
    let carried =
        Interrupts { tpr: 0x23, requested: set(&[0x41, 0xFE]), in_service: set(&[0x30, 0x62]), level: set(&[0x62]) };
    vcpu.carry(Some(&carried));
    assert_eq!(vcpu.vmcs.read(field::GUEST_INTERRUPT_STATUS), 0x62FE);
    assert_eq!(vcpu.vmcs.read(field::EOI_EXIT_BITMAP_1), 1 << 0x22);
    assert_eq!(vcpu.vmcs.read(field::SECONDARY_CONTROLS) as u32, secondary::ENABLE_EPT | CARRYING);
    let page = vcpu.apic_page.as_ref().unwrap().hpa();
    // SAFETY: 1. The virtual CPU's page, in the fake RAM. 2. Nobody refers to it.
    let page = unsafe { crate::phys::Window::new(page, 0x1000) };
    let read = [0x80, 0x110, 0x130, 0x220, 0x270].map(|offset| page.read_u32(offset));
    assert_eq!(read, [0x23, 1 << 16, 1 << 2, 1 << 1, 1 << 30].map(Some));
    assert_eq!((vcpu.carried(), vcpu.cr8()), (Some(carried), 2));
    page.write_u32(0x80, 0x50).unwrap();
    page.write_u32(0x130, 0).unwrap();
    assert_eq!(vcpu.carried(), Some(Interrupts { tpr: 0x50, in_service: set(&[0x30]), ..carried }));
    let end = exit(&mut vcpu, reason::VIRTUALIZED_EOI, &[(field::EXIT_QUALIFICATION, 0x62)]);
    assert_eq!(end, Exit::EndOfInterrupt(0x62));
    vcpu.carry(None);
    assert_eq!((vcpu.carried(), vcpu.vmcs.read(field::SECONDARY_CONTROLS) as u32), (None, secondary::ENABLE_EPT));
}

#[test]
fn real_mode_takes_no_error_code() {
    let mut real = vcpu();
    real.inject(Event::Exception { vector: vector::GP, error_code: Some(0) });
    assert_eq!(real.queued.unwrap().0 & event::ERROR_CODE, 0);
    let mut long = long();
    long.inject(Event::Exception { vector: vector::GP, error_code: Some(8) });
    long.queue();
    assert_eq!(long.vmcs.read(field::ENTRY_INTERRUPTION_INFORMATION), 0x8000_0B0D);
    assert_eq!(long.vmcs.read(field::ENTRY_EXCEPTION_ERROR_CODE), 8);
}

/// What a guest moves to CR0 or CR4, what it sees afterwards, and whether that faults.
#[test]
fn control_registers_are_believed() {
    let to = |register: u64, gpr: u64| register | gpr << cr_access::GPR_SHIFT;
    let mut vcpu = vcpu();
    vcpu.set_gpr(3, 0x11);
    let fields = [(field::EXIT_QUALIFICATION, to(0, 3))];
    assert_eq!(exit(&mut vcpu, reason::CR_ACCESS, &fields), Exit::ControlRegister);
    assert!(!vcpu.event_queued());
    let cr0 = vcpu.registers().cr0;
    assert_eq!(cr0 & CR0_OWNED, 0, "caches on; the rest is the CPU's to do");
    assert_eq!(vcpu.rip(), 0, "the instruction runs again");

    vcpu.set_gpr(3, Cr0::NW.bits());
    exit(&mut vcpu, reason::CR_ACCESS, &fields);
    assert!(vcpu.event_queued(), "NW without CD");

    for (value, faults) in
        [(Cr4::MCE.bits(), false), (Cr4::VMXE.bits(), true), (Cr4::PKE.bits(), true), (1 << 30, true)]
    {
        vcpu.set_gpr(3, value);
        exit(&mut vcpu, reason::CR_ACCESS, &[(field::EXIT_QUALIFICATION, to(4, 3))]);
        assert_eq!(vcpu.event_queued(), faults, "{value:#x}");
    }
    assert_eq!(vcpu.cr4() & CR4_FORCED, Cr4::MCE.bits());
    assert_eq!(vcpu.vmcs.read(field::GUEST_CR4) & CR4_FORCED, CR4_FORCED);
}

#[test]
fn without_a_tpr_shadow_cr8_is_ours() {
    let mut vcpu = VmxVcpu { apic_page: None, ..long() };
    vcpu.set_cr8(7);
    let from = 8 | cr_access::MOV_FROM << cr_access::TYPE_SHIFT | 2 << cr_access::GPR_SHIFT;
    let fields = [(field::EXIT_QUALIFICATION, from), (field::EXIT_INSTRUCTION_LENGTH, 4)];
    assert_eq!(exit(&mut vcpu, reason::CR_ACCESS, &fields), Exit::ControlRegister);
    assert_eq!((vcpu.gpr(2), vcpu.rip()), (7, 0x100_0204));
    assert_eq!(exit(&mut vcpu, reason::CR_ACCESS, &[(field::EXIT_QUALIFICATION, 8)]), Exit::MoveToCr8);
}

#[test]
fn a_failed_entry_is_explained() {
    let mut text = String::new();
    vcpu().describe(&mut text).unwrap();
    assert!(text.contains("GUEST_CR0=0x30") && text.contains("GUEST_CS_RIGHTS=0x9b"), "{text}");
}

/// What is hidden from guests is the same on both vendors' CPUs.
#[test]
fn cr4_offers_what_cpuid_shows() {
    let all = hv_defs::cpuid::Regs { eax: !0, ebx: !0, ecx: !0, edx: !0 };
    assert_eq!(hv_defs::cpuid::offered_cr4(|_, _| all).bits(), CR4_OFFERED);
}
