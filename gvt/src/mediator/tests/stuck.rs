//! Hardware that does not answer: no frame leaves before the engines that could reach it are flushed or reset (design
//! D10).

use super::{BATCH, batch};
use crate::gpu::engine::Health;
use crate::host::{Owner, VmId};
use crate::mediator::{Destroyed, VgpuId};
use crate::report::Cause;
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::{Engine, Gfn, reg};

const ENGINE: Engine = Engine::Bcs;
const VM: VmId = VmId(1);

/// A vGPU that owns an engine.
fn start() -> (Machine, Driver, Context) {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let mut d = Driver::probe(&mut m, 1, id);
    let mut c = d.context(&mut m, ENGINE);
    assert!(d.execute(&mut m, &mut c, &[]));
    (m, d, c)
}

fn set_busy(m: &mut Machine, busy: &[(u32, u32)]) {
    m.device.borrow_mut().busy = busy.to_vec();
}

fn health(m: &Machine) -> Health {
    m.gvt.gpu.engines.get(ENGINE).health
}

fn frames(m: &Machine) -> [usize; 2] {
    [m.host.frames_of(Owner::Vm(VM)), m.host.frames_of(Owner::Mediator)]
}

fn destroy(m: &mut Machine, id: VgpuId) -> Destroyed {
    let now = m.now();
    m.gvt.destroy_vgpu(&mut m.host, id, now)
}

const FLUSH: (u32, u32) = (ENGINE.info().tlb, reg::TLB_INVALIDATE);
const RESET: (u32, u32) = (reg::GDRST, ENGINE.info().reset);

#[test]
fn an_engine_that_is_not_flushed_is_reset_before_frames_go() {
    let (mut m, d, _) = start();
    set_busy(&mut m, &[FLUSH]);
    assert_eq!(destroy(&mut m, d.id), Destroyed::Gone);
    assert_eq!((m.gvt.totals().resets, frames(&m)[0]), (1, 0));
}

/// Nor is it reset: the vGPU stays, with all that the engine may reach, until it is.
#[test]
fn an_engine_that_is_not_even_reset_keeps_every_frame() {
    let (mut m, mut d, mut c) = start();
    batch::write_stubborn(&mut d, &mut m, &c, BATCH);
    d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
    d.submit(&mut m, &[&c]);
    m.run_for(100_000);
    let before = frames(&m);
    set_busy(&mut m, &[FLUSH, RESET]);
    for _ in 0..2 {
        assert_eq!(destroy(&mut m, d.id), Destroyed::Stuck);
        assert_eq!((health(&m), frames(&m)), (Health::Dead, before));
    }
    let report = m.gvt.take_report().expect("a line for the operator");
    assert_eq!((report.vm, report.cause), (VM, Cause::DeadEngine { engine: ENGINE }));
    assert_eq!(m.gvt.take_report(), None);
    // The guest goes on as well as it can: its engine hangs, its others work.
    d.reset_engine(&mut m, ENGINE);
    d.rebuild(&mut m, &c);
    d.emit(&mut m, &mut c, &[]);
    d.submit(&mut m, &[&c]);
    m.run_for(1_000_000);
    assert_eq!(d.stored(&m, &c), 1);
    d.reset_engine(&mut m, Engine::Rcs);
    let mut other = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut other, &[]));
    set_busy(&mut m, &[]);
    assert_eq!(destroy(&mut m, d.id), Destroyed::Gone);
    assert_eq!((health(&m), frames(&m)[0]), (Health::Well, 0));
    let id = m.gvt.create_vgpu(&mut m.host, VM, crate::VgpuConfig::default()).unwrap();
    let mut again = Driver::probe(&mut m, 1, id);
    let mut c = again.context(&mut m, ENGINE);
    assert!(again.execute(&mut m, &mut c, &[]));
}

/// What is left in the caches of the render engine would be written through page tables that are gone.
#[test]
fn caches_are_empty_before_frames_go() {
    let (mut m, mut d, _) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    m.run_for(6_000_000);
    assert!(d.execute(&mut m, &mut c, &[]));
    assert_eq!(destroy(&mut m, d.id), Destroyed::Gone);
    assert_eq!((m.gvt.totals().resets, frames(&m)[0]), (1, 0));
}

/// A flush for the sake of table frames: none is used again, nobody tries a second time, and the engine is reset soon.
#[test]
fn a_flush_that_does_not_end_is_tried_once() {
    let (mut m, mut d, mut c) = start();
    let index = d.id.index();
    // An address space that goes leaves tables behind.
    let space = d.address_space(&mut m);
    let page = d.pages(1)[0];
    d.map_process(&mut m, space, BATCH, page);
    d.write(&mut m, reg::GFX_FLSH_CNTL, 1);
    let retired = |m: &Machine| m.gvt.vgpu(index).unwrap().gtt.ppgtt.retired();
    let root = Gfn(space.0 / 4096);
    assert!(m.host.is_tracked(VM, root));
    m.gvt.vgpus[index].as_mut().unwrap().gtt.ppgtt.destroy(&mut m.host, space);
    assert!(retired(&m) > 0);
    set_busy(&mut m, &[FLUSH]);
    let reads = m.gvt.totals().reads;
    for _ in 0..10 {
        m.gvt.flush_owned(&mut m.host, index);
    }
    let read = m.gvt.totals().reads - reads;
    assert!(read <= u64::from(crate::gpu::POLLS), "{read}");
    assert!(retired(&m) > 0 && health(&m) == Health::Stuck);
    m.run_for(100_000);
    assert_eq!((health(&m), m.gvt.totals().resets), (Health::Well, 1));
    set_busy(&mut m, &[]);
    m.gvt.flush_owned(&mut m.host, index);
    assert_eq!(retired(&m), 0);
    assert!(d.execute(&mut m, &mut c, &[]));
}
