//! Copies of batches: what runs of them, what the guest sees of them.

use super::{BATCH, batch, start, store};
use crate::report::Cause;
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::context::value;
use gvt_defs::{Engine, Gpa, PAGE_SIZE, mi, ring};

/// Tables of memory attributes as older kernels write them from a ring: 64 for the engine, 32 for the L3.
#[test]
fn all_register_writes_of_one_submission_are_mirrored() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    let tables = [(0xC800, 64), (0xB020, 32)];
    let value = |offset: u32| offset << 8 | 0x5A;
    let mut ring = vec![];
    for (first, count) in tables {
        ring.push(mi::load_register_imm(count));
        ring.extend((first..first + 4 * count).step_by(4).flat_map(|offset| [offset, value(offset)]));
        // The last value counts.
        ring.extend([mi::load_register_imm(2), first, 0, first, value(first)]);
    }
    assert!(d.execute(&mut m, &mut c, &ring));
    for (first, count) in tables {
        for offset in (first..first + 4 * count).step_by(4) {
            assert_eq!(d.read(&mut m, offset), value(offset), "{offset:#x}");
        }
    }
}

/// More batches than are copied at a time, most of them started by other batches.
#[test]
fn a_ring_is_cut_before_the_start_that_leads_to_too_many_batches() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Bcs);
    let page = d.pages(1)[0];
    d.map_process(&mut m, c.pml4, 0x40_0000, page);
    let at = |first: u64, step: u64| 0x100_0000 + (first << 16) + (step << 12);
    let mut ring = vec![];
    for first in 0..30 {
        for step in 0..3 {
            let mut commands = store(0x40_0000 + 12 * first + 4 * step, 7);
            if step < 2 {
                commands.extend(batch::jump(at(first, step + 1)));
            }
            batch::write(&mut d, &mut m, &c, at(first, step), &commands);
        }
        ring.extend(Driver::batch_start(at(first, 0)));
    }
    assert!(d.execute(&mut m, &mut c, &ring), "{:?}", m.gvt.take_report());
    for i in 0..90 {
        assert_eq!(m.host.guest_read32(d.vm, Gpa(page.0 + 4 * i)), 7, "batch {i}");
    }
}

/// Where a batch lies, and on which engine only a copy of it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Privileged,
    Process,
}

const COPIED: [(Engine, Kind); 4] = [
    (Engine::Bcs, Kind::Process),
    (Engine::Bcs, Kind::Privileged),
    (Engine::Rcs, Kind::Privileged),
    (Engine::Vecs, Kind::Privileged),
];

/// A context with a batch that waits for a flag and then stores, and what is stored.
struct Waiting {
    c: Context,
    /// Where the batch lies.
    at: u64,
    flag: Gpa,
    result: Gpa,
}

/// Dwords into the batch where it waits.
const WAITS: u32 = 8;

impl Waiting {
    /// The batch begins where one of another context may as well.
    fn new(d: &mut Driver, m: &mut Machine, engine: Engine, kind: Kind) -> Self {
        let mut c = d.context(m, engine);
        let pages = d.pages(3);
        let global = if kind == Kind::Privileged { mi::GLOBAL_GTT } else { 0 };
        let at = match kind {
            Kind::Privileged => u64::from(d.pin(m, &pages).0),
            Kind::Process => BATCH,
        };
        for (i, page) in (0..).zip(&pages) {
            d.map_process(m, c.pml4, BATCH + PAGE_SIZE * i, *page);
            m.host.guest_write(d.vm, *page, &[0; 4096]);
        }
        let [flag_at, result_at] = [1, 2].map(|page| (at + PAGE_SIZE * page) as u32);
        let wait = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_POLL | 5 << mi::SEMAPHORE_COMPARE_SHIFT;
        let mut commands = vec![0; WAITS as usize];
        commands.extend([wait | global, 0, flag_at, 0]);
        commands.extend([mi::with_length(mi::STORE_DATA_IMM, 4) | global, result_at, 0, 7]);
        commands.push(mi::header(mi::BATCH_BUFFER_END));
        for (i, dword) in (0..).zip(commands) {
            m.host.guest_write32(d.vm, Gpa(pages[0].0 + 4 * i), dword);
        }
        let process = if kind == Kind::Process { mi::BB_PPGTT } else { 0 };
        let start = mi::with_length(mi::BATCH_BUFFER_START, 3) | process;
        d.emit(m, &mut c, &[start, at as u32, 0, 0]);
        Self { c, at, flag: pages[1], result: pages[2] }
    }

    fn release(&self, d: &Driver, m: &mut Machine) {
        m.host.guest_write32(d.vm, self.flag, 1);
    }

    /// What the image shows of where it is.
    fn shown(&self, d: &Driver, m: &Machine) -> [u32; 6] {
        BATCHES.map(|at| d.image_dword(m, &self.c, at))
    }

    /// What the image must show while it waits.
    fn place(&self, kind: Kind) -> [u32; 6] {
        let state = if kind == Kind::Process { ring::BB_STATE_PPGTT } else { 0 };
        [(self.at >> 32) as u32, (self.at as u32 + 4 * WAITS) | ring::BB_ADDR_VALID, state, 0, 0, 0]
    }

    fn poke(&self, d: &Driver, m: &mut Machine, at: usize, dword: u32) {
        m.host.guest_write32(d.vm, Gpa(self.c.image[1].0 + 4 * at as u64), dword);
    }

    fn results(&self, d: &Driver, m: &Machine) -> (u32, u32) {
        (m.host.guest_read32(d.vm, self.result), d.stored(m, &self.c))
    }
}

const BATCHES: [usize; 6] =
    [value::BB_ADDR_UDW, value::BB_ADDR, value::BB_STATE, value::SBB_ADDR_UDW, value::SBB_ADDR, value::SBB_STATE];

/// Submits, and lets it run to where it waits.
fn submit(d: &mut Driver, m: &mut Machine, c: &Context) {
    d.submit(m, &[c]);
    assert!(d.run_until(m, 3_000_000, |d, _| d.ready(c.engine)), "{:?}", m.gvt.take_report());
    m.run_for(300_000);
}

/// Another context of the guest takes the place of what runs, and runs to its end.
fn preempt(d: &mut Driver, m: &mut Machine, other: &mut Context) {
    let seqno = d.emit(m, other, &[]);
    d.submit(m, &[other]);
    let engine = other.engine;
    assert!(d.run_until(m, 5_000_000, |d, m| d.stored(m, other) == seqno && d.idle(engine)));
}

fn finish(d: &mut Driver, m: &mut Machine, engine: Engine) {
    assert!(d.run_until(m, 10_000_000, |d, _| d.idle(engine)), "{engine:?} {:?}", m.gvt.take_report());
    assert_eq!(m.gvt.take_report(), None);
}

/// A guest's own list replaces a context inside a copied batch: the image says where, in the guest's terms, and when the
/// guest submits it again nothing of the batch is left out.
#[test]
fn a_copied_batch_that_its_guest_preempts_goes_on_when_it_is_submitted_again() {
    for (engine, kind) in COPIED {
        let (mut m, mut d) = start();
        let w = Waiting::new(&mut d, &mut m, engine, kind);
        let mut other = d.context(&mut m, engine);
        submit(&mut d, &mut m, &w.c);
        // Where it is can be seen while it runs, too.
        let [high, low] = [ring::ACTHD_UDW, ring::ACTHD].map(|at| d.read(&mut m, engine.base() + at));
        assert_eq!((high, low), (0, w.at as u32 + 4 * WAITS), "{engine:?} {kind:?}");
        for _ in 0..3 {
            preempt(&mut d, &mut m, &mut other);
            assert_eq!(w.shown(&d, &m), w.place(kind), "{engine:?} {kind:?}");
            assert_eq!(w.results(&d, &m), (0, 0));
            submit(&mut d, &mut m, &w.c);
        }
        assert_eq!(w.results(&d, &m), (0, 0));
        w.release(&d, &mut m);
        finish(&mut d, &mut m, engine);
        assert_eq!(w.results(&d, &m), (7, 1), "{engine:?} {kind:?}");
        assert_eq!(w.shown(&d, &m), [0; 6]);
    }
}

/// The same while another VM has the engine in turns.
#[test]
fn a_copied_batch_that_was_preempted_goes_on_whoever_has_the_engine_meanwhile() {
    let (mut m, mut d) = start();
    let id = m.add_vm(2);
    let mut b = Driver::probe(&mut m, 2, id);
    let w = Waiting::new(&mut d, &mut m, Engine::Bcs, Kind::Process);
    let mut other = d.context(&mut m, Engine::Bcs);
    let mut rival = b.context(&mut m, Engine::Bcs);
    submit(&mut d, &mut m, &w.c);
    for _ in 0..3 {
        assert!(b.execute(&mut m, &mut rival, &[]));
        preempt(&mut d, &mut m, &mut other);
        assert!(b.execute(&mut m, &mut rival, &[]));
        d.submit(&mut m, &[&w.c]);
        assert!(b.execute(&mut m, &mut rival, &[]));
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Bcs)));
    }
    w.release(&d, &mut m);
    finish(&mut d, &mut m, Engine::Bcs);
    assert_eq!(w.results(&d, &m), (7, 1));
}

/// What a guest changes of where a context is inside a copy refuses the submission; the context itself is unharmed.
#[test]
fn a_forged_place_in_a_copied_batch_is_refused() {
    for (engine, kind) in COPIED {
        let (mut m, mut d) = start();
        let w = Waiting::new(&mut d, &mut m, engine, kind);
        let mut other = d.context(&mut m, engine);
        submit(&mut d, &mut m, &w.c);
        preempt(&mut d, &mut m, &mut other);
        let shown = w.shown(&d, &m);
        let root = d.context(&mut m, engine).pml4;
        let mut tries = vec![(value::RING_CTL, 0x2000 | ring::CTL_VALID), (value::PDP0_LDW, root.0 as u32)];
        for (i, at) in BATCHES.into_iter().enumerate() {
            tries.extend([shown[i] ^ 0x40, shown[i] ^ 4, shown[i] | 1 << 31].map(|forged| (at, forged)));
        }
        for (at, forged) in tries {
            // A privileged batch that is said to be a process's runs as one.
            if (at, engine) == (value::BB_STATE, Engine::Rcs) && forged & ring::BB_STATE_PPGTT != 0 {
                continue;
            }
            let before = d.image_dword(&m, &w.c, at);
            w.poke(&d, &mut m, at, forged);
            d.submit(&mut m, &[&w.c]);
            let report = m.gvt.take_report().map(|report| report.cause);
            assert!(matches!(report, Some(Cause::Submission { .. })), "{engine:?} {at:#x} {forged:#x} {report:?}");
            d.reset_engine(&mut m, engine);
            w.poke(&d, &mut m, at, before);
        }
        submit(&mut d, &mut m, &w.c);
        w.release(&d, &mut m);
        finish(&mut d, &mut m, engine);
        assert_eq!(w.results(&d, &m), (7, 1), "{engine:?} {kind:?}");
    }
}

/// The guest's image is read, and then something else of the submission is refused: what Prism goes on by next time is
/// still not the guest's.
#[test]
fn a_refused_image_leaves_nothing_in_the_ring_part() {
    let (mut m, mut d) = start();
    let mut w = Waiting::new(&mut d, &mut m, Engine::Rcs, Kind::Privileged);
    let mut other = d.context(&mut m, Engine::Rcs);
    submit(&mut d, &mut m, &w.c);
    preempt(&mut d, &mut m, &mut other);
    // The engine's part has changed, so it is copied; the ring holds what is refused.
    w.poke(&d, &mut m, value::RPCS, 1);
    let tail = w.c.tail;
    d.emit(&mut m, &mut w.c, &[mi::with_length(mi::UPDATE_GTT, 4), 0, 0, 0]);
    d.submit(&mut m, &[&w.c]);
    assert!(matches!(m.gvt.take_report().map(|report| report.cause), Some(Cause::Audit { .. })));
    d.reset_engine(&mut m, Engine::Rcs);
    // The batch is not the one that was copied any more.
    m.host.guest_write(d.vm, Gpa(w.flag.0 - PAGE_SIZE), &[0xFF; 4096]);
    w.c.tail = tail;
    submit(&mut d, &mut m, &w.c);
    w.release(&d, &mut m);
    finish(&mut d, &mut m, Engine::Rcs);
    assert_eq!(w.results(&d, &m), (7, 1));
}

/// Contexts that are half done are kept while others can make room. One that had to go is refused, and said to be.
#[test]
fn a_copy_that_is_gone_refuses_its_context() {
    let (mut m, mut d) = start();
    let all: Vec<Waiting> = (0..5).map(|_| Waiting::new(&mut d, &mut m, Engine::Bcs, Kind::Process)).collect();
    let mut others: Vec<Context> = (0..5).map(|_| d.context(&mut m, Engine::Bcs)).collect();
    for w in &all[..3] {
        submit(&mut d, &mut m, &w.c);
    }
    // Many others come and go in the slot that is left.
    for other in &mut others {
        preempt(&mut d, &mut m, other);
    }
    for w in &all[..3] {
        submit(&mut d, &mut m, &w.c);
    }
    // Now four are half done and a fifth one runs.
    submit(&mut d, &mut m, &all[3].c);
    submit(&mut d, &mut m, &all[4].c);
    assert_eq!(m.gvt.take_report(), None);
    for w in &all[1..] {
        w.release(&d, &mut m);
        submit(&mut d, &mut m, &w.c);
        finish(&mut d, &mut m, Engine::Bcs);
        assert_eq!(w.results(&d, &m), (7, 1));
    }
    d.submit(&mut m, &[&all[0].c]);
    let report = m.gvt.take_report().map(|report| report.cause);
    assert!(matches!(report, Some(Cause::Submission { what, .. }) if what.contains("no copy")), "{report:?}");
    m.run_for(1_000_000);
    assert_eq!(all[0].results(&d, &m), (0, 0));
}

/// Each time that a context is submitted again, what follows the batch is copied anew beside it, until there is no room.
#[test]
fn what_follows_a_copied_batch_waits_for_it_when_there_is_no_room_beside_it() {
    for begin in [0, 1] {
        let (mut m, mut d) = start();
        let mut w = Waiting::new(&mut d, &mut m, Engine::Bcs, Kind::Process);
        batch::write(&mut d, &mut m, &w.c, 0x100_0000, &vec![0; 1000]);
        // So that the ring goes on where a tail is not aligned, too.
        d.emit(&mut m, &mut w.c, &vec![0; begin]);
        let mut other = d.context(&mut m, Engine::Bcs);
        submit(&mut d, &mut m, &w.c);
        for _ in 0..20 {
            preempt(&mut d, &mut m, &mut other);
            d.emit(&mut m, &mut w.c, &Driver::batch_start(0x100_0000));
            submit(&mut d, &mut m, &w.c);
            assert_eq!(w.results(&d, &m), (0, 0));
        }
        w.release(&d, &mut m);
        finish(&mut d, &mut m, Engine::Bcs);
        assert_eq!(w.results(&d, &m), (7, 22));
    }
}
