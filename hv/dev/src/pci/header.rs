//! A type 0 configuration space made of data: values, and masks of what a guest may change.
//! Layout: PCI Local Bus Specification 3.0, section 6.1.

use hv_defs::Width;

const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const SUBSYSTEM: usize = 0x2C;
const INTERRUPT_LINE: usize = 0x3C;

/// I/O, memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;

/// Who a function says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, sub-class, programming interface, as 0xBBSSPP.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A configuration space of 256 bytes.
#[derive(Clone)]
pub struct Header {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
}

impl Header {
    /// A header with an identity, a COMMAND register and an interrupt line.
    pub fn new(identity: Identity) -> Self {
        let mut header = Self { bytes: [0; SIZE], writable: [0; SIZE] };
        header.set16(0x00, identity.vendor);
        header.set16(0x02, identity.device);
        header.set32(0x08, identity.class << 8 | u32::from(identity.revision));
        header.set16(SUBSYSTEM, identity.subsystem_vendor);
        header.set16(SUBSYSTEM + 2, identity.subsystem);
        header.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        header.allow(INTERRUPT_LINE, &[0xFF]);
        header
    }

    /// Adds a register: its value after reset and the bits that a guest may change.
    #[must_use]
    pub fn with_register(mut self, offset: u8, value: u32, writable: u32) -> Self {
        self.set32(offset.into(), value);
        self.allow(offset.into(), &writable.to_le_bytes());
        self
    }

    /// Reads. Extended configuration space reads as empty.
    pub fn read(&self, offset: u16, width: Width) -> u32 {
        let at = usize::from(offset);
        let value = (0..width.bytes().min(4)).rev().fold(0, |value, byte| value << 8 | u32::from(self.get(at + byte)));
        value & width.mask() as u32
    }

    /// Writes what may be written.
    pub fn write(&mut self, offset: u16, width: Width, value: u32) {
        for (byte, new) in value.to_le_bytes().into_iter().take(width.bytes()).enumerate() {
            let at = usize::from(offset) + byte;
            let mask = self.writable.get(at).copied().unwrap_or(0);
            self.put(at, self.get(at) & !mask | new & mask);
        }
    }

    /// Sets a dword, whatever its mask: for what the device itself changes.
    pub fn set(&mut self, offset: u8, value: u32) {
        self.set32(offset.into(), value);
    }

    fn get(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn put(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.bytes.get_mut(at) {
            *byte = value;
        }
    }

    fn set16(&mut self, at: usize, value: u16) {
        value.to_le_bytes().into_iter().enumerate().for_each(|(byte, value)| self.put(at + byte, value));
    }

    fn set32(&mut self, at: usize, value: u32) {
        value.to_le_bytes().into_iter().enumerate().for_each(|(byte, value)| self.put(at + byte, value));
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (byte, mask) in mask.iter().enumerate() {
            if let Some(writable) = self.writable.get_mut(at + byte) {
                *writable = *mask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 3,
        class: 0x01_0802,
        subsystem_vendor: 0x1AF4,
        subsystem: 0x1100,
    };

    #[test]
    fn the_identity_shows_in_every_width() {
        let header = Header::new(IDENTITY);
        assert_eq!(header.read(0, Width::B4), 0x5678_1234);
        assert_eq!(header.read(2, Width::B2), 0x5678);
        assert_eq!(header.read(0x0B, Width::B1), 0x01);
        assert_eq!(header.read(0x2C, Width::B4), 0x1100_1AF4);
        assert_eq!(header.read(0x100, Width::B4), 0);
    }

    #[test]
    fn read_only_bits_stay() {
        let mut header = Header::new(IDENTITY).with_register(0x60, 0x1234_5678, 0x0000_FF00);
        header.write(0, Width::B4, u32::MAX);
        assert_eq!(header.read(0, Width::B4), 0x5678_1234);
        header.write(0xFE, Width::B4, u32::MAX);
        header.write(4, Width::B2, 0xFFFF);
        assert_eq!(header.read(4, Width::B2), 0x0547);
        header.write(0x60, Width::B4, 0);
        assert_eq!(header.read(0x60, Width::B4), 0x1234_0078);
    }
}
