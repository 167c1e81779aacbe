//! The guest's memory map: where its RAM lies, and the E820 table of a direct boot.

use arrayvec::ArrayVec;
use hv_defs::Gpa;

/// First address that low RAM never reaches: ECAM and the 32-bit PCI window begin here.
pub const LOW_RAM_END: u64 = 0xB000_0000;
/// Where the rest of the RAM begins.
pub const HIGH_RAM: u64 = 1 << 32;
/// The PCIe configuration window of a direct boot.
pub const ECAM: u64 = 0xB000_0000;
/// Its size: 256 buses.
pub const ECAM_SIZE: u64 = 256 << 20;
/// The 32-bit PCI window.
pub const PCI_WINDOW: core::ops::Range<u64> = 0xC000_0000..0xFC00_0000;
/// End of base memory; the rest of the first megabyte belongs to firmware, and RAM backs it too.
pub const BASE_MEMORY_END: u64 = 0x9_FC00;

const MIB: u64 = 1 << 20;

/// How a VM's RAM is split around the hole below 4 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes from address 0 on.
    pub low: u64,
    /// Bytes from 4 GiB on.
    pub high: u64,
}

impl Layout {
    /// Splits `ram` bytes, whole pages.
    pub const fn new(ram: u64) -> Self {
        let ram = ram & !0xFFF;
        if ram <= LOW_RAM_END { Self { low: ram, high: 0 } } else { Self { low: LOW_RAM_END, high: ram - LOW_RAM_END } }
    }

    /// End of the RAM above 4 GiB; 4 GiB if there is none.
    pub const fn top(&self) -> u64 {
        HIGH_RAM + self.high
    }
}

/// What a range is for, as E820 encodes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// RAM.
    Usable = 1,
    /// Not for the operating system.
    Reserved = 2,
}

/// One range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// First address.
    pub base: Gpa,
    /// Bytes.
    pub size: u64,
    /// What for.
    pub kind: Kind,
}

/// The E820 table of a direct boot, in ascending order. ECAM must be in it or Linux does not use it.
pub fn direct_boot(layout: &Layout) -> ArrayVec<Entry, 8> {
    let mut map = ArrayVec::new();
    let mut add = |kind, from: u64, to: u64| {
        if from < to {
            // The array has room for all the calls below.
            let _ = map.try_push(Entry { base: Gpa(from), size: to - from, kind });
        }
    };
    add(Kind::Usable, 0, BASE_MEMORY_END);
    add(Kind::Reserved, BASE_MEMORY_END, MIB);
    add(Kind::Usable, MIB, layout.low);
    add(Kind::Reserved, ECAM, ECAM + ECAM_SIZE);
    add(Kind::Reserved, 0xFEC0_0000, HIGH_RAM);
    add(Kind::Usable, HIGH_RAM, layout.top());
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ram: u64) -> u64 {
        let map = direct_boot(&Layout::new(ram));
        for pair in map.windows(2) {
            assert!(pair[0].base.0 + pair[0].size <= pair[1].base.0, "{pair:?}");
        }
        map.iter().filter(|entry| entry.kind == Kind::Usable).map(|entry| entry.size).sum()
    }

    #[test]
    fn all_ram_but_the_firmware_area_is_usable() {
        let firmware = MIB - BASE_MEMORY_END;
        for ram in [64 * MIB, 0xB000_0000, 0xB000_1000, 5 << 30] {
            assert_eq!(check(ram), ram - firmware);
        }
        assert_eq!(Layout::new(5 << 30), Layout { low: 0xB000_0000, high: (5 << 30) - 0xB000_0000 });
    }
}
