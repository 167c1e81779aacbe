//! Execution of memory and port instructions.

use crate::alu::{self, CF, Op, ZF};
use crate::operand::{Location, MAX_OPERAND, Operand, effective, general, get, linear, set, xmm};
use crate::{Access, Bitness, Bus, Decoded, Exception, Outcome, Registers, string};
use hv_defs::Width;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Executes one instruction. On `Done`, registers, flags and RIP are what the CPU would leave.
pub fn emulate<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, decoded: &Decoded) -> Outcome {
    let mut next = *regs;
    match execute(&mut next, bus, &decoded.instruction) {
        Ok(Step::Done) => {
            *regs = next;
            advance(regs, decoded.len);
            Outcome::Done
        }
        Ok(Step::Again) => {
            *regs = next;
            Outcome::Again
        }
        Ok(Step::Unsupported) => Outcome::Unsupported,
        Err(Stop::Fault(exception)) => Outcome::Exception(exception),
        Err(Stop::FaultAfter(exception)) => {
            // A string instruction faulted: its finished iterations count.
            *regs = next;
            Outcome::Exception(exception)
        }
    }
}

/// Moves RIP past an instruction of `len` bytes.
fn advance(regs: &mut Registers, len: u8) {
    let rip = regs.rip.wrapping_add(u64::from(len));
    regs.rip = match regs.bitness {
        Bitness::Bits64 => rip,
        Bitness::Bits32 => rip & 0xFFFF_FFFF,
        Bitness::Bits16 => rip & 0xFFFF,
    };
}

/// How far an instruction got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Done,
    Again,
    Unsupported,
}

/// Why an instruction stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    Fault(Exception),
    FaultAfter(Exception),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

type Result<T> = core::result::Result<T, Stop>;

fn execute<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Mov | M::Movnti => copy(regs, bus, i, |value, _| value),
        M::Movbe => copy(regs, bus, i, swap_bytes),
        M::Movzx => extend(regs, bus, i, |value, _| value),
        M::Movsx | M::Movsxd => extend(regs, bus, i, sign_extend),
        M::Add => binary(regs, bus, i, Op::Add, Keep::Result),
        M::Adc => binary(regs, bus, i, Op::Adc, Keep::Result),
        M::Sub => binary(regs, bus, i, Op::Sub, Keep::Result),
        M::Sbb => binary(regs, bus, i, Op::Sbb, Keep::Result),
        M::And => binary(regs, bus, i, Op::And, Keep::Result),
        M::Or => binary(regs, bus, i, Op::Or, Keep::Result),
        M::Xor => binary(regs, bus, i, Op::Xor, Keep::Result),
        M::Cmp => binary(regs, bus, i, Op::Sub, Keep::FlagsOnly),
        M::Test => binary(regs, bus, i, Op::And, Keep::FlagsOnly),
        M::Inc | M::Dec | M::Neg | M::Not => unary(regs, bus, i),
        M::Xchg | M::Xadd => exchange(regs, bus, i),
        M::Cmpxchg => compare_exchange(regs, bus, i),
        M::Cmpxchg8b => compare_exchange_pair(regs, bus, i, Width::B4),
        M::Cmpxchg16b => compare_exchange_pair(regs, bus, i, Width::B8),
        M::Bt | M::Bts | M::Btr | M::Btc => bit_test(regs, bus, i),
        M::Push => push(regs, bus, i),
        M::Pop => pop(regs, bus, i),
        M::Movups
        | M::Movaps
        | M::Movupd
        | M::Movapd
        | M::Movdqu
        | M::Movdqa
        | M::Movntdq
        | M::Movntps
        | M::Movntpd
        | M::Movntdqa
        | M::Lddqu => vector_move(regs, bus, i, MAX_OPERAND),
        M::Movq => vector_move(regs, bus, i, 8),
        M::Movd => vector_move(regs, bus, i, 4),
        M::In => port_in(regs, bus, i),
        M::Out => port_out(regs, bus, i),
        _ => string::execute(regs, bus, i),
    }
}

fn copy<B: Bus + ?Sized>(
    regs: &mut Registers,
    bus: &mut B,
    i: &Instruction,
    change: fn(u64, Width) -> u64,
) -> Result<Step> {
    let Some(source) = Operand::resolve(regs, bus, i, 1, Access::Read)? else {
        return Ok(Step::Unsupported);
    };
    let Some(target) = Operand::resolve(regs, bus, i, 0, Access::Write)? else {
        return Ok(Step::Unsupported);
    };
    let Some(width) = target.width() else {
        return Ok(Step::Unsupported);
    };
    let value = change(source.load(regs, bus), width);
    target.store(regs, bus, value);
    Ok(Step::Done)
}

fn swap_bytes(value: u64, width: Width) -> u64 {
    value.swap_bytes() >> (64 - 8 * width.bytes())
}

fn sign_extend(value: u64, width: Width) -> u64 {
    let spare = 64 - 8 * width.bytes();
    ((value << spare) as i64 >> spare) as u64
}

fn extend<B: Bus + ?Sized>(
    regs: &mut Registers,
    bus: &mut B,
    i: &Instruction,
    change: fn(u64, Width) -> u64,
) -> Result<Step> {
    let Some(source) = Operand::resolve(regs, bus, i, 1, Access::Read)? else {
        return Ok(Step::Unsupported);
    };
    let (Some(width), Some(target)) = (source.width(), general(i.op0_register())) else {
        return Ok(Step::Unsupported);
    };
    let value = change(source.load(regs, bus), width);
    set(regs, target, value);
    Ok(Step::Done)
}

/// Whether an operation stores its result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Result,
    FlagsOnly,
}

fn binary<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction, op: Op, keep: Keep) -> Result<Step> {
    let access = if keep == Keep::Result { Access::Write } else { Access::Read };
    let Some(target) = Operand::resolve(regs, bus, i, 0, access)? else {
        return Ok(Step::Unsupported);
    };
    let Some(source) = Operand::resolve(regs, bus, i, 1, Access::Read)? else {
        return Ok(Step::Unsupported);
    };
    let Some(width) = target.width() else {
        return Ok(Step::Unsupported);
    };
    let (a, b) = (target.load(regs, bus), source.load(regs, bus));
    let (result, flags) = alu::binary(op, width, a, b, regs.rflags);
    if keep == Keep::Result {
        target.store(regs, bus, result);
    }
    regs.rflags = alu::merge(regs.rflags, flags, 0);
    Ok(Step::Done)
}

fn unary<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let Some(target) = Operand::resolve(regs, bus, i, 0, Access::Write)? else {
        return Ok(Step::Unsupported);
    };
    let Some(width) = target.width() else {
        return Ok(Step::Unsupported);
    };
    let value = target.load(regs, bus);
    let (result, flags, kept) = match i.mnemonic() {
        Mnemonic::Inc => {
            let (result, flags) = alu::binary(Op::Add, width, value, 1, 0);
            (result, flags, CF)
        }
        Mnemonic::Dec => {
            let (result, flags) = alu::binary(Op::Sub, width, value, 1, 0);
            (result, flags, CF)
        }
        Mnemonic::Neg => {
            let (result, flags) = alu::binary(Op::Sub, width, 0, value, 0);
            (result, flags, 0)
        }
        _ => (!value & width.mask(), 0, alu::STATUS),
    };
    target.store(regs, bus, result);
    regs.rflags = alu::merge(regs.rflags, flags, kept);
    Ok(Step::Done)
}

/// XCHG and XADD.
fn exchange<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let Some(first) = Operand::resolve(regs, bus, i, 0, Access::Write)? else {
        return Ok(Step::Unsupported);
    };
    let Some(second) = Operand::resolve(regs, bus, i, 1, Access::Write)? else {
        return Ok(Step::Unsupported);
    };
    let Some(width) = first.width() else {
        return Ok(Step::Unsupported);
    };
    let (a, b) = (first.load(regs, bus), second.load(regs, bus));
    if i.mnemonic() == Mnemonic::Xadd {
        let (sum, flags) = alu::binary(Op::Add, width, a, b, 0);
        second.store(regs, bus, a);
        first.store(regs, bus, sum);
        regs.rflags = alu::merge(regs.rflags, flags, 0);
    } else {
        second.store(regs, bus, a);
        first.store(regs, bus, b);
    }
    Ok(Step::Done)
}

fn compare_exchange<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let Some(target) = Operand::resolve(regs, bus, i, 0, Access::Write)? else {
        return Ok(Step::Unsupported);
    };
    let Some(source) = Operand::resolve(regs, bus, i, 1, Access::Read)? else {
        return Ok(Step::Unsupported);
    };
    let accumulator = match target.width() {
        Some(Width::B1) => Register::AL,
        Some(Width::B2) => Register::AX,
        Some(Width::B4) => Register::EAX,
        Some(Width::B8) => Register::RAX,
        None => return Ok(Step::Unsupported),
    };
    let Some(accumulator) = general(accumulator) else {
        return Ok(Step::Unsupported);
    };
    let old = target.load(regs, bus);
    let (_, flags) = alu::binary(Op::Sub, accumulator.width, get(regs, accumulator), old, 0);
    if flags & ZF != 0 {
        let new = source.load(regs, bus);
        target.store(regs, bus, new);
    } else {
        // The destination is written either way, as the locked CPU cycle does.
        target.store(regs, bus, old);
        set(regs, accumulator, old);
    }
    regs.rflags = alu::merge(regs.rflags, flags, 0);
    Ok(Step::Done)
}

/// CMPXCHG8B and CMPXCHG16B: `half` is the width of each register of the pairs.
fn compare_exchange_pair<B: Bus + ?Sized>(
    regs: &mut Registers,
    bus: &mut B,
    i: &Instruction,
    half: Width,
) -> Result<Step> {
    let bits = 8 * half.bytes() as u32;
    let address = effective(regs, i);
    if half == Width::B8 && address.0 & 0xF != 0 {
        return Err(Exception::GP.into());
    }
    let location = Location::new(regs, bus, address, 2 * half.bytes(), Access::Write)?;
    let old = location.load(bus);
    let pair = |low: u64, high: u64| u128::from(low & half.mask()) | (u128::from(high & half.mask()) << bits);
    let [rax, rcx, rdx, rbx, ..] = regs.gpr;
    if old == pair(rax, rdx) {
        location.store(bus, pair(rbx, rcx));
        regs.rflags |= ZF;
    } else {
        location.store(bus, old);
        let registers = if half == Width::B8 { [Register::RAX, Register::RDX] } else { [Register::EAX, Register::EDX] };
        for (register, value) in registers.into_iter().zip([old as u64, (old >> bits) as u64]) {
            if let Some(gpr) = general(register) {
                set(regs, gpr, value & half.mask());
            }
        }
        regs.rflags &= !ZF;
    }
    Ok(Step::Done)
}

/// BT, BTS, BTR, BTC: with a register index the bit string reaches beyond the operand (SDM 2A "BT").
fn bit_test<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let Some(index) = Operand::resolve(regs, bus, i, 1, Access::Read)? else {
        return Ok(Step::Unsupported);
    };
    let access = if i.mnemonic() == Mnemonic::Bt { Access::Read } else { Access::Write };
    let bit = index.load(regs, bus);
    let target = match (i.op0_kind(), index) {
        (OpKind::Memory, Operand::Register(gpr)) => {
            let bits = 8 * gpr.width.bytes() as u64;
            let signed = sign_extend(bit, gpr.width) as i64;
            let unit = signed.div_euclid(bits as i64).wrapping_mul(gpr.width.bytes() as i64);
            let address = effective(regs, i).wrapping_add(unit as u64);
            let address =
                hv_defs::Gva(if regs.bitness == Bitness::Bits64 { address.0 } else { address.0 & 0xFFFF_FFFF });
            let location = Location::new(regs, bus, address, gpr.width.bytes(), access)?;
            Some(Operand::Memory(location, gpr.width))
        }
        _ => Operand::resolve(regs, bus, i, 0, access)?,
    };
    let Some(target) = target else {
        return Ok(Step::Unsupported);
    };
    let Some(width) = target.width() else {
        return Ok(Step::Unsupported);
    };
    let mask = 1u64 << (bit & (8 * width.bytes() as u64 - 1));
    let value = target.load(regs, bus);
    let result = match i.mnemonic() {
        Mnemonic::Bts => Some(value | mask),
        Mnemonic::Btr => Some(value & !mask),
        Mnemonic::Btc => Some(value ^ mask),
        _ => None,
    };
    if let Some(result) = result {
        target.store(regs, bus, result);
    }
    regs.rflags = if value & mask != 0 { regs.rflags | CF } else { regs.rflags & !CF };
    Ok(Step::Done)
}

/// PUSH of a memory operand.
fn push<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let Some(source) = Operand::resolve(regs, bus, i, 0, Access::Read)? else {
        return Ok(Step::Unsupported);
    };
    let Some(width) = source.width().filter(|width| *width != Width::B1) else {
        return Ok(Step::Unsupported);
    };
    let Some(pointer) = stack_pointer(regs) else {
        return Ok(Step::Unsupported);
    };
    let value = source.load(regs, bus);
    let top = get(regs, pointer).wrapping_sub(width.bytes() as u64) & pointer.width.mask();
    let address = linear(regs, Register::SS, top);
    let location = Location::new(regs, bus, address, width.bytes(), Access::Write)?;
    location.store(bus, u128::from(value));
    set(regs, pointer, top);
    Ok(Step::Done)
}

/// POP into a memory operand; the address uses the incremented RSP (SDM 2B "POP").
fn pop<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let Some(width) = crate::operand::memory_width(i).filter(|_| i.op0_kind() == OpKind::Memory) else {
        return Ok(Step::Unsupported);
    };
    let Some(pointer) = stack_pointer(regs) else {
        return Ok(Step::Unsupported);
    };
    let top = get(regs, pointer);
    let address = linear(regs, Register::SS, top);
    let value = Location::new(regs, bus, address, width.bytes(), Access::Read)?.load(bus);
    let mut after = *regs;
    set(&mut after, pointer, top.wrapping_add(width.bytes() as u64) & pointer.width.mask());
    let target = Location::new(&after, bus, effective(&after, i), width.bytes(), Access::Write)?;
    target.store(bus, value);
    *regs = after;
    Ok(Step::Done)
}

// Stack width follows SS.B; outside 64-bit code that is the code size in every system we run.
fn stack_pointer(regs: &Registers) -> Option<crate::operand::Gpr> {
    general(match regs.bitness {
        Bitness::Bits64 => Register::RSP,
        Bitness::Bits32 => Register::ESP,
        Bitness::Bits16 => Register::SP,
    })
}

/// SSE moves of `len` bytes between an XMM register and memory.
fn vector_move<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction, len: usize) -> Result<Step> {
    if i.op1_kind() == OpKind::Memory {
        let Some(target) = xmm(i.op0_register()) else {
            return Ok(Step::Unsupported);
        };
        let location = Location::new(regs, bus, effective(regs, i), len, Access::Read)?;
        if bus.xmm(target).is_none() {
            return Ok(Step::Unsupported);
        }
        let value = location.load(bus);
        return Ok(bus.set_xmm(target, value).map_or(Step::Unsupported, |()| Step::Done));
    }
    if i.op0_kind() != OpKind::Memory {
        return Ok(Step::Unsupported);
    }
    let Some(value) = xmm(i.op1_register()).and_then(|index| bus.xmm(index)) else {
        return Ok(Step::Unsupported);
    };
    let location = Location::new(regs, bus, effective(regs, i), len, Access::Write)?;
    location.store(bus, value);
    Ok(Step::Done)
}

fn port_in<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let (Some(target), Some(port)) = (general(i.op0_register()), port_number(regs, i, 1)) else {
        return Ok(Step::Unsupported);
    };
    let value = bus.port_read(port, target.width);
    set(regs, target, u64::from(value));
    Ok(Step::Done)
}

fn port_out<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, i: &Instruction) -> Result<Step> {
    let (Some(source), Some(port)) = (general(i.op1_register()), port_number(regs, i, 0)) else {
        return Ok(Step::Unsupported);
    };
    bus.port_write(port, source.width, get(regs, source) as u32);
    Ok(Step::Done)
}

fn port_number(regs: &Registers, i: &Instruction, operand: u32) -> Option<u16> {
    match i.op_kind(operand) {
        OpKind::Register => general(i.op_register(operand)).map(|gpr| get(regs, gpr) as u16),
        _ => i.try_immediate(operand).ok().map(|value| value as u16 & 0xFF),
    }
}
