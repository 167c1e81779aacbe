//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, with REP.

use crate::alu::{self, Op, ZF};
use crate::execute::{Step, Stop};
use crate::operand::{Gpr, Location, address_mask, general, get, linear, set};
use crate::{Access, Bitness, Bus, Exception, Registers};
use hv_defs::Width;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Iterations in one exit; the guest is entered again after them, so that interrupts are taken as on a CPU.
const BATCH: u32 = 1024;

const RFLAGS_DF: u64 = 1 << 10;

/// Executes a string instruction.
pub fn execute<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step, Stop> {
    let Some(string) = StringOp::new(i) else {
        return Ok(Step::Unsupported);
    };
    if !i.has_rep_prefix() && !i.has_repne_prefix() {
        string.once(regs, bus)?;
        return Ok(Step::Done);
    }
    let Some(counter) = string.counter() else {
        return Ok(Step::Unsupported);
    };
    for _ in 0..BATCH {
        let count = get(regs, counter);
        if count == 0 {
            return Ok(Step::Done);
        }
        string.once(regs, bus).map_err(Stop::FaultAfter)?;
        set(regs, counter, count.wrapping_sub(1));
        if count == 1 || string.ends(regs, i) {
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
    address: Bitness,
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
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Bitness::Bits16),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Bitness::Bits32),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Bitness::Bits64),
            _ => None,
        })?;
        Some(Self { action, width, address, source_segment: i.memory_segment() })
    }

    fn register(&self, names: [Register; 3]) -> Option<Gpr> {
        let [short, medium, long] = names;
        general(match self.address {
            Bitness::Bits16 => short,
            Bitness::Bits32 => medium,
            Bitness::Bits64 => long,
        })
    }

    fn counter(&self) -> Option<Gpr> {
        self.register([Register::CX, Register::ECX, Register::RCX])
    }

    /// One iteration; on an exception no register has changed.
    fn once<B: Bus + ?Sized>(&self, regs: &mut Registers, bus: &mut B) -> Result<(), Exception> {
        let access = match self.action {
            Action::Cmps | Action::Scas => Access::Read,
            _ => Access::Write,
        };
        let uses_source = matches!(self.action, Action::Movs | Action::Lods | Action::Cmps | Action::Outs);
        let uses_target = !matches!(self.action, Action::Lods | Action::Outs);
        let source = if uses_source { Some(self.source(regs, bus)?) } else { None };
        let target = if uses_target { Some(self.target(regs, bus, access)?) } else { None };
        self.act(regs, bus, source, target);
        if uses_source {
            self.step(regs, [Register::SI, Register::ESI, Register::RSI]);
        }
        if uses_target {
            self.step(regs, [Register::DI, Register::EDI, Register::RDI]);
        }
        Ok(())
    }

    fn act<B: Bus + ?Sized>(
        &self,
        regs: &mut Registers,
        bus: &mut B,
        source: Option<Location>,
        target: Option<Location>,
    ) {
        let accumulator = general(match self.width {
            Width::B1 => Register::AL,
            Width::B2 => Register::AX,
            Width::B4 => Register::EAX,
            Width::B8 => Register::RAX,
        });
        let held = accumulator.map_or(0, |gpr| get(regs, gpr));
        let port = regs.gpr.get(2).map_or(0, |rdx| *rdx as u16);
        let loaded = source.map_or(0, |location| location.load(bus) as u64);
        let store = |bus: &mut B, value: u64| {
            if let Some(location) = target {
                location.store(bus, u128::from(value));
            }
        };
        let compare = |regs: &mut Registers, a: u64, b: u64| {
            let (_, flags) = alu::binary(Op::Sub, self.width, a, b, 0);
            regs.rflags = alu::merge(regs.rflags, flags, 0);
        };
        match self.action {
            Action::Movs => store(bus, loaded),
            Action::Stos => store(bus, held),
            Action::Lods => {
                if let Some(gpr) = accumulator {
                    set(regs, gpr, loaded);
                }
            }
            Action::Cmps => {
                let other = target.map_or(0, |location| location.load(bus) as u64);
                compare(regs, loaded, other);
            }
            Action::Scas => {
                let other = target.map_or(0, |location| location.load(bus) as u64);
                compare(regs, held, other);
            }
            Action::Ins => {
                let value = bus.port_read(port, self.width);
                store(bus, u64::from(value));
            }
            Action::Outs => bus.port_write(port, self.width, loaded as u32),
        }
    }

    fn source<B: Bus + ?Sized>(&self, regs: &Registers, bus: &mut B) -> Result<Location, Exception> {
        self.locate(regs, bus, self.source_segment, [Register::SI, Register::ESI, Register::RSI], Access::Read)
    }

    fn target<B: Bus + ?Sized>(&self, regs: &Registers, bus: &mut B, access: Access) -> Result<Location, Exception> {
        self.locate(regs, bus, Register::ES, [Register::DI, Register::EDI, Register::RDI], access)
    }

    fn locate<B: Bus + ?Sized>(
        &self,
        regs: &Registers,
        bus: &mut B,
        segment: Register,
        pointer: [Register; 3],
        access: Access,
    ) -> Result<Location, Exception> {
        let offset = self.register(pointer).map_or(0, |gpr| get(regs, gpr)) & address_mask(self.address);
        Location::new(regs, bus, linear(regs, segment, offset), self.width.bytes(), access)
    }

    fn step(&self, regs: &mut Registers, pointer: [Register; 3]) {
        let bytes = self.width.bytes() as u64;
        if let Some(gpr) = self.register(pointer) {
            let value = get(regs, gpr);
            let next = if regs.rflags & RFLAGS_DF != 0 { value.wrapping_sub(bytes) } else { value.wrapping_add(bytes) };
            set(regs, gpr, next);
        }
    }

    /// REPE and REPNE end on ZF for the comparing instructions only.
    fn ends(&self, regs: &Registers, i: &Instruction) -> bool {
        if !matches!(self.action, Action::Cmps | Action::Scas) {
            return false;
        }
        let zero = regs.rflags & ZF != 0;
        if i.has_repne_prefix() { zero } else { !zero }
    }
}
