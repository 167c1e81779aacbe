//! Machine `native`: stock i915 on the software Gen9 itself, no hypervisor. What passes here is what a vGPU is
//! compared with.

use std::time::Duration;

use qemu::guest::Initrd;
use qemu::machine::{End, Gpu, Machine, OnReset, Outcome, Running};
use qemu::provision::{Kernel, KernelKind};
use serde_json::Value;
use tests::{fail, nonce, smoke};

const LIMIT: Duration = Duration::from_secs(600);
/// A kernel that hangs is told so by an NMI; its panic then names every task and timer.
const ARGUMENTS: &str = "console=ttyS0 rdinit=/init panic=-1 unknown_nmi_panic panic_print=5";

/// What a kernel log may not contain. There is no list of exceptions on this machine.
const TROUBLE: [&str; 7] = ["WARNING:", "*ERROR*", "BUG:", "Oops", "Call Trace", "wedged", "GPU HANG"];

fn kernel(kind: KernelKind) -> Kernel {
    kind.get().expect("the kernel is provisioned")
}

/// An initrd that loads i915 and then runs `script`.
fn initrd(kernel: &Kernel, script: &str) -> Vec<u8> {
    let initrd = Initrd::new().and_then(|initrd| initrd.modules(kernel));
    let initrd = initrd.and_then(|initrd| initrd.load(kernel, "error_capture=0"));
    let initrd = initrd.and_then(|initrd| initrd.program(smoke()));
    initrd.expect("the initrd is put together").script(script).finish()
}

fn machine(name: &str, kernel: &Kernel, script: &str, gpu: &[&str]) -> Machine {
    let mut options = vec!["--strict".to_owned(), "--stats".into(), "stats.json".into()];
    options.extend(gpu.iter().map(|option| (*option).to_owned()));
    Machine::native(name, &kernel.image).module(initrd(kernel, script)).arguments(ARGUMENTS).gpu(Gpu::Model(options))
}

fn powered_off(outcome: &Outcome) {
    if outcome.end != End::PowerOff {
        fail(outcome, "the guest did not power off");
    }
}

/// No line of the kernel's log speaks of trouble.
fn quiet(outcome: &Outcome, allowed: &[&str]) {
    let trouble = |line: &&str| TROUBLE.iter().any(|word| line.contains(word));
    let allowed = |line: &&str| allowed.iter().any(|word| line.contains(word));
    if let Some(line) = outcome.serial.lines().filter(trouble).find(|line| !allowed(line)) {
        fail(outcome, &format!("the kernel complains: {line}"));
    }
}

/// The smoke program's verdict with this nonce, and no failed case.
fn passed(outcome: &Outcome, nonce: &str) {
    if let Some(line) = outcome.serial.lines().find(|line| line.contains(" FAIL ")) {
        fail(outcome, line);
    }
    if !outcome.serial.contains(&format!("VERDICT {nonce} pass")) {
        fail(outcome, "no verdict");
    }
}

/// The statistics that the GPU process left: it met nothing that it does not know.
fn known(outcome: &Outcome) -> Value {
    let stats = std::fs::read(outcome.dir.join("stats.json")).expect("the GPU process wrote its statistics");
    let stats: Value = serde_json::from_slice(&stats).expect("statistics are JSON");
    let findings = stats["counts"]["gpu"]["findings"].as_object().expect("findings are listed");
    if let Some(text) = findings.keys().find(|text| text.contains("unknown")) {
        fail(outcome, &format!("the GPU met something unknown: {text}"));
    }
    stats
}

fn smoke_passes(kind: KernelKind, name: &str, gpu: &[&str], cpus: u32) {
    let kernel = kernel(kind);
    let nonce = nonce();
    let script = format!("smoke {nonce}\npoweroff -f");
    let machine = machine(name, &kernel, &script, gpu).cpus(cpus);
    let outcome = machine.run(LIMIT).expect("the machine runs");
    powered_off(&outcome);
    passed(&outcome, &nonce);
    quiet(&outcome, &[]);
    known(&outcome);
}

#[test]
fn smoke_on_linux_6_1() {
    smoke_passes(KernelKind::V6_1, "native-6.1", &[], 1);
}

/// Context images are written back late, as silicon may.
#[test]
fn smoke_on_linux_6_12() {
    smoke_passes(KernelKind::V6_12, "native-6.12", &["--profile", "kbl,late-save"], 1);
}

/// With a display engine that nothing is connected to.
#[test]
fn smoke_on_the_newest_linux() {
    smoke_passes(KernelKind::Newest, "native-newest", &["--profile", "kbl,display"], 1);
}

/// Two CPUs and a second video engine; two CPUs, so that the driver's interrupt handler and its submissions race.
#[test]
fn smoke_on_two_cpus() {
    smoke_passes(KernelKind::V6_1, "native-smp", &["--profile", "skl,gt3,display,late-save"], 2);
}

/// A completion that is told late is no reason to hang, not even at the end of the machine.
#[test]
fn power_off_while_the_gpu_goes_idle() {
    let kernel = kernel(KernelKind::Newest);
    let gpu = ["--profile", "kbl,display,late-status"];
    let machine = machine("native-late", &kernel, "smoke bench 3\npoweroff -f", &gpu);
    let outcome = machine.run(LIMIT).expect("the machine runs");
    powered_off(&outcome);
    passed(&outcome, "bench");
    quiet(&outcome, &[]);
    known(&outcome);
}

/// The interrupt line instead of messages.
#[test]
fn smoke_on_the_interrupt_line() {
    let kernel = kernel(KernelKind::V6_12);
    let machine = machine("native-intx", &kernel, "smoke bench 50\ncat /proc/interrupts\npoweroff -f", &[]);
    let outcome = machine.arguments(&format!("{ARGUMENTS} pci=nomsi")).run(LIMIT).expect("the machine runs");
    powered_off(&outcome);
    passed(&outcome, "bench");
    quiet(&outcome, &[]);
    let line = outcome.serial.lines().find(|line| line.contains("i915") && line.contains("IO-APIC"));
    assert!(line.is_some(), "i915 does not use the interrupt line");
}

/// A machine whose time is up says what it was at: the emulator's CPU, the GPU, and the kernel in its own words.
#[test]
fn a_stuck_machine_is_examined() {
    let kernel = kernel(KernelKind::V6_1);
    let script = "smoke bench 20\necho nothing follows\nsleep 100000";
    let mut running = machine("native-stuck", &kernel, script, &[]).start().expect("the machine starts");
    running.expect("nothing follows", LIMIT).expect("the guest comes so far");
    let outcome = running.wait(Duration::from_secs(1)).expect("the machine is killed");
    assert_eq!(outcome.end, End::TimedOut);
    for found in ["VERDICT bench pass", "RIP=", "rcs0 start=", "last accesses", "Kernel panic", "Call Trace", "sleep"] {
        assert!(outcome.autopsy.contains(found), "no '{found}' in this:\n{}", outcome.autopsy);
    }
}

/// A batch that never ends is reset on every engine, and the next one passes.
#[test]
fn a_hung_batch_is_reset() {
    let kernel = kernel(KernelKind::V6_12);
    let outcome =
        machine("native-hang", &kernel, "smoke hang-once\npoweroff -f", &[]).run(LIMIT).expect("the machine runs");
    powered_off(&outcome);
    passed(&outcome, "hang-once");
    quiet(&outcome, &["GPU HANG"]);
}

/// The same with the kernel's own heartbeats and its error capture, which reads the whole aperture; then load everywhere.
#[test]
#[ignore = "takes a minute more and shows nothing that the short test does not"]
fn hangs_with_the_kernels_own_patience() {
    let kernel = kernel(KernelKind::Newest);
    let loads = kernel.modules.iter().filter_map(|module| module.file_name()?.to_str());
    let loads: String = loads.map(|name| format!("insmod /modules/{name}\n")).collect();
    let script = format!("{loads}smoke hang bcs0 2\nsmoke hang rcs0 1\nsmoke load 5 all\npoweroff -f");
    let initrd = Initrd::new().and_then(|initrd| initrd.modules(&kernel));
    let initrd = initrd.and_then(|initrd| initrd.program(smoke())).expect("the initrd is put together");
    let machine = machine("native-hang-long", &kernel, "", &[]).module(initrd.script(&script).finish());
    let outcome = machine.run(LIMIT).expect("the machine runs");
    powered_off(&outcome);
    passed(&outcome, "hang");
    passed(&outcome, "load");
    quiet(&outcome, &["GPU HANG"]);
}

/// What is measured here is what a guest of Prism is held against. Phases: 1-2 waited, 3-4 queued, 5-6 remapped, 10
/// after the probe.
#[test]
fn numbers() {
    let kernel = kernel(KernelKind::V6_1);
    let mark = "printf '\\n' | dd of=/sys/bus/pci/devices/0000:00:02.0/config bs=1 seek=240 conv=notrunc 2>/dev/null";
    let script = format!("{mark}\nsmoke bench 500\nsmoke remap 100\nsmoke load 5\npoweroff -f");
    let outcome = machine("native-numbers", &kernel, &script, &[]).run(LIMIT).expect("the machine runs");
    powered_off(&outcome);
    for mode in ["bench", "remap", "load"] {
        passed(&outcome, mode);
    }
    quiet(&outcome, &[]);
    let stats = known(&outcome);
    let at = |mark: u64| {
        let phase = |phase: &&Value| phase["mark"] == mark;
        let phases = stats["phases"].as_array().and_then(|phases| phases.iter().find(phase));
        phases.unwrap_or_else(|| panic!("phase {mark} was not marked"))["counts"].clone()
    };
    let probe = at(10);
    println!(
        "probe: {} reads, {} writes, {} PTE writes",
        probe["register_reads"], probe["register_writes"], probe["pte_writes"]
    );
    for (name, from, to, times) in [("waited", 1, 2, 500), ("queued", 3, 4, 500), ("remap", 5, 6, 100)] {
        let (from, to) = (at(from), at(to));
        let each = |counter: &str| {
            let of = |counts: &Value| counts[counter].as_f64().expect("a counter");
            (of(&to) - of(&from)) / f64::from(times)
        };
        let (reads, writes, messages) = (each("register_reads"), each("register_writes"), each("messages"));
        println!(
            "{name}: {reads:.2} reads, {writes:.2} writes, {messages:.2} messages, {:.1} us each",
            each("ns") / 1e3
        );
        assert!(reads + writes < 40.0, "{name}: a submission takes {reads} reads and {writes} writes");
    }
    for line in outcome.serial.lines().filter(|line| line.starts_with("BENCH") || line.starts_with("REMAP")) {
        println!("{line}");
    }
}

/// The GPU starts again with the machine, twice.
#[test]
fn warm_reboot_twice() {
    let kernel = kernel(KernelKind::V6_1);
    let script = "smoke bench 20\necho what next\nread word\n$word -f";
    let mut running =
        machine("native-reboot", &kernel, script, &[]).on_reset(OnReset::Boot).start().expect("the machine starts");
    for word in ["reboot\n", "reboot\n", "poweroff\n"] {
        next_round(&mut running, word);
    }
    let outcome = running.wait(LIMIT).expect("the machine ends");
    powered_off(&outcome);
    quiet(&outcome, &[]);
    assert_eq!(outcome.serial.matches("VERDICT bench pass").count(), 3, "three rounds passed");
}

fn next_round(running: &mut Running, word: &str) {
    running.expect("VERDICT bench pass", LIMIT).expect("a round passes");
    running.expect("what next", LIMIT).expect("the guest asks");
    running.send(word.as_bytes()).expect("the guest listens");
}
