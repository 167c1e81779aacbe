//! What a loaded context can fetch is append-only (design D16): guests that rewrite a ring that waits.

use super::{BATCH, batch, store};
use crate::report::Cause;
use crate::testing::driver::{Context, Driver, RING};
use crate::testing::machine::Machine;
use gvt_defs::{Engine, GgttAddr, Gpa, mi, ring};

const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];
const SECRET: u32 = 0x5EC2_E700;
/// 3DSTATE_VERTEX_ELEMENTS: dwords without addresses, as many as its length says.
const PLAIN: u32 = 0x7809_0000;

/// How the attacker submits again.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Light,
    Forced,
}

/// A command that waits until a dword is not 0.
fn wait(flag: GgttAddr) -> Vec<u32> {
    let poll = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_POLL | mi::GLOBAL_GTT;
    vec![poll | 5 << mi::SEMAPHORE_COMPARE_SHIFT, 0, flag.0, 0]
}

fn poke(d: &Driver, m: &mut Machine, c: &Context, at: u32, dwords: &[u32]) {
    for (i, dword) in (0..).zip(dwords) {
        let at = (at + 4 * i) % RING;
        m.host.guest_write32(d.vm, Gpa(c.ring_pages[(at / 4096) as usize].0 + u64::from(at % 4096)), *dword);
    }
}

/// A ring that waits at a semaphore, and where that is.
fn waiting(d: &mut Driver, m: &mut Machine, engine: Engine, first: u32) -> (Context, Gpa, u32) {
    let flag = d.pages(1)[0];
    let at = d.pin(m, &[flag]);
    let mut c = d.context(m, engine);
    // What `emit` adds of its own.
    const OWN: u32 = 10;
    while c.tail < first {
        let room = ((first - c.tail) / 4).min(512) - OWN;
        assert!(d.execute(m, &mut c, &vec![0; room as usize]));
    }
    let begin = c.tail + 8;
    d.emit(m, &mut c, &wait(at));
    d.submit(m, &[&c]);
    assert!(d.run_until(m, 3_000_000, |d, _| d.ready(engine)));
    m.run_for(200_000);
    (c, flag, begin)
}

/// The attack: a plain command that begins before the head has a store to a victim as payload, where the ring waits.
fn attack(first: u32, back: u32, wish: Wish) {
    let mut m = Machine::new();
    let (a, b) = (m.add_vm(1), m.add_vm(2));
    let mut victim = Driver::probe(&mut m, 1, a);
    let secret = victim.pages(1);
    m.host.guest_write32(victim.vm, secret[0], SECRET);
    let target = victim.pin(&mut m, &secret);
    let mut d = Driver::probe(&mut m, 2, b);
    let (mut c, flag, at) = waiting(&mut d, &mut m, Engine::Rcs, first);
    let end = (c.tail + RING - back) % RING;
    let dwords = (end + RING - (at + RING - 8) % RING) % RING / 4;
    // All of the ring is no-ops but this.
    poke(&d, &mut m, &c, 0, &[0; RING as usize / 4]);
    poke(&d, &mut m, &c, at - 8, &[PLAIN | (dwords - 2), 0]);
    poke(&d, &mut m, &c, at, &[mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, target.0, 0, 0xBAD]);
    c.tail = end;
    match wish {
        Wish::Light => d.submit(&mut m, &[&c]),
        Wish::Forced => d.submit_forced(&mut m, &[&c]),
    }
    m.run_for(1_000_000);
    m.host.guest_write32(d.vm, flag, 1);
    m.run_for(3_000_000);
    let found = m.host.guest_read32(victim.vm, secret[0]);
    assert_eq!(found, SECRET, "ring from {first:#x}, tail back by {back:#x}, {wish:?}");
    let mut sound = victim.context(&mut m, Engine::Rcs);
    assert!(victim.execute(&mut m, &mut sound, &[]));
}

#[test]
fn a_ring_that_waits_is_not_rewritten_under_the_hardware() {
    for first in [0, 0x800, RING - 0x38, RING - 0x28] {
        for back in [8, 16, 24, 0] {
            attack(first, back, Wish::Light);
            attack(first, back, Wish::Forced);
        }
    }
}

/// The guest replaces what the hardware has not executed: that is what runs, once the context has left, and nothing of
/// what was there.
#[test]
fn a_ring_that_is_rewritten_behind_its_head_is_copied_again() {
    for back in [0, 8] {
        let mut m = Machine::new();
        let id = m.add_vm(1);
        let mut d = Driver::probe(&mut m, 1, id);
        let (mut c, flag, at) = waiting(&mut d, &mut m, Engine::Rcs, 0);
        let page = d.pages(1)[0];
        d.map_process(&mut m, c.pml4, 0x40_0000, page);
        poke(&d, &mut m, &c, at + 16, &[0; 64]);
        poke(&d, &mut m, &c, at + 16, &store(0x40_0000, 7));
        c.tail -= back;
        d.submit(&mut m, &[&c]);
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Rcs)));
        m.run_for(500_000);
        assert_eq!(m.host.guest_read32(d.vm, page), 0, "it waits as before");
        m.host.guest_write32(d.vm, flag, 1);
        assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(Engine::Rcs)), "{:?}", m.gvt.take_report());
        assert_eq!((m.host.guest_read32(d.vm, page), d.stored(&m, &c)), (7, 0));
        assert_eq!(d.image_dword(&m, &c, gvt_defs::context::value::RING_HEAD) & ring::HEAD_ADDR_MASK, c.tail);
        assert_eq!(m.gvt.take_report(), None);
    }
}

/// A context that is copied again resumes inside its batch, also where that is a copy.
#[test]
fn a_batch_goes_on_when_its_ring_is_copied_again() {
    for engine in ENGINES {
        let mut m = Machine::new();
        let id = m.add_vm(1);
        let mut d = Driver::probe(&mut m, 1, id);
        let mut c = d.context(&mut m, engine);
        let page = d.pages(1)[0];
        d.map_process(&mut m, c.pml4, 0x40_0000, page);
        let flag = batch::spin_until_released(&mut d, &mut m, &c, BATCH);
        let behind = c.tail + 8;
        d.emit(&mut m, &mut c, &[Driver::batch_start(BATCH), store(0x40_0000, 7), vec![0; 4]].concat());
        d.submit(&mut m, &[&c]);
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(engine)));
        m.run_for(200_000);
        // The breadcrumb is taken back, and another store than that is behind the batch now.
        let batch = 4 * Driver::batch_start(BATCH).len() as u32;
        c.tail = behind + batch + 4 * 8;
        poke(&d, &mut m, &c, behind + batch, &store(0x40_0000, 8));
        d.submit(&mut m, &[&c]);
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(engine)));
        m.run_for(500_000);
        assert_eq!(m.host.guest_read32(d.vm, page), 0, "{engine:?}");
        m.host.guest_write32(d.vm, flag, 1);
        assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(engine)), "{engine:?} {:?}", m.gvt.take_report());
        assert_eq!((m.host.guest_read32(d.vm, page), d.stored(&m, &c)), (8, 0), "{engine:?}");
        assert_eq!(m.gvt.take_report(), None);
    }
}

/// i915's heartbeat submits a batch that takes long again and again with the same tail; batches behind it are copied each
/// time, and room for that comes to an end.
#[test]
fn a_context_submitted_again_often_in_a_copied_batch_runs_to_its_end() {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let mut d = Driver::probe(&mut m, 1, id);
    let mut c = d.context(&mut m, Engine::Bcs);
    let flag = batch::spin_until_released(&mut d, &mut m, &c, BATCH);
    batch::write(&mut d, &mut m, &c, BATCH + 0x10_0000, &[0; 1000]);
    d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
    d.emit(&mut m, &mut c, &Driver::batch_start(BATCH + 0x10_0000));
    d.submit(&mut m, &[&c]);
    for _ in 0..40 {
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Bcs)));
        m.run_for(200_000);
        d.submit_forced(&mut m, &[&c]);
    }
    m.host.guest_write32(d.vm, flag, 1);
    assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(Engine::Bcs)), "{:?}", m.gvt.take_report());
    assert_eq!((d.stored(&m, &c), m.gvt.take_report()), (2, None));
}

/// What waits for a context to leave has a deadline, though no other vGPU waits; a tail that has not moved has none.
#[test]
fn a_tail_that_went_back_waits_no_longer_than_the_deadline() {
    for (back, hangs, wish) in [(8, true, Wish::Light), (8, true, Wish::Forced), (0, false, Wish::Forced)] {
        let mut m = Machine::new();
        let id = m.add_vm(1);
        let mut d = Driver::probe(&mut m, 1, id);
        let mut c = d.context(&mut m, Engine::Vecs);
        batch::write_stubborn(&mut d, &mut m, &c, BATCH);
        d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
        d.submit(&mut m, &[&c]);
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Vecs)));
        m.run_for(200_000);
        c.tail -= back;
        match wish {
            Wish::Light => d.submit(&mut m, &[&c]),
            Wish::Forced => d.submit_forced(&mut m, &[&c]),
        }
        m.run_for(700_000_000);
        let report = m.gvt.take_report().map(|report| report.cause);
        assert_eq!(report, hangs.then_some(Cause::Hang { engine: Engine::Vecs }), "{back} {wish:?}");
        d.reset_engine(&mut m, Engine::Vecs);
        let mut sound = d.context(&mut m, Engine::Vecs);
        assert!(d.execute(&mut m, &mut sound, &[]));
    }
}
