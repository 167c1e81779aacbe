//! Page sizes and attributes as the GPU itself finds them: a driver maps, a batch stores, the model walks the shadow.

use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::{Engine, Gpa, mi};

const BATCH: u64 = 0x10_0000;
const TARGET: u64 = 0x4000_0000;

fn rig() -> (Machine, Driver) {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let d = Driver::probe(&mut m, 1, id);
    (m, d)
}

/// The page directory above `va`, and the slot in it.
fn directory(m: &Machine, d: &Driver, c: &Context, va: u64) -> Gpa {
    let mut table = c.pml4;
    for shift in [39, 30] {
        let entry = m.host.guest_read32(d.vm, Gpa(table.0 + 8 * (va >> shift & 0x1FF)));
        table = Gpa(u64::from(entry) & !0xFFF);
    }
    Gpa(table.0 + 8 * (va >> 21 & 0x1FF))
}

/// Consecutive pages from a multiple of `align` on.
fn aligned(d: &mut Driver, pages: u32, align: u64) -> Gpa {
    let all = d.pages(pages + (align / 4096) as u32);
    all.into_iter().find(|page| page.0.is_multiple_of(align)).unwrap()
}

fn store(m: &mut Machine, d: &mut Driver, c: &mut Context, stores: &[(u64, u32)]) {
    let page = d.pages(1)[0];
    d.map_process(m, c.pml4, BATCH, page);
    let mut dwords = Vec::new();
    for (va, value) in stores {
        dwords.extend([mi::with_length(mi::STORE_DATA_IMM, 4), *va as u32, (*va >> 32) as u32, *value]);
    }
    dwords.push(mi::header(mi::BATCH_BUFFER_END));
    for (i, dword) in (0..).zip(dwords) {
        m.host.guest_write32(d.vm, Gpa(page.0 + 4 * i), dword);
    }
    assert!(d.execute(m, c, &Driver::batch_start(BATCH)), "{:?}", m.gvt.take_report());
}

#[test]
fn pages_of_every_size_are_found_by_the_gpu() {
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let (mut m, mut d) = rig();
        let mut c = d.context(&mut m, engine);
        let filler = d.pages(1)[0];
        d.map_process(&mut m, c.pml4, TARGET, filler);

        // 2 MiB.
        let large = aligned(&mut d, 512, 2 << 20);
        let slot = directory(&m, &d, &c, TARGET + (2 << 20));
        m.host.guest_write64(d.vm, slot, large.0 | 0x83);
        // 64 KiB: only every 16th entry is written.
        let medium = aligned(&mut d, 16, 64 << 10);
        let table = d.pages(1)[0];
        m.host.guest_write64(d.vm, Gpa(slot.0 + 8), table.0 | 0x803);
        m.host.guest_write64(d.vm, Gpa(table.0 + 8 * 32), medium.0 | 3);
        // Read-only, beside a writable one.
        let [closed, open] = d.pages(2)[..] else { panic!() };
        d.map_process(&mut m, c.pml4, TARGET + 0x5000, closed);
        d.map_process(&mut m, c.pml4, TARGET + 0x6000, open);
        let pt = Gpa(u64::from(m.host.guest_read32(d.vm, directory(&m, &d, &c, TARGET))) & !0xFFF);
        m.host.guest_write64(d.vm, Gpa(pt.0 + 8 * 5), closed.0 | 1);

        let stores = [
            (TARGET + (2 << 20) + 0x12_3454, 0x1111),
            (TARGET + (4 << 20) + 32 * 4096 + 0xF_F010, 0xDEAD),
            (TARGET + (4 << 20) + 32 * 4096 + 0xF010, 0x2222),
            (TARGET + 0x5000, 0x3333),
            (TARGET + 0x6000, 0x4444),
        ];
        store(&mut m, &mut d, &mut c, &stores);
        let look = |at: u64| m.host.guest_read32(d.vm, Gpa(at));
        assert_eq!(look(large.0 + 0x12_3454), 0x1111, "{engine:?}");
        assert_eq!(look(medium.0 + 0xF010), 0x2222, "{engine:?}");
        assert_eq!(look(closed.0), 0, "{engine:?}: a read-only page was written");
        assert_eq!(look(open.0), 0x4444, "{engine:?}");
    }
}

#[test]
fn a_table_that_changes_its_page_size_is_followed() {
    let (mut m, mut d) = rig();
    let mut c = d.context(&mut m, Engine::Rcs);
    let small = d.pages(1)[0];
    d.map_process(&mut m, c.pml4, TARGET, small);
    store(&mut m, &mut d, &mut c, &[(TARGET + 8, 1)]);
    let slot = directory(&m, &d, &c, TARGET);
    let old = u64::from(m.host.guest_read32(d.vm, slot));
    let large = aligned(&mut d, 512, 2 << 20);
    m.host.guest_write64(d.vm, slot, large.0 | 0x83);
    store(&mut m, &mut d, &mut c, &[(TARGET + 8, 2)]);
    assert_eq!((m.host.guest_read32(d.vm, Gpa(small.0 + 8)), m.host.guest_read32(d.vm, Gpa(large.0 + 8))), (1, 2));
    m.host.guest_write64(d.vm, slot, old);
    store(&mut m, &mut d, &mut c, &[(TARGET + 8, 3)]);
    assert_eq!((m.host.guest_read32(d.vm, Gpa(small.0 + 8)), m.host.guest_read32(d.vm, Gpa(large.0 + 8))), (3, 2));
}
