//! What stock drivers emit must pass; what a hostile guest might emit must not.

mod differential;
mod hostile;
mod kept;
mod opcodes;

use super::*;
use gvt_defs::context::{DWORDS, RING_CONTEXT_DWORDS, layout};
use gvt_defs::{GgttAddr, PpgttAddr, blt, mi, ring};
use std::collections::BTreeMap;
use std::vec::Vec;

/// Inside the partition, and outside.
const MINE: u32 = 0x0810_0000;
const HIDDEN: u32 = 0x4010_0000;
const FOREIGN: u32 = 0x0010_0000;
const PRISM: u32 = 0xFC00_0000;
/// Where copies go.
const BASE: GgttAddr = GgttAddr(0xFD00_0000);
const WINDOW: PpgttAddr = PpgttAddr(0xFE80_0000_0000);
const BASES: Bases = Bases { global: BASE, process: Some(WINDOW) };
/// The upper half of addresses in the window.
const HIGH: u32 = 0xFFFF_FE80;
/// A batch in the process space.
const PROCESS: [u32; 2] = [0x7654_3000, 0x12];

const GGTT: u32 = mi::GLOBAL_GTT;
const END: u32 = mi::BATCH_BUFFER_END << 23;
const ARB_OFF: u32 = mi::ARB_ON_OFF << 23;
const ARB_ON: u32 = ARB_OFF | 1;
const INTERRUPT: u32 = mi::USER_INTERRUPT << 23;
const START: u32 = mi::with_length(mi::BATCH_BUFFER_START, 3);
const SDI: u32 = mi::with_length(mi::STORE_DATA_IMM, 4);
const LRM: u32 = mi::with_length(mi::LOAD_REGISTER_MEM, 4);
const SRM: u32 = mi::with_length(mi::STORE_REGISTER_MEM, 4);
const LRR: u32 = mi::with_length(mi::LOAD_REGISTER_REG, 3);
const FLUSH: u32 = mi::with_length(mi::FLUSH_DW, 4);
const FLUSH_QWORD: u32 = mi::with_length(mi::FLUSH_DW, 5);
const POST_SYNC: u32 = 1 << mi::FLUSH_POST_SYNC_SHIFT;
const LRI: u32 = mi::load_register_imm(1);

fn partition() -> Partition {
    Partition::new(GgttAddr(0x0800_0000), 128 << 20, GgttAddr(0x4000_0000), 512 << 20).unwrap()
}

/// Batches by page of each space.
#[derive(Default)]
struct Memory {
    global: BTreeMap<u32, Vec<u32>>,
    process: BTreeMap<u64, Vec<u32>>,
    reads: usize,
}

impl Memory {
    fn global(mut self, at: u32, dwords: &[u32]) -> Self {
        self.global.insert(at, dwords.to_vec());
        self
    }

    fn process(mut self, at: u64, dwords: &[u32]) -> Self {
        self.process.insert(at, dwords.to_vec());
        self
    }
}

/// Fills from the block that holds `at`; what follows a block in its page is zero.
fn fill<'a>(mut blocks: impl DoubleEndedIterator<Item = (u64, &'a Vec<u32>)>, at: u64, dwords: &mut [u32]) -> bool {
    assert!(at % 4096 + dwords.len() as u64 * 4 <= 4096, "a read crosses a page");
    let Some((start, block)) = blocks.next_back() else {
        return false;
    };
    let skip = ((at - start) / 4) as usize;
    if skip * 4 >= (block.len() * 4).next_multiple_of(4096) {
        return false;
    }
    for (i, dword) in dwords.iter_mut().enumerate() {
        *dword = block.get(skip + i).copied().unwrap_or(0);
    }
    true
}

impl Source for Memory {
    fn global(&mut self, at: GgttAddr, dwords: &mut [u32]) -> bool {
        self.reads += 1;
        fill(self.global.range(..=at.0).map(|(start, block)| (u64::from(*start), block)), u64::from(at.0), dwords)
    }

    fn process(&mut self, at: PpgttAddr, dwords: &mut [u32]) -> bool {
        self.reads += 1;
        fill(self.process.range(..=at.0).map(|(start, block)| (*start, block)), at.0, dwords)
    }
}

/// Audits a ring; the ring as it will run, and the summary.
fn ring(engine: Engine, dwords: &[u32]) -> Result<(Vec<u32>, Summary), AuditFault> {
    let partition = partition();
    let mut ring = dwords.to_vec();
    let mut audit = Audit::new(engine, &partition);
    audit.ring(&mut ring)?;
    Ok((ring, *audit.summary()))
}

fn reason(engine: Engine, dwords: &[u32]) -> Option<Reason> {
    ring(engine, dwords).err().map(|fault| fault.reason)
}

/// Audits a ring and the batches under it: ring and arena as they will run.
fn submission(
    engine: Engine,
    dwords: &[u32],
    memory: &mut Memory,
    limit: usize,
) -> Result<(Vec<u32>, Vec<u32>, Summary), AuditFault> {
    let partition = partition();
    let mut ring = dwords.to_vec();
    let mut arena = Vec::new();
    let mut audit = Audit::new(engine, &partition);
    audit.ring(&mut ring)?;
    audit.copy_batches(memory, BASES, &mut arena, limit)?;
    assert_eq!(audit.pending(), 0);
    audit.patch(&mut ring);
    Ok((ring, arena, *audit.summary()))
}

/// The arena from a copy's address on.
fn at(arena: &[u32], address: u32) -> &[u32] {
    &arena[((address - BASE.0) / 4) as usize..]
}

// ---- what stock drivers emit ----

/// A request of i915 on the render engine of a vGPU.
fn i915_render() -> Vec<u32> {
    let mut r = vec![0x7A00_0004, 0, 0, 0, 0, 0];
    r.extend([0x7A00_0004, 0x0010_4C1C | 1 << 14 | 1 << 21, 0xD0, 0, 0, 0]);
    r.extend([SDI | GGTT, MINE + 0x80, 0, 41, 0, mi::ARB_CHECK << 23]);
    r.extend([ARB_OFF, START | mi::BB_PPGTT, PROCESS[0], PROCESS[1], ARB_ON, 0]);
    r.extend([0x7A00_0004, 0x0010_10A1, 0, 0, 0, 0]);
    r.extend([0x7A00_0004, 0x0110_4080, MINE + 0x80, 0, 42, 0]);
    r.extend([INTERRUPT, ARB_ON, mi::ARB_CHECK << 23, 0]);
    r
}

/// The same on another engine.
fn i915_other() -> Vec<u32> {
    let mut r = vec![FLUSH | POST_SYNC | mi::FLUSH_STORE_INDEX | mi::FLUSH_TLB_INVALIDATE, 0xD0 | 4, 0, 0];
    r.extend([SDI | GGTT, HIDDEN, 0, 41, 0, mi::ARB_CHECK << 23]);
    r.extend([ARB_OFF, START | mi::BB_PPGTT, PROCESS[0], PROCESS[1], ARB_ON, 0]);
    r.extend([FLUSH | POST_SYNC, HIDDEN | 4, 0, 42]);
    r.extend([INTERRUPT, ARB_ON, mi::ARB_CHECK << 23, 0]);
    r
}

/// An index that asks for the engine's status page counts from the context's.
fn as_it_runs(dword: u32) -> u32 {
    match dword {
        ARB_OFF => ARB_ON,
        0xD4 => 0xD0,
        other => other,
    }
}

#[test]
fn requests_of_i915_pass_unchanged_but_for_arbitration_and_the_status_page() {
    for (engine, request) in [
        (Engine::Rcs, i915_render()),
        (Engine::Vcs0, i915_other()),
        (Engine::Vcs1, i915_other()),
        (Engine::Vecs, i915_other()),
    ] {
        let (ran, summary) = ring(engine, &request).unwrap();
        let expected: Vec<u32> = request.iter().map(|d| as_it_runs(*d)).collect();
        assert_eq!(ran, expected, "{engine:?}");
        assert_eq!((summary.user_interrupts, summary.dropped, summary.blanked), (1, 0, 0));
        assert_eq!(summary.dwords as usize, request.len());
    }
}

#[test]
fn workarounds_of_a_new_context_pass() {
    // Masked writes, the value and its mask equal halves.
    let registers = [0x7014, 0xE194, 0xE4F0, 0x7004, 0xE188, 0x7300, 0xE184, 0xE180, 0x2580, 0x7008, 0xE100];
    let mut request = vec![mi::load_register_imm(registers.len() as u32)];
    for register in registers {
        request.extend([register, 0x0004_0004]);
    }
    request.push(0);
    let (ran, summary) = ring(Engine::Rcs, &request).unwrap();
    assert_eq!((ran, summary.dropped), (request, 0));
}

/// The batch that i915 runs at each restore of a Gen9 render context.
fn indirect() -> Vec<u32> {
    let scratch = [MINE + 0x800, 0];
    let mut b = vec![ARB_OFF, SRM | GGTT, 0xB118, scratch[0], scratch[1], LRI, 0xB118, 0x4060_0000];
    b.extend([0x7A00_0004, 0x0010_0020, 0, 0, 0, 0]);
    b.extend([LRM | GGTT, 0xB118, scratch[0], scratch[1]]);
    b.extend([0x7A00_0004, 0x0820_4000, 0xD0, 0, 0, 0]);
    b.extend([mi::load_register_imm(3), 0x7014, 0x0800_0000, 0x2088, 0x0002_0002, 0x2090, 0x1000_1000]);
    b.extend([0, ARB_ON, 0, 0]);
    b
}

#[test]
fn the_indirect_context_batch_passes_and_keeps_its_arbitration() {
    let partition = partition();
    let mut audit = Audit::new(Engine::Rcs, &partition);
    let mut batch = indirect();
    audit.indirect(&mut batch).unwrap();
    assert_eq!(batch, indirect());
    assert_eq!(audit.summary().dropped, 0);
    // One that leaves arbitration off does not.
    let mut batch = [ARB_OFF, 0, ARB_ON, ARB_OFF, 0];
    audit.indirect(&mut batch).unwrap();
    assert_eq!(batch, [ARB_OFF, 0, ARB_ON, ARB_ON, 0]);
    // Gen8's per-context batch.
    let mut batch = [ARB_ON, END, 0xDEAD_BEEF, 0];
    assert_eq!(audit.per_context(&mut batch), Ok(2));
    assert_eq!(audit.per_context(&mut [0, 0]).unwrap_err().reason, Reason::Truncated);
}

/// Commands of the golden state: a state batch run from the global space.
fn golden() -> Vec<u32> {
    let mut b = vec![0x7A00_0004, 1 << 20 | 2, 0, 0, 0, 0, 0x6904_0300, 0x6904_0300];
    for (key, dwords) in [(0x7808u32, 133u32), (0x7809, 69), (0x7917, 258), (0x6101, 19), (0x7820, 12), (0x781D, 11)] {
        b.push(key << 16 | (dwords - 2));
        b.extend((1..dwords).map(|i| i.wrapping_mul(0x0101_0101)));
    }
    b.extend([0; 216]);
    b.extend([0x7B00_0005, 0x104, 0, 0, 0, 0, 0]);
    b.push(END);
    b
}

#[test]
fn the_golden_state_batch_is_copied_and_passes() {
    let request = [ARB_OFF, START, MINE + 0x4000, 0, ARB_ON, INTERRUPT];
    let mut memory = Memory::default().global(MINE + 0x4000, &golden());
    let (ran, arena, summary) = submission(Engine::Rcs, &request, &mut memory, 1 << 16).unwrap();
    assert_eq!(ran, [ARB_ON, START, BASE.0, 0, ARB_ON, INTERRUPT]);
    assert_eq!(&arena[..golden().len()], golden());
    assert_eq!(arena[golden().len()], END);
    assert_eq!((summary.batches, summary.blanked, summary.dropped), (1, 0, 0));
}

/// A context image as the hardware lays it out.
fn image(engine: Engine) -> Vec<u32> {
    let mut image = vec![0; DWORDS * 2];
    for group in layout(engine) {
        image[group.header] = group.header_dword();
        for i in 0..group.registers.len() {
            let (at, offset) = group.pair(engine, i).unwrap();
            image[at] = offset;
            image[at + 1] = 0x0001_0000 | i as u32;
        }
    }
    let end = gvt_defs::context::end_position(engine);
    image[end] = END;
    image
}

/// But for the clock that all share, which an image only tells.
#[test]
fn context_images_pass_unchanged() {
    let partition = partition();
    for engine in Engine::ALL {
        let mut image = image(engine);
        let engine_part = &mut image[RING_CONTEXT_DWORDS..];
        let mut before = engine_part.to_vec();
        let clock = before.iter().position(|dword| *dword == engine.base() + ring::TIMESTAMP).unwrap();
        (before[clock], before[clock + 1]) = (engine.base() + ring::NOPID, 0);
        let mut audit = Audit::new(engine, &partition);
        audit.context(engine_part, &ContextRegisters::known(engine)).unwrap();
        assert_eq!(engine_part, before);
        assert_eq!(audit.summary().dropped, 1);
    }
}

// ---- blitter batches ----

#[test]
fn blitter_batches_are_copied_and_run_from_the_copy() {
    let at_process = u64::from(PROCESS[1]) << 32 | u64::from(PROCESS[0]);
    let mut batch = vec![blt::with_length(blt::XY_COLOR_BLT, 7), 0, 0, 0, 0, 0, 0];
    batch.extend([LRI, 0x22200, 0x0003_0001]);
    batch.extend([SDI, 0x5000, 1, 7]);
    batch.push(END);
    let mut memory = Memory::default().process(at_process, &batch);
    let (ran, arena, summary) = submission(Engine::Bcs, &i915_other(), &mut memory, 1 << 16).unwrap();
    let start = ran.iter().position(|d| *d == START | mi::BB_PPGTT).expect("a process batch as before");
    assert_eq!(ran[start + 1..start + 3], [0, HIGH]);
    assert_eq!(&arena[..batch.len()], batch);
    assert_eq!((summary.batches, summary.dropped, summary.blanked), (1, 0, 0));
}

#[test]
fn a_blitter_batch_has_no_more_power_than_the_hardware_gives_others() {
    let at_process = u64::from(PROCESS[1]) << 32 | u64::from(PROCESS[0]);
    // CVE-2019-0155 and its relatives; each becomes a no-op, the rest of the batch goes on.
    let hostile: [&[u32]; 14] = [
        &[SDI | GGTT, MINE, 0, 1],
        &[SDI | GGTT, PRISM, 0, 1],
        &[mi::with_length(mi::UPDATE_GTT, 4), 0x1000, 1, 2],
        &[LRM, 0x22230, 0x5000, 0],
        &[LRM, 0x22200 + 0x80, 0x5000, 0],
        &[LRR, 0x22600, 0x2229C],
        &[ARB_OFF],
        &[INTERRUPT],
        &[mi::WAIT_FOR_EVENT << 23],
        &[mi::with_length(mi::DISPLAY_FLIP, 3), 0, 0],
        &[SRM | GGTT, 0x22080, PRISM, 0],
        &[FLUSH | POST_SYNC, PRISM | 4, 0, 1],
        &[FLUSH_QWORD | POST_SYNC, PRISM | 4, 0, 1, 2],
        &[mi::with_length(mi::STORE_DATA_INDEX, 3), 0x40, 1],
    ];
    for bad in hostile {
        let mut batch = bad.to_vec();
        batch.extend([LRI, 0x22600, 5, END]);
        let mut memory = Memory::default().process(at_process, &batch);
        let (_, arena, _) = submission(Engine::Bcs, &i915_other(), &mut memory, 1 << 16).unwrap();
        let mut expected = vec![0; bad.len()];
        expected.extend([LRI, 0x22600, 5, END]);
        assert_eq!(&arena[..expected.len()], expected, "{bad:x?}");
    }
    // Where it may go on in what is no copy, it ends.
    for flags in [0, mi::BB_PPGTT | mi::BB_PREDICATION, mi::BB_PPGTT | mi::BB_ADD_OFFSET, mi::BB_SECOND_LEVEL] {
        let batch = [START | flags, MINE, 0, LRI, 0x22600, 5, END];
        let mut memory = Memory::default().process(at_process, &batch).process(u64::from(MINE), &[END]);
        let (_, arena, summary) = submission(Engine::Bcs, &i915_other(), &mut memory, 1 << 16).unwrap();
        assert_eq!((&arena[..], summary.batches), (&[END, 0, 0, END, 0][..], 1), "{flags:#x}");
    }
    // Register writes go to NOPID, pair by pair.
    let batch = [mi::load_register_imm(2), 0x22230, 0xBAD, 0x22600, 7, END];
    let mut memory = Memory::default().process(at_process, &batch);
    let (_, arena, summary) = submission(Engine::Bcs, &i915_other(), &mut memory, 1 << 16).unwrap();
    assert_eq!(&arena[..6], [mi::load_register_imm(2), 0x22094, 0, 0x22600, 7, END]);
    assert_eq!(summary.dropped, 1);
}

#[test]
fn chains_and_levels_lead_to_copies() {
    let (a, b, c) = (0x1000u64, 0x2_0000_2000u64, 0x3040u64);
    let start = |at: u64, flags: u32| [START | mi::BB_PPGTT | flags, at as u32, (at >> 32) as u32];
    // a calls c on the second level and chains to b; b chains to itself.
    let mut first = start(c, mi::BB_SECOND_LEVEL).to_vec();
    first.extend(start(b, 0));
    let mut second = vec![blt::with_length(blt::XY_SRC_COPY_BLT, 10)];
    second.extend([0; 9]);
    second.extend(start(b, 0));
    let third = [LRI, 0x22604, 1, END];
    let mut memory =
        Memory::default().process(a, &first).process(b, &second).process(0x3000, &[0; 16]).process(c, &third);
    let request = [&start(a, 0)[..], &[INTERRUPT]].concat();
    let (ran, arena, summary) = submission(Engine::Bcs, &request, &mut memory, 1 << 16).unwrap();
    assert_eq!(summary.batches, 3);
    let user = START | mi::BB_PPGTT;
    assert_eq!((ran[0], ran[2]), (user, HIGH));
    let in_window = |low: u32| at(&arena, BASE.0 + low);
    let first = in_window(ran[1]);
    assert_eq!((first[0], first[2], first[3], first[5]), (user | mi::BB_SECOND_LEVEL, HIGH, user, HIGH));
    assert_eq!(&in_window(first[1])[..4], third);
    let second = in_window(first[4]);
    assert_eq!(second[0], blt::with_length(blt::XY_SRC_COPY_BLT, 10));
    assert_eq!(second[10..13], [user, first[4], HIGH], "goes round in the copy");
}

#[test]
fn the_copy_of_a_process_batch_runs_in_the_process_space_or_not_at_all() {
    let run = |process| {
        let partition = partition();
        let mut memory =
            Memory::default().process(0x1000, &[END]).global(MINE, &[START | mi::BB_PPGTT, 0x1000, 0, END]);
        let mut audit = Audit::new(Engine::Bcs, &partition);
        let mut ring = [START, MINE, 0];
        audit.ring(&mut ring).unwrap();
        let mut arena = Vec::new();
        audit.copy_batches(&mut memory, Bases { global: BASE, process }, &mut arena, 1 << 16)?;
        audit.patch(&mut ring);
        Ok::<_, AuditFault>((ring, arena))
    };
    // One that a privileged batch goes on in, too.
    let (ring, arena) = run(Some(WINDOW)).unwrap();
    assert_eq!((ring, &arena[..3]), ([START, BASE.0, 0], &[START | mi::BB_PPGTT, 64, HIGH][..]));
    assert_eq!(run(None).unwrap_err().reason, Reason::NoWindow);
}

#[test]
fn chains_are_bounded() {
    // Every batch starts the next page, without end.
    let mut memory = Memory::default();
    for page in 0..200u32 {
        memory = memory.global(MINE + page * 4096, &[START, MINE + (page + 1) * 4096, 0]);
    }
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 20).unwrap_err();
    assert_eq!(fault.reason, Reason::TooManyBatches);
    // What is told is where the ring can be cut: before the first start that leads to one too many.
    let mut memory = Memory::default();
    for first in 0..30 {
        let at = MINE + first * 0x4000;
        memory = memory.global(at, &[START, at + 0x1000, 0]).global(at + 0x1000, &[0, START, at + 0x2000, 0]);
        memory = memory.global(at + 0x2000, &[0, END]);
    }
    let many: Vec<u32> = (0..30).flat_map(|first| [START, MINE + first * 0x4000, 0]).collect();
    let fault = submission(Engine::Rcs, &many, &mut memory, 1 << 20).unwrap_err();
    assert_eq!((fault.reason, fault.part, fault.offset), (Reason::TooManyBatches, Part::Ring, 21 * 3));
    assert_eq!(submission(Engine::Rcs, &many[..21 * 3], &mut memory, 1 << 20).unwrap().2.batches, 63);
    // One ring with too many.
    let many: Vec<u32> = (0..65).flat_map(|i| [START, MINE + i * 4096, 0]).collect();
    assert_eq!(reason(Engine::Rcs, &many), Some(Reason::TooManyBatches));
    // The same batch many times is one copy.
    let many: Vec<u32> = (0..60).flat_map(|_| [START, MINE, 0]).collect();
    let mut memory = Memory::default().global(MINE, &[END]);
    let (_, arena, summary) = submission(Engine::Rcs, &many, &mut memory, 1 << 16).unwrap();
    assert_eq!((summary.batches, memory.reads), (1, 1));
    assert_eq!(arena.len(), 3);
    // One batch without an end: no-ops for ever, as far as memory goes and further than the limit.
    let mut memory = Memory::default().global(MINE, &[0; 1 << 14]);
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 12).unwrap_err();
    assert_eq!(fault.reason, Reason::TooLong);
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap_err();
    assert_eq!(fault.reason, Reason::Unmapped);
    // A command longer than the limit.
    let mut memory = Memory::default().global(MINE, &[0x7000_FFFF]);
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 12).unwrap_err();
    assert_eq!(fault.reason, Reason::Unmapped);
}

#[test]
fn commands_across_chunks_and_pages_are_walked_whole() {
    // The batch begins late in a page; a forbidden address stands across the page's end.
    let mut block = vec![0u32; 1024 - 2];
    block.extend([SDI | GGTT, PRISM, 0, 1, END]);
    let mut memory = Memory::default().global(MINE, &block);
    let fault = submission(Engine::Rcs, &[START, MINE + 4, 0], &mut memory, 1 << 16).unwrap_err();
    assert_eq!((fault.reason, fault.header, fault.offset), (Reason::Address, SDI | GGTT, 1024 - 3));
    let n = block.len();
    block[n - 4] = MINE;
    let mut memory = Memory::default().global(MINE, &block);
    let (_, arena, _) = submission(Engine::Rcs, &[START, MINE + 4, 0], &mut memory, 1 << 16).unwrap();
    assert_eq!(&arena[..n - 1], &block[1..]);
    assert_eq!(&arena[n - 1..], [END, 0]);
}

#[test]
fn second_levels_do_not_nest() {
    let second = START | mi::BB_SECOND_LEVEL;
    let mut memory = Memory::default()
        .global(MINE, &[second, MINE + 4096, 0, END])
        .global(MINE + 4096, &[second, MINE + 8192, 0, END])
        .global(MINE + 8192, &[END]);
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap_err();
    assert_eq!(fault.reason, Reason::Forbidden);
    // In a ring the bit means nothing.
    assert_eq!(ring(Engine::Rcs, &[second | mi::BB_PPGTT, 0, 0]).unwrap().0, [START | mi::BB_PPGTT, 0, 0]);
}

#[test]
fn a_predicated_chain_does_not_hide_what_follows_it() {
    let mut memory = Memory::default()
        .global(MINE, &[START | mi::BB_PREDICATION, MINE + 4096, 0, SDI | GGTT, PRISM, 0, 1, END])
        .global(MINE + 4096, &[END]);
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap_err();
    assert_eq!(fault.reason, Reason::Address);
}
