//! What an exit costs, in instructions: of the guest's, of Prism's, and of nothing else, as both emulators count time in
//! instructions here. So the numbers repeat, and a test may decide by them.

use std::collections::BTreeMap;
use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::machine::{End, Gpu, Machine};

const LIMIT: Duration = Duration::from_secs(120);
const SUCCESS: End = End::Verdict(0x10);

/// Runs the guest `cost`, and checks that each of these exits takes no more instructions than its bound.
#[track_caller]
fn costs(machine: Machine, gpu: &str, bounds: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let nonce = tests::nonce();
    let config = format!("[[vm]]\nname = \"cost\"\nmemory_mib = 32\nkernel = \"cost\"\n{gpu}");
    let bundle = Bundle::new(&config).file("cost", &qemu::build::assembled_guest("cost", &nonce).unwrap()).finish();
    let outcome = machine.module(bundle).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let lines = console.guest("cost");
    let parse = |line: &String| {
        let (name, ticks) = line.trim().strip_prefix("cost ")?.split_once(' ')?;
        Some((name.to_owned(), ticks.parse::<u64>().ok()?))
    };
    let measured: BTreeMap<_, _> = lines.iter().filter_map(parse).collect();
    println!("{}: {measured:?}", outcome.dir.display());
    let done = lines.iter().any(|line| line.trim() == format!("done {nonce}"));
    let over: Vec<_> = bounds.iter().filter(|(name, bound)| measured.get(*name).is_none_or(|it| it > bound)).collect();
    if outcome.end != SUCCESS || !done || !over.is_empty() {
        tests::fail(&outcome, &format!("exits that cost more than their bounds: {over:?} of {measured:?}"));
    }
    measured
}

/// Bochs executes one instruction a tick of its clock. The GPU is the one in the image, so that it costs the same always.
#[test]
fn exits_on_vmx() {
    costs(Machine::vmx_bochs("cost-vmx", tests::soft_gpu_image()), "gpu = {}\n", &VMX);
}

/// Where the CPU delivers interrupts out of a virtual-APIC page, their end costs no exit; else it does.
#[test]
fn ends_of_interrupts() {
    let on = |model: &str| {
        let machine = Machine::vmx_bochs(&format!("cost-{model}"), tests::image());
        costs(machine.emulator(&format!("cpu: model={model}")), "", &[("eoi", 1_600)])
    };
    let (with, without) = (on("corei7_icelake_u")["eoi"], on("corei3_cnl")["eoi"]);
    assert!(with < 10 && without > 100, "{with} with APICv, {without} without");
}

/// So does QEMU, if it is asked to; the clock stands still while nothing runs.
#[test]
fn exits_on_svm() {
    let machine = Machine::svm_tcg("cost-svm", tests::soft_gpu_image()).gpu(Gpu::None).memory_mib(512);
    costs(machine.emulator("-icount").emulator("shift=0,sleep=off"), "gpu = {}\n", &SVM);
}

/// From Prism's entry to the first instruction of a guest, in microseconds of such a clock. 20,000 of them measure the
/// TSC's rate.
#[track_caller]
fn starts_within(machine: Machine, bound: u64) {
    let config = "[[vm]]\nname = \"triple\"\nmemory_mib = 32\nkernel = \"triple\"\n";
    let bundle = Bundle::new(config).file("triple", &qemu::build::assembled_guest("triple", "0").unwrap()).finish();
    let outcome = machine.module(bundle).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let told =
        console.prism.iter().find_map(|line| line.strip_prefix("first guest instruction after ")?.strip_suffix(" us"));
    let Some(time) = told.and_then(|time| time.parse::<u64>().ok()) else {
        tests::fail(&outcome, "Prism should say when its first guest starts");
    };
    println!("{}: first guest instruction after {time} us", outcome.dir.display());
    assert!(time <= bound, "{time} us; the bound is {bound}");
}

/// 50 instructions a microsecond.
#[test]
fn starts_quickly_on_vmx() {
    starts_within(Machine::vmx_bochs("start-vmx", tests::image()), 134_000);
}

/// 1000 instructions a microsecond.
#[test]
fn starts_quickly_on_svm() {
    let machine = Machine::svm_tcg("start-svm", tests::image()).gpu(Gpu::None).memory_mib(512);
    starts_within(machine.emulator("-icount").emulator("shift=0,sleep=off"), 27_500);
}

/// Exits, and the most instructions that each may take. `track` is the first store to a page that Prism watches, and all
/// that makes it watch the page again: `flush` itself, a register of the vGPU that makes Prism look, is taken off.
type Bounds = [(&'static str, u64); 9];
const VMX: Bounds = bounds([1_500, 1_550, 1_900, 4_900, 5_100, 6_500, 6_700, 18_700, 10]);
const SVM: Bounds = bounds([2_000, 2_050, 1_650, 4_300, 4_450, 5_900, 6_100, 18_500, 2_050]);

const fn bounds([cpuid, msr, port, apic, chipset, gpu, flush, track, eoi]: [u64; 9]) -> Bounds {
    [
        ("cpuid", cpuid),
        ("msr", msr),
        ("port", port),
        ("apic", apic),
        ("chipset", chipset),
        ("gpu", gpu),
        ("flush", flush),
        ("track", track),
        ("eoi", eoi),
    ]
}
