//! Operands: registers, immediates and memory locations of a decoded instruction.

use crate::execute::Stop;
use crate::{Access, Bus, Exception, Registers, Vector, segment, translate};
use hv_defs::{Gpa, Gva, Width};
use iced_x86::{Instruction, MemorySize, OpKind, Register};

/// Index in `Registers::gpr`, width, and bit position (8 for AH, CH, DH, BH) of a general register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr {
    pub index: usize,
    pub width: Width,
    shift: u32,
}

impl Gpr {
    /// The low `width` bytes of the register with this number.
    pub const fn new(index: usize, width: Width) -> Self {
        Self { index, width, shift: 0 }
    }
}

/// Finds a general register; `None` for any other kind.
pub fn general(register: Register) -> Option<Gpr> {
    let number = register as u32;
    let within = |first: Register, last: Register| {
        (number >= first as u32 && number <= last as u32).then(|| (number - first as u32) as usize)
    };
    // What addresses are made of, and most operands, first.
    let banks = [
        (Register::RAX, Register::R15, Width::B8),
        (Register::EAX, Register::R15D, Width::B4),
        (Register::AX, Register::R15W, Width::B2),
    ];
    if let Some(gpr) = banks.iter().find_map(|&(first, last, width)| Some(Gpr::new(within(first, last)?, width))) {
        return Some(gpr);
    }
    if let Some(n) = within(Register::AL, Register::BL) {
        return Some(Gpr::new(n, Width::B1));
    }
    if let Some(n) = within(Register::AH, Register::BH) {
        return Some(Gpr { index: n, width: Width::B1, shift: 8 });
    }
    within(Register::SPL, Register::R15L).map(|n| Gpr::new(n + 4, Width::B1))
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

/// Index and bytes of an XMM or YMM register.
pub fn vector(register: Register) -> Option<(u8, usize)> {
    let number = register as u32;
    [(Register::XMM0, 16), (Register::YMM0, 32)].into_iter().find_map(|(first, len)| {
        let index = number.checked_sub(first as u32).filter(|index| *index < 16)?;
        Some((index as u8, len))
    })
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

/// Where in its segment a memory operand lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub segment: Register,
    pub offset: u64,
    /// Bits that an offset has with this address size.
    pub mask: u64,
}

/// The place of the instruction's memory operand (SDM 1 3.7.5).
pub fn effective(regs: &Registers, instruction: &Instruction) -> Place {
    let segment = instruction.memory_segment();
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let displacement = instruction.memory_displacement64();
    if base == Register::RIP || base == Register::EIP {
        return Place { segment, offset: displacement, mask: u64::MAX };
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
    let mask = width.map_or(u64::MAX, Width::mask);
    Place { segment, offset: offset & mask, mask }
}

/// A memory location of 1 to 32 bytes, already translated; at most two pages.
#[derive(Clone, Copy, Debug)]
pub struct Location {
    first: Gpa,
    second: Option<Gpa>,
    len: usize,
}

/// Bytes that one instruction can move at most.
pub const MAX_OPERAND: usize = size_of::<Vector>();

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
            Some(translate(regs, bus, regs.wrap(address.0.wrapping_add(room as u64)), access)?)
        } else {
            None
        };
        Ok(Self { first, second, len })
    }

    /// Whether it begins at a multiple of `size`, a power of two up to a page.
    pub fn is_aligned(&self, size: usize) -> bool {
        self.first.0 & (size as u64).wrapping_sub(1) == 0
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

    /// Reads the location; what is not of it is zero.
    pub fn load_vector<B: Bus + ?Sized>(&self, bus: &mut B) -> Vector {
        let mut raw = [0; MAX_OPERAND];
        self.pieces(|gpa, range| {
            if let Some(chunk) = raw.get_mut(range) {
                bus.read(gpa, chunk);
            }
        });
        raw
    }

    /// Writes the location.
    pub fn store_vector<B: Bus + ?Sized>(&self, bus: &mut B, raw: Vector) {
        self.pieces(|gpa, range| {
            if let Some(chunk) = raw.get(range) {
                bus.write(gpa, chunk);
            }
        });
    }

    /// Reads a location of at most 16 bytes.
    pub fn load<B: Bus + ?Sized>(&self, bus: &mut B) -> u128 {
        self.load_vector(bus).first_chunk().copied().map_or(0, u128::from_le_bytes)
    }

    /// Writes a location of at most 16 bytes.
    pub fn store<B: Bus + ?Sized>(&self, bus: &mut B, value: u128) {
        let mut raw = [0; MAX_OPERAND];
        if let Some(low) = raw.first_chunk_mut() {
            *low = value.to_le_bytes();
        }
        self.store_vector(bus, raw);
    }
}

/// A source or destination of 1 to 8 bytes.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Register(Gpr),
    Memory(Location, Width),
    Immediate(u64),
}

/// What an instruction works on.
pub struct Cpu<'a, B: ?Sized> {
    pub regs: &'a mut Registers,
    pub bus: &'a mut B,
    pub i: &'a Instruction,
}

impl<B: Bus + ?Sized> Cpu<'_, B> {
    /// Resolves operand `n`.
    pub fn operand(&mut self, n: u32, access: Access) -> Result<Operand, Stop> {
        if n >= self.i.op_count() {
            return Err(Stop::Unsupported);
        }
        match self.i.op_kind(n) {
            OpKind::Register => general(self.i.op_register(n)).map(Operand::Register).ok_or(Stop::Unsupported),
            OpKind::Memory => {
                let width = memory_width(self.i).ok_or(Stop::Unsupported)?;
                Ok(Operand::Memory(self.memory(width.bytes(), access)?, width))
            }
            _ => self.i.try_immediate(n).map(Operand::Immediate).map_err(|_| Stop::Unsupported),
        }
    }

    /// The same with its width; immediates have none, since they take the other operand's.
    pub fn sized(&mut self, n: u32, access: Access) -> Result<(Operand, Width), Stop> {
        match self.operand(n, access)? {
            operand @ (Operand::Register(Gpr { width, .. }) | Operand::Memory(_, width)) => Ok((operand, width)),
            Operand::Immediate(_) => Err(Stop::Unsupported),
        }
    }

    /// The first `len` bytes of the memory operand.
    pub fn memory(&mut self, len: usize, access: Access) -> Result<Location, Exception> {
        let Place { segment, offset, .. } = effective(self.regs, self.i);
        self.locate(segment, offset, len, access)
    }

    /// `len` bytes at an offset of a segment.
    pub fn locate(
        &mut self,
        register: Register,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<Location, Exception> {
        let address = segment::linear(self.regs, register, offset, len, access)?;
        let location = Location::new(self.regs, self.bus, address, len, access)
            .map_err(|fault| segment::of_stack(register, fault))?;
        if self.regs.cpl == 3 {
            segment::check_alignment(self.regs, location.first.0, len)?;
        }
        Ok(location)
    }

    /// Value, zero-extended (immediates are sign-extended to 64 bits).
    pub fn load(&mut self, operand: Operand) -> u64 {
        match operand {
            Operand::Register(gpr) => get(self.regs, gpr),
            Operand::Memory(location, _) => location.load(self.bus) as u64,
            Operand::Immediate(value) => value,
        }
    }

    /// Stores a value; an immediate takes none.
    pub fn store(&mut self, operand: Operand, value: u64) {
        match operand {
            Operand::Register(gpr) => set(self.regs, gpr, value),
            Operand::Memory(location, _) => location.store(self.bus, u128::from(value)),
            Operand::Immediate(_) => {}
        }
    }
}
