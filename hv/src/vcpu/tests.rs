mod fake;
mod timer;

use hv_defs::{Gpa, Nanos, Width, msr};
use hv_dev::Message;

use self::fake::{CODE, FakeCpu, started};
use super::*;
use crate::exits::handle;
use crate::load::OnCrash;
use crate::stats::Reason;
use crate::vendor::{Direction, Exit};
use crate::vm::Status;

type Fake = Vcpu<FakeCpu>;

/// One virtual CPU whose local APIC is on, and known to senders.
fn one(code: &[u8]) -> Fake {
    let mut vcpu = started(1, code).remove(0);
    assert!(prepare(&mut vcpu));
    vcpu
}

fn raise(vcpu: &Fake, vector: u8) {
    vcpu.vm.raise_msi(0xFEE0_0000, u32::from(vector));
}

fn prepare(vcpu: &mut Fake) -> bool {
    vcpu.prepare(Nanos(0), 0)
}

#[test]
fn an_interrupt_is_injected_or_waits_for_its_window() {
    let mut vcpu = one(&[0x90]);
    raise(&vcpu, 0x41);
    assert!(vcpu.must_look_again());
    vcpu.hw.regs.rflags = 2;
    assert!(prepare(&mut vcpu));
    assert_eq!((vcpu.hw.event, vcpu.hw.window), (None, Window::Interrupt));
    vcpu.hw.regs.rflags = 0x202;
    assert!(prepare(&mut vcpu));
    assert_eq!((vcpu.hw.event, vcpu.hw.window), (Some(Event::Interrupt(0x41)), Window::Closed));
    assert!(!vcpu.must_look_again());
}

#[test]
fn the_second_of_two_interrupts_waits() {
    let mut vcpu = one(&[0x90]);
    raise(&vcpu, 0x41);
    raise(&vcpu, 0x51);
    prepare(&mut vcpu);
    assert_eq!(vcpu.hw.event, Some(Event::Interrupt(0x51)), "the higher first");
    assert_eq!(vcpu.hw.window, Window::Closed, "the lower is held back by the one in service");
    prepare(&mut vcpu);
    assert_eq!(vcpu.hw.event, Some(Event::Interrupt(0x51)), "nothing replaces a queued event");
}

/// What the CPU carries it takes and ends itself; what it cannot know of still comes from Prism.
#[test]
fn a_cpu_may_carry_the_interrupts() {
    let mut vcpu = one(&[0x90]);
    vcpu.hw.can_carry = true;
    let base = vcpu.lapic.base();
    struct Nowhere;
    impl hv_dev::apic::ApicBus for Nowhere {
        fn send(&mut self, _: Message) {}
        fn eoi(&mut self, _: u8) {}
    }
    raise(&vcpu, 0x41);
    raise(&vcpu, 0x51);
    vcpu.hw.shadow = true;
    assert!(prepare(&mut vcpu));
    assert_eq!((vcpu.hw.carries, vcpu.hw.window), (None, Window::Interrupt), "not an xAPIC's");
    vcpu.hw.shadow = false;
    vcpu.lapic.msr_write(msr::IA32_APIC_BASE, base | 0xC00, Nanos(0), &mut Nowhere).unwrap();
    assert!(prepare(&mut vcpu));
    assert_eq!((vcpu.hw.event, vcpu.hw.window), (None, Window::Closed));
    let carried = vcpu.hw.carries.as_mut().unwrap();
    assert_eq!((carried.requested.highest(), carried.requested.count()), (Some(0x51), 2));
    // The guest takes the higher one and sets its task priority.
    carried.requested.0[1] &= !(1 << 0x11);
    carried.in_service.0[1] |= 1 << 0x11;
    (carried.tpr, vcpu.hw.cr8) = (0x23, 2);
    let left = *carried;
    handle(&mut vcpu, Exit::HostInterrupt);
    assert_eq!((vcpu.lapic.interrupts(), vcpu.vm.stats().interrupts()), (left, 1));
    assert!(!vcpu.lapic.has_pending(), "held back by the one in service");
    // An NMI comes as ever.
    vcpu.vm.raise_msi(0xFEE0_0000, 0x400);
    assert!(prepare(&mut vcpu));
    assert_eq!((vcpu.hw.event, vcpu.hw.carries), (Some(Event::Nmi), Some(left)));
    assert_eq!(handle(&mut vcpu, Exit::EndOfInterrupt(0x51)), Reason::MsrWrite);
}

#[test]
fn a_halted_cpu_sleeps_until_an_interrupt_it_can_take() {
    let mut vcpu = one(&[0xF4, 0x90]);
    assert_eq!(handle(&mut vcpu, Exit::Hlt), Reason::Hlt);
    assert_eq!((vcpu.activity, vcpu.hw.rip()), (Activity::Halted, CODE + 1));
    assert!(!vcpu.is_runnable(Nanos(0), 0) && !prepare(&mut vcpu));
    vcpu.hw.regs.rflags = 2;
    raise(&vcpu, 0x41);
    assert!(vcpu.is_runnable(Nanos(0), 0), "it must look");
    assert!(!prepare(&mut vcpu), "but interrupts are off");
    assert!(!vcpu.is_runnable(Nanos(0), 0));
    vcpu.hw.regs.rflags = 0x202;
    assert!(prepare(&mut vcpu));
    assert_eq!(vcpu.hw.event, Some(Event::Interrupt(0x41)));
}

#[test]
fn an_nmi_wakes_a_halted_cpu_unless_blocked() {
    let mut vcpu = one(&[0xF4, 0x90]);
    handle(&mut vcpu, Exit::Hlt);
    vcpu.hw.regs.rflags = 2;
    vcpu.hw.nmi_blocked = true;
    vcpu.vm.raise_msi(0xFEE0_0000, 0x400);
    assert!(!prepare(&mut vcpu));
    vcpu.hw.nmi_blocked = false;
    assert!(prepare(&mut vcpu));
    assert_eq!(vcpu.hw.event, Some(Event::Nmi));
}

/// A guest that single-steps traps after whatever Prism carried out for it, before an interrupt that waits.
#[test]
fn a_single_step_traps_first() {
    let trap = Some(Event::Exception { vector: 1, error_code: None });
    let mut halted = one(&[0xF4, 0x90]);
    halted.hw.regs.rflags = 0x302;
    raise(&halted, 0x41);
    handle(&mut halted, Exit::Hlt);
    assert!(prepare(&mut halted), "or it would sleep with the trap before it");
    assert_eq!((halted.hw.event, halted.hw.window), (trap, Window::Interrupt));
    // mov dword ptr [rbx], eax: to the local APIC.
    let mut vcpu = one(&[0x67, 0x66, 0x89, 0x03]);
    vcpu.hw.regs.rflags = 0x302;
    vcpu.hw.regs.cr0 = 0;
    vcpu.hw.regs.gpr[3] = 0xFEE0_0080;
    vcpu.hw.regs.ds.limit = u32::MAX;
    handle(&mut vcpu, Exit::NestedFault { gpa: Gpa(0xFEE0_0080), direction: Direction::Write });
    assert_eq!((vcpu.hw.rip(), vcpu.hw.event), (CODE + 4, trap));
}

#[test]
fn an_application_processor_starts_by_init_and_sipi() {
    let mut vcpus = started(2, &[0x90]);
    let mut second = vcpus.remove(1);
    assert_eq!(second.activity, Activity::WaitForSipi);
    assert!(!prepare(&mut second));
    let send = |data: u32| vcpus[0].vm.deliver(&Message::from_msi(0xFEE0_1000, data).unwrap(), Some(0));
    send(0x500);
    assert!(!prepare(&mut second));
    send(0x69A);
    assert!(prepare(&mut second));
    assert_eq!(second.hw.started, Some(Start::Real { vector: 0x9A }));
    send(0x69B);
    prepare(&mut second);
    assert_eq!(second.hw.started, Some(Start::Real { vector: 0x9A }), "a running CPU heeds no SIPI");
    send(0x500);
    assert!(!prepare(&mut second));
    assert_eq!(second.activity, Activity::WaitForSipi);
}

#[test]
fn requests_park_every_cpu_before_they_are_carried_out() {
    let mut vcpus = started(2, &[0x90]);
    let vm = vcpus[0].vm;
    assert_eq!(vm.status(), Status::Running);
    vm.request(Request::Reset);
    vcpus[0].follow();
    vm.carry_out();
    assert!(vm.must_park(), "the second one still runs");
    vcpus[1].follow();
    vcpus[1].follow();
    vm.carry_out();
    assert!(!vm.must_park() && vcpus[0].is_asked());
    assert_eq!((vm.resets(), vcpus[0].follow()), (1, Followed::StartedOver));
    // A stronger request wins, also over one that came first; a VM that is off can be started.
    vcpus[1].follow();
    vm.request(Request::PowerOff);
    vm.request(Request::Kill);
    vm.request(Request::Reset);
    for vcpu in &mut vcpus {
        vcpu.follow();
    }
    vm.carry_out();
    assert_eq!((vm.status(), vm.is_stopped()), (Status::Killed, true));
    assert!(!vcpus[0].is_runnable(Nanos(0), 0));
    vm.request(Request::Reset);
    vm.carry_out();
    assert_eq!(vm.status(), Status::Running);
    assert_eq!(vcpus[0].follow(), Followed::StartedOver);
}

/// The first virtual CPU may be in its new life, and start the others, before these have begun theirs.
#[test]
fn what_is_posted_in_a_new_life_is_not_of_the_old_one() {
    let mut vcpus = started(2, &[0x90]);
    let vm = vcpus[0].vm;
    let send = |data: u32| vm.deliver(&Message::from_msi(0xFEE0_1000, data).unwrap(), Some(0));
    vm.request(Request::Reset);
    vcpus.iter_mut().for_each(|vcpu| _ = vcpu.follow());
    send(0x69A);
    vm.carry_out();
    vcpus[0].follow();
    send(0x500);
    send(0x69B);
    assert_eq!(vcpus[1].follow(), Followed::StartedOver);
    assert!(prepare(&mut vcpus[1]), "the start-up was thrown away");
    assert_eq!(vcpus[1].hw.started, Some(Start::Real { vector: 0x9B }));
    vm.request(Request::Reset);
    vcpus.iter_mut().for_each(|vcpu| _ = vcpu.follow());
    send(0x69C);
    vm.carry_out();
    vcpus[1].follow();
    assert!(!prepare(&mut vcpus[1]), "started by the life before");
}

#[test]
fn a_triple_fault_stops_the_vm_only() {
    let mut vcpu = one(&[0x0F, 0x0B]);
    assert_eq!(handle(&mut vcpu, Exit::Shutdown), Reason::Fatal);
    vcpu.follow();
    vcpu.vm.carry_out();
    assert_eq!((vcpu.vm.status(), vcpu.vm.crashes()), (Status::Crashed, 1));
}

#[test]
fn unknown_registers_fault_and_unknown_ports_read_ones() {
    let mut vcpu = one(&[0x0F, 0x32]);
    vcpu.hw.set_gpr(1, 0x1234);
    assert_eq!(handle(&mut vcpu, Exit::Msr(Direction::Read)), Reason::MsrRead);
    assert_eq!(vcpu.hw.event, Some(Event::Exception { vector: 13, error_code: Some(0) }));
    assert_eq!(vcpu.hw.rip(), CODE, "a fault does not advance");
    vcpu.hw.event = None;
    vcpu.hw.set_gpr(0, 0x1111_2222_3333_4444);
    let port = |width| Exit::Port { port: 0x2E, width, direction: Direction::Read, length: 1 };
    handle(&mut vcpu, port(Width::B2));
    assert_eq!((vcpu.hw.gpr(0), vcpu.hw.rip()), (0x1111_2222_3333_FFFF, CODE + 1));
    handle(&mut vcpu, port(Width::B4));
    assert_eq!(vcpu.hw.gpr(0), 0xFFFF_FFFF, "a dword clears the upper half");
    assert_eq!(vcpu.vm.stats().unanswered().map(|row| row.2).sum::<u64>(), 3);
}

#[test]
fn efer_and_pat_are_checked() {
    let mut vcpu = one(&[0x0F, 0x30]);
    let mut write = |number: u32, value: u64| {
        vcpu.hw.event = None;
        vcpu.hw.regs.rip = CODE;
        vcpu.hw.set_gpr(1, number.into());
        vcpu.hw.set_gpr(0, value & 0xFFFF_FFFF);
        vcpu.hw.set_gpr(2, value >> 32);
        handle(&mut vcpu, Exit::Msr(Direction::Write));
        vcpu.hw.event.is_none()
    };
    assert!(write(msr::EFER, 0x901));
    assert!(!write(msr::EFER, 1 << 12), "SVME is not the guest's");
    assert!(!write(msr::IA32_PAT, 2));
    assert!(write(msr::IA32_PAT, 1));
    assert!(!write(msr::IA32_MTRRCAP, 0), "read-only");
    assert!(write(0x200, 6) && write(0x2FF, 0));
    assert_eq!((vcpu.hw.efer, vcpu.hw.pat), (0x901, 1));
}

#[test]
fn tsc_and_clock_agree() {
    let mut vcpu = one(&[0x0F, 0x30]);
    assert_eq!(vcpu.hw.tsc_offset, vcpu.vm.tsc_base().wrapping_neg());
    vcpu.hw.set_gpr(1, msr::KVM_SYSTEM_TIME.into());
    vcpu.hw.set_gpr(0, 0x5001);
    handle(&mut vcpu, Exit::Msr(Direction::Write));
    let mut page = [0; 32];
    vcpu.vm.read(Gpa(0x5000), &mut page).unwrap();
    assert_eq!((page[0], page[29]), (2, 1), "even version, stable");
    assert_eq!(page[8..16], [0; 8]);
    vcpu.hw.regs.rip = CODE;
    vcpu.hw.set_gpr(1, msr::IA32_TSC_ADJUST.into());
    vcpu.hw.set_gpr(0, 0x77);
    handle(&mut vcpu, Exit::Msr(Direction::Write));
    vcpu.vm.read(Gpa(0x5000), &mut page).unwrap();
    assert_eq!(page[8], 0x77, "the page follows a TSC that was set");
}

#[test]
fn exceptions_that_prism_watches_reach_the_guest() {
    let mut vcpu = one(&[0x90]);
    handle(&mut vcpu, Exit::Exception { vector: 1, error_code: None });
    assert_eq!(vcpu.hw.event, Some(Event::Exception { vector: 1, error_code: None }));
    vcpu.hw.event = Some(Event::Interrupt(0x41));
    handle(&mut vcpu, Exit::Exception { vector: 17, error_code: Some(0) });
    assert_eq!(vcpu.hw.event, Some(Event::Interrupt(0x41)), "an interrupted delivery comes first");
}

#[test]
fn mmio_is_emulated_and_tracked_pages_are_not() {
    // mov eax, [0xFEC00000]
    let mut vcpu = one(&[0xA1, 0x00, 0x00, 0xC0, 0xFE]);
    let fault = |gpa, direction| Exit::NestedFault { gpa: Gpa(gpa), direction };
    assert_eq!(handle(&mut vcpu, fault(0xFEC0_0000, Direction::Read)), Reason::MmioChipset);
    assert_eq!(vcpu.hw.rip(), CODE + 5);
    let gfn = Gpa(0x20_0000).gfn();
    vcpu.vm.track(gfn).unwrap();
    assert_eq!(handle(&mut vcpu, fault(0x20_0000, Direction::Write)), Reason::TrackedWrite);
    assert_eq!(vcpu.hw.rip(), CODE + 5, "the store runs again by itself");
    vcpu.vm.write(Gpa(0x20_0FFC), &[1; 8]).unwrap();
    let mut dirty = Vec::new();
    vcpu.vm.harvest(&mut |page| dirty.push(page));
    assert_eq!(dirty, [crate::vm::DirtyPage::Ram(gfn)]);
    let flushes = vcpu.hw.flushes;
    prepare(&mut vcpu);
    assert_eq!(vcpu.hw.flushes, flushes + 1, "entries since then flush first");
    // Prism's own store counts like the guest's.
    vcpu.vm.write(Gpa(0x20_0000), &[2]).unwrap();
    let mut count = 0;
    vcpu.vm.harvest(&mut |_| count += 1);
    assert_eq!(count, 1);
    assert_eq!(handle(&mut vcpu, fault(0x20_0000, Direction::Read)), Reason::StaleMapping);
}

#[test]
fn cr8_keeps_the_lower_half_of_the_task_priority() {
    let mut vcpu = one(&[0x90]);
    struct NoBus;
    impl hv_dev::apic::ApicBus for NoBus {
        fn send(&mut self, _: Message) {}
        fn eoi(&mut self, _: u8) {}
    }
    vcpu.lapic.mmio_write(0x80, 0x15, Nanos(0), &mut NoBus);
    prepare(&mut vcpu);
    assert_eq!(vcpu.hw.cr8, 1);
    handle(&mut vcpu, Exit::HostInterrupt);
    assert_eq!(vcpu.lapic.mmio_read(0x80, Nanos(0)), 0x15);
    vcpu.hw.cr8 = 5;
    handle(&mut vcpu, Exit::HostInterrupt);
    assert_eq!(vcpu.lapic.cr8(), 5);
    raise(&vcpu, 0x41);
    prepare(&mut vcpu);
    assert_eq!(vcpu.hw.window, Window::Priority { class: 4 });
}

/// Whatever makes a guest start again, it waits longer each time, and is ended when it comes too often; the user's own
/// resets neither wait nor count.
#[test]
fn every_restart_that_the_guest_causes_goes_through_one_back_off() {
    let mut vcpu = fake::started_with(OnCrash::Restart, 1, &[0x0F, 0x0B]).remove(0);
    let vm = vcpu.vm;
    let port = |port, value| {
        move |vcpu: &mut Fake| {
            vcpu.hw.set_gpr(0, value);
            handle(vcpu, Exit::Port { port, width: Width::B1, direction: Direction::Write, length: 1 });
        }
    };
    let init = |vcpu: &mut Fake| {
        vcpu.vm.deliver(&Message::from_msi(0xFEE0_0000, 0x500).unwrap(), Some(0));
        prepare(vcpu);
    };
    let crash = |vcpu: &mut Fake| _ = handle(vcpu, Exit::Shutdown);
    let (cf9, keyboard, fast) = (port(0xCF9, 0x0E), port(0x64, 0xFE), port(0x92, 3));
    let causes: [&dyn Fn(&mut Fake); 5] = [&cf9, &keyboard, &fast, &init, &crash];
    let mut now = 0;
    for (n, cause) in causes.iter().cycle().take(10).enumerate() {
        prepare(&mut vcpu);
        cause(&mut vcpu);
        vcpu.follow();
        vm.carry_out_at(Nanos(now));
        let wait = 10_000_000 << n;
        assert_eq!(vm.restart_deadline(), Some(Nanos(now + wait)), "restart {n}");
        now += wait;
        vm.carry_out_at(Nanos(now - 1));
        assert_eq!((vm.must_park(), vm.resets()), (true, n as u32));
        vm.carry_out_at(Nanos(now));
        assert_eq!((vm.resets(), vcpu.follow(), vm.restart_deadline()), (n as u32 + 1, Followed::StartedOver, None));
    }
    crash(&mut vcpu);
    vcpu.follow();
    vm.carry_out_at(Nanos(now));
    assert_eq!((vm.status(), vm.is_stopped(), vm.crashes()), (Status::Crashed, true, 3));
    for n in 0..100 {
        vm.request(Request::Reset);
        vcpu.follow();
        vm.carry_out_at(Nanos(now));
        assert_eq!((vm.status(), vm.resets()), (Status::Running, 10 + n), "from a VM that had ended, then at once");
        vcpu.follow();
    }
}

/// Who waits to start again can still be started at once, or stopped.
#[test]
fn the_user_need_not_wait() {
    let mut vcpu = fake::started_with(OnCrash::Restart, 1, &[0x0F, 0x0B]).remove(0);
    let vm = vcpu.vm;
    for (request, status) in [(Request::Reset, Status::Running), (Request::Kill, Status::Killed)] {
        handle(&mut vcpu, Exit::Shutdown);
        vcpu.follow();
        vm.carry_out_at(Nanos(0));
        assert!(vm.must_park() && vm.restart_deadline().is_some());
        vm.request(request);
        vm.carry_out_at(Nanos(0));
        assert_eq!((vm.status(), vm.must_park(), vm.restart_deadline()), (status, false, None));
        vcpu.follow();
    }
}

/// A guest cannot set in CR4 what CPUID hides from it: protection keys, whose register nothing switches.
#[test]
fn cr4_takes_only_what_cpuid_shows() {
    // mov cr4, eax
    let mut vcpu = one(&[0x0F, 0x22, 0xE0]);
    let fault = Some(Event::Exception { vector: 13, error_code: Some(0) });
    vcpu.hw.set_gpr(0, 0xFFFF_FFFF_0000_00A0);
    vcpu.hw.flushes = 0;
    assert_eq!(handle(&mut vcpu, Exit::MoveToCr4), Reason::ControlRegister);
    assert_eq!((vcpu.hw.regs.cr4, vcpu.hw.rip(), vcpu.hw.event), (0xA0, CODE + 3, None), "PAE and PGE, in 32-bit code");
    assert_eq!(vcpu.hw.flushes, 1);
    for hidden in [1 << 22, 1 << 12, 1 << 13, 1 << 23, 1 << 31] {
        (vcpu.hw.regs.rip, vcpu.hw.event) = (CODE, None);
        vcpu.hw.set_gpr(0, 0xA0 | hidden);
        handle(&mut vcpu, Exit::MoveToCr4);
        assert_eq!((vcpu.hw.regs.cr4, vcpu.hw.rip(), vcpu.hw.event), (0xA0, CODE, fault), "{hidden:#x}");
    }
    // Another instruction by now: it runs as it is.
    vcpu.vm.write(Gpa(CODE), &[0x0F, 0x22, 0xD8]).unwrap();
    vcpu.hw.event = None;
    handle(&mut vcpu, Exit::MoveToCr4);
    assert_eq!((vcpu.hw.regs.cr4, vcpu.hw.rip(), vcpu.hw.event), (0xA0, CODE, None));
}

/// A process of the guest cannot end its VM by an instruction that Prism does not emulate, or by code in device memory.
#[test]
fn a_process_ends_no_vm() {
    let fault = Some(Event::Exception { vector: 6, error_code: None });
    let exits = [Exit::NestedFault { gpa: Gpa(0xFEB0_0000), direction: Direction::Read }, Exit::StringPort];
    for cpl in [3, 0] {
        for (exit, rip) in [(exits[0], CODE), (exits[1], CODE), (exits[0], 0xFEB0_0000)] {
            let mut vcpu = one(&[0xD9, 0x03]); // fld dword [ebx]
            (vcpu.hw.regs.cpl, vcpu.hw.regs.rip) = (cpl, rip);
            let crashed = handle(&mut vcpu, exit) == Reason::Fatal;
            assert_eq!(crashed, cpl == 0, "CPL {cpl}, {exit:?} at {rip:#x}");
            assert_eq!((vcpu.hw.event, vcpu.hw.rip()), (if cpl == 3 { fault } else { None }, rip));
        }
    }
}
