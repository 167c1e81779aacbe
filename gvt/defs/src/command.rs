//! Every command that Gen9's command streamers take, as data: length, engines, where addresses and registers stand,
//! privilege. Both the software GPU and the mediator's audit read these tables (design D17).

use crate::gfx::pipe_control;
use crate::operand::Given::{Fixed, Narrow, Wide};
use crate::operand::{Access, Bytes, Flag, Forms, Memory, Register};
use crate::{Engine, EngineMask, blt, gfx, mi};

/// How long a command is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// So many dwords.
    Fixed(u32),
    /// The header bits under this mask, plus 2.
    Field(u32),
}

impl Length {
    /// Dwords of the command that begins with `header`.
    #[inline]
    pub const fn of(self, header: u32) -> u32 {
        match self {
            Self::Fixed(dwords) => dwords,
            Self::Field(mask) => (header & mask) + 2,
        }
    }
}

/// Who may use a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// Anybody; an address in the GGTT makes it privileged.
    Any,
    /// A no-op in unprivileged batches.
    Privileged,
}

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// Datasheet name.
    pub name: &'static str,
    /// Opcode within its type.
    pub opcode: u32,
    /// Length rule.
    pub length: Length,
    /// Engines that know it.
    pub engines: EngineMask,
    /// Lengths that make sense. What has memory or registers has them here.
    pub forms: Forms,
    /// Memory that it names.
    pub memory: &'static [Memory],
    /// Registers that it names.
    pub registers: &'static [Register],
    /// Who may use it.
    pub privilege: Privilege,
}

const BYTE: Length = Length::Field(0xFF);
const SIX: Length = Length::Field(0x3F);
const TEN: Length = Length::Field(0x3FF);
const ONE: Length = Length::Fixed(1);
const ALL: EngineMask = EngineMask::ALL;
const RCS: EngineMask = EngineMask::RCS;
const MEDIA: EngineMask = EngineMask::VCS.or(EngineMask::VECS);

/// "Use global GTT" of most commands.
const GLOBAL: Flag = Flag::set(0, mi::GLOBAL_GTT);

const SEMAPHORE: [Memory; 1] =
    [Memory { unused: Flag::set(0, mi::SEMAPHORE_REGISTER_POLL), ..Memory::read(Wide(2), GLOBAL, 4) }];
const POLLED: [Register; 1] = [Register { unused: Flag::clear(0, mi::SEMAPHORE_REGISTER_POLL), ..Register::read(2) }];
const STORE_DATA: [Memory; 1] = [Memory::write(Wide(1), GLOBAL, Bytes::Data(3, mi::STORE_QWORD))];
/// In the status page of the context, or, without the bit, of the engine. It has no high half.
const STORE_INDEX: [Memory; 1] = [Memory {
    mask: 0xFFC,
    index: Flag::ALWAYS,
    ..Memory::write(Narrow(1), Flag::clear(0, mi::STORE_INDEX_PPHWSP), Bytes::Most(8))
}];
/// The head of the ring, into a status page: which, is told in two ways.
const HEAD: [Memory; 1] = [Memory { index: Flag::ALWAYS, ..Memory::write(Fixed(0x10), Flag::ALWAYS, Bytes::Most(4)) }];
const STORE_REGISTER: [Memory; 1] = [Memory::write(Wide(2), GLOBAL, Bytes::Most(4))];
const LOAD_REGISTER: [Memory; 1] = [Memory::read(Wide(2), GLOBAL, 4)];
const FLUSH: [Memory; 1] = [Memory {
    mask: !7,
    index: Flag::set(0, mi::FLUSH_STORE_INDEX),
    unused: Flag::clear(0, mi::FLUSH_POST_SYNC_MASK),
    ..Memory::write(Wide(1), Flag::set(1, mi::FLUSH_DW1_GLOBAL_GTT), Bytes::Most(8))
}];
const LINE: [Memory; 1] = [Memory { mask: !0xFFF, ..Memory::read(Wide(1), GLOBAL, 4096) }];
const REPORT: [Memory; 1] =
    [Memory { mask: !63, ..Memory::write(Wide(1), Flag::set(1, mi::REPORT_DW1_GLOBAL_GTT), Bytes::Most(256)) }];
const RESOURCE_STORE: [Memory; 1] = [Memory::write(Wide(1), Flag::NEVER, Bytes::Most(4))];
const URB_LOAD: [Memory; 1] = [Memory { mask: !63, ..Memory::read(Wide(2), Flag::NEVER, 64) }];
const URB_STORE: [Memory; 1] = [Memory { mask: !63, ..Memory::write(Wide(2), Flag::NEVER, Bytes::Most(64)) }];
const COPY: [Memory; 2] = [
    Memory::write(Wide(1), Flag::set(0, mi::COPY_DESTINATION_GLOBAL_GTT), Bytes::Most(4)),
    Memory::read(Wide(3), Flag::set(0, mi::COPY_SOURCE_GLOBAL_GTT), 4),
];
const ATOMIC: [Memory; 1] = [Memory::write(Wide(1), GLOBAL, Bytes::Atomic)];
const START: [Memory; 1] =
    [Memory { access: Access::Execute, ..Memory::read(Wide(1), Flag::clear(0, mi::BB_PPGTT), 4) }];
/// A mask may follow the value.
const COMPARE: [Memory; 1] = [Memory::read(Wide(2), GLOBAL, 8)];
/// Dwords that MI_LOAD_REGISTER_IMM has for each register: its offset and its value.
pub const LOADED: usize = 2;
const PAIRS: [Register; 1] = [Register { every: LOADED as u8, ..Register::write(1) }];
const SOURCE: [Register; 1] = [Register::read(1)];
const TARGET: [Register; 1] = [Register::write(1)];
const MOVE: [Register; 2] = [Register::read(1), Register::write(2)];

const fn command(name: &'static str, opcode: u32, length: Length, engines: EngineMask) -> Command {
    let forms = if matches!(length, Length::Fixed(_)) { Forms::One(1) } else { Forms::Any };
    Command { name, opcode, length, engines, forms, memory: &[], registers: &[], privilege: Privilege::Any }
}

const fn privileged(mut c: Command) -> Command {
    c.privilege = Privilege::Privileged;
    c
}

impl Command {
    const fn forms(mut self, forms: Forms) -> Self {
        self.forms = forms;
        self
    }

    const fn memory(mut self, memory: &'static [Memory]) -> Self {
        self.memory = memory;
        self
    }

    const fn registers(mut self, registers: &'static [Register]) -> Self {
        self.registers = registers;
        self
    }
}

/// MI commands, by opcode.
pub const MI: [Command; 41] = [
    command("MI_NOOP", mi::NOOP, ONE, ALL),
    command("MI_SET_PREDICATE", mi::SET_PREDICATE, ONE, RCS),
    privileged(command("MI_USER_INTERRUPT", mi::USER_INTERRUPT, ONE, ALL)),
    privileged(command("MI_WAIT_FOR_EVENT", mi::WAIT_FOR_EVENT, ONE, ALL)),
    command("MI_FLUSH", mi::FLUSH, ONE, ALL),
    command("MI_ARB_CHECK", mi::ARB_CHECK, ONE, ALL),
    command("MI_RS_CONTROL", mi::RS_CONTROL, ONE, RCS),
    privileged(command("MI_REPORT_HEAD", mi::REPORT_HEAD, ONE, ALL)).memory(&HEAD),
    privileged(command("MI_ARB_ON_OFF", mi::ARB_ON_OFF, ONE, ALL)),
    command("MI_URB_ATOMIC_ALLOC", mi::URB_ATOMIC_ALLOC, ONE, RCS),
    command("MI_BATCH_BUFFER_END", mi::BATCH_BUFFER_END, ONE, ALL),
    privileged(command("MI_SUSPEND_FLUSH", mi::SUSPEND_FLUSH, ONE, ALL)),
    command("MI_PREDICATE", mi::PREDICATE, ONE, RCS),
    command("MI_TOPOLOGY_FILTER", mi::TOPOLOGY_FILTER, ONE, RCS),
    command("MI_SET_APPID", mi::SET_APPID, ONE, RCS.or(MEDIA)),
    command("MI_RS_CONTEXT", mi::RS_CONTEXT, ONE, RCS),
    privileged(command("MI_LOAD_SCAN_LINES_INCL", mi::LOAD_SCAN_LINES_INCL, SIX, ALL)),
    privileged(command("MI_LOAD_SCAN_LINES_EXCL", mi::LOAD_SCAN_LINES_EXCL, SIX, ALL)),
    privileged(command("MI_DISPLAY_FLIP", mi::DISPLAY_FLIP, BYTE, ALL)),
    privileged(command("MI_SET_CONTEXT", mi::SET_CONTEXT, BYTE, RCS)),
    command("MI_MATH", mi::MATH, BYTE, ALL),
    privileged(command("MI_SEMAPHORE_SIGNAL", mi::SEMAPHORE_SIGNAL, BYTE, ALL)),
    command("MI_SEMAPHORE_WAIT", mi::SEMAPHORE_WAIT, BYTE, ALL)
        .forms(Forms::One(4))
        .memory(&SEMAPHORE)
        .registers(&POLLED),
    privileged(command("MI_FORCE_WAKEUP", mi::FORCE_WAKEUP, BYTE, ALL)),
    command("MI_STORE_DATA_IMM", mi::STORE_DATA_IMM, TEN, ALL).forms(Forms::From(4)).memory(&STORE_DATA),
    privileged(command("MI_STORE_DATA_INDEX", mi::STORE_DATA_INDEX, BYTE, ALL))
        .forms(Forms::Either(3, 4))
        .memory(&STORE_INDEX),
    command("MI_LOAD_REGISTER_IMM", mi::LOAD_REGISTER_IMM, BYTE, ALL).forms(Forms::From(3)).registers(&PAIRS),
    privileged(command("MI_UPDATE_GTT", mi::UPDATE_GTT, TEN, ALL)),
    command("MI_STORE_REGISTER_MEM", mi::STORE_REGISTER_MEM, BYTE, ALL)
        .forms(Forms::One(4))
        .memory(&STORE_REGISTER)
        .registers(&SOURCE),
    command("MI_FLUSH_DW", mi::FLUSH_DW, SIX, EngineMask::BCS.or(MEDIA)).forms(Forms::Either(4, 5)).memory(&FLUSH),
    command("MI_CLFLUSH", mi::CLFLUSH, TEN, RCS).forms(Forms::From(3)).memory(&LINE),
    command("MI_REPORT_PERF_COUNT", mi::REPORT_PERF_COUNT, SIX, RCS).forms(Forms::One(4)).memory(&REPORT),
    command("MI_LOAD_REGISTER_MEM", mi::LOAD_REGISTER_MEM, BYTE, ALL)
        .forms(Forms::One(4))
        .memory(&LOAD_REGISTER)
        .registers(&TARGET),
    command("MI_LOAD_REGISTER_REG", mi::LOAD_REGISTER_REG, BYTE, ALL).forms(Forms::One(3)).registers(&MOVE),
    command("MI_RS_STORE_DATA_IMM", mi::RS_STORE_DATA_IMM, BYTE, RCS).forms(Forms::One(4)).memory(&RESOURCE_STORE),
    command("MI_LOAD_URB_MEM", mi::LOAD_URB_MEM, BYTE, RCS).forms(Forms::One(4)).memory(&URB_LOAD),
    command("MI_STORE_URB_MEM", mi::STORE_URB_MEM, BYTE, RCS).forms(Forms::One(4)).memory(&URB_STORE),
    command("MI_COPY_MEM_MEM", mi::COPY_MEM_MEM, BYTE, ALL).forms(Forms::One(5)).memory(&COPY),
    command("MI_ATOMIC", mi::ATOMIC, BYTE, ALL).forms(Forms::Either(3, 11)).memory(&ATOMIC),
    command("MI_BATCH_BUFFER_START", mi::BATCH_BUFFER_START, BYTE, ALL).forms(Forms::One(3)).memory(&START),
    command("MI_CONDITIONAL_BATCH_BUFFER_END", mi::CONDITIONAL_BATCH_BUFFER_END, BYTE, ALL)
        .forms(Forms::One(4))
        .memory(&COMPARE),
];

const fn drawn(dword: u8) -> Memory {
    Memory { mask: u32::MAX, ..Memory::write(Wide(dword), Flag::NEVER, Bytes::Most(u32::MAX)) }
}

const fn taken(dword: u8) -> Memory {
    Memory { access: Access::Read, ..drawn(dword) }
}

const BLT_DST_4: [Memory; 1] = [drawn(4)];
const BLT_SRC_COPY: [Memory; 2] = [drawn(4), taken(8)];
const BLT_LINEAR_COPY: [Memory; 2] = [drawn(3), taken(6)];
const BLT_LINEAR_DST: [Memory; 1] = [drawn(3)];
const BLT_PAT: [Memory; 2] = [drawn(4), taken(6)];
const BLT_FULL: [Memory; 3] = [drawn(4), taken(8), taken(10)];
const BLT_SETUP: [Memory; 1] = [drawn(4)];

const fn blit(name: &'static str, opcode: u32, memory: &'static [Memory]) -> Command {
    command(name, opcode, BYTE, EngineMask::BCS).memory(memory)
}

/// 2D commands, by opcode. In a privileged batch and in the ring their addresses are GGTT ones only when the
/// context has no PPGTT.
pub const BLT: [Command; 27] = [
    blit("XY_SETUP_BLT", blt::SETUP_BLT, &BLT_SETUP),
    blit("XY_SETUP_CLIP_BLT", blt::SETUP_CLIP_BLT, &[]),
    blit("XY_SETUP_MONO_PATTERN_SL_BLT", blt::SETUP_MONO_PATTERN_SL_BLT, &BLT_SETUP),
    blit("XY_PIXEL_BLT", blt::PIXEL_BLT, &[]),
    blit("XY_SCANLINES_BLT", blt::SCANLINES_BLT, &[]),
    blit("XY_TEXT_BLT", blt::TEXT_BLT, &[]),
    blit("XY_TEXT_IMMEDIATE_BLT", blt::TEXT_IMMEDIATE_BLT, &[]),
    blit("COLOR_BLT", blt::COLOR_BLT, &BLT_LINEAR_DST),
    blit("XY_FAST_COPY_BLT", blt::XY_FAST_COPY_BLT, &BLT_SRC_COPY),
    blit("SRC_COPY_BLT", blt::SRC_COPY_BLT, &BLT_LINEAR_COPY),
    blit("XY_COLOR_BLT", blt::XY_COLOR_BLT, &BLT_DST_4),
    blit("XY_PAT_BLT", blt::XY_PAT_BLT, &BLT_PAT),
    blit("XY_MONO_PAT_BLT", blt::XY_MONO_PAT_BLT, &BLT_DST_4),
    blit("XY_SRC_COPY_BLT", blt::XY_SRC_COPY_BLT, &BLT_SRC_COPY),
    blit("XY_MONO_SRC_COPY_BLT", blt::XY_MONO_SRC_COPY_BLT, &BLT_PAT),
    blit("XY_FULL_BLT", blt::XY_FULL_BLT, &BLT_FULL),
    blit("XY_FULL_MONO_SRC_BLT", blt::XY_FULL_MONO_SRC_BLT, &BLT_DST_4),
    blit("XY_FULL_MONO_PATTERN_BLT", blt::XY_FULL_MONO_PATTERN_BLT, &BLT_SRC_COPY),
    blit("XY_FULL_MONO_PATTERN_MONO_SRC_BLT", blt::XY_FULL_MONO_PATTERN_MONO_SRC_BLT, &BLT_PAT),
    blit("XY_MONO_PAT_FIXED_BLT", blt::XY_MONO_PAT_FIXED_BLT, &BLT_DST_4),
    blit("XY_MONO_SRC_COPY_IMMEDIATE_BLT", blt::XY_MONO_SRC_COPY_IMMEDIATE_BLT, &BLT_DST_4),
    blit("XY_PAT_BLT_IMMEDIATE", blt::XY_PAT_BLT_IMMEDIATE, &BLT_DST_4),
    blit("XY_SRC_COPY_CHROMA_BLT", blt::XY_SRC_COPY_CHROMA_BLT, &BLT_SRC_COPY),
    blit("XY_FULL_IMMEDIATE_PATTERN_BLT", blt::XY_FULL_IMMEDIATE_PATTERN_BLT, &BLT_SRC_COPY),
    blit("XY_FULL_MONO_SRC_IMMEDIATE_PATTERN_BLT", blt::XY_FULL_MONO_SRC_IMMEDIATE_PATTERN_BLT, &BLT_DST_4),
    blit("XY_PAT_CHROMA_BLT", blt::XY_PAT_CHROMA_BLT, &BLT_PAT),
    blit("XY_PAT_CHROMA_BLT_IMMEDIATE", blt::XY_PAT_CHROMA_BLT_IMMEDIATE, &BLT_DST_4),
];

const PIPE: [Memory; 1] = [Memory {
    mask: !7,
    index: Flag::set(1, pipe_control::STORE_DATA_INDEX),
    unused: Flag::clear(1, pipe_control::POST_SYNC_MASK),
    ..Memory::write(Wide(2), Flag::set(1, pipe_control::GLOBAL_GTT), Bytes::Most(8))
}];
/// Its offset stands where the address does.
const PIPE_REGISTER: [Register; 1] =
    [Register { unused: Flag::clear(1, pipe_control::LRI_POST_SYNC), ..Register::write(2) }];

/// PIPE_CONTROL, the only render command with a direct memory write of its own.
pub const PIPE_CONTROL: Command = command("PIPE_CONTROL", gfx::PIPE_CONTROL, BYTE, RCS)
    .forms(Forms::One(gfx::PIPE_CONTROL_DWORDS))
    .memory(&PIPE)
    .registers(&PIPE_REGISTER);

const fn by_opcode<const N: usize>(list: &[Command]) -> [Option<&Command>; N] {
    let mut table = [None; N];
    let mut i = 0;
    while i < list.len() {
        table[list[i].opcode as usize] = Some(&list[i]);
        i += 1;
    }
    table
}

const fn compact<const N: usize>(list: &[Command]) -> [u16; N] {
    let mut table = [NONE; N];
    let mut i = 0;
    while i < list.len() {
        table[list[i].opcode as usize] = match list[i].length {
            Length::Fixed(_) => 0,
            Length::Field(mask) => mask as u16,
        };
        i += 1;
    }
    table
}

/// Opcode unknown, in the tables of length masks. 0 there means one dword.
const NONE: u16 = 0xFFFF;
static MI_LIST: [Command; MI.len()] = MI;
static BLT_LIST: [Command; BLT.len()] = BLT;
static MI_BY_OPCODE: [Option<&Command>; 64] = by_opcode(&MI_LIST);
static BLT_BY_OPCODE: [Option<&Command>; 128] = by_opcode(&BLT_LIST);
static MI_MASK: [u16; 64] = compact(&MI);
static BLT_MASK: [u16; 128] = compact(&BLT);

#[inline]
fn masked(table: &[u16], index: u32, header: u32) -> Option<u32> {
    match table.get(index as usize) {
        None | Some(&NONE) => None,
        Some(0) => Some(1),
        Some(&mask) => Some((header & u32::from(mask)) + 2),
    }
}

/// An MI command by its opcode, for constants.
#[allow(clippy::indexing_slicing, reason = "runs in the compiler")]
pub const fn mi_entry(opcode: u32) -> Command {
    let mut i = 0;
    while MI[i].opcode != opcode {
        i += 1;
    }
    MI[i]
}

/// The MI command with this header.
pub fn mi_command(header: u32) -> Option<&'static Command> {
    MI_BY_OPCODE.get(mi::opcode(header) as usize).copied().flatten()
}

/// The 2D command with this header.
pub fn blt_command(header: u32) -> Option<&'static Command> {
    BLT_BY_OPCODE.get(blt::opcode(header) as usize).copied().flatten()
}

/// The command with this header that memory or registers are named in, of any engine. (3D and media commands, but for
/// PIPE_CONTROL, reach memory of the process only.)
#[inline]
pub fn find(header: u32) -> Option<&'static Command> {
    static PIPE_CONTROL: Command = self::PIPE_CONTROL;
    match header >> 29 {
        0 => mi_command(header),
        2 => blt_command(header),
        3 if gfx::key(header) == gfx::PIPE_CONTROL => Some(&PIPE_CONTROL),
        _ => None,
    }
}

/// Dwords of the command that begins with `header` on `engine`; `None` if the engine does not know the opcode.
#[inline]
pub fn length(engine: Engine, header: u32) -> Option<u32> {
    match header >> 29 {
        0 => masked(&MI_MASK, mi::opcode(header), header),
        2 if matches!(engine, Engine::Bcs) => masked(&BLT_MASK, blt::opcode(header), header),
        3 if !matches!(engine, Engine::Bcs) => Some(gfx_length(engine, gfx::key(header)).of(header)),
        _ => None,
    }
}

/// How long the 3D or media command is that has `key` in bits 31:16 of its header.
#[inline]
pub const fn gfx_length(engine: Engine, key: u32) -> Length {
    let render = matches!(engine, Engine::Rcs);
    match key >> 11 & 3 {
        // PIPELINE_SELECT, 3DSTATE_VF_STATISTICS, MFX_WAIT.
        1 => ONE,
        2 if !render => Length::Field(0xFFF),
        // Media commands have a 16-bit length field, but for GPGPU_WALKER, which has flags there.
        2 if key != gfx::GPGPU_WALKER => Length::Field(0xFFFF),
        3 if render => match key {
            gfx::SO_DECL_LIST | gfx::BINDING_TABLE_EDIT_VS..=gfx::BINDING_TABLE_EDIT_PS => Length::Field(0x1FF),
            gfx::DX9_CONSTANTF_VS | gfx::DX9_CONSTANTF_PS => Length::Field(0x7FF),
            _ => BYTE,
        },
        _ => BYTE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_single_dword_below_0x10() {
        assert!(MI.windows(2).all(|p| p[0].opcode < p[1].opcode));
        assert!(BLT.windows(2).all(|p| p[0].opcode < p[1].opcode));
        for c in &MI {
            assert_eq!(c.opcode < 0x10, c.length == Length::Fixed(1), "{}", c.name);
            assert_eq!(mi_command(mi::header(c.opcode)).map(|c| c.name), Some(c.name));
            // The quick table and the list say the same.
            let header = mi::header(c.opcode) | 0x3F;
            assert_eq!(length(Engine::Rcs, header), Some(c.length.of(header)));
        }
        for c in &BLT {
            assert_eq!(length(Engine::Bcs, blt::with_length(c.opcode, 10)), Some(10));
        }
    }

    #[test]
    fn lengths_of_known_headers() {
        let rcs = |h| length(Engine::Rcs, h);
        assert_eq!(rcs(0x1100_101B), Some(29));
        assert_eq!(rcs(0x7A00_0004), Some(6));
        assert_eq!(rcs(0x6904_0000), Some(1));
        assert_eq!(rcs(0x680B_0001), Some(1));
        assert_eq!(rcs(0x6101_0011), Some(19));
        assert_eq!(rcs(0x7917_007F | 0x100), Some(0x181));
        assert_eq!(rcs(0x7839_0401), Some(0x403));
        assert_eq!(rcs(0x7105_0500 | 0xD), Some(15));
        assert_eq!(rcs(0x7000_0007), Some(9));
        // FLUSH_DW has flags in bits 7 and 8.
        assert_eq!(length(Engine::Vcs0, 0x1300_0180 | 2), Some(4));
        assert_eq!(length(Engine::Bcs, 0x54C0_0008), Some(10));
        assert_eq!(rcs(0x54C0_0008), None);
        assert_eq!(rcs(0xDEAD_BEEF), None);
        assert_eq!(rcs(mi::header(0x3F)), None);
        assert_eq!(length(Engine::Vcs0, 0x7380_0FFE), Some(0x1000));
        assert_eq!(length(Engine::Bcs, 0x7A00_0004), None);
    }

    /// Nothing that is named stands behind the shortest form of its command.
    #[test]
    fn operands_lie_inside_the_command() {
        for c in MI.iter().chain(&BLT).chain([&PIPE_CONTROL]) {
            let shortest = (1..16).find(|dwords| c.forms.allow(*dwords)).unwrap();
            let inside = |dword: u8| c.forms == Forms::Any || u32::from(dword) < shortest;
            for m in c.memory {
                assert!([m.global, m.index, m.unused].iter().all(|flag| inside(flag.dword)), "{}", c.name);
                let last = match m.given {
                    Wide(at) => at + 1,
                    Narrow(at) => at,
                    Fixed(_) => 0,
                };
                assert!(inside(last), "{}", c.name);
            }
            assert!(c.registers.iter().all(|r| inside(r.dword) && inside(r.unused.dword)), "{}", c.name);
            assert!(c.forms != Forms::Any || c.length != Length::Fixed(1), "{}", c.name);
            let named = !c.memory.is_empty() || !c.registers.is_empty();
            assert!(!named || c.forms != Forms::Any || blt_command(blt::header(c.opcode)) == Some(c), "{}", c.name);
        }
    }

    /// Flags and addresses share no bit, so that one can be changed without the other.
    #[test]
    fn flags_are_no_part_of_the_address() {
        for c in MI.iter().chain(&BLT).chain([&PIPE_CONTROL]) {
            for m in c.memory {
                let (Wide(at) | Narrow(at)) = m.given else { continue };
                let flags = [m.global, m.index, m.unused];
                assert!(flags.iter().all(|flag| flag.dword != at || flag.mask & m.mask == 0), "{}", c.name);
            }
        }
    }
}
