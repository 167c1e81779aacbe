//! What a guest can make grow has a bound, and so has what one store can make Prism do (design D18, D19).

use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::{Engine, Gpa, pvinfo, reg};

fn start() -> (Machine, Driver) {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let d = Driver::probe(&mut m, 1, id);
    (m, d)
}

/// Each harvests what the guest wrote, and none of them follows the process tables.
#[test]
fn stores_that_only_harvest_do_not_pile_up_what_was_written() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    let fence = reg::FENCE0 + 8 * (reg::FENCES - 1);
    for offset in [fence, pvinfo::BASE, pvinfo::BASE + pvinfo::PDP0_LO, Engine::Rcs.info().tlb, reg::GDRST] {
        for round in 0..2000 {
            m.host.guest_write64(d.vm, Gpa(c.pml4.0 + 8 * 300), round << 12 | 2);
            d.write(&mut m, offset, 0);
        }
    }
    let waiting = m.gvt.vgpu(0).map_or(0, |vgpu| vgpu.gtt.ppgtt.waiting());
    assert!(waiting <= crate::gtt::Limits::default().tables as usize, "{waiting}");
}
