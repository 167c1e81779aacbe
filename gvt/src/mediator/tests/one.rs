//! One vGPU.

use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::Engine;

#[test]
fn a_no_op_completes_on_every_engine() {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let mut d = Driver::probe(&mut m, 1, id);
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let mut c = d.context(&mut m, engine);
        for _ in 0..3 {
            assert!(d.execute(&mut m, &mut c, &[]), "{engine:?} {:?}", m.gvt.take_report());
        }
        assert_eq!(d.take_events(engine), [(1, 0), (0x18, c.id)].repeat(3));
    }
    assert_eq!(m.gvt.take_report(), None);
}
