//! Translation: page sizes, TLBs that only flushes empty, the aperture and its fences, the record of touched frames.

mod rig;

use gvt_defs::pte::{Level, PpgttEntry};
use gvt_defs::reg::{FENCE_TILING_Y, FENCE_VALID, FENCE0, GFX_FLSH_CNTL};
use gvt_defs::{Engine, gfx, mi, ring};
use gvt_model::{Bar, Finding, Hpa, Nanos, Progress, Recording};
use rig::{BATCH_END, Context, NONE, RAM_BASE, RW, Rig, ggtt_hpa, start, store, store_global, wait_global};

const VA: u64 = 0x7F_1234_5000;

fn run_store(rig: &mut Rig, c: &mut Context, va: u64, value: u32) {
    rig.emit(c, &store(va, value));
    rig.submit_and_run(c);
}

#[test]
fn all_page_sizes() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Bcs);
    // 64 KiB pages: only every 16th entry counts.
    let big = Hpa(rig.frames(32).0.next_multiple_of(0x1_0000));
    let pt = rig.slot(c.root, 0x1_0020_0000, Level::Pt);
    let pd = rig.slot(c.root, 0x1_0020_0000, Level::Pd);
    let raw = rig.ram.read_u64(pd);
    rig.ram.write_u64(pd, raw | PpgttEntry::IPS_64K);
    rig.ram.write_u64(pt, big.0 | RW);
    run_store(&mut rig, &mut c, 0x1_0020_5678, 1);
    assert_eq!(rig.ram.read_u32(Hpa(big.0 + 0x5678)), 1);
    // A 2 MiB page.
    let huge = Hpa(rig.frames(1024).0.next_multiple_of(0x20_0000));
    let pd = rig.slot(c.root, 0x1_0040_0000, Level::Pd);
    rig.ram.write_u64(pd, huge.0 | RW | PpgttEntry::PAGE_SIZE);
    run_store(&mut rig, &mut c, 0x1_0052_3454, 2);
    assert_eq!(rig.ram.read_u32(Hpa(huge.0 + 0x12_3454)), 2);
    // Canonical addresses carry their sign in the upper bits.
    let high = rig.map_fresh(c.root, 0x8000_0000_0000, 1);
    run_store(&mut rig, &mut c, 0xFFFF_8000_0000_0010, 3);
    assert_eq!(rig.ram.read_u32(Hpa(high.0 + 0x10)), 3);
    rig.no_findings();
}

#[test]
fn read_only_and_absent_pages_drop_writes() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let frame = rig.frame();
    rig.map(c.root, VA, frame, PpgttEntry::PRESENT);
    run_store(&mut rig, &mut c, VA, 1);
    assert_eq!(rig.ram.read_u32(frame), 0);
    rig.no_findings();
    run_store(&mut rig, &mut c, VA + 0x1000, 1);
    assert_eq!(rig.gpu.take_findings(), [Finding::PpgttFault(Engine::Rcs, VA + 0x1000)]);
    assert_eq!(rig.read(0x4094) & 1, 1);
    assert_eq!(rig.read(0x4B10), ((VA + 0x1000) >> 12) as u32);
}

/// One engine's process TLB keeps a translation over everything but the flushes named by the architecture.
#[test]
fn a_missing_flush_shows() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let old = rig.map_fresh(c.root, VA, 1);
    let flag = rig.ggtt_alloc(1);
    let (mut value, mut frame) = (0, old);
    // Register and value of a flush, if any, and whether it reaches this engine's process space.
    let (own, other) = (Engine::Rcs.info().tlb, Engine::Bcs.info().tlb);
    let flushes = [
        ("none", None, false),
        ("for the global space", Some((GFX_FLSH_CNTL, 1)), false),
        ("another engine's", Some((other, 1)), false),
        ("bit 0 clear", Some((own, 2)), false),
        ("the engine's own", Some((own, 1)), true),
    ];
    for (n, (name, flush, reaches)) in flushes.into_iter().enumerate() {
        // A context that stays loaded, waiting in its ring.
        rig.emit(&mut c, &store(VA, 100));
        rig.emit(&mut c, &wait_global(flag, n as u32 + 1));
        value += 1;
        rig.emit(&mut c, &store(VA, value));
        rig.submit(Engine::Rcs, c.descriptor(), NONE);
        assert!(matches!(rig.step(100), Progress::WaitUntil(_)));
        let new = rig.frame();
        rig.map(c.root, VA, new, RW);
        if let Some((register, value)) = flush {
            rig.write(register, value);
        }
        rig.ram.write_u32(ggtt_hpa(flag), n as u32 + 1);
        rig.run();
        let (was, is) = (rig.ram.read_u32(frame), rig.ram.read_u32(new));
        if reaches {
            assert_eq!((was, is), (100, value), "{name}");
        } else {
            assert_eq!((was, is), (value, 0), "{name}");
        }
        // Put the mapping back, and forget.
        rig.map(c.root, VA, frame, RW);
        rig.write(Engine::Rcs.info().tlb, 1);
        frame = old;
    }
    rig.no_findings();
}

#[test]
fn commands_and_other_roots_flush_the_process_tlb() {
    let mut rig = Rig::new();
    for engine in [Engine::Rcs, Engine::Bcs] {
        let mut c = rig.context(engine);
        let first = rig.map_fresh(c.root, VA, 1);
        run_store(&mut rig, &mut c, VA, 1);
        let second = rig.frame();
        rig.map(c.root, VA, second, RW);
        run_store(&mut rig, &mut c, VA, 2);
        assert_eq!(rig.ram.read_u32(first), 2, "the same root: remembered over a reload");
        let flush = if engine == Engine::Rcs {
            vec![gfx::PIPE_CONTROL_HEADER, gfx::pipe_control::TLB_INVALIDATE, 0, 0, 0, 0]
        } else {
            vec![mi::with_length(mi::FLUSH_DW, 4) | mi::FLUSH_TLB_INVALIDATE, 0, 0, 0]
        };
        rig.emit(&mut c, &flush);
        run_store(&mut rig, &mut c, VA, 3);
        assert_eq!(rig.ram.read_u32(second), 3, "flushed by command");
        let third = rig.frame();
        rig.map(c.root, VA, third, RW);
        let mut other = rig.context(engine);
        rig.map_fresh(other.root, VA, 1);
        run_store(&mut rig, &mut other, VA, 4);
        run_store(&mut rig, &mut c, VA, 5);
        assert_eq!(rig.ram.read_u32(third), 5, "flushed by the other root");
    }
    rig.no_findings();
}

#[test]
fn global_entries_are_remembered_until_the_flush() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Vcs0);
    let page = rig.ggtt_alloc(1);
    rig.emit(&mut c, &store_global(page, 1));
    rig.submit_and_run(&c);
    let other = rig.frame();
    rig.gpu.ggtt_write(page / 4096, other.0 | 1);
    rig.emit(&mut c, &store_global(page, 2));
    rig.submit_and_run(&c);
    assert_eq!((rig.ram.read_u32(ggtt_hpa(page)), rig.ram.read_u32(other)), (2, 0));
    rig.write(GFX_FLSH_CNTL, 1);
    rig.emit(&mut c, &store_global(page, 3));
    rig.submit_and_run(&c);
    assert_eq!(rig.ram.read_u32(other), 3);
}

#[test]
fn the_aperture_is_linear_without_a_fence() {
    let mut rig = Rig::new();
    let page = rig.ggtt_alloc(2);
    let scattered = rig.frame();
    rig.gpu.ggtt_write(page / 4096 + 1, scattered.0 | 1);
    let data: Vec<u8> = (0..64).collect();
    let at = u64::from(page) + 4096 - 20;
    rig.gpu.bar_write(&mut rig.ram, Bar::Gmadr, at, &data, Nanos(0));
    let mut back = vec![0; 64];
    rig.gpu.bar_read(&mut rig.ram, Bar::Gmadr, at, &mut back, Nanos(0));
    assert_eq!(back, data);
    assert_eq!(rig.ram.read_u32(scattered), u32::from_le_bytes([20, 21, 22, 23]));
    // Not mapped: zeros.
    rig.gpu.bar_read(&mut rig.ram, Bar::Gmadr, 0x1F00_0000, &mut back, Nanos(0));
    assert_eq!(back, [0; 64]);
}

#[test]
fn fences_detile_the_aperture() {
    for (tiling, name, width, height) in [(0, "X", 512, 8), (FENCE_TILING_Y, "Y", 128, 32)] {
        let mut rig = Rig::new();
        let (pitch, rows) = (1024_u64, 64);
        let pages = (pitch * rows / 4096) as u32;
        let base = rig.ggtt_alloc(pages);
        let end = u64::from(base) + pitch * rows - 4096;
        let fence = u64::from(base) | FENCE_VALID | tiling | (end | (pitch / 128 - 1)) << 32;
        rig.write(FENCE0 + 8 * 3, 0);
        rig.write(FENCE0 + 8 * 3 + 4, (fence >> 32) as u32);
        rig.write(FENCE0 + 8 * 3, fence as u32);
        for y in 0..rows {
            let row: Vec<u8> = (0..pitch).map(|x| (x * 7 + y * 13) as u8).collect();
            rig.gpu.bar_write(&mut rig.ram, Bar::Gmadr, u64::from(base) + y * pitch, &row, Nanos(0));
        }
        // Naive: tile by tile.
        for y in 0..rows {
            for x in 0..pitch {
                let tile = (y / height) * (pitch / width) + x / width;
                let (tx, ty) = (x % width, y % height);
                let within = if name == "X" { ty * 512 + tx } else { tx / 16 * 512 + ty * 16 + tx % 16 };
                let at = RAM_BASE + u64::from(base) + tile * 4096 + within;
                let byte = rig.ram.bytes()[(at - RAM_BASE) as usize];
                assert_eq!(byte, (x * 7 + y * 13) as u8, "{name} {x} {y}");
            }
        }
        let mut row = vec![0; pitch as usize];
        rig.gpu.bar_read(&mut rig.ram, Bar::Gmadr, u64::from(base) + 5 * pitch, &mut row, Nanos(0));
        assert_eq!(row[9], (9 * 7 + 5 * 13) as u8);
        rig.no_findings();
    }
}

#[test]
fn touched_frames_are_recorded() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    let data = rig.map_fresh(c.root, VA, 1);
    let batch = rig.map_fresh(c.root, VA + 0x1000, 1);
    rig.put(batch, &[store(VA, 1).as_slice(), &[BATCH_END]].concat());
    rig.emit(&mut c, &start(VA + 0x1000));
    rig.gpu.record(Recording::Start);
    rig.submit_and_run(&c);
    let touched = rig.gpu.take_touched();
    let find = |hpa: Hpa| {
        let frame = hpa.0 / 4096;
        let range = touched.ranges.iter().find(|r| (r.first..r.first + r.frames).contains(&frame));
        range.map(|r| (r.read, r.written))
    };
    assert_eq!(find(data), Some((false, true)));
    assert_eq!(find(batch), Some((true, false)));
    assert_eq!(find(c.root), Some((true, false)));
    assert_eq!(find(ggtt_hpa(c.ring)), Some((true, false)));
    assert_eq!(find(ggtt_hpa(c.lrca + 0x1000)), Some((true, true)));
    assert_eq!(find(Hpa(data.0 + 0x10_0000)), None);
    let total: u64 = touched.ranges.iter().map(|r| r.frames).sum();
    assert_eq!(total, 9, "data, batch, four tables, ring, image, status page: {touched:x?}");
}

#[test]
fn three_levels() {
    use gvt_defs::context::value;
    use gvt_defs::execlist::Descriptor;
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    // PDP1 holds a page directory for the second gigabyte.
    let (pd, pt, page) = (rig.frame(), rig.frame(), rig.frame());
    rig.ram.write_u64(Hpa(pd.0 + 8), pt.0 | RW);
    rig.ram.write_u64(Hpa(pt.0 + 16), page.0 | RW);
    rig.image_set(&c, value::PDP1_LDW, pd.0 as u32);
    rig.image_set(&c, value::PDP1_UDW, (pd.0 >> 32) as u32);
    rig.emit(&mut c, &store(0x4020_2008, 5));
    let descriptor = Descriptor(c.descriptor().0 & !(3 << 3) | 1 << 3);
    rig.submit(Engine::Rcs, descriptor, NONE);
    rig.run();
    assert_eq!(rig.ram.read_u32(Hpa(page.0 + 8)), 5);
    assert_eq!(rig.get(Engine::Rcs, ring::EXECLIST_STATUS_HI), 0);
}
