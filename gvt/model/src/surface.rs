//! Rows of surfaces in a graphics address space.

use gvt_defs::PAGE_SIZE;

use crate::gtt::Page;
use crate::recorder::Touch;
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
        let address = self.base.wrapping_add_signed(offset);
        (address, run.min((PAGE_SIZE - address % PAGE_SIZE) as usize))
    }
}

/// The page that was looked up last: the runs of a tile share one.
struct Last {
    number: u64,
    page: Option<Page>,
}

impl Last {
    const fn new() -> Self {
        Self { number: u64::MAX, page: None }
    }

    #[inline]
    fn find(&mut self, view: &mut View<'_, '_>, address: u64) -> Option<Page> {
        let number = address / PAGE_SIZE;
        if number != self.number {
            *self = Self { number, page: view.translate(Space::Process, address) };
        }
        self.page
    }
}

impl View<'_, '_> {
    /// Reads a piece of row `y`.
    pub fn read_row(&mut self, surface: &Surface, x: i64, y: i64, buf: &mut [u8]) {
        let mut last = Last::new();
        let mut rest = buf;
        let mut x = x;
        while !rest.is_empty() {
            let (address, run) = surface.locate(x, y);
            let (piece, tail) = rest.split_at_mut(run.min(rest.len()));
            self.reach(Space::Process, address, piece.len(), Touch::Read);
            match last.find(self, address) {
                Some(page) => self.read_physical(page.at(address), piece),
                None => piece.fill(0),
            }
            x += piece.len() as i64;
            rest = tail;
        }
    }

    /// Writes a piece of row `y`.
    pub fn write_row(&mut self, surface: &Surface, x: i64, y: i64, data: &[u8]) {
        let mut last = Last::new();
        let mut rest = data;
        let mut x = x;
        while !rest.is_empty() {
            let (address, run) = surface.locate(x, y);
            let (piece, tail) = rest.split_at(run.min(rest.len()));
            self.reach(Space::Process, address, piece.len(), Touch::Write);
            if let Some(page) = last.find(self, address) {
                self.write_page(page, address, piece);
            }
            x += piece.len() as i64;
            rest = tail;
        }
    }
}
