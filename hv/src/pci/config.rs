//! The type 0 configuration header and the MSI capability (PCI Local Bus Specification 3.0, chapter 6).

use arrayvec::ArrayVec;
use hv_defs::Hpa;

use super::Decode;

pub(super) const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const HEADER_TYPE: u16 = 0x0E;
const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const BAR_IO: u32 = 1 << 0;
const BAR_TYPE: u32 = 0b11 << 1;
const BAR_TYPE_64: u32 = 0b10 << 1;

const CAPABILITY_MSI: u8 = 0x05;
/// Most capabilities that fit into the 192 bytes behind the header.
const MOST_CAPABILITIES: usize = 48;

const MSI_ENABLE: u16 = 1 << 0;
const MSI_MULTIPLE: u16 = 0b111 << 4;
const MSI_64: u16 = 1 << 7;
/// Where messages to local APICs go (SDM volume 3A, 11.11.1).
const MSI_ADDRESS: u32 = 0xFEE0_0000;

/// What a base address register decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere.
    Memory64,
    /// I/O ports.
    Io,
}

/// A base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Its number, 0 to 5; a 64-bit one takes the next too.
    pub index: u8,
    /// Where the firmware put it; 0 if nowhere.
    pub base: Hpa,
    /// Size in bytes.
    pub size: u64,
    /// What it decodes.
    pub kind: BarKind,
}

/// Configuration space of a function: 4096 bytes (256 by ports).
pub trait ConfigSpace {
    /// Reads an aligned dword.
    fn read32(&self, offset: u16) -> u32;
    /// Writes an aligned dword.
    fn write32(&self, offset: u16, value: u32);
    /// Writes an aligned word.
    fn write16(&self, offset: u16, value: u16);

    /// Reads an aligned word.
    fn read16(&self, offset: u16) -> u16 {
        (self.read32(offset & !3) >> (8 * u32::from(offset & 2))) as u16
    }

    /// Reads a byte.
    fn read8(&self, offset: u16) -> u8 {
        (self.read32(offset & !3) >> (8 * u32::from(offset & 3))) as u8
    }
}

/// The command register for a way of decoding.
pub(super) const fn command_for(command: u16, decode: Decode) -> u16 {
    let off = command & !(COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER);
    match decode {
        Decode::Off => off,
        Decode::MemoryAndMaster => off | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF,
    }
}

/// Reads all BARs; decoding is off while their sizes are found, and back as it was afterwards.
pub(super) fn bars(config: &impl ConfigSpace) -> ArrayVec<Bar, 6> {
    let mut found = ArrayVec::new();
    if config.read8(HEADER_TYPE) & 0x7F != 0 {
        return found;
    }
    let command = config.read16(COMMAND);
    config.write16(COMMAND, command_for(command, Decode::Off));
    let mut index = 0;
    while index < 6 {
        let (bar, registers) = read_bar(config, index);
        if let Some(bar) = bar {
            let _at_most_six = found.try_push(bar);
        }
        index += registers;
    }
    config.write16(COMMAND, command);
    found
}

/// One BAR, and how many registers it takes.
fn read_bar(config: &impl ConfigSpace, index: u8) -> (Option<Bar>, u8) {
    let at = BAR0 + 4 * u16::from(index);
    let (low, low_mask) = probe(config, at);
    if low & BAR_IO != 0 {
        let size = u64::from((low_mask & !0b11 & 0xFFFF).wrapping_neg() & 0xFFFF);
        return (bar(index, u64::from(low & !0b11), size, BarKind::Io), 1);
    }
    let base = u64::from(low & !0xF);
    if low & BAR_TYPE == BAR_TYPE_64 && index < 5 {
        let (high, high_mask) = probe(config, at + 4);
        let mask = u64::from(high_mask) << 32 | u64::from(low_mask & !0xF);
        return (bar(index, u64::from(high) << 32 | base, mask.wrapping_neg(), BarKind::Memory64), 2);
    }
    let size = u64::from((low_mask & !0xF).wrapping_neg());
    (bar(index, base, size, BarKind::Memory32), 1)
}

fn bar(index: u8, base: u64, size: u64, kind: BarKind) -> Option<Bar> {
    size.is_power_of_two().then_some(Bar { index, base: Hpa(base), size, kind })
}

/// The value of a register, and what it holds after all ones were written.
fn probe(config: &impl ConfigSpace, at: u16) -> (u32, u32) {
    let value = config.read32(at);
    config.write32(at, u32::MAX);
    let mask = config.read32(at);
    config.write32(at, value);
    (value, mask)
}

/// Programs the MSI capability with one message.
pub(super) fn enable_msi(config: &impl ConfigSpace, apic_id: u8, vector: u8) -> Option<()> {
    let at = find_capability(config, CAPABILITY_MSI)?;
    let control = config.read16(at + 2);
    config.write16(at + 2, control & !(MSI_ENABLE | MSI_MULTIPLE));
    config.write32(at + 4, MSI_ADDRESS | u32::from(apic_id) << 12);
    let data = if control & MSI_64 != 0 {
        config.write32(at + 8, 0);
        at + 12
    } else {
        at + 8
    };
    config.write16(data, u16::from(vector));
    config.write16(at + 2, control & !MSI_MULTIPLE | MSI_ENABLE);
    Some(())
}

fn find_capability(config: &impl ConfigSpace, id: u8) -> Option<u16> {
    if config.read16(STATUS) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = u16::from(config.read8(CAPABILITIES) & !3);
    for _ in 0..MOST_CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        if config.read8(at) == id {
            return Some(at);
        }
        at = u16::from(config.read8(at + 1) & !3);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// 256 bytes with a mask of what can be written.
    struct Fake(RefCell<([u32; 64], [u32; 64])>);

    impl ConfigSpace for Fake {
        fn read32(&self, offset: u16) -> u32 {
            self.0.borrow().0[usize::from(offset / 4)]
        }

        fn write32(&self, offset: u16, value: u32) {
            let (values, masks) = &mut *self.0.borrow_mut();
            let index = usize::from(offset / 4);
            values[index] = values[index] & !masks[index] | value & masks[index];
        }

        fn write16(&self, offset: u16, value: u16) {
            let shift = 8 * u32::from(offset & 2);
            let others = self.read32(offset & !3) & !(0xFFFF << shift);
            self.write32(offset & !3, others | u32::from(value) << shift);
        }
    }

    /// An Intel GPU's shape: 16 MiB and 512 MiB of 64-bit memory, 64 ports, MSI at 0xAC behind another capability.
    fn gpu() -> Fake {
        let (mut values, mut masks) = ([0; 64], [0; 64]);
        values[1] = 0x0010_0003;
        masks[1] = 0xFFFF;
        for (register, value, mask) in [
            (4, 0xF000_0004, 0xFF00_0000),
            (5, 0x0000_0001, u32::MAX),
            (6, 0xC000_000C, 0xE000_0000),
            (7, 0, u32::MAX),
            (8, 0x0000_F001, 0xFFC0),
        ] {
            values[register] = value;
            masks[register] = mask;
        }
        values[13] = 0x40;
        values[16] = 0x0000_AC09;
        values[0xAC / 4] = 0x0010_D005;
        masks[0xAC / 4..0xB8 / 4].fill(u32::MAX);
        Fake(RefCell::new((values, masks)))
    }

    #[test]
    fn sizes_are_found_and_values_kept() {
        let gpu = gpu();
        let before = gpu.0.borrow().0;
        let expected = [
            Bar { index: 0, base: Hpa(0x1_F000_0000), size: 16 << 20, kind: BarKind::Memory64 },
            Bar { index: 2, base: Hpa(0xC000_0000), size: 512 << 20, kind: BarKind::Memory64 },
            Bar { index: 4, base: Hpa(0xF000), size: 64, kind: BarKind::Io },
        ];
        assert_eq!(bars(&gpu)[..], expected);
        assert_eq!(gpu.0.borrow().0, before);
    }

    #[test]
    fn a_bridge_has_no_bars_of_this_shape() {
        let gpu = gpu();
        gpu.0.borrow_mut().0[3] = 0x0001_0000;
        assert!(bars(&gpu).is_empty());
    }

    #[test]
    fn the_message_names_cpu_and_vector() {
        let gpu = gpu();
        assert_eq!(enable_msi(&gpu, 3, 0x31), Some(()));
        assert_eq!(gpu.read32(0xB0), 0xFEE0_3000);
        assert_eq!(gpu.read16(0xB4), 0x31);
        assert_eq!(gpu.read16(0xAE) & (MSI_ENABLE | MSI_MULTIPLE), MSI_ENABLE);
        gpu.0.borrow_mut().0[0xAC / 4] |= u32::from(MSI_64) << 16;
        gpu.0.borrow_mut().1[0xB8 / 4] = u32::MAX;
        assert_eq!(enable_msi(&gpu, 3, 0x32), Some(()));
        assert_eq!((gpu.read32(0xB4), gpu.read16(0xB8)), (0, 0x32));
    }

    #[test]
    fn a_list_that_bites_its_tail_ends() {
        let gpu = gpu();
        gpu.0.borrow_mut().0[16] = 0x0000_4009;
        assert_eq!(enable_msi(&gpu, 0, 0x30), None);
        gpu.0.borrow_mut().0[1] = 0;
        assert_eq!(enable_msi(&gpu, 0, 0x30), None);
    }

    #[test]
    fn decoding_follows_the_command() {
        assert_eq!(command_for(0x0107, Decode::Off), 0x0100);
        assert_eq!(command_for(0x0001, Decode::MemoryAndMaster), 0x0406);
    }
}
