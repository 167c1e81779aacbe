//! Which registers a guest's commands may write, as data. Everything here is kept per context by the hardware,
//! or put back by the mediator when the engine changes hands (design D20; `tests/kept.rs` walks all lists). What is not
//! listed is not written: a write to it is what a guest's CPU could do through BAR0, where the mediator decides.

use alloc::vec::Vec;
use gvt_defs::context::{RING_CONTEXT_DWORDS, layout};
use gvt_defs::{Engine, mi, nonpriv, reg, ring};

/// What may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Policy {
    /// Any value.
    Any,
    /// Any value in which these bits are 0 (they are the write mask of bits that are not for guests).
    Without(u32),
    /// Any value but those that turn tiled resources on with physical addresses ([`reg::TRTTE`]).
    NotPhysical,
    /// Nothing: the write is dropped.
    Denied,
    /// Nothing, and what follows such a write cannot run without it: the submission is refused.
    Refused,
}

impl Policy {
    /// What of `value` is written; `None` drops the write.
    pub(super) const fn admit(self, value: u32) -> Option<u32> {
        match self {
            Self::Any => Some(value),
            Self::Without(bits) => Some(value & !bits),
            Self::NotPhysical if value & reg::TRTTE_ON != 0 && value & reg::TRTTE_VIRTUAL == 0 => None,
            Self::NotPhysical => Some(value),
            Self::Denied | Self::Refused => None,
        }
    }

    /// Whether anything can be written.
    #[cfg(test)]
    pub(super) fn is_writable(self) -> bool {
        !matches!(self, Self::Denied | Self::Refused)
    }
}

/// STOP_RING's bit in the write mask of MI_MODE.
const NO_STOP: Policy = Policy::Without(ring::MI_MODE_STOP_RING << 16);

/// Offsets from the engine's base, both ends inclusive; sorted. Every engine has them.
pub(super) const LOCAL: [(u32, u32, Policy); 6] = [
    (ring::NOPID, ring::NOPID, Policy::Any),
    (ring::MI_MODE, ring::MI_MODE, NO_STOP),
    (ring::INSTPM, ring::INSTPM, Policy::Any),
    (ring::SWCTRL, ring::SWCTRL, Policy::Any),
    // Page directories of a context with three-level tables (i915 up to 4.x): it would run on in the old space.
    (ring::PDP0_LDW, ring::PDP3_UDW, Policy::Refused),
    (ring::GPR, ring::GPR + 8 * ring::GPRS - 4, Policy::Any),
];

/// Registers of the render engine beyond those that any batch may write ([`nonpriv::RENDER`]): what drivers set in
/// new contexts and in workaround batches. Both ends inclusive; sorted.
pub(super) const RENDER: [(u32, u32); 15] = [
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

/// Registers that a guest may open to its unprivileged batches (FORCE_TO_NONPRIV) beyond those that are open anyway:
/// what i915 opens (0x2248, 0x2580, 0x7304, 0x7014, 0xB118) and others that are kept or put back. GVT-g lets more
/// through (0x2690 to 0x2698, 0x2754, 0x28A0, TRTT, 0x7700 to 0x770C, 0x83A8, 0xE18C), but of those nobody says
/// whether they are masked, so nobody can put them back for certain. Sorted.
pub(super) const OPENABLE: [u32; 9] = [0x20EC, 0x2248, 0x2580, 0x7010, 0x7014, 0x7300, 0x7304, 0xB110, 0xB118];

/// Whether a guest may have `slot` in one of an engine's FORCE_TO_NONPRIV registers. A slot opens up to 64 registers:
/// every one of them counts.
pub(crate) fn may_open(engine: Engine, slot: u32) -> bool {
    let (first, last) = nonpriv::slot_range(slot);
    let harmless = |offset: u32| {
        OPENABLE.binary_search(&offset).is_ok()
            || nonpriv::allowed(engine, offset)
            || offset == engine.base() + ring::NOPID
    };
    engine == Engine::Rcs && (last == 0 || (first..=last).step_by(4).all(harmless))
}

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

/// Registers of an engine that commands may read though they may not write them: clocks of its own and of the context,
/// what predicates came to. Offsets from its base, both ends inclusive; sorted.
const READ_LOCAL: [(u32, u32); 3] = [
    (ring::TIMESTAMP, ring::TIMESTAMP_UDW),
    (ring::CTX_TIMESTAMP, ring::CTX_TIMESTAMP),
    (ring::MI_PREDICATE_SRC0, ring::MI_PREDICATE_RESULT_1),
];

/// Whether the ring, privileged batches and copied batches may read the register at `offset` as the source of a command
/// (design D20): what they may write, for that is kept per context or put back; what a render context's image may hold;
/// clocks. Not where an engine is (ring, batch and page-table addresses are the host's), nor other engines, nor what all
/// share.
pub(super) fn readable(engine: Engine, offset: u32) -> bool {
    let within = |list: &[(u32, u32)], offset| list.iter().any(|(first, last)| (*first..=*last).contains(&offset));
    let written = !matches!(privileged(engine, offset), Policy::Denied | Policy::Refused);
    let own = offset.checked_sub(engine.base()).is_some_and(|local| within(&READ_LOCAL, local));
    let shared = Engine::of_register(offset).is_none();
    written
        || own
        || nonpriv::allowed(engine, offset)
        || (engine == Engine::Rcs && shared && within(&MAY_LEARN, offset))
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
    /// what follows it. No guest may have written it. What no image can hold for a guest is not taken, whatever the
    /// hardware says ([`may_learn`]).
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
                let found = pairs.iter().step_by(2).map(|offset| offset & mi::REGISTER_MASK);
                self.offsets.extend(found.filter(|offset| may_learn(self.engine, *offset)));
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
        match offset {
            _ if offset == self.engine.base() + ring::MI_MODE => NO_STOP,
            // All engines and contexts share the clock: an image only tells what it was.
            _ if offset == self.engine.base() + ring::TIMESTAMP => Policy::Denied,
            reg::TRTTE => Policy::NotPhysical,
            _ => Policy::Any,
        }
    }
}

/// Registers that are never a guest's, whatever an image of the hardware's own holds: they run an engine. Offsets from
/// its base, both ends inclusive; sorted.
pub(super) const RUNS_ENGINE: [(u32, u32); 19] = [
    (ring::TAIL, ring::CTL),
    (ring::PSMI_CTL, ring::MAX_IDLE),
    (ring::HWS_PGA, ring::HWS_PGA),
    (ring::HWSTAM, ring::HWSTAM),
    (ring::IMR, ring::ESR),
    (ring::RESET_CTL, ring::CSFE_CHICKEN1),
    (ring::BB_STATE, ring::SBB_ADDR_UDW),
    (ring::UHPTR, ring::UHPTR),
    (ring::BB_ADDR, ring::BB_ADDR),
    (ring::BB_ADDR_UDW, ring::BB_ADDR_UDW),
    (ring::BB_PER_CTX_PTR, ring::INDIRECT_CTX_OFFSET),
    (ring::PP_DIR_DCLV, ring::PP_DIR_BASE),
    (ring::ELSP, ring::CTX_CONTROL),
    (ring::PDP0_LDW, ring::GFX_MODE),
    (ring::TIMESTAMP, ring::TIMESTAMP_UDW),
    (ring::CSB, ring::CTX_TIMESTAMP),
    // Where performance reports go: a buffer in the global space.
    (ring::OABUFFER_OLD, ring::OABUFFER_UDW),
    (ring::FORCE_TO_NONPRIV, ring::FORCE_TO_NONPRIV + 4 * (ring::FORCE_TO_NONPRIV_SLOTS - 1)),
    (ring::OA_FIRST, ring::OA_LAST),
];

/// Blocks outside the engines that a render context's image may hold: tiled resources, fixed functions, L3, EUs. But for
/// the first they lie in the render power domain, with what a context uses; power (and where its contexts are saved),
/// clocks, MOCS tables, interrupts, display and fences lie elsewhere. Both ends inclusive; sorted.
const MAY_LEARN: [(u32, u32); 5] =
    [(reg::TRTT_FIRST, reg::TRTT_LAST), (0x5200, 0x7FFC), (0x8300, 0x84FC), (0xB100, 0xB1FC), (0xE100, 0xE7FC)];

/// Whether a register in an image that the hardware saved may be taken for one that a guest's image holds.
fn may_learn(engine: Engine, offset: u32) -> bool {
    let within = |list: &[(u32, u32)], offset| list.iter().any(|(first, last)| (*first..=*last).contains(&offset));
    match Engine::of_register(offset) {
        Some((at, local)) => at == engine && !within(&RUNS_ENGINE, local),
        None => engine == Engine::Rcs && within(&MAY_LEARN, offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gvt_defs::reg::forcewake;

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
        assert!(OPENABLE.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(RUNS_ENGINE.windows(2).all(|pair| pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0));
        assert!(MAY_LEARN.windows(2).all(|pair| pair[0].0 <= pair[0].1 && pair[0].1 < pair[1].0));
    }

    #[test]
    fn what_runs_the_machine_is_denied_everywhere() {
        for engine in Engine::ALL {
            for target in Engine::ALL {
                for local in NEVER {
                    let offset = target.base() + local;
                    assert!(!privileged(engine, offset).is_writable(), "{engine:?} {offset:#x}");
                    assert_eq!(unprivileged(engine, offset), Policy::Denied);
                    assert!(!may_learn(engine, offset), "{engine:?} {offset:#x}");
                    assert!(!may_open(engine, offset));
                }
            }
            for offset in [0x4030, 0x4080, 0x4260, 0x941C, 0xA188, 0x44200, 0x4430C, 0x10_0000, 0x10_1008, 0x7_8818] {
                assert_eq!(privileged(engine, offset), Policy::Denied, "{engine:?} {offset:#x}");
                assert!(!may_learn(engine, offset) && !may_open(engine, offset), "{engine:?} {offset:#x}");
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
    fn what_runs_an_engine_is_not_read() {
        for engine in Engine::ALL {
            for target in Engine::ALL {
                for (first, last) in RUNS_ENGINE {
                    for local in (first..=last).step_by(4) {
                        let clock = target == engine
                            && [ring::TIMESTAMP, ring::TIMESTAMP_UDW, ring::CTX_TIMESTAMP].contains(&local);
                        // 0x2290 and 0x2294, the size of a dispatch, lie among them.
                        let open = nonpriv::allowed(engine, target.base() + local);
                        assert_eq!(
                            readable(engine, target.base() + local),
                            clock || open,
                            "{engine:?} {target:?} {local:#x}"
                        );
                    }
                }
                for local in [ring::ACTHD, ring::ACTHD_UDW, ring::IPEHR, ring::IPEIR] {
                    assert!(!readable(engine, target.base() + local), "{engine:?} {target:?} {local:#x}");
                }
                let other = target != engine;
                for local in [ring::TIMESTAMP, ring::CTX_TIMESTAMP, ring::GPR, ring::NOPID] {
                    assert_eq!(readable(engine, target.base() + local), !other, "{engine:?} {target:?} {local:#x}");
                }
            }
            for offset in [0x4030, 0x4080, 0x4260, 0x941C, 0xA188, 0xC800, 0x44200, 0x10_0000, 0x10_1008, 0x7_8818] {
                assert!(!readable(engine, offset), "{engine:?} {offset:#x}");
            }
        }
        // What i915's workaround batch saves, and what Mesa and IGT store.
        for offset in [0xB118, 0x21F0, 0x2310, 0x2350, 0x2418, 0x5200, 0x5240, 0x2600, 0x7300, 0x2248] {
            assert!(readable(Engine::Rcs, offset), "{offset:#x}");
        }
    }

    #[test]
    fn slots_open_nothing_by_their_range() {
        for slot in [0x2248, 0x2580, 0x7304, 0x7014, 0xB118, 0x2094, 0, 0x2348 | 1 | 1 << 28] {
            assert!(may_open(Engine::Rcs, slot), "{slot:#x}");
        }
        // Neighbours of registers that may be opened: 0xB100, 0x2544 and so on; and all that GVT-g cannot put back.
        for slot in [0xB118 | 3, 0x2580 | 1, 0x2348 | 3, 0x7014 | 2, 0x7304 | 3, 3, 0x2690, 0x4DE0, 0x83A8, 0xE18C] {
            assert!(!may_open(Engine::Rcs, slot), "{slot:#x}");
        }
    }

    #[test]
    fn what_hardware_saved_is_learnt_only_where_a_guest_may_have_it() {
        let mut registers = ContextRegisters::known(Engine::Rcs);
        let before = registers.count();
        let mut image = [0u32; 0x100];
        let found = [0x2038, 0x2080, 0x24D4, 0x20D4, 0x12600, 0xC800, 0xB020, 0xA188, 0x4080, 0x10_0000];
        // Where performance reports go, another head, page directories; where the power context is saved.
        let found =
            found.into_iter().chain([0x23B4, 0x2B00, 0x2B14, 0x2134, 0x2220, 0x2228, reg::RC6_CTX_INFO, 0x8004]);
        let good = [reg::TRTTE, 0x28A0, 0x83A8];
        image[0x50] = mi::load_register_imm((found.clone().count() + good.len()) as u32);
        for (i, offset) in found.chain(good).enumerate() {
            image[0x51 + 2 * i] = offset;
        }
        registers.learn(&image);
        assert_eq!(registers.count(), before + good.len());
        // Tiled resources with physical addresses would read and write anybody's memory.
        let trtt = registers.policy(reg::TRTTE);
        assert_eq!([0, 1, 2, 3, 0xFFFF_FFFD].map(|v| trtt.admit(v)), [Some(0), None, Some(2), Some(3), None]);
    }

    #[test]
    fn what_is_learnt_outside_the_engines_lies_in_the_render_domain() {
        let own = |(first, last): (u32, u32)| (first..=last).step_by(4).all(is_render);
        fn is_render(offset: u32) -> bool {
            matches!(forcewake::domain_of(offset), Some(forcewake::Domain::Render))
        }
        assert_eq!(MAY_LEARN[0], (reg::TRTT_FIRST, reg::TRTT_LAST));
        assert!(MAY_LEARN[1..].iter().all(|block| own(*block)));
        // No more does a command read.
        assert!([reg::RC6_CTX_INFO, 0x804C, 0x9120].into_iter().all(|offset| !readable(Engine::Rcs, offset)));
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
