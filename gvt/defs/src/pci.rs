//! PCI configuration space of the integrated GPU.
#![allow(missing_docs, reason = "the names are the datasheet's")]

pub const VENDOR_INTEL: u16 = 0x8086;
/// VGA-compatible display controller.
pub const CLASS_VGA: u32 = 0x03_0000;
/// Other display controller.
pub const CLASS_DISPLAY: u32 = 0x03_8000;

pub const COMMAND: u16 = 0x04;
pub const COMMAND_MEMORY: u16 = 1 << 1;
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
pub const STATUS: u16 = 0x06;
/// GTTMMADR: 64-bit, 16 MiB.
pub const BAR0: u16 = 0x10;
/// GMADR (aperture): 64-bit, prefetchable.
pub const BAR2: u16 = 0x18;
/// I/O, 64 bytes.
pub const BAR4: u16 = 0x20;
pub const CAP_PTR: u16 = 0x34;
pub const CAP_MSI: u16 = 0xAC;
pub const CAP_PM: u16 = 0xD0;
/// GMCH_CTRL (GGC): bits 15:8 GMS, 7:6 GGMS.
pub const GMCH_CTRL: u16 = 0x50;
pub const BDSM: u16 = 0x5C;
pub const BGSM: u16 = 0x70;
pub const SWSCI: u16 = 0xE8;
pub const ASLS: u16 = 0xFC;

/// GGMS: bytes of page table entries are `1 << code` MiB.
pub const GGMS_SHIFT: u16 = 6;
pub const GGMS_8_MIB: u16 = 3 << GGMS_SHIFT;
