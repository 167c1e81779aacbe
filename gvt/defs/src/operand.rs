//! What the dwords of a command name, as data: memory, registers, and the bits that say which of them is meant
//! (design D17).

use crate::PAGE_SIZE;

/// A condition on one dword of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flag {
    /// Which dword; 0 is the header.
    pub dword: u8,
    /// Bits that count.
    pub mask: u32,
    /// What they are if it holds.
    pub value: u32,
}

impl Flag {
    /// Holds always.
    pub const ALWAYS: Self = Self { dword: 0, mask: 0, value: 0 };
    /// Holds never.
    pub const NEVER: Self = Self { dword: 0, mask: 0, value: 1 };

    /// Holds if a bit is set.
    pub const fn set(dword: u8, bit: u32) -> Self {
        Self { dword, mask: bit, value: bit }
    }

    /// Holds if all these bits are clear.
    pub const fn clear(dword: u8, bits: u32) -> Self {
        Self { dword, mask: bits, value: 0 }
    }

    /// Whether it holds for this value of its dword.
    #[inline]
    pub const fn holds(self, dword: u32) -> bool {
        dword & self.mask == self.value
    }

    /// Whether it holds in a command.
    #[inline]
    pub fn of(self, command: &[u32]) -> bool {
        self.holds(dword(command, self.dword))
    }

    /// Turns a flag of one bit, so that it does not hold. False if that cannot be.
    pub fn refute(self, command: &mut [u32]) -> bool {
        match command.get_mut(usize::from(self.dword)) {
            Some(dword) if self.mask != 0 => {
                *dword = *dword & !self.mask | (self.value ^ self.mask);
                true
            }
            _ => false,
        }
    }

    /// Its bits in dword `at`.
    #[inline]
    const fn bits_in(self, at: u8) -> u32 {
        if self.dword == at { self.mask } else { 0 }
    }
}

/// A dword of a command; what is not there counts as 0.
#[inline]
fn dword(command: &[u32], at: u8) -> u32 {
    command.get(usize::from(at)).copied().unwrap_or(0)
}

/// How an address is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// Low half in this dword, high half in the next.
    Wide(u8),
    /// In this dword.
    Narrow(u8),
    /// By the command itself.
    Fixed(u32),
}

/// How much is touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bytes {
    /// So many bytes at most.
    Most(u32),
    /// All dwords from this one on are stored; with this bit of the header eight bytes at least.
    Data(u8, u32),
    /// As MI_ATOMIC says, by its data size or by its operation, whichever is more.
    Atomic,
}

impl Bytes {
    /// For a command of so many dwords that begins with `header`.
    #[inline]
    pub const fn of(self, header: u32, dwords: u32) -> u32 {
        match self {
            Self::Most(bytes) => bytes,
            Self::Data(first, eight) => {
                let data = 4 * dwords.saturating_sub(first as u32);
                if header & eight != 0 && data < 8 { 8 } else { data }
            }
            Self::Atomic => {
                let (size, operation) = (header >> 19 & 3, header >> 13 & 7);
                let step = if size > operation { size } else { operation };
                4 << if step > 2 { 2 } else { step }
            }
        }
    }
}

/// What the engine does there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It only reads.
    Read,
    /// It may write.
    Write,
    /// It fetches commands.
    Execute,
}

/// Memory that a command names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Where the address stands.
    pub given: Given,
    /// Bits of the low dword that are address.
    pub mask: u32,
    /// In the GGTT if this holds, else in the PPGTT.
    pub global: Flag,
    /// If this holds it is an offset into a status page: the engine's if `global` holds, else the context's.
    pub index: Flag,
    /// Nothing is touched if this holds.
    pub unused: Flag,
    /// What is done there.
    pub access: Access,
    /// How much of it.
    pub bytes: Bytes,
}

impl Memory {
    /// Read, so many bytes at most, of the PPGTT or, if `global` holds, of the GGTT.
    pub const fn read(given: Given, global: Flag, bytes: u32) -> Self {
        let (index, unused, mask) = (Flag::NEVER, Flag::NEVER, !3);
        Self { given, mask, global, index, unused, access: Access::Read, bytes: Bytes::Most(bytes) }
    }

    /// The same, written.
    pub const fn write(given: Given, global: Flag, bytes: Bytes) -> Self {
        Self { access: Access::Write, bytes, ..Self::read(given, global, 0) }
    }

    /// The address that a command gives, without what is no part of it.
    #[inline]
    pub fn address(&self, command: &[u32]) -> u64 {
        let wide = |at| u64::from(dword(command, at + 1)) << 32 | u64::from(dword(command, at) & self.mask);
        match self.given {
            Given::Wide(at) => wide(at),
            Given::Narrow(at) => u64::from(dword(command, at) & self.mask),
            Given::Fixed(offset) => offset.into(),
        }
    }

    /// Clears the bits beside an address that say nothing here.
    #[inline]
    pub fn tidy(&self, command: &mut [u32]) {
        if let Given::Wide(at) | Given::Narrow(at) = self.given
            && let Some(dword) = command.get_mut(usize::from(at))
        {
            *dword &= self.mask | self.global.bits_in(at) | self.index.bits_in(at) | self.unused.bits_in(at);
        }
    }

    /// Puts another address, of the GGTT, in the place of what stands there.
    pub fn aim(&self, command: &mut [u32], address: u32) {
        if let Given::Wide(at) | Given::Narrow(at) = self.given
            && let Some(dword) = command.get_mut(usize::from(at))
        {
            *dword = *dword & !self.mask | address & self.mask;
        }
    }

    /// Whether so many bytes from an offset on lie in a status page.
    #[inline]
    pub const fn in_status_page(offset: u64, bytes: u32) -> bool {
        offset < PAGE_SIZE && offset + bytes as u64 <= PAGE_SIZE
    }
}

/// A register that a command names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Dword of its offset.
    pub dword: u8,
    /// It is the first of many, so many dwords apart, to the end of the command; 0: it is the only one.
    pub every: u8,
    /// Bits of the dword that are the offset.
    pub mask: u32,
    /// Read or written.
    pub access: Access,
    /// It is not touched if this holds.
    pub unused: Flag,
}

impl Register {
    /// One that is read.
    pub const fn read(dword: u8) -> Self {
        Self { dword, every: 0, mask: crate::mi::REGISTER_MASK, access: Access::Read, unused: Flag::NEVER }
    }

    /// One that is written.
    pub const fn write(dword: u8) -> Self {
        Self { access: Access::Write, ..Self::read(dword) }
    }

    /// Its offset.
    #[inline]
    pub fn offset(&self, command: &[u32]) -> u32 {
        dword(command, self.dword) & self.mask
    }
}

/// The lengths that a command may have, in dwords.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forms {
    /// Whatever its header says.
    Any,
    /// This one.
    One(u32),
    /// One of two.
    Either(u32, u32),
    /// This or longer.
    From(u32),
}

impl Forms {
    /// Whether so many dwords are one of them.
    #[inline]
    pub const fn allow(self, dwords: u32) -> bool {
        match self {
            Self::Any => true,
            Self::One(only) => dwords == only,
            Self::Either(one, other) => dwords == one || dwords == other,
            Self::From(least) => dwords >= least,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_hold_and_are_refuted() {
        let mut command = [1 << 22, 4];
        let (set, clear) = (Flag::set(0, 1 << 22), Flag::clear(1, 8));
        assert!(set.of(&command) && clear.of(&command) && Flag::ALWAYS.of(&command) && !Flag::NEVER.of(&command));
        assert!(set.refute(&mut command) && clear.refute(&mut command));
        assert_eq!(command, [0, 12]);
        assert!(!set.of(&command) && !clear.of(&command));
        assert!(!Flag::ALWAYS.refute(&mut command) && !Flag::set(2, 1).refute(&mut command));
    }

    #[test]
    fn addresses_are_told_from_flags() {
        let memory = Memory { mask: !7, ..Memory::write(Given::Wide(1), Flag::set(1, 4), Bytes::Most(8)) };
        let mut command = [0, 0x1237, 1];
        assert_eq!(memory.address(&command), 0x1_0000_1230);
        memory.tidy(&mut command);
        assert_eq!(command, [0, 0x1234, 1]);
        memory.aim(&mut command, 0x8000);
        assert_eq!(command, [0, 0x8004, 1]);
        assert!(Memory::in_status_page(0xFF8, 8) && !Memory::in_status_page(0xFFC, 8));
        assert!(!Memory::in_status_page(u64::MAX, 8));
    }

    #[test]
    fn bytes_are_counted() {
        assert_eq!(Bytes::Data(3, 1 << 21).of(0, 4), 4);
        assert_eq!(Bytes::Data(3, 1 << 21).of(1 << 21, 4), 8);
        assert_eq!(Bytes::Data(3, 1 << 21).of(0, 0x401), 4 * 0x3FE);
        assert_eq!(Bytes::Data(3, 0).of(0, 1), 0);
        let atomic = |size: u32, operation: u32| Bytes::Atomic.of(size << 19 | operation << 8, 3);
        assert_eq!([atomic(0, 7), atomic(1, 7), atomic(0, 0x27), atomic(2, 0), atomic(3, 0)], [4, 8, 8, 16, 16]);
        assert_eq!([atomic(0, 0x4E), atomic(0, 0xFF)], [16, 16]);
    }
}
