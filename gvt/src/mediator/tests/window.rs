//! Copies of the blitter's process batches run in the process space from a window that nobody writes.

use super::{BATCH, batch, store};
use crate::Destroyed;
use crate::host::Owner;
use crate::report::Cause;
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::context::value;
use gvt_defs::{Engine, Gpa, PpgttAddr, blt, mi, pte, ring};

const BCS: Engine = Engine::Bcs;
/// Bytes that an entry of a root maps.
const SPAN: u64 = 1 << 39;
/// Where a page lies that batches store into, and the flag that they wait for.
const RESULT: u64 = 0x40_0000;
const FLAG: u64 = 0x50_0000;

/// A blitter context whose process has a page to store into and a flag.
struct Bench {
    m: Machine,
    d: Driver,
    c: Context,
    result: Gpa,
    flag: Gpa,
}

impl Bench {
    fn new() -> Self {
        let mut m = Machine::new();
        let id = m.add_vm(1);
        let mut d = Driver::probe(&mut m, 1, id);
        let c = d.context(&mut m, BCS);
        let pages = d.pages(2);
        let (result, flag) = (pages[0], pages[1]);
        let mut bench = Self { m, d, c, result, flag };
        bench.map(RESULT, result);
        bench.map(FLAG, flag);
        bench
    }

    fn map(&mut self, va: u64, page: Gpa) {
        self.d.map_process(&mut self.m, self.c.pml4, va & 0xFFFF_FFFF_FFFF, page);
    }

    /// The entry of the root that the context's window has now.
    fn place(&self) -> Option<u64> {
        let slots = &self.m.gvt.vgpu(self.d.id.index()).unwrap().engines.get(BCS).slots;
        let window = slots.iter().flatten().find(|slot| slot.lrca == self.c.lrca)?.window.as_ref()?;
        window.address().map(|PpgttAddr(at)| at / SPAN)
    }

    /// What lies in the context's arena.
    fn arena(&mut self) -> Vec<u32> {
        let slots = &self.m.gvt.vgpu(self.d.id.index()).unwrap().engines.get(BCS).slots;
        let arena = slots.iter().flatten().find(|slot| slot.lrca == self.c.lrca).unwrap().arena.as_ref().unwrap();
        let mut dwords = vec![0; arena.bytes() as usize / 4];
        arena.read(&mut self.m.host, 0, &mut dwords);
        dwords
    }

    /// Submits a batch, without waiting for it.
    fn begin(&mut self, commands: &[u32]) -> u32 {
        batch::write(&mut self.d, &mut self.m, &self.c, BATCH, commands);
        self.start()
    }

    fn start(&mut self) -> u32 {
        let seqno = self.d.emit(&mut self.m, &mut self.c, &Driver::batch_start(BATCH));
        self.d.submit(&mut self.m, &[&self.c]);
        seqno
    }

    /// Lets a batch run to where it waits.
    fn settle(&mut self) {
        assert!(self.d.run_until(&mut self.m, 3_000_000, |d, _| d.ready(BCS)), "{:?}", self.m.gvt.take_report());
        self.m.run_for(300_000);
    }

    fn finish(&mut self, seqno: u32) {
        self.m.host.guest_write32(self.d.vm, self.flag, 1);
        assert!(self.d.run_until(&mut self.m, 10_000_000, |d, _| d.idle(BCS)), "{:?}", self.m.gvt.take_report());
        assert_eq!((self.d.stored(&self.m, &self.c), self.m.gvt.take_report()), (seqno, None));
        self.m.host.guest_write32(self.d.vm, self.flag, 0);
    }

    fn run(&mut self, commands: &[u32]) {
        let seqno = self.begin(commands);
        self.finish(seqno);
    }

    fn at(&self, page: Gpa) -> u32 {
        self.m.host.guest_read32(self.d.vm, page)
    }
}

fn wait() -> Vec<u32> {
    let wait = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_POLL | 5 << mi::SEMAPHORE_COMPARE_SHIFT;
    vec![wait, 0, FLAG as u32, 0]
}

/// All that writes to an address: stores, atomics, and on the blitter a fill of some rows.
fn writes(engine: Engine, va: u64) -> Vec<u32> {
    let (low, high) = (va as u32, (va >> 32) as u32);
    let mut commands = store(va, 0xBAD);
    commands.extend([mi::with_length(mi::STORE_DATA_IMM, 5) | mi::STORE_QWORD, low + 8, high, 0xBAD, 0xBAD]);
    commands.extend([mi::with_length(mi::ATOMIC, 11) | mi::ATOMIC_INLINE | 4 << 8, low + 16, high]);
    commands.extend([0xBAD; 8]);
    commands.extend([mi::with_length(mi::ATOMIC, 3) | 5 << 8, low + 32, high]);
    if engine == BCS {
        let fill = blt::with_length(blt::XY_COLOR_BLT, 7) | blt::WRITE_ALPHA | blt::WRITE_RGB;
        commands.extend([fill, 3 << 24 | 0xF0 << 16 | 64, 0, 8 << 16 | 16, low, high, 0xBAD]);
    }
    commands
}

fn window_va(place: u64) -> u64 {
    pte::canonical(PpgttAddr(place * SPAN))
}

/// By batch and ring of the blitter, and from the render engine with the same page tables.
#[test]
fn what_is_written_to_the_window_is_lost() {
    let mut b = Bench::new();
    let page = b.d.pages(1)[0];
    b.map(RESULT + 0x1000, page);
    let window = window_va(509);
    // Each of the ways writes where it may, or the test could not fail.
    let attack = [wait(), writes(BCS, window), writes(BCS, window + 0x800), store(RESULT, 7)].concat();
    let sound = writes(BCS, RESULT + 0x1000);
    let seqno = b.begin(&[&sound[..], &attack].concat());
    b.settle();
    assert_eq!(b.place(), Some(509));
    assert_eq!([0, 8, 16, 32].map(|at| b.at(Gpa(page.0 + at))), [0xBAD, 0xBAD, 0xBAD, 0xBAD]);
    let before = b.arena();
    // From the render engine, while the copy waits.
    let mut r = b.d.context(&mut b.m, Engine::Rcs);
    r.pml4 = b.c.pml4;
    b.d.rebuild(&mut b.m, &r);
    batch::write(
        &mut b.d,
        &mut b.m,
        &r,
        BATCH + 0x10_0000,
        &[writes(Engine::Rcs, window), store(RESULT + 4, 7)].concat(),
    );
    assert!(b.d.execute(&mut b.m, &mut r, &Driver::batch_start(BATCH + 0x10_0000)));
    assert_eq!(b.at(Gpa(b.result.0 + 4)), 7);
    assert!(b.arena() == before, "the render engine wrote to the copy");
    b.finish(seqno);
    assert_eq!(b.at(b.result), 7);
    assert!(b.arena() == before, "the batch wrote to its copy");
    // The ring's operands are the process', too.
    let ring = [writes(BCS, window), writes(BCS, window + 0x800), Driver::batch_start(BATCH)].concat();
    let seqno = b.d.emit(&mut b.m, &mut b.c, &ring);
    b.d.submit(&mut b.m, &[&b.c]);
    b.settle();
    let before = b.arena();
    b.finish(seqno);
    assert!(b.arena() == before, "the ring wrote to the copy");
}

/// A guest that comes to use the window's entry while the context runs gets it when the context has left: other engines
/// at once, the blitter with the next submission, whose window lies elsewhere then. Other entries are followed at once.
#[test]
fn a_guest_that_comes_to_use_the_windows_place_gets_it() {
    let mut b = Bench::new();
    let (mine, other) = (b.d.pages(1)[0], b.d.pages(1)[0]);
    let (taken, free) = (window_va(509), 300 * SPAN);
    let free = pte::canonical(PpgttAddr(free));
    let seqno = b.begin(&[wait(), store(taken, 5), store(free, 6), store(RESULT, 7)].concat());
    b.settle();
    assert_eq!(b.place(), Some(509));
    b.map(taken, mine);
    b.map(free, other);
    b.d.write(&mut b.m, BCS.info().tlb, 1);
    let mut r = b.d.context(&mut b.m, Engine::Rcs);
    r.pml4 = b.c.pml4;
    b.d.rebuild(&mut b.m, &r);
    batch::write(&mut b.d, &mut b.m, &r, BATCH + 0x10_0000, &store(taken + 4, 4));
    assert!(b.d.execute(&mut b.m, &mut r, &Driver::batch_start(BATCH + 0x10_0000)));
    assert_eq!(b.at(Gpa(mine.0 + 4)), 4);
    b.finish(seqno);
    assert_eq!([mine, other, b.result].map(|page| b.at(page)), [0, 6, 7]);
    // It has it before the next submission.
    b.run(&[store(taken, 8), store(RESULT, 9)].concat());
    assert_eq!(([mine, b.result].map(|page| b.at(page)), b.place()), ([8, 9], Some(508)));
    // And after it has given it back.
    b.m.host.guest_write64(b.d.vm, Gpa(b.c.pml4.0 + 8 * 509), 0);
    let flushes = |b: &Bench| b.m.gvt.stats(b.d.id).unwrap().tlb_flushes;
    let before = flushes(&b);
    b.run(&store(RESULT, 10));
    assert_eq!((b.at(b.result), b.place()), (10, Some(509)));
    // Each time that entries of the root changed its engine forgot them first, which not every hardware does by itself.
    let after = flushes(&b);
    assert_eq!(after, before + 1);
    b.run(&store(RESULT, 11));
    assert_eq!((b.at(b.result), flushes(&b)), (11, after));
}

/// i915 leads all that it does not use to one tree; a root without a free entry has no window.
#[test]
fn a_place_is_free_where_a_guest_has_nothing() {
    let mut b = Bench::new();
    let trees = b.d.pages(3);
    let lead = |b: &mut Bench, entries: core::ops::Range<u64>, count: u64| {
        for i in entries {
            let tree = trees[(i % count) as usize].0 | 3;
            b.m.host.guest_write64(b.d.vm, Gpa(b.c.pml4.0 + 8 * i), tree);
        }
    };
    lead(&mut b, 1..512, 1);
    lead(&mut b, 505..512, 3);
    b.run(&store(RESULT, 7));
    // 507 is a multiple of three, as the filler is the first tree.
    assert_eq!((b.at(b.result), b.place()), (7, Some(507)));
    lead(&mut b, 1..512, 3);
    let seqno = b.start();
    let report = b.m.gvt.take_report().map(|report| report.cause);
    assert!(matches!(report, Some(Cause::Submission { what, .. }) if what.contains("no free place")), "{report:?}");
    b.m.run_for(1_000_000);
    assert!(b.d.stored(&b.m, &b.c) < seqno);
    // What needs no copy runs.
    b.d.reset_engine(&mut b.m, BCS);
    let (d, m, c) = (&mut b.d, &mut b.m, &mut b.c);
    d.rebuild(m, c);
    assert!(d.execute(m, c, &[]));
}

/// Larger arenas take the place of smaller ones; what the engine remembers of the window is forgotten.
#[test]
fn a_window_shows_the_arena_that_there_is() {
    let mut b = Bench::new();
    for (i, pages) in [1_u32, 40, 3, 200, 40].into_iter().enumerate() {
        let long: Vec<u32> = (0..pages).flat_map(|_| [vec![0; 1020], store(RESULT, i as u32)].concat()).collect();
        let mut at = BATCH + 0x100_0000;
        for part in [&long[..], &[mi::header(mi::BATCH_BUFFER_END)]].concat().chunks(1024) {
            let page = b.d.pages(1)[0];
            b.map(at, page);
            let bytes: Vec<u8> = part.iter().flat_map(|dword| dword.to_le_bytes()).collect();
            b.m.host.guest_write(b.d.vm, page, &bytes);
            at += 4096;
        }
        b.d.write(&mut b.m, BCS.info().tlb, 1);
        b.run(&[store(RESULT + 4, i as u32), batch::jump(BATCH + 0x100_0000)].concat());
        assert_eq!([0, 4].map(|at| b.at(Gpa(b.result.0 + at))), [i as u32; 2]);
    }
}

/// What a batch with a second level does, up to a place where it waits there and on to its end: as a digest.
fn two_levels(interrupt: impl FnOnce(&mut Bench)) -> Vec<u32> {
    let mut b = Bench::new();
    let second = BATCH + 0x2_0000;
    let call =
        |at: u64| vec![mi::with_length(mi::BATCH_BUFFER_START, 3) | mi::BB_PPGTT | mi::BB_SECOND_LEVEL, at as u32, 0];
    let fill = |row: u32, color: u32| {
        let fill = blt::with_length(blt::XY_COLOR_BLT, 7) | blt::WRITE_ALPHA | blt::WRITE_RGB;
        vec![fill, 3 << 24 | 0xF0 << 16 | 64, row << 16, (row + 2) << 16 | 16, RESULT as u32, 0, color]
    };
    let inner = [fill(2, 22), wait(), fill(4, 33), mi_add(RESULT + 0x800)].concat();
    batch::write(&mut b.d, &mut b.m, &b.c, second, &inner);
    let outer = [fill(0, 11), call(second), fill(6, 44), mi_add(RESULT + 0x804), call(second), mi_add(RESULT + 0x808)];
    let seqno = b.begin(&outer.concat());
    b.settle();
    interrupt(&mut b);
    b.finish(seqno);
    (0..1024).map(|i| b.at(Gpa(b.result.0 + 4 * i))).collect()
}

/// Adds one to a dword.
fn mi_add(va: u64) -> Vec<u32> {
    vec![mi::with_length(mi::ATOMIC, 3) | 5 << 8, va as u32, 0]
}

#[test]
fn a_batch_preempted_on_its_second_level_goes_on_there() {
    let digest = two_levels(|_| ());
    assert_eq!(digest[..16], [11; 16]);
    assert_eq!((digest[0x200], digest[0x201], digest[0x202]), (2, 1, 1));
    // By another VM.
    let evicted = two_levels(|b| {
        let id = b.m.add_vm(2);
        let mut rival = Driver::probe(&mut b.m, 2, id);
        let mut other = rival.context(&mut b.m, BCS);
        let at = batch::spin_until_released(&mut rival, &mut b.m, &other, BATCH);
        b.m.host.guest_write32(rival.vm, at, 1);
        assert!(rival.execute(&mut b.m, &mut other, &Driver::batch_start(BATCH)));
    });
    assert!(evicted == digest);
    // By its own guest, and then by another VM as well.
    let replaced = two_levels(|b| {
        let id = b.m.add_vm(2);
        let mut rival = Driver::probe(&mut b.m, 2, id);
        let mut third = rival.context(&mut b.m, BCS);
        let mut other = b.d.context(&mut b.m, BCS);
        let seqno = b.d.emit(&mut b.m, &mut other, &[]);
        b.d.submit(&mut b.m, &[&other]);
        let done = |d: &Driver, m: &Machine| d.stored(m, &other) == seqno && d.idle(BCS);
        assert!(b.d.run_until(&mut b.m, 3_000_000, done));
        let shown = [value::BB_ADDR, value::BB_STATE, value::SBB_ADDR, value::SBB_STATE];
        let shown = shown.map(|at| b.d.image_dword(&b.m, &b.c, at));
        let user = ring::BB_STATE_PPGTT;
        assert_eq!(shown, [(BATCH as u32 + 40) | 1, user, (BATCH as u32 + 0x2_001C) | 1, user]);
        assert!(rival.execute(&mut b.m, &mut third, &[]));
        b.d.submit(&mut b.m, &[&b.c]);
        b.settle();
        assert!(rival.execute(&mut b.m, &mut third, &[]));
    });
    assert!(replaced == digest);
}

/// What one process' batches left in an arena is not there for the next one that it serves.
#[test]
fn a_window_shows_no_batch_of_another_process() {
    const SECRET: u32 = 0x5EC2_E700;
    let mut b = Bench::new();
    let peek = |at: u64| vec![mi::with_length(mi::COPY_MEM_MEM, 5), RESULT as u32, 0, at as u32, (at >> 32) as u32];
    let secret = [vec![0; 600], store(RESULT + 4, SECRET)].concat();
    let at = window_va(509) + 4 * (600 + 3);
    // One's own can be read, or the test could not fail.
    b.run(&[secret.clone(), peek(at)].concat());
    assert_eq!(b.at(b.result), SECRET);
    b.run(&peek(at));
    assert_eq!(b.at(b.result), SECRET);
    // There are four places for contexts, so one of these follows another there.
    for _ in 0..6 {
        b.c = b.d.context(&mut b.m, BCS);
        for (va, page) in [(RESULT, b.result), (FLAG, b.flag)] {
            b.map(va, page);
        }
        b.run(&peek(at));
        assert_eq!(b.at(b.result), 0);
        b.run(&secret);
    }
}

/// A window and its root are the VM's frames: all of them go back.
#[test]
fn windows_go_with_their_vgpu() {
    let mut b = Bench::new();
    let before = b.m.host.frames_of(Owner::Vm(b.d.vm));
    b.run(&store(RESULT, 7));
    assert!(b.m.host.frames_of(Owner::Vm(b.d.vm)) > before);
    let (id, now) = (b.d.id, b.m.now());
    assert_eq!(b.m.gvt.destroy_vgpu(&mut b.m.host, id, now), Destroyed::Gone);
    assert_eq!(b.m.host.frames_of(Owner::Vm(b.d.vm)), 0);
}
