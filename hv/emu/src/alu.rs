//! Integer arithmetic with flags (SDM 1 3.4.3.1).

use hv_defs::Width;

/// Carry flag.
pub const CF: u64 = 1 << 0;
/// Parity flag.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry flag.
pub const AF: u64 = 1 << 4;
/// Zero flag.
pub const ZF: u64 = 1 << 6;
/// Sign flag.
pub const SF: u64 = 1 << 7;
/// Overflow flag.
pub const OF: u64 = 1 << 11;
/// The six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// A two-operand operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
}

/// Result and new status flags of `a op b`.
pub fn binary(op: Op, width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    let mask = width.mask();
    let (a, b) = (a & mask, b & mask);
    let carry = match op {
        Op::Adc | Op::Sbb => flags & CF,
        _ => 0,
    };
    let sign = mask ^ (mask >> 1);
    let (result, carry_out, overflow) = match op {
        Op::Add | Op::Adc => {
            let wide = u128::from(a) + u128::from(b) + u128::from(carry);
            let result = wide as u64 & mask;
            (result, wide > u128::from(mask), (a ^ result) & (b ^ result) & sign != 0)
        }
        Op::Sub | Op::Sbb => {
            let result = a.wrapping_sub(b).wrapping_sub(carry) & mask;
            let borrow = u128::from(a) < u128::from(b) + u128::from(carry);
            (result, borrow, (a ^ b) & (a ^ result) & sign != 0)
        }
        Op::And => (a & b, false, false),
        Op::Or => (a | b, false, false),
        Op::Xor => (a ^ b, false, false),
    };
    let mut out = result_flags(width, result);
    let arithmetic = !matches!(op, Op::And | Op::Or | Op::Xor);
    for (set, flag) in [(carry_out, CF), (overflow, OF), (arithmetic && (a ^ b ^ result) & 0x10 != 0, AF)] {
        if set {
            out |= flag;
        }
    }
    (result, out)
}

/// ZF, SF and PF of a result.
pub fn result_flags(width: Width, result: u64) -> u64 {
    let mask = width.mask();
    let mut flags = 0;
    if result & mask == 0 {
        flags |= ZF;
    }
    if result & (mask ^ (mask >> 1)) != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}
