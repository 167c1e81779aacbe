//! The wash: what the parking context of the render engine executes between two VMs, so that nothing that the work of
//! one has left there is met by the other (design D21). It runs from a page of the mediator's and ends with a mark in
//! that page: who has seen the mark, and the parking context at its end, knows that it is done.
//!
//! The default render state is no command of it: the parking context's image holds what the engine held after its
//! reset, before any guest, and loading that image is what puts it back. EU registers and the URB stay.

use crate::gpu::pool::{Block, Pool};
use crate::host::{Host, NoFrame};
use crate::hw::Hw;
use gvt_defs::gfx::{PIPE_CONTROL_HEADER, pipe_control as pc};
use gvt_defs::{GgttAddr, mi, reg};

/// Dwords in the ring that start it.
pub(crate) const START_DWORDS: usize = 4;
const DWORDS: usize = 32;
/// Byte offsets in its page: the mark, and what L3SQCREG4 held.
const MARK: u32 = 0xF00;
const KEPT: u32 = 0xF08;

/// What goes to memory: first, so that nothing that comes after brings it back.
const FLUSH: u32 = pc::RENDER_TARGET_CACHE_FLUSH | pc::DEPTH_CACHE_FLUSH | pc::DC_FLUSH_ENABLE | pc::CS_STALL;
/// What is forgotten; SLM lies in L3.
const FORGET: u32 = pc::FLUSH_L3
    | pc::STATE_CACHE_INVALIDATE
    | pc::CONST_CACHE_INVALIDATE
    | pc::VF_CACHE_INVALIDATE
    | pc::TEXTURE_CACHE_INVALIDATE
    | pc::INSTRUCTION_CACHE_INVALIDATE
    | pc::CS_STALL;

/// The batch and its mark.
#[derive(Debug)]
pub(crate) struct Wash {
    page: Block,
}

impl Wash {
    pub(crate) fn new<W: Hw>(host: &mut dyn Host, hw: &mut W, pool: &mut Pool) -> Result<Self, NoFrame> {
        let page = pool.alloc(host, hw, 1)?;
        page.write(host, 0, &batch(page.ggtt()));
        Ok(Self { page })
    }

    /// Gives its page back.
    pub(crate) fn free<W: Hw>(self, host: &mut dyn Host, hw: &mut W, pool: &mut Pool) {
        pool.free(host, hw, self.page);
    }

    /// Takes the mark back. Gives the ring commands that run the batch.
    pub(crate) fn arm(&self, host: &mut dyn Host) -> [u32; START_DWORDS] {
        self.page.write(host, MARK, &[0]);
        [mi::with_length(mi::BATCH_BUFFER_START, 3), self.page.ggtt().0, 0, 0]
    }

    /// Whether the batch has come to its mark since.
    pub(crate) fn is_done(&self, host: &mut dyn Host) -> bool {
        self.page.dword(host, MARK) != 0
    }

    /// Where the batch lies, for tests that take a bit out of it.
    #[cfg(test)]
    pub(crate) fn page(&self) -> &Block {
        &self.page
    }
}

/// The commands. It is not torn apart: the guest's own next context waits until L3SQCREG4 is what it was.
const fn batch(page: GgttAddr) -> [u32; DWORDS] {
    let (mark, kept) = (page.0 + MARK, page.0 + KEPT);
    let control = PIPE_CONTROL_HEADER;
    // What a guest may have put into this register must not keep lines in L3.
    let coherent = reg::L3SQ_DEFAULT | reg::L3SQ_FLUSH_COHERENT;
    let save = mi::with_length(mi::STORE_REGISTER_MEM, 4) | mi::GLOBAL_GTT;
    let load = mi::with_length(mi::LOAD_REGISTER_MEM, 4) | mi::GLOBAL_GTT;
    let forget = FORGET | pc::POST_SYNC_WRITE | pc::GLOBAL_GTT;
    #[rustfmt::skip]
    let commands = [
        mi::header(mi::ARB_ON_OFF),
        save, reg::L3SQCREG4, kept, 0,
        mi::load_register_imm(1), reg::L3SQCREG4, coherent,
        control, FLUSH, 0, 0, 0, 0,
        // On Gen9 one without any bit goes before one that invalidates the vertex cache (PRM; i915 does so).
        control, 0, 0, 0, 0, 0,
        control, forget, mark, 0, 1, 0,
        load, reg::L3SQCREG4, kept, 0,
        mi::header(mi::ARB_ON_OFF) | mi::ARB_ENABLE,
        mi::header(mi::BATCH_BUFFER_END),
    ];
    commands
}

#[cfg(test)]
mod tests {
    use super::*;
    use gvt_defs::residue::CLEARED_BY;

    #[test]
    fn it_clears_every_kind() {
        for (kind, bits) in CLEARED_BY {
            assert!(FLUSH & bits == bits || FORGET & bits == bits, "{kind:?}");
        }
    }
}
