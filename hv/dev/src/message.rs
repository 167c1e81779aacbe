//! Interrupt messages: what an I/O APIC, a PCI function (MSI) or a local APIC (IPI) sends to local APICs.
//! Layouts: Intel SDM Vol. 3A, 11.6.1 (ICR) and 11.11 (message signalled interrupts).

/// Which local APICs a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The one with this APIC ID.
    Physical(u32),
    /// Those whose logical APIC ID matches this mask.
    Logical(u32),
    /// All of them, the sender included (the physical broadcast of every source is turned into this).
    Everyone,
    /// All but the sender.
    Others,
}

/// What a message does where it arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// An interrupt with the vector, at every match.
    Fixed,
    /// An interrupt with the vector, at the match with the lowest priority.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// The INIT signal.
    Init,
    /// Start-up with the vector as the page number of the first instruction.
    Sipi,
    /// An interrupt whose vector the 8259 pair supplies.
    ExtInt,
    /// SMI, remote read and reserved encodings: accepted and dropped.
    Ignored,
}

impl Delivery {
    /// Decodes the three bits that ICR, redirection entries and MSI data have in common.
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Sipi,
            7 => Self::ExtInt,
            _ => Self::Ignored,
        }
    }
}

/// Whether the receiver must send an EOI back to the I/O APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// No EOI goes out.
    Edge,
    /// The EOI is broadcast, so that the I/O APIC can clear Remote IRR.
    Level,
}

/// One interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// For whom.
    pub to: Destination,
    /// What it does.
    pub delivery: Delivery,
    /// Vector (page number for `Sipi`).
    pub vector: u8,
    /// Edge or level.
    pub trigger: Trigger,
}

/// First and last byte of the address range in which a memory write is an interrupt message.
pub const MSI_BASE: u64 = 0xFEE0_0000;
/// Last byte of that range.
pub const MSI_LAST: u64 = 0xFEEF_FFFF;

impl Message {
    /// Decodes a message signalled interrupt. `None` if `address` is not in the interrupt range.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address < MSI_BASE || address > MSI_LAST {
            return None;
        }
        let id = (address >> 12) as u32 & 0xFF;
        let logical = address & 4 != 0;
        let trigger = if data & 1 << 15 != 0 { Trigger::Level } else { Trigger::Edge };
        Some(Self {
            to: Destination::from_byte(id as u8, logical),
            delivery: Delivery::from_bits(data >> 8),
            vector: data as u8,
            trigger,
        })
    }
}

impl Destination {
    /// Destination of an 8-bit source: physical 0xFF is the broadcast.
    pub const fn from_byte(id: u8, logical: bool) -> Self {
        match (logical, id) {
            (true, _) => Self::Logical(id as u32),
            (false, 0xFF) => Self::Everyone,
            (false, _) => Self::Physical(id as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_msi_is_decoded() {
        let message = Message::from_msi(0xFEE0_1000, 0x4021).unwrap();
        assert_eq!(message.to, Destination::Physical(1));
        assert_eq!((message.delivery, message.vector, message.trigger), (Delivery::Fixed, 0x21, Trigger::Edge));
        let message = Message::from_msi(0xFEE0_300C, 0xC131).unwrap();
        assert_eq!(message.to, Destination::Logical(3));
        assert_eq!((message.delivery, message.trigger), (Delivery::LowestPriority, Trigger::Level));
        assert_eq!(Message::from_msi(0xFEEF_F000, 0).unwrap().to, Destination::Everyone);
        assert_eq!(Message::from_msi(0xFED0_0000, 0), None);
        assert_eq!(Message::from_msi(0xFEF0_0000, 0), None);
    }
}
