//! What a guest does by its registers takes nothing from the heap, whose failure would end everything (design D18).

use super::{BATCH, batch, start};
use crate::ResetKind;
use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use crate::testing::quiet::{Quiet, uncounted};
use gvt_defs::{Engine, GgttAddr, Gpa, pvinfo, reg, ring};

/// Blocks of the heap that `run` takes.
fn made(run: impl FnOnce()) -> u64 {
    allocation_counter::measure(run).count_total
}

/// Blocks that a store takes.
fn taken(m: &mut Machine, d: &Driver, offset: u32, value: u32) -> u64 {
    let now = m.now();
    made(|| m.gvt.mmio_write(&mut Quiet(&mut m.host), d.id, offset, 4, value.into(), now))
}

/// Or the other tests could not fail.
#[test]
fn what_is_taken_is_counted() {
    let mut list = Vec::with_capacity(1);
    assert_eq!(made(|| list.resize(1000, 1_u8)), 1);
    assert_eq!(made(|| drop(uncounted(|| std::hint::black_box(Box::new(1))))), 0);
    assert_eq!(made(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn loads_and_stores_of_any_register_take_none() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    // ELSP submits; GDRST has its own test.
    let is_left_out = |at: u32| at == reg::GDRST || Engine::of_register(at).is_some_and(|(_, at)| at == ring::ELSP);
    for offset in (0..reg::MMIO_SIZE).step_by(4).filter(|at| !is_left_out(*at)) {
        let now = m.now();
        let mut value = 0;
        let loaded = made(|| value = m.gvt.mmio_read(&mut Quiet(&mut m.host), d.id, offset, 4, now));
        assert_eq!(loaded, 0, "a load from {offset:#x}");
        assert_eq!(taken(&mut m, &d, offset, value as u32), 0, "a store to {offset:#x}");
    }
}

#[test]
fn resets_take_none() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    assert_eq!(taken(&mut m, &d, reg::GDRST, Engine::Rcs.info().reset), 0);
    assert_eq!(taken(&mut m, &d, reg::GDRST, reg::GDRST_FULL), 0);
    let now = m.now();
    assert_eq!(made(|| m.gvt.reset_vgpu(&mut Quiet(&mut m.host), d.id, ResetKind::Device, now)), 0);
}

#[test]
fn a_sync_of_512_entries_takes_none_nor_does_garbage() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    let page = d.pages(1)[0];
    for i in 0..512 {
        d.map_process(&mut m, c.pml4, BATCH + 4096 * i, page);
    }
    batch::write(&mut d, &mut m, &c, 1 << 30, &[]);
    assert!(d.execute(&mut m, &mut c, &[]));
    let other = d.pages(1)[0];
    for i in 0..512 {
        d.map_process(&mut m, c.pml4, BATCH + 4096 * i, other);
        d.map(&mut m, GgttAddr((64 << 20) + 4096 * i as u32), other);
    }
    assert_eq!(taken(&mut m, &d, Engine::Rcs.info().tlb, 1), 0);
    // Address spaces come and go, and tables of nonsense with them.
    for round in 0..50 {
        for i in 0..512 {
            m.host.guest_write64(d.vm, Gpa(page.0 + 8 * i), (u64::MAX << 1) | (round % 2));
        }
        m.host.guest_write64(d.vm, Gpa(c.pml4.0 + 8 * 77), page.0 | 3);
        assert_eq!(taken(&mut m, &d, Engine::Rcs.info().tlb, 1), 0);
        m.host.guest_write64(d.vm, Gpa(c.pml4.0 + 8 * 77), 0);
        for (offset, value) in [
            (pvinfo::PDP0_LO, page.0 as u32),
            (pvinfo::PDP0_LO + 4, 0),
            (pvinfo::G2V_NOTIFY, pvinfo::G2V_PPGTT_L4_CREATE),
            (pvinfo::G2V_NOTIFY, pvinfo::G2V_PPGTT_L4_DESTROY),
        ] {
            assert_eq!(taken(&mut m, &d, pvinfo::BASE + offset, value), 0);
        }
    }
}

#[test]
fn an_interrupt_takes_none() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    let now = m.now();
    let taken = made(|| {
        m.gvt.interrupt(&mut Quiet(&mut m.host), now);
        m.gvt.timer(&mut Quiet(&mut m.host), now);
    });
    assert_eq!(taken, 0);
}
