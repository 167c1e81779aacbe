//! The vfio-user messages that a PCI device server needs: numbers, layouts, and bounded decoding.
//!
//! Layouts: vfio-user specification (libvfio-user, docs/vfio-user.rst, version 0.9.2) and `linux/vfio.h`.
//! All fields are little endian. Nothing here allocates; a payload is a slice of the receive buffer.

use std::ops::Range;

/// Bytes of a message header.
pub const HEADER: usize = 16;
/// The largest region access; told to the client in the version reply.
pub const MAX_TRANSFER: usize = 64 * 1024;
/// The largest message accepted or sent: a transfer and its descriptors.
pub const MAX_MESSAGE: usize = MAX_TRANSFER + 4096;
/// The most file descriptors in one message; told to the client.
pub const MAX_FDS: usize = 8;

/// Header flag: the message is a reply.
pub const FLAG_REPLY: u32 = 0x1;
/// Header flags: the kind of message (command or reply).
pub const FLAG_TYPE: u32 = 0xf;
/// Header flag: the sender wants no reply (a posted write).
pub const FLAG_NO_REPLY: u32 = 0x10;
/// Header flag: the reply carries an errno.
pub const FLAG_ERROR: u32 = 0x20;

/// `VFIO_DEVICE_FLAGS_RESET | VFIO_DEVICE_FLAGS_PCI`.
pub const DEVICE_FLAGS: u32 = 0x1 | 0x2;
/// `VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE`.
pub const REGION_FLAGS: u32 = 0x1 | 0x2;
/// PCI regions: BAR0 to BAR5, ROM, configuration, VGA.
pub const REGIONS: u32 = 9;
/// Region index of configuration space.
pub const REGION_CONFIG: u32 = 7;
/// PCI interrupt kinds: INTx, MSI, MSI-X, ERR, REQ.
pub const IRQS: u32 = 5;

/// DMA_MAP flag: the device may read.
pub const DMA_READ: u32 = 0x1;
/// DMA_MAP flag: the device may write.
pub const DMA_WRITE: u32 = 0x2;
/// DMA_UNMAP flag: everything, whatever the address and size say.
pub const DMA_UNMAP_ALL: u32 = 0x2;

/// The commands that a client sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Command {
    Version,
    DmaMap,
    DmaUnmap,
    DeviceGetInfo,
    DeviceGetRegionInfo,
    DeviceGetIrqInfo,
    DeviceSetIrqs,
    RegionRead,
    RegionWrite,
    DeviceReset,
    /// One that this server does not offer.
    Other(u16),
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::DeviceGetInfo,
            5 => Self::DeviceGetRegionInfo,
            7 => Self::DeviceGetIrqInfo,
            8 => Self::DeviceSetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            13 => Self::DeviceReset,
            other => Self::Other(other),
        }
    }
}

/// A message header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Chosen by the sender of a command, echoed in its reply.
    pub id: u16,
    /// What is asked.
    pub command: u16,
    /// Whole message, header included.
    pub size: u32,
    /// Kind and modifiers.
    pub flags: u32,
    /// Errno of a reply.
    pub error: u32,
}

impl Header {
    /// Decodes the first 16 bytes of `bytes`; `None` if there are fewer.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            id: u16::try_from(field(bytes, 0..2)?).ok()?,
            command: u16::try_from(field(bytes, 2..4)?).ok()?,
            size: u32_at(bytes, 4)?,
            flags: u32_at(bytes, 8)?,
            error: u32_at(bytes, 12)?,
        })
    }

    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.command.to_le_bytes());
        for word in [self.size, self.flags, self.error] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
}

/// Reads a 32-bit field at `offset`; `None` beyond the end.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    u32::try_from(field(bytes, offset..offset.checked_add(4)?)?).ok()
}

/// Reads a 64-bit field at `offset`; `None` beyond the end.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    field(bytes, offset..offset.checked_add(8)?)
}

fn field(bytes: &[u8], range: Range<usize>) -> Option<u64> {
    let field = bytes.get(range)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// The payload of DMA_MAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaMap {
    /// `DMA_READ` and `DMA_WRITE`.
    pub flags: u32,
    /// Where the range begins in the file that comes along.
    pub offset: u64,
    /// Bus address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaMap {
    /// Decodes a payload; `None` if it is short.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Some(Self {
            flags: u32_at(payload, 4)?,
            offset: u64_at(payload, 8)?,
            address: u64_at(payload, 16)?,
            size: u64_at(payload, 24)?,
        })
    }
}

/// The payload of DMA_UNMAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaUnmap {
    /// `DMA_UNMAP_ALL`.
    pub flags: u32,
    /// Bus address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaUnmap {
    /// Decodes a payload; `None` if it is short.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Some(Self { flags: u32_at(payload, 4)?, address: u64_at(payload, 8)?, size: u64_at(payload, 16)? })
    }
}

/// The descriptor at the head of REGION_READ and REGION_WRITE and of their replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionAccess {
    /// Byte offset in the region.
    pub offset: u64,
    /// Region index.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

impl RegionAccess {
    /// Bytes of the descriptor.
    pub const SIZE: usize = 16;

    /// Decodes a payload; `None` if it is short.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Some(Self { offset: u64_at(payload, 0)?, region: u32_at(payload, 8)?, count: u32_at(payload, 12)? })
    }

    /// Appends the descriptor to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.region.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
    }
}

/// The payload of DEVICE_SET_IRQS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetIrqs {
    /// Kind of data and action.
    pub flags: u32,
    /// Interrupt kind.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Vectors.
    pub count: u32,
}

impl SetIrqs {
    /// Bytes before the data.
    pub const SIZE: usize = 20;
    /// `VFIO_IRQ_SET_DATA_NONE`.
    pub const DATA_NONE: u32 = 0x1;
    /// `VFIO_IRQ_SET_DATA_BOOL`.
    pub const DATA_BOOL: u32 = 0x2;
    /// `VFIO_IRQ_SET_DATA_EVENTFD`.
    pub const DATA_EVENTFD: u32 = 0x4;
    /// `VFIO_IRQ_SET_ACTION_MASK`.
    pub const MASK: u32 = 0x8;
    /// `VFIO_IRQ_SET_ACTION_UNMASK`.
    pub const UNMASK: u32 = 0x10;
    /// `VFIO_IRQ_SET_ACTION_TRIGGER`.
    pub const TRIGGER: u32 = 0x20;

    /// Decodes a payload; `None` if it is short.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Some(Self {
            flags: u32_at(payload, 4)?,
            index: u32_at(payload, 8)?,
            start: u32_at(payload, 12)?,
            count: u32_at(payload, 16)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_a_round_trip() {
        let header = Header { id: 0xbeef, command: 9, size: 52, flags: FLAG_NO_REPLY, error: 22 };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        assert_eq!(bytes.len(), HEADER);
        assert_eq!(bytes[..4], [0xef, 0xbe, 9, 0]);
        assert_eq!(Header::decode(&bytes), Some(header));
    }

    #[test]
    fn short_payloads_do_not_decode() {
        let bytes = [0u8; 40];
        for short in 0..HEADER {
            assert_eq!(Header::decode(&bytes[..short]), None);
            assert_eq!(RegionAccess::decode(&bytes[..short]), None);
        }
        for short in 0..32 {
            assert_eq!(DmaMap::decode(&bytes[..short]), None);
        }
        for short in 0..24 {
            assert_eq!(DmaUnmap::decode(&bytes[..short]), None);
        }
        for short in 0..SetIrqs::SIZE {
            assert_eq!(SetIrqs::decode(&bytes[..short]), None);
        }
        assert_eq!(u32_at(&bytes, usize::MAX), None);
        assert_eq!(u64_at(&bytes, usize::MAX - 3), None);
    }
}
