//! Shadows compared with an independent walk of the guest's tables.

use super::*;
use crate::host::Owner;
use crate::testing::FakeHost;
use gvt_defs::pte::{ADDRESS_MASK, PpgttEntry};
use gvt_defs::{PAGE_SIZE, PpgttAddr};

const VM: VmId = VmId(7);
/// RAM of the guest: 16 MiB.
const MIB: u64 = 16;
const FRAMES: u64 = MIB << 8;

struct Rig {
    host: FakeHost,
    ppgtt: Ppgtt,
    page: Hpa,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let mut host = FakeHost::new(96);
        host.add_vm(VmId(1), 8);
        host.add_vm(VM, MIB);
        let page = host.alloc_frame(Owner::Vm(VM)).unwrap();
        let ppgtt = Ppgtt::new(&mut host, VM, page, limits).unwrap();
        Self { host, ppgtt, page }
    }

    fn put(&mut self, table: u64, slot: u64, entry: u64) {
        self.host.guest_write64(VM, Gpa(table * PAGE_SIZE + slot * 8), entry);
    }

    /// Makes all slots of a table equal.
    fn fill(&mut self, table: u64, entry: u64) {
        self.host.guest_write(VM, Gpa(table * PAGE_SIZE), &[entry.to_le_bytes(); 512].concat());
    }

    fn sync(&mut self) -> Work {
        let ppgtt = &mut self.ppgtt;
        self.host.harvest(VM, &mut |dirty| {
            if let crate::host::Dirty::Guest(gfn) = dirty {
                ppgtt.mark(gfn);
            }
        });
        self.ppgtt.sync(&mut self.host)
    }

    fn flush(&mut self) {
        let now = self.ppgtt.generation();
        self.ppgtt.flushed(&mut self.host, now);
        assert!(!self.ppgtt.needs_flush());
    }

    /// Acquires until done, releasing the pin.
    fn root(&mut self, pml4: u64) -> Hpa {
        for _ in 0..100 {
            let shadow = self.ppgtt.acquire(&mut self.host, Gpa(pml4 * PAGE_SIZE));
            self.ppgtt.release(&mut self.host, shadow.pin);
            if !shadow.again {
                return shadow.root;
            }
            self.flush();
        }
        panic!("acquire asks for ever");
    }

    /// What the GPU finds: the leaf entry's frame of 4 KiB and flags.
    fn gpu(&self, root: Hpa, va: u64) -> (Hpa, u64) {
        let mut table = root;
        for level in (0..4).rev() {
            let slot = va >> (12 + 9 * level) & 511;
            let mut raw = [0; 8];
            assert!(self.host.ram.read(Hpa(table.0 + slot * 8), &mut raw));
            let entry = u64::from_le_bytes(raw);
            assert_eq!(entry & 1, 1, "a shadow entry that is not present: {va:#x} level {level}");
            let frame = entry & ADDRESS_MASK;
            if level == 0 {
                return (Hpa(frame), entry & 0xFFF);
            }
            if level == 1 && entry & PpgttEntry::PAGE_SIZE != 0 {
                let flags = entry & 0x1F | entry >> 5 & 0x80;
                return (Hpa(frame & !0x1F_FFFF | va & 0x1F_F000), flags);
            }
            assert!(self.host.owner_of(Hpa(frame)) == Some(Owner::Vm(VM)), "a shadow table outside the VM's frames");
            table = Hpa(frame);
        }
        unreachable!()
    }

    /// What the guest's tables say: frame and flags, `None` for scratch. Written from the datasheet alone.
    fn guest(&self, pml4: u64, va: u64) -> Option<(Hpa, u64)> {
        let mut table = pml4;
        let mut ips = false;
        for level in (0..4).rev() {
            let mut slot = va >> (12 + 9 * level) & 511;
            if ips {
                slot &= !15;
            }
            let at = self.host.hpa(VM, Gpa(table * PAGE_SIZE + slot * 8))?;
            let mut raw = [0; 8];
            self.host.ram.read(at, &mut raw);
            let entry = u64::from_le_bytes(raw);
            if entry & 1 == 0 || entry >> 39 & 0x1FFF != 0 {
                return None;
            }
            let frame = entry >> 12 & 0x7FF_FFFF;
            let (gfn, flags) = match level {
                0 if ips => (frame & !15 | va >> 12 & 15, entry & 0x9B),
                0 => (frame, entry & 0x9B),
                1 if entry & 0x80 != 0 => (frame & !511 | va >> 12 & 511, entry & 0x1B | entry >> 5 & 0x80),
                2 | 3 if entry & 0x80 != 0 => return None,
                _ => {
                    if frame >= FRAMES {
                        return None;
                    }
                    ips = level == 1 && entry & 0x800 != 0;
                    table = frame;
                    continue;
                }
            };
            return self.host.hpa(VM, Gpa(gfn * PAGE_SIZE)).map(|hpa| (hpa, flags));
        }
        None
    }

    fn check(&self, pml4: u64, root: Hpa, va: u64) {
        let (frame, flags) = self.gpu(root, va);
        match self.guest(pml4, va) {
            Some((hpa, expected)) => assert_eq!((frame, flags), (hpa, expected), "{va:#x}"),
            None => assert_eq!(frame, self.page, "{va:#x} must lead to scratch"),
        }
    }
}

/// PML4 at frame 1, PDP 2, PD 3, PT 4; i915's shape: all unused entries lead to one scratch tree at frames 10 to 13.
fn i915(rig: &mut Rig) {
    for (table, below) in [(10, 11), (11, 12), (12, 13), (13, 14)] {
        rig.fill(table, (below * PAGE_SIZE) | 3);
    }
    for (table, below, scratch) in [(1, 2, 11), (2, 3, 12), (3, 4, 13)] {
        rig.fill(table, (scratch * PAGE_SIZE) | 3);
        rig.put(table, 0, (below * PAGE_SIZE) | 3);
    }
    rig.fill(4, (14 * PAGE_SIZE) | 3);
}

#[test]
fn shared_scratch_tree_costs_one_table_a_level() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    let root = rig.root(1);
    assert_eq!(rig.ppgtt.tables(), 7);
    for va in [0, 0x1000, 0x1F_F000, 0x20_0000, 1 << 30, 1 << 39, 0xFFFF_FFFF_F000] {
        rig.check(1, root, va);
    }
    // A second address space shares the scratch tree.
    rig.fill(21, (11 * PAGE_SIZE) | 3);
    let root = rig.root(21);
    assert_eq!(rig.ppgtt.tables(), 8);
    rig.check(21, root, 0x1234_5000);
}

#[test]
fn a_table_of_512_stores_is_one_exit_and_one_comparison() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    let root = rig.root(1);
    rig.sync();
    rig.flush();
    let exits = rig.host.track_exits;
    for slot in 0..512 {
        rig.put(4, slot, ((100 + slot) * PAGE_SIZE) | 3);
    }
    assert_eq!(rig.host.track_exits - exits, 1);
    assert_eq!(rig.sync(), Work { tables: 1, entries: 512 });
    assert!(rig.ppgtt.needs_flush());
    for slot in 0..512 {
        rig.check(1, root, slot << 12);
    }
    rig.flush();
    assert_eq!(rig.sync(), Work::default());
    // The same values again: compared, nothing written, nothing to flush.
    rig.put(4, 9, (109 * PAGE_SIZE) | 3);
    assert_eq!(rig.sync(), Work { tables: 1, entries: 0 });
    assert!(!rig.ppgtt.needs_flush());
}

#[test]
fn large_and_64k_pages() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    // 2 MiB, attributes kept; VM RAM begins 2 MiB aligned, so it stays one entry.
    rig.put(3, 1, 0x40_0000 | 1 << 12 | 0x93);
    // 2 MiB at the end of RAM and beyond: partly scratch.
    rig.put(3, 2, (MIB << 20) | 0x83);
    // A 64 KiB table.
    rig.put(3, 3, (5 * PAGE_SIZE) | 0x803);
    for slot in 0..512 {
        rig.put(5, slot, 0x12_3000 | 1 | (slot & 16) >> 3);
    }
    let root = rig.root(1);
    for va in (0x20_0000..0xA0_0000).step_by(0x1000) {
        rig.check(1, root, va);
    }
    let (_, flags) = rig.gpu(root, 0x60_0000);
    assert_eq!(flags & 2, 0, "read-only stays read-only");
    // The unused 15 of 16 entries do not count.
    rig.put(5, 17, u64::MAX);
    let work = rig.sync();
    assert_eq!(work.entries, 0);
    // From 64 KiB to 4 KiB pages in the same table.
    rig.put(3, 3, (5 * PAGE_SIZE) | 3);
    rig.put(5, 17, 0x77_7003);
    rig.sync();
    for va in (0x60_0000..0x80_0000).step_by(0x1000) {
        rig.check(1, root, va);
    }
}

#[test]
fn a_large_page_that_is_not_contiguous_is_split() {
    let mut rig = Rig::new(Limits::default());
    // VM RAM lies 8 MiB above the frames: shift it off the alignment with a third VM.
    let odd = VmId(9);
    rig.host.add_vm(VmId(8), 1);
    rig.host.add_vm(odd, 8);
    let page = rig.host.alloc_frame(Owner::Vm(odd)).unwrap();
    let mut ppgtt = Ppgtt::new(&mut rig.host, odd, page, Limits::default()).unwrap();
    for (table, entry) in [(1u64, (2 * PAGE_SIZE) | 3), (2, (3 * PAGE_SIZE) | 3), (3, 0x20_0000 | 0x83)] {
        rig.host.guest_write64(odd, Gpa(table * PAGE_SIZE), entry);
    }
    let shadow = ppgtt.acquire(&mut rig.host, Gpa(PAGE_SIZE));
    assert_eq!(ppgtt.tables(), 4);
    let mut table = shadow.root;
    for va in [0, 0, 0, 5] {
        let mut raw = [0; 8];
        rig.host.ram.read(Hpa(table.0 + va * 8), &mut raw);
        table = Hpa(u64::from_le_bytes(raw) & ADDRESS_MASK);
    }
    assert_eq!(Some(table), rig.host.hpa(odd, Gpa(0x20_5000)));
    ppgtt.release(&mut rig.host, shadow.pin);
    ppgtt.destroy_all(&mut rig.host);
    assert_eq!(rig.host.frames_of(Owner::Vm(odd)), 1);
}

#[test]
fn cycles_end_by_level() {
    let mut rig = Rig::new(Limits::default());
    rig.fill(1, PAGE_SIZE | 3);
    let root = rig.root(1);
    assert_eq!(rig.ppgtt.tables(), 4);
    let va = 0x1234_5678_9000;
    rig.check(1, root, va);
    // Every reading of the page follows one store to it.
    rig.put(1, 3, (5 * PAGE_SIZE) | 3);
    // Four compared, and page 5 read in three ways.
    assert_eq!(rig.sync().tables, 7);
    rig.check(1, root, 3 << 12);
    rig.check(1, root, va);
    rig.ppgtt.destroy(&mut rig.host, Gpa(PAGE_SIZE));
    assert_eq!(rig.ppgtt.tables(), 0);
    assert!(!rig.host.is_tracked(VM, Gfn(1)));
}

#[test]
fn foreign_frames_lead_to_scratch() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    let foreign = (FRAMES + 5) * PAGE_SIZE;
    rig.put(4, 0, foreign | 3);
    rig.put(4, 1, 1 << 38 | 3);
    rig.put(4, 2, 1 << 39 | 3);
    rig.put(3, 5, foreign | 3);
    rig.put(2, 5, foreign | 3);
    rig.put(1, 5, foreign | 3);
    rig.put(2, 6, 0x83);
    let root = rig.root(1);
    for va in [0, 0x1000, 0x2000, 5 << 21, 5 << 30, 5 << 39, 6 << 30] {
        assert_eq!(rig.gpu(root, va).0, rig.page);
    }
    // A root outside RAM is the scratch root.
    let shadow = rig.ppgtt.acquire(&mut rig.host, Gpa(foreign));
    assert_eq!(rig.gpu(shadow.root, 0).0, rig.page);
    rig.ppgtt.release(&mut rig.host, shadow.pin);
}

#[test]
fn garbage_is_scratched_untracked_and_comes_back() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    let root = rig.root(1);
    // The table page is reused for data: all ones (GVT-g's "type 9").
    rig.fill(4, u64::MAX);
    rig.sync();
    assert!(!rig.host.is_tracked(VM, Gfn(4)));
    assert_eq!(rig.gpu(root, 0).0, rig.page);
    let exits = rig.host.track_exits;
    rig.fill(4, 0x0123_4567_89AB_CDEF);
    assert_eq!(rig.host.track_exits, exits, "data that is no table costs no exit");
    rig.root(1);
    assert!(!rig.host.is_tracked(VM, Gfn(4)));
    // It becomes a table again.
    rig.fill(4, (77 * PAGE_SIZE) | 3);
    assert_eq!(rig.root(1), root);
    assert!(rig.host.is_tracked(VM, Gfn(4)));
    rig.check(1, root, 0x5000);
    // A directory of garbage drops its children.
    rig.fill(3, u64::MAX);
    rig.sync();
    rig.check_scratch(root, 0x5000);
    assert!(!rig.host.is_tracked(VM, Gfn(4)));
}

impl Rig {
    fn check_scratch(&self, root: Hpa, va: u64) {
        assert_eq!(self.gpu(root, va).0, self.page, "{va:#x}");
    }
}

#[test]
fn frames_stay_until_flushed_and_pinned_roots_until_released() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    let shadow = rig.ppgtt.acquire(&mut rig.host, Gpa(PAGE_SIZE));
    rig.ppgtt.destroy(&mut rig.host, Gpa(PAGE_SIZE));
    assert_eq!(rig.ppgtt.tables(), 7, "an engine uses it");
    rig.check(1, shadow.root, 0);
    rig.ppgtt.release(&mut rig.host, shadow.pin);
    assert_eq!(rig.ppgtt.tables(), 0);
    assert_eq!(rig.ppgtt.retired(), 7);
    assert!(rig.ppgtt.needs_flush());
    assert_eq!(rig.host.owner_of(shadow.root), Some(Owner::Vm(VM)), "a TLB may still lead there");
    rig.flush();
    assert_eq!(rig.host.owner_of(shadow.root), None);
    let page = rig.page;
    rig.ppgtt.destroy_all(&mut rig.host);
    rig.host.free_frame(Owner::Vm(VM), page);
    assert_eq!(rig.host.frames_of(Owner::Vm(VM)), 0);
}

#[test]
fn a_flush_frees_only_what_was_retired_before_it() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    rig.root(1);
    let before = rig.ppgtt.generation();
    rig.put(3, 0, 0);
    rig.sync();
    assert_eq!(rig.ppgtt.retired(), 1);
    rig.ppgtt.flushed(&mut rig.host, before);
    assert_eq!(rig.ppgtt.retired(), 1);
    rig.flush();
    assert_eq!(rig.ppgtt.retired(), 0);
}

#[test]
fn out_of_quota_evicts_idle_roots_and_never_fails() {
    let mut rig = Rig::new(Limits { tables: 12, work: 512 });
    i915(&mut rig);
    rig.root(1);
    // A second space with six tables of its own does not fit beside the first.
    for (table, below) in [(31, 32), (32, 33)] {
        rig.fill(table, 0);
        rig.put(table, 0, (below * PAGE_SIZE) | 3);
    }
    rig.fill(33, 0);
    for slot in 0..6 {
        rig.put(33, slot, ((40 + slot) * PAGE_SIZE) | 3);
        rig.fill(40 + slot, ((200 + slot) * PAGE_SIZE) | 3);
    }
    let root = rig.root(31);
    for slot in 0..6 {
        rig.check(31, root, slot << 21);
    }
    // Hostile: more distinct tables than there are frames. What does not fit is scratch.
    for slot in 0..512 {
        rig.put(33, slot, ((40 + slot) * PAGE_SIZE) | 3);
    }
    rig.sync();
    let root = rig.root(31);
    rig.check(31, root, 0);
    rig.check_scratch(root, 500 << 21);
    // And when it asks for less again, all of it is there.
    for slot in 6..512 {
        rig.put(33, slot, 0);
    }
    rig.sync();
    rig.flush();
    let root = rig.root(31);
    for slot in 0..7 {
        rig.check(31, root, slot << 21);
    }
}

#[test]
fn the_hosts_quota_is_respected_and_frames_come_back() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    let base = rig.host.frames_of(Owner::Vm(VM));
    rig.host.set_quota(VM, base + 9);
    let root = rig.root(1);
    rig.check(1, root, 0);
    rig.check_scratch(root, 1 << 39);
    rig.host.set_quota(VM, usize::MAX);
    rig.flush();
    // Nothing was retired, so nothing tells that there are frames again; a change does.
    rig.ppgtt.destroy(&mut rig.host, Gpa(PAGE_SIZE));
    rig.flush();
    let root = rig.root(1);
    rig.check(1, root, 1 << 39);
}

#[test]
fn work_in_one_call_is_bounded() {
    let mut rig = Rig::new(Limits { tables: 4096, work: 16 });
    rig.fill(1, (2 * PAGE_SIZE) | 3);
    rig.fill(2, 0);
    rig.put(2, 0, (3 * PAGE_SIZE) | 3);
    rig.fill(3, 0);
    for slot in 0..100 {
        rig.put(3, slot, ((100 + slot) * PAGE_SIZE) | 3);
        rig.fill(100 + slot, ((300 + slot) * PAGE_SIZE) | 3);
    }
    let first = rig.ppgtt.acquire(&mut rig.host, Gpa(PAGE_SIZE));
    assert!(first.again);
    assert_eq!(rig.ppgtt.tables(), 16);
    rig.ppgtt.release(&mut rig.host, first.pin);
    let root = rig.root(1);
    for slot in 0..100 {
        rig.check(1, root, slot << 21);
    }
}

#[test]
fn random_stores_agree_with_a_walk_of_the_guests_tables() {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    const SLOTS: [u64; 4] = [0, 1, 16, 511];
    for limits in [Limits::default(), Limits { tables: 4096, work: 3 }, Limits { tables: 64, work: 16 }] {
        let mut rig = Rig::new(limits);
        for round in 0..300 {
            for _ in 0..next() % 12 {
                let table = 1 + next() % 14;
                let target = match next() % 8 {
                    0 => next() % (2 * FRAMES),
                    1..6 => 1 + next() % 14,
                    _ => next() % FRAMES,
                };
                let flags = match next() % 8 {
                    0 => 0,
                    1 => 1,
                    2 => 0x83,
                    3 => 0x803,
                    _ => 3,
                };
                let high = if next() % 32 == 0 { 1 << 40 } else { 0 };
                rig.put(table, SLOTS[next() as usize % 4], (target * PAGE_SIZE) | flags | high | next() & 0x18);
            }
            rig.sync();
            match next() % 6 {
                0 => rig.ppgtt.destroy(&mut rig.host, Gpa((1 + next() % 14) * PAGE_SIZE)),
                1 => rig.flush(),
                _ => {}
            }
            let pml4 = 1 + next() % 14;
            let root = rig.root(pml4);
            // With few tables something else may have been given up; the one just acquired is whole or starved.
            for a in SLOTS {
                for b in SLOTS {
                    for c in SLOTS {
                        for d in SLOTS {
                            rig.check(pml4, root, a << 39 | b << 30 | c << 21 | d << 12);
                        }
                    }
                }
            }
            if round == 200 {
                rig.ppgtt.clear(&mut rig.host);
                assert_eq!(rig.ppgtt.tables(), 0);
            }
        }
        let page = rig.page;
        rig.ppgtt.destroy_all(&mut rig.host);
        rig.host.free_frame(Owner::Vm(VM), page);
        assert_eq!(rig.host.frames_of(Owner::Vm(VM)), 0);
    }
}

/// CVE-2022-3707 was a double free on the failure path of a split: here every allocation may fail.
#[test]
fn failing_allocations_cost_mappings_and_nothing_else() {
    let mut state = 0xD1B5_4A32_D192_ED03u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut rig = Rig::new(Limits { tables: 40, work: 8 });
    let mut scratched = 0;
    for _ in 0..1500 {
        for _ in 0..next() % 6 {
            let (table, slot) = (1 + next() % 30, [0, 1, 16, 511][next() as usize % 4]);
            let flags = [3, 3, 3, 0x83, 0x803, 1, 0][next() as usize % 7];
            rig.put(table, slot, ((1 + next() % 30) * PAGE_SIZE) | flags);
        }
        let spare = (next() % 12) as usize;
        let now = rig.host.frames_of(Owner::Vm(VM));
        rig.host.set_quota(VM, now + spare);
        rig.sync();
        let pml4 = 1 + next() % 30;
        let shadow = rig.ppgtt.acquire(&mut rig.host, Gpa(pml4 * PAGE_SIZE));
        for va in [0u64, 1 << 12, 1 << 21, 1 << 30, 1 << 39, 0x1001_0000, 0xFFFF_FFFF_F000] {
            let (frame, flags) = rig.gpu(shadow.root, va);
            if frame == rig.page {
                scratched += 1;
            } else {
                assert_eq!(rig.guest(pml4, va), Some((frame, flags)), "{va:#x}");
            }
        }
        if next() % 3 == 0 {
            rig.ppgtt.destroy(&mut rig.host, Gpa((1 + next() % 30) * PAGE_SIZE));
        }
        rig.ppgtt.release(&mut rig.host, shadow.pin);
        if next() % 4 == 0 {
            rig.flush();
        }
    }
    assert!(scratched > 100);
    // With room again, a guest gets everything.
    rig.host.set_quota(VM, usize::MAX);
    rig.ppgtt.clear(&mut rig.host);
    rig.flush();
    let root = rig.root(3);
    for va in [0u64, 1 << 12, 1 << 21, 1 << 30, 1 << 39] {
        rig.check(3, root, va);
    }
    let page = rig.page;
    rig.ppgtt.destroy_all(&mut rig.host);
    rig.host.free_frame(Owner::Vm(VM), page);
    assert_eq!(rig.host.frames_of(Owner::Vm(VM)), 0);
}

#[test]
fn a_guest_that_makes_garbage_for_ever_uses_no_more_memory() {
    let mut rig = Rig::new(Limits { tables: 16, work: 16 });
    i915(&mut rig);
    rig.root(1);
    for _ in 0..200 {
        // A directory with a page table of garbage, and away again, without ever submitting.
        rig.fill(40, u64::MAX);
        rig.put(3, 9, (40 * PAGE_SIZE) | 3);
        rig.sync();
        rig.put(3, 9, 0);
        rig.sync();
        rig.flush();
        assert!(rig.ppgtt.garbage.len() <= 16);
    }
    let root = rig.root(1);
    rig.check(1, root, 0);
}

/// Registers that harvest and do not sync, in a loop.
#[test]
fn a_guest_that_writes_tables_for_ever_without_a_sync_uses_no_more_memory() {
    let mut rig = Rig::new(Limits { tables: 16, work: 16 });
    i915(&mut rig);
    let root = rig.root(1);
    for round in 0..2000 {
        for table in [1, 2, 3, 4, 10, 11, 12, 13] {
            rig.put(table, 511, round << 12 | 2);
            let ppgtt = &mut rig.ppgtt;
            rig.host.harvest(VM, &mut |dirty| {
                if let crate::host::Dirty::Guest(gfn) = dirty {
                    assert!(ppgtt.mark(gfn));
                }
            });
        }
        assert!(rig.ppgtt.waiting() <= 16, "{}", rig.ppgtt.waiting());
    }
    rig.put(4, 7, (55 * PAGE_SIZE) | 3);
    rig.sync();
    rig.check(1, root, 0x7000);
    assert_eq!(rig.ppgtt.waiting(), 0);
}

#[test]
fn tables_that_wait_for_a_flush_that_never_comes_do_not_grow_in_number() {
    let mut rig = Rig::new(Limits { tables: 16, work: 16 });
    i915(&mut rig);
    rig.root(1);
    for _ in 0..200 {
        rig.put(3, 9, (40 * PAGE_SIZE) | 3);
        rig.sync();
        rig.put(3, 9, 0);
        rig.sync();
        assert!(rig.ppgtt.retired() + rig.ppgtt.tables() <= 32, "{}", rig.ppgtt.retired());
    }
    // It comes after all: the guest gets everything.
    rig.put(3, 9, (40 * PAGE_SIZE) | 3);
    rig.put(40, 3, (55 * PAGE_SIZE) | 3);
    rig.sync();
    rig.flush();
    let root = rig.root(1);
    rig.check(1, root, 9 << 21 | 3 << 12);
}

#[test]
fn guest_walk_matches_the_shadow() {
    let mut rig = Rig::new(Limits::default());
    i915(&mut rig);
    rig.put(4, 7, (55 * PAGE_SIZE) | 3);
    let at = |rig: &mut Rig, va| rig.ppgtt.gpa(&mut rig.host, Gpa(PAGE_SIZE), PpgttAddr(va));
    assert_eq!(at(&mut rig, 0x7123), Some(Gpa(55 * PAGE_SIZE + 0x123)));
    assert_eq!(at(&mut rig, 0x8000), Some(Gpa(14 * PAGE_SIZE)));
    rig.put(4, 7, 0);
    assert_eq!(at(&mut rig, 0x7123), None);
}
