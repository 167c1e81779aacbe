//! Page-table entries: one level for the global space (GGTT), four for a process space (PPGTT, "legacy 64b").

use crate::{Hpa, PAGE_SIZE, PpgttAddr};

/// Address bits of an entry that Gen9 uses: 38:12.
pub const ADDRESS_MASK: u64 = 0x7F_FFFF_F000;
/// Entries in one PPGTT table.
pub const TABLE_ENTRIES: usize = 512;
/// Levels of a PPGTT walk.
pub const LEVELS: u32 = 4;

/// An entry of the GGTT. Bits 11:1 are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GgttPte(pub u64);

impl GgttPte {
    /// Bit 0.
    pub const PRESENT: u64 = 1 << 0;

    /// A present entry for the frame at `hpa`.
    pub const fn new(hpa: Hpa) -> Self {
        Self(hpa.0 & ADDRESS_MASK | Self::PRESENT)
    }

    /// Whether it maps anything.
    pub const fn present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// The frame.
    pub const fn frame(self) -> Hpa {
        Hpa(self.0 & ADDRESS_MASK)
    }
}

/// Level of a PPGTT table; a walk goes from `Pml4` to `Pt`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// Page table: 4 KiB (or 64 KiB) pages.
    Pt,
    /// Page directory: page tables or 2 MiB pages.
    Pd,
    /// Page directory pointers.
    Pdp,
    /// Root.
    Pml4,
}

impl Level {
    /// Lowest address bit that indexes a table of this level.
    pub const fn shift(self) -> u32 {
        12 + 9 * self as u32
    }

    /// Index of `address` in a table of this level.
    pub const fn index(self, address: PpgttAddr) -> usize {
        (address.0 >> self.shift()) as usize & (TABLE_ENTRIES - 1)
    }

    /// The level below, `None` under a page table.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::Pml4 => Some(Self::Pdp),
            Self::Pdp => Some(Self::Pd),
            Self::Pd => Some(Self::Pt),
            Self::Pt => None,
        }
    }
}

/// An entry of a PPGTT table, of any level.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PpgttEntry(pub u64);

impl PpgttEntry {
    /// Bit 0.
    pub const PRESENT: u64 = 1 << 0;
    /// Bit 1: without it the GPU's writes are dropped.
    pub const WRITABLE: u64 = 1 << 1;
    /// Bit 3, part of the PAT index.
    pub const PWT: u64 = 1 << 3;
    /// Bit 4, part of the PAT index.
    pub const PCD: u64 = 1 << 4;
    /// Bit 7 of a page directory entry: a 2 MiB page; of a PDP entry: 1 GiB.
    pub const PAGE_SIZE: u64 = 1 << 7;
    /// Bit 7 of a page table entry: part of the PAT index.
    pub const PAT: u64 = 1 << 7;
    /// Bit 11 of a page directory entry ("IPS"): the table holds 64 KiB pages, one every 16th entry.
    pub const IPS_64K: u64 = 1 << 11;

    /// Whether it maps anything.
    pub const fn present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether the GPU may write through it.
    pub const fn writable(self) -> bool {
        self.0 & Self::WRITABLE != 0
    }

    /// In a page directory: whether it maps a 2 MiB page itself.
    pub const fn is_large(self) -> bool {
        self.0 & Self::PAGE_SIZE != 0
    }

    /// In a page directory: whether its table holds 64 KiB pages.
    pub const fn is_64k_table(self) -> bool {
        self.0 & Self::IPS_64K != 0
    }

    /// Address of the table or 4 KiB page below.
    pub const fn frame(self) -> Hpa {
        Hpa(self.0 & ADDRESS_MASK)
    }

    /// Address of the 64 KiB page (bits 15:12 do not count).
    pub const fn frame_64k(self) -> Hpa {
        Hpa(self.0 & ADDRESS_MASK & !0xFFFF)
    }

    /// Address of the 2 MiB page (bits 20:12 do not count).
    pub const fn frame_2m(self) -> Hpa {
        Hpa(self.0 & ADDRESS_MASK & !0x1F_FFFF)
    }

    /// The same entry pointing at another frame; all other bits are kept.
    #[must_use]
    pub const fn with_frame(self, frame: Hpa) -> Self {
        Self(self.0 & !ADDRESS_MASK | frame.0 & ADDRESS_MASK)
    }
}

/// Strips the sign extension of a canonical 48-bit address.
pub const fn strip(address: u64) -> PpgttAddr {
    PpgttAddr(address & 0xFFFF_FFFF_FFFF)
}

/// A 48-bit address as commands name it: bits 63:48 are equal to bit 47.
pub const fn canonical(address: PpgttAddr) -> u64 {
    ((address.0 << 16) as i64 >> 16) as u64
}

const _: () = assert!(strip(canonical(PpgttAddr(0xFE80_0000_0040))).0 == 0xFE80_0000_0040);
const _: () = assert!(PAGE_SIZE == 1 << Level::Pt.shift());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices() {
        let a = strip(0xFFFF_8080_C060_5123);
        assert_eq!(a.0, 0x8080_C060_5123);
        assert_eq!(Level::Pml4.index(a), 257);
        assert_eq!(Level::Pdp.index(a), 3);
        assert_eq!(Level::Pd.index(a), 3);
        assert_eq!(Level::Pt.index(a), 5);
        assert_eq!(Level::Pml4.below(), Some(Level::Pdp));
    }

    #[test]
    fn entries() {
        let e = PpgttEntry(0x8000_0012_3456_7083).with_frame(Hpa(0xABC_D000));
        assert_eq!(e.frame(), Hpa(0xABC_D000));
        assert!(e.present() && e.writable() && e.is_large());
        assert_eq!(GgttPte::new(Hpa(0x1234_5678)).frame(), Hpa(0x1234_5000));
    }
}
