//! What Prism does about each exit. Every outcome is one of three (design D9): put right and go on, an exception for the
//! guest, or a crash of that guest alone, with a report.

mod bus;
mod cpuid;
mod msr;

use core::fmt;

use hv_defs::regs::{Cr4, Xcr0};
use hv_defs::{Gpa, Gva, Nanos, Width};
use hv_dev::apic::ApicBus;
use hv_emu::{Access, Decoded, Exception, Outcome};
use strum::IntoStaticStr;
use thiserror::Error;

use self::bus::{GuestBus, VcpuApicBus};
use crate::fpu;
use crate::stats::Reason;
use crate::vcpu::{Activity, Vcpu};
use crate::vendor::{Direction, Event, Exit, VirtualCpu};
use crate::vm::Fault;
use crate::{percpu, say, time, trace, x86};

/// Why a guest cannot go on. For programs, the name of the variant is the cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Crash {
    #[error("triple fault")]
    TripleFault,
    #[error("the CPU refused the guest's state (exit {0:#x})")]
    EntryFailed(u64),
    #[error("exit {0:#x}, which Prism does not know")]
    UnknownExit(u64),
    #[error("hardware task switch")]
    TaskSwitch,
    #[error("instruction at device memory {0:#x} that cannot be emulated")]
    Instruction(Gpa),
    #[error("event delivery through device memory {0:#x}")]
    Delivery(Gpa),
    #[error("machine check")]
    MachineCheck,
}

/// Handles an exit; says what it was, for the counters.
pub(crate) fn handle<V: VirtualCpu>(vcpu: &mut Vcpu<V>, exit: Exit) -> Reason {
    if let Some(carried) = vcpu.hw.carried() {
        let taken = vcpu.lapic.set_interrupts(&carried);
        vcpu.vm.stats().injected(taken);
    }
    // Only a change: CR8 knows but half of the TPR.
    if vcpu.hw.cr8() != vcpu.lapic.cr8() {
        vcpu.lapic.set_cr8(vcpu.hw.cr8());
    }
    match act(vcpu, exit, time::now()) {
        Ok(reason) => reason,
        Err(crash) => {
            report(vcpu, crash);
            vcpu.vm.crashed(crash.into());
            Reason::Fatal
        }
    }
}

fn act<V: VirtualCpu>(vcpu: &mut Vcpu<V>, exit: Exit, now: Nanos) -> Result<Reason, Crash> {
    Ok(match exit {
        Exit::HostInterrupt => Reason::HostInterrupt,
        Exit::HostNmi | Exit::NmiUnblocked => Reason::Nmi,
        Exit::Window | Exit::PriorityLowered => Reason::Window,
        Exit::Cpuid => {
            cpuid::execute(vcpu);
            skip(vcpu, now, Reason::Cpuid)
        }
        Exit::Hlt => {
            let reason = skip(vcpu, now, Reason::Hlt);
            // A guest that single-steps traps at once.
            if !vcpu.hw.event_queued() {
                vcpu.activity = Activity::Halted;
            }
            reason
        }
        Exit::EndOfInterrupt(vector) => {
            VcpuApicBus { vm: vcpu.vm, index: vcpu.index, now }.eoi(vector);
            Reason::MsrWrite
        }
        Exit::Msr(direction) => msr_access(vcpu, direction, now),
        Exit::Port { port, width, direction, length } => {
            port_access(vcpu, port, width, direction, now);
            vcpu.hw.skip(length);
            if direction == Direction::Read { Reason::PortRead } else { Reason::PortWrite }
        }
        Exit::StringPort => {
            emulate(vcpu, now).ok_or(Crash::Instruction(Gpa(0)))?;
            Reason::PortString
        }
        Exit::NestedFault { gpa, direction } => nested_fault(vcpu, gpa, direction, now)?,
        Exit::MoveToCr4 => move_to_cr4(vcpu, now),
        Exit::MoveToCr8 => move_to_cr8(vcpu, now),
        Exit::ControlRegister => Reason::ControlRegister,
        Exit::Xsetbv => xsetbv(vcpu, now),
        // Guest RAM is coherent with every device that Prism lets near it: nothing to write back.
        Exit::CacheFlush => skip(vcpu, now, Reason::CacheFlush),
        Exit::Hypercall => {
            vcpu.hw.inject(exception(Exception::UD));
            Reason::Hypercall
        }
        Exit::Undefined => {
            vcpu.hw.inject(exception(Exception::UD));
            Reason::Undefined
        }
        Exit::Rdpmc => {
            vcpu.hw.inject(exception(Exception::GP));
            Reason::Undefined
        }
        Exit::Exception { vector: hv_defs::regs::vector::MC, .. } => return Err(Crash::MachineCheck),
        Exit::Exception { vector, error_code } => {
            // An event whose delivery this exception interrupted comes first; the exception then occurs again.
            if !vcpu.hw.event_queued() {
                vcpu.hw.inject(Event::Exception { vector, error_code });
            }
            Reason::Exception
        }
        Exit::TaskSwitch => return Err(Crash::TaskSwitch),
        Exit::Shutdown => return Err(Crash::TripleFault),
        Exit::EntryFailed(code) => return Err(Crash::EntryFailed(code)),
        Exit::Unknown(code) => return Err(Crash::UnknownExit(code)),
    })
}

fn exception(what: Exception) -> Event {
    Event::Exception { vector: what.vector, error_code: what.error_code }
}

fn raise<V: VirtualCpu>(vcpu: &mut Vcpu<V>, what: Exception) {
    if let Some(address) = what.cr2 {
        vcpu.hw.set_cr2(address);
    }
    vcpu.hw.inject(exception(what));
}

// ---- Memory -----------------------------------------------------------------------------------------------------------

fn nested_fault<V: VirtualCpu>(
    vcpu: &mut Vcpu<V>,
    gpa: Gpa,
    direction: Direction,
    now: Nanos,
) -> Result<Reason, Crash> {
    match vcpu.vm.fault(gpa, direction == Direction::Write) {
        Fault::Tracked => return Ok(Reason::TrackedWrite),
        Fault::Stale => return Ok(Reason::StaleMapping),
        Fault::Filled => return Ok(Reason::RamFilled),
        Fault::Device => {}
    }
    if vcpu.hw.event_queued() {
        return Err(Crash::Delivery(gpa));
    }
    emulate(vcpu, now).ok_or(Crash::Instruction(gpa))
}

/// Executes the instruction at RIP against the guest's devices. `None` if it cannot be done.
fn emulate<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos) -> Option<Reason> {
    let mut registers = vcpu.hw.registers();
    let mut bus = GuestBus::new(vcpu.vm, vcpu.index, &mut vcpu.lapic, now);
    let outcome = match hv_emu::fetch(&registers, &mut bus) {
        Ok(decoded) => hv_emu::emulate(&mut registers, &mut bus, &decoded),
        Err(outcome) => outcome,
    };
    let reason = bus.reason();
    match outcome {
        Outcome::Done => {
            vcpu.hw.retire(&registers);
            vcpu.hw.trap();
        }
        Outcome::Again => vcpu.hw.retire(&registers),
        Outcome::Exception(what) => {
            // Iterations of a REP instruction that are done stay done.
            vcpu.hw.retire(&registers);
            raise(vcpu, what);
        }
        // A process ends no VM, by what it runs or by what it puts there after the exit.
        Outcome::Unsupported if registers.cpl == 3 => raise(vcpu, Exception::UD),
        Outcome::Unsupported => return None,
    }
    Some(reason)
}

// ---- Ports ------------------------------------------------------------------------------------------------------------

fn port_access<V: VirtualCpu>(vcpu: &mut Vcpu<V>, port: u16, width: Width, direction: Direction, now: Nanos) {
    let mut bus = GuestBus::new(vcpu.vm, vcpu.index, &mut vcpu.lapic, now);
    let rax = vcpu.hw.gpr(0);
    match direction {
        Direction::Write => bus.port_out(port, width, (rax & width.mask()) as u32),
        Direction::Read => {
            let value = u64::from(bus.port_in(port, width));
            // A 32-bit result clears the upper half of RAX; narrower ones leave the rest.
            let kept = if width == Width::B4 { 0 } else { rax & !width.mask() };
            vcpu.hw.set_gpr(0, kept | value & width.mask());
        }
    }
}

// ---- Registers --------------------------------------------------------------------------------------------------------

fn msr_access<V: VirtualCpu>(vcpu: &mut Vcpu<V>, direction: Direction, now: Nanos) -> Reason {
    let number = vcpu.hw.gpr(1) as u32;
    let (result, reason) = match direction {
        Direction::Read => {
            let value = msr::read(vcpu, number, now);
            if let Ok(value) = value {
                vcpu.hw.set_gpr(0, value & 0xFFFF_FFFF);
                vcpu.hw.set_gpr(2, value >> 32);
            }
            (value.map(|_| ()), Reason::MsrRead)
        }
        Direction::Write => {
            let value = vcpu.hw.gpr(2) << 32 | vcpu.hw.gpr(0) & 0xFFFF_FFFF;
            (msr::write(vcpu, number, value, now), Reason::MsrWrite)
        }
    };
    match result {
        Ok(()) => skip(vcpu, now, reason),
        Err(_) => {
            raise(vcpu, Exception::GP);
            reason
        }
    }
}

fn move_to_cr8<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos) -> Reason {
    move_to_control(vcpu, 8, now, |vcpu, value| {
        vcpu.lapic.set_cr8(u8::try_from(value).ok().filter(|value| *value <= 15)?);
        Some(())
    });
    Reason::Cr8
}

/// What the CPU does at a move to CR4, but for the bits that CPUID hides: those fault.
fn move_to_cr4<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos) -> Reason {
    move_to_control(vcpu, 4, now, |vcpu, value| {
        let (old, registers) = (vcpu.hw.cr4(), vcpu.hw.registers());
        let offered = hv_defs::cpuid::offered_cr4(x86::cpuid);
        let allowed = registers.cpl == 0 && Cr4::may_become(old, value, offered, registers.cr3, registers.efer);
        allowed.then(|| {
            vcpu.hw.set_cr4(value);
            if (old ^ value) & Cr4::FLUSHES.bits() != 0 {
                vcpu.hw.flush_tlb();
            }
        })
    });
    Reason::ControlRegister
}

/// Carries out the move to control register `number` at RIP; `set` refuses a value by `None`, which faults.
fn move_to_control<V: VirtualCpu>(
    vcpu: &mut Vcpu<V>,
    number: u8,
    now: Nanos,
    set: impl FnOnce(&mut Vcpu<V>, u64) -> Option<()>,
) {
    match fetch(vcpu, now).map(|decoded| (decoded.moved_to_control(), decoded.len)) {
        Ok((Some((to, gpr)), length)) if to == number => {
            let wide = vcpu.hw.registers().bitness == hv_emu::Bitness::Bits64;
            let value = vcpu.hw.gpr(gpr) & if wide { u64::MAX } else { 0xFFFF_FFFF };
            match set(vcpu, value) {
                Some(()) => vcpu.hw.skip(length),
                None => raise(vcpu, Exception::GP),
            }
        }
        // The code changed under the CPU's feet: the guest runs what is there now.
        Ok(_) => {}
        Err(Outcome::Exception(what)) => raise(vcpu, what),
        Err(_) => raise(vcpu, Exception::UD),
    }
}

fn xsetbv<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos) -> Reason {
    let value = vcpu.hw.gpr(2) << 32 | vcpu.hw.gpr(0) & 0xFFFF_FFFF;
    let allowed = vcpu.hw.gpr(1) as u32 == 0 && Xcr0::is_valid(value, fpu::supported());
    if vcpu.hw.registers().cpl == 0 && allowed {
        vcpu.guest.set_xcr0(value);
        skip(vcpu, now, Reason::Xsetbv)
    } else {
        raise(vcpu, Exception::GP);
        Reason::Xsetbv
    }
}

// ---- Instruction length -------------------------------------------------------------------------------------------------

/// The encodings, without prefixes, of what exits most and is skipped.
const USUAL: [&[u8]; 4] = [&[0x0F, 0xA2], &[0x0F, 0x30], &[0x0F, 0x32], &[0xF4]];

/// Skips the instruction at RIP, which has been carried out.
fn skip<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos, reason: Reason) -> Reason {
    let length = vcpu.hw.instruction_length().or_else(|| usual_length(vcpu, now));
    match length.map_or_else(|| fetch(vcpu, now).map(|decoded| decoded.len), Ok) {
        Ok(length) => vcpu.hw.skip(length),
        // The code changed under the CPU's feet: let the guest see what is there now.
        Err(Outcome::Exception(what)) => raise(vcpu, what),
        Err(_) => raise(vcpu, Exception::UD),
    }
    reason
}

/// Length of the instruction at RIP, if it is one of the usual ones, without a full decode.
fn usual_length<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos) -> Option<u8> {
    let registers = vcpu.hw.registers();
    let long = registers.bitness == hv_emu::Bitness::Bits64;
    let linear = if long { registers.rip } else { registers.wrap(registers.cs.base.wrapping_add(registers.rip)).0 };
    if linear & 0xFFF == 0xFFF {
        return None;
    }
    let mut bus = GuestBus::new(vcpu.vm, vcpu.index, &mut vcpu.lapic, now);
    let gpa = hv_emu::translate(&registers, &mut bus, Gva(linear), Access::Fetch).ok()?;
    let mut bytes = [0; 2];
    vcpu.vm.read(gpa, &mut bytes).ok()?;
    USUAL.iter().find(|code| bytes.starts_with(code)).map(|code| code.len() as u8)
}

fn fetch<V: VirtualCpu>(vcpu: &mut Vcpu<V>, now: Nanos) -> Result<Decoded, Outcome> {
    let registers = vcpu.hw.registers();
    let mut bus = GuestBus::new(vcpu.vm, vcpu.index, &mut vcpu.lapic, now);
    hv_emu::fetch(&registers, &mut bus)
}

// ---- Report -------------------------------------------------------------------------------------------------------------

/// Says why a guest crashed, with what a developer needs: exit, RIP, bytes, registers, the last exits.
fn report<V: VirtualCpu>(vcpu: &mut Vcpu<V>, crash: Crash) {
    let (vm, id) = (vcpu.vm, vcpu.vm.id().0);
    say!("{vm}: vCPU {} crashed: {crash}, rip={:#x}", vcpu.index, vcpu.hw.rip());
    let now = time::now();
    if !vm.takes_report(now) {
        return;
    }
    match fetch(vcpu, now) {
        Ok(decoded) => {
            let bytes = decoded.bytes.get(..usize::from(decoded.len)).unwrap_or_default();
            say!("vm {id}: code {bytes:02x?}");
        }
        Err(outcome) => say!("vm {id}: code cannot be read: {outcome:x?}"),
    }
    let gpr = vcpu.hw.registers().gpr;
    for (names, values) in GPR_NAMES.chunks(4).zip(gpr.chunks(4)) {
        let pair = |n: usize| (names.get(n).copied().unwrap_or(""), values.get(n).copied().unwrap_or(0));
        let [a, b, c, d] = [pair(0), pair(1), pair(2), pair(3)];
        say!("vm {id}: {}={:#x} {}={:#x} {}={:#x} {}={:#x}", a.0, a.1, b.0, b.1, c.0, c.1, d.0, d.1);
    }
    let mut lines = Lines { id, line: arrayvec::ArrayString::new() };
    let _ = vcpu.hw.describe(&mut lines);
    trace::print(percpu::current(), 32, &mut |line| say!("vm {id}: its CPU: {line}"));
}

const GPR_NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Turns text into whole lines of the log.
struct Lines {
    id: u8,
    line: arrayvec::ArrayString<160>,
}

impl fmt::Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if letter == '\n' {
                say!("vm {}: {}", self.id, self.line);
                self.line.clear();
            } else {
                // Longer lines are cut.
                let _ = self.line.try_push(letter);
            }
        }
        Ok(())
    }
}
