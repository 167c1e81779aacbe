//! Resets, stop, hung engines.

mod rig;

use gvt_defs::context::value;
use gvt_defs::reg::{GDRST, GDRST_FULL};
use gvt_defs::{Engine, masked, ring};
use gvt_model::{Finding, Profile, Progress, Save};
use rig::{ARB_CHECK, NONE, Rig, ggtt_hpa, start, store, store_global};

const VA: u64 = 0x7F_1234_5000;

/// What a driver does: ask, see ready, reset, see done, take the request back.
fn reset(rig: &mut Rig, engine: Engine) {
    rig.set(engine, ring::MI_MODE, masked::enable(ring::MI_MODE_STOP_RING));
    assert_ne!(rig.get(engine, ring::MI_MODE) & ring::MI_MODE_IDLE, 0);
    rig.set(engine, ring::RESET_CTL, masked::enable(ring::RESET_CTL_REQUEST));
    assert_ne!(rig.get(engine, ring::RESET_CTL) & ring::RESET_CTL_READY, 0);
    for _ in 0..2 {
        rig.write(GDRST, engine.info().reset);
        assert_eq!(rig.read(GDRST), 0);
    }
    rig.set(engine, ring::RESET_CTL, masked::disable(ring::RESET_CTL_REQUEST));
    assert_eq!(rig.get(engine, ring::RESET_CTL), 0);
}

#[test]
fn a_hung_engine_is_reset_and_others_go_on() {
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let mut rig = Rig::new();
        let mut hung = rig.context(engine);
        let batch = rig.map_fresh(hung.root, VA, 1);
        // An endless loop that stores, without arbitration.
        rig.map_fresh(hung.root, VA + 0x1000, 1);
        rig.put(batch, &[store(VA + 0x1000, 1).as_slice(), &start(VA)].concat());
        rig.emit(&mut hung, &start(VA));
        rig.submit(engine, hung.descriptor(), NONE);
        for _ in 0..20 {
            assert_eq!(rig.step(1000), Progress::Busy);
        }
        let neighbour = if engine == Engine::Rcs { Engine::Vcs0 } else { Engine::Rcs };
        let out = rig.ggtt_alloc(1);
        let mut other = rig.context(neighbour);
        rig.emit(&mut other, &store_global(out, 1));
        rig.submit(neighbour, other.descriptor(), NONE);
        rig.step(1000);
        assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 1);
        let mut next = rig.context(engine);
        rig.emit(&mut next, &[ARB_CHECK]);
        rig.submit(engine, next.descriptor(), NONE);
        assert_eq!(rig.step(1000), Progress::Busy, "no arbitration point");
        assert_eq!(rig.get(engine, ring::EXECLIST_STATUS_HI), hung.id, "who is guilty");
        rig.write(gvt_defs::reg::GFX_FLSH_CNTL, 1);

        assert_eq!(rig.events(engine), [(0x1, 0)]);
        reset(&mut rig, engine);
        assert_eq!(rig.run(), Progress::Idle);
        assert_eq!(rig.events(engine), [], "no entries for killed contexts");
        assert_eq!(rig.events(neighbour), [(0x1, 0), (0x18, other.id)]);
        assert_eq!(rig.get(engine, ring::ESR), 0);
        assert_eq!(rig.get(engine, ring::CSB_PTR) & 7, 7);
        assert_eq!(rig.get(engine, ring::IMR), 0xFFFF_FFFF);
        rig.bring_up(engine);
        rig.emit(&mut next, &store_global(out + 4, 2));
        rig.submit_and_run(&next);
        assert_eq!(rig.events(engine), [(0x1, 0), (0x18, next.id)]);
        assert_eq!(rig.ram.read_u32(ggtt_hpa(out + 4)), 2);
        rig.no_findings();
    }
}

#[test]
fn full_reset_clears_engines_and_keeps_the_page_table() {
    let mut rig = Rig::new();
    rig.write(0xC800, 5);
    let pte = rig.gpu.ggtt_read(3);
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        rig.set(engine, ring::RESET_CTL, masked::enable(1));
    }
    rig.write(GDRST, GDRST_FULL);
    assert_eq!(rig.read(0xC800), 0, "MOCS is lost");
    assert_eq!(rig.gpu.ggtt_read(3), pte);
    assert_eq!(rig.get(Engine::Vecs, ring::HWS_PGA), 0);
    assert_ne!(rig.get(Engine::Vecs, ring::MI_MODE) & ring::MI_MODE_IDLE, 0);
    rig.no_findings();
}

#[test]
fn reset_without_ready_is_a_finding() {
    let mut rig = Rig::new();
    rig.write(GDRST, Engine::Bcs.info().reset);
    assert_eq!(rig.gpu.take_findings(), [Finding::ResetWithoutReady(Engine::Bcs)]);
}

#[test]
fn stop_ring_stops_and_lets_go_on() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Vcs0);
    let out = rig.ggtt_alloc(1);
    for i in 0..100 {
        rig.emit(&mut c, &store_global(out, i));
    }
    rig.submit(Engine::Vcs0, c.descriptor(), NONE);
    assert_eq!(rig.step(10), Progress::Busy);
    rig.set(Engine::Vcs0, ring::MI_MODE, masked::enable(ring::MI_MODE_STOP_RING));
    let seen = rig.ram.read_u32(ggtt_hpa(out));
    assert_eq!(rig.step(1000), Progress::Idle);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), seen);
    rig.set(Engine::Vcs0, ring::MI_MODE, masked::disable(ring::MI_MODE_STOP_RING));
    rig.run();
    assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 99);
}

#[test]
fn reset_drops_a_late_save() {
    let mut rig = Rig::with(Profile { save: Save::Late, ..Profile::default() });
    let mut c = rig.context(Engine::Rcs);
    rig.emit(&mut c, &[ARB_CHECK]);
    rig.submit_and_run(&c);
    reset(&mut rig, Engine::Rcs);
    rig.bring_up(Engine::Rcs);
    let mut other = rig.context(Engine::Rcs);
    rig.emit(&mut other, &[ARB_CHECK]);
    rig.submit_and_run(&other);
    assert_eq!(rig.image_get(&c, value::RING_HEAD), 0);
}

#[test]
fn function_reset_forgets_everything() {
    let mut rig = Rig::new();
    rig.write(0x4090, 1);
    rig.gpu.reset();
    assert_eq!((rig.read(0x4090), rig.gpu.ggtt_read(0)), (0, 0));
    assert_eq!(rig.step(100), Progress::Idle);
}
