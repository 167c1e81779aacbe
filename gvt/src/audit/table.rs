//! How to step over a command and whether to look at it: one 16-bit rule per opcode, made at compile time from
//! `gvt_defs::command`. A walk loads one rule a command and takes the length from bits of the header.

use gvt_defs::command::{self, Command, Length};
use gvt_defs::{Engine, gfx, mi, opcodes};

/// What the audit does with a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Touches nothing but the engine's own state and process addresses.
    Plain,
    /// Not a command of this engine.
    Unknown,
    /// Has no business in a virtual GPU and no effect that a guest could miss: becomes MI_NOOPs.
    Blank,
    Forbidden,
    UserInterrupt,
    Arbitration,
    BatchEnd,
    ConditionalBatchEnd,
    BatchStart,
    SemaphoreWait,
    LoadRegisterImmediate,
    StoreRegisterMemory,
    LoadRegisterMemory,
    LoadRegisterRegister,
    FlushDw,
    PipeControl,
    /// Only memory is named in it.
    Memory,
}

/// Kind in bits 12:8, width of the length field in bits 4:0 (0: the command is one dword).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rule(u16);

impl Rule {
    const UNKNOWN: Self = Self::new(Kind::Unknown, 0);

    const fn new(kind: Kind, width: u16) -> Self {
        Self((kind as u16) << 8 | width)
    }

    /// Dwords of the command that begins with `header`.
    #[inline]
    pub(super) fn dwords(self, header: u32) -> usize {
        let width = u32::from(self.0 & 0x1F);
        ((header & !(u32::MAX << width)) + 1 + u32::from(width != 0)) as usize
    }

    /// Whether the audit need not look.
    #[inline]
    pub(super) fn is_plain(self) -> bool {
        self.0 < 1 << 8
    }

    #[inline]
    pub(super) fn kind(self) -> Kind {
        KINDS.get(usize::from(self.0 >> 8)).copied().unwrap_or(Kind::Unknown)
    }
}

/// Render commands without anything to look at and with the usual length field.
pub(super) const COMMON: Rule = Rule::new(Kind::Plain, 8);

/// The kinds in order, to get back from a number without `unsafe`.
const KINDS: [Kind; 17] = [
    Kind::Plain,
    Kind::Unknown,
    Kind::Blank,
    Kind::Forbidden,
    Kind::UserInterrupt,
    Kind::Arbitration,
    Kind::BatchEnd,
    Kind::ConditionalBatchEnd,
    Kind::BatchStart,
    Kind::SemaphoreWait,
    Kind::LoadRegisterImmediate,
    Kind::StoreRegisterMemory,
    Kind::LoadRegisterMemory,
    Kind::LoadRegisterRegister,
    Kind::FlushDw,
    Kind::PipeControl,
    Kind::Memory,
];

/// The rules of one engine class.
#[derive(Debug)]
pub(super) struct Tables {
    mi: [Rule; 64],
    /// Empty where the engine has no such commands.
    blt: &'static [Rule],
    gfx: &'static [Rule],
}

/// Commands with kinds of their own; the rest of MI is plain.
const SPECIAL: [(u32, Kind); 33] = [
    (mi::SET_PREDICATE, Kind::Blank),
    (mi::USER_INTERRUPT, Kind::UserInterrupt),
    (mi::WAIT_FOR_EVENT, Kind::Blank),
    (mi::REPORT_HEAD, Kind::Blank),
    (mi::ARB_ON_OFF, Kind::Arbitration),
    (mi::BATCH_BUFFER_END, Kind::BatchEnd),
    (mi::SUSPEND_FLUSH, Kind::Blank),
    (mi::LOAD_SCAN_LINES_INCL, Kind::Blank),
    (mi::LOAD_SCAN_LINES_EXCL, Kind::Blank),
    (mi::DISPLAY_FLIP, Kind::Blank),
    (mi::SET_CONTEXT, Kind::Blank),
    // Wakes a context by an id that is not the guest's to choose; waits are made to poll.
    (mi::SEMAPHORE_SIGNAL, Kind::Blank),
    (mi::SEMAPHORE_WAIT, Kind::SemaphoreWait),
    (mi::FORCE_WAKEUP, Kind::Blank),
    (mi::STORE_DATA_IMM, Kind::Memory),
    (mi::STORE_DATA_INDEX, Kind::Memory),
    (mi::LOAD_REGISTER_IMM, Kind::LoadRegisterImmediate),
    (mi::UPDATE_GTT, Kind::Forbidden),
    (mi::STORE_REGISTER_MEM, Kind::StoreRegisterMemory),
    (mi::FLUSH_DW, Kind::FlushDw),
    (mi::CLFLUSH, Kind::Blank),
    (mi::REPORT_PERF_COUNT, Kind::Memory),
    (mi::LOAD_REGISTER_MEM, Kind::LoadRegisterMemory),
    (mi::LOAD_REGISTER_REG, Kind::LoadRegisterRegister),
    (mi::RS_STORE_DATA_IMM, Kind::Blank),
    (mi::LOAD_URB_MEM, Kind::Blank),
    (mi::STORE_URB_MEM, Kind::Blank),
    (mi::COPY_MEM_MEM, Kind::Memory),
    (mi::ATOMIC, Kind::Memory),
    (mi::BATCH_BUFFER_START, Kind::BatchStart),
    (mi::CONDITIONAL_BATCH_BUFFER_END, Kind::ConditionalBatchEnd),
    // Named to show that they were thought of: a length of their own, no address, no register.
    (mi::MATH, Kind::Plain),
    (mi::NOOP, Kind::Plain),
];

const fn width(length: Length) -> u16 {
    match length {
        Length::Fixed(_) => 0,
        Length::Field(mask) => mask.trailing_ones() as u16,
    }
}

#[allow(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn special(opcode: u32) -> Kind {
    let mut i = 0;
    while i < SPECIAL.len() {
        if SPECIAL[i].0 == opcode {
            return SPECIAL[i].1;
        }
        i += 1;
    }
    Kind::Plain
}

#[allow(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn mi_rules(engine: Engine) -> [Rule; 64] {
    let mut rules = [Rule::UNKNOWN; 64];
    let mut i = 0;
    while i < command::MI.len() {
        let c: &Command = &command::MI[i];
        if c.engines.has(engine) {
            rules[c.opcode as usize] = Rule::new(special(c.opcode), width(c.length));
        }
        i += 1;
    }
    rules
}

#[allow(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn blt_rules() -> [Rule; 128] {
    let mut rules = [Rule::UNKNOWN; 128];
    let mut i = 0;
    while i < command::BLT.len() {
        let c = &command::BLT[i];
        rules[c.opcode as usize] = Rule::new(Kind::Plain, width(c.length));
        i += 1;
    }
    rules
}

/// Sub-type, opcode and sub-opcode: 2 + 3 + 8 bits.
const GFX: usize = 1 << 13;

/// Rules for the listed opcodes; the others are unknown.
#[allow(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn gfx_rules(engine: Engine) -> [Rule; GFX] {
    let list = opcodes::list(engine);
    let mut rules = [Rule::UNKNOWN; GFX];
    let mut i = 0;
    while i < list.len() {
        let (mut key, last) = list[i];
        while key <= last {
            let width = width(command::gfx_length(engine, key));
            let kind =
                if matches!(engine, Engine::Rcs) && key == gfx::PIPE_CONTROL { Kind::PipeControl } else { Kind::Plain };
            rules[key as usize % GFX] = Rule::new(kind, width);
            key += 1;
        }
        i += 1;
    }
    rules
}

/// The operands of all of them are addresses of the process space, in rings, privileged batches and process batches alike
/// (i915 copies and clears by such commands in the ring of a context with page tables: `gt/intel_migrate.c`), where the
/// page tables say what they reach. So there is nothing to judge but the length.
static BLT: [Rule; 128] = blt_rules();
static RENDER_GFX: [Rule; GFX] = gfx_rules(Engine::Rcs);
static VIDEO_GFX: [Rule; GFX] = gfx_rules(Engine::Vcs0);
static ENHANCE_GFX: [Rule; GFX] = gfx_rules(Engine::Vecs);

static RENDER: Tables = Tables { mi: mi_rules(Engine::Rcs), blt: &[], gfx: &RENDER_GFX };
static BLITTER: Tables = Tables { mi: mi_rules(Engine::Bcs), blt: &BLT, gfx: &[] };
static VIDEO: Tables = Tables { mi: mi_rules(Engine::Vcs0), blt: &[], gfx: &VIDEO_GFX };
static ENHANCE: Tables = Tables { mi: mi_rules(Engine::Vecs), blt: &[], gfx: &ENHANCE_GFX };

impl Tables {
    pub(super) fn of(engine: Engine) -> &'static Self {
        match engine {
            Engine::Rcs => &RENDER,
            Engine::Bcs => &BLITTER,
            Engine::Vcs0 | Engine::Vcs1 => &VIDEO,
            Engine::Vecs => &ENHANCE,
        }
    }

    /// Whether the command that begins with `header` goes by [`COMMON`].
    #[inline]
    pub(super) fn is_common(&self, header: u32) -> bool {
        header >> 29 == 3 && self.gfx.get((header >> 16) as usize & (GFX - 1)) == Some(&COMMON)
    }

    /// The rule for the command that begins with `header`.
    #[inline]
    pub(super) fn rule(&self, header: u32) -> Rule {
        let rule = match header >> 29 {
            3 => self.gfx.get((header >> 16) as usize & (GFX - 1)),
            0 => self.mi.get((header >> 23) as usize & 63),
            2 => self.blt.get((header >> 22) as usize & 127),
            _ => None,
        };
        rule.copied().unwrap_or(Rule::UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_their_number() {
        for (i, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
            assert_eq!(Rule::new(kind, 16).kind(), kind);
            assert_eq!(Rule::new(kind, 16).is_plain(), kind == Kind::Plain);
        }
    }

    #[test]
    fn lengths_are_those_of_the_datasheet() {
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let header = state.rotate_left(7) ^ state >> 3;
            for engine in Engine::ALL {
                let rule = Tables::of(engine).rule(header);
                let known = match header >> 29 {
                    0 => command::mi_command(header).is_some_and(|c| c.engines.has(engine)),
                    3 => opcodes::known(engine, header),
                    _ => command::length(engine, header).is_some(),
                };
                assert_eq!(rule != Rule::UNKNOWN, known, "{engine:?} {header:#x}");
                if known {
                    assert_eq!(Some(rule.dwords(header) as u32), command::length(engine, header), "{header:#x}");
                }
            }
        }
    }

    #[test]
    fn every_command_with_a_global_form_is_looked_at() {
        for c in &command::MI {
            let special = special(c.opcode) != Kind::Plain;
            assert!(special || c.memory.is_empty() && c.registers.is_empty(), "{}", c.name);
        }
        assert!(SPECIAL.iter().all(|(opcode, _)| command::mi_command(mi::header(*opcode)).is_some()));
    }
}
