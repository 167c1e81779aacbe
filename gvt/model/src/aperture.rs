//! The aperture (BAR2): CPU accesses through the GGTT, detiled where a fence says so.

use gvt_defs::PAGE_SIZE;
use gvt_defs::fence::{Fence, Tile};
use gvt_defs::reg::{FENCE0, FENCES};

use crate::device::Device;
use crate::findings::Finding;
use crate::gtt::Looker;
use crate::memory::{Dma, Memory};
use crate::regs::RegFile;
use crate::tiling::Tiling;
use crate::witness::Purpose;

/// The valid fences, decoded.
#[derive(Default)]
pub(crate) struct Fences {
    list: [Option<Fence>; FENCES as usize],
    any: bool,
}

impl Fences {
    /// Decodes all fence registers anew.
    pub fn update(&mut self, regs: &RegFile) {
        for (slot, n) in self.list.iter_mut().zip(0..) {
            let raw = regs.get64(FENCE0 + 8 * n);
            *slot = Fence::decode(raw as u32, (raw >> 32) as u32);
        }
        self.any = self.list.iter().any(Option::is_some);
    }

    /// The address in the tiled surface for a linear one, and how many bytes follow it there.
    pub fn detile(&self, address: u64) -> (u64, usize) {
        if !self.any {
            return (address, usize::MAX);
        }
        let fence = self.list.iter().flatten().find(|f| (f.start..f.end).contains(&address));
        let Some(fence) = fence else {
            return (address, (PAGE_SIZE - address % PAGE_SIZE) as usize);
        };
        let tiling = match fence.tile {
            Tile::X => Tiling::X,
            Tile::Y => Tiling::Y,
        };
        let (offset, pitch) = ((address - fence.start) as i64, fence.pitch as i64);
        let (tiled, run) = tiling.locate(pitch, offset % pitch, offset / pitch);
        (fence.start.wrapping_add_signed(tiled), run)
    }
}

impl Device {
    /// Reads through the aperture; what is not mapped reads as zeros.
    pub fn aperture_read(&mut self, memory: &mut dyn Memory, offset: u64, buf: &mut [u8]) {
        self.recorder.witness.purpose = Purpose::Aperture;
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let (address, len) = self.aperture_piece(at, rest.len());
            let (piece, tail) = rest.split_at_mut(len);
            match self.aperture_page(address) {
                Some(hpa) => {
                    if (Dma { memory: &mut *memory, recorder: &mut self.recorder }).read(hpa, piece).is_err() {
                        self.findings.add(Finding::BusError(hpa.0));
                    }
                }
                None => piece.fill(0),
            }
            at += len as u64;
            rest = tail;
        }
        self.recorder.witness.purpose = Purpose::Data;
    }

    /// Writes through the aperture; what is not mapped is dropped.
    pub fn aperture_write(&mut self, memory: &mut dyn Memory, offset: u64, data: &[u8]) {
        self.recorder.witness.purpose = Purpose::Aperture;
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (address, len) = self.aperture_piece(at, rest.len());
            let (piece, tail) = rest.split_at(len);
            if let Some(hpa) = self.aperture_page(address)
                && (Dma { memory: &mut *memory, recorder: &mut self.recorder }).write(hpa, piece).is_err()
            {
                self.findings.add(Finding::BusError(hpa.0));
            }
            at += len as u64;
            rest = tail;
        }
        self.recorder.witness.purpose = Purpose::Data;
    }

    /// Detiled address, and how much of `len` bytes can be moved at once.
    fn aperture_piece(&self, at: u64, len: usize) -> (u64, usize) {
        let (address, run) = self.fences.detile(at);
        let page = (PAGE_SIZE - address % PAGE_SIZE) as usize;
        (address, len.min(run).min(page))
    }

    fn aperture_page(&mut self, address: u64) -> Option<gvt_defs::Hpa> {
        let page = self.gtt.translate(Looker::Aperture, address as u32);
        if page.is_none() {
            self.findings.add(Finding::GgttFault(address as u32));
        }
        page.map(|page| page.at(address))
    }
}
