//! Registers and bits of the local APIC (SDM Vol. 3A, table 11-1; numbers are MMIO offset / 16 = MSR - 0x800).
#![allow(missing_docs, reason = "constant tables: each name is the manual's own")]

pub const ID: u8 = 0x02;
pub const VERSION: u8 = 0x03;
pub const TPR: u8 = 0x08;
pub const PPR: u8 = 0x0A;
pub const EOI: u8 = 0x0B;
pub const LDR: u8 = 0x0D;
pub const DFR: u8 = 0x0E;
pub const SVR: u8 = 0x0F;
pub const ISR_FIRST: u8 = 0x10;
pub const ISR_LAST: u8 = 0x17;
pub const TMR_FIRST: u8 = 0x18;
pub const TMR_LAST: u8 = 0x1F;
pub const IRR_FIRST: u8 = 0x20;
pub const IRR_LAST: u8 = 0x27;
pub const ESR: u8 = 0x28;
pub const ICR: u8 = 0x30;
pub const ICR_HIGH: u8 = 0x31;
pub const LVT_TIMER: u8 = 0x32;
pub const LVT_LINT0: u8 = 0x35;
pub const LVT_LINT1: u8 = 0x36;
pub const LVT_ERROR: u8 = 0x37;
pub const TIMER_INITIAL: u8 = 0x38;
pub const TIMER_CURRENT: u8 = 0x39;
pub const TIMER_DIVIDE: u8 = 0x3E;
pub const SELF_IPI: u8 = 0x3F;

/// Guests': version 0x14, six LVT entries, no EOI-broadcast suppression.
pub const VERSION_VALUE: u32 = 0x0005_0014;

pub const SVR_ENABLE: u32 = 1 << 8;
pub const SVR_WRITABLE: u32 = 0x3FF;

pub const LVT_MASKED: u32 = 1 << 16;
pub const LVT_TIMER_TSC_DEADLINE: u32 = 0b10 << 17;
/// Number of LVT entries.
pub const LVT_COUNT: usize = 6;
/// Bits of each LVT entry that a guest may write, from `LVT_TIMER` on.
pub const LVT_WRITABLE: [u32; LVT_COUNT] =
    [0x0007_00FF, 0x0001_07FF, 0x0001_07FF, 0x0001_A7FF, 0x0001_A7FF, 0x0001_00FF];

pub const ICR_NMI: u32 = 0b100 << 8;
pub const ICR_INIT: u32 = 0b101 << 8;
pub const ICR_STARTUP: u32 = 0b110 << 8;
pub const ICR_LOGICAL: u32 = 1 << 11;
pub const ICR_BUSY: u32 = 1 << 12;
pub const ICR_ASSERT: u32 = 1 << 14;
pub const ICR_LEVEL: u32 = 1 << 15;
pub const ICR_SELF: u32 = 0b01 << 18;
pub const ICR_ALL_BUT_SELF: u32 = 0b11 << 18;
/// Everything but the reserved bits and the (always idle) delivery status.
pub const ICR_WRITABLE: u32 = 0x000C_CFFF;

pub const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
pub const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

pub const BASE_BSP: u64 = 1 << 8;
pub const BASE_EXTD: u64 = 1 << 10;
pub const BASE_EN: u64 = 1 << 11;
pub const BASE_DEFAULT: u64 = 0xFEE0_0000;
pub const BASE_ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Bits of IA32_APIC_BASE that may be set at all, with the widest physical address.
pub const BASE_VALID: u64 = BASE_ADDRESS | BASE_BSP | BASE_EXTD | BASE_EN;
