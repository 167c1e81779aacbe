//! Operands: registers, immediates and memory locations of a decoded instruction.

use crate::{Access, Bitness, Bus, Exception, Registers, Segment, translate};
use hv_defs::{Gpa, Gva, Width};
use iced_x86::{Instruction, MemorySize, OpKind, Register};

/// Index in `Registers::gpr`, width, and bit position (8 for AH, CH, DH, BH) of a general register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr {
    pub index: usize,
    pub width: Width,
    shift: u32,
}

/// Finds a general register; `None` for any other kind.
pub fn general(register: Register) -> Option<Gpr> {
    let number = register as u32;
    let within = |first: Register, last: Register| {
        (number >= first as u32 && number <= last as u32).then(|| (number - first as u32) as usize)
    };
    if let Some(n) = within(Register::AL, Register::BL) {
        return Some(Gpr { index: n, width: Width::B1, shift: 0 });
    }
    if let Some(n) = within(Register::AH, Register::BH) {
        return Some(Gpr { index: n, width: Width::B1, shift: 8 });
    }
    if let Some(n) = within(Register::SPL, Register::R15L) {
        return Some(Gpr { index: n + 4, width: Width::B1, shift: 0 });
    }
    let banks = [
        (Register::AX, Register::R15W, Width::B2),
        (Register::EAX, Register::R15D, Width::B4),
        (Register::RAX, Register::R15, Width::B8),
    ];
    banks.iter().find_map(|&(first, last, width)| within(first, last).map(|index| Gpr { index, width, shift: 0 }))
}

/// Reads a general register, zero-extended.
pub fn get(regs: &Registers, gpr: Gpr) -> u64 {
    regs.gpr.get(gpr.index).map_or(0, |value| (value >> gpr.shift) & gpr.width.mask())
}

/// Writes a general register: 32-bit writes clear the upper half, narrower ones keep the rest.
pub fn set(regs: &mut Registers, gpr: Gpr, value: u64) {
    if let Some(slot) = regs.gpr.get_mut(gpr.index) {
        *slot = match gpr.width {
            Width::B8 => value,
            Width::B4 => value & 0xFFFF_FFFF,
            narrow => {
                let mask = narrow.mask() << gpr.shift;
                (*slot & !mask) | ((value << gpr.shift) & mask)
            }
        };
    }
}

/// Index of an XMM register.
pub fn xmm(register: Register) -> Option<u8> {
    let number = register as u32;
    let first = Register::XMM0 as u32;
    (number >= first && number <= Register::XMM15 as u32).then(|| (number - first) as u8)
}

/// Width of a memory operand of 1 to 8 bytes.
pub fn memory_width(instruction: &Instruction) -> Option<Width> {
    Some(match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Width::B1,
        MemorySize::UInt16 | MemorySize::Int16 => Width::B2,
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::Float32 => Width::B4,
        MemorySize::UInt64 | MemorySize::Int64 | MemorySize::Float64 => Width::B8,
        _ => return None,
    })
}

/// Bytes that addresses of a given size can reach, as a mask.
pub fn address_mask(bitness: Bitness) -> u64 {
    match bitness {
        Bitness::Bits16 => 0xFFFF,
        Bitness::Bits32 => 0xFFFF_FFFF,
        Bitness::Bits64 => u64::MAX,
    }
}

/// Linear base of a segment: zero for all but FS and GS in 64-bit code.
pub fn segment_base(regs: &Registers, register: Register) -> u64 {
    let flat = regs.bitness == Bitness::Bits64;
    let base = |segment: &Segment| if flat { 0 } else { segment.base };
    match register {
        Register::ES => base(&regs.es),
        Register::CS => base(&regs.cs),
        Register::SS => base(&regs.ss),
        Register::FS => regs.fs.base,
        Register::GS => regs.gs.base,
        _ => base(&regs.ds),
    }
}

/// Linear address of `offset` in a segment.
pub fn linear(regs: &Registers, segment: Register, offset: u64) -> Gva {
    let sum = segment_base(regs, segment).wrapping_add(offset);
    Gva(if regs.bitness == Bitness::Bits64 { sum } else { sum & 0xFFFF_FFFF })
}

/// Linear address of the instruction's memory operand (SDM 1 3.7.5).
pub fn effective(regs: &Registers, instruction: &Instruction) -> Gva {
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let displacement = instruction.memory_displacement64();
    if base == Register::RIP || base == Register::EIP {
        return linear(regs, instruction.memory_segment(), displacement);
    }
    let mut offset = displacement;
    let mut width = None;
    if let Some(gpr) = general(base) {
        offset = offset.wrapping_add(get(regs, gpr));
        width = Some(gpr.width);
    }
    if let Some(gpr) = general(index) {
        let scale = u64::from(instruction.memory_index_scale());
        offset = offset.wrapping_add(get(regs, gpr).wrapping_mul(scale));
        width = Some(gpr.width);
    }
    let width = width.or(Width::from_bytes(instruction.memory_displ_size() as usize));
    linear(regs, instruction.memory_segment(), offset & width.map_or(u64::MAX, Width::mask))
}

/// A memory location of 1 to 16 bytes, already translated; at most two pages.
#[derive(Clone, Copy, Debug)]
pub struct Location {
    first: Gpa,
    second: Option<Gpa>,
    len: usize,
}

/// Bytes that one instruction can move at most.
pub const MAX_OPERAND: usize = 16;

impl Location {
    /// Translates `len` bytes at `address`; both pages before anything is moved, so that a fault leaves no trace.
    pub fn new<B: Bus + ?Sized>(
        regs: &Registers,
        bus: &mut B,
        address: Gva,
        len: usize,
        access: Access,
    ) -> Result<Self, Exception> {
        let first = translate(regs, bus, address, access)?;
        let room = (0x1000 - address.page_offset()) as usize;
        let second = if len > room {
            let next = address.wrapping_add(room as u64);
            let next = if regs.bitness == Bitness::Bits64 { next } else { Gva(next.0 & 0xFFFF_FFFF) };
            Some(translate(regs, bus, next, access)?)
        } else {
            None
        };
        Ok(Self { first, second, len })
    }

    /// Runs `each` over pieces of at most 8 bytes, none of which crosses a page.
    fn pieces(&self, mut each: impl FnMut(Gpa, core::ops::Range<usize>)) {
        let room = match self.second {
            Some(_) => (0x1000 - self.first.page_offset()) as usize,
            None => self.len,
        };
        let mut done = 0;
        while done < self.len {
            let (gpa, left) = if done < room {
                (self.first.wrapping_add(done as u64), room - done)
            } else {
                let base = self.second.unwrap_or(self.first);
                (base.wrapping_add((done - room) as u64), self.len - done)
            };
            let take = left.min(8);
            each(gpa, done..done + take);
            done += take;
        }
    }

    /// Reads the location.
    pub fn load<B: Bus + ?Sized>(&self, bus: &mut B) -> u128 {
        let mut raw = [0; MAX_OPERAND];
        self.pieces(|gpa, range| {
            if let Some(chunk) = raw.get_mut(range) {
                bus.read(gpa, chunk);
            }
        });
        u128::from_le_bytes(raw)
    }

    /// Writes the location.
    pub fn store<B: Bus + ?Sized>(&self, bus: &mut B, value: u128) {
        let raw = value.to_le_bytes();
        self.pieces(|gpa, range| {
            if let Some(chunk) = raw.get(range) {
                bus.write(gpa, chunk);
            }
        });
    }
}

/// A source or destination of 1 to 8 bytes.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Register(Gpr),
    Memory(Location, Width),
    Immediate(u64),
}

impl Operand {
    /// Resolves operand `n`; `None` if it is of a kind that is not emulated.
    pub fn resolve<B: Bus + ?Sized>(
        regs: &Registers,
        bus: &mut B,
        instruction: &Instruction,
        n: u32,
        access: Access,
    ) -> Result<Option<Self>, Exception> {
        if n >= instruction.op_count() {
            return Ok(None);
        }
        Ok(match instruction.op_kind(n) {
            OpKind::Register => general(instruction.op_register(n)).map(Self::Register),
            OpKind::Memory => match memory_width(instruction) {
                Some(width) => {
                    let address = effective(regs, instruction);
                    Some(Self::Memory(Location::new(regs, bus, address, width.bytes(), access)?, width))
                }
                None => None,
            },
            _ => instruction.try_immediate(n).ok().map(Self::Immediate),
        })
    }

    /// Width; immediates take the other operand's.
    pub fn width(&self) -> Option<Width> {
        match self {
            Self::Register(gpr) => Some(gpr.width),
            Self::Memory(_, width) => Some(*width),
            Self::Immediate(_) => None,
        }
    }

    /// Value, zero-extended (immediates are sign-extended to 64 bits).
    pub fn load<B: Bus + ?Sized>(&self, regs: &Registers, bus: &mut B) -> u64 {
        match self {
            Self::Register(gpr) => get(regs, *gpr),
            Self::Memory(location, _) => location.load(bus) as u64,
            Self::Immediate(value) => *value,
        }
    }

    /// Stores a value; an immediate takes none.
    pub fn store<B: Bus + ?Sized>(&self, regs: &mut Registers, bus: &mut B, value: u64) {
        match self {
            Self::Register(gpr) => set(regs, *gpr, value),
            Self::Memory(location, _) => location.store(bus, u128::from(value)),
            Self::Immediate(_) => {}
        }
    }
}
