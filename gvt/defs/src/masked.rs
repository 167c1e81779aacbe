//! Masked registers: bits 31:16 of a write say which of bits 15:0 change.

/// What a masked register holds after `write` reaches one that holds `old`. Only the low half is stored.
#[inline]
pub const fn apply(old: u32, write: u32) -> u32 {
    let mask = write >> 16;
    (old & !mask | write & mask) & 0xFFFF
}

/// A write that sets `bits`.
pub const fn enable(bits: u32) -> u32 {
    bits << 16 | bits
}

/// A write that clears `bits`.
pub const fn disable(bits: u32) -> u32 {
    bits << 16
}

/// A write that makes the register hold `value`.
pub const fn exactly(value: u32) -> u32 {
    0xFFFF_0000 | value & 0xFFFF
}

/// Masked registers at these offsets from an engine's base, on every engine; sorted.
pub const ENGINE: [u32; 11] = [0x28, 0x50, 0x9C, 0xC0, 0xD0, 0xD4, 0x200, 0x244, 0x248, 0x29C, 0x3A0];

/// Further masked registers, absolute; sorted. CTX_PREEMPT and SWCTRL count as masked on every engine.
pub const GLOBAL: [u32; 33] = [
    0x2084, 0x2088, 0x2090, 0x20D8, 0x20DC, 0x20E0, 0x20E4, 0x20EC, 0x2120, 0x2124, 0x2470, 0x2580, 0x4030, 0x5588,
    0x7000, 0x7004, 0x7008, 0x7010, 0x7014, 0x7018, 0x7300, 0x7304, 0x83A4, 0xA188, 0xA270, 0xA278, 0xE100, 0xE180,
    0xE184, 0xE188, 0xE194, 0xE4F0, 0xE4F4,
];

/// Whether the register at `offset` is masked.
pub fn is_masked(offset: u32) -> bool {
    if GLOBAL.binary_search(&offset).is_ok() {
        return true;
    }
    crate::Engine::of_register(offset).is_some_and(|(_, local)| ENGINE.binary_search(&local).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted() {
        assert!(ENGINE.windows(2).all(|p| p[0] < p[1]));
        assert!(GLOBAL.windows(2).all(|p| p[0] < p[1]));
        assert!(is_masked(0x2_209C) && is_masked(0x7014) && !is_masked(0x2030));
    }

    #[test]
    fn arithmetic() {
        assert_eq!(apply(0x0F, enable(0x100)), 0x10F);
        assert_eq!(apply(0x10F, disable(0x0F)), 0x100);
        assert_eq!(apply(0x10F, exactly(0x5)), 0x5);
        assert_eq!(apply(0xFF, 0x0000_1234), 0xFF);
    }
}
