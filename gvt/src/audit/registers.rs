//! Which registers a guest's commands may write, as data. Everything here is kept per context by the hardware,
//! or is named in [`UNSAVED`] and put back by the mediator when the engine changes hands. What is not listed is
//! not written: a write to it is what a guest's CPU could do through BAR0, where the mediator decides.

use alloc::vec::Vec;
use gvt_defs::context::{RING_CONTEXT_DWORDS, layout};
use gvt_defs::{Engine, mi, nonpriv, ring};

/// What may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Policy {
    /// Any value.
    Any,
    /// Any value in which these bits are 0 (they are the write mask of bits that are not for guests).
    Without(u32),
    /// Nothing.
    Denied,
}

/// STOP_RING's bit in the write mask of MI_MODE.
const NO_STOP: Policy = Policy::Without(ring::MI_MODE_STOP_RING << 16);

/// Offsets from the engine's base, both ends inclusive; sorted. Every engine has them.
const LOCAL: [(u32, u32, Policy); 5] = [
    (ring::NOPID, ring::NOPID, Policy::Any),
    (ring::MI_MODE, ring::MI_MODE, NO_STOP),
    (ring::INSTPM, ring::INSTPM, Policy::Any),
    (ring::SWCTRL, ring::SWCTRL, Policy::Any),
    (ring::GPR, ring::GPR + 8 * ring::GPRS - 4, Policy::Any),
];

/// Registers of the render engine beyond those that any batch may write ([`nonpriv::RENDER`]): what drivers set in
/// new contexts and in workaround batches. Both ends inclusive; sorted.
const RENDER: [(u32, u32); 15] = [
    (0x2088, 0x2088), // FF_SLICE_CHICKEN, indirect context batch
    (0x2090, 0x2090), // 3D_CHICKEN3, likewise
    (0x21F0, 0x21F0), // INSTPM companion read and written by LRM in workaround batches
    (0x2248, 0x2248), // CTX_PREEMPTION_HINT, whitelisted
    (0x2580, 0x2580), // CS_CHICKEN1, whitelisted
    (0x7010, 0x7010), // COMMON_SLICE_CHICKEN2
    (0x7014, 0x7014), // COMMON_SLICE_CHICKEN3, whitelisted
    (0x7018, 0x7018),
    (0x7300, 0x7304), // HDC_CHICKEN0, HDC_CHICKEN1
    (0xB118, 0xB118), // L3SQCREG4, whitelisted
    (0xE100, 0xE100), // HALF_SLICE_CHICKEN7
    (0xE180, 0xE188), // SAMPLER_MODE, HALF_SLICE_CHICKEN2, HALF_SLICE_CHICKEN3
    (0xE194, 0xE194), // HALF_SLICE_CHICKEN7 of Gen9
    (0xE458, 0xE45C), // EU_PERF_CNTL of the first flexible counter pair
    (0xE4F0, 0xE4F4), // ROW_CHICKEN, ROW_CHICKEN2
];

/// Registers that commands may write and that no context image keeps: the mediator writes its own idea of them
/// whenever an engine changes hands, whatever it believes they hold. Sorted.
pub const UNSAVED: [u32; 7] = [0x2088, 0x2090, 0x21F0, 0x2248, 0x23BC, 0x7018, 0xB118];

/// What the ring and privileged batches may do to the register at `offset`.
pub(super) fn privileged(engine: Engine, offset: u32) -> Policy {
    if nonpriv::allowed(engine, offset) {
        return Policy::Any;
    }
    if let Some(local) = offset.checked_sub(engine.base())
        && let Some((.., policy)) = LOCAL.iter().find(|(first, last, _)| (*first..=*last).contains(&local))
    {
        return if local == ring::SWCTRL && engine != Engine::Bcs { Policy::Denied } else { *policy };
    }
    let listed = RENDER.iter().any(|(first, last)| (*first..=*last).contains(&offset));
    if engine == Engine::Rcs && listed { Policy::Any } else { Policy::Denied }
}

/// What an unprivileged batch may do, as the hardware polices it on the other engines.
pub(super) fn unprivileged(engine: Engine, offset: u32) -> Policy {
    if nonpriv::allowed(engine, offset) { Policy::Any } else { Policy::Denied }
}

/// The registers that may stand in the engine part of a context image.
///
/// The layout beyond the architected part is the hardware's own: a mediator on silicon adds what it finds in an
/// image that the hardware saved for the mediator itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextRegisters {
    engine: Engine,
    /// Sorted.
    offsets: Vec<u32>,
}

impl ContextRegisters {
    /// Those that are documented.
    pub fn known(engine: Engine) -> Self {
        let groups = layout(engine).iter().filter(|group| group.engine_context);
        let mut offsets: Vec<u32> = groups
            .flat_map(|group| (0..group.registers.len()).filter_map(move |i| group.pair(engine, i)))
            .map(|(_, offset)| offset)
            .collect();
        offsets.sort_unstable();
        offsets.dedup();
        Self { engine, offsets }
    }

    /// Adds the registers in an image that the hardware saved for a context of the mediator: the register page and
    /// what follows it. No guest may have written it.
    pub fn learn(&mut self, image: &[u32]) {
        let mut at = RING_CONTEXT_DWORDS;
        while let Some(&header) = image.get(at) {
            let Some(dwords) = gvt_defs::command::length(self.engine, header) else {
                break;
            };
            if header >> 29 == 0 && mi::opcode(header) == mi::BATCH_BUFFER_END {
                break;
            }
            if header >> 29 == 0 && mi::opcode(header) == mi::LOAD_REGISTER_IMM {
                let pairs = image.get(at + 1..at + dwords as usize).unwrap_or(&[]);
                self.offsets.extend(pairs.iter().step_by(2).map(|offset| offset & mi::REGISTER_MASK));
            }
            at += dwords as usize;
        }
        self.offsets.sort_unstable();
        self.offsets.dedup();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.offsets.len()
    }

    pub(super) fn policy(&self, offset: u32) -> Policy {
        if self.offsets.binary_search(&offset).is_err() {
            return Policy::Denied;
        }
        if offset == self.engine.base() + ring::MI_MODE { NO_STOP } else { Policy::Any }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never for a guest's commands, on any engine (offsets from the base).
    const NEVER: [u32; 23] = [
        // What it shows of a context's time is believed.
        ring::CTX_TIMESTAMP,
        ring::TAIL,
        ring::HEAD,
        ring::START,
        ring::CTL,
        ring::HWS_PGA,
        ring::HWSTAM,
        ring::IMR,
        ring::EIR,
        ring::EMR,
        ring::RESET_CTL,
        ring::BB_ADDR,
        ring::BB_PER_CTX_PTR,
        ring::INDIRECT_CTX,
        ring::ELSP,
        ring::CTX_CONTROL,
        ring::PDP0_LDW,
        ring::PDP0_UDW,
        ring::GFX_MODE,
        ring::TIMESTAMP,
        ring::CSB_PTR,
        ring::FORCE_TO_NONPRIV,
        ring::FORCE_TO_NONPRIV + 44,
    ];

    #[test]
    fn lists_are_sorted() {
        assert!(LOCAL.windows(2).all(|pair| pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0));
        assert!(RENDER.windows(2).all(|pair| pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0));
        assert!(UNSAVED.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(UNSAVED.iter().all(|offset| privileged(Engine::Rcs, *offset) == Policy::Any));
    }

    #[test]
    fn what_runs_the_machine_is_denied_everywhere() {
        for engine in Engine::ALL {
            for target in Engine::ALL {
                for local in NEVER {
                    let offset = target.base() + local;
                    assert_eq!(privileged(engine, offset), Policy::Denied, "{engine:?} {offset:#x}");
                    assert_eq!(unprivileged(engine, offset), Policy::Denied);
                }
            }
            for offset in [0x4030, 0x4080, 0x4260, 0x941C, 0xA188, 0x44200, 0x4430C, 0x10_0000, 0x10_1008, 0x7_8818] {
                assert_eq!(privileged(engine, offset), Policy::Denied, "{engine:?} {offset:#x}");
            }
        }
    }

    #[test]
    fn one_engine_does_not_write_anothers() {
        assert_eq!(privileged(Engine::Bcs, 0x2600), Policy::Denied);
        assert_eq!(privileged(Engine::Rcs, 0x22600), Policy::Denied);
        assert_eq!(privileged(Engine::Bcs, 0x7014), Policy::Denied);
        assert_eq!(privileged(Engine::Bcs, 0x22200), Policy::Any);
        assert_eq!(privileged(Engine::Vcs0, 0x12200), Policy::Denied);
    }

    #[test]
    fn every_written_register_is_kept_per_context_or_named() {
        // Of what the ring may write on RCS: in the image, or in UNSAVED, or without effect on others.
        let kept = ContextRegisters::known(Engine::Rcs);
        for (first, last) in RENDER {
            for offset in (first..=last).step_by(4) {
                let saved = kept.policy(offset) != Policy::Denied;
                // Chicken bits that silicon keeps in its own part of the image.
                let opaque = matches!(offset, 0x7010 | 0xE4F4);
                assert!(saved || opaque || UNSAVED.binary_search(&offset).is_ok(), "{offset:#x}");
            }
        }
    }

    #[test]
    fn every_local_register_is_kept_per_context() {
        for engine in Engine::ALL {
            let kept = ContextRegisters::known(engine);
            for (first, last, _) in LOCAL {
                for local in (first..=last).step_by(4) {
                    let offset = engine.base() + local;
                    // NOPID holds the number of the last MI_NOOP and has no effect.
                    let kept = local == ring::NOPID || kept.policy(offset) != Policy::Denied;
                    assert!(kept || privileged(engine, offset) == Policy::Denied, "{engine:?} {offset:#x}");
                }
            }
        }
    }

    #[test]
    fn what_any_batch_may_write_is_kept_or_named() {
        let kept = ContextRegisters::known(Engine::Rcs);
        for (first, last) in nonpriv::RENDER {
            for offset in (first..=last).step_by(4) {
                let named = UNSAVED.binary_search(&offset).is_ok();
                assert!(named || kept.policy(offset) != Policy::Denied, "{offset:#x}");
            }
        }
    }

    #[test]
    fn learning_reads_load_register_immediates_only() {
        let mut registers = ContextRegisters::known(Engine::Vecs);
        let before = registers.count();
        let mut image = [0u32; 0x80];
        image[0x50] = mi::load_register_imm(2);
        image[0x51] = 0x1_A7F0;
        image[0x53] = 0x1_A7F4;
        image[0x55] = mi::header(mi::BATCH_BUFFER_END);
        image[0x56] = mi::load_register_imm(1);
        image[0x57] = 0x1_A7F8;
        assert_eq!(registers.policy(0x1_A7F4), Policy::Denied);
        registers.learn(&image);
        assert_eq!(registers.count(), before + 2);
        assert_eq!(registers.policy(0x1_A7F4), Policy::Any);
        // A header that runs off the end.
        registers.learn(&[mi::load_register_imm(60); 0x60]);
    }
}
