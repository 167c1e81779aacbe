//! Submissions, status entries, switches, preemption, semaphores.

mod rig;

use gvt_defs::context::value;
use gvt_defs::execlist::Descriptor;
use gvt_defs::reg::irq;
use gvt_defs::{Engine, Nanos, masked, mi, ring};
use gvt_model::{Finding, Profile, Progress, Save};
use rig::{ARB_CHECK, ARB_OFF, ARB_ON, BATCH_END, NONE, Rig, ggtt_hpa, start, store, store_global, wait_global};

const VA: u64 = 0x7F_1234_5000;

#[test]
fn one_context_on_every_engine() {
    let mut rig = Rig::with(Profile { engines: gvt_defs::EngineMask::ALL, ..Profile::default() });
    for engine in Engine::ALL {
        let mut c = rig.context(engine);
        let data = rig.map_fresh(c.root, VA, 1);
        let batch = rig.map_fresh(c.root, VA + 0x1000, 1);
        rig.put(batch, &[store(VA + 8, 0xC0FF_EE00).as_slice(), &[BATCH_END]].concat());
        rig.emit(&mut c, &start(VA + 0x1000));
        rig.emit(&mut c, &[mi::header(mi::USER_INTERRUPT)]);
        assert_eq!(rig.get(engine, ring::MI_MODE) & ring::MI_MODE_IDLE, ring::MI_MODE_IDLE);
        rig.submit(engine, c.descriptor(), NONE);
        assert_eq!(rig.get(engine, ring::MI_MODE) & ring::MI_MODE_IDLE, 0, "busy before the first step");
        assert_eq!(rig.run(), Progress::Idle);
        assert_eq!(rig.ram.read_u32(gvt_model::Hpa(data.0 + 8)), 0xC0FF_EE00, "{engine:?}");
        assert_eq!(rig.events(engine), [(0x1, 0), (0x18, c.id)]);
        assert_eq!(rig.image_get(&c, value::RING_HEAD), c.tail);
        let bank = engine.info().irq_bank;
        let iir = rig.read(irq::GT_BANK0 + 0x10 * bank + irq::IIR) >> engine.info().irq_shift & 0xFFFF;
        assert_eq!(iir, 0x101, "user interrupt and context switch");
        assert_ne!(rig.read(irq::MASTER) & engine.info().master, 0);
    }
    rig.no_findings();
}

#[test]
fn two_elements() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    let out = rig.ggtt_alloc(1);
    rig.emit(&mut a, &store_global(out, 1));
    rig.emit(&mut b, &store_global(out + 4, 2));
    rig.submit(Engine::Rcs, a.descriptor(), b.descriptor());
    rig.run();
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x14, a.id), (0x18, b.id)]);
    assert_eq!((rig.ram.read_u32(ggtt_hpa(out)), rig.ram.read_u32(ggtt_hpa(out + 4))), (1, 2));
    rig.no_findings();
}

#[test]
fn lite_restore_takes_only_the_tail() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Vcs0);
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut c, &wait_global(flag, 1));
    rig.submit(Engine::Vcs0, c.descriptor(), NONE);
    assert!(matches!(rig.step(100), Progress::WaitUntil(_)));
    assert_eq!(rig.get(Engine::Vcs0, ring::EXECLIST_STATUS_HI), c.id);
    rig.emit(&mut c, &store_global(flag + 4, 7));
    // The head in the image is not looked at.
    rig.image_set(&c, value::RING_HEAD, 0x100);
    rig.submit(Engine::Vcs0, c.descriptor(), NONE);
    rig.step(100);
    assert_eq!(rig.events(Engine::Vcs0), [(0x1, 0), (0x8002, c.id)]);
    rig.ram.write_u32(ggtt_hpa(flag), 1);
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.events(Engine::Vcs0), [(0x18, c.id)]);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(flag + 4)), 7);
    assert_eq!(rig.get(Engine::Vcs0, ring::EXECLIST_STATUS_HI), 0);
    rig.no_findings();
}

#[test]
fn force_restore_is_no_lite_restore() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut c, &wait_global(flag, 1));
    rig.submit(Engine::Rcs, c.descriptor(), NONE);
    rig.step(100);
    rig.submit(Engine::Rcs, Descriptor(c.descriptor().0 | Descriptor::FORCE_RESTORE), NONE);
    rig.step(100);
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x2, c.id)]);
    rig.ram.write_u32(ggtt_hpa(flag), 1);
    rig.run();
    assert_eq!(rig.events(Engine::Rcs), [(0x18, c.id)]);
}

#[test]
fn preempted_in_mid_batch_and_resumed() {
    let mut rig = Rig::new();
    let (mut long, mut short) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    let data = rig.map_fresh(long.root, VA, 1);
    let batch = rig.map_fresh(long.root, VA + 0x1000, 2);
    // A general purpose register travels across the switch.
    let mut commands = vec![mi::load_register_imm(1), Engine::Rcs.base() + ring::GPR, 0xABCD];
    for i in 0..200 {
        commands.extend(store(VA + 4 * i, i as u32 + 1));
        commands.push(ARB_CHECK);
    }
    let save = mi::with_length(mi::STORE_REGISTER_MEM, 4);
    commands.extend([save, Engine::Rcs.base() + ring::GPR, (VA + 0xF00) as u32, (VA >> 32) as u32]);
    commands.push(BATCH_END);
    rig.put(batch, &commands);
    rig.emit(&mut long, &start(VA + 0x1000));
    let out = rig.ggtt_alloc(1);
    rig.emit(&mut long, &store_global(out, 9));
    rig.submit(Engine::Rcs, long.descriptor(), NONE);
    assert_eq!(rig.step(60), Progress::Busy);
    let other = [mi::load_register_imm(1), Engine::Rcs.base() + ring::GPR, 0x5555];
    rig.emit(&mut short, &other);
    rig.submit(Engine::Rcs, short.descriptor(), NONE);
    rig.run();
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x2, long.id), (0x18, short.id)]);
    let done = (0..200).take_while(|i| rig.ram.read_u32(gvt_model::Hpa(data.0 + 4 * i)) != 0).count();
    assert!((10..190).contains(&done), "{done}");
    assert_ne!(rig.image_get(&long, value::BB_ADDR) & 1, 0, "a batch to go on with");
    assert_ne!(rig.image_get(&long, value::BB_STATE) & ring::BB_STATE_PPGTT, 0);
    rig.submit_and_run(&long);
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x18, long.id)]);
    for i in 0..200 {
        assert_eq!(rig.ram.read_u32(gvt_model::Hpa(data.0 + 4 * i)), i as u32 + 1);
    }
    assert_eq!(rig.ram.read_u32(gvt_model::Hpa(data.0 + 0xF00)), 0xABCD);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 9);
    assert_eq!(rig.image_get(&long, value::BB_ADDR), 0);
    rig.no_findings();
}

#[test]
fn no_preemption_while_arbitration_is_off() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Bcs), rig.context(Engine::Bcs));
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut a, &[ARB_OFF]);
    rig.emit(&mut a, &wait_global(flag, 1));
    rig.emit(&mut a, &[ARB_ON, ARB_CHECK]);
    rig.emit(&mut a, &store_global(flag + 4, 1));
    rig.submit(Engine::Bcs, a.descriptor(), NONE);
    rig.step(100);
    rig.emit(&mut b, &[ARB_CHECK]);
    rig.submit(Engine::Bcs, b.descriptor(), NONE);
    for _ in 0..10 {
        rig.now += 30_000;
        assert!(matches!(rig.step(100), Progress::WaitUntil(_)));
    }
    assert_eq!(rig.events(Engine::Bcs), [(0x1, 0)]);
    assert_ne!(rig.get(Engine::Bcs, ring::EXECLIST_STATUS_LO) & 4, 0, "queue full");
    rig.ram.write_u32(ggtt_hpa(flag), 1);
    rig.run();
    assert_eq!(rig.events(Engine::Bcs), [(0x2, a.id), (0x18, b.id)]);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(flag + 4)), 0, "preempted at ARB_CHECK");
    rig.no_findings();
}

#[test]
fn a_waiting_context_gives_way_and_waits_again() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Vecs), rig.context(Engine::Vecs));
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut a, &wait_global(flag, 1));
    rig.emit(&mut a, &store_global(flag + 4, 1));
    rig.emit(&mut b, &[ARB_CHECK]);
    rig.submit(Engine::Vecs, a.descriptor(), NONE);
    rig.step(100);
    let iir = rig.read(irq::GT_BANK0 + 0x30 + irq::IIR);
    assert_ne!(iir & 1 << 11, 0, "semaphore wait event");
    assert_ne!(rig.get(Engine::Vecs, ring::CTL) & ring::CTL_SEMAPHORE_WAIT, 0);
    rig.submit(Engine::Vecs, b.descriptor(), a.descriptor());
    assert!(matches!(rig.run(), Progress::WaitUntil(_)));
    assert_eq!(rig.events(Engine::Vecs), [(0x1, 0), (0x2, a.id), (0x14, b.id)]);
    rig.ram.write_u32(ggtt_hpa(flag), 1);
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.events(Engine::Vecs), [(0x18, a.id)]);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(flag + 4)), 1);
    rig.no_findings();
}

#[test]
fn without_the_inhibit_bit_a_wait_switches_away() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut a, &wait_global(flag, 1));
    rig.emit(&mut b, &store_global(flag + 4, 1));
    rig.image_set(&a, value::CTX_CONTROL, masked::disable(ring::CTX_INHIBIT_SYN_CTX_SWITCH));
    rig.submit(Engine::Rcs, a.descriptor(), b.descriptor());
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x84, a.id), (0x18, b.id)]);
    assert_eq!(rig.image_get(&a, value::RING_HEAD), 0, "still at the wait");
}

#[test]
fn signal_wakes_a_wait_in_signal_mode() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Vcs0));
    let flag = rig.ggtt_alloc(1);
    let mut wait = wait_global(flag, 1);
    wait[0] &= !mi::SEMAPHORE_POLL;
    rig.emit(&mut a, &wait);
    rig.submit(Engine::Rcs, a.descriptor(), NONE);
    rig.step(100);
    rig.ram.write_u32(ggtt_hpa(flag), 1);
    assert!(matches!(rig.run(), Progress::WaitUntil(_)), "nobody signalled");
    rig.emit(&mut b, &[mi::with_length(mi::SEMAPHORE_SIGNAL, 2), a.id]);
    rig.submit(Engine::Vcs0, b.descriptor(), NONE);
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x18, a.id)]);
}

#[test]
fn a_list_replaced_at_its_end_is_preempted_and_complete() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    rig.map_fresh(a.root, VA, 1);
    // No arbitration point before the end of the ring.
    for _ in 0..50 {
        rig.emit(&mut a, &store(VA, 1));
    }
    rig.submit(Engine::Rcs, a.descriptor(), NONE);
    assert_eq!(rig.step(10), Progress::Busy);
    rig.emit(&mut b, &[ARB_CHECK]);
    rig.submit(Engine::Rcs, b.descriptor(), NONE);
    rig.run();
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x12, a.id), (0x18, b.id)]);
    rig.no_findings();
}

#[test]
fn default_state_is_captured_and_given_to_new_contexts() {
    let mut rig = Rig::new();
    let mut first = rig.context(Engine::Rcs);
    let gpr = Engine::Rcs.base() + ring::GPR + 8;
    rig.write(gpr, 0x1111);
    let inhibit = masked::enable(ring::CTX_INHIBIT_SYN_CTX_SWITCH | ring::CTX_RESTORE_INHIBIT);
    rig.image_set(&first, value::CTX_CONTROL, inhibit);
    // The engine part of the image is blank, as in a fresh object.
    for position in 0x41..0x400 {
        rig.image_set(&first, position, 0);
    }
    rig.emit(&mut first, &[mi::load_register_imm(1), 0x7004, masked::enable(0x40)]);
    rig.submit_and_run(&first);
    assert_eq!(rig.image_get(&first, value::CTX_CONTROL) & 1, 0, "inhibit is not saved");
    let mode = rig.image_get(&first, value::MI_MODE);
    assert_eq!(mode & ring::MI_MODE_STOP_RING, 0);
    assert_eq!(rig.image_get(&first, 0x6D), 0x1111, "kept, then saved");
    // The whole page is a stream of loads that ends.
    let mut at = 0;
    let mut registers = 0;
    loop {
        let header = rig.image_get(&first, at);
        match mi::opcode(header) {
            mi::NOOP => at += 1,
            mi::LOAD_REGISTER_IMM => {
                let pairs = (header as usize & 0xFF).div_ceil(2);
                registers += pairs;
                at += 1 + 2 * pairs;
            }
            mi::BATCH_BUFFER_END => break,
            other => panic!("opcode {other:#x} at {at:#x}"),
        }
    }
    assert!(registers > 150);
    // Another context changes the register; one made from the default state does not see it.
    let mut other = rig.context(Engine::Rcs);
    rig.emit(&mut other, &[mi::load_register_imm(1), gpr, 0x2222]);
    rig.submit_and_run(&other);
    assert_eq!(rig.read(gpr), 0x2222);
    rig.submit_and_run(&first);
    assert_eq!((rig.read(gpr), rig.read(0x7004)), (0x1111, 0x40));
}

#[test]
fn workaround_batches_run_before_the_ring() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let page = rig.ggtt_alloc(1);
    let mut indirect = vec![ARB_OFF];
    indirect.extend(store_global(page + 0xF00, 1));
    indirect.push(ARB_ON);
    rig.put(ggtt_hpa(page), &indirect);
    let mut per_context = store_global(page + 0xF04, 2).to_vec();
    per_context.push(BATCH_END);
    let second = rig.ggtt_alloc(1);
    rig.put(ggtt_hpa(second), &per_context);
    rig.image_set(&c, value::INDIRECT_CTX, page | 1);
    rig.image_set(&c, value::BB_PER_CTX_PTR, second | 1);
    let copy = mi::with_length(mi::COPY_MEM_MEM, 5) | 3 << 21;
    for (from, to) in [(0xF00, 0xF10), (0xF04, 0xF14)] {
        rig.emit(&mut c, &[copy, page + to, 0, page + from, 0]);
    }
    rig.submit_and_run(&c);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(page + 0xF10)), 1);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(page + 0xF14)), 2);
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x18, c.id)]);
    rig.no_findings();
}

#[test]
fn late_save_happens_at_the_next_other_load() {
    let mut rig = Rig::with(Profile { save: Save::Late, ..Profile::default() });
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    rig.emit(&mut a, &[ARB_CHECK, ARB_CHECK]);
    rig.submit_and_run(&a);
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x18, a.id)]);
    assert_eq!(rig.image_get(&a, value::RING_HEAD), 0, "not yet");
    rig.emit(&mut b, &[ARB_CHECK, ARB_CHECK]);
    rig.submit_and_run(&b);
    assert_eq!(rig.image_get(&a, value::RING_HEAD), a.tail);
    assert_eq!(rig.image_get(&b, value::RING_HEAD), 0);
    // The same context again goes on where it was.
    let out = rig.ggtt_alloc(1);
    rig.emit(&mut b, &store_global(out, 5));
    rig.submit_and_run(&b);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 5);
}

#[test]
fn a_late_completion_lets_more_work_come_first() {
    let mut rig = Rig::with(Profile { completion: Nanos(1_000_000), ..Profile::default() });
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    let out = rig.ggtt_alloc(1);
    rig.emit(&mut a, &store_global(out, 1));
    rig.submit(Engine::Rcs, a.descriptor(), NONE);
    let Progress::WaitUntil(told) = rig.step(1000) else { panic!("nothing to wait for") };
    assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 1, "the work is done");
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0)]);
    rig.emit(&mut a, &store_global(out, 2));
    rig.submit(Engine::Rcs, a.descriptor(), NONE);
    let Progress::WaitUntil(later) = rig.step(1000) else { panic!("nothing to wait for") };
    assert!(later.0 > told.0, "the time runs from the end of the ring");
    assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 2);
    assert_eq!(rig.events(Engine::Rcs), [(0x8002, a.id)]);
    rig.emit(&mut b, &store_global(out, 3));
    rig.submit(Engine::Rcs, b.descriptor(), NONE);
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.events(Engine::Rcs), [(0x12, a.id), (0x18, b.id)]);
    rig.no_findings();
}

#[test]
fn the_ring_wraps() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let out = rig.ggtt_alloc(1);
    for round in 0..40 {
        let mut commands = vec![0; 100];
        commands.extend(store_global(out, round));
        rig.emit(&mut c, &commands);
        rig.submit_and_run(&c);
        assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), round);
    }
    assert_eq!(rig.image_get(&c, value::RING_HEAD) >> 21, 40 * 104 * 4 / 0x2000);
    rig.no_findings();
}

#[test]
fn mistakes_of_software_are_findings() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.context(Engine::Rcs), rig.context(Engine::Rcs));
    rig.emit(&mut a, &[ARB_CHECK]);
    rig.emit(&mut b, &[ARB_CHECK]);
    rig.submit(Engine::Rcs, a.descriptor(), a.descriptor());
    assert_eq!(rig.gpu.take_findings(), [Finding::BadSubmission(Engine::Rcs)]);
    rig.submit(Engine::Rcs, a.descriptor(), NONE);
    rig.submit(Engine::Rcs, b.descriptor(), NONE);
    assert_eq!(rig.gpu.take_findings(), [Finding::ElspOverrun(Engine::Rcs)]);
    rig.run();
    assert_eq!(rig.events(Engine::Rcs), [(0x1, 0), (0x18, b.id)]);
    rig.set(Engine::Rcs, ring::GFX_MODE, masked::disable(ring::GFX_RUN_LIST_ENABLE));
    rig.submit(Engine::Rcs, a.descriptor(), NONE);
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.gpu.take_findings(), [Finding::ElspDisabled(Engine::Rcs)]);
}

#[test]
fn polling_slows_down() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut c, &wait_global(flag, 1));
    rig.submit(Engine::Rcs, c.descriptor(), NONE);
    let mut looks = 0;
    let end = rig.now + 10_000_000;
    while rig.now < end {
        let Progress::WaitUntil(t) = rig.step(100) else { panic!("it waits") };
        assert!(t.0 <= rig.now + 100_000);
        rig.now = t.0;
        looks += 1;
    }
    assert!((50..200).contains(&looks), "{looks} looks in 10 ms");
}

#[test]
fn context_time_runs_only_with_the_context() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let flag = rig.ggtt_alloc(1);
    rig.emit(&mut c, &wait_global(flag, 1));
    rig.submit(Engine::Rcs, c.descriptor(), NONE);
    rig.step(10);
    rig.now += 1_000_000;
    rig.ram.write_u32(ggtt_hpa(flag), 1);
    rig.run();
    let ran = rig.image_get(&c, value::CTX_TIMESTAMP);
    assert!((12_000..13_000).contains(&ran), "12 MHz for a millisecond: {ran}");
    rig.now += 5_000_000;
    rig.emit(&mut c, &[ARB_CHECK]);
    rig.submit_and_run(&c);
    assert!(rig.image_get(&c, value::CTX_TIMESTAMP) < ran + 1000);
    let (a, b) = (rig.get(Engine::Rcs, ring::TIMESTAMP), {
        rig.now += 1_000_000;
        rig.get(Engine::Rcs, ring::TIMESTAMP)
    });
    assert_eq!(b - a, 12_000);
}
