//! What render work leaves in the engine that no context image holds, and what takes it away: bits of PIPE_CONTROL
//! (KBL PRM vol 2a), and i915's and the PRM's workarounds at a context switch (WaClearSlmSpaceAtContextSwitch,
//! WaFlushCoherentL3CacheLinesAtContextSwitch). EU registers and the URB are not here: no command clears them.

use crate::gfx::pipe_control::{
    CONST_CACHE_INVALIDATE, CS_STALL, DC_FLUSH_ENABLE, DEPTH_CACHE_FLUSH, FLUSH_L3, INSTRUCTION_CACHE_INVALIDATE,
    RENDER_TARGET_CACHE_FLUSH, STATE_CACHE_INVALIDATE, TEXTURE_CACHE_INVALIDATE, VF_CACHE_INVALIDATE,
};

/// Where something is left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Residue {
    /// Shared local memory: a part of L3 that threads of a group share.
    Slm,
    /// What shaders wrote, in L3.
    L3,
    /// The render target cache.
    RenderTargets,
    /// The depth cache.
    Depth,
    /// The constant cache.
    Constants,
    /// The instruction cache.
    Instructions,
    /// The texture caches.
    Textures,
    /// The cache of surface, sampler and other indirect state.
    State,
    /// The vertex cache.
    Vertices,
    /// The state that 3D and media commands set. A context image holds it: what is loaded from one takes its place, a
    /// context that is loaded without (restore inhibited) inherits it.
    RenderState,
}

/// What the caches hold goes with one PIPE_CONTROL that has all of these bits. Flushes take what is on its way as well
/// only if the command streamer waits for them.
pub const CLEARED_BY: [(Residue, u32); 9] = [
    (Residue::Slm, FLUSH_L3 | CS_STALL),
    // Lines that are coherent with the CPU stay unless L3SQCREG4 says otherwise.
    (Residue::L3, DC_FLUSH_ENABLE | CS_STALL),
    (Residue::RenderTargets, RENDER_TARGET_CACHE_FLUSH | CS_STALL),
    (Residue::Depth, DEPTH_CACHE_FLUSH | CS_STALL),
    (Residue::Constants, CONST_CACHE_INVALIDATE),
    (Residue::Instructions, INSTRUCTION_CACHE_INVALIDATE),
    (Residue::Textures, TEXTURE_CACHE_INVALIDATE),
    (Residue::State, STATE_CACHE_INVALIDATE),
    (Residue::Vertices, VF_CACHE_INVALIDATE),
];

/// All kinds.
pub const KINDS: usize = CLEARED_BY.len() + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_bit_of_its_own() {
        let mut seen = CS_STALL;
        for (n, (kind, bits)) in CLEARED_BY.into_iter().enumerate() {
            let own = bits & !CS_STALL;
            assert!(own.is_power_of_two() && own & seen == 0, "{kind:?}");
            assert_eq!(kind as usize, n);
            seen |= own;
        }
        assert_eq!(Residue::RenderState as usize, KINDS - 1);
    }
}
