//! Graphics addresses that the mediator keeps for itself: the 64 MiB at the top of the GGTT, handed out in blocks of
//! pages with a frame behind each.

use crate::host::{Host, NoFrame, Owner};
use crate::hw::Hw;
use alloc::vec;
use alloc::vec::Vec;
use gvt_defs::pte::GgttPte;
use gvt_defs::{GgttAddr, Hpa, PAGE_SIZE, reg};

/// Bytes kept at the top of the GGTT.
pub(crate) const RESERVED: u32 = 64 << 20;
/// The same in pages.
pub(crate) const PAGES: u32 = RESERVED / PAGE_SIZE as u32;

/// Pages of graphics address space and the frames behind them.
#[derive(Debug)]
pub(crate) struct Block {
    first: u32,
    frames: Vec<Hpa>,
}

impl Block {
    /// Graphics address of its first byte.
    pub(crate) fn ggtt(&self) -> GgttAddr {
        GgttAddr(self.first.wrapping_mul(PAGE_SIZE as u32))
    }

    /// Bytes it holds.
    pub(crate) fn bytes(&self) -> u32 {
        self.frames.len() as u32 * PAGE_SIZE as u32
    }

    /// Pages it holds.
    pub(crate) fn pages(&self) -> u32 {
        self.frames.len() as u32
    }

    /// The frame behind page `page`.
    pub(crate) fn frame(&self, page: u32) -> Option<Hpa> {
        self.frames.get(page as usize).copied()
    }

    /// The frames, page by page.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Hpa> + '_ {
        self.frames.iter().copied()
    }

    /// Copies dwords in at a byte offset; stops at the block's end.
    pub(crate) fn write(&self, host: &mut dyn Host, offset: u32, dwords: &[u32]) {
        let mut buffer = [0u8; 512];
        let mut at = offset;
        let mut rest = dwords;
        while !rest.is_empty() {
            let room = (PAGE_SIZE as u32 - at % PAGE_SIZE as u32) / 4;
            let count = rest.len().min(room as usize).min(buffer.len() / 4);
            let (now, later) = rest.split_at(count);
            for (to, from) in buffer.chunks_exact_mut(4).zip(now) {
                to.copy_from_slice(&from.to_le_bytes());
            }
            let (Some(frame), Some(bytes)) = (self.frame(at / PAGE_SIZE as u32), buffer.get(..4 * count)) else {
                return;
            };
            host.write_frame(frame, at as usize % PAGE_SIZE as usize, bytes);
            at = at.wrapping_add(4 * count as u32);
            rest = later;
        }
    }

    /// Copies dwords out from a byte offset; what lies past the end stays as it was.
    pub(crate) fn read(&self, host: &mut dyn Host, offset: u32, dwords: &mut [u32]) {
        let mut buffer = [0u8; 512];
        let mut at = offset;
        let mut rest = dwords;
        while !rest.is_empty() {
            let room = (PAGE_SIZE as u32 - at % PAGE_SIZE as u32) / 4;
            let count = rest.len().min(room as usize).min(buffer.len() / 4);
            let (Some(frame), Some(bytes)) = (self.frame(at / PAGE_SIZE as u32), buffer.get_mut(..4 * count)) else {
                return;
            };
            host.read_frame(frame, at as usize % PAGE_SIZE as usize, bytes);
            let (now, later) = rest.split_at_mut(count);
            for (to, from) in now.iter_mut().zip(bytes.chunks_exact(4)) {
                *to = from.try_into().map_or(0, u32::from_le_bytes);
            }
            at = at.wrapping_add(4 * count as u32);
            rest = later;
        }
    }

    /// One dword at a byte offset.
    pub(crate) fn dword(&self, host: &mut dyn Host, offset: u32) -> u32 {
        let mut value = [0];
        self.read(host, offset, &mut value);
        let [value] = value;
        value
    }
}

/// The allocator.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Index of the first entry of the reserved range.
    first: u32,
    used: Vec<u64>,
    /// What free pages map: a frame of zeroes that nobody reads.
    scratch: Hpa,
}

impl Pool {
    /// The pool at the top of a table of `entries`. Its entries keep what they held until they are handed out:
    /// no guest can name them.
    pub(crate) fn new(host: &mut dyn Host, entries: u32) -> Result<Self, NoFrame> {
        let scratch = host.alloc_frame(Owner::Mediator)?;
        Ok(Self { first: entries.saturating_sub(PAGES), used: vec![0; PAGES as usize / 64], scratch })
    }

    /// The frame that unused entries may map.
    pub(crate) const fn scratch(&self) -> Hpa {
        self.scratch
    }

    fn is_free(&self, page: u32) -> bool {
        self.used.get(page as usize / 64).is_some_and(|word| word & 1 << (page % 64) == 0)
    }

    fn mark(&mut self, page: u32, free: Use) {
        if let Some(word) = self.used.get_mut(page as usize / 64) {
            match free {
                Use::Free => *word &= !(1 << (page % 64)),
                Use::Taken => *word |= 1 << (page % 64),
            }
        }
    }

    fn find(&self, pages: u32) -> Option<u32> {
        let mut run = 0;
        for page in 0..PAGES {
            run = if self.is_free(page) { run + 1 } else { 0 };
            if run == pages {
                return Some(page + 1 - pages);
            }
        }
        None
    }

    /// Takes `pages` pages, zeroed and mapped. Fails without side effect.
    pub(crate) fn alloc<W: Hw>(&mut self, host: &mut dyn Host, hw: &mut W, pages: u32) -> Result<Block, NoFrame> {
        let at = self.find(pages).ok_or(NoFrame)?;
        let mut frames = Vec::with_capacity(pages as usize);
        for _ in 0..pages {
            match host.alloc_frame(Owner::Mediator) {
                Ok(frame) => frames.push(frame),
                Err(NoFrame) => {
                    frames.drain(..).for_each(|frame| host.free_frame(Owner::Mediator, frame));
                    return Err(NoFrame);
                }
            }
        }
        for (page, frame) in (at..).zip(&frames) {
            self.mark(page, Use::Taken);
            hw.ggtt_write(self.first + page, GgttPte::new(*frame).0);
        }
        hw.write(reg::GFX_FLSH_CNTL, 1);
        Ok(Block { first: self.first + at, frames })
    }

    /// Gives a block back. The caller has taken care that no engine uses it.
    pub(crate) fn free<W: Hw>(&mut self, host: &mut dyn Host, hw: &mut W, block: Block) {
        for index in block.first..block.first + block.pages() {
            hw.ggtt_write(index, GgttPte::new(self.scratch).0);
            self.mark(index.wrapping_sub(self.first), Use::Free);
        }
        hw.write(reg::GFX_FLSH_CNTL, 1);
        block.frames.into_iter().for_each(|frame| host.free_frame(Owner::Mediator, frame));
    }

    /// Points page `page` of a block at a frame of a guest (its own is kept for later).
    pub(crate) fn alias<W: Hw>(&self, hw: &mut W, block: &Block, page: u32, frame: Hpa) {
        hw.ggtt_write(block.first + page, GgttPte::new(frame).0);
        hw.write(reg::GFX_FLSH_CNTL, 1);
    }
}

#[derive(Clone, Copy)]
enum Use {
    Free,
    Taken,
}
