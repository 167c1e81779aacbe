//! Copies of batches: what runs of them, what the guest sees of them.

use super::{batch, store};
use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::{Engine, Gpa, mi};

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

/// More batches than are copied at a time, most of them started by other batches.
#[test]
fn a_ring_is_cut_before_the_start_that_leads_to_too_many_batches() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Bcs);
    let page = d.pages(1)[0];
    d.map_process(&mut m, c.pml4, 0x40_0000, page);
    let at = |first: u64, step: u64| 0x100_0000 + (first << 16) + (step << 12);
    let mut ring = vec![];
    for first in 0..30 {
        for step in 0..3 {
            let mut commands = store(0x40_0000 + 12 * first + 4 * step, 7);
            if step < 2 {
                commands.extend(batch::jump(at(first, step + 1)));
            }
            batch::write(&mut d, &mut m, &c, at(first, step), &commands);
        }
        ring.extend(Driver::batch_start(at(first, 0)));
    }
    assert!(d.execute(&mut m, &mut c, &ring), "{:?}", m.gvt.take_report());
    for i in 0..90 {
        assert_eq!(m.host.guest_read32(d.vm, Gpa(page.0 + 4 * i)), 7, "batch {i}");
    }
}
