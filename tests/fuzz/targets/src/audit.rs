//! The command audit alone: ring, workaround buffers, context image, and the batches that a ring leads to. What comes
//! out is walked again by the tables of `gvt_defs`: no address of others, no register that is not for commands.

use crate::bytes::Bytes;
use crate::mediator::commands;
use crate::mediator::places::Places;
use gvt::audit::{Audit, Bases, ContextRegisters, Source};
use gvt::gtt::Partition;
use gvt::testing::oracle;
use gvt_defs::command;
use gvt_defs::operand::{Access, Memory};
use gvt_defs::{Engine, GgttAddr, Gpa, PpgttAddr, gfx, mi};

const APERTURE: GgttAddr = GgttAddr(0x0800_0000);
const HIDDEN: GgttAddr = GgttAddr(0x4000_0000);
const BYTES: u32 = 16 << 20;
/// Where copies go.
const ARENA: GgttAddr = GgttAddr(0xFD00_0000);
/// The same in the process space.
const WINDOW: u64 = 0x7E80_0000_0000;
/// Dwords of them at most.
const LIMIT: usize = 4096;

/// Runs one input; gives the number of streams that passed.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let places = places();
    let partition = Partition::new(APERTURE, BYTES, HIDDEN, BYTES).expect("whole pages");
    let mut passed = 0;
    while !b.is_empty() {
        let engine = b.pick(&crate::mediator::ENGINES);
        let mut dwords = stream(&mut b, &places, engine);
        let mut audit = Audit::new(engine, &partition);
        let sound = match b.below(8) {
            0 => audit.indirect(&mut dwords).is_ok(),
            1 => audit.per_context(&mut dwords).map(|count| dwords.truncate(count)).is_ok(),
            2 => {
                let known = ContextRegisters::known(engine);
                let sound = audit.context(&mut dwords, &known).is_ok();
                // Hardware loads no more of an image than up to its end.
                let end = dwords.iter().position(|dword| mi_end(*dword)).unwrap_or(dwords.len());
                dwords.truncate(end);
                sound
            }
            _ => submission(&mut audit, &mut b, (&places, engine), &partition, &mut dwords),
        };
        if sound {
            check(engine, &partition, &dwords);
            passed += 1;
        }
    }
    passed
}

/// Whether a dword ends an image. It may be the value of a register: what is behind that is walked another time.
fn mi_end(dword: u32) -> bool {
    dword >> 29 == 0 && mi::opcode(dword) == mi::BATCH_BUFFER_END
}

/// A ring with what it leads to.
fn submission(
    audit: &mut Audit<'_>,
    b: &mut Bytes<'_>,
    (places, engine): (&Places, Engine),
    partition: &Partition,
    ring: &mut [u32],
) -> bool {
    let mut memory = Batches([stream(b, places, engine), stream(b, places, engine)]);
    let mut arena = Vec::new();
    let bases = Bases { global: ARENA, process: Some(PpgttAddr(WINDOW)) };
    let sound = audit.ring(ring).is_ok() && audit.copy_batches(&mut memory, bases, &mut arena, LIMIT).is_ok();
    if sound {
        assert!(audit.pending() == 0 && arena.len() <= LIMIT + 1024, "{} dwords", arena.len());
        audit.patch(ring);
        check(engine, partition, &arena);
    }
    sound
}

/// A stream: of commands that mean something, or of anything.
fn stream(b: &mut Bytes<'_>, places: &Places, engine: Engine) -> Vec<u32> {
    if b.rarely(6) {
        return (0..b.below(64)).map(|_| b.dword()).collect();
    }
    let mut dwords = commands::ring(b, places, engine);
    if b.rarely(2) {
        dwords.extend([mi::header(mi::BATCH_BUFFER_END), 0]);
    }
    dwords
}

/// Walks what passed.
fn check(engine: Engine, partition: &Partition, dwords: &[u32]) {
    let mut rest = dwords;
    while let [header, ..] = rest {
        let Some(count) = command::length(engine, *header) else { return };
        let (one, later) = rest.split_at((count as usize).min(rest.len()));
        rest = later;
        let known = match header >> 29 {
            0 => command::mi_command(*header),
            3 if engine == Engine::Rcs && gfx::key(*header) == gfx::PIPE_CONTROL => Some(&command::PIPE_CONTROL),
            _ => None,
        };
        let Some(known) = known else { continue };
        for memory in known.memory {
            check_memory(partition, one, memory);
        }
        for register in known.registers.iter().filter(|r| r.access == Access::Write && !r.unused.of(one)) {
            let step = usize::from(register.every).max(1);
            let count = if register.every == 0 { 1 } else { usize::MAX };
            for offset in one.iter().skip(usize::from(register.dword)).step_by(step).take(count) {
                let offset = offset & mi::REGISTER_MASK;
                assert!(oracle::may_command(engine, offset), "{engine:?}: {one:x?} writes {offset:#x}");
            }
        }
    }
}

/// A global address is the guest's, to its last byte, or a copy's.
fn check_memory(partition: &Partition, dwords: &[u32], memory: &Memory) {
    if memory.unused.of(dwords) || !memory.global.of(dwords) {
        return;
    }
    let address = memory.address(dwords);
    let bytes = memory.bytes.of(dwords[0], dwords.len() as u32);
    let copies = u64::from(ARENA.0)..u64::from(ARENA.0) + 4 * LIMIT as u64;
    let copy = memory.access == Access::Execute && copies.contains(&address);
    let own = u32::try_from(address).is_ok_and(|address| partition.holds(GgttAddr(address), bytes));
    let index = memory.index.of(dwords);
    assert!(!index && (copy || own), "{dwords:x?} leads to {address:#x}, {bytes} bytes");
}

/// Two batches, one in each half of either space.
struct Batches([Vec<u32>; 2]);

impl Batches {
    fn read(&self, at: u64, dwords: &mut [u32]) -> bool {
        let batch = &self.0[(at >> 12 & 1) as usize];
        let skip = (at & 0xFFF) as usize / 4;
        for (i, dword) in dwords.iter_mut().enumerate() {
            *dword = batch.get(skip + i).copied().unwrap_or(0);
        }
        at >> 13 & 3 != 3
    }
}

impl Source for Batches {
    fn global(&mut self, at: GgttAddr, dwords: &mut [u32]) -> bool {
        self.read(at.0.into(), dwords)
    }

    fn process(&mut self, at: PpgttAddr, dwords: &mut [u32]) -> bool {
        self.read(at.0, dwords)
    }
}

fn places() -> Places {
    let own = [APERTURE.0, APERTURE.0 + BYTES - 4096, HIDDEN.0, HIDDEN.0 + BYTES - 4096, APERTURE.0 + 0x5000];
    let others =
        [0, APERTURE.0 - 4096, APERTURE.0 + BYTES, HIDDEN.0 - 4096, HIDDEN.0 + BYTES, 0xFC00_0000, 0xFFFF_F000];
    Places {
        own: own.into(),
        others: others.into(),
        flag: GgttAddr(APERTURE.0 + 0x5000),
        flag_va: 0x20_0000,
        batch: GgttAddr(APERTURE.0 + 0x2000),
        batches: [0x10_0000, 0x10_1000, 0x10_4000],
        frames: vec![Gpa(0)],
        foreign: vec![0],
    }
}
