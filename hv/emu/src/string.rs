//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with REP.

use crate::alu::{self, Op, ZF};
use crate::execute::{Step, Stop};
use crate::operand::{Cpu, Gpr, Location, get, set};
use crate::{Access, Bus, Exception, ports};
use hv_defs::Width;
use hv_defs::regs::Rflags;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Iterations in one exit; the guest is entered again after them, so that interrupts are taken as on a CPU.
const BATCH: u32 = 1024;

/// Numbers of the registers that string instructions imply.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

/// Executes a string instruction.
pub fn execute<B: Bus + ?Sized>(cpu: &mut Cpu<'_, B>) -> Result<Step, Stop> {
    let string = StringOp::new(cpu.i).ok_or(Stop::Unsupported)?;
    if !cpu.i.has_rep_prefix() && !cpu.i.has_repne_prefix() {
        string.once(cpu)?;
        return Ok(Step::Done);
    }
    let counter = Gpr::new(RCX, string.address);
    for _ in 0..BATCH {
        let count = get(cpu.regs, counter);
        if count == 0 {
            return Ok(Step::Done);
        }
        string.once(cpu).map_err(Stop::FaultAfter)?;
        set(cpu.regs, counter, count.wrapping_sub(1));
        if count == 1 || string.ends(cpu) {
            return Ok(Step::Done);
        }
    }
    Ok(Step::Again)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
    Ins,
    Outs,
}

struct StringOp {
    action: Action,
    width: Width,
    /// Of an address.
    address: Width,
    source_segment: Register,
}

impl StringOp {
    fn new(i: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let (action, width) = match i.mnemonic() {
            M::Movsb => (Action::Movs, Width::B1),
            M::Movsw => (Action::Movs, Width::B2),
            M::Movsd if i.op0_kind() != OpKind::Register && i.op1_kind() != OpKind::Register => {
                (Action::Movs, Width::B4)
            }
            M::Movsq => (Action::Movs, Width::B8),
            M::Stosb => (Action::Stos, Width::B1),
            M::Stosw => (Action::Stos, Width::B2),
            M::Stosd => (Action::Stos, Width::B4),
            M::Stosq => (Action::Stos, Width::B8),
            M::Lodsb => (Action::Lods, Width::B1),
            M::Lodsw => (Action::Lods, Width::B2),
            M::Lodsd => (Action::Lods, Width::B4),
            M::Lodsq => (Action::Lods, Width::B8),
            M::Cmpsb => (Action::Cmps, Width::B1),
            M::Cmpsw => (Action::Cmps, Width::B2),
            M::Cmpsd if i.op0_kind() != OpKind::Register => (Action::Cmps, Width::B4),
            M::Cmpsq => (Action::Cmps, Width::B8),
            M::Scasb => (Action::Scas, Width::B1),
            M::Scasw => (Action::Scas, Width::B2),
            M::Scasd => (Action::Scas, Width::B4),
            M::Scasq => (Action::Scas, Width::B8),
            M::Insb => (Action::Ins, Width::B1),
            M::Insw => (Action::Ins, Width::B2),
            M::Insd => (Action::Ins, Width::B4),
            M::Outsb => (Action::Outs, Width::B1),
            M::Outsw => (Action::Outs, Width::B2),
            M::Outsd => (Action::Outs, Width::B4),
            _ => return None,
        };
        let address = (0..i.op_count()).find_map(|n| match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::B2),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::B4),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::B8),
            _ => None,
        })?;
        Some(Self { action, width, address, source_segment: i.memory_segment() })
    }

    /// One iteration; on an exception no register has changed.
    fn once<B: Bus + ?Sized>(&self, cpu: &mut Cpu<'_, B>) -> Result<(), Exception> {
        if matches!(self.action, Action::Ins | Action::Outs) {
            let port = get(cpu.regs, Gpr::new(RDX, Width::B2)) as u16;
            ports::check(cpu, port, self.width)?;
        }
        let compares = matches!(self.action, Action::Cmps | Action::Scas);
        let access = if compares { Access::Read } else { Access::Write };
        let uses_source = matches!(self.action, Action::Movs | Action::Lods | Action::Cmps | Action::Outs);
        let uses_target = !matches!(self.action, Action::Lods | Action::Outs);
        let source = if uses_source { Some(self.locate(cpu, self.source_segment, RSI, Access::Read)?) } else { None };
        let target = if uses_target { Some(self.locate(cpu, Register::ES, RDI, access)?) } else { None };
        self.act(cpu, source, target);
        if uses_source {
            self.step(cpu, RSI);
        }
        if uses_target {
            self.step(cpu, RDI);
        }
        Ok(())
    }

    fn act<B: Bus + ?Sized>(&self, cpu: &mut Cpu<'_, B>, source: Option<Location>, target: Option<Location>) {
        let accumulator = Gpr::new(RAX, self.width);
        let held = get(cpu.regs, accumulator);
        let port = get(cpu.regs, Gpr::new(RDX, Width::B2)) as u16;
        let loaded = source.map_or(0, |location| location.load(cpu.bus) as u64);
        let stored = match self.action {
            Action::Movs => loaded,
            Action::Stos => held,
            Action::Ins => u64::from(cpu.bus.port_read(port, self.width)),
            Action::Lods => return set(cpu.regs, accumulator, loaded),
            Action::Outs => return cpu.bus.port_write(port, self.width, loaded as u32),
            Action::Cmps | Action::Scas => {
                let first = if self.action == Action::Cmps { loaded } else { held };
                let second = target.map_or(0, |location| location.load(cpu.bus) as u64);
                let (_, flags) = alu::binary(Op::Sub, self.width, first, second, 0);
                return cpu.set_flags(flags, 0);
            }
        };
        if let Some(location) = target {
            location.store(cpu.bus, u128::from(stored));
        }
    }

    fn locate<B: Bus + ?Sized>(
        &self,
        cpu: &mut Cpu<'_, B>,
        segment: Register,
        pointer: usize,
        access: Access,
    ) -> Result<Location, Exception> {
        let offset = get(cpu.regs, Gpr::new(pointer, self.address));
        cpu.locate(segment, offset, self.width.bytes(), access)
    }

    fn step<B: Bus + ?Sized>(&self, cpu: &mut Cpu<'_, B>, pointer: usize) {
        let gpr = Gpr::new(pointer, self.address);
        let down = cpu.regs.rflags & Rflags::DF.bits() != 0;
        let (value, bytes) = (get(cpu.regs, gpr), self.width.bytes() as u64);
        set(cpu.regs, gpr, if down { value.wrapping_sub(bytes) } else { value.wrapping_add(bytes) });
    }

    /// REPE and REPNE end on ZF for the comparing instructions only.
    fn ends<B: Bus + ?Sized>(&self, cpu: &Cpu<'_, B>) -> bool {
        let zero = cpu.regs.rflags & ZF != 0;
        matches!(self.action, Action::Cmps | Action::Scas) && zero == cpu.i.has_repne_prefix()
    }
}
