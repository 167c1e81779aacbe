//! Design D21: what render work of one VM leaves in the engine is gone before another VM comes onto it. The model keeps
//! whose it is by kind, and says so when a context of another VM is loaded; what clears a kind says the PRM.

use super::{BATCH, batch};
use crate::gpu::parking::Stay;
use crate::mediator::Config;
use crate::report::Cause;
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::gfx;
use gvt_defs::residue::{CLEARED_BY, Residue};
use gvt_defs::{Engine, Hpa, Nanos, masked, mi, reg};
use gvt_model::{Arbitration, Finding, Profile, Save};

const DRAW: u32 = gfx::PRIMITIVE << 16 | 5;

struct Rig {
    m: Machine,
    d: [Driver; 2],
    c: [Context; 2],
}

impl Rig {
    fn new() -> Self {
        Self::with(Profile { save: Save::Late, ..Profile::kaby_lake() })
    }

    fn with(profile: Profile) -> Self {
        let config = Config { hang: Nanos(20_000_000), watch: Nanos(5_000_000), ..Config::default() };
        let mut m = Machine::with_config(profile, config);
        let mut d = [1, 2].map(|vm| {
            let id = m.add_vm(vm);
            Driver::probe(&mut m, vm, id)
        });
        let c = [0, 1].map(|i| {
            let c = d[i].context(&mut m, Engine::Rcs);
            batch::write(&mut d[i], &mut m, &c, BATCH, &[DRAW, 0, 0, 0, 0, 0, 0]);
            c
        });
        Self { m, d, c }
    }

    /// One VM draws.
    fn draw(&mut self, i: usize) -> bool {
        self.d[i].execute(&mut self.m, &mut self.c[i], &Driver::batch_start(BATCH))
    }

    /// The same when no change of VM is expected any more.
    fn draw_later(&mut self, i: usize) -> bool {
        self.m.run_for(6_000_000);
        self.draw(i)
    }

    /// What was met since the last call.
    fn met(&mut self) -> Vec<Residue> {
        let findings = self.m.device.borrow_mut().gpu.take_findings();
        let residue = |finding| if let Finding::Residue(kind, ..) = finding { Some(kind) } else { None };
        let mut kinds: Vec<_> = findings.into_iter().filter_map(residue).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// Changes a dword of the wash.
    fn patch(&mut self, at: usize, dword: u32) -> u32 {
        let parking = self.m.gvt.gpu.engines.get_mut(Engine::Rcs).parking();
        let frame = parking.wash().expect("a wash").page().frame(0).unwrap();
        let at = Hpa(frame.0 + 4 * at as u64);
        let old = self.m.host.ram.dword(at);
        assert!(self.m.host.ram.write(at, &dword.to_le_bytes()));
        old
    }

    /// Where the dwords of the wash with the flags of a PIPE_CONTROL are.
    fn controls(&mut self) -> Vec<usize> {
        let mut at = 0;
        let mut all = Vec::new();
        while let header @ 1.. = self.patch_nothing(at) {
            if header == gfx::PIPE_CONTROL_HEADER {
                all.push(at + 1);
            }
            at += gvt_defs::command::length(Engine::Rcs, header).unwrap() as usize;
        }
        assert_eq!(all.len(), 3);
        all
    }

    fn patch_nothing(&mut self, at: usize) -> u32 {
        let dword = self.patch(at, 0);
        self.patch(at, dword);
        dword
    }

    /// The wash without some bits of PIPE_CONTROL.
    fn take_out(&mut self, bits: u32) {
        for at in self.controls() {
            let flags = self.patch_nothing(at);
            self.patch(at, flags & !bits);
        }
    }
}

#[test]
fn nothing_that_one_vm_leaves_is_met_by_another() {
    let latency = Profile { completion: Nanos(20_000), save: Save::Late, ..Profile::kaby_lake() };
    for profile in [Profile::kaby_lake(), latency] {
        let mut rig = Rig::with(profile);
        for round in 0..20 {
            assert!(rig.draw(0) && rig.draw(1), "{round}");
            // Their own traces are no strangers'.
            assert!(round % 3 != 0 || rig.draw(1));
        }
        assert_eq!(rig.met(), []);
        assert_eq!(rig.m.gvt.take_report(), None);
    }
}

/// Both want the engine all the time: one is preempted when its slice is over, and the other begins. The mediator hears
/// of each command's outcome before the next one: of the parking context when it has executed nothing yet.
#[test]
fn nothing_is_met_at_the_end_of_a_slice() {
    let mut rig = Rig::with(Profile { arbitration: Arbitration::Restore, ..Profile::kaby_lake() });
    rig.m.budget = 1;
    for i in 0..2 {
        batch::write_endless(&mut rig.d[i], &mut rig.m, &rig.c[i], BATCH, &[DRAW, 0, 0, 0, 0, 0, 0]);
        rig.d[i].emit(&mut rig.m, &mut rig.c[i], &Driver::batch_start(BATCH));
        rig.d[i].submit(&mut rig.m, &[&rig.c[i]]);
    }
    for _ in 0..20_000 {
        rig.m.step();
        for d in &mut rig.d {
            d.interrupts(&mut rig.m);
        }
    }
    assert_eq!(rig.met(), []);
    for d in &rig.d {
        assert!(rig.m.gvt.stats(d.id).unwrap().switches > 5);
    }
}

/// Every bit of the wash is needed, and for nothing else than what the table says.
#[test]
fn without_one_bit_its_kind_is_met() {
    let bits = CLEARED_BY.iter().fold(0, |all, (_, bits)| all | bits);
    for bit in (0..32).map(|n| 1 << n).filter(|bit| bits & bit != 0) {
        let mut rig = Rig::new();
        assert!(rig.draw(0) && rig.draw(1));
        assert_eq!(rig.met(), []);
        rig.take_out(bit);
        assert!(rig.draw(0) && rig.draw(1));
        let needs: Vec<_> = CLEARED_BY.into_iter().filter(|(_, bits)| bits & bit != 0).map(|(kind, _)| kind).collect();
        assert!(!needs.is_empty());
        assert_eq!(rig.met(), needs, "without {bit:#x}");
    }
}

/// A guest that has told L3 to keep what is coherent keeps nothing there, and its register is what it was.
#[test]
fn a_register_of_the_guest_does_not_keep_lines_in_l3() {
    let mut rig = Rig::new();
    let kept = reg::L3SQ_DEFAULT;
    let load = [mi::load_register_imm(1), reg::L3SQCREG4, kept, 0];
    let commands = [load.as_slice(), &Driver::batch_start(BATCH)].concat();
    let Rig { m, d: [first, _], c: [c, _] } = &mut rig;
    assert!(first.execute(m, c, &commands));
    let now = rig.m.now();
    assert_eq!(rig.m.device.borrow_mut().gpu.read32(reg::L3SQCREG4, now), kept);
    // The wash is under way when the first comes again, or done.
    assert!(rig.draw(1));
    assert_eq!(rig.met(), []);
    let found = rig.controls()[0] - 2;
    assert_eq!(rig.patch(found, kept) & reg::L3SQ_FLUSH_COHERENT, reg::L3SQ_FLUSH_COHERENT);
    assert!(rig.d[0].execute(&mut rig.m, &mut rig.c[0], &commands) && rig.draw(1));
    assert_eq!(rig.met(), [Residue::L3]);
}

/// What a fresh context inherits is the state that the parking context brings along.
#[test]
fn a_fresh_context_inherits_the_default_state() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        assert!(rig.draw(0));
        let mut fresh = rig.d[1].context(&mut rig.m, Engine::Rcs);
        let control = rig.d[1].image_dword(&rig.m, &fresh, gvt_defs::context::value::CTX_CONTROL);
        assert_eq!(masked::apply(0, control) & gvt_defs::ring::CTX_RESTORE_INHIBIT, 1);
        assert!(rig.d[1].execute(&mut rig.m, &mut fresh, &[]));
    }
    assert_eq!(rig.met(), []);
}

/// Stays that the hardware never comes to add up; where they go once round the parking ring, there is nothing in it to
/// execute, and no mark.
#[test]
fn a_ring_that_has_gone_round_does_not_pass_for_a_wash() {
    for stays in [1, 200, 254, 255, 256, 511] {
        let mut rig = Rig::new();
        assert!(rig.draw(0) && rig.draw_later(0));
        for _ in 0..stays {
            let _ = rig.m.gvt.gpu.engines.get_mut(Engine::Rcs).parking().next(&mut rig.m.host, Stay::Rest);
        }
        assert!(rig.draw(1), "{stays}");
        assert_eq!(rig.met(), [], "{stays}");
    }
}

/// A wash that never ends is found like any other hang: the engine is reset, nobody else's work is lost, and the next
/// wash has its chance.
#[test]
fn a_wash_that_never_ends_is_reset() {
    let mut rig = Rig::new();
    assert!(rig.draw(0) && rig.draw_later(0));
    // It waits for a dword of its own that never changes.
    let own = rig.m.gvt.gpu.engines.get_mut(Engine::Rcs).parking().wash().expect("a wash").page().ggtt();
    let wait = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::GLOBAL_GTT | mi::SEMAPHORE_POLL;
    let old: Vec<u32> = (1..).zip([wait, u32::MAX, own.0, 0]).map(|(at, dword)| rig.patch(at, dword)).collect();
    let seqno = rig.d[1].emit(&mut rig.m, &mut rig.c[1], &Driver::batch_start(BATCH));
    rig.d[1].submit(&mut rig.m, &[&rig.c[1]]);
    rig.m.run_for(15_000_000);
    assert_eq!((rig.m.gvt.totals().resets, rig.d[1].stored(&rig.m, &rig.c[1])), (0, 0));
    assert!(rig.m.gvt.deadline().is_some());
    rig.m.run_for(10_000_000);
    assert_eq!(rig.m.gvt.totals().resets, 1);
    // It is the one whose work came before that is to blame.
    let report = rig.m.gvt.take_report().expect("a report");
    assert_eq!((report.vm, report.cause), (rig.d[0].vm, Cause::Hang { engine: Engine::Rcs }));
    for (at, dword) in (1..).zip(old) {
        rig.patch(at, dword);
    }
    assert!(rig.d[1].run_until(&mut rig.m, 40_000_000, |d, m| d.stored(m, &rig.c[1]) == seqno));
    assert_eq!(rig.met(), []);
}

/// A message that tells of the end of a wash gets lost.
#[test]
fn a_lost_message_does_not_stop_the_next_vm() {
    let mut rig = Rig::new();
    assert!(rig.draw(0) && rig.draw_later(0));
    let seqno = rig.d[1].emit(&mut rig.m, &mut rig.c[1], &Driver::batch_start(BATCH));
    rig.d[1].submit(&mut rig.m, &[&rig.c[1]]);
    rig.m.lose_messages_for(200_000);
    assert!(rig.d[1].run_until(&mut rig.m, 15_000_000, |d, m| d.stored(m, &rig.c[1]) == seqno));
    assert_eq!(rig.m.gvt.totals().resets, 0);
}

/// The same for one that tells that the parking context was loaded after a reset, with nothing else on the engine.
#[test]
fn a_message_lost_after_a_reset_does_not_stop_who_waits() {
    let mut rig = Rig::new();
    batch::write_stubborn(&mut rig.d[0], &mut rig.m, &rig.c[0], BATCH);
    rig.d[0].emit(&mut rig.m, &mut rig.c[0], &Driver::batch_start(BATCH));
    rig.d[0].submit(&mut rig.m, &[&rig.c[0]]);
    rig.m.run_for(100_000);
    let seqno = rig.d[1].emit(&mut rig.m, &mut rig.c[1], &Driver::batch_start(BATCH));
    rig.d[1].submit(&mut rig.m, &[&rig.c[1]]);
    // Until it has been told that its submission is active: that has a deadline of its own.
    rig.m.run_for(2_000_000);
    rig.d[1].interrupts(&mut rig.m);
    rig.d[0].reset_engine(&mut rig.m, Engine::Rcs);
    rig.m.lose_messages_for(200_000);
    assert!(rig.d[1].run_until(&mut rig.m, 15_000_000, |d, m| d.stored(m, &rig.c[1]) == seqno));
}

/// What a change of VM costs: no submission and no interrupt where VMs take turns, one of each where the next one comes
/// after a while, when nobody could know.
#[test]
fn what_a_change_of_vm_costs() {
    let mut rig = Rig::new();
    assert!(rig.draw(0) && rig.draw(1));
    let count = |rig: &mut Rig, turns: [usize; 2], rest: u64| {
        let look = |rig: &Rig| {
            let c = rig.m.device.borrow_mut().gpu.counters().engine(Engine::Rcs);
            let t = rig.m.gvt.totals();
            [c.submissions, c.commands, rig.m.interrupts, t.reads + t.writes, rig.d[0].exits + rig.d[1].exits]
        };
        let mut before = look(rig);
        for round in 0..=100 {
            if round == 1 {
                before = look(rig);
            }
            for i in turns {
                assert!(rig.draw(i));
                rig.m.run_for(rest);
                assert!(turns != [0, 1] || rig.draw(i));
            }
        }
        let after = look(rig);
        [0, 1, 2, 3, 4].map(|i| (after[i] - before[i]) as f64 / 200.0)
    };
    let same = count(&mut rig, [1, 1], 6_000_000);
    let quick = count(&mut rig, [0, 1], 0);
    let slow = count(&mut rig, [0, 1], 6_000_000);
    println!("submissions, commands, interrupts, physical register accesses, exits of the guest:");
    println!("a request of the same VM {same:?}; two at a change of VM, quick {quick:?}, slow {slow:?}");
    let more = |change: [f64; 5], i: usize| change[i] - 2.0 * same[i];
    assert_eq!([0, 2, 4].map(|i| more(quick, i)), [0.0; 3]);
    assert_eq!([0, 2, 4].map(|i| more(slow, i)), [1.0, 1.0, 0.0]);
    assert!(more(quick, 1) <= 40.0 && more(slow, 1) <= 40.0);
}

/// Two VMs that draw, reset their engine, and hear late, in any order, with the GPU at any pace: nothing is met, and in the
/// end both go on.
#[test]
fn nothing_is_met_whatever_happens() {
    for seed in 1..=12u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % below
        };
        let save = if seed % 2 == 0 { Save::Late } else { Save::Prompt };
        let completion = Nanos(20_000 * (seed % 3));
        let arbitration = Arbitration::Restore;
        let mut rig = Rig::with(Profile { save, completion, arbitration, ..Profile::kaby_lake() });
        for _ in 0..400 {
            let i = random(2) as usize;
            rig.m.budget = 1 + random(12) as u32;
            let Rig { m, d, c } = &mut rig;
            match random(12) {
                0..5 if d[i].idle(Engine::Rcs) => {
                    d[i].emit(m, &mut c[i], &Driver::batch_start(BATCH));
                    d[i].submit(m, &[&c[i]]);
                }
                5 => {
                    d[i].reset_engine(m, Engine::Rcs);
                    d[i].rebuild(m, &c[i]);
                }
                6 => m.lose_messages_for(random(100_000)),
                _ => m.run_for(random(100_000)),
            }
            d.iter_mut().for_each(|d| d.interrupts(m));
        }
        for i in 0..2 {
            let Rig { m, d, c } = &mut rig;
            assert!(d[i].run_until(m, 200_000_000, |d, _| d.idle(Engine::Rcs)), "{seed}");
            c[i].seqno = d[i].stored(m, &c[i]);
            assert!(rig.draw(i), "{seed}");
        }
        assert_eq!(rig.met(), [], "{seed}");
    }
}
