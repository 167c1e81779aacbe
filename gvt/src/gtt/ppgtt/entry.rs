//! What a guest's PPGTT entry says. Pure: whether the frame is RAM is asked elsewhere.

use gvt_defs::pte::{ADDRESS_MASK, Level, PpgttEntry};
use gvt_defs::{Gfn, Hpa, PAGE_SIZE};

/// How the memory of a table is to be read. One guest frame may be read in several ways at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// 512 entries of this level; leaves are 4 KiB pages.
    Table(Level),
    /// A page table of 64 KiB pages: every 16th entry counts.
    Pages64K,
    /// No table of the guest: a 2 MiB page cut into 4 KiB pages with these attributes.
    Split(Attributes),
}

/// Attribute bits of a leaf, as they stand in a 4 KiB entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attributes(u64);

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// Not present.
    Absent,
    /// Present, and nothing that the hardware defines (or a 1 GiB page, which is refused).
    Malformed,
    /// Leads to a table.
    Table(Gfn, Kind, u64),
    /// A 2 MiB page: first frame and attributes.
    Large(Gfn, Attributes),
    /// A 4 KiB page.
    Page(Gfn, Attributes),
}

const LEAF: u64 = PpgttEntry::WRITABLE | PpgttEntry::PWT | PpgttEntry::PCD | PpgttEntry::PAT;
const LINK: u64 = PpgttEntry::WRITABLE | PpgttEntry::PWT | PpgttEntry::PCD;
/// PAT index bit of a 2 MiB entry.
const LARGE_PAT: u64 = 1 << 12;
/// Address bits that these GPUs do not have.
const ABOVE: u64 = !(ADDRESS_MASK | 0xFFF) & 0xF_FFFF_FFFF_FFFF;

impl Attributes {
    /// A present 4 KiB entry.
    pub(super) fn page(self, frame: Hpa) -> u64 {
        frame.0 & ADDRESS_MASK | self.0 | PpgttEntry::PRESENT
    }

    /// A present 2 MiB entry.
    pub(super) fn large(self, frame: Hpa) -> u64 {
        let pat = if self.0 & PpgttEntry::PAT != 0 { LARGE_PAT } else { 0 };
        frame.0 & ADDRESS_MASK | self.0 & LINK | pat | PpgttEntry::PAGE_SIZE | PpgttEntry::PRESENT
    }
}

impl Kind {
    /// The level whose place in a walk it takes.
    pub(super) fn level(self) -> Level {
        match self {
            Self::Table(level) => level,
            Self::Pages64K | Self::Split(_) => Level::Pt,
        }
    }

    /// Whether it is made from guest memory, which must be watched.
    pub(super) fn is_guest_table(self) -> bool {
        !matches!(self, Self::Split(_))
    }

    /// The slot whose guest entry decides what slot `i` maps.
    pub(super) fn source(self, i: usize) -> usize {
        if self == Self::Pages64K { i & !15 } else { i }
    }

    /// Decodes the entry that decides slot `i`.
    #[inline]
    pub(super) fn decode(self, raw: u64, i: usize) -> Entry {
        if raw & PpgttEntry::PRESENT == 0 {
            return Entry::Absent;
        }
        if raw & ABOVE != 0 {
            return Entry::Malformed;
        }
        let entry = PpgttEntry(raw);
        match self {
            Self::Table(Level::Pt) => Entry::Page(gfn(entry.frame()), Attributes(raw & LEAF)),
            Self::Pages64K => Entry::Page(Gfn(gfn(entry.frame_64k()).0 + (i as u64 & 15)), Attributes(raw & LEAF)),
            Self::Table(Level::Pd) if entry.is_large() => {
                let pat = if raw & LARGE_PAT != 0 { PpgttEntry::PAT } else { 0 };
                Entry::Large(gfn(entry.frame_2m()), Attributes(raw & LINK | pat))
            }
            Self::Table(Level::Pd) => {
                let kind = if entry.is_64k_table() { Self::Pages64K } else { Self::Table(Level::Pt) };
                Entry::Table(gfn(entry.frame()), kind, raw & LINK)
            }
            Self::Table(Level::Pdp | Level::Pml4) if entry.is_large() => Entry::Malformed,
            Self::Table(Level::Pdp) => Entry::Table(gfn(entry.frame()), Self::Table(Level::Pd), raw & LINK),
            Self::Table(Level::Pml4) => Entry::Table(gfn(entry.frame()), Self::Table(Level::Pdp), raw & LINK),
            Self::Split(_) => Entry::Malformed,
        }
    }
}

/// A present entry that leads to the shadow table at `frame`.
pub(super) fn link(frame: Hpa, attributes: u64) -> u64 {
    frame.0 & ADDRESS_MASK | attributes & LINK | PpgttEntry::PRESENT
}

fn gfn(frame: Hpa) -> Gfn {
    Gfn(frame.0 / PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PD: Kind = Kind::Table(Level::Pd);
    const PT: Kind = Kind::Table(Level::Pt);

    #[test]
    fn decodes_every_level() {
        assert_eq!(PT.decode(0x1234_5002, 0), Entry::Absent);
        assert_eq!(PT.decode(0x1234_5093, 0), Entry::Page(Gfn(0x12345), Attributes(0x92)));
        assert_eq!(Kind::Pages64K.decode(0x1234_5003, 5), Entry::Page(Gfn(0x12345), Attributes(2)));
        assert_eq!(PD.decode(0x1234_5803, 0), Entry::Table(Gfn(0x12345), Kind::Pages64K, 2));
        assert_eq!(PD.decode(0x1220_1083, 0), Entry::Large(Gfn(0x12200), Attributes(0x82)));
        assert_eq!(Kind::Table(Level::Pml4).decode(0x5003, 0), Entry::Table(Gfn(5), Kind::Table(Level::Pdp), 2));
    }

    #[test]
    fn refuses_what_the_hardware_does_not_define() {
        for kind in [PT, PD, Kind::Pages64K, Kind::Table(Level::Pdp), Kind::Table(Level::Pml4)] {
            assert_eq!(kind.decode(u64::MAX, 0), Entry::Malformed);
            assert_eq!(kind.decode(1 << 39 | 1, 0), Entry::Malformed);
            assert_eq!(kind.decode(u64::MAX - 1, 0), Entry::Absent);
        }
        assert_eq!(Kind::Table(Level::Pdp).decode(0x4000_0083, 0), Entry::Malformed);
    }

    #[test]
    fn large_pages_keep_their_attributes() {
        let Entry::Large(_, attributes) = PD.decode(0x1220_109B, 0) else { panic!() };
        assert_eq!(attributes.large(Hpa(0x40_0000)), 0x40_109B);
        assert_eq!(attributes.page(Hpa(0x40_3000)), 0x40_309B);
    }
}
