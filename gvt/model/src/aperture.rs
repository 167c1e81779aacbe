//! The aperture (BAR2): CPU accesses through the GGTT, detiled where a fence says so.

use gvt_defs::PAGE_SIZE;
use gvt_defs::reg::{FENCE_TILING_Y, FENCE_VALID, FENCE0, FENCES};

use crate::device::Device;
use crate::findings::Finding;
use crate::gtt::Looker;
use crate::memory::{Dma, Memory};
use crate::regs::RegFile;
use crate::tiling::Tiling;

#[derive(Clone, Copy)]
struct Fence {
    start: u64,
    /// Exclusive.
    end: u64,
    pitch: i64,
    tiling: Tiling,
}

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
            *slot = decode(regs.get64(FENCE0 + 8 * n));
        }
        self.any = self.list.iter().any(Option::is_some);
    }

    /// The address in the tiled surface for a linear one, and how many bytes follow it there.
    fn detile(&self, address: u64) -> (u64, usize) {
        if !self.any {
            return (address, usize::MAX);
        }
        let fence = self.list.iter().flatten().find(|f| (f.start..f.end).contains(&address));
        let Some(fence) = fence else {
            return (address, (PAGE_SIZE - address % PAGE_SIZE) as usize);
        };
        let offset = (address - fence.start) as i64;
        let (tiled, run) = fence.tiling.locate(fence.pitch, offset % fence.pitch, offset / fence.pitch);
        (fence.start.wrapping_add_signed(tiled), run)
    }
}

/// LO: start 31:12, tiling, valid. HI: last page 31:12, pitch in units of 128 bytes, minus one.
fn decode(raw: u64) -> Option<Fence> {
    if raw & FENCE_VALID == 0 {
        return None;
    }
    Some(Fence {
        start: raw & 0xFFFF_F000,
        end: (raw >> 32 & 0xFFFF_F000) + PAGE_SIZE,
        pitch: ((raw >> 32 & 0x7FF) as i64 + 1) * 128,
        tiling: if raw & FENCE_TILING_Y != 0 { Tiling::Y } else { Tiling::X },
    })
}

impl Device {
    /// Reads through the aperture; what is not mapped reads as zeros.
    pub fn aperture_read(&mut self, memory: &mut dyn Memory, offset: u64, buf: &mut [u8]) {
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
    }

    /// Writes through the aperture; what is not mapped is dropped.
    pub fn aperture_write(&mut self, memory: &mut dyn Memory, offset: u64, data: &[u8]) {
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
