//! Nested page tables: what an entry of each format looks like (APM volume 2, 15.25; SDM volume 3, 29.3).

use crate::addr::Hpa;

/// What a guest may do with a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Loads and fetches; stores exit.
    Read,
    /// Everything.
    ReadWrite,
}

/// How the memory behind a mapping is cached, before the guest's own PAT has its say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// Write-back: RAM.
    WriteBack,
    /// Uncached: device memory (a guest's PAT may turn it into write-combining).
    Uncached,
}

/// Level of a table entry: what one entry covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB.
    L1 = 1,
    /// 2 MiB.
    L2 = 2,
    /// 1 GiB.
    L3 = 3,
    /// 512 GiB.
    L4 = 4,
}

impl Level {
    /// Bytes that one entry covers.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
    /// Which address bit the index of this level starts at.
    pub const fn shift(self) -> u32 {
        12 + 9 * (self as u32 - 1)
    }
    /// Index of `address` in a table of this level.
    pub const fn index(self, address: u64) -> usize {
        ((address >> self.shift()) & 0x1FF) as usize
    }
    /// The level below.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L4 => Some(Self::L3),
            Self::L3 => Some(Self::L2),
            Self::L2 => Some(Self::L1),
            Self::L1 => None,
        }
    }
}

/// What an entry decodes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not present: any access exits.
    Empty,
    /// The next table.
    Table(Hpa),
    /// Memory.
    Leaf {
        /// Host-physical base, aligned to the level.
        hpa: Hpa,
        /// What is allowed.
        access: Access,
        /// How it is cached.
        caching: Caching,
    },
}

const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// A leaf above the lowest level, in both formats.
const PS: u64 = 1 << 7;

/// The bits of an entry format.
#[derive(Clone, Copy, Debug)]
pub struct FormatBits {
    /// Of these, an entry that is present has one at least.
    pub present: u64,
    /// Those of an entry that names a table.
    pub table: u64,
    /// Those of every leaf.
    pub leaf: u64,
    /// That of a leaf that may be written.
    pub write: u64,
    /// Where a leaf says how it is cached.
    pub caching: u64,
    /// What is there for write-back memory.
    pub write_back: u64,
    /// What is there for uncached memory.
    pub uncached: u64,
}

/// An entry format: how the nested tables of one vendor are written.
pub trait EntryFormat {
    /// Its bits.
    const BITS: FormatBits;

    /// Encodes an entry of `level`.
    fn encode(level: Level, entry: Entry) -> u64 {
        match entry {
            Entry::Empty => 0,
            Entry::Table(hpa) => (hpa.0 & ADDRESS) | Self::BITS.table,
            Entry::Leaf { hpa, access, caching } => {
                let size = if level == Level::L1 { 0 } else { PS };
                let write = if access == Access::ReadWrite { Self::BITS.write } else { 0 };
                let cache = if caching == Caching::WriteBack { Self::BITS.write_back } else { Self::BITS.uncached };
                (hpa.0 & ADDRESS) | Self::BITS.leaf | size | write | cache
            }
        }
    }

    /// Decodes an entry of `level`.
    fn decode(level: Level, raw: u64) -> Entry {
        if raw & Self::BITS.present == 0 {
            Entry::Empty
        } else if level != Level::L1 && raw & PS == 0 {
            Entry::Table(Hpa(raw & ADDRESS))
        } else {
            let write_back = raw & Self::BITS.caching == Self::BITS.write_back;
            Entry::Leaf {
                hpa: Hpa(raw & ADDRESS & !(level.bytes() - 1)),
                access: if raw & Self::BITS.write != 0 { Access::ReadWrite } else { Access::Read },
                caching: if write_back { Caching::WriteBack } else { Caching::Uncached },
            }
        }
    }
}

/// AMD nested paging: long-mode page-table entries, always walked as user accesses.
#[derive(Clone, Copy, Debug)]
pub struct Npt;

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;

impl EntryFormat for Npt {
    const BITS: FormatBits = FormatBits {
        present: P,
        table: P | RW | US,
        leaf: P | US,
        write: RW,
        caching: PWT | PCD,
        write_back: 0,
        // PAT slot 2 (PCD alone) is UC-, which a guest's WC overrides; UC would not yield.
        uncached: PCD,
    };
}

/// Intel extended page tables (SDM volume 3, 29.3.2). Whoever uses `Level::L3` leaves has checked that the CPU has them.
#[derive(Clone, Copy, Debug)]
pub struct Ept;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;

impl EntryFormat for Ept {
    const BITS: FormatBits = FormatBits {
        present: READ | WRITE | EXECUTE,
        table: READ | WRITE | EXECUTE,
        leaf: READ | EXECUTE,
        write: WRITE,
        // Memory type in bits 5:3; bit 6 (ignore PAT) stays clear, so that the guest's PAT has its say: it may turn UC
        // into WC, and write-back into whatever it likes (table 12-7).
        caching: 7 << 3,
        write_back: 6 << 3,
        uncached: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<F: EntryFormat>() {
        for level in [Level::L1, Level::L2, Level::L3] {
            for access in [Access::Read, Access::ReadWrite] {
                for caching in [Caching::WriteBack, Caching::Uncached] {
                    let leaf = Entry::Leaf { hpa: Hpa(3 << 30), access, caching };
                    assert_eq!(F::decode(level, F::encode(level, leaf)), leaf);
                }
            }
        }
        let table = Entry::Table(Hpa(0x7000));
        assert_eq!(F::decode(Level::L3, F::encode(Level::L3, table)), table);
        assert_eq!(F::decode(Level::L2, F::encode(Level::L2, Entry::Empty)), Entry::Empty);
        assert_eq!(F::encode(Level::L1, Entry::Empty), 0, "a zeroed frame is an empty table");
    }

    #[test]
    fn entries_round_trip() {
        round_trip::<Npt>();
        round_trip::<Ept>();
    }

    #[test]
    fn ept_bits_are_those_of_the_manual() {
        let leaf = |access, caching| Entry::Leaf { hpa: Hpa(0x20_0000), access, caching };
        assert_eq!(Ept::encode(Level::L2, leaf(Access::ReadWrite, Caching::WriteBack)), 0x20_00B7);
        assert_eq!(Ept::encode(Level::L1, leaf(Access::Read, Caching::WriteBack)), 0x20_0035);
        assert_eq!(Ept::encode(Level::L1, leaf(Access::ReadWrite, Caching::Uncached)), 0x20_0007);
        assert_eq!(Ept::encode(Level::L4, Entry::Table(Hpa(0x1000))), 0x1007);
    }

    #[test]
    fn npt_bits_are_those_of_the_manual() {
        let leaf = Entry::Leaf { hpa: Hpa(0x20_0000), access: Access::ReadWrite, caching: Caching::WriteBack };
        assert_eq!(Npt::encode(Level::L2, leaf), 0x20_0087);
        assert_eq!(Npt::encode(Level::L4, Entry::Table(Hpa(0x1000))), 0x1007);
    }

    #[test]
    fn levels() {
        assert_eq!(Level::L2.bytes(), 2 << 20);
        assert_eq!(Level::L3.index(5 << 30), 5);
        assert_eq!(Level::L1.index(0x1FF_FFF), 0x1FF);
    }
}
