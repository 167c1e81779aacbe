//! Register numbers and bits of the local APIC (SDM Vol. 3A, table 11-1; numbers are MMIO offset / 16 = MSR - 0x800).
#![allow(missing_docs, reason = "the names are the manual's")]

pub(super) const ID: u8 = 0x02;
pub(super) const VERSION: u8 = 0x03;
pub(super) const TPR: u8 = 0x08;
pub(super) const PPR: u8 = 0x0A;
pub(super) const EOI: u8 = 0x0B;
pub(super) const LDR: u8 = 0x0D;
pub(super) const DFR: u8 = 0x0E;
pub(super) const SVR: u8 = 0x0F;
pub(super) const ISR_FIRST: u8 = 0x10;
pub(super) const ISR_LAST: u8 = 0x17;
pub(super) const TMR_FIRST: u8 = 0x18;
pub(super) const TMR_LAST: u8 = 0x1F;
pub(super) const IRR_FIRST: u8 = 0x20;
pub(super) const IRR_LAST: u8 = 0x27;
pub(super) const ESR: u8 = 0x28;
pub(super) const ICR: u8 = 0x30;
pub(super) const ICR_HIGH: u8 = 0x31;
pub(super) const LVT_TIMER: u8 = 0x32;
pub(super) const LVT_LINT0: u8 = 0x35;
pub(super) const LVT_LINT1: u8 = 0x36;
pub(super) const LVT_ERROR: u8 = 0x37;
pub(super) const TIMER_INITIAL: u8 = 0x38;
pub(super) const TIMER_CURRENT: u8 = 0x39;
pub(super) const TIMER_DIVIDE: u8 = 0x3E;
pub(super) const SELF_IPI: u8 = 0x3F;

/// Version 0x14, six LVT entries, no EOI-broadcast suppression.
pub(super) const VERSION_VALUE: u32 = 0x0005_0014;

pub(super) const SVR_ENABLE: u32 = 1 << 8;
pub(super) const SVR_WRITABLE: u32 = 0x3FF;

pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Number of LVT entries.
pub(super) const LVT_COUNT: usize = 6;
/// Bits of each LVT entry that a guest may write, from `LVT_TIMER` on.
pub(super) const LVT_WRITABLE: [u32; LVT_COUNT] =
    [0x0007_00FF, 0x0001_07FF, 0x0001_07FF, 0x0001_A7FF, 0x0001_A7FF, 0x0001_00FF];

pub(super) const ICR_LOGICAL: u32 = 1 << 11;
pub(super) const ICR_ASSERT: u32 = 1 << 14;
pub(super) const ICR_LEVEL: u32 = 1 << 15;
/// Everything but the reserved bits and the (always idle) delivery status.
pub(super) const ICR_WRITABLE: u32 = 0x000C_CFFF;

pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_EXTD: u64 = 1 << 10;
pub(super) const BASE_EN: u64 = 1 << 11;
pub(super) const BASE_DEFAULT: u64 = 0xFEE0_0000;
/// Bits of IA32_APIC_BASE that may be set at all, with the widest physical address.
pub(super) const BASE_VALID: u64 = 0x000F_FFFF_FFFF_F000 | BASE_BSP | BASE_EXTD | BASE_EN;

pub(super) const MSR_APIC_BASE: u32 = 0x1B;
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6E0;
pub(super) const MSR_X2APIC_FIRST: u32 = 0x800;
pub(super) const MSR_X2APIC_LAST: u32 = 0x8FF;
