use hv_defs::paging::{Level, Npt};
use hv_dev::e820::Layout;

use super::*;
use crate::frame::{OwnerId, Placement};
use crate::nested::{Nested, Pool};
use crate::phys::fake;

const MIB: u64 = 1 << 20;

struct Machine {
    memory: GuestMemory,
    tracking: Tracking,
    tables: Tables,
}

fn machine() -> Machine {
    fake::install(64 * MIB);
    let memory = GuestMemory::allocate(OwnerId(1), &Layout { low: 8 * MIB, high: 0 }, Placement::Low).unwrap();
    let pool = Pool::new(OwnerId(1), 64).unwrap();
    let tables = Tables::new(Nested::<Npt>::boxed(pool, Level::L3).unwrap());
    Machine { tracking: Tracking::new(memory.frames()), memory, tables }
}

impl Machine {
    fn track(&mut self, gfn: u64) -> bool {
        let index = self.memory.index_of(Gfn(gfn)).unwrap();
        self.tables.track(&self.tracking, &self.memory, index, Gfn(gfn))
    }
    fn untrack(&mut self, gfn: u64) {
        let index = self.memory.index_of(Gfn(gfn)).unwrap();
        self.tables.untrack(&self.tracking, index, Gfn(gfn));
    }
    fn write(&mut self, gpa: u64) -> Fault {
        self.tables.fault(&self.tracking, &self.memory, Gpa(gpa), true)
    }
    fn harvest(&mut self) -> (bool, Vec<DirtyPage>) {
        let mut out = Vec::new();
        let flush = self.tables.harvest(&self.tracking, &self.memory, &mut out);
        (flush, out)
    }
    fn access(&self, gpa: u64) -> Option<Access> {
        self.tables.map.lookup(Gpa(gpa)).map(|mapped| mapped.access)
    }
}

#[test]
fn a_tracked_page_faults_once_between_harvests() {
    let mut m = machine();
    assert!(m.track(0x300));
    assert!(!m.track(0x300), "idempotent");
    assert_eq!(m.access(0x30_0000), Some(Access::Read));
    assert_eq!(m.write(0x30_0008), Fault::Tracked);
    assert_eq!(m.access(0x30_0000), Some(Access::ReadWrite), "no further exit");
    assert_eq!(m.harvest(), (true, vec![DirtyPage::Ram(Gfn(0x300))]));
    assert_eq!(m.access(0x30_0000), Some(Access::Read), "armed again");
    assert_eq!(m.harvest(), (false, vec![]), "nothing new, nobody is flushed");
    assert_eq!(m.write(0x30_0FFF), Fault::Tracked);
    assert_eq!(m.harvest().1.len(), 1);
}

#[test]
fn an_untracked_page_is_forgotten() {
    let mut m = machine();
    m.track(0x300);
    m.write(0x30_0000);
    m.untrack(0x300);
    m.untrack(0x300);
    assert_eq!(m.harvest().1, []);
    assert_eq!(m.access(0x30_0000), Some(Access::ReadWrite));
    m.track(0x300);
    m.untrack(0x300);
    assert_eq!(m.write(0x30_0000), Fault::Stale);
}

#[test]
fn more_dirty_pages_than_are_listed_are_still_found() {
    let mut m = machine();
    m.tables.list = Vec::new();
    let pages: Vec<u64> = (0x200..0x700).collect();
    for gfn in &pages {
        m.track(*gfn);
        m.write(gfn << 12);
    }
    m.tables.overflow = true;
    let (_, found) = m.harvest();
    assert_eq!(found, pages.iter().map(|gfn| DirtyPage::Ram(Gfn(*gfn))).collect::<Vec<_>>());
    assert_eq!(m.harvest(), (false, vec![]));
}

#[test]
fn bar_pages_follow_the_bar() {
    let mut m = machine();
    let frame = Hpa(0x12_3000);
    m.tables.map_page(2, 0, 5, PageMapping::Tracked(frame));
    assert_eq!(m.access(0xC000_5000), None, "not placed yet");
    assert!(!m.tables.place(&m.memory, 2, 0, Some((Gpa(0xC000_0000), 16 * MIB))));
    assert_eq!(m.access(0xC000_5000), Some(Access::Read));
    assert_eq!(m.access(0xC000_4000), None);
    assert_eq!(m.write(0xC000_5010), Fault::Tracked);
    assert_eq!(m.write(0xC000_4000), Fault::Device);
    assert!(m.tables.place(&m.memory, 2, 0, Some((Gpa(0xD000_0000), 16 * MIB))), "CPUs hold the old place");
    assert_eq!(m.access(0xC000_5000), None);
    assert_eq!(m.access(0xD000_5000), Some(Access::ReadWrite), "still dirty");
    assert_eq!(m.harvest().1, [DirtyPage::Bar { device: 2, bar: 0, page: 5 }]);
    assert_eq!(m.access(0xD000_5000), Some(Access::Read));
    assert!(m.tables.map_page(2, 0, 5, PageMapping::Trapped));
    assert_eq!(m.access(0xD000_5000), None);
    assert_eq!(m.write(0xD000_5000), Fault::Device);
}

#[test]
fn a_bar_never_covers_ram() {
    let mut m = machine();
    let ram = m.tables.map.lookup(Gpa(0x30_0000));
    m.tables.map_page(2, 0, 0, PageMapping::ReadOnly(Hpa(0x1000)));
    m.tables.place(&m.memory, 2, 0, Some((Gpa(0x30_0000), MIB)));
    assert_eq!(m.tables.map.lookup(Gpa(0x30_0000)), ram);
    m.tables.place(&m.memory, 2, 0, None);
    assert_eq!(m.tables.map.lookup(Gpa(0x30_0000)), ram);
    m.tables.place(&m.memory, 2, 0, Some((Gpa(!0xFFF), MIB)));
}

#[test]
fn read_only_pages_pass_reads_only() {
    let mut m = machine();
    m.tables.place(&m.memory, 2, 0, Some((Gpa(0xC000_0000), 16 * MIB)));
    m.tables.map_page(2, 0, 1, PageMapping::ReadOnly(Hpa(0x1000)));
    assert_eq!(m.tables.fault(&m.tracking, &m.memory, Gpa(0xC000_1000), false), Fault::Stale);
    assert_eq!(m.write(0xC000_1000), Fault::Device);
    m.tables.map_range(2, 2, (0, 2 * MIB), Hpa(4 << 30), Access::ReadWrite).unwrap();
    m.tables.place(&m.memory, 2, 2, Some((Gpa(0xD000_0000), 256 * MIB)));
    let mapped = m.tables.map.lookup(Gpa(0xD000_0000)).unwrap();
    assert_eq!((mapped.hpa, mapped.level), (Hpa(4 << 30), Level::L2));
}

/// RAM appears when it is touched, zeroed, a large page at a time; a page that is watched appears protected.
#[test]
fn ram_is_mapped_when_it_is_touched() {
    let mut m = machine();
    let slot = m.memory.slots()[0];
    // SAFETY: 1. The guest's RAM, inside the test's memory. 2. Which is only accessed by copying.
    let raw = unsafe { Window::new(slot.hpa(), 8 * MIB) };
    raw.write(0x40_0000, &vec![0xA5; 4 << 20]).unwrap();
    let read = |m: &mut Machine, gpa| m.tables.fault(&m.tracking, &m.memory, Gpa(gpa), false);
    assert_eq!(m.access(0x40_0000), None);
    assert_eq!((read(&mut m, 0x40_1234), read(&mut m, 0x5F_F000)), (Fault::Filled, Fault::Stale));
    assert_eq!(m.tables.map.lookup(Gpa(0x5F_F000)).map(|mapped| mapped.level), Some(Level::L2));
    assert_eq!((m.access(0x60_0000), m.access(0x3F_F000)), (None, None));
    let mut seen = vec![1; 2 << 20];
    raw.read(0x40_0000, &mut seen).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0));
    m.track(0x700);
    assert_eq!((m.access(0x70_0000), m.access(0x60_0000)), (Some(Access::Read), Some(Access::ReadWrite)));
    assert_eq!(m.write(0x70_0000), Fault::Tracked);
    // The hole for the legacy video memory stays one.
    assert_eq!((m.write(0x9_FFFF), m.write(0xC_0000)), (Fault::Filled, Fault::Filled));
    assert_eq!((m.write(0xA_0000), m.access(0xA_0000)), (Fault::Device, None));
}
