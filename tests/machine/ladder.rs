//! The same small guests on both virtualization extensions: SVM in QEMU, VT-x in Bochs.

use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::guest::Initrd;
use qemu::machine::{End, Gpu, Machine};
use qemu::provision::KernelKind;

const LIMIT: Duration = Duration::from_secs(120);
const MACHINE: End = End::Verdict(0x15);
const GUEST: End = End::Verdict(0x17);
/// Bochs executes some 100 million instructions a second.
const LINUX_LIMIT: Duration = Duration::from_secs(400);
const SUCCESS: End = End::Verdict(0x10);

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The rig itself: Bochs starts the image through GRUB, divides rightly, and its end is told apart from a failure.
#[test]
fn bochs_boots_the_image_and_divides() {
    let nonce = tests::nonce();
    let machine = Machine::vmx_bochs("bochs-selftest", tests::image());
    let outcome = machine.arguments(&format!("selftest nonce={nonce}")).run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let proof = format!("{:016x}", fnv1a(nonce.as_bytes()));
    let passed = console.facts.iter().any(|fact| fact.kind == "selftest" && fact.get("proof") == proof);
    let divides = console.prism.iter().any(|line| line == "PASS division");
    if outcome.end != SUCCESS || !passed || !divides {
        tests::fail(&outcome, "the self-test should pass on Bochs");
    }
}

/// What the guest `ladder` prints "ok" for; those of the second virtual CPU come last.
const RUNGS: [&str; 44] = [
    "cpuid",
    "msr",
    "msr_unknown",
    "port",
    "port_string",
    "port_string_in",
    "mmio",
    "mmio_page_end",
    "mmio_chipset",
    "mmio_forms",
    "mmio_two_regions",
    "code_two_pages",
    "undefined",
    "rdpmc",
    "control",
    "interrupt",
    "sti_shadow",
    "sti_cli",
    "priority",
    "interrupt_order",
    "sti_exit",
    "hlt_pending",
    "nmi",
    "nmi_masked",
    "nmi_first",
    "nmi_first_sti",
    "trap_first",
    "trap_before_nmi",
    "hlt",
    "step",
    "step_mmio",
    "step_hlt",
    "step_mov_ss",
    "step_mov_ss_mmio",
    "modes",
    "init",
    "hlt_nmi",
    "preempt",
    "x2apic_order",
    "x2apic_nested",
    "x2apic_priority",
    "x2apic_hlt_pending",
    "x2apic_hlt",
    "x2apic_level",
];
/// The same where it has a vGPU: memory that moves, and an event whose delivery faults on it.
const GPU_RUNGS: [&str; 2] = ["remap", "delivery"];

const CONFIG: &str = "[[vm]]\nname = \"ladder\"\nmemory_mib = 32\nvcpus = 2\nkernel = \"ladder\"\n";

fn assemble(name: &str, nonce: &str) -> Vec<u8> {
    qemu::build::assembled_guest(name, nonce).unwrap()
}

/// Every rung holds, on whatever this machine has.
#[track_caller]
fn climb(machine: Machine) {
    climb_as(machine, CONFIG, &RUNGS);
}

#[track_caller]
fn climb_as(machine: Machine, config: &str, rungs: &[&str]) {
    let nonce = tests::nonce();
    let bundle = Bundle::new(config).file("ladder", &assemble("ladder", &nonce)).finish();
    let outcome = machine.module(bundle).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let lines = console.guest("ladder");
    let has = |text: &str| lines.iter().any(|line| line.trim() == text);
    let missed: Vec<_> = rungs.iter().filter(|name| !has(&format!("rung {name} ok"))).collect();
    let whole = has(&format!("done {nonce}")) && has("a string") && !lines.iter().any(|line| line.ends_with(" bad"));
    if outcome.end != SUCCESS || !missed.is_empty() || !whole {
        tests::fail(&outcome, &format!("missed rungs: {missed:?}"));
    }
}

#[test]
fn ladder_on_svm() {
    climb(Machine::svm_tcg("ladder-svm", tests::image()).gpu(Gpu::None).memory_mib(512));
}

/// With a vGPU, which gives the guest memory that it can move.
#[test]
fn ladder_on_svm_with_a_vgpu() {
    let machine = Machine::svm_tcg("ladder-vgpu", tests::image()).gpu(Gpu::Model(Vec::new()));
    climb_as(machine, &format!("{CONFIG}gpu = {{}}\n"), &[&RUNGS[..], &GPU_RUNGS].concat());
}

#[test]
fn ladder_on_vmx() {
    climb(Machine::vmx_bochs("ladder-vmx", tests::image()));
}

/// The software GPU is in the image, as Bochs has none.
#[test]
fn ladder_on_vmx_with_a_vgpu() {
    let machine = Machine::vmx_bochs("ladder-vmx-vgpu", tests::soft_gpu_image());
    climb_as(machine, &format!("{CONFIG}gpu = {{}}\n"), &[&RUNGS[..], &GPU_RUNGS].concat());
}

fn preset(run: &str, model: &str) -> Machine {
    Machine::vmx_bochs(run, tests::image()).emulator(&format!("cpu: model={model}"))
}

/// The oldest CPU with unrestricted guests: EPT without accessed bits, no INVPCID.
#[test]
fn ladder_on_the_least_vmx() {
    climb(preset("ladder-arrandale", "corei5_arrandale_m520"));
}

/// Without APIC-register virtualization.
#[test]
fn ladder_on_vmx_without_apicv() {
    climb(preset("ladder-cannonlake", "corei3_cnl"));
}

#[test]
fn ladder_on_a_late_vmx() {
    climb(preset("ladder-icelake", "corei7_icelake_u"));
}

/// What a CPU lacks is said in one line.
#[test]
fn cpus_that_cannot_are_told() {
    let lacks = [
        ("core2_penryn_t9600", "without EPT"),
        ("corei5_lynnfield_750", "without unrestricted guests"),
        ("athlon64_clawhammer", "neither VT-x nor AMD-V"),
    ];
    for (model, words) in lacks {
        let bundle = Bundle::new(CONFIG).file("ladder", &assemble("ladder", "0")).finish();
        let outcome = preset(&format!("lacks-{model}"), model).module(bundle).arguments("once").run(LIMIT).unwrap();
        let told = Console::parse(&outcome.serial).prism.iter().any(|line| line.contains(words));
        if outcome.end != MACHINE || !told {
            tests::fail(&outcome, &format!("{model} should be refused: '{words}'"));
        }
    }
}

/// What a guest cannot survive stops that guest, with a report; the other climbs on.
#[track_caller]
fn crash(machine: Machine) {
    let nonce = tests::nonce();
    let mut config = CONFIG.to_owned();
    let mut bundle = vec![("ladder", assemble("ladder", &nonce))];
    for name in ["triple", "delivery"] {
        config.push_str(&format!("[[vm]]\nname = \"{name}\"\nmemory_mib = 32\nkernel = \"{name}\"\n"));
        bundle.push((name, assemble(name, &nonce)));
    }
    let bundle = bundle.iter().fold(Bundle::new(&config), |bundle, (name, file)| bundle.file(name, file));
    let outcome = machine.module(bundle.finish()).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let climbed = console.guest("ladder").iter().any(|line| line.contains(&format!("done {nonce}")));
    let crashed = |name, cause| console.state(name) == Some(("crashed", cause));
    if outcome.end != GUEST || !climbed || !crashed("triple", "triple-fault") || !crashed("delivery", "delivery") {
        tests::fail(&outcome, "each crash should stop its guest only");
    }
}

#[test]
fn a_crash_stays_where_it_is_on_svm() {
    crash(Machine::svm_tcg("crash-svm", tests::image()).gpu(Gpu::None).memory_mib(512));
}

#[test]
fn a_crash_stays_where_it_is_on_vmx() {
    crash(Machine::vmx_bochs("crash-vmx", tests::image()));
}

/// Two guests take turns on one CPU; neither finds the other's values in its registers.
#[track_caller]
fn registers_are_kept_apart(machine: Machine) {
    let nonce = tests::nonce();
    let words = [format!("a{nonce}"), format!("Z{nonce}")];
    let mut bundle = String::new();
    for name in ["first", "second"] {
        bundle.push_str(&format!("[[vm]]\nname = \"{name}\"\nmemory_mib = 32\nkernel = \"{name}\"\n"));
    }
    let mut bundle = Bundle::new(&bundle);
    for (name, word) in ["first", "second"].into_iter().zip(&words) {
        bundle = bundle.file(name, &assemble("keeper", word));
    }
    let outcome = machine.module(bundle.finish()).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    for (name, word) in ["first", "second"].into_iter().zip(&words) {
        let kept = console.guest(name).iter().any(|line| line.trim() == format!("kept {word}"));
        if outcome.end != SUCCESS || !kept {
            tests::fail(&outcome, &format!("guest {name} should keep its registers: {:?}", console.guest(name)));
        }
    }
}

#[test]
fn registers_are_kept_apart_on_svm() {
    registers_are_kept_apart(Machine::svm_tcg("keeper-svm", tests::image()).gpu(Gpu::None).memory_mib(512));
}

#[test]
fn registers_are_kept_apart_on_vmx() {
    registers_are_kept_apart(Machine::vmx_bochs("keeper-vmx", tests::image()));
}

/// Debian's kernel comes to its script on VT-x, with a sound clock.
#[test]
fn linux_on_vmx() {
    linux(Machine::vmx_bochs("linux-vmx", tests::image()));
}

/// The same where the CPU delivers the interrupts.
#[test]
#[ignore = "as long again"]
fn linux_on_a_late_vmx() {
    linux(preset("linux-icelake", "corei7_icelake_u"));
}

#[track_caller]
fn linux(machine: Machine) {
    let nonce = tests::nonce();
    let kernel = KernelKind::V6_1Cloud.get().unwrap();
    let script = format!(
        "echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource) \
         unstable=$(dmesg | grep -ci unstable)\necho done {nonce}\npoweroff -f"
    );
    let config = "[[vm]]\nname = \"alpha\"\nmemory_mib = 256\nkernel = \"kernel\"\ninitrd = \"initrd\"\n\
                  cmdline = \"console=ttyS0 panic=-1 quiet\"\n";
    let initrd = Initrd::new().unwrap().script(&script).finish();
    let bundle = Bundle::new(config).file("kernel", &std::fs::read(kernel.image).unwrap()).file("initrd", &initrd);
    let outcome = machine.module(bundle.finish()).arguments("once").run(LINUX_LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let has = |text: &str| console.guest("alpha").iter().any(|line| line.contains(text));
    // As a failed assertion begins; mitigations warn of the CPU.
    let sound = has("clock=tsc unstable=0") && !has("WARNING: CPU:") && !has("BUG:");
    if outcome.end != SUCCESS || !has(&format!("done {nonce}")) || !sound {
        tests::fail(&outcome, "Linux should come to the end of its script, with a stable TSC");
    }
}
