//! The hypervisor image alone: every way to boot it, and its own tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu::machine::{End, Gpu, Machine, Outcome};
use qemu::provision::Grub;

const LIMIT: Duration = Duration::from_secs(60);
/// What Prism writes to the exit device: see `hv::power::Exit`.
const SUCCESS: End = End::Verdict(0x10);
const NO_BUNDLE: End = End::Verdict(0x12);

fn boot(name: &str, image: &Path) -> Machine {
    Machine::svm_tcg(name, image).gpu(Gpu::None)
}

#[track_caller]
fn expect(outcome: &Outcome, end: End) {
    if outcome.end != end {
        tests::fail(outcome, &format!("the run should end with {end:?}"));
    }
}

/// QEMU finds the multiboot1 header first.
#[test]
fn boots_by_multiboot1() {
    let outcome = boot("mb1", tests::image())
        .arguments("selftest")
        .run(LIMIT)
        .unwrap();
    expect(&outcome, SUCCESS);
}

/// With that header's magic gone, QEMU takes the PVH note.
#[test]
fn boots_by_pvh() {
    let image = without_multiboot1(tests::image());
    let outcome = boot("pvh", &image)
        .arguments("selftest")
        .run(LIMIT)
        .unwrap();
    expect(&outcome, SUCCESS);
}

/// GRUB starts it as on a PC with a disk.
#[test]
fn boots_by_multiboot2() {
    let script = "multiboot2 (hd1)/prism-hv selftest\nboot\n";
    let image = fs::read(tests::image()).unwrap();
    let disks = Grub::get()
        .unwrap()
        .disks(script, &[("prism-hv", &image)])
        .unwrap();
    let outcome = boot("mb2", tests::image()).disks(disks).run(LIMIT).unwrap();
    expect(&outcome, SUCCESS);
}

#[test]
fn several_cpus_come_up() {
    let outcome = boot("smp", tests::image())
        .cpus(4)
        .arguments("selftest")
        .run(LIMIT)
        .unwrap();
    expect(&outcome, SUCCESS);
}

/// One clear line, never a panic.
#[test]
fn a_missing_bundle_is_said() {
    let outcome = boot("no-bundle", tests::image()).run(LIMIT).unwrap();
    expect(&outcome, NO_BUNDLE);
    assert!(outcome.serial.contains("no bundle"), "{}", outcome.serial);
}

fn without_multiboot1(image: &Path) -> PathBuf {
    let mut bytes = fs::read(image).unwrap();
    let magic = 0x1bad_b002_u32.to_le_bytes();
    // The header lies in the first 8 KiB, on a multiple of 4 (Multiboot Specification 0.6.96, section 3.1).
    let at = (0..8192)
        .step_by(4)
        .find(|&at| bytes[at..at + 4] == magic)
        .expect("the image has a multiboot1 header");
    bytes[at] ^= 0xff;
    let path = image.with_extension("pvh");
    fs::write(&path, bytes).unwrap();
    path
}
