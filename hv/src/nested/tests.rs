mod history;

use hv_defs::paging::Npt;

use super::*;
use crate::frame::OwnerId;
use crate::phys::fake;

const RW: Access = Access::ReadWrite;
const WB: Caching = Caching::WriteBack;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn tables(frames: usize) -> Nested<Npt> {
    fake::install(4 * MIB);
    Nested::new(Pool::new(OwnerId(1), frames).unwrap(), Level::L3).unwrap()
}

fn at(nested: &Nested<Npt>, gpa: u64) -> Option<(u64, Access, Level)> {
    nested.lookup(Gpa(gpa)).map(|mapped| (mapped.hpa.0, mapped.access, mapped.level))
}

#[test]
fn uses_the_largest_page_that_fits() {
    let mut nested = tables(16);
    nested.map(Gpa(0), 2 * GIB + 2 * MIB + 4096, Hpa(4 * GIB), RW, WB).unwrap();
    assert_eq!(at(&nested, 0x1234), Some((4 * GIB + 0x1234, RW, Level::L3)));
    assert_eq!(at(&nested, 2 * GIB), Some((6 * GIB, RW, Level::L2)));
    assert_eq!(at(&nested, 2 * GIB + 2 * MIB), Some((6 * GIB + 2 * MIB, RW, Level::L1)));
    assert_eq!(at(&nested, 2 * GIB + 2 * MIB + 4096), None);
}

#[test]
fn a_host_base_that_is_not_aligned_takes_smaller_pages() {
    let mut nested = tables(16);
    nested.map(Gpa(0), GIB, Hpa(4 * GIB + 2 * MIB), RW, WB).unwrap();
    assert_eq!(at(&nested, GIB - 1).unwrap().2, Level::L2);
}

#[test]
fn protecting_one_page_splits_and_leaves_the_rest() {
    let mut nested = tables(16);
    nested.map(Gpa(0), GIB, Hpa(GIB), RW, WB).unwrap();
    nested.protect(Gpa(0x20_5000), 4096, Access::Read).unwrap();
    assert_eq!(at(&nested, 0x20_5123), Some((GIB + 0x20_5123, Access::Read, Level::L1)));
    assert_eq!(at(&nested, 0x20_4FFF), Some((GIB + 0x20_4FFF, RW, Level::L1)));
    assert_eq!(at(&nested, 0x40_0000), Some((GIB + 0x40_0000, RW, Level::L2)));
    nested.protect(Gpa(0x20_5000), 4096, RW).unwrap();
    assert_eq!(at(&nested, 0x20_5123).unwrap().1, RW);
}

#[test]
fn protecting_does_not_split_what_is_so_already() {
    let mut nested = tables(16);
    nested.map(Gpa(0), GIB, Hpa(GIB), RW, WB).unwrap();
    nested.protect(Gpa(0x5000), 4096, RW).unwrap();
    assert_eq!(at(&nested, 0x5000).unwrap().2, Level::L3);
    nested.protect(Gpa(5 * GIB), 4096, Access::Read).unwrap();
    assert_eq!(at(&nested, 5 * GIB), None);
}

#[test]
fn emptied_tables_return_only_after_a_flush() {
    let mut nested = tables(16);
    let before = nested.pool.left().0;
    nested.map(Gpa(0xC000_0000), 0x3000, Hpa(0), Access::Read, WB).unwrap();
    assert_eq!(nested.pool.left(), (before - 3, 0));
    nested.unmap(Gpa(0xC000_0000), 0x2000).unwrap();
    assert_eq!(nested.pool.left(), (before - 3, 0), "still holds a page");
    nested.unmap(Gpa(0xC000_0000), 0x3000).unwrap();
    assert_eq!(nested.pool.left(), (before - 3, 3));
    let sealed = nested.seal().unwrap();
    nested.map(Gpa(0xC000_0000), 0x1000, Hpa(0), Access::Read, WB).unwrap();
    nested.unmap(Gpa(0xC000_0000), 0x1000).unwrap();
    nested.reclaim(sealed);
    assert_eq!(nested.pool.left(), (before - 3, 3), "emptied after the seal");
    let sealed = nested.seal().unwrap();
    nested.reclaim(sealed);
    assert_eq!(nested.pool.left(), (before, 0));
    assert_eq!(nested.seal(), None);
}

#[test]
fn a_large_page_over_tables_retires_them() {
    let mut nested = tables(16);
    nested.map(Gpa(0), 4096, Hpa(0), RW, WB).unwrap();
    let (free, _) = nested.pool.left();
    nested.map(Gpa(0), GIB, Hpa(GIB), RW, WB).unwrap();
    assert_eq!(nested.pool.left(), (free, 2));
    assert_eq!(at(&nested, 0).unwrap().2, Level::L3);
}

#[test]
fn refuses_odd_ranges_and_an_empty_pool() {
    let mut nested = tables(3);
    assert_eq!(nested.map(Gpa(1), 4096, Hpa(0), RW, WB), Err(NoTable));
    assert_eq!(nested.map(Gpa(0), 1, Hpa(0), RW, WB), Err(NoTable));
    assert_eq!(nested.map(Gpa(!0xFFF), 8192, Hpa(0), RW, WB), Err(NoTable));
    assert_eq!(nested.map(Gpa(1 << 48), 4096, Hpa(0), RW, WB), Err(NoTable));
    assert_eq!(nested.map(Gpa(0), 4096, Hpa(0), RW, WB), Err(NoTable));
}

/// Style practice 22: what a CPU can see while a page is split and protected is the old mapping or the new one.
#[test]
fn every_state_of_a_split_is_the_old_or_the_new_mapping() {
    let mut nested = tables(16);
    nested.map(Gpa(0), GIB, Hpa(GIB), RW, WB).unwrap();
    let root = nested.root.hpa();
    let before: Vec<u8> = snapshot();
    nested.protect(Gpa(0x5000), 4096, Access::Read).unwrap();
    let after = snapshot();
    // Stores to linked tables: only the one entry that was split. All else lies in frames that were free before.
    let changed = (0..before.len() / 8).filter(|n| before[n * 8..n * 8 + 8] != after[n * 8..n * 8 + 8]);
    let l3 = walk(&before, root.0, 0);
    let linked: Vec<usize> =
        changed.filter(|n| (n * 8) as u64 & !0xFFF == l3 || (n * 8) as u64 & !0xFFF == root.0).collect();
    assert_eq!(linked, [(l3 / 8) as usize]);
}

fn snapshot() -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    // SAFETY: 1. The arena of this test. 2. Accessed by copying only.
    unsafe { Window::new(Hpa(0), 4 << 20) }.read(0, &mut bytes).unwrap();
    bytes
}

fn walk(memory: &[u8], table: u64, index: usize) -> u64 {
    let at = table as usize + index * 8;
    u64::from_le_bytes(memory[at..at + 8].try_into().unwrap()) & 0x000F_FFFF_FFFF_F000
}
