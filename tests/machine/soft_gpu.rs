//! The software GPU linked into the image, on machines that have no GPU: QEMU without the device, and Bochs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use qemu::build;
use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::machine::{Gpu, Machine, Outcome};
use qemu::provision::KernelKind;
use tests::prism::{self, Guest};

/// Bochs executes some 100 million instructions a second.
const LIMIT: Duration = Duration::from_secs(600);
const LONG_LIMIT: Duration = Duration::from_secs(3_600);
/// Instructions a virtual second: about as many as it executes in a real one, and enough for the 200 ms that i915 waits for
/// an idle GPU.
const SPEED: &str = "cpu: ips=100000000";

fn svm(name: &str) -> Machine {
    Machine::svm_tcg(name, tests::soft_gpu_image()).gpu(Gpu::None)
}

fn vmx(name: &str) -> Machine {
    Machine::vmx_bochs(name, tests::soft_gpu_image()).memory_mib(1024).emulator(SPEED)
}

/// A guest whose i915 drives its vGPU.
fn guest(name: &'static str, script: &str) -> Guest {
    Guest::new(name, KernelKind::V6_1, script).memory_mib(320)
}

/// What Prism says when the image's own GPU is shared.
const OWN: &str = "software GPU that is linked";

fn uses_own(console: &Console) -> bool {
    console.prism.iter().any(|line| line.contains(OWN))
}

/// All ended well, and the GPU met nothing that it does not know.
#[track_caller]
fn run(machine: Machine, guests: &[Guest], names: &[&str], limit: Duration) -> Outcome {
    let outcome = prism::with_guests(machine, guests).run(limit).unwrap();
    prism::ended_well(&outcome, names);
    let console = Console::parse(&outcome.serial);
    if !uses_own(&console) {
        tests::fail(&outcome, "the guests should share the software GPU of the image");
    }
    if let Some(line) = console.prism.iter().find(|line| line.starts_with("gpu: ") && line.contains("unknown")) {
        tests::fail(&outcome, &format!("the GPU met something unknown: {line}"));
    }
    outcome
}

/// Stock i915 probes the vGPU.
#[track_caller]
fn probe(machine: Machine, guest: Guest, limit: Duration) -> Outcome {
    let outcome = run(machine, &[guest], &["alpha"], limit);
    prism::detected(&outcome, "alpha");
    outcome
}

#[test]
fn the_product_carries_none_of_it() {
    let has_it = |image: &Path| fs::read(image).unwrap().windows(OWN.len()).any(|text| text == OWN.as_bytes());
    assert!(has_it(tests::soft_gpu_image()) && !has_it(tests::image()));
}

/// The image's own GPU is for machines without one. (The guest crashes at once: it is not what this is about.)
#[test]
fn a_gpu_of_the_machine_comes_first() {
    let config = "[[vm]]\nname = \"triple\"\nmemory_mib = 32\nkernel = \"triple\"\ngpu = {}\n";
    let bundle = Bundle::new(config).file("triple", &build::assembled_guest("triple", "0").unwrap()).finish();
    for (gpu, own) in [(Gpu::None, true), (Gpu::Model(Vec::new()), false)] {
        let outcome = svm("soft-first").gpu(gpu).module(bundle.clone()).arguments("once").run(LIMIT).unwrap();
        let console = Console::parse(&outcome.serial);
        let crashed = console.state("triple") == Some(("crashed", "triple-fault"));
        if !crashed || uses_own(&console) != own {
            tests::fail(&outcome, &format!("the image should use its own GPU: {own}"));
        }
    }
}

/// A program of ours updates page tables and submits, without i915.
#[test]
fn bare_on_vmx() {
    let guest = Guest::bare("alpha", KernelKind::V6_1Cloud, &[tests::bare().clone()], "yes go | bare update 10\n");
    let outcome = run(vmx("soft-bare-vmx"), &[guest.memory_mib(256)], &["alpha"], LIMIT);
    prism::passed(&outcome, "alpha", "update");
}

#[test]
fn i915_probes_on_vmx() {
    probe(vmx("soft-probe-vmx"), guest("alpha", ""), LIMIT);
}

/// The same image where machines are quick: every case of the smoke program, aperture and fences among them.
#[test]
fn smoke_on_svm() {
    let nonce = tests::nonce();
    let outcome = probe(svm("soft-smoke-svm"), guest("alpha", &format!("smoke {nonce}\n")), LIMIT);
    prism::passed(&outcome, "alpha", &nonce);
}

#[test]
#[ignore = "takes long in Bochs"]
fn two_vcpus_on_vmx() {
    let guest = guest("alpha", "").gpu("vcpus = 2\ngpu = {}");
    probe(vmx("soft-smp-vmx").cpus(2), guest, LONG_LIMIT);
}

#[test]
#[ignore = "takes long in Bochs"]
fn smoke_on_vmx() {
    let nonce = tests::nonce();
    let script = format!("smoke {nonce}\n");
    let outcome = probe(vmx("soft-smoke-vmx"), guest("alpha", &script), LONG_LIMIT);
    prism::passed(&outcome, "alpha", &nonce);
}

#[test]
#[ignore = "takes long in Bochs"]
fn two_guests_on_vmx() {
    let names = ["alpha", "beta"];
    let guests = names.map(|name| guest(name, "smoke remap 10\nsmoke bench 50 bcs0 waited\n"));
    let outcome = run(vmx("soft-two-vmx"), &guests, &names, LONG_LIMIT);
    for name in names {
        prism::detected(&outcome, name);
        prism::passed(&outcome, name, "remap");
        prism::passed(&outcome, name, "bench");
    }
}
