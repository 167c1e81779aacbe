//! A type 0 configuration space made of data: values, and masks of what a guest may change.
//! Layout: PCI Local Bus Specification 3.0, section 6.1; MSI: section 6.8.1.

use hv_defs::Width;

use super::{BarWindow, BarWindows, Space};
use crate::message::Message;

const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2C;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
/// I/O, memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;

/// Where no BAR may decode: I/O APIC, local APICs, firmware. A BAR that is being sized "lies" here too, and sizing goes
/// on with decode enabled in some guests.
const RESERVED_FIRST: u64 = 0xFEC0_0000;
const RESERVED_LAST: u64 = 0xFFFF_FFFF;
/// Largest physical address.
const ADDRESS_END: u64 = 1 << 52;

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

/// Number of a BAR register, 0 to 5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarIndex(u8);

impl BarIndex {
    /// `None` if there is no such register.
    pub const fn new(index: u8) -> Option<Self> {
        if index < 6 { Some(Self(index)) } else { None }
    }
}

/// Kind and size of a BAR. Sizes are powers of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// 32-bit memory.
    Memory32(u32),
    /// 64-bit memory; takes two registers.
    Memory64(u64),
    /// 64-bit prefetchable memory; takes two registers.
    Prefetchable64(u64),
    /// Ports.
    Io(u32),
}

/// A configuration space of 256 bytes.
#[derive(Clone)]
pub struct Header {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: [Option<Bar>; 6],
}

impl Header {
    /// A header with an identity, a COMMAND register and an interrupt line.
    pub fn new(identity: Identity) -> Self {
        let mut header = Self { bytes: [0; SIZE], writable: [0; SIZE], bars: [None; 6] };
        header.set16(0x00, identity.vendor);
        header.set16(0x02, identity.device);
        header.set32(0x08, identity.class << 8 | u32::from(identity.revision));
        header.set16(SUBSYSTEM, identity.subsystem_vendor);
        header.set16(SUBSYSTEM + 2, identity.subsystem);
        header.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        header.allow(INTERRUPT_LINE, &[0xFF]);
        header
    }

    /// Adds a BAR.
    #[must_use]
    pub fn with_bar(mut self, index: BarIndex, bar: Bar) -> Self {
        let at = BAR0 + 4 * usize::from(index.0);
        let (flags, mask) = match bar {
            Bar::Memory32(size) => (0x0, u64::from(!size.wrapping_sub(1) & !0xF)),
            Bar::Memory64(size) => (0x4, !size.wrapping_sub(1) & !0xF),
            Bar::Prefetchable64(size) => (0xC, !size.wrapping_sub(1) & !0xF),
            Bar::Io(size) => (0x1, u64::from(!size.wrapping_sub(1) & !0x3)),
        };
        self.set32(at, flags);
        self.allow(at, &(mask as u32).to_le_bytes());
        if matches!(bar, Bar::Memory64(_) | Bar::Prefetchable64(_)) {
            self.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        if let Some(slot) = self.bars.get_mut(usize::from(index.0)) {
            *slot = Some(bar);
        }
        self
    }

    /// Adds a register: its value after reset and the bits that a guest may change.
    #[must_use]
    pub fn with_register(mut self, offset: u8, value: u32, writable: u32) -> Self {
        self.set32(offset.into(), value);
        self.allow(offset.into(), &writable.to_le_bytes());
        self
    }

    /// Adds an MSI capability (64-bit address, one vector) at `offset`, in front of the capability list.
    #[must_use]
    pub fn with_msi(mut self, offset: u8) -> (Self, Msi) {
        let next = self.get(CAPABILITIES);
        let at = usize::from(offset & 0xFC);
        self.set32(at, 0x0080_0005 | u32::from(next) << 8);
        self.allow(at + 2, &[0x01, 0x00]);
        self.allow(at + 4, &0xFFFF_FFFC_u32.to_le_bytes());
        self.allow(at + 8, &u32::MAX.to_le_bytes());
        self.allow(at + 12, &0xFFFF_u16.to_le_bytes());
        self.put(CAPABILITIES, at as u8);
        self.put(0x06, self.get(0x06) | STATUS_CAPABILITIES);
        (self, Msi { at })
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

    /// What is decoded now.
    pub fn windows(&self) -> BarWindows {
        let command = self.get16(COMMAND);
        (0u8..).zip(self.bars).filter_map(|(index, bar)| self.window(index, bar?, command)).collect()
    }

    fn window(&self, index: u8, bar: Bar, command: u16) -> Option<BarWindow> {
        let at = BAR0 + 4 * usize::from(index);
        let low = u64::from(self.get32(at));
        let high = u64::from(self.get32(at + 4)) << 32;
        let (space, base, size) = match bar {
            Bar::Io(size) => (Space::Io, low & 0xFFFC, size.into()),
            Bar::Memory32(size) => (Space::Memory, low & !0xF, size.into()),
            Bar::Memory64(size) | Bar::Prefetchable64(size) => (Space::Memory, high | low & !0xF, size),
        };
        let enabled = match space {
            Space::Io => command & COMMAND_IO != 0,
            Space::Memory => command & COMMAND_MEMORY != 0,
        };
        let end = base.checked_add(size)?;
        let fits = match space {
            Space::Io => end < 0x1_0000,
            Space::Memory => end <= ADDRESS_END && (end <= RESERVED_FIRST || base > RESERVED_LAST),
        };
        (enabled && base != 0 && fits).then_some(BarWindow { bar: index, space, base, size })
    }

    fn get(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn put(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.bytes.get_mut(at) {
            *byte = value;
        }
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.get(at), self.get(at + 1)])
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
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

/// Where the MSI capability of a header lies.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    at: usize,
}

impl Msi {
    /// The message to send; `None` while the guest has MSI disabled or the address is none for interrupts.
    pub fn message(&self, header: &Header) -> Option<Message> {
        if header.get(self.at + 2) & 1 == 0 {
            return None;
        }
        let address = u64::from(header.get32(self.at + 4)) | u64::from(header.get32(self.at + 8)) << 32;
        Message::from_msi(address, header.get16(self.at + 12).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Destination;

    const IDENTITY: Identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 3,
        class: 0x01_0802,
        subsystem_vendor: 0x1AF4,
        subsystem: 0x1100,
    };

    fn header() -> (Header, Msi) {
        Header::new(IDENTITY)
            .with_bar(BarIndex::new(0).unwrap(), Bar::Memory64(0x4000))
            .with_bar(BarIndex::new(2).unwrap(), Bar::Prefetchable64(256 << 20))
            .with_bar(BarIndex::new(4).unwrap(), Bar::Io(64))
            .with_msi(0x40)
    }

    #[test]
    fn the_identity_shows_in_every_width() {
        let (header, _) = header();
        assert_eq!(header.read(0, Width::B4), 0x5678_1234);
        assert_eq!(header.read(2, Width::B2), 0x5678);
        assert_eq!(header.read(0x0B, Width::B1), 0x01);
        assert_eq!(header.read(0x2C, Width::B4), 0x1100_1AF4);
        assert_eq!(header.read(0x100, Width::B4), 0);
        assert_eq!(header.read(0x06, Width::B2) & 0x10, 0x10);
    }

    #[test]
    fn read_only_bits_stay() {
        let (mut header, _) = header();
        header.write(0, Width::B4, u32::MAX);
        assert_eq!(header.read(0, Width::B4), 0x5678_1234);
        header.write(0xFE, Width::B4, u32::MAX);
        header.write(4, Width::B2, 0xFFFF);
        assert_eq!(header.read(4, Width::B2), 0x0547);
    }

    #[test]
    fn bars_are_sized_with_decode_enabled_and_move_on_the_final_value_only() {
        let (mut header, _) = header();
        header.write(0x10, Width::B4, 0xC000_0000);
        header.write(0x04, Width::B2, 0x0003);
        let window = BarWindow { bar: 0, space: Space::Memory, base: 0xC000_0000, size: 0x4000 };
        assert_eq!(header.windows()[..], [window]);
        header.write(0x10, Width::B4, u32::MAX);
        assert_eq!(header.read(0x10, Width::B4), 0xFFFF_C004);
        assert_eq!(header.windows()[..], []);
        header.write(0x14, Width::B4, u32::MAX);
        assert_eq!(header.read(0x14, Width::B4), u32::MAX);
        header.write(0x14, Width::B4, 8);
        header.write(0x10, Width::B4, 0xFFFF_C00F);
        assert_eq!(header.read(0x10, Width::B4), 0xFFFF_C004);
        assert_eq!(header.windows()[0].base, 0x8_FFFF_C000);
        header.write(0x18, Width::B4, u32::MAX);
        assert_eq!(header.read(0x18, Width::B4), 0xF000_000C);
        header.write(0x20, Width::B4, 0xE000);
        assert_eq!(header.windows().last().unwrap().space, Space::Io);
        header.write(0x04, Width::B2, 0);
        assert_eq!(header.windows()[..], []);
    }

    #[test]
    fn msi_is_silent_until_enabled() {
        let (mut header, msi) = header();
        header.write(0x44, Width::B4, 0xFEE0_1000);
        header.write(0x4C, Width::B2, 0x0031);
        assert_eq!(msi.message(&header), None);
        header.write(0x42, Width::B2, 1);
        let message = msi.message(&header).unwrap();
        assert_eq!((message.vector, message.to), (0x31, Destination::Physical(1)));
        header.write(0x48, Width::B4, 1);
        assert_eq!(msi.message(&header), None, "not the interrupt range");
    }
}
