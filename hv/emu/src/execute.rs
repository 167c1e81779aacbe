//! Execution of memory and port instructions.

use crate::alu::{self, CF, Op, ZF};
use crate::operand::{Cpu, Gpr, MAX_OPERAND, Operand, effective, general, get, memory_width, set, vector};
use crate::{Access, Bitness, Bus, Decoded, Exception, Outcome, Registers, Upper, ports, segment, string};
use hv_defs::regs::{Cr0, Cr4};
use hv_defs::{Segment, Width};
use iced_x86::{Mnemonic, OpKind, Register};

/// Executes one instruction. On `Done`, registers, flags and RIP are what the CPU would leave.
pub fn emulate<B: Bus + ?Sized>(regs: &mut Registers, bus: &mut B, decoded: &Decoded) -> Outcome {
    let mut next = *regs;
    let mut cpu = Cpu { regs: &mut next, bus, i: &decoded.instruction };
    let outcome = match cpu.execute() {
        Ok(Step::Done) => {
            next.rip = next.rip.wrapping_add(u64::from(decoded.len)) & next.bitness.width().mask();
            Outcome::Done
        }
        Ok(Step::Again) => Outcome::Again,
        // A string instruction faulted: its finished iterations count.
        Err(Stop::FaultAfter(exception)) => Outcome::Exception(exception),
        Err(Stop::Fault(exception)) => return Outcome::Exception(exception),
        Err(Stop::Unsupported) => return Outcome::Unsupported,
    };
    *regs = next;
    outcome
}

/// How far an instruction got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Done,
    Again,
}

/// Why an instruction stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    Fault(Exception),
    FaultAfter(Exception),
    Unsupported,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

type Result<T> = core::result::Result<T, Stop>;

/// Whether an operation stores its result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Result,
    FlagsOnly,
}

impl<B: Bus + ?Sized> Cpu<'_, B> {
    fn execute(&mut self) -> Result<Step> {
        use Mnemonic as M;
        match self.i.mnemonic() {
            M::Mov | M::Movnti => self.copy(|value, _| value)?,
            M::Movbe => self.copy(swap_bytes)?,
            M::Movzx => self.extend(|value, _| value)?,
            M::Movsx | M::Movsxd => self.extend(sign_extend)?,
            M::Add => self.binary(Op::Add, Keep::Result)?,
            M::Adc => self.binary(Op::Adc, Keep::Result)?,
            M::Sub => self.binary(Op::Sub, Keep::Result)?,
            M::Sbb => self.binary(Op::Sbb, Keep::Result)?,
            M::And => self.binary(Op::And, Keep::Result)?,
            M::Or => self.binary(Op::Or, Keep::Result)?,
            M::Xor => self.binary(Op::Xor, Keep::Result)?,
            M::Cmp => self.binary(Op::Sub, Keep::FlagsOnly)?,
            M::Test => self.binary(Op::And, Keep::FlagsOnly)?,
            M::Inc | M::Dec | M::Neg | M::Not => self.unary()?,
            M::Xchg | M::Xadd => self.exchange()?,
            M::Cmpxchg => self.compare_exchange()?,
            M::Cmpxchg8b => self.compare_exchange_pair(Width::B4)?,
            M::Cmpxchg16b => self.compare_exchange_pair(Width::B8)?,
            M::Bt | M::Bts | M::Btr | M::Btc => self.bit_test()?,
            M::Push => self.push()?,
            M::Pop => self.pop()?,
            M::Movups | M::Movaps | M::Movupd | M::Movapd | M::Movdqu | M::Movdqa => {
                self.vector_move(16, Upper::Kept)?
            }
            M::Movntdq | M::Movntps | M::Movntpd | M::Movntdqa | M::Lddqu => self.vector_move(16, Upper::Kept)?,
            M::Movq => self.vector_move(8, Upper::Kept)?,
            M::Movd => self.vector_move(4, Upper::Kept)?,
            M::Vmovups | M::Vmovaps | M::Vmovupd | M::Vmovapd => self.vector_move(MAX_OPERAND, Upper::Loaded)?,
            M::Vmovdqu | M::Vmovdqa | M::Vlddqu => self.vector_move(MAX_OPERAND, Upper::Loaded)?,
            M::Vmovntdq | M::Vmovntps | M::Vmovntpd | M::Vmovntdqa => self.vector_move(MAX_OPERAND, Upper::Loaded)?,
            M::Vmovq => self.vector_move(8, Upper::Loaded)?,
            M::Vmovd => self.vector_move(4, Upper::Loaded)?,
            M::In => self.port_in()?,
            M::Out => self.port_out()?,
            _ => return string::execute(self),
        }
        Ok(Step::Done)
    }

    fn copy(&mut self, change: fn(u64, Width) -> u64) -> Result<()> {
        let source = self.operand(1, Access::Read)?;
        let (target, width) = self.sized(0, Access::Write)?;
        let value = change(self.load(source), width);
        self.store(target, value);
        Ok(())
    }

    fn extend(&mut self, change: fn(u64, Width) -> u64) -> Result<()> {
        let (source, width) = self.sized(1, Access::Read)?;
        let target = self.register(0)?;
        let value = change(self.load(source), width);
        set(self.regs, target, value);
        Ok(())
    }

    fn binary(&mut self, op: Op, keep: Keep) -> Result<()> {
        let access = if keep == Keep::Result { Access::Write } else { Access::Read };
        let (target, width) = self.sized(0, access)?;
        let source = self.operand(1, Access::Read)?;
        let (a, b) = (self.load(target), self.load(source));
        let (result, flags) = alu::binary(op, width, a, b, self.regs.rflags);
        if keep == Keep::Result {
            self.store(target, result);
        }
        self.set_flags(flags, 0);
        Ok(())
    }

    fn unary(&mut self) -> Result<()> {
        let (target, width) = self.sized(0, Access::Write)?;
        let value = self.load(target);
        let ((result, flags), kept) = match self.i.mnemonic() {
            Mnemonic::Inc => (alu::binary(Op::Add, width, value, 1, 0), CF),
            Mnemonic::Dec => (alu::binary(Op::Sub, width, value, 1, 0), CF),
            Mnemonic::Neg => (alu::binary(Op::Sub, width, 0, value, 0), 0),
            _ => ((!value & width.mask(), 0), alu::STATUS),
        };
        self.store(target, result);
        self.set_flags(flags, kept);
        Ok(())
    }

    /// XCHG and XADD.
    fn exchange(&mut self) -> Result<()> {
        let (first, width) = self.sized(0, Access::Write)?;
        let second = self.operand(1, Access::Write)?;
        let (a, b) = (self.load(first), self.load(second));
        self.store(second, a);
        if self.i.mnemonic() == Mnemonic::Xadd {
            let (sum, flags) = alu::binary(Op::Add, width, a, b, 0);
            self.store(first, sum);
            self.set_flags(flags, 0);
        } else {
            self.store(first, b);
        }
        Ok(())
    }

    fn compare_exchange(&mut self) -> Result<()> {
        let (target, width) = self.sized(0, Access::Write)?;
        let source = self.operand(1, Access::Read)?;
        let accumulator = Gpr::new(0, width);
        let old = self.load(target);
        let (_, flags) = alu::binary(Op::Sub, width, get(self.regs, accumulator), old, 0);
        if flags & ZF != 0 {
            let new = self.load(source);
            self.store(target, new);
        } else {
            // The destination is written either way, as the locked CPU cycle does.
            self.store(target, old);
            set(self.regs, accumulator, old);
        }
        self.set_flags(flags, 0);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B: `half` is the width of each register of the pairs.
    fn compare_exchange_pair(&mut self, half: Width) -> Result<()> {
        let bits = 8 * half.bytes() as u32;
        let location = self.memory(2 * half.bytes(), Access::Write)?;
        if half == Width::B8 && !location.is_aligned(16) {
            return Err(Exception::GP.into());
        }
        let old = location.load(self.bus);
        let pair = |low: u64, high: u64| u128::from(low & half.mask()) | (u128::from(high & half.mask()) << bits);
        let [rax, rcx, rdx, rbx, ..] = self.regs.gpr;
        if old == pair(rax, rdx) {
            location.store(self.bus, pair(rbx, rcx));
            self.regs.rflags |= ZF;
        } else {
            location.store(self.bus, old);
            set(self.regs, Gpr::new(0, half), old as u64);
            set(self.regs, Gpr::new(2, half), (old >> bits) as u64);
            self.regs.rflags &= !ZF;
        }
        Ok(())
    }

    /// BT, BTS, BTR, BTC: with a register index the bit string reaches beyond the operand (SDM 2A "BT").
    fn bit_test(&mut self) -> Result<()> {
        let index = self.operand(1, Access::Read)?;
        let access = if self.i.mnemonic() == Mnemonic::Bt { Access::Read } else { Access::Write };
        let bit = self.load(index);
        let (target, width) = match (self.i.op0_kind(), index) {
            (OpKind::Memory, Operand::Register(Gpr { width, .. })) => {
                let bytes = width.bytes() as i64;
                let unit = (sign_extend(bit, width) as i64).div_euclid(8 * bytes).wrapping_mul(bytes);
                let place = effective(self.regs, self.i);
                let offset = place.offset.wrapping_add(unit as u64) & place.mask;
                (Operand::Memory(self.locate(place.segment, offset, width.bytes(), access)?, width), width)
            }
            _ => self.sized(0, access)?,
        };
        let mask = 1u64 << (bit & (8 * width.bytes() as u64 - 1));
        let value = self.load(target);
        match self.i.mnemonic() {
            Mnemonic::Bts => self.store(target, value | mask),
            Mnemonic::Btr => self.store(target, value & !mask),
            Mnemonic::Btc => self.store(target, value ^ mask),
            _ => {}
        }
        self.set_flags(if value & mask != 0 { CF } else { 0 }, alu::STATUS & !CF);
        Ok(())
    }

    /// PUSH of a memory operand.
    fn push(&mut self) -> Result<()> {
        let (source, width) = self.sized(0, Access::Read)?;
        if width == Width::B1 {
            return Err(Stop::Unsupported);
        }
        let pointer = self.stack_pointer();
        let value = self.load(source);
        let top = get(self.regs, pointer).wrapping_sub(width.bytes() as u64) & pointer.width.mask();
        let location = self.locate(Register::SS, top, width.bytes(), Access::Write)?;
        location.store(self.bus, u128::from(value));
        set(self.regs, pointer, top);
        Ok(())
    }

    /// POP into a memory operand; the address uses the incremented RSP (SDM 2B "POP").
    fn pop(&mut self) -> Result<()> {
        let width = memory_width(self.i).filter(|_| self.i.op0_kind() == OpKind::Memory).ok_or(Stop::Unsupported)?;
        let pointer = self.stack_pointer();
        let top = get(self.regs, pointer);
        let source = self.locate(Register::SS, top, width.bytes(), Access::Read)?;
        let value = source.load(self.bus);
        // A fault of the store takes this back: `emulate` then drops the registers.
        set(self.regs, pointer, top.wrapping_add(width.bytes() as u64) & pointer.width.mask());
        self.memory(width.bytes(), Access::Write)?.store(self.bus, value);
        Ok(())
    }

    fn stack_pointer(&self) -> Gpr {
        let width = match self.regs.bitness {
            Bitness::Bits64 => Width::B8,
            _ if self.regs.ss.has(Segment::BIG) => Width::B4,
            _ => Width::B2,
        };
        Gpr::new(4, width)
    }

    /// SSE and AVX moves of at most `most` bytes between a vector register and memory.
    fn vector_move(&mut self, most: usize, upper: Upper) -> Result<()> {
        self.may_use_vectors(upper)?;
        let number = if self.i.op1_kind() == OpKind::Memory { 0 } else { 1 };
        if self.i.op_kind(1 - number) != OpKind::Memory {
            return Err(Stop::Unsupported);
        }
        let (index, len) = vector(self.i.op_register(number)).ok_or(Stop::Unsupported)?;
        let value = self.bus.vector(index).ok_or(Stop::Unsupported)?;
        let (len, access) = (len.min(most), if number == 1 { Access::Write } else { Access::Read });
        let location = self.memory(len, access)?;
        if wants_alignment(self.i.mnemonic()) && !location.is_aligned(len) {
            return Err(Exception::GP.into());
        }
        if number == 1 {
            location.store_vector(self.bus, value);
            return Ok(());
        }
        let value = location.load_vector(self.bus);
        self.bus.set_vector(index, value, upper).ok_or(Stop::Unsupported)
    }

    /// SDM volume 3, 14.1 and table 14-1. The registers may be another task's, whom the guest's kernel saves at #NM.
    fn may_use_vectors(&self, upper: Upper) -> Result<()> {
        let (cr0, cr4) = (self.regs.cr0, self.regs.cr4);
        let exist = match upper {
            Upper::Kept => cr0 & Cr0::EM.bits() == 0 && cr4 & Cr4::OSFXSR.bits() != 0,
            Upper::Loaded => cr4 & Cr4::OSXSAVE.bits() != 0 && segment::has_descriptors(self.regs),
        };
        match exist {
            false => Err(Exception::UD.into()),
            true if cr0 & Cr0::TS.bits() != 0 => Err(Exception::NM.into()),
            true => Ok(()),
        }
    }

    fn port_in(&mut self) -> Result<()> {
        let (target, port) = (self.register(0)?, self.port_number(1)?);
        ports::check(self, port, target.width)?;
        let value = self.bus.port_read(port, target.width);
        set(self.regs, target, u64::from(value));
        Ok(())
    }

    fn port_out(&mut self) -> Result<()> {
        let (source, port) = (self.register(1)?, self.port_number(0)?);
        ports::check(self, port, source.width)?;
        self.bus.port_write(port, source.width, get(self.regs, source) as u32);
        Ok(())
    }

    fn port_number(&self, operand: u32) -> Result<u16> {
        match self.i.op_kind(operand) {
            OpKind::Register => Ok(get(self.regs, self.register(operand)?) as u16),
            _ => self.i.try_immediate(operand).map(|value| value as u16 & 0xFF).map_err(|_| Stop::Unsupported),
        }
    }

    fn register(&self, operand: u32) -> Result<Gpr> {
        general(self.i.op_register(operand)).ok_or(Stop::Unsupported)
    }

    /// Puts new status flags into RFLAGS, but keeps those in `keep`.
    pub fn set_flags(&mut self, status: u64, keep: u64) {
        let change = alu::STATUS & !keep;
        self.regs.rflags = self.regs.rflags & !change | status & change;
    }
}

/// Vector moves that fault when their operand is not aligned to its size, whoever makes them.
const fn wants_alignment(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    let plain = matches!(mnemonic, M::Movaps | M::Movapd | M::Movdqa | M::Vmovaps | M::Vmovapd | M::Vmovdqa);
    let legacy = matches!(mnemonic, M::Movntdq | M::Movntps | M::Movntpd | M::Movntdqa);
    let vex = matches!(mnemonic, M::Vmovntdq | M::Vmovntps | M::Vmovntpd | M::Vmovntdqa);
    plain || legacy || vex
}

fn swap_bytes(value: u64, width: Width) -> u64 {
    value.swap_bytes() >> (64 - 8 * width.bytes())
}

fn sign_extend(value: u64, width: Width) -> u64 {
    let spare = 64 - 8 * width.bytes();
    ((value << spare) as i64 >> spare) as u64
}
