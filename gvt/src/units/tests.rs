//! What a unit buys here, and that nothing is done for nothing. The measurement runs in release, alone:
//! `cargo test --release -p gvt units_cost -- --ignored --nocapture`.

use super::*;
use crate::audit::Audit;
use crate::audit::bench::three_d;
use crate::gtt::{Limits, Partition, Ppgtt};
use crate::testing::FakeHost;
use gvt_defs::{Engine, GgttAddr, PAGE_SIZE};
use std::path::Path;
use std::time::Instant;

/// A guest's calls come in by public functions that take a `Host`. What each does with it, or with the GPU, is counted:
/// work that is not can only be done outside of `hold`.
#[test]
fn every_way_in_is_counted() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mediator");
    let mut ways = Vec::new();
    for file in std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        for function in text.split("\n    pub fn ").skip(1) {
            let (head, rest) = function.split_once('{').unwrap();
            let body = rest.split("\n    }\n").next().unwrap();
            if !head.contains("Host") {
                continue;
            }
            let name = head.split(['(', '<']).next().unwrap();
            // Before there are guests, and one that calls another until it is done.
            let other = ["new", "create_vgpu"].contains(&name) || body.contains("self.mmio_store(");
            assert!(other || body.contains("self.hold("), "{name}");
            ways.push(name.to_owned());
        }
    }
    ways.sort();
    let known = ["config_write", "create_vgpu", "destroy_vgpu", "interrupt", "mmio_read", "mmio_store", "mmio_write"];
    assert_eq!(ways, [&known[..], &["new", "reset_vgpu", "timer"]].concat());
}

#[test]
fn work_adds_up_until_the_next_call() {
    let meter = Meter::default();
    meter.charge(Work::Entry, 401);
    assert_eq!(meter.spent(), 2);
    meter.start();
    assert_eq!(meter.spent(), 0);
    let mut host = FakeHost::new(64);
    host.add_vm(VmId(1), 4);
    Metered::new(&mut host, &meter).read(VmId(1), Gpa(0), &mut [0; 4096]).unwrap();
    assert_eq!(meter.spent(), 1);
    meter.charge(Work::Register, usize::MAX);
    assert_eq!(meter.spent(), u32::MAX);
}

/// Nanoseconds that `run` takes.
fn nanos(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e9
}

fn say(what: &str, count: usize, nanos: f64, price: f64) {
    let each = nanos / count as f64;
    println!("{what}: {each:.2} ns each, {:.0} ns a unit", each / price);
}

fn price(work: Work) -> f64 {
    work.price() as f64 / UNIT as f64
}

fn memory_cost() {
    const PAGES: usize = 8192;
    let (mut from, mut to) = (vec![1u8; PAGES * 4096], vec![2u8; PAGES * 4096]);
    let copied = nanos(|| to.chunks_mut(4096).zip(from.chunks(4096)).for_each(|(to, from)| to.copy_from_slice(from)));
    say("line copied", PAGES * 64, copied, price(Work::Line));
    let zeroed = nanos(|| from.chunks_mut(4096).for_each(|page| std::hint::black_box(page).fill(0)));
    say("frame zeroed", PAGES, zeroed, price(Work::Frame));
    std::hint::black_box((from, to));
}

fn audit_cost() {
    let partition = Partition::new(GgttAddr(0), 128 << 20, GgttAddr(0x4000_0000), 512 << 20).unwrap();
    let interrupts = vec![gvt_defs::mi::header(gvt_defs::mi::USER_INTERRUPT); 1 << 20];
    let lri = [gvt_defs::mi::load_register_imm(1), 0x2600, 0].repeat(1 << 18);
    for (what, mut ring) in [("3D", three_d(1 << 20)), ("interrupts", interrupts), ("register writes", lri)] {
        let mut audit = Audit::new(Engine::Rcs, &partition);
        let walked = nanos(|| audit.ring(&mut ring).unwrap());
        let judged = f64::from(audit.summary().judged) / ring.len() as f64;
        say(&format!("dword of {what}"), ring.len(), walked, price(Work::Dword) + judged * price(Work::Command));
    }
}

/// An address space of full tables: made, every entry changed, one of each changed, given up.
fn tables_cost() {
    const TABLES: u64 = 2000;
    let vm = VmId(1);
    let mut host = FakeHost::new(128);
    host.add_vm(vm, 64);
    let table = |n: u64| Gpa((n + 16) * PAGE_SIZE);
    let (pml4, pdp) = (table(TABLES), table(TABLES + 1));
    host.guest_write64(vm, pml4, pdp.0 | 3);
    for n in 0..TABLES {
        let pd = table(TABLES + 2 + n / 512);
        host.guest_write64(vm, Gpa(pdp.0 + n / 512 * 8), pd.0 | 3);
        host.guest_write64(vm, Gpa(pd.0 + n % 512 * 8), table(n).0 | 3);
    }
    let page = host.alloc_frame(Owner::Vm(vm)).unwrap();
    let meter = Meter::default();
    let mut ppgtt = Ppgtt::new(&mut host, vm, page, Limits { tables: 4096, work: 4096 }).unwrap();
    ppgtt.meter(&meter);
    let mut entry = 0;
    for (what, changed) in [("table made", 512), ("table changed all over", 512), ("table changed", 1)] {
        entry += 1;
        for n in 0..TABLES {
            for i in 0..changed {
                host.guest_write64(vm, Gpa(table(n).0 + 8 * i), entry << 12 | 3);
            }
        }
        host.harvest(vm, &mut |dirty| {
            if let Dirty::Guest(gfn) = dirty {
                ppgtt.mark(gfn);
            }
        });
        meter.start();
        let taken = nanos(|| {
            let mut host = Metered::new(&mut host, &meter);
            ppgtt.sync(&mut host);
            let shadow = ppgtt.acquire(&mut host, pml4);
            ppgtt.release(&mut host, shadow.pin);
        });
        say(what, TABLES as usize, taken, f64::from(meter.spent()) / TABLES as f64);
    }
    meter.start();
    let taken = nanos(|| ppgtt.destroy(&mut Metered::new(&mut host, &meter), pml4));
    say("table given up", TABLES as usize, taken, f64::from(meter.spent()) / TABLES as f64);
}

#[test]
#[ignore = "a measurement, for release builds"]
fn units_cost() {
    memory_cost();
    audit_cost();
    tables_cost();
}
