//! The two configuration mechanisms, and the functions that belong to the board: host bridge and LPC bridge.
//! Intel 3 Series chipset family data sheet (MCH 8086:29c0), section 5; ICH9 data sheet (LPC 8086:2918), section 13.

use core::ops::Range;

use hv_defs::Width;

use crate::pci::{self, Header, Identity};
use crate::wires::Wires;

/// Device number of the host bridge.
const HOST: u8 = 0x00;
/// Device number of the LPC bridge.
const LPC: u8 = 0x1F;

const PCIEXBAR: u8 = 0x60;
/// Enabled at 0xB0000000, 256 MiB: as OVMF would set it.
const PCIEXBAR_DEFAULT: u32 = 0xB000_0001;
/// Bit 31 of the address register.
const CONFIG_ENABLE: u32 = 1 << 31;
const CONFIG_WRITABLE: u32 = 0x80FF_FFFC;

/// A configuration address: bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Target {
    bus: u8,
    device: u8,
    function: u8,
}

#[derive(Clone)]
pub(super) struct Bridges {
    /// The latch at port 0xCF8.
    address: u32,
    host: Header,
    lpc: Header,
}

impl Bridges {
    pub(super) fn new() -> Self {
        let subsystem = (0x1AF4, 0x1100);
        let identity = |device, class| Identity {
            vendor: 0x8086,
            device,
            revision: 2,
            class,
            subsystem_vendor: subsystem.0,
            subsystem: subsystem.1,
        };
        let host = Header::new(identity(0x29C0, 0x06_0000))
            .with_register(PCIEXBAR, PCIEXBAR_DEFAULT, 0xFC00_0007)
            .with_register(PCIEXBAR + 4, 0, 0x0000_000F)
            // PAM0-6, SMRAM and ESMRAMC: stored, nothing is shadowed.
            .with_register(0x90, 0, 0x3333_3330)
            .with_register(0x94, 0, 0x0033_3333)
            .with_register(0x9C, 0x0000_0200, 0x0000_7800);
        let mut lpc = Header::new(identity(0x2918, 0x06_0100))
            // PMBASE and ACPI_CNTL; the block itself does not move.
            .with_register(0x40, 0x0000_0601, 0x0000_FF80)
            .with_register(0x44, 0x0000_0080, 0x0000_0087)
            .with_register(0x48, 0x0000_0001, 0x0000_FF80)
            .with_register(0x4C, 0, 0x0000_0010)
            // PIRQA-H routing, all off.
            .with_register(0x60, 0x8080_8080, 0x8F8F_8F8F)
            .with_register(0x68, 0x8080_8080, 0x8F8F_8F8F)
            // I/O decode ranges and enables, generic decode ranges.
            .with_register(0x80, 0x0000_0000, 0x3F0F_1377)
            .with_register(0x84, 0, 0x00FC_FFFD)
            .with_register(0x88, 0, 0x00FC_FFFD)
            .with_register(0x8C, 0, 0x00FC_FFFD)
            .with_register(0x90, 0, 0x00FC_FFFD)
            .with_register(0xDC, 0, 0x0000_0023)
            // RCBA: stored, nothing answers there.
            .with_register(0xF0, 0, 0xFFFF_C001);
        // I/O, memory and bus mastering cannot be switched off in an LPC bridge.
        lpc.set(0x04, 0x0000_0007);
        Self { address: 0, host, lpc }
    }

    /// The address latch; only whole dwords reach it.
    pub(super) fn address(&self) -> u32 {
        self.address
    }

    pub(super) fn set_address(&mut self, value: u32) {
        self.address = value & CONFIG_WRITABLE;
    }

    /// Reads through port 0xCFC + `lane`.
    pub(super) fn data_read(&mut self, lane: u8, width: Width, wires: &mut dyn Wires) -> u32 {
        match self.latched(lane) {
            Some((target, offset)) => self.read(target, offset, width, wires),
            None => width.mask() as u32,
        }
    }

    /// Writes through port 0xCFC + `lane`.
    pub(super) fn data_write(&mut self, lane: u8, width: Width, value: u32, wires: &mut dyn Wires) {
        if let Some((target, offset)) = self.latched(lane) {
            self.write(target, offset, width, value, wires);
        }
    }

    /// The addresses that ECAM answers.
    pub(super) fn ecam(&self) -> Option<Range<u64>> {
        let register = self.host.read(PCIEXBAR.into(), Width::B4);
        let size = match register >> 1 & 3 {
            0 => 256 << 20,
            1 => 128 << 20,
            2 => 64 << 20,
            _ => return None,
        };
        let high = self.host.read(u16::from(PCIEXBAR) + 4, Width::B4);
        let base = (u64::from(high) << 32 | u64::from(register & 0xFC00_0000)) & !(size - 1);
        (register & 1 != 0).then_some(base..base + size)
    }

    /// Reads at `offset` of the ECAM window.
    pub(super) fn ecam_read(&mut self, offset: u64, width: Width, wires: &mut dyn Wires) -> u64 {
        pieces(offset, width).rev().fold(0, |value, (at, width)| {
            let (target, register) = ecam_target(at);
            value << (8 * width.bytes()) | u64::from(self.read(target, register, width, wires))
        })
    }

    /// Writes at `offset` of the ECAM window.
    pub(super) fn ecam_write(&mut self, offset: u64, width: Width, value: u64, wires: &mut dyn Wires) {
        for (at, width) in pieces(offset, width) {
            let (target, register) = ecam_target(at);
            let shifted = value >> (8 * (at - offset));
            self.write(target, register, width, (shifted & width.mask()) as u32, wires);
        }
    }

    fn latched(&self, lane: u8) -> Option<(Target, u16)> {
        let [register, slot, bus, _] = self.address.to_le_bytes();
        let target = Target { bus, device: slot >> 3, function: slot & 7 };
        (self.address & CONFIG_ENABLE != 0).then_some((target, u16::from(register & 0xFC) + u16::from(lane)))
    }

    fn read(&mut self, target: Target, offset: u16, width: Width, wires: &mut dyn Wires) -> u32 {
        let ones = width.mask() as u32;
        if target.bus != 0 || target.function != 0 || !pci::is_regular(offset, width) {
            return ones;
        }
        match target.device {
            HOST => self.host.read(offset, width),
            LPC => self.lpc.read(offset, width),
            device => wires.config_read(device, offset, width).unwrap_or(ones) & ones,
        }
    }

    fn write(&mut self, target: Target, offset: u16, width: Width, value: u32, wires: &mut dyn Wires) {
        if target.bus != 0 || target.function != 0 || !pci::is_regular(offset, width) {
            return;
        }
        match target.device {
            HOST => self.host.write(offset, width, value),
            LPC => self.lpc.write(offset, width, value),
            device => {
                // Nobody there: the write ends on the bus.
                let _ = wires.config_write(device, offset, width, value & width.mask() as u32);
            }
        }
    }
}

fn ecam_target(offset: u64) -> (Target, u16) {
    let target =
        Target { bus: (offset >> 20) as u8, device: (offset >> 15 & 0x1F) as u8, function: (offset >> 12 & 7) as u8 };
    (target, (offset & 0xFFF) as u16)
}

/// Splits an access into aligned ones of at most four bytes, in ascending order.
fn pieces(offset: u64, width: Width) -> impl DoubleEndedIterator<Item = (u64, Width)> {
    let bytes = width.bytes() as u64;
    let piece = match width {
        _ if !offset.is_multiple_of(bytes.min(4)) => Width::B1,
        Width::B8 => Width::B4,
        whole => whole,
    };
    (0..bytes / piece.bytes() as u64).map(move |index| (offset + index * piece.bytes() as u64, piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_accesses_are_split() {
        let split = |offset, width| pieces(offset, width).collect::<Vec<_>>();
        assert_eq!(split(0, Width::B4), [(0, Width::B4)]);
        assert_eq!(split(4, Width::B8), [(4, Width::B4), (8, Width::B4)]);
        assert_eq!(split(1, Width::B2), [(1, Width::B1), (2, Width::B1)]);
        assert_eq!(split(2, Width::B8).len(), 8);
    }
}
