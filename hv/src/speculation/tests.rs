use core::cell::RefCell;

use super::*;

/// What a CPU that tells this is made to write at a switch of VMs, the scrub, an entry and an exit.
fn written(told: Told) -> Vec<(u32, u64)> {
    let (writes, barriers) = (RefCell::new(Vec::new()), Barriers::choose(told));
    let note = |msr, value| writes.borrow_mut().push((msr, value));
    barriers.on_switch(note);
    barriers.scrub(note);
    barriers.on_entry(note);
    barriers.on_exit(note);
    writes.into_inner()
}

const BARRIER: (u32, u64) = (IA32_PRED_CMD, 1);

#[test]
fn a_cpu_without_controls_is_asked_for_nothing() {
    assert_eq!(written(Told::default()), []);
    assert_eq!(Barriers::choose(Told::default()), Barriers::default());
}

/// Skylake to Kaby Lake with new microcode: everything, IBRS each time.
#[test]
fn an_affected_cpu_is_asked_for_all() {
    let told = Told { leaf7_edx: MD_CLEAR | IBRS_IBPB | L1D_FLUSH, ..Told::default() };
    let flush = (IA32_FLUSH_CMD, 1);
    assert_eq!(written(told), [BARRIER, flush, (IA32_SPEC_CTRL, 0), (IA32_SPEC_CTRL, 1)]);
}

/// Comet Lake of the later steppings.
#[test]
fn what_a_cpu_is_safe_from_is_not_asked_for() {
    let capabilities = RDCL_NO | IBRS_ALL | SKIP_L1DFL_VMENTRY | MDS_NO;
    let told =
        Told { leaf7_edx: MD_CLEAR | IBRS_IBPB | L1D_FLUSH | ARCH_CAPABILITIES, capabilities, ..Told::default() };
    assert_eq!(written(told), [BARRIER]);
    assert_eq!(Barriers::choose(told), Barriers { ibpb: true, ibrs: Ibrs::Always, scrub: Scrub::None });
    let sampled = Told { capabilities: capabilities & !MDS_NO, ..told };
    assert_eq!(Barriers::choose(sampled).scrub, Scrub::Buffers);
}

#[test]
fn amd_tells_it_elsewhere() {
    assert_eq!(written(Told { leaf8_ebx: AMD_IBPB, ..Told::default() }), [BARRIER]);
    let always = Told { leaf8_ebx: AMD_IBPB | AMD_IBRS | AMD_IBRS_ALWAYS, ..Told::default() };
    assert_eq!(Barriers::choose(always).ibrs, Ibrs::Always);
}
