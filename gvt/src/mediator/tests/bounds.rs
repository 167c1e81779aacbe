//! What a guest can make grow has a bound, and so has what one store can make Prism do (design D18, D19).

use super::{BATCH, batch, start};
use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use crate::{Progress, Store};
use gvt_defs::{Engine, GgttAddr, Gpa, pvinfo, reg};

/// Each harvests what the guest wrote, and none of them follows the process tables.
#[test]
fn stores_that_only_harvest_do_not_pile_up_what_was_written() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    assert!(d.execute(&mut m, &mut c, &[]));
    let fence = reg::FENCE0 + 8 * (reg::FENCES - 1);
    for offset in [fence, pvinfo::BASE, pvinfo::BASE + pvinfo::PDP0_LO, Engine::Rcs.info().tlb, reg::GDRST] {
        for round in 0..2000 {
            m.host.guest_write64(d.vm, Gpa(c.pml4.0 + 8 * 300), round << 12 | 2);
            d.write(&mut m, offset, 0);
        }
    }
    let waiting = m.gvt.vgpu(0).map_or(0, |vgpu| vgpu.gtt.ppgtt.waiting());
    assert!(waiting <= crate::gtt::Limits::default().tables as usize, "{waiting}");
}

/// Register writes that one call may make: a millisecond's worth.
const PART: u64 = 1000;
/// Pages of the global page table of a vGPU: 128 MiB of aperture at 0, 512 MiB behind all apertures.
const TABLES: u32 = (128 + 512) / 2;

/// Writes some entries of each page of the global page table, all of them to lead to one page.
fn write_tables(m: &mut Machine, d: &mut Driver, entries: impl Iterator<Item = u32> + Clone, page: u64) {
    for table in 1..TABLES {
        let first = if table < 64 { 512 * table } else { (512 << 20 >> 12) + 512 * (table - 64) };
        for entry in entries.clone() {
            d.map(m, GgttAddr(4096 * (first + entry)), Gpa(page << 12));
        }
    }
}

/// Carries a store out; gives its calls, and the entries written in all of them.
fn carry_out(
    m: &mut Machine,
    d: &mut Driver,
    mut store: Store,
    mut between: impl FnMut(&mut Machine, &mut Driver),
) -> (u32, u64) {
    let (mut calls, start) = (0, m.gvt.totals().ptes);
    loop {
        let before = m.gvt.totals().ptes;
        let now = m.now();
        let progress = m.gvt.mmio_store(&mut m.host, d.id, &mut store, now);
        let written = m.gvt.totals().ptes - before;
        assert!(written <= PART, "{written} in one call");
        calls += 1;
        if progress == Progress::Done {
            return (calls, m.gvt.totals().ptes - start);
        }
        assert!(calls <= 2 * TABLES, "a loop in root mode that another vCPU keeps going");
        between(m, d);
    }
}

/// One vCPU stores to GFX_FLSH_CNTL while another one keeps writing the global page table.
#[test]
fn a_sync_ends_whatever_another_vcpu_writes_meanwhile() {
    let (mut m, mut d) = start();
    let mut page = 0x200;
    write_tables(&mut m, &mut d, 0..1, page);
    let store = Store::new(reg::GFX_FLSH_CNTL, 4, 1);
    let (calls, _) = carry_out(&mut m, &mut d, store, |m, d| {
        page ^= 1;
        write_tables(m, d, 0..1, page);
    });
    assert!(calls <= TABLES, "{calls}");
    // What it left comes at the next sync point; all that was written before that then leads where it should.
    carry_out(&mut m, &mut d, store, |_, _| ());
    let ptes = m.gvt.totals().ptes;
    carry_out(&mut m, &mut d, store, |_, _| ());
    assert_eq!(m.gvt.totals().ptes, ptes);
}

/// Whichever register of those that it touches it is that syncs.
#[test]
fn a_store_across_registers_follows_the_tables_in_parts_as_well() {
    let (mut m, mut d) = start();
    let tlb = Engine::Rcs.info().tlb;
    let mut page = 0x200;
    for (offset, value) in [
        (reg::GFX_FLSH_CNTL - 4, 1 << 32),
        (reg::GFX_FLSH_CNTL - 3, 1 << 24),
        (reg::GFX_FLSH_CNTL - 7, 1 << 56),
        (reg::GFX_FLSH_CNTL, 1),
        (tlb - 4, 1 << 32),
        (reg::GDRST - 4, 0),
        (reg::FENCE0 + 4, 0),
        (pvinfo::BASE - 4, 0),
    ] {
        page ^= 1;
        write_tables(&mut m, &mut d, 0..8, page);
        let (_, written) = carry_out(&mut m, &mut d, Store::new(offset, 8, value), |_, _| ());
        assert_eq!(written, u64::from(8 * (TABLES - 1)), "{offset:#x}");
    }
}

/// The fourth dword of ELSP submits, wherever in a store it lies.
#[test]
fn the_whole_global_page_table_is_followed_in_parts() {
    let (mut m, mut d) = start();
    write_tables(&mut m, &mut d, 0..512, 0x200);
    let elsp = Engine::Bcs.base() + gvt_defs::ring::ELSP;
    for _ in 0..3 {
        d.write(&mut m, elsp, 0);
    }
    let (calls, written) = carry_out(&mut m, &mut d, Store::new(elsp - 4, 8, 0), |_, _| ());
    assert_eq!(written, 512 * u64::from(TABLES - 1));
    assert!(calls >= TABLES - 1, "{calls}");
}

/// A blitter batch of 3 MiB, which is copied whole.
#[test]
fn a_large_batch_needs_no_room_on_the_heap() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Bcs);
    let room = m.gvt.scratch.arena.capacity();
    let nothing = d.pages(1)[0];
    let pages = 768;
    for i in 0..pages {
        d.map_process(&mut m, c.pml4, BATCH + 4096 * i, nothing);
    }
    batch::write(&mut d, &mut m, &c, BATCH + 4096 * pages, &[]);
    assert!(d.execute(&mut m, &mut c, &Driver::batch_start(BATCH)));
    assert!(m.gvt.scratch.arena.len() > 1024 * pages as usize, "it is not copied");
    assert_eq!(m.gvt.scratch.arena.capacity(), room);
}

/// A guest that rewrites many process page tables keeps nobody out for as long as it takes to follow them all.
#[test]
fn process_page_tables_are_followed_in_parts() {
    let (mut m, mut d) = start();
    let mut c = d.context(&mut m, Engine::Rcs);
    let page = d.pages(1)[0];
    let tables = 400;
    for table in 0..tables {
        d.map_process(&mut m, c.pml4, (1 << 30) + (table << 21), page);
    }
    assert!(d.execute(&mut m, &mut c, &[]));
    for table in 0..tables {
        d.map_process(&mut m, c.pml4, (1 << 30) + (table << 21) + 4096, page);
    }
    let followed = |m: &Machine| m.gvt.vgpu(0).map_or(0, |vgpu| vgpu.stats.synced_entries);
    let start = followed(&m);
    let mut store = Store::new(Engine::Rcs.info().tlb - 4, 8, 1 << 32);
    let mut calls = 0;
    loop {
        let (now, before) = (m.now(), followed(&m));
        let progress = m.gvt.mmio_store(&mut m.host, d.id, &mut store, now);
        assert!(followed(&m) - before <= 48, "{} in one call", followed(&m) - before);
        calls += 1;
        if progress == Progress::Done {
            break;
        }
        // Another vCPU: it must not keep this one from its end.
        d.map_process(&mut m, c.pml4, (1 << 30) + ((u64::from(calls) % tables) << 21) + 8192, page);
        assert!(calls < 2 * tables as u32);
    }
    assert!(followed(&m) - start >= tables, "not all was followed");
}
