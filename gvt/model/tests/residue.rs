//! What render work leaves, what clears it, and who meets it.

mod rig;

use gvt_defs::context::value;
use gvt_defs::gfx::{self, pipe_control as pc};
use gvt_defs::residue::{CLEARED_BY, Residue};
use gvt_defs::{Engine, masked, mi, reg, ring};
use gvt_model::Finding;
use rig::{Context, RAM_BASE, Rig, start};

const DRAW: [u32; 7] = [gfx::PRIMITIVE << 16 | 5, 0, 0, 0, 0, 0, 0];
const COHERENT: [u32; 3] = [mi::load_register_imm(1), reg::L3SQCREG4, reg::L3SQ_FLUSH_COHERENT];

/// Contexts of owners 1 and 2, and one that is nobody's.
fn contexts(rig: &mut Rig) -> [Context; 3] {
    let all = [0; 3].map(|_| rig.context(Engine::Rcs));
    for (owner, context) in (1..).zip(&all[..2]) {
        let first = (RAM_BASE + u64::from(context.lrca)) / 4096;
        rig.gpu.set_owner(first..first + 22, owner);
    }
    all
}

fn run(rig: &mut Rig, context: &mut Context, commands: &[u32]) {
    rig.emit(context, commands);
    rig.submit_and_run(context);
}

fn control(flags: u32) -> [u32; 6] {
    [gfx::PIPE_CONTROL_HEADER, flags, 0, 0, 0, 0]
}

/// What owner 2 meets when owner 1 has drawn and somebody has flushed in between.
fn met(flags: u32, coherent: &[u32]) -> Vec<Residue> {
    let mut rig = Rig::new();
    let [mut one, mut two, mut between] = contexts(&mut rig);
    run(&mut rig, &mut one, &DRAW);
    run(&mut rig, &mut between, &[coherent, control(flags).as_slice()].concat());
    run(&mut rig, &mut two, &[0]);
    let findings = rig.gpu.take_findings();
    let kind = |finding| {
        let Finding::Residue(kind, 1, 2) = finding else { panic!("{finding:?}") };
        kind
    };
    findings.into_iter().map(kind).collect()
}

#[test]
fn each_kind_is_cleared_by_its_own_bits_alone() {
    let kinds = CLEARED_BY.map(|(kind, _)| kind);
    assert_eq!(met(0, &COHERENT), kinds);
    for (cleared, bits) in CLEARED_BY {
        let others: Vec<_> = kinds.into_iter().filter(|kind| *kind != cleared).collect();
        assert_eq!(met(bits, &COHERENT), others, "{cleared:?}");
        let all = CLEARED_BY.into_iter().fold(0, |all, (_, bits)| all | bits);
        assert!(met(all & !bits, &COHERENT).contains(&cleared), "{cleared:?}");
    }
    assert!(met(pc::DC_FLUSH_ENABLE | pc::CS_STALL, &[]).contains(&Residue::L3));
}

#[test]
fn only_other_owners_meet_it_and_only_after_render_work() {
    let mut rig = Rig::new();
    let [mut one, mut two, _] = contexts(&mut rig);
    run(&mut rig, &mut one, &[mi::header(mi::ARB_CHECK)]);
    run(&mut rig, &mut two, &DRAW);
    run(&mut rig, &mut two, &DRAW);
    rig.no_findings();
    run(&mut rig, &mut one, &[0]);
    assert_eq!(rig.gpu.take_findings().len(), CLEARED_BY.len());
}

#[test]
fn a_batch_may_hold_render_work() {
    let mut rig = Rig::new();
    let [mut one, mut two, _] = contexts(&mut rig);
    let frame = rig.map_fresh(one.root, 0x10_0000, 1);
    rig.put(frame, &[rig::BATCH_END]);
    run(&mut rig, &mut one, &start(0x10_0000));
    run(&mut rig, &mut two, &[0]);
    assert_eq!(rig.gpu.take_findings().len(), CLEARED_BY.len());
}

/// A context that is loaded without its image inherits the state; one that is loaded with it takes the state's place.
#[test]
fn state_is_replaced_by_an_image() {
    for (loads_between, meets) in [(false, true), (true, false)] {
        let mut rig = Rig::new();
        let [mut one, mut two, mut between] = contexts(&mut rig);
        let inhibit = masked::enable(ring::CTX_INHIBIT_SYN_CTX_SWITCH | ring::CTX_RESTORE_INHIBIT);
        rig.image_set(&two, value::CTX_CONTROL, inhibit);
        run(&mut rig, &mut one, &DRAW);
        if loads_between {
            run(&mut rig, &mut between, &[0]);
        }
        run(&mut rig, &mut two, &[0]);
        let findings = rig.gpu.take_findings();
        assert_eq!(findings.contains(&Finding::Residue(Residue::RenderState, 1, 2)), meets);
    }
}

/// A reset takes the state, and what it does to the rest nobody says.
#[test]
fn a_reset_does_not_clear_caches() {
    let mut rig = Rig::new();
    let [mut one, mut two, _] = contexts(&mut rig);
    run(&mut rig, &mut one, &DRAW);
    rig.set(Engine::Rcs, ring::RESET_CTL, masked::enable(ring::RESET_CTL_REQUEST));
    rig.write(reg::GDRST, Engine::Rcs.info().reset);
    rig.bring_up(Engine::Rcs);
    run(&mut rig, &mut two, &[0]);
    assert_eq!(rig.gpu.take_findings().len(), CLEARED_BY.len());
}
