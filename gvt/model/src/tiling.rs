//! Where a byte of a surface lies: linear, X-tiled (512 bytes x 8 rows) and Y-tiled (128 bytes x 32 rows, in columns
//! of 16 bytes). A tile is 4 KiB.

/// Memory layout of a surface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tiling {
    Linear,
    X,
    Y,
}

impl Tiling {
    /// Offset of the byte in column `x` of row `y`, and how many bytes from there lie in a row.
    #[inline]
    pub const fn locate(self, pitch: i64, x: i64, y: i64) -> (i64, usize) {
        match self {
            Self::Linear => (y * pitch + x, usize::MAX),
            Self::X => {
                let tile = (y >> 3) * 8 * pitch + (x >> 9) * 4096;
                (tile + (y & 7) * 512 + (x & 511), (512 - (x & 511)) as usize)
            }
            Self::Y => {
                let tile = (y >> 5) * 32 * pitch + (x >> 7) * 4096;
                let column = (x >> 4 & 7) * 512;
                (tile + column + (y & 31) * 16 + (x & 15), (16 - (x & 15)) as usize)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners() {
        assert_eq!(Tiling::X.locate(1024, 512, 0), (4096, 512));
        assert_eq!(Tiling::X.locate(1024, 0, 8), (8192, 512));
        assert_eq!(Tiling::X.locate(1024, 511, 7), (4095, 1));
        assert_eq!(Tiling::Y.locate(256, 16, 0), (512, 16));
        assert_eq!(Tiling::Y.locate(256, 0, 1), (16, 16));
        assert_eq!(Tiling::Y.locate(256, 128, 32), (8192 + 4096, 16));
        assert_eq!(Tiling::Linear.locate(-64, 4, 2), (-124, usize::MAX));
    }

    #[test]
    fn each_is_a_permutation() {
        for tiling in [Tiling::X, Tiling::Y] {
            let (pitch, rows) = (1024, 64);
            let mut seen = vec![false; (pitch * rows) as usize];
            for y in 0..rows {
                for x in 0..pitch {
                    let (offset, _) = tiling.locate(pitch, x, y);
                    assert!(!core::mem::replace(&mut seen[offset as usize], true));
                }
            }
        }
    }
}
