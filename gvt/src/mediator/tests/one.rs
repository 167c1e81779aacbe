//! One vGPU: submissions, status entries, exits, resets.

use super::{BATCH, batch, start, store};
use crate::Progress;
use crate::host::{Mapping, VmId};
use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::context::value;
use gvt_defs::{Engine, GgttAddr, Gpa, event, mi, reg, ring};
use gvt_model::{Profile, Save};

const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];

fn start_on(profile: Profile) -> (Machine, Driver) {
    let mut m = Machine::with(profile);
    let id = m.add_vm(1);
    let d = Driver::probe(&mut m, 1, id);
    (m, d)
}

#[test]
fn a_no_op_completes_on_every_engine() {
    let (mut m, mut d) = start();
    for engine in ENGINES {
        let mut c = d.context(&mut m, engine);
        for _ in 0..3 {
            assert!(d.execute(&mut m, &mut c, &[]), "{engine:?} {:?}", m.gvt.take_report());
        }
        assert_eq!(d.take_events(engine), [(1, 0), (0x18, c.id)].repeat(3));
    }
    assert_eq!(m.gvt.take_report(), None);
    assert_eq!(m.device.borrow_mut().gpu.take_findings(), []);
}

/// An event whose message got lost stays pending, and with it the level: no message would ever follow.
#[test]
fn a_lost_message_is_made_up_for() {
    for engine in ENGINES {
        let (mut m, mut d) = start();
        let mut c = d.context(&mut m, engine);
        assert!(d.execute(&mut m, &mut c, &[]));
        let seqno = d.emit(&mut m, &mut c, &[]);
        d.submit(&mut m, &[&c]);
        m.lose_messages_for(2_000_000);
        assert!(d.run_until(&mut m, 200_000_000, |d, m| d.stored(m, &c) == seqno && d.idle(c.engine)), "{engine:?}");
        let before = m.interrupts;
        assert!(d.execute(&mut m, &mut c, &[]));
        assert!(m.interrupts > before, "{engine:?}: messages come again");
    }
}

/// Issue 2, acceptance 5: at most 9 exits for a no-op submission, its interrupt included; 8 is the floor.
#[test]
fn exits_of_a_no_op_submission() {
    for engine in ENGINES {
        let (mut m, mut d) = start();
        let mut c = d.context(&mut m, engine);
        d.execute(&mut m, &mut c, &[]);
        let (exits, handled, accesses) = (d.exits, d.handled, m.gvt.totals().reads + m.gvt.totals().writes);
        for _ in 0..500 {
            assert!(d.execute(&mut m, &mut c, &[]));
        }
        let per = |count: u64| count as f64 / 500.0;
        let exits = per(d.exits - exits);
        let messages = per(d.handled - handled);
        let physical = per(m.gvt.totals().reads + m.gvt.totals().writes - accesses);
        println!("{engine:?}: {exits} exits, {messages} messages, {physical} physical accesses per submission");
        assert!(exits <= 9.0, "{engine:?}: {exits}");
    }
}

#[test]
fn the_interrupt_page_is_mapped_read_only_and_current() {
    let (mut m, mut d) = start();
    assert!(matches!(m.host.mapping(VmId(1), 0x44), Mapping::ReadOnly(_)));
    let exits = d.exits;
    assert_eq!(d.read(&mut m, 0x44200), 1 << 31);
    assert_eq!(d.read(&mut m, 0x44304), 0);
    d.write(&mut m, 0x44304, 0x1234);
    assert_eq!(d.read(&mut m, 0x44304), 0x1234);
    assert_eq!(d.exits - exits, 1);
    // What an exit would read is the same.
    assert_eq!(m.gvt.mmio_read(&mut m.host, d.id, 0x44304, 4, m.device.borrow().now), 0x1234);
}

#[test]
fn two_contexts_of_one_submission_run_in_order() {
    let (mut m, mut d) = start();
    let mut a = d.context(&mut m, Engine::Rcs);
    let mut b = d.context(&mut m, Engine::Rcs);
    d.emit(&mut m, &mut a, &[]);
    d.emit(&mut m, &mut b, &[]);
    d.submit(&mut m, &[&a, &b]);
    assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(Engine::Rcs)));
    assert_eq!(d.take_events(Engine::Rcs), [(1, 0), (0x14, a.id), (0x18, b.id)]);
    assert_eq!((d.stored(&m, &a), d.stored(&m, &b)), (1, 1));
}

#[test]
fn a_new_tail_while_running_is_a_lite_restore() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Vecs);
    let va = BATCH;
    let flag = batch::spin_until_released(&mut d, &mut m, &c, va);
    d.emit(&mut m, &mut c, &Driver::batch_start(va));
    d.submit(&mut m, &[&c]);
    // Nothing completes; the start is told after a tick.
    assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Vecs)));
    d.emit(&mut m, &mut c, &[]);
    d.submit(&mut m, &[&c]);
    assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Vecs)));
    assert_eq!(d.stored(&m, &c), 0);
    m.host.guest_write32(d.vm, flag, 1);
    assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(Engine::Vecs)));
    assert_eq!(d.stored(&m, &c), 2);
    assert_eq!(d.take_events(Engine::Vecs), [(1, 0), (0x8002, c.id), (0x18, c.id)]);
}

#[test]
fn another_context_preempts_and_the_first_one_resumes() {
    let (mut m, mut d) = start();
    let mut a = d.context(&mut m, Engine::Vecs);
    let mut b = d.context(&mut m, Engine::Vecs);
    let flag = batch::spin_until_released(&mut d, &mut m, &a, BATCH);
    d.emit(&mut m, &mut a, &Driver::batch_start(BATCH));
    d.submit(&mut m, &[&a]);
    assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Vecs)));
    d.emit(&mut m, &mut b, &[]);
    d.submit(&mut m, &[&b]);
    assert!(d.run_until(&mut m, 3_000_000, |d, m| d.stored(m, &b) == 1));
    assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(Engine::Vecs)));
    assert_eq!(d.stored(&m, &a), 0);
    let events = d.take_events(Engine::Vecs);
    assert_eq!(events[..2], [(1, 0), (2, a.id)]);
    // The image holds where it stopped.
    assert_ne!(d.image_dword(&m, &a, value::BB_ADDR) & ring::BB_ADDR_VALID, 0);
    m.host.guest_write32(d.vm, flag, 1);
    assert!(d.run_until(&mut m, 3_000_000, |d, _| d.idle_but(Engine::Vecs, a.id)));
    d.forget_active(Engine::Vecs);
    d.submit(&mut m, &[&a]);
    assert!(
        d.run_until(&mut m, 10_000_000, |d, m| d.stored(m, &a) == 1 && d.idle(Engine::Vecs)),
        "{:?}",
        m.gvt.take_report()
    );
}

/// i915 sets "force restore" when it submits a context again whose tail has not moved, with another one behind it
/// (its heartbeat does that to a batch that takes long).
#[test]
fn the_same_context_submitted_again_in_mid_batch_goes_on() {
    for engine in ENGINES {
        let (mut m, mut d) = start();
        let mut a = d.context(&mut m, engine);
        let mut b = d.context(&mut m, engine);
        let flag = batch::spin_until_released(&mut d, &mut m, &a, BATCH);
        d.emit(&mut m, &mut a, &Driver::batch_start(BATCH));
        d.submit(&mut m, &[&a]);
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(engine)));
        d.emit(&mut m, &mut b, &[]);
        d.submit_forced(&mut m, &[&a, &b]);
        assert!(d.run_until(&mut m, 3_000_000, |d, _| d.ready(engine)), "{engine:?}");
        assert_eq!((d.stored(&m, &a), d.stored(&m, &b)), (0, 0));
        m.host.guest_write32(d.vm, flag, 1);
        assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(engine)), "{engine:?} {:?}", m.gvt.take_report());
        assert_eq!((d.stored(&m, &a), d.stored(&m, &b)), (1, 1));
        assert_eq!(m.gvt.take_report(), None);
    }
}

#[test]
fn images_go_back_to_the_guest_as_on_hardware() {
    for save in [Save::Prompt, Save::Late] {
        let (mut m, mut d) = start_on(Profile { save, ..Profile::kaby_lake() });
        let mut a = d.context(&mut m, Engine::Rcs);
        let mut b = d.context(&mut m, Engine::Rcs);
        let gpr0 = 0x69;
        let set = [mi::load_register_imm(1), 0x2600, 0x1234_5678, 0];
        assert!(d.execute(&mut m, &mut a, &set));
        assert_eq!(d.image_dword(&m, &a, value::RING_HEAD) & ring::HEAD_ADDR_MASK, a.tail);
        assert_eq!(d.image_dword(&m, &a, value::RING_START), a.ring.0, "in the guest's terms");
        assert_eq!(d.image_dword(&m, &a, value::PDP0_LDW), a.pml4.0 as u32);
        assert!(d.execute(&mut m, &mut b, &[]));
        assert_eq!(d.image_dword(&m, &a, gpr0), 0x1234_5678, "{save:?}");
        assert_eq!(d.image_dword(&m, &b, gpr0), 0, "a fresh context inherits nothing");
        // And it is restored from there.
        let page = d.pages(1)[0];
        d.map_process(&mut m, a.pml4, 0x20_0000, page);
        let read = [mi::with_length(mi::STORE_REGISTER_MEM, 4), 0x2600, 0x20_0000, 0];
        assert!(d.execute(&mut m, &mut a, &read));
        assert_eq!(m.host.guest_read32(d.vm, page), 0x1234_5678);
    }
}

/// More batches in one submission than the audit copies at a time: the ring runs in parts, and the guest sees one.
#[test]
fn a_long_queue_of_blitter_batches_completes() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Bcs);
    let target = d.pages(1)[0];
    d.map_process(&mut m, c.pml4, 0x30_0000, target);
    let mut batches = Vec::new();
    for i in 0..8u64 {
        batch::write(&mut d, &mut m, &c, BATCH + 4096 * i, &store(0x30_0000 + 4 * i, 0xA0 + i as u32));
        batches.push(BATCH + 4096 * i);
    }
    // Odd and even positions in the ring, and past its end.
    for round in 0..4 {
        for i in 0..80 {
            let mut commands = Driver::batch_start(batches[i % 8]);
            commands.resize(commands.len() + (i + round) % 3, 0);
            d.emit(&mut m, &mut c, &commands);
            d.emit(&mut m, &mut c, &[]);
        }
        for page in 0..8 {
            m.host.guest_write32(d.vm, Gpa(target.0 + 4 * page), 0);
        }
        d.submit(&mut m, &[&c]);
        assert!(d.run_until(&mut m, 50_000_000, |d, _| d.idle(Engine::Bcs)), "{:?}", m.gvt.take_report());
        assert_eq!(d.stored(&m, &c), c.seqno);
        for i in 0..8 {
            assert_eq!(m.host.guest_read32(d.vm, Gpa(target.0 + 4 * i)), 0xA0 + i as u32);
        }
    }
    assert_eq!(d.take_events(Engine::Bcs), [(1, 0), (0x18, c.id)].repeat(4));
    assert_eq!(m.gvt.take_report(), None);
}

/// Two contexts in turns: their images are copied in once each, and go back each time another one comes.
#[test]
fn an_untouched_image_is_not_copied_again() {
    let (mut m, mut d) = start();
    let mut a = d.context(&mut m, Engine::Rcs);
    let mut b = d.context(&mut m, Engine::Rcs);
    let set = |value| [mi::load_register_imm(1), 0x2600, value, 0];
    assert!(d.execute(&mut m, &mut a, &set(1)) && d.execute(&mut m, &mut b, &set(2)));
    let copied = |m: &Machine, d: &Driver| m.gvt.stats(d.id).unwrap().image_bytes_in;
    let before = copied(&m, &d);
    for _ in 0..5 {
        assert!(d.execute(&mut m, &mut a, &[]) && d.execute(&mut m, &mut b, &[]));
    }
    assert_eq!(copied(&m, &d), before);
    // Both still have their own state.
    let page = d.pages(1)[0];
    for (c, value) in [(&mut a, 1), (&mut b, 2)] {
        d.map_process(&mut m, c.pml4, 0x20_0000, page);
        assert!(d.execute(&mut m, c, &[mi::with_length(mi::STORE_REGISTER_MEM, 4), 0x2600, 0x20_0000, 0]));
        assert_eq!(m.host.guest_read32(d.vm, page), value);
    }
    // The guest stores into a page of the engine state, or into the register page: copied again.
    for (at, value) in [(Gpa(a.image[7].0 + 64), 1), (Gpa(a.image[1].0 + 4 * 0x69), 77)] {
        let before = copied(&m, &d);
        assert!(d.execute(&mut m, &mut b, &[]));
        m.host.guest_write32(d.vm, at, value);
        assert!(d.execute(&mut m, &mut a, &[]));
        assert!(copied(&m, &d) > before);
    }
    assert!(d.execute(&mut m, &mut a, &[mi::with_length(mi::STORE_REGISTER_MEM, 4), 0x2600, 0x20_0000, 0]));
    assert_eq!(m.host.guest_read32(d.vm, page), 77);
}

#[test]
fn batches_of_a_process_run_on_every_engine() {
    let (mut m, mut d) = start();
    for engine in ENGINES {
        let mut c = d.context(&mut m, engine);
        let target = d.pages(1)[0];
        d.map_process(&mut m, c.pml4, 0x30_0000, target);
        batch::write(&mut d, &mut m, &c, BATCH, &store(0x30_0000, 0xABC0 + engine as u32));
        assert!(d.execute(&mut m, &mut c, &Driver::batch_start(BATCH)), "{engine:?} {:?}", m.gvt.take_report());
        assert_eq!(m.host.guest_read32(d.vm, target), 0xABC0 + engine as u32);
    }
}

#[test]
fn a_mapping_of_512_pages_costs_one_exit() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    let page = d.pages(1)[0];
    d.map_process(&mut m, c.pml4, 0x4000_0000, page);
    assert!(d.execute(&mut m, &mut c, &[]));
    let before = m.host.track_exits;
    for i in 0..512 {
        d.map_process(&mut m, c.pml4, 0x4000_0000 + 4096 * i, page);
    }
    assert_eq!(m.host.track_exits - before, 1);
}

/// Design D6: the TLB registers read busy until the tables are followed and the hardware has flushed.
/// Who writes its whole global page table does not keep the mediator from others for as long as it takes to follow that.
#[test]
fn a_global_page_table_is_followed_in_parts() {
    let (mut m, mut d) = start();
    // 128 MiB of aperture at 0, 512 MiB behind all apertures.
    let tables = (128 + 512) / 2;
    for table in 1..tables {
        let first = if table < 64 { 512 * table } else { (512 << 20 >> 12) + 512 * (table - 64) };
        for index in [first, first + 511] {
            d.map(&mut m, GgttAddr(4096 * index), Gpa(0x20_0000));
        }
    }
    let mut steps = 0;
    let mut store = crate::Store::new(reg::GFX_FLSH_CNTL, 4, 1);
    let now = m.now();
    loop {
        let before = m.gvt.totals().ptes;
        let progress = m.gvt.mmio_store(&mut m.host, d.id, &mut store, now);
        let written = m.gvt.totals().ptes - before;
        assert!(written <= 2 * 16, "{written}");
        steps += 1;
        if progress == Progress::Done {
            break;
        }
    }
    assert!(steps >= (tables - 1) / 16, "{steps}");
    let before = m.gvt.totals().ptes;
    d.write(&mut m, reg::GFX_FLSH_CNTL, 1);
    assert_eq!(m.gvt.totals().ptes, before, "nothing is left");
}

#[test]
fn an_unmapped_page_does_not_change_once_the_tlb_is_invalidated() {
    let (mut m, mut d) = start();
    for engine in ENGINES {
        let mut c = d.context(&mut m, engine);
        let page = d.pages(1)[0];
        d.map_process(&mut m, c.pml4, 0x30_0000, page);
        batch::write_endless(&mut d, &mut m, &c, BATCH, &store(0x30_0000, 7));
        d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
        d.submit(&mut m, &[&c]);
        assert!(d.run_until(&mut m, 5_000_000, |d, m| m.host.guest_read32(d.vm, page) == 7), "{engine:?}");
        m.host.guest_write32(d.vm, page, 0);
        assert!(d.run_until(&mut m, 5_000_000, |d, m| m.host.guest_read32(d.vm, page) == 7), "{engine:?} runs on");
        d.unmap_process(&mut m, c.pml4, 0x30_0000);
        d.write(&mut m, engine.info().tlb, 1);
        while d.read(&mut m, engine.info().tlb) & 1 != 0 {
            m.step();
        }
        m.host.guest_write32(d.vm, page, 0);
        m.run_for(5_000_000);
        assert_eq!(m.host.guest_read32(d.vm, page), 0, "{engine:?}");
        d.reset_engine(&mut m, engine);
    }
}

#[test]
fn a_hung_batch_is_reset_by_its_guest() {
    let (mut m, mut d) = start();
    for engine in ENGINES {
        let mut c = d.context(&mut m, engine);
        batch::write(&mut d, &mut m, &c, BATCH, &[0xFFFF_FFFF]);
        let errors = d.errors;
        d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
        d.submit(&mut m, &[&c]);
        m.run_for(10_000_000);
        d.interrupts(&mut m);
        assert_eq!(d.stored(&m, &c), 0);
        // The blitter's batches are audited: there the submission is refused, with the same effect for the guest.
        assert_eq!(d.errors - errors, u64::from(engine != Engine::Bcs), "{engine:?}");
        d.reset_engine(&mut m, engine);
        d.rebuild(&mut m, &c);
        c.seqno = 0;
        assert!(d.execute(&mut m, &mut c, &[]), "{engine:?}");
        d.take_events(engine);
    }
}

#[test]
fn a_guest_preempting_nothing_that_waits_is_told_at_once() {
    let (mut m, mut d) = start();
    let mut a = d.context(&mut m, Engine::Rcs);
    let mut b = d.context(&mut m, Engine::Rcs);
    d.emit(&mut m, &mut a, &[]);
    d.submit(&mut m, &[&a]);
    assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(Engine::Rcs)));
    d.emit(&mut m, &mut b, &[]);
    d.submit(&mut m, &[&b]);
    assert!(d.run_until(&mut m, 10_000_000, |d, _| d.idle(Engine::Rcs)));
}

#[test]
fn timestamps_move() {
    let (mut m, mut d) = start();
    let first = d.read(&mut m, 0x2358);
    m.run_for(1_000_000);
    assert!(d.read(&mut m, 0x2358) > first);
}

#[test]
fn fences_reach_the_physical_ones_only_inside_the_aperture_share() {
    let (mut m, _) = start();
    let id = m.add_vm(2);
    let mut d = Driver::probe(&mut m, 2, id);
    let share = m.gvt.aperture_slice(id);
    assert_eq!(share.offset, 128 << 20);
    let start = share.offset as u32 + 0x10_0000;
    let physical = |m: &Machine| {
        let mut device = m.device.borrow_mut();
        let now = device.now;
        (device.gpu.read32(reg::FENCE0 + 8 * 4, now), device.gpu.read32(reg::FENCE0 + 8 * 4 + 4, now))
    };
    d.write(&mut m, reg::FENCE0 + 4, (start + 0xF000) | 7);
    d.write(&mut m, reg::FENCE0, start | 1);
    assert_eq!(physical(&m), (start | 1, (start + 0xF000) | 7));
    assert_eq!(d.read(&mut m, reg::FENCE0), start | 1);
    // Over the first vGPU's share: off.
    d.write(&mut m, reg::FENCE0, 0x10_0001);
    assert_eq!(physical(&m).0, 0);
    // A fence that is not there.
    d.write(&mut m, reg::FENCE0 + 8 * 4, start | 1);
    assert_eq!(d.read(&mut m, reg::FENCE0 + 8 * 4), 0);
}

#[test]
fn pcode_answers_at_once_and_sagv_is_seen_disabled() {
    let (mut m, mut d) = start();
    for (command, data, answer) in [(0x21, 0, 1), (0x06, 0, 0x1E1A_1100), (0x06, 1, 0x6151_4B3D), (0x07, 3, 3)] {
        d.write(&mut m, reg::PCODE_DATA0, data);
        d.write(&mut m, reg::PCODE_MAILBOX, 1 << 31 | command);
        assert_eq!(d.read(&mut m, reg::PCODE_MAILBOX), 0);
        assert_eq!(d.read(&mut m, reg::PCODE_DATA0), answer, "{command:#x}");
    }
}

#[test]
fn display_is_absent_and_guc_sleeps() {
    for display in [gvt_defs::reset::Display::Fused, gvt_defs::reset::Display::Dark] {
        let (mut m, mut d) = start_on(Profile { display, ..Profile::kaby_lake() });
        assert_eq!(d.read(&mut m, reg::display::DFSM), 0x5020_0000);
        assert_eq!(d.read(&mut m, reg::GUC_STATUS) & 1, 1);
        assert_eq!(d.read(&mut m, reg::FUSE2), 0x0280_0000);
    }
}

#[test]
fn wells_and_plls_obey() {
    let (mut m, mut d) = start();
    d.write(&mut m, 0x45400, 1 << 29);
    d.write(&mut m, 0x45404, 1 << 31 | 1 << 1);
    assert_eq!(d.read(&mut m, 0x45404), 1 << 31 | 1 << 30 | 1 << 28 | 3);
    d.write(&mut m, 0x45404, 0);
    assert_eq!(d.read(&mut m, 0x45404), 1 << 28);
    for offset in [0x45008, 0x46010] {
        d.write(&mut m, offset, 1 << 31);
        assert_eq!(d.read(&mut m, offset), 3 << 30);
        d.write(&mut m, offset, 0);
        assert_eq!(d.read(&mut m, offset), 0);
    }
}

#[test]
fn odd_accesses_are_harmless() {
    let (mut m, d) = start();
    let now = m.now();
    for offset in (0..0x20_0000u32).step_by(0xFFD).chain([0x2231, 0x2233, 0x78001, 0x1F_FFFF, 0x7F_FFFF, 0xFF_FFFF]) {
        for bytes in [0, 1, 2, 3, 4, 5, 8, 16, usize::MAX] {
            let value = m.gvt.mmio_read(&mut m.host, d.id, offset, bytes, now);
            m.gvt.mmio_write(&mut m.host, d.id, offset, bytes, value, now);
            m.gvt.mmio_write(&mut m.host, d.id, offset, bytes, u64::MAX, now);
        }
    }
    m.run_for(1_000_000);
}

#[test]
fn a_device_reset_leaves_a_vgpu_that_can_be_probed_again() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    batch::write_endless(&mut d, &mut m, &c, BATCH, &[0]);
    d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
    d.submit(&mut m, &[&c]);
    m.run_for(1_000_000);
    let now = m.now();
    m.gvt.reset_vgpu(&mut m.host, d.id, crate::ResetKind::Device, now);
    assert_eq!(m.gvt.bars(d.id), [None, None]);
    let mut again = Driver::probe(&mut m, 1, d.id);
    for engine in ENGINES {
        let mut c = again.context(&mut m, engine);
        assert!(again.execute(&mut m, &mut c, &[]), "{engine:?}");
    }
}

#[test]
fn destroying_gives_every_frame_back() {
    use crate::host::Owner;
    let (mut m, mut d) = start();
    let before = m.host.frames_of(Owner::Mediator);
    for engine in ENGINES {
        let mut c = d.context(&mut m, engine);
        assert!(d.execute(&mut m, &mut c, &[]));
    }
    let mut c = d.context(&mut m, Engine::Bcs);
    batch::write_endless(&mut d, &mut m, &c, BATCH, &[0]);
    d.emit(&mut m, &mut c, &Driver::batch_start(BATCH));
    d.submit(&mut m, &[&c]);
    m.run_for(1_000_000);
    assert!(m.host.frames_of(Owner::Mediator) > before);
    let now = m.now();
    assert_eq!(m.gvt.destroy_vgpu(&mut m.host, d.id, now), crate::Destroyed::Gone);
    assert_eq!(m.host.frames_of(Owner::Vm(VmId(1))), 0);
    assert_eq!(m.host.frames_of(Owner::Mediator), before);
    assert_eq!(m.host.mapping(VmId(1), 0x44), Mapping::Trapped);
    // And another can come.
    let id = m.gvt.create_vgpu(&mut m.host, VmId(1), crate::VgpuConfig::default()).unwrap();
    let mut again = Driver::probe(&mut m, 1, id);
    let mut c = again.context(&mut m, Engine::Rcs);
    assert!(again.execute(&mut m, &mut c, &[]));
}

#[test]
fn masked_user_interrupts_cost_no_message() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    let seen = d.user_interrupts;
    assert!(seen > 0);
    d.write(&mut m, 0x20A8, !(event::CONTEXT_SWITCH));
    assert!(d.execute(&mut m, &mut c, &[]));
    assert_eq!(d.user_interrupts, seen);
}
