//! Commands and privilege.

mod rig;

use gvt_defs::reg::irq;
use gvt_defs::{Engine, gfx, masked, mi, ring};
use gvt_model::{Blitter, Finding, Hpa, Nanos, Place, Profile, Progress, Recording, Touch};
use rig::{ARB_CHECK, BATCH_END, Context, NONE, Rig, cpu_time, ggtt_hpa, start, store, store_global};

const VA: u64 = 0x7F_1234_5000;
const BATCH: u64 = VA + 0x10_0000;

/// Runs commands as an unprivileged batch with one page of data at `VA`; gives the data's frame.
fn run_batch(rig: &mut Rig, engine: Engine, commands: &[u32]) -> Hpa {
    let mut c = rig.context(engine);
    let data = rig.map_fresh(c.root, VA, 1);
    run_in(rig, &mut c, commands);
    data
}

fn run_in(rig: &mut Rig, c: &mut Context, commands: &[u32]) {
    let batch = rig.map_fresh(c.root, BATCH, 4);
    rig.write(c.engine.info().tlb, 1);
    rig.put(batch, &[commands, &[BATCH_END]].concat());
    rig.emit(c, &start(BATCH));
    assert_eq!(rig.submit_and_run(c), Progress::Idle);
}

fn at(va: u64) -> [u32; 2] {
    [va as u32, (va >> 32) as u32]
}

fn srm(register: u32, va: u64) -> Vec<u32> {
    [vec![mi::with_length(mi::STORE_REGISTER_MEM, 4), register], at(va).to_vec()].concat()
}

fn lri(register: u32, value: u32) -> Vec<u32> {
    vec![mi::load_register_imm(1), register, value]
}

#[test]
fn stores_loads_and_copies() {
    let mut rig = Rig::new();
    let gpr = Engine::Vcs0.base() + ring::GPR;
    let qword = [mi::with_length(mi::STORE_DATA_IMM, 5) | mi::STORE_QWORD, at(VA)[0], at(VA)[1], 0x1111, 0x2222];
    let load = [vec![mi::with_length(mi::LOAD_REGISTER_MEM, 4), gpr], at(VA + 4).to_vec()].concat();
    let mov = vec![mi::with_length(mi::LOAD_REGISTER_REG, 3), gpr, gpr + 12];
    let copy = [vec![mi::with_length(mi::COPY_MEM_MEM, 5)], at(VA + 0x20).to_vec(), at(VA).to_vec()].concat();
    let commands = [qword.to_vec(), load, mov, srm(gpr + 12, VA + 0x10), copy].concat();
    let data = run_batch(&mut rig, Engine::Vcs0, &commands);
    let get = |rig: &mut Rig, offset| rig.ram.read_u32(Hpa(data.0 + offset));
    assert_eq!([0, 4, 0x10, 0x20].map(|o| get(&mut rig, o)), [0x1111, 0x2222, 0x2222, 0x1111]);
    rig.no_findings();
}

#[test]
fn arithmetic() {
    use mi::math::{ACCU, ADD, CF, LOAD, SRCA, SRCB, STORE, SUB, ZF, instruction};
    let mut rig = Rig::new();
    let gpr = |n: u32| Engine::Rcs.base() + ring::GPR + 8 * n;
    let program = [
        instruction(LOAD, SRCA, 0),
        instruction(LOAD, SRCB, 1),
        instruction(ADD, 0, 0),
        instruction(STORE, 2, ACCU),
        instruction(STORE, 3, CF),
        instruction(LOAD, SRCA, 0),
        instruction(LOAD, SRCB, 0),
        instruction(SUB, 0, 0),
        instruction(STORE, 4, ZF),
    ];
    let mut commands =
        [lri(gpr(0), 0xFFFF_FFFF), lri(gpr(0) + 4, 0xFFFF_FFFF), lri(gpr(1), 2), lri(gpr(1) + 4, 0)].concat();
    commands.push(mi::header(mi::MATH) | (program.len() as u32 - 1));
    commands.extend(program);
    for n in [2, 3, 4] {
        commands.extend(srm(gpr(n), VA + 8 * u64::from(n)));
    }
    let data = run_batch(&mut rig, Engine::Rcs, &commands);
    let get = |rig: &mut Rig, n: u64| rig.ram.read_u32(Hpa(data.0 + 8 * n));
    assert_eq!([2, 3, 4].map(|n| get(&mut rig, n)), [1, 0xFFFF_FFFF, 0xFFFF_FFFF]);
    rig.no_findings();
}

#[test]
fn inline_atomics_return_the_old_value() {
    let mut rig = Rig::new();
    let header = mi::with_length(mi::ATOMIC, 11) | mi::ATOMIC_INLINE | mi::ATOMIC_RETURN | 7 << 8;
    let add = [vec![header], at(VA).to_vec(), vec![5, 0, 0, 0, 0, 0, 0, 0]].concat();
    let commands = [store(VA, 10).to_vec(), add, srm(Engine::Bcs.base() + ring::GPR, VA + 8)].concat();
    let data = run_batch(&mut rig, Engine::Bcs, &commands);
    assert_eq!(rig.ram.read_u32(data), 15);
    assert_eq!(rig.ram.read_u32(Hpa(data.0 + 8)), 10);
}

#[test]
fn predicates() {
    let mut rig = Rig::new();
    let base = Engine::Rcs.base();
    let same = |value| [lri(base + ring::MI_PREDICATE_SRC0, 7), lri(base + ring::MI_PREDICATE_SRC1, value)].concat();
    let load_equal = mi::header(mi::PREDICATE) | 2 << 6 | 2;
    let conditional = |va| {
        let mut c = srm(base + ring::MI_PREDICATE_SRC0, va);
        c[0] |= mi::PREDICATE_ENABLE;
        c
    };
    let commands = [
        same(7),
        vec![load_equal],
        conditional(VA),
        same(8),
        vec![load_equal],
        conditional(VA + 4),
        vec![mi::header(mi::SET_PREDICATE) | 3],
        store(VA + 8, 1).to_vec(),
        vec![mi::header(mi::SET_PREDICATE)],
        store(VA + 12, 1).to_vec(),
    ]
    .concat();
    let data = run_batch(&mut rig, Engine::Rcs, &commands);
    let get = |rig: &mut Rig, n: u64| rig.ram.read_u32(Hpa(data.0 + 4 * n));
    assert_eq!([0, 1, 2, 3].map(|n| get(&mut rig, n)), [7, 0, 0, 1]);
    rig.no_findings();
}

#[test]
fn second_level_and_chained_batches() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let data = rig.map_fresh(c.root, VA, 1);
    let second = rig.map_fresh(c.root, VA + 0x2000, 1);
    let chained = rig.map_fresh(c.root, VA + 0x3000, 1);
    rig.put(second, &[store(VA, 1).as_slice(), &[BATCH_END]].concat());
    rig.put(chained, &[store(VA + 8, 3).as_slice(), &[BATCH_END]].concat());
    let mut nested = start(VA + 0x2000);
    nested[0] |= mi::BB_SECOND_LEVEL;
    let commands = [
        nested.as_slice(),
        &store(VA + 4, 2),
        &start(VA + 0x3000),
        // Never reached: the chained batch ends in the ring.
        &store(VA + 12, 4),
    ]
    .concat();
    run_in(&mut rig, &mut c, &commands);
    let words: Vec<u32> = (0..4).map(|n| rig.ram.read_u32(Hpa(data.0 + 4 * n))).collect();
    assert_eq!(words, [1, 2, 3, 0]);
    rig.no_findings();
}

#[test]
fn conditional_end_and_a_spinner_that_does_not_burn() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Vcs0);
    let data = rig.map_fresh(c.root, VA, 1);
    let batch = rig.map_fresh(c.root, BATCH, 1);
    let end = 0xF00;
    let mut commands = store(VA, 1).to_vec();
    let head = BATCH + 4 * commands.len() as u64;
    commands.push(ARB_CHECK);
    let compare = mi::with_length(mi::CONDITIONAL_BATCH_BUFFER_END, 4) | mi::COND_COMPARE_SEMAPHORE;
    commands.extend([compare, 0x0500_0000]);
    commands.extend(at(BATCH + end));
    commands.extend(start(head));
    rig.put(batch, &commands);
    rig.ram.write_u32(Hpa(batch.0 + end), 0xFFFF_FFFF);
    rig.emit(&mut c, &start(BATCH));
    rig.emit(&mut c, &[mi::header(mi::USER_INTERRUPT)]);
    rig.submit(Engine::Vcs0, c.descriptor(), NONE);
    let mut steps = 0;
    for _ in 0..50 {
        let Progress::WaitUntil(t) = rig.step(100_000) else { panic!("hot") };
        rig.now = t.0;
        steps += 1;
    }
    assert_eq!(steps, 50);
    assert_eq!(rig.ram.read_u32(data), 1);
    let commands = rig.gpu.counters().engine(Engine::Vcs0).commands;
    assert!(commands < 50 * 100, "{commands} commands in 1 ms of waiting");
    // The CPU ends it by a store.
    rig.ram.write_u32(Hpa(batch.0 + end), BATCH_END);
    assert_eq!(rig.run(), Progress::Idle);
    assert_eq!(rig.events(Engine::Vcs0), [(0x1, 0), (0x18, c.id)]);
    rig.no_findings();
}

#[test]
fn a_batch_may_change_itself() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let data = rig.map_fresh(c.root, VA, 1);
    // The second command rewrites the operand of the third.
    let operand = BATCH + 4 * (4 + 3);
    let commands = [store(operand, 0x77), store(VA, 0x11)].concat();
    run_in(&mut rig, &mut c, &commands);
    assert_eq!(rig.ram.read_u32(data), 0x77);
}

#[test]
fn post_sync_writes() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let page = rig.ggtt_alloc(1);
    let flags = gfx::pipe_control::POST_SYNC_WRITE | gfx::pipe_control::GLOBAL_GTT | gfx::pipe_control::NOTIFY;
    rig.emit(&mut c, &[gfx::PIPE_CONTROL_HEADER, flags, page, 0, 0xAAAA, 0xBBBB]);
    let index = gfx::pipe_control::POST_SYNC_WRITE | gfx::pipe_control::STORE_DATA_INDEX;
    rig.emit(&mut c, &[gfx::PIPE_CONTROL_HEADER, index, 0xD0, 0, 0xCCCC, 0]);
    let time = gfx::pipe_control::POST_SYNC_TIMESTAMP | gfx::pipe_control::GLOBAL_GTT;
    rig.emit(&mut c, &[gfx::PIPE_CONTROL_HEADER, time, page + 8, 0, 0, 0]);
    rig.submit_and_run(&c);
    assert_eq!(rig.ram.read_u64(ggtt_hpa(page)), 0xBBBB_0000_AAAA);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(c.lrca + 0xD0)), 0xCCCC);
    assert_ne!(rig.ram.read_u64(ggtt_hpa(page + 8)), 0);
    assert_ne!(rig.read(irq::GT_BANK0 + irq::IIR) & 1 << 4, 0);

    let mut c = rig.context(Engine::Vcs0);
    let header = mi::with_length(mi::FLUSH_DW, 4) | 1 << mi::FLUSH_POST_SYNC_SHIFT;
    rig.ram.write_u64(ggtt_hpa(page), u64::MAX);
    // Bit 7, a flag of the video engine, is not part of the length.
    rig.emit(&mut c, &[header | 1 << 7 | mi::FLUSH_NOTIFY, page | mi::FLUSH_DW1_GLOBAL_GTT, 0, 0x1234]);
    rig.emit(&mut c, &[header | mi::FLUSH_STORE_INDEX, 0xD8, 0, 0x5678]);
    let wide = mi::with_length(mi::FLUSH_DW, 5) | 1 << mi::FLUSH_POST_SYNC_SHIFT;
    rig.emit(&mut c, &[wide, (page + 8) | mi::FLUSH_DW1_GLOBAL_GTT, 0, 1, 2]);
    rig.submit_and_run(&c);
    assert_eq!(rig.ram.read_u64(ggtt_hpa(page)), 0xFFFF_FFFF_0000_1234, "one dword");
    assert_eq!(rig.ram.read_u32(ggtt_hpa(c.lrca + 0xD8)), 0x5678);
    assert_eq!(rig.ram.read_u64(ggtt_hpa(page + 8)), 0x2_0000_0001);
    rig.no_findings();
}

#[test]
fn an_index_with_the_global_bit_counts_from_the_engines_status_page() {
    let mut rig = Rig::new();
    let status = |rig: &mut Rig, engine| ggtt_hpa(rig.get(engine, ring::HWS_PGA) & !0xFFF);
    let mut c = rig.context(Engine::Rcs);
    let flags = gfx::pipe_control::POST_SYNC_WRITE | gfx::pipe_control::STORE_DATA_INDEX;
    let global = flags | gfx::pipe_control::GLOBAL_GTT;
    rig.emit(&mut c, &[gfx::PIPE_CONTROL_HEADER, global, 0xD0, 0, 0x1111, 0]);
    rig.emit(&mut c, &[mi::with_length(mi::STORE_DATA_INDEX, 3), 0xD8, 0x2222]);
    rig.submit_and_run(&c);
    let page = status(&mut rig, Engine::Rcs);
    assert_eq!([0xD0, 0xD8].map(|o| rig.ram.read_u32(Hpa(page.0 + o))), [0x1111, 0x2222]);

    let mut c = rig.context(Engine::Vcs0);
    let flush = mi::with_length(mi::FLUSH_DW, 4) | 1 << mi::FLUSH_POST_SYNC_SHIFT | mi::FLUSH_STORE_INDEX;
    rig.emit(&mut c, &[flush, 0xD0 | mi::FLUSH_DW1_GLOBAL_GTT, 0, 0x3333]);
    rig.submit_and_run(&c);
    let page = status(&mut rig, Engine::Vcs0);
    assert_eq!(rig.ram.read_u32(Hpa(page.0 + 0xD0)), 0x3333);
    rig.no_findings();
}

#[test]
fn a_report_is_global_by_bit_0_alone() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let global = rig.ggtt_alloc(1);
    let data = rig.map_fresh(c.root, u64::from(global), 1);
    let report = mi::with_length(mi::REPORT_PERF_COUNT, 4);
    rig.emit(&mut c, &[report, global | mi::REPORT_DW1_GLOBAL_GTT, 0, 7]);
    rig.emit(&mut c, &[report, global | 2, 0, 8]);
    rig.submit_and_run(&c);
    assert_eq!((rig.ram.read_u32(ggtt_hpa(global)), rig.ram.read_u32(data)), (7, 8));
    rig.no_findings();
}

#[test]
fn unprivileged_batches_are_held_back() {
    let mut rig = Rig::new();
    let secret = rig.ggtt_alloc(1);
    let base = Engine::Rcs.base();
    let commands = [
        store_global(secret, 1).to_vec(),
        lri(0x4090, 0x1234),
        lri(base + ring::HWS_PGA, 0),
        // Of a list only what is allowed is loaded.
        vec![mi::load_register_imm(2), base + ring::IMR, 0, base + ring::GPR, 0x77],
        vec![mi::header(mi::USER_INTERRUPT), rig::ARB_OFF, mi::with_length(mi::UPDATE_GTT, 4), 0, 0, 0],
        vec![gfx::PIPE_CONTROL_HEADER, 1 << 23, 0x4094, 0, 1, 0],
        srm(base + ring::GPR, VA),
    ]
    .concat();
    let page0 = rig.gpu.ggtt_read(0);
    let hws = rig.get(Engine::Rcs, ring::HWS_PGA);
    let data = run_batch(&mut rig, Engine::Rcs, &commands);
    assert_eq!(rig.ram.read_u32(ggtt_hpa(secret)), 0);
    assert_eq!(rig.read(0x4090), 0);
    assert_eq!(rig.get(Engine::Rcs, ring::HWS_PGA), hws);
    assert_eq!(rig.gpu.ggtt_read(0), page0);
    assert_eq!(rig.ram.read_u32(data), 0x77);
    assert_eq!(rig.read(irq::GT_BANK0 + irq::IIR) & 1, 0, "no user interrupt");
    let findings = rig.gpu.take_findings();
    assert!(findings.iter().all(|f| matches!(f, Finding::Privilege(Engine::Rcs, _, _))), "{findings:?}");
    assert_eq!(findings.len(), 8, "{findings:?}");
    assert_eq!(rig.get(Engine::Rcs, ring::EIR), 0, "masked by EMR");
}

#[test]
fn force_to_nonpriv_opens_a_register() {
    let mut rig = Rig::new();
    let run = |rig: &mut Rig| run_batch(rig, Engine::Rcs, &lri(0xB118, 0x20_0000));
    run(&mut rig);
    assert_eq!(rig.read(0xB118), 0);
    rig.set(Engine::Rcs, ring::FORCE_TO_NONPRIV + 4 * 11, 0xB118);
    run(&mut rig);
    assert_eq!(rig.read(0xB118), 0x20_0000);
}

#[test]
fn an_unprivileged_batch_cannot_start_a_privileged_one() {
    let mut rig = Rig::new();
    let target = rig.ggtt_alloc(1);
    let evil = rig.ggtt_alloc(1);
    let commands = [store_global(target, 1).as_slice(), &[BATCH_END]].concat();
    rig.put(ggtt_hpa(evil), &commands);
    let mut jump = start(u64::from(evil));
    jump[0] &= !mi::BB_PPGTT;
    let mut c = rig.context(Engine::Rcs);
    let batch = rig.map_fresh(c.root, BATCH, 1);
    rig.put(batch, &jump);
    rig.emit(&mut c, &start(BATCH));
    // It runs through the same address of its own space, where nothing is.
    assert!(matches!(rig.submit_and_run(&c), Progress::WaitUntil(_)));
    assert_eq!(rig.ram.read_u32(ggtt_hpa(target)), 0);
}

#[test]
fn a_privileged_batch_may_do_everything() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let (batch, target) = (rig.ggtt_alloc(1), rig.ggtt_alloc(1));
    let commands = [store_global(target, 1).to_vec(), lri(0x4090, 5), vec![BATCH_END]].concat();
    rig.put(ggtt_hpa(batch), &commands);
    let mut begin = start(u64::from(batch));
    begin[0] &= !mi::BB_PPGTT;
    rig.emit(&mut c, &begin);
    rig.submit_and_run(&c);
    assert_eq!((rig.ram.read_u32(ggtt_hpa(target)), rig.read(0x4090)), (1, 5));
    rig.no_findings();
}

#[test]
fn the_blitter_obeys_when_told_so() {
    for (blitter, want) in [(Blitter::Polices, 0), (Blitter::ObeysLri, 0x55)] {
        let mut rig = Rig::with(Profile { blitter, ..Profile::default() });
        run_batch(&mut rig, Engine::Bcs, &lri(0x4090, 0x55));
        assert_eq!(rig.read(0x4090), want);
        run_batch(&mut rig, Engine::Rcs, &lri(0x4090, 0x66));
        assert_eq!(rig.read(0x4090), want, "only the blitter");
    }
}

#[test]
fn illegal_commands_stop_the_engine_until_reset() {
    for (engine, bad) in [(Engine::Rcs, 0x5000_0000), (Engine::Vcs0, mi::header(0x3F)), (Engine::Bcs, 0x7A00_0004)] {
        let mut rig = Rig::new();
        let mut c = rig.context(engine);
        rig.map_fresh(c.root, VA, 1);
        let batch = rig.map_fresh(c.root, BATCH, 1);
        rig.put(batch, &[bad, BATCH_END]);
        rig.emit(&mut c, &start(BATCH));
        rig.submit_and_run(&c);
        assert_eq!(rig.events(engine), [(0x1, 0)]);
        assert_eq!(rig.get(engine, ring::IPEHR), bad);
        assert_eq!(rig.get(engine, ring::EXECLIST_STATUS_HI), c.id);
        assert_eq!(rig.gpu.take_findings(), [Finding::UnknownCommand(engine, bad, BATCH)]);
    }
}

/// Everything that a hostile stream can hold must neither panic nor leave the memory it was given.
#[test]
fn random_streams() {
    let mut seed = 0x1234_5678_9ABC_DEF1_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u32
    };
    for round in 0..60 {
        let engine = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs][round % 4];
        let mut rig = Rig::with(Profile { blitter: Blitter::Polices, ..Profile::default() });
        let mut c = rig.context(engine);
        rig.map_fresh(c.root, VA, 1);
        let first = rig.map_fresh(c.root, BATCH, 4);
        let commands: Vec<u32> = (0..4000)
            .map(|_| match random() % 4 {
                // Well-formed headers with random flags, sane lengths.
                0 => ((random() % 0x37) << 23) | (random() & 0x7F_FF00) | (random() % 12),
                1 if engine == Engine::Bcs => blit_header(random()),
                2 => BATCH as u32 + random() % 0x4000,
                _ => (BATCH >> 32) as u32,
            })
            .collect();
        rig.put(first, &commands);
        rig.emit(&mut c, &start(BATCH));
        rig.gpu.record(Recording::Start);
        rig.submit(engine, c.descriptor(), NONE);
        for _ in 0..200 {
            rig.now += 50_000;
            rig.gpu.step(&mut rig.ram, Nanos(rig.now), 500);
        }
        // Tables, pages and the driver's own structures are all there is below the last frame.
        let limit = first.0 / 4096 + 64;
        for range in rig.gpu.take_touched().ranges {
            assert!(range.first >= rig::RAM_BASE / 4096 && range.first + range.frames <= limit, "{range:x?}");
        }
    }
}

fn blit_header(random: u32) -> u32 {
    let opcode = [0x01, 0x03, 0x40, 0x42, 0x43, 0x50, 0x51, 0x53][random as usize % 8];
    2 << 29 | opcode << 22 | random >> 8 & 0x30_8800 | 8
}

#[test]
fn masked_values_in_command_writes() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    rig.emit(&mut c, &lri(0x7014, masked::enable(0x8)));
    rig.submit_and_run(&c);
    assert_eq!(rig.read(0x7014), 8);
    // 3D state is skipped by its length.
    let state = [vec![0x7808_0003, 1, 2, 3, 4], vec![0x6904_0300], vec![0x7917_0101], vec![0; 0x102]].concat();
    rig.emit(&mut c, &state);
    rig.submit_and_run(&c);
    rig.no_findings();
}

/// The command loop must be quick: i915 gives the probe's contexts 200 ms of a slow guest.
#[test]
fn ten_million_noops_a_second_at_least() {
    let mut rig = Rig::with(Profile::default());
    let mut c = rig.context(Engine::Rcs);
    let pages = 256;
    let batch = rig.map_fresh(c.root, BATCH, pages);
    let count = pages * 1024 - 1;
    // Every eighth command is another one-dword command, so that runs of zeros do not count for all.
    let commands: Vec<u32> = (0..count).map(|i| if i % 8 == 0 { ARB_CHECK } else { 0 }).collect();
    rig.put(batch, &[commands.as_slice(), &[BATCH_END]].concat());
    let begun = cpu_time();
    for _ in 0..20 {
        rig.emit(&mut c, &start(BATCH));
        rig.submit(Engine::Rcs, c.descriptor(), NONE);
        while rig.gpu.step(&mut rig.ram, Nanos(rig.now), 2000) == Progress::Busy {}
    }
    let took = cpu_time() - begun;
    let rate = 20.0 * count as f64 / took.as_secs_f64() / 1e6;
    println!("{rate:.0} million commands a second");
    assert!(rate > 10.0, "{rate}");
}

#[test]
fn what_commands_reach_is_recorded_and_fetching_is_not() {
    let mut rig = Rig::new();
    rig.bring_up(Engine::Rcs);
    let mut c = rig.context(Engine::Rcs);
    let to = rig.ggtt_alloc(1);
    rig.emit(&mut c, &store_global(to + 8, 5));
    rig.emit(&mut c, &[mi::with_length(mi::STORE_REGISTER_MEM, 4), 0x2358, 0x5000, 1]);
    rig.emit(&mut c, &[mi::load_register_imm(1), 0x2600, 7]);
    rig.gpu.record(Recording::Start);
    rig.submit_and_run(&c);
    let seen: Vec<_> = rig.gpu.take_reached().into_iter().map(|r| (r.place, r.bytes, r.touch, r.value)).collect();
    let expected = [
        (Place::Global(u64::from(to) + 8), 4, Touch::Write, 0),
        (Place::Register(0x2358), 4, Touch::Read, 0),
        (Place::Process(0x1_0000_5000), 4, Touch::Write, 0),
        (Place::Register(0x2600), 4, Touch::Write, 7),
    ];
    assert_eq!(seen, expected);
    assert!(rig.gpu.take_reached().is_empty());
}
