//! Two vGPUs.

use super::{BATCH, batch};
use crate::mediator::{Config, VgpuConfig};
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::{Engine, Nanos};
use gvt_model::Profile;

const NOOP: u32 = 0;

struct Two {
    m: Machine,
    d: [Driver; 2],
}

/// As by default, but a hang is found after 20 ms: tests are in a hurry.
fn config() -> Config {
    Config { hang: Nanos(20_000_000), ..Config::default() }
}

fn start_weighted(weights: [u16; 2]) -> Two {
    let mut m = Machine::with_config(Profile::kaby_lake(), config());
    let d = [1, 2].map(|vm| {
        let config = VgpuConfig { weight: weights[vm as usize - 1], ..VgpuConfig::default() };
        let id = m.add_vm_with(vm, config);
        Driver::probe(&mut m, vm, id)
    });
    Two { m, d }
}

fn start() -> Two {
    start_weighted([4, 4])
}

impl Two {
    fn contexts(&mut self, engine: Engine) -> [Context; 2] {
        [0, 1].map(|i| self.d[i].context(&mut self.m, engine))
    }

    fn run_until(&mut self, nanos: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.m.now().0 + nanos;
        while self.m.now().0 < end {
            if done(self) {
                return true;
            }
            self.m.step();
            for d in &mut self.d {
                d.interrupts(&mut self.m);
            }
        }
        done(self)
    }
}

#[test]
fn both_run_at_the_same_time_on_every_engine() {
    let mut t = start();
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let mut c = t.contexts(engine);
        for round in 1..=20 {
            for (d, c) in t.d.iter_mut().zip(&mut c) {
                d.emit(&mut t.m, c, &[]);
                d.submit(&mut t.m, &[c]);
            }
            assert!(
                t.run_until(20_000_000, |t| (0..2).all(|i| t.d[i].stored(&t.m, &c[i]) == round && t.d[i].idle(engine)))
            );
        }
    }
    assert_eq!(t.m.gvt.take_report(), None);
}

#[test]
fn a_waiting_batch_of_one_does_not_hold_the_other() {
    let mut t = start();
    let mut c = t.contexts(Engine::Rcs);
    let flag = batch::spin_until_released(&mut t.d[0], &mut t.m, &c[0], BATCH);
    t.d[0].emit(&mut t.m, &mut c[0], &Driver::batch_start(BATCH));
    t.d[0].submit(&mut t.m, &[&c[0]]);
    t.run_until(2_000_000, |_| false);
    for round in 1..=5 {
        t.d[1].emit(&mut t.m, &mut c[1], &[]);
        t.d[1].submit(&mut t.m, &[&c[1]]);
        assert!(t.run_until(20_000_000, |t| t.d[1].stored(&t.m, &c[1]) == round && t.d[1].idle(Engine::Rcs)));
    }
    // It waited all the time: no hang, and it goes on where it was.
    assert_eq!(t.m.gvt.totals().resets, 0);
    t.run_until(100_000_000, |_| false);
    t.m.host.guest_write32(t.d[0].vm, flag, 1);
    assert!(t.run_until(20_000_000, |t| t.d[0].stored(&t.m, &c[0]) == 1 && t.d[0].idle(Engine::Rcs)));
    assert_eq!(t.d[0].take_events(Engine::Rcs), [(1, 0), (0x18, c[0].id)]);
    assert_eq!(t.m.gvt.take_report(), None);
}

#[test]
fn a_stubborn_batch_loses_the_engine_only_while_another_waits() {
    let mut t = start();
    let mut c = t.contexts(Engine::Rcs);
    batch::write_stubborn(&mut t.d[0], &mut t.m, &c[0], BATCH);
    t.d[0].emit(&mut t.m, &mut c[0], &Driver::batch_start(BATCH));
    t.d[0].submit(&mut t.m, &[&c[0]]);
    t.run_until(100_000_000, |_| false);
    assert_eq!(t.m.gvt.totals().resets, 0, "nobody waits: no limit");
    t.d[1].emit(&mut t.m, &mut c[1], &[]);
    t.d[1].submit(&mut t.m, &[&c[1]]);
    let before = t.m.now().0;
    assert!(t.run_until(1_000_000_000, |t| t.d[1].stored(&t.m, &c[1]) == 1 && t.d[1].idle(Engine::Rcs)));
    let waited = t.m.now().0 - before;
    assert!((20_000_000..30_000_000).contains(&waited), "{waited}");
    let report = t.m.gvt.take_report().expect("a report");
    assert_eq!((report.vm, report.cause), (t.d[0].vm, crate::Cause::Hang { engine: Engine::Rcs }));
    // The other engines of the one that hung still work; so does this one after the guest's reset.
    let mut blit = t.d[0].context(&mut t.m, Engine::Bcs);
    assert!(t.d[0].execute(&mut t.m, &mut blit, &[]));
    t.d[0].reset_engine(&mut t.m, Engine::Rcs);
    t.d[0].rebuild(&mut t.m, &c[0]);
    assert!(t.d[0].execute(&mut t.m, &mut c[0], &[]));
    assert!(t.d[1].execute(&mut t.m, &mut c[1], &[]));
}

#[test]
fn the_time_to_let_go_counts_from_when_somebody_waits() {
    let mut t = start();
    let mut c = t.contexts(Engine::Rcs);
    batch::write_stubborn(&mut t.d[0], &mut t.m, &c[0], BATCH);
    t.d[0].emit(&mut t.m, &mut c[0], &Driver::batch_start(BATCH));
    t.d[0].submit(&mut t.m, &[&c[0]]);
    t.run_until(10_000_000, |_| false);
    for _ in 0..3 {
        // The other comes, and gives up before the time is over.
        t.d[1].emit(&mut t.m, &mut c[1], &[]);
        t.d[1].submit(&mut t.m, &[&c[1]]);
        t.run_until(15_000_000, |_| false);
        t.d[1].reset_engine(&mut t.m, Engine::Rcs);
        t.d[1].rebuild(&mut t.m, &c[1]);
        t.run_until(30_000_000, |_| false);
        assert_eq!(t.m.gvt.totals().resets, 0);
    }
    assert_eq!(t.m.gvt.take_report(), None);
}

/// The first guest begins what never ends on an engine and resets that, with the second waiting for it or not.
fn reset_in_the_others_way(t: &mut Two, own: &mut Context, waiting: Option<&mut Context>) {
    t.d[0].emit(&mut t.m, own, &Driver::batch_start(BATCH));
    t.d[0].submit(&mut t.m, &[own]);
    // It may have to wait until what the second has left there is gone.
    assert!(t.run_until(1_000_000, |t| t.m.gvt.runs_on(0, own.engine)));
    if let Some(c) = waiting {
        t.d[1].emit(&mut t.m, c, &[]);
        t.d[1].submit(&mut t.m, &[c]);
    }
    t.run_until(30_000, |_| false);
    t.d[0].reset_engine(&mut t.m, own.engine);
    t.d[0].rebuild(&mut t.m, own);
    assert!(t.run_until(2_000_000, |t| t.d[1].idle(own.engine)));
}

#[test]
fn who_resets_an_engine_that_others_want_again_and_again_is_stopped() {
    let mut t = start();
    let [mut own, mut others] = t.contexts(Engine::Rcs);
    batch::write_stubborn(&mut t.d[0], &mut t.m, &own, BATCH);
    for _ in 0..250 {
        reset_in_the_others_way(&mut t, &mut own, None);
    }
    for _ in 1..200 {
        reset_in_the_others_way(&mut t, &mut own, Some(&mut others));
    }
    assert_eq!(t.m.gvt.take_report(), None);
    reset_in_the_others_way(&mut t, &mut own, Some(&mut others));
    let report = t.m.gvt.take_report().expect("a report");
    assert_eq!((report.vm, report.action), (t.d[0].vm, crate::Action::StopVm));
    assert_eq!(report.cause, crate::Cause::ResetStorm { engine: Engine::Rcs });
}

/// Both keep the engine full with batches of some milliseconds; the time splits by weight.
fn shares(weights: [u16; 2]) -> [u64; 2] {
    let mut t = start_weighted(weights);
    let mut c = t.contexts(Engine::Vecs);
    for (d, c) in t.d.iter_mut().zip(&mut c) {
        // No-ops for ever, arbitrating now and then.
        batch::write_endless(d, &mut t.m, c, BATCH, &[NOOP; 64]);
        d.emit(&mut t.m, c, &Driver::batch_start(BATCH));
        d.submit(&mut t.m, &[c]);
    }
    t.run_until(120_000_000, |_| false);
    // What runs now is not accounted yet: one slice at most.
    [0, 1].map(|i| t.m.gvt.stats(t.d[i].id).unwrap().engine(Engine::Vecs).busy.0)
}

#[test]
fn time_is_shared_by_weight() {
    let [a, b] = shares([4, 4]);
    assert!(a * 10 > b * 8 && b * 10 > a * 8, "{a} {b}");
    let [a, b] = shares([2, 6]);
    assert!((22..40).contains(&(100 * a / b)), "{a} {b}");
}

#[test]
fn an_idle_neighbour_costs_nothing() {
    let run = |idle: bool| {
        let mut m = Machine::new();
        let id = m.add_vm(1);
        let mut d = Driver::probe(&mut m, 1, id);
        if idle {
            let other = m.add_vm(2);
            let mut other = Driver::probe(&mut m, 2, other);
            let mut c = other.context(&mut m, Engine::Rcs);
            assert!(other.execute(&mut m, &mut c, &[]));
        }
        let mut c = d.context(&mut m, Engine::Rcs);
        assert!(d.execute(&mut m, &mut c, &[]));
        let (exits, totals, switches) = (d.exits, m.gvt.totals(), m.gvt.stats(id).unwrap().switches);
        for _ in 0..1000 {
            assert!(d.execute(&mut m, &mut c, &[]));
        }
        let after = m.gvt.totals();
        assert_eq!(m.gvt.stats(id).unwrap().switches, switches);
        (d.exits - exits, after.reads + after.writes - totals.reads - totals.writes)
    };
    let (alone, beside) = (run(false), run(true));
    println!("alone {alone:?}, beside an idle neighbour {beside:?}");
    let close = |a: u64, b: u64| a.abs_diff(b) * 100 <= a;
    assert!(close(alone.0, beside.0) && close(alone.1, beside.1), "{alone:?} {beside:?}");
}
