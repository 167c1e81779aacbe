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

/// A guest that crashes at its first instruction starts again a few times, then is ended; the other climbs on.
#[test]
fn a_guest_that_crashes_again_and_again_is_ended() {
    let nonce = tests::nonce();
    let triple =
        "[[vm]]\nname = \"triple\"\nmemory_mib = 32\nkernel = \"triple\"\non_crash = \"restart\"\nrestart_limit = 5\n";
    let config = format!("{CONFIG}{triple}");
    let bundle =
        ["ladder", "triple"].iter().fold(Bundle::new(&config), |all, name| all.file(name, &assemble(name, &nonce)));
    let machine = Machine::svm_tcg("crash-again", tests::image()).gpu(Gpu::None).memory_mib(512);
    let outcome = machine.module(bundle.finish()).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let climbed = console.guest("ladder").iter().any(|line| line.contains(&format!("done {nonce}")));
    let resets = console.facts.iter().filter(|fact| fact.kind == "vm" && fact.get("state") == "reset").count();
    let reports = console.prism.iter().filter(|line| line.contains("rax=")).count();
    let ended = console.state("triple") == Some(("crashed", "restart-limit"));
    if outcome.end != GUEST || !climbed || !ended || (resets, reports) != (5, 1) {
        tests::fail(&outcome, &format!("{resets} restarts and {reports} reports; 5 and 1 are due"));
    }
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

/// What the guest `twins` compares, on each virtual CPU.
const GROUPS: [&str; 14] = [
    "general", "flags", "segments", "tables", "control", "paging", "debug", "bases", "syscall", "tsc", "x87", "xmm",
    "ymm", "exiting",
];
/// Six virtual CPUs on two; those of the third VM meet on one.
const TWINS: [(&str, &[u32]); 3] = [("a", &[0, 1]), ("b", &[1, 0]), ("c", &[1, 1])];
/// Fewer switches and interrupts than this are no test.
const ENOUGH: u64 = 300;

/// Several VMs with two virtual CPUs, each of which sees to it that all its registers stay its own while it is switched,
/// interrupted and sent messages at any instruction.
#[track_caller]
fn twins(machine: Machine) {
    let nonce = tests::nonce();
    let mut config = String::new();
    for (name, cpus) in TWINS {
        let vcpus = cpus.len();
        config.push_str(&format!(
            "[[vm]]\nname = \"{name}\"\nmemory_mib = 32\nvcpus = {vcpus}\ncpus = {cpus:?}\nkernel = \"{name}\"\n"
        ));
    }
    let bundle = TWINS.into_iter().fold(Bundle::new(&config), |bundle, (name, _)| {
        bundle.file(name, &assemble("twins", &format!("{name}{nonce}")))
    });
    let outcome = machine.guest_cpus(2).module(bundle.finish()).arguments("once").run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    let mut missing = Vec::new();
    for (name, cpus) in TWINS {
        let has = |text: &str| console.guest(name).iter().any(|line| line.trim() == text);
        let compared = (0..cpus.len()).flat_map(|cpu| GROUPS.map(|group| format!("vCPU {cpu} ok {group}")));
        let whole = compared.chain([format!("done {name}{nonce}")]);
        missing.extend(whole.filter(|line| !has(line)).map(|line| format!("{name}: {line}")));
        let few = console.count(name, "exit", "host-interrupt") < Some(ENOUGH)
            || console.count(name, "total", "interrupts") < Some(ENOUGH);
        missing.extend(few.then(|| format!("{name}: enough interrupts")));
    }
    let home = console.prism.iter().find_map(|line| line.split_once("vCPUs on CPUs [")).expect("it is told").1;
    let home = home.split_once(']').expect("it is a list").0;
    for cpu in home.split(", ") {
        let cpu = format!("cpu {cpu}: ");
        let told = console.prism.iter().find_map(|line| line.strip_prefix(&cpu)).unwrap_or_default();
        let count =
            |what| told.split(", ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok()).unwrap_or(0_u64);
        missing.extend((count("switches") < ENOUGH).then(|| format!("{cpu}enough switches")));
        missing.extend((count("kick") == 0).then(|| format!("{cpu}a kick")));
    }
    if outcome.end != SUCCESS || !missing.is_empty() {
        let told: Vec<_> = outcome.serial.lines().filter(|line| line.contains("twins: ")).collect();
        tests::fail(&outcome, &format!("{told:?}; missing: {missing:?}"));
    }
}

#[test]
fn twins_on_svm() {
    twins(Machine::svm_tcg("twins-svm", tests::image()).gpu(Gpu::None).memory_mib(512));
}

#[test]
fn twins_on_vmx() {
    twins(Machine::vmx_bochs("twins-vmx", tests::image()));
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
