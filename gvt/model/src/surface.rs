//! Rows of surfaces in a graphics address space.

use crate::tiling::Tiling;
use crate::translate::{Space, View};

/// A surface. `x` counts bytes in all functions here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Surface {
    pub base: u64,
    pub pitch: i64,
    pub tiling: Tiling,
}

impl Surface {
    fn locate(&self, x: i64, y: i64) -> (u64, usize) {
        let (offset, run) = self.tiling.locate(self.pitch, x, y);
        (self.base.wrapping_add_signed(offset), run)
    }
}

impl View<'_, '_> {
    /// Reads a piece of row `y`.
    pub fn read_row(&mut self, surface: &Surface, x: i64, y: i64, buf: &mut [u8]) {
        let mut rest = buf;
        let mut x = x;
        while !rest.is_empty() {
            let (address, run) = surface.locate(x, y);
            let (piece, tail) = rest.split_at_mut(run.min(rest.len()));
            self.read(Space::Process, address, piece);
            x += piece.len() as i64;
            rest = tail;
        }
    }

    /// Writes a piece of row `y`.
    pub fn write_row(&mut self, surface: &Surface, x: i64, y: i64, data: &[u8]) {
        let mut rest = data;
        let mut x = x;
        while !rest.is_empty() {
            let (address, run) = surface.locate(x, y);
            let (piece, tail) = rest.split_at(run.min(rest.len()));
            self.write(Space::Process, address, piece);
            x += piece.len() as i64;
            rest = tail;
        }
    }
}
