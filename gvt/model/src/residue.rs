//! What render work leaves in the engine for whoever comes next. Software says whose which memory is; the owner of a
//! context is the owner of the page behind its status page. Without owners nobody is told anything.

use alloc::vec::Vec;
use core::ops::Range;

use gvt_defs::residue::{CLEARED_BY, KINDS, Residue};
use gvt_defs::{Engine, GgttAddr, PAGE_SIZE, reg, ring};

use crate::device::Device;
use crate::engine::Exec;
use crate::findings::Finding;
use crate::translate::Space;

/// Whose traces the render engine holds, by kind.
#[derive(Default)]
pub(crate) struct Residues {
    /// Frame numbers and their owner.
    owners: Vec<(Range<u64>, u32)>,
    left: [Option<u32>; KINDS],
}

impl Residues {
    /// Frames with these numbers are `owner`'s.
    pub fn set_owner(&mut self, frames: Range<u64>, owner: u32) {
        self.owners.push((frames, owner));
    }

    fn owner_of(&self, frame: u64) -> Option<u32> {
        self.owners.iter().find(|(frames, _)| frames.contains(&frame)).map(|(_, owner)| *owner)
    }

    fn kind(&mut self, kind: Residue) -> &mut Option<u32> {
        // One place for each kind: a test of the table says so.
        &mut self.left[kind as usize]
    }

    /// A reset takes the state. What it does to caches and to SLM nobody says: they stay.
    pub fn reset(&mut self) {
        *self.kind(Residue::RenderState) = None;
    }
}

impl Device {
    /// A PIPE_CONTROL with these bits.
    pub fn clear_residue(&mut self, flags: u32) {
        let coherent = self.regs.get(reg::L3SQCREG4) & reg::L3SQ_FLUSH_COHERENT != 0;
        for (kind, bits) in CLEARED_BY {
            if flags & bits == bits && (kind != Residue::L3 || coherent) {
                *self.residues.kind(kind) = None;
            }
        }
    }
}

impl Exec<'_> {
    /// Render work of the running context.
    pub fn leave_residue(&mut self) {
        if self.state.engine == Engine::Rcs && self.state.owner.is_some() {
            self.device.residues.left = [self.state.owner; KINDS];
        }
    }

    /// The context at `lrca` has been loaded. What another owner has left is within its reach.
    pub fn meet_residue(&mut self, lrca: GgttAddr) {
        if self.state.engine != Engine::Rcs || self.device.residues.owners.is_empty() {
            return;
        }
        if self.device.ring(Engine::Rcs, ring::CTX_CONTROL) & ring::CTX_RESTORE_INHIBIT == 0 {
            *self.device.residues.kind(Residue::RenderState) = None;
        }
        let frame = self.view().translate(Space::Global, u64::from(lrca.0)).map(|page| page.frame.0 / PAGE_SIZE);
        let owner = frame.and_then(|frame| self.device.residues.owner_of(frame));
        self.state.owner = owner;
        let kinds = CLEARED_BY.map(|(kind, _)| kind).into_iter().chain([Residue::RenderState]);
        for kind in kinds {
            if let (Some(from), Some(to)) = (*self.device.residues.kind(kind), owner)
                && from != to
            {
                self.device.findings.add(Finding::Residue(kind, from, to));
            }
        }
    }
}
