//! Design D17: the audit and the model run the same streams of every command of the table, with bits flipped at random.
//! What the model then reaches, by its own record, is what the audit let through: the partition, the context's status
//! page, registers that may be written, and of those that are read only what a guest may know.

use super::*;
use crate::audit::registers::{privileged, readable, unprivileged};
use crate::testing::Ram;
use gvt_defs::command::{self, Command, Length};
use gvt_defs::context::{self, value};
use gvt_defs::execlist::Descriptor;
use gvt_defs::operand::{Forms, Given};
use gvt_defs::pte::GgttPte;
use gvt_defs::{Hpa, Nanos, gfx, masked, reg};
use gvt_model::{Blitter, Finding, Gpu, Place, Profile, Progress, Reached, Recording, Touch};
use std::collections::BTreeSet;

const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];

// The mediator's structures, as the hardware finds them.
const IMAGE: u32 = PRISM;
const RING: u32 = PRISM + 0x10_0000;
const BUFFERS: [u32; 2] = [PRISM + 0x20_0000, PRISM + 0x20_1000];
const STATUS: u32 = PRISM + 0x30_0000;
/// What the guest gave its engine as a status page.
const OWN_STATUS: u32 = MINE + 0x8000;
/// Where its batch is.
const BATCH: u32 = MINE + 0x4000;
/// Past the last byte of its aperture slice.
const LAST: u32 = 0x0800_0000 + (128 << 20);

/// Where a stream stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stands {
    Ring,
    Batch,
    /// On the blitter only: elsewhere nobody reads it.
    Process,
    Indirect,
    PerContext,
}

/// What the hardware is given.
#[derive(Default)]
struct Program {
    ring: Vec<u32>,
    arena: Vec<u32>,
    buffers: [Vec<u32>; 2],
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.next().is_multiple_of(n)
    }

    fn of(&mut self, list: &[u32]) -> u32 {
        list[self.next() as usize % list.len()]
    }

    /// Some bits, all, or none.
    fn flips(&mut self) -> u32 {
        match self.next() % 4 {
            0 => 0,
            1 => self.next(),
            _ => self.next() & self.next(),
        }
    }

    fn address(&mut self) -> u32 {
        let places = [MINE, HIDDEN, LAST - 4, LAST - 16, LAST, FOREIGN, STATUS, IMAGE, 0x40, 0xFF8, 0x1000];
        self.of(&places) ^ if self.one_in(2) { self.next() & 0x3F } else { 0 }
    }

    fn register(&mut self, engine: Engine) -> u32 {
        let elsewhere = [0x2600, 0x7014, 0x7000, 0x2358, 0x22600, 0x22080, 0x4260, 0x941C, 0xA188, 0x4_4200, 0x10_0000];
        match self.next() % 4 {
            0 => self.of(&elsewhere),
            1 => engine.base() + ring::GPR + (self.next() & 0x7C),
            2 => self.next(),
            _ => engine.base() + (self.next() & 0x7FC),
        }
    }
}

/// Header of a command of the table without length and flags.
fn header(c: &Command) -> u32 {
    match c {
        _ if command::PIPE_CONTROL == *c => gfx::PIPE_CONTROL << 16,
        _ if command::BLT.contains(c) => blt::header(c.opcode),
        _ => mi::header(c.opcode),
    }
}

/// A command with any flags, addresses and registers, mostly of a length that makes sense.
fn make(random: &mut Random, engine: Engine, c: &Command) -> Vec<u32> {
    let dwords = match (c.length, c.forms) {
        (Length::Fixed(dwords), _) => dwords,
        _ if random.one_in(32) => 2 + random.next() % 12,
        (_, Forms::One(dwords)) => dwords,
        (_, Forms::Either(one, other)) => random.of(&[one, other]),
        (_, Forms::From(least)) => least + 2 * (random.next() % 3),
        (_, Forms::Any) => 2 + random.next() % 10,
    };
    let mut all: Vec<u32> = (0..dwords).map(|_| if random.one_in(2) { random.flips() } else { 0 }).collect();
    let length = match c.length {
        Length::Fixed(_) => 0,
        Length::Field(mask) => mask,
    };
    let opcode = if header(c) >> 29 == 3 { 0xFFFF_0000 } else { 0xFFC0_0000 };
    all[0] = header(c) | random.flips() & !opcode & !length | (dwords.wrapping_sub(2) & length);
    // Bit 22, of most MI commands, is a flag.
    all[0] |= if header(c) >> 29 == 0 && random.one_in(2) { 1 << 22 } else { 0 };
    let mut put = |at: u8, dword| {
        if let Some(slot) = all.get_mut(usize::from(at)) {
            *slot = dword;
        }
    };
    for memory in c.memory {
        if let Given::Wide(at) | Given::Narrow(at) = memory.given {
            put(at, random.address());
        }
        if let Given::Wide(at) = memory.given {
            put(at + 1, if random.one_in(8) { random.next() } else { 0 });
        }
    }
    for register in c.registers {
        if c.memory.iter().all(|memory| memory.given != Given::Wide(register.dword)) || random.one_in(2) {
            put(register.dword, random.register(engine));
        }
        for at in (register.dword..dwords as u8).step_by(usize::from(register.every.max(1))).skip(1) {
            put(at, if register.every == 0 { continue } else { random.register(engine) });
        }
    }
    all
}

/// The guest's batch; whatever else it starts ends at once.
struct Batches<'a>(&'a [u32]);

impl Batches<'_> {
    fn read(&self, offset: u64, dwords: &mut [u32]) -> bool {
        for (i, dword) in dwords.iter_mut().enumerate() {
            *dword = self.0.get((offset / 4) as usize + i).copied().unwrap_or(END);
        }
        true
    }
}

impl Source for Batches<'_> {
    fn global(&mut self, at: GgttAddr, dwords: &mut [u32]) -> bool {
        self.read(u64::from(at.0.wrapping_sub(BATCH)), dwords)
    }

    fn process(&mut self, at: PpgttAddr, dwords: &mut [u32]) -> bool {
        self.read(at.0.wrapping_sub(BATCH.into()), dwords)
    }
}

/// What of a stream runs; `None` if it is refused.
fn audited(engine: Engine, stands: Stands, stream: &[u32]) -> Option<Program> {
    let partition = partition();
    let mut audit = Audit::new(engine, &partition).with_status_page(GgttAddr(OWN_STATUS));
    let mut program = Program::default();
    let mut copy = stream.to_vec();
    match stands {
        Stands::Ring => program.ring = copy,
        Stands::Batch => program.ring = vec![START, BATCH, 0],
        Stands::Process => program.ring = vec![START | mi::BB_PPGTT, BATCH, 0],
        Stands::Indirect => {
            copy.resize(copy.len().next_multiple_of(LINE), 0);
            audit.indirect(&mut copy).ok()?;
            program.buffers[0] = copy;
        }
        Stands::PerContext => {
            copy.push(END);
            let used = audit.per_context(&mut copy).ok()?;
            copy.truncate(used);
            program.buffers[1] = copy;
        }
    }
    audit.ring(&mut program.ring).ok()?;
    audit.copy_batches(&mut Batches(stream), BASES, &mut program.arena, 1 << 14).ok()?;
    audit.patch(&mut program.ring);
    program.ring.resize(program.ring.len().next_multiple_of(2), 0);
    Some(program)
}

/// The GPU with one context. All that a process has mapped is the window, and one page of batch ends that it cannot write.
struct Bench {
    gpu: Gpu,
    ram: Ram,
    now: u64,
}

impl Bench {
    fn new() -> Self {
        let profile = Profile { blitter: Blitter::ObeysLri, ..Profile::kaby_lake() };
        let mut bench = Self { gpu: Gpu::new(profile), ram: Ram::new(0x10_0000), now: 1 };
        let areas = [(IMAGE, 2), (RING, 2), (BUFFERS[0], 1), (BUFFERS[1], 1), (STATUS, 1), (BASE.0, 16)];
        let mut frame = 16;
        for (start, pages) in areas {
            for page in 0..pages {
                let at = GgttAddr(start + 4096 * page);
                bench.gpu.ggtt_write(at.index(), GgttPte::new(Hpa(frame << 12)).0);
                frame += 1;
            }
        }
        // Four levels of tables, each of one page whose entries are all alike, and the page of ends.
        for level in 1..=4u64 {
            let writable = if level == 4 { 1 } else { 3 };
            for i in 0..512 {
                bench.ram.write(Hpa(4096 * level + 8 * i), &(4096 * (level + 1) + writable).to_le_bytes());
            }
        }
        // The window: three levels more, and the arena.
        let lead = |table: u64, index: u64, entry: u64| {
            bench.ram.write(Hpa(4096 * table + 8 * index), &entry.to_le_bytes());
        };
        for (table, index) in [(1, WINDOW.0 >> 39), (6, 0), (7, 0)] {
            lead(table, index, 4096 * table.max(5) + 4096 + 3);
        }
        for page in 0..16 {
            let arena = GgttPte(bench.gpu.ggtt_read(GgttAddr(BASE.0 + 4096 * page).index()));
            lead(8, page.into(), arena.frame().0 + 1);
        }
        for i in 0..1024 {
            bench.ram.write(Hpa(5 * 4096 + 4 * i), &END.to_le_bytes());
        }
        bench
    }

    fn put(&mut self, at: u32, dwords: &[u32]) {
        let frame = |at: u32| GgttPte(self.gpu.ggtt_read(GgttAddr(at).index())).frame().0;
        let bytes: Vec<u8> = dwords.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        for (i, page) in (0..).zip(bytes.chunks(4096)) {
            self.ram.write(Hpa(frame(at + 4096 * i)), page);
        }
    }

    fn image(engine: Engine, program: &Program) -> Vec<u32> {
        let mut page = vec![0u32; RING_CONTEXT_DWORDS];
        for group in layout(engine).iter().filter(|group| !group.engine_context) {
            page[group.header] = group.header_dword();
            for i in 0..group.registers.len() {
                let (at, offset) = group.pair(engine, i).unwrap();
                page[at] = offset;
            }
        }
        let [indirect, per_context] = &program.buffers;
        let lines = (indirect.len() / LINE) as u32;
        for (at, v) in [
            (value::CTX_CONTROL, masked::enable(ring::CTX_RESTORE_INHIBIT | ring::CTX_SAVE_INHIBIT)),
            (value::RING_START, RING),
            (value::RING_CTL, 0x1001),
            (value::RING_TAIL, 4 * program.ring.len() as u32),
            (value::PDP0_LDW, 1 << 12),
            (value::INDIRECT_CTX, if lines == 0 { 0 } else { BUFFERS[0] | lines }),
            (value::BB_PER_CTX_PTR, if per_context.is_empty() { 0 } else { BUFFERS[1] | 1 }),
        ] {
            page[at] = v;
        }
        page
    }

    /// Runs a program from the reset of its engine on, until it ends, waits, or has had its time.
    fn run(&mut self, engine: Engine, program: &Program) -> Vec<Reached> {
        self.now += 1000;
        let now = Nanos(self.now);
        for (offset, v) in [
            (reg::GDRST, engine.info().reset),
            (engine.base() + ring::GFX_MODE, masked::enable(ring::GFX_RUN_LIST_ENABLE)),
            (engine.base() + ring::HWS_PGA, STATUS),
        ] {
            self.gpu.write32(offset, v, now);
        }
        self.put(IMAGE + context::REGISTER_PAGE, &Self::image(engine, program));
        self.put(RING, &program.ring);
        self.put(BUFFERS[0], &program.buffers[0]);
        self.put(BUFFERS[1], &program.buffers[1]);
        self.put(BASE.0, &program.arena);
        self.gpu.record(Recording::Start);
        self.gpu.take_findings();
        let descriptor = Descriptor::new(GgttAddr(IMAGE), 32);
        for dword in [0, 0, descriptor.id(), descriptor.low()] {
            self.gpu.write32(engine.base() + ring::ELSP, dword, now);
        }
        for _ in 0..2 {
            self.now += 1000;
            if self.gpu.step(&mut self.ram, Nanos(self.now), 100) != Progress::Busy {
                break;
            }
        }
        self.gpu.take_reached()
    }
}

/// Whether the audit can have meant that.
fn is_allowed(engine: Engine, stands: Stands, reached: &Reached) -> bool {
    let user = stands == Stands::Process;
    let policy = |offset| if user { unprivileged(engine, offset) } else { privileged(engine, offset) };
    match (reached.place, reached.touch) {
        (Place::Process(_), _) => true,
        (Place::Entry(_), _) => false,
        (Place::Register(offset), Touch::Read) => readable(engine, offset),
        // Where dropped writes go, and what MI_NOOP writes.
        (Place::Register(offset), Touch::Write) if offset == engine.base() + ring::NOPID => true,
        (Place::Register(offset), Touch::Write) => policy(offset).admit(reached.value) == Some(reached.value),
        (Place::Global(at), touch) => {
            let end = at + u64::from(reached.bytes);
            let status = touch == Touch::Write && (u64::from(IMAGE)..=u64::from(IMAGE) + 4096 - 4).contains(&at);
            let own = u32::try_from(at).is_ok_and(|at| partition().holds(GgttAddr(at), reached.bytes));
            status && end <= u64::from(IMAGE) + 4096 || own && !user
        }
    }
}

/// Whether a stream may end at a command.
fn stops(c: &Command) -> bool {
    header(c) >> 29 == 0
        && matches!(c.opcode, mi::SEMAPHORE_WAIT | mi::BATCH_BUFFER_START | mi::CONDITIONAL_BATCH_BUFFER_END)
}

/// Streams of one engine and place. Gives what they reached.
fn streams(bench: &mut Bench, engine: Engine, stands: Stands, rounds: u32) -> BTreeSet<(u32, Touch)> {
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ (engine.base() as u64) << 8 ^ stands as u64);
    let known = |c: &&Command| c.engines.has(engine);
    let all: Vec<&Command> =
        command::MI.iter().chain([&command::PIPE_CONTROL]).chain(&command::BLT).filter(known).collect();
    let mut seen = BTreeSet::new();
    for _ in 0..rounds {
        for some in all.chunks(6) {
            let mut stream = Vec::new();
            // What may end the stream comes last.
            for c in some.iter().filter(|c| !stops(c)).chain(some.iter().filter(|c| stops(c))) {
                let one = make(&mut random, engine, c);
                if audited(engine, stands, &one).is_some() {
                    stream.extend(one);
                }
            }
            let Some(program) = audited(engine, stands, &stream) else { continue };
            for reached in bench.run(engine, &program) {
                assert!(is_allowed(engine, stands, &reached), "{engine:?} {stands:?} {reached:x?}\n{stream:x?}");
                let key = if reached.header >> 29 == 0 { mi::opcode(reached.header) } else { reached.header >> 22 };
                seen.insert((key, reached.touch));
            }
            for finding in bench.gpu.take_findings() {
                let alike = !matches!(finding, Finding::UnknownCommand(..) | Finding::PartialCommand(..));
                assert!(alike, "they part ways: {engine:?} {stands:?} {finding}\n{stream:x?}");
            }
        }
    }
    seen
}

#[test]
fn the_model_reaches_only_what_the_audit_let_through() {
    let mut bench = Bench::new();
    for engine in ENGINES {
        for stands in [Stands::Ring, Stands::Batch, Stands::Process, Stands::Indirect, Stands::PerContext] {
            if stands == Stands::Process && engine != Engine::Bcs {
                continue;
            }
            let seen = streams(&mut bench, engine, stands, 120);
            // The streams are worth something: whatever writes memory or registers did so.
            for c in command::MI.iter().filter(|c| c.engines.has(engine)) {
                let blanked = matches!(c.opcode, mi::REPORT_HEAD | mi::RS_STORE_DATA_IMM | mi::STORE_URB_MEM)
                    || stands == Stands::Process && c.privilege == command::Privilege::Privileged;
                let writes = c.memory.iter().any(|m| m.access == gvt_defs::operand::Access::Write)
                    || c.registers.iter().any(|r| r.access == gvt_defs::operand::Access::Write);
                if writes && !blanked {
                    assert!(seen.contains(&(c.opcode, Touch::Write)), "{engine:?} {stands:?} {}", c.name);
                }
            }
        }
    }
}
