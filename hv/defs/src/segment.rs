//! What the CPU keeps of a segment's descriptor (SDM volume 3, 3.4.3 and 3.4.5; APM volume 2, 4.8).
#![allow(missing_docs, reason = "constant tables: each name is the manual's own")]

use zerocopy::FromZeros;

/// A segment register, laid out as in AMD-V's state save area, so that to copy one is to copy two words.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, FromZeros)]
#[repr(C)]
pub struct Segment {
    pub selector: u16,
    /// Descriptor attributes, packed: bits 0-7 = descriptor bits 40-47, bits 8-11 = descriptor bits 52-55.
    pub attrib: u16,
    /// Last valid offset, in bytes (scaled by granularity already).
    pub limit: u32,
    pub base: u64,
}

impl Segment {
    /// Code may be read, data written.
    pub const READ_WRITE: u16 = 1 << 1;
    /// Of data: valid offsets lie above the limit.
    pub const EXPAND_DOWN: u16 = 1 << 2;
    /// Of a system segment that is a task: it has the 32- or 64-bit format.
    pub const TASK_32: u16 = 1 << 3;
    pub const CODE: u16 = 1 << 3;
    pub const PRESENT: u16 = 1 << 7;
    pub const LONG: u16 = 1 << 9;
    /// D of code, B of data.
    pub const BIG: u16 = 1 << 10;

    /// Flat, writable, 32-bit data.
    pub const FLAT_DATA: Self = Self { selector: 0, attrib: 0xC93, limit: u32::MAX, base: 0 };
    /// Flat, readable, 32-bit code.
    pub const FLAT_CODE: Self = Self { selector: 0, attrib: 0xC9B, limit: u32::MAX, base: 0 };
    /// Data as after RESET and as real mode has it.
    pub const REAL_DATA: Self = Self { selector: 0, attrib: 0x93, limit: 0xFFFF, base: 0 };
    /// Code as after RESET.
    pub const REAL_CODE: Self = Self { selector: 0, attrib: 0x9B, limit: 0xFFFF, base: 0 };

    /// Whether all of these attributes are set.
    pub const fn has(&self, attributes: u16) -> bool {
        self.attrib & attributes == attributes
    }
}
