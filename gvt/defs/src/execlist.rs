//! Execlists: context descriptors, submission status, context status buffer.

use crate::GgttAddr;

/// A context descriptor, as written to ELSP.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash, Debug)]
pub struct Descriptor(pub u64);

/// How a context's PPGTT is laid out (descriptor bits 4:3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addressing {
    /// Advanced contexts, no 64-bit space.
    Advanced,
    /// Legacy, three levels: four page directories in PDP0..3.
    Legacy32,
    /// Advanced with 64-bit space.
    Advanced64,
    /// Legacy, four levels: PDP0 holds the PML4.
    Legacy64,
}

impl Descriptor {
    /// Bit 0.
    pub const VALID: u64 = 1 << 0;
    /// Bit 1: reload the page directory pointers.
    pub const FORCE_PD_RESTORE: u64 = 1 << 1;
    /// Bit 2: reload the whole context even if it is the one running.
    pub const FORCE_RESTORE: u64 = 1 << 2;
    /// Bits 4:3 of a four-level context.
    pub const LEGACY_64: u64 = 3 << 3;
    /// Bit 5: L3 and LLC coherent.
    pub const L3LLC_COHERENT: u64 = 1 << 5;
    /// Bit 8.
    pub const PRIVILEGE: u64 = 1 << 8;
    /// Address of the context image in the GGTT.
    pub const LRCA_MASK: u64 = 0xFFFF_F000;

    /// A valid, privileged, four-level descriptor.
    pub const fn new(lrca: GgttAddr, id: u32) -> Self {
        Self(
            (id as u64) << 32
                | lrca.0 as u64 & Self::LRCA_MASK
                | Self::PRIVILEGE
                | Self::L3LLC_COHERENT
                | Self::LEGACY_64
                | Self::VALID,
        )
    }

    /// From the two dwords of ELSP.
    pub const fn from_parts(low: u32, high: u32) -> Self {
        Self((high as u64) << 32 | low as u64)
    }

    /// Whether it names a context.
    pub const fn valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Whether everything must be reloaded.
    pub const fn force_restore(self) -> bool {
        self.0 & Self::FORCE_RESTORE != 0
    }

    /// Where the context image begins (its status page).
    pub const fn lrca(self) -> GgttAddr {
        GgttAddr((self.0 & Self::LRCA_MASK) as u32)
    }

    /// What software calls it; echoed in status entries.
    pub const fn id(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The low dword.
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// Layout of its address space.
    pub const fn addressing(self) -> Addressing {
        match (self.0 >> 3) & 3 {
            0 => Addressing::Advanced,
            1 => Addressing::Legacy32,
            2 => Addressing::Advanced64,
            _ => Addressing::Legacy64,
        }
    }

    /// The same context image and id: what lite restore compares.
    pub const fn same_context(self, other: Self) -> bool {
        self.lrca().0 == other.lrca().0 && self.id() == other.id()
    }
}

/// Entries in the context status buffer.
pub const CSB_ENTRIES: u32 = 6;
/// Write pointer after power-on and reset: the next entry is 0.
pub const CSB_PTR_RESET: u32 = 7;
/// Byte offset of entry 0 in the hardware status page.
pub const HWSP_CSB: u32 = 0x40;
/// Byte offset of the write pointer in the hardware status page.
pub const HWSP_CSB_WRITE: u32 = 0x7C;

/// The entry after `pointer`; 7 (reset) and 5 go to 0.
pub const fn csb_next(pointer: u32) -> u32 {
    if pointer >= CSB_ENTRIES - 1 { 0 } else { pointer + 1 }
}

/// One entry of the context status buffer.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CsbEntry {
    /// Status bits.
    pub status: u32,
    /// Context id.
    pub id: u32,
}

impl CsbEntry {
    /// Bit 0.
    pub const IDLE_ACTIVE: u32 = 1 << 0;
    /// Bit 1.
    pub const PREEMPTED: u32 = 1 << 1;
    /// Bit 2.
    pub const ELEMENT_SWITCH: u32 = 1 << 2;
    /// Bit 3.
    pub const ACTIVE_IDLE: u32 = 1 << 3;
    /// Bit 4.
    pub const COMPLETE: u32 = 1 << 4;
    /// Bit 7.
    pub const WAIT_SEMAPHORE: u32 = 1 << 7;
    /// Bit 15.
    pub const LITE_RESTORE: u32 = 1 << 15;

    /// Whether it tells that the pending submission became active.
    pub const fn promotes(self) -> bool {
        self.status & (Self::IDLE_ACTIVE | Self::PREEMPTED) != 0
    }

    /// Whether it tells that the oldest active element finished.
    pub const fn completes(self) -> bool {
        !self.promotes()
    }
}

pub mod status {
    //! EXECLIST_STATUS_LO.
    #![allow(missing_docs, reason = "the names are the datasheet's")]
    pub const CURRENT_POINTER: u32 = 1 << 0;
    pub const WRITE_POINTER: u32 = 1 << 1;
    pub const QUEUE_FULL: u32 = 1 << 2;
    pub const LIST1_VALID: u32 = 1 << 3;
    pub const LIST0_VALID: u32 = 1 << 4;
    pub const LAST_SWITCH_REASON_SHIFT: u32 = 5;
    pub const LAST_SWITCH_REASON_MASK: u32 = 0x1FF << 5;
    pub const ACTIVE_ELEMENT0: u32 = 1 << 14;
    pub const ACTIVE_ELEMENT1: u32 = 2 << 14;
    pub const ARBITRATION_ENABLE: u32 = 1 << 16;
    pub const LIST1_ACTIVE: u32 = 1 << 17;
    pub const LIST0_ACTIVE: u32 = 1 << 18;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_fields() {
        let d = Descriptor::new(GgttAddr(0x0123_4000), 0xABCD);
        assert!(d.valid() && !d.force_restore());
        assert_eq!((d.lrca(), d.id(), d.addressing()), (GgttAddr(0x0123_4000), 0xABCD, Addressing::Legacy64));
        assert_eq!(Descriptor::from_parts(d.low(), d.id()), d);
    }

    #[test]
    fn csb_pointer_wraps() {
        assert_eq!([7, 5, 0, 4].map(csb_next), [0, 0, 1, 5]);
    }
}
