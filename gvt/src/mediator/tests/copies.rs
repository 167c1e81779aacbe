//! Copies of batches: what runs of them, what the guest sees of them.

use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::{Engine, mi};

fn start() -> (Machine, Driver) {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let d = Driver::probe(&mut m, 1, id);
    (m, d)
}

/// Tables of memory attributes as older kernels write them from a ring: 64 for the engine, 32 for the L3.
#[test]
fn all_register_writes_of_one_submission_are_mirrored() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    let tables = [(0xC800, 64), (0xB020, 32)];
    let value = |offset: u32| offset << 8 | 0x5A;
    let mut ring = vec![];
    for (first, count) in tables {
        ring.push(mi::load_register_imm(count));
        ring.extend((first..first + 4 * count).step_by(4).flat_map(|offset| [offset, value(offset)]));
        // The last value counts.
        ring.extend([mi::load_register_imm(2), first, 0, first, value(first)]);
    }
    assert!(d.execute(&mut m, &mut c, &ring));
    for (first, count) in tables {
        for offset in (first..first + 4 * count).step_by(4) {
            assert_eq!(d.read(&mut m, offset), value(offset), "{offset:#x}");
        }
    }
}
