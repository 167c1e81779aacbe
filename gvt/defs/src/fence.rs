//! A fence register: what part of the aperture it covers, and how far the tiles reach that it leads to (KBL PRM vol 2c,
//! "FENCE_REG"; tiles: vol 5, "Tiling"; spec/gen9.md B.8).

use crate::{PAGE_SIZE, reg};

/// Bits of the upper half with the pitch, in units of 128 bytes, minus one.
const PITCH: u32 = 0x7FF;
/// Bits of either half with the number of a page.
const PAGE: u32 = !(PAGE_SIZE as u32 - 1);
/// Bits of the lower half that mean something.
const LOW: u32 = PAGE | (reg::FENCE_VALID | reg::FENCE_TILING_Y) as u32;

/// How the bytes under a fence lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tile {
    /// 512 bytes x 8 rows.
    X,
    /// 128 bytes x 32 rows.
    Y,
}

impl Tile {
    /// Bytes of a row of the tile.
    pub const fn width(self) -> u64 {
        match self {
            Self::X => 512,
            Self::Y => 128,
        }
    }

    /// Rows of the tile.
    pub const fn height(self) -> u64 {
        PAGE_SIZE / self.width()
    }
}

/// A valid fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fence {
    /// First address that it covers.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// Bytes from one row to the next.
    pub pitch: u64,
    /// How they lie.
    pub tile: Tile,
}

impl Fence {
    /// From the two halves of the register; nothing if it is not valid.
    pub fn decode(low: u32, high: u32) -> Option<Self> {
        let tile = if u64::from(low) & reg::FENCE_TILING_Y != 0 { Tile::Y } else { Tile::X };
        (u64::from(low) & reg::FENCE_VALID != 0).then(|| Self {
            start: u64::from(low & PAGE),
            end: u64::from(high & PAGE) + PAGE_SIZE,
            pitch: (u64::from(high & PITCH) + 1) * 128,
            tile,
        })
    }

    /// Whether the two halves say nothing but what the datasheet gives a meaning to.
    pub const fn is_plain(low: u32, high: u32) -> bool {
        low & !LOW == 0 && high & !(PAGE | PITCH) == 0
    }

    /// Bytes from its start on that accesses to what it covers may end in: a part of a row of tiles is led into all of
    /// that row. Nothing if it covers nothing, or its rows are no whole tiles: where such bytes lie, the datasheet does
    /// not say.
    pub fn reach(&self) -> Option<u64> {
        let covered = self.end.checked_sub(self.start).filter(|bytes| *bytes > 0)?;
        let row = self.pitch * self.tile.height();
        self.pitch.is_multiple_of(self.tile.width()).then(|| covered.next_multiple_of(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reach_is_in_whole_rows_of_tiles() {
        let reach = |low, high| Fence::decode(low, high).and_then(|fence| fence.reach());
        // Sixteen pages of 1 KiB rows: eight rows of X tiles, two of Y.
        assert_eq!(reach(0x10_0001, 0x10_F007), Some(0x1_0000));
        assert_eq!(reach(0x10_0003, 0x10_F007), Some(0x1_0000));
        // One page of 256 KiB rows leads into all of the first row of tiles.
        assert_eq!(reach(0x10_0001, 0x10_07FF), Some(2 << 20));
        assert_eq!(reach(0x10_0003, 0x10_07FF), Some(8 << 20));
        // Rows of a quarter of a tile; nothing covered; not valid.
        assert_eq!(reach(0x10_0001, 0x10_F000), None);
        assert_eq!(reach(0x10_0003, 0x10_F000), Some(0x1_0000));
        assert_eq!(reach(0x10_0001, 0x0F_F007), None);
        assert_eq!(reach(0x10_0000, 0x10_F007), None);
    }

    #[test]
    fn reserved_bits_are_known() {
        assert!(Fence::is_plain(0xFFFF_F003, 0xFFFF_F7FF));
        assert!(!Fence::is_plain(0x10_0005, 0x10_F007) && !Fence::is_plain(0x10_0001, 0x10_F807));
    }
}
