//! The global table, and both tables together.

use super::*;
use crate::hw::{Aperture, ApertureAccess};
use crate::testing::FakeHost;
use gvt_defs::pte::GgttPte;
use std::collections::BTreeMap;

const VM: VmId = VmId(3);
const OTHER: VmId = VmId(4);
const APERTURE: GgttAddr = GgttAddr(0x0800_0000);
const HIDDEN: GgttAddr = GgttAddr(0x4000_0000);
const BAR_TABLE: u32 = reg::GGTT_OFFSET as u32;

#[derive(Default)]
struct FakeHw {
    ptes: BTreeMap<u32, u64>,
    writes: u64,
    flushes: u64,
}

impl Hw for FakeHw {
    fn config_read(&mut self, _: u16) -> u32 {
        0
    }
    fn config_write(&mut self, _: u16, _: u32) {}
    fn read(&mut self, _: u32) -> u32 {
        0
    }
    fn write(&mut self, offset: u32, _: u32) {
        assert_eq!(offset, reg::GFX_FLSH_CNTL);
        self.flushes += 1;
    }
    fn ggtt_read(&mut self, index: u32) -> u64 {
        self.ptes.get(&index).copied().unwrap_or(0)
    }
    fn ggtt_write(&mut self, index: u32, pte: u64) {
        self.writes += 1;
        self.ptes.insert(index, pte);
    }
    fn ggtt_entries(&mut self) -> u32 {
        1 << 20
    }
    fn aperture(&mut self) -> Aperture {
        Aperture { base: 0, size: 512 << 20, access: ApertureAccess::Mappable }
    }
}

struct Rig {
    host: FakeHost,
    hw: FakeHw,
    gtt: Gtt,
}

impl Rig {
    fn new(aperture_bytes: u32, hidden_bytes: u32) -> Self {
        let mut host = FakeHost::new(96);
        host.add_vm(OTHER, 8);
        host.add_vm(VM, 16);
        let mut hw = FakeHw::default();
        let partition = Partition::new(APERTURE, aperture_bytes, HIDDEN, hidden_bytes).unwrap();
        let gtt = Gtt::new(&mut host, &mut hw, VM, partition, Limits::default()).unwrap();
        Self { host, hw, gtt }
    }

    /// The guest's CPU stores an entry: without an exit where the page is mapped, else trapped.
    fn store(&mut self, index: u32, pte: u64) {
        let offset = BAR_TABLE + index * 8;
        if self.host.register_page_write(VM, offset, &pte.to_le_bytes()).is_none() {
            self.gtt.mmio_write(&mut self.host, offset, 8, pte);
        }
    }

    fn sync(&mut self) -> Synced {
        self.gtt.sync(&mut self.host, &mut self.hw, &mut |_| ())
    }

    fn physical(&self, index: u32) -> Option<Hpa> {
        self.hw.ptes.get(&index).map(|pte| {
            assert!(GgttPte(*pte).present());
            GgttPte(*pte).frame()
        })
    }
}

#[test]
fn entries_are_translated_and_only_changes_written() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    let first = APERTURE.index();
    assert_eq!(rig.hw.writes, 2048);
    assert_eq!(rig.physical(first), Some(rig.gtt.scratch));
    rig.store(first, 0x5001);
    rig.store(first + 1, 0x6003);
    rig.store(HIDDEN.index() + 1023, 0x7001);
    let (flushes, writes) = (rig.hw.flushes, rig.hw.writes);
    let synced = rig.sync();
    assert_eq!((synced.ggtt_tables, synced.ggtt_entries), (2, 3));
    assert_eq!(rig.hw.writes - writes, 3);
    assert_eq!(rig.hw.flushes - flushes, 1);
    assert_eq!(rig.physical(first + 1), rig.host.hpa(VM, Gpa(0x6000)));
    assert_eq!(rig.physical(HIDDEN.index() + 1023), rig.host.hpa(VM, Gpa(0x7000)));
    assert_eq!(rig.gtt.ggtt.gpa(GgttAddr(APERTURE.0 + 0x1234)), Some(Gpa(0x6234)));
    // The same values, software bits changed: compared, not written, not flushed.
    rig.store(first, 0x5FFF);
    let synced = rig.sync();
    assert_eq!((synced.ggtt_tables, synced.ggtt_entries), (1, 0));
    assert_eq!(rig.hw.flushes - flushes, 1);
    // Cleared: scratch.
    rig.store(first, 0);
    rig.sync();
    assert_eq!(rig.physical(first), Some(rig.gtt.scratch));
    assert_eq!(rig.gtt.ggtt.gpa(APERTURE), None);
    assert_eq!(rig.sync(), Synced::default());
}

#[test]
fn what_is_not_the_guests_is_neither_written_nor_read() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    let before = rig.hw.ptes.clone();
    // Outside the partition: trapped, ignored, reads 0.
    for index in [0, APERTURE.index() - 1, APERTURE.index() + 1024, HIDDEN.index() + 1024, (1 << 20) - 1] {
        rig.store(index, 0x5001);
        assert_eq!(rig.gtt.mmio_read(&mut rig.host, BAR_TABLE + index * 8, 8), 0);
    }
    // Inside, to frames that are not RAM of the guest.
    for (i, frame) in [16u64 << 20, 1 << 38, 1 << 39, !0xFFFu64].into_iter().enumerate() {
        rig.store(APERTURE.index() + i as u32, frame | 1);
    }
    rig.sync();
    assert_eq!(rig.hw.ptes, before);
    assert!(rig.gtt.read(&mut rig.host, APERTURE, &mut [0; 8]).is_err());
}

#[test]
fn a_table_page_at_the_edge_is_shared_with_what_lies_outside() {
    // 24 entries below and 8 above 0x800_0000 + 1.5 MiB ...
    let mut host = FakeHost::new(96);
    host.add_vm(VM, 16);
    let mut hw = FakeHw::default();
    let partition = Partition::new(GgttAddr(0x1000), 0x2000, GgttAddr(0x10_0000), 0x1000).unwrap();
    let mut gtt = Gtt::new(&mut host, &mut hw, VM, partition, Limits::default()).unwrap();
    assert_eq!(hw.writes, 3);
    for index in [0u32, 1, 2, 3, 255, 256, 257] {
        host.register_page_write(VM, BAR_TABLE + index * 8, &0x5001u64.to_le_bytes()).unwrap();
    }
    let synced = gtt.sync(&mut host, &mut hw, &mut |_| ());
    assert_eq!((synced.ggtt_tables, synced.ggtt_entries), (1, 3));
    assert_eq!(hw.ptes.keys().copied().collect::<Vec<_>>(), [1, 2, 256]);
    assert_eq!(gtt.ggtt.gpa(GgttAddr(0)), None);
    gtt.destroy(&mut host, &mut hw, Hpa(0x9000));
    assert_eq!(hw.ptes.values().copied().collect::<Vec<_>>(), [0x9001; 3]);
    assert_eq!(host.frames_of(Owner::Vm(VM)), 0);
    assert_eq!(host.mapping(VM, BAR_TABLE / 4096), crate::Mapping::Trapped);
}

#[test]
fn clearing_448_mib_is_224_pages_and_one_flush() {
    let mut rig = Rig::new(64 << 20, 384 << 20);
    let exits = rig.host.track_exits;
    for (start, bytes) in [(APERTURE, 64u32 << 20), (HIDDEN, 384 << 20)] {
        for i in 0..bytes / 4096 {
            rig.store(start.index() + i, 0x5001);
        }
    }
    assert_eq!(rig.host.track_exits - exits, 224);
    let flushes = rig.hw.flushes;
    let synced = rig.sync();
    assert_eq!((synced.ggtt_tables, synced.ggtt_entries), (224, 114_688));
    assert_eq!(rig.hw.flushes - flushes, 1);
}

#[test]
fn trapped_stores_of_any_size_reach_the_copy() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    let at = BAR_TABLE + APERTURE.index() * 8;
    rig.gtt.mmio_write(&mut rig.host, at, 4, 0x8001);
    rig.sync();
    assert_eq!(rig.physical(APERTURE.index()), rig.host.hpa(VM, Gpa(0x8000)));
    // The high half makes the address foreign, and back.
    rig.gtt.mmio_write(&mut rig.host, at + 4, 4, 1);
    rig.sync();
    assert_eq!(rig.physical(APERTURE.index()), Some(rig.gtt.scratch));
    rig.gtt.mmio_write(&mut rig.host, at + 4, 1, 0);
    rig.sync();
    assert_eq!(rig.physical(APERTURE.index()), rig.host.hpa(VM, Gpa(0x8000)));
    assert_eq!(rig.gtt.mmio_read(&mut rig.host, at, 8), 0x8001);
    assert_eq!(rig.gtt.mmio_read(&mut rig.host, at + 1, 2), 0x80);
    // Odd widths, and across the end of a page: no harm.
    rig.gtt.mmio_write(&mut rig.host, at + 4095, 8, u64::MAX);
    rig.gtt.mmio_write(&mut rig.host, at, 9, u64::MAX);
    rig.gtt.mmio_write(&mut rig.host, u32::MAX, 8, u64::MAX);
    assert_eq!(rig.gtt.mmio_read(&mut rig.host, at + 4093, 4), 0);
    assert_eq!(rig.gtt.mmio_read(&mut rig.host, at, 8), 0x8001);
}

#[test]
fn stamps_tell_which_entries_changed() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    rig.store(APERTURE.index(), 0x5001);
    rig.sync();
    let then = rig.gtt.ggtt.stamp();
    assert!(!rig.gtt.ggtt.changed_since(APERTURE, 22 * 4096, then));
    rig.store(APERTURE.index() + 21, 0x6001);
    rig.sync();
    assert!(rig.gtt.ggtt.changed_since(APERTURE, 22 * 4096, then));
    assert!(!rig.gtt.ggtt.changed_since(APERTURE, 16 * 4096, then));
    assert!(rig.gtt.ggtt.changed_since(GgttAddr(0), 4096, then), "not the vGPU's: never trusted");
}

#[test]
fn copies_cross_pages() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    rig.store(APERTURE.index(), 0x9001);
    rig.store(APERTURE.index() + 1, 0x2001);
    rig.sync();
    let at = GgttAddr(APERTURE.0 + 4094);
    rig.gtt.write(&mut rig.host, at, &[1, 2, 3, 4]).unwrap();
    assert_eq!(rig.host.guest_read32(VM, Gpa(0x9FFC)), 0x0201_0000);
    assert_eq!(rig.host.guest_read32(VM, Gpa(0x2000)), 0x0403);
    let mut back = [0; 4];
    rig.gtt.read(&mut rig.host, at, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    assert!(rig.gtt.read(&mut rig.host, GgttAddr(APERTURE.0 + 8190), &mut back).is_err());
    assert!(rig.gtt.write(&mut rig.host, GgttAddr(u32::MAX - 1), &back).is_err());
}

#[test]
fn reset_forgets_and_destroy_gives_everything_back() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    rig.store(APERTURE.index(), 0x9001);
    rig.sync();
    rig.store(APERTURE.index() + 1, 0xA001);
    rig.gtt.reset(&mut rig.host, &mut rig.hw);
    assert_eq!(rig.sync().ggtt_entries, 0);
    assert_eq!(rig.physical(APERTURE.index()), Some(rig.gtt.scratch));
    assert_eq!(rig.gtt.mmio_read(&mut rig.host, BAR_TABLE + APERTURE.index() * 8, 8), 0);
    rig.gtt.destroy(&mut rig.host, &mut rig.hw, Hpa(0x9000));
    assert!(rig.hw.ptes.values().all(|pte| *pte == 0x9001));
    assert_eq!(rig.host.frames_of(Owner::Vm(VM)), 0);
}

#[test]
fn too_small_a_quota_leaves_nothing_behind() {
    let mut host = FakeHost::new(64);
    host.add_vm(VM, 4);
    for quota in 0..8 {
        host.set_quota(VM, quota);
        let partition = Partition::new(APERTURE, 4 << 20, HIDDEN, 4 << 20).unwrap();
        assert!(Gtt::new(&mut host, &mut FakeHw::default(), VM, partition, Limits::default()).is_err());
        assert_eq!(host.frames_of(Owner::Vm(VM)), 0);
    }
}

#[test]
fn frames_that_hold_no_table_are_handed_on() {
    let mut rig = Rig::new(4 << 20, 4 << 20);
    rig.host.track(VM, Gfn(9)).unwrap();
    rig.host.guest_write32(VM, Gpa(0x9000), 1);
    let mut others = Vec::new();
    rig.gtt.sync(&mut rig.host, &mut rig.hw, &mut |gfn| others.push(gfn));
    assert_eq!(others, [Gfn(9)]);
}

#[test]
fn random_stores_agree_with_a_translation_of_the_whole_table() {
    let mut state = 0xA076_1D64_78BD_642Fu64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut rig = Rig::new(2 << 20, 6 << 20);
    let entries: Vec<u32> =
        (APERTURE.index()..APERTURE.index() + 512).chain(HIDDEN.index()..HIDDEN.index() + 1536).collect();
    let mut guest: BTreeMap<u32, u64> = BTreeMap::new();
    for _ in 0..400 {
        for _ in 0..next() % 40 {
            let index = entries[next() as usize % entries.len()];
            let frame = next() % 5000;
            let high = if next() % 16 == 0 { 1 << 41 } else { 0 };
            let pte = (frame << 12) | high | (next() & 0xFFF);
            let (offset, bytes, value) = match next() % 4 {
                // Halves, and a trapped store beside the mapped ones.
                0 => (4, 4, pte >> 32),
                1 => (0, 4, pte & 0xFFFF_FFFF),
                _ => (0, 8, pte),
            };
            let old = guest.get(&index).copied().unwrap_or(0).to_le_bytes();
            let mut new = old;
            new[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            guest.insert(index, u64::from_le_bytes(new));
            let at = BAR_TABLE + index * 8 + offset as u32;
            if next() % 2 == 0 {
                rig.host.register_page_write(VM, at, &value.to_le_bytes()[..bytes]).unwrap();
            } else {
                rig.gtt.mmio_write(&mut rig.host, at, bytes, value);
            }
        }
        let before = rig.hw.ptes.clone();
        let writes = rig.hw.writes;
        rig.sync();
        let changed = rig.hw.ptes.iter().filter(|(index, pte)| before[*index] != **pte).count();
        assert_eq!(rig.hw.writes - writes, changed as u64, "an entry is written only if it changes");
        for index in &entries {
            let pte = guest.get(index).copied().unwrap_or(0);
            let valid = pte & 1 != 0 && (pte >> 39) & 0x1FFF == 0;
            let gpa = valid.then_some(Gpa((pte >> 12 & 0x7FF_FFFF) * PAGE_SIZE));
            let hpa = gpa.and_then(|gpa| rig.host.hpa(VM, gpa));
            assert_eq!(rig.physical(*index), Some(hpa.unwrap_or(rig.gtt.scratch)), "{index:#x}");
            let seen = rig.gtt.ggtt.gpa(GgttAddr(index << 12));
            assert_eq!(seen, gpa.filter(|_| hpa.is_some()));
        }
    }
}
