//! How Prism ends by faults of its own, on its second CPU: with a report that says what every CPU did last; or, where it
//! has no chance to give one, with what the runner finds in the machine's memory.

use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::machine::{End, Gpu, Machine, Outcome};

const LIMIT: Duration = Duration::from_secs(60);
/// What Prism writes to the exit device: see `hv::power::Exit`.
const SUCCESS: End = End::Verdict(0x10);
const PANIC: End = End::Verdict(0x11);

/// Faults, and what the report says first.
const FAULTS: [(&str, &str); 8] = [
    ("panic", "selftest fault=panic (boot/src/fault.rs:"),
    ("write", "exception #PF in Prism, error 0x3,"),
    ("gp", "exception #GP in Prism, error 0x0,"),
    ("ud", "exception #UD in Prism, error 0x0,"),
    // An overrun stack: on the stack of its own that the handler has.
    ("stack", "exception #DF in Prism, error 0x0,"),
    // By INT 18, as no instruction raises a machine check.
    ("mc", "exception #MC in Prism, error 0x0,"),
    // GS base is wrong, as it is for some instructions of AMD-V's world switch.
    ("gs", "exception #PF in Prism, error 0x0,"),
    // The CPU holds the console's lock.
    ("say", "selftest fault=say (boot/src/fault.rs:"),
];

fn machine(name: &str) -> Machine {
    Machine::svm_tcg(name, tests::image()).gpu(Gpu::None).cpus(2).memory_mib(512)
}

fn fault(machine: Machine, kind: &str, cpu: u32) -> Outcome {
    machine.arguments(&format!("selftest fault={kind},cpu={cpu}")).run(LIMIT).unwrap()
}

/// One report, that of the right CPU, which tells what both did last.
#[track_caller]
fn expect_report(outcome: &Outcome, cpu: u32, report: &str) {
    let lines = |text: &str| outcome.serial.lines().filter(|line| line.contains(text)).count();
    let told = lines("PANIC") == 1 && lines(&format!("PANIC: CPU {cpu}: {report}")) == 1;
    let [own, other] = [cpu, 1 - cpu].map(|cpu| told_of(&outcome.serial, cpu));
    let traced =
        own.contains("selftest: provokes a fault") && other.contains("sleeps") && other.contains("NMI in Prism");
    if outcome.end != PANIC || !told || !traced {
        tests::fail(
            outcome,
            &format!("there should be one report, '{report}', and what both CPUs did:\n{own}\n{other}"),
        );
    }
}

/// What a report tells of this CPU.
fn told_of(text: &str, cpu: u32) -> String {
    let head = format!("CPU {cpu} did last");
    let mut lines = text.lines().skip_while(|line| !line.contains(&head)).skip(1).peekable();
    let mut told = String::new();
    while let Some(line) = lines.next_if(|line| !line.contains(" did last") && !line.starts_with('@')) {
        told += &format!("{line}\n");
    }
    told
}

#[test]
fn faults_of_a_second_cpu_are_reported() {
    for (kind, report) in FAULTS {
        expect_report(&fault(machine("fault"), kind, 1), 1, report);
    }
}

/// The first CPU is not special.
#[test]
fn faults_of_the_first_cpu_are_reported() {
    expect_report(&fault(machine("fault-first"), "stack", 0), 0, "exception #DF in Prism, error 0x0,");
}

/// Bochs is slow: the worst of them, and a panic.
#[test]
fn faults_are_reported_on_vmx() {
    for kind in ["stack", "panic"] {
        let machine = Machine::vmx_bochs("fault-vmx", tests::image()).cpus(2);
        let report = FAULTS.iter().find(|(name, _)| *name == kind).unwrap().1;
        expect_report(&fault(machine, kind, 1), 1, report);
    }
}

/// The mediator's lock is no obstacle.
#[test]
fn faults_under_the_mediators_lock_are_reported() {
    let config = "[[vm]]\nname = \"a\"\nmemory_mib = 32\nkernel = \"none\"\ngpu = {}\n";
    let bundle = Bundle::new(config).file("none", b"").finish();
    let machine = machine("fault-mediator").gpu(Gpu::Model(Vec::new())).module(bundle);
    let outcome = machine.arguments("fault=ud,cpu=1").run(LIMIT).unwrap();
    expect_report(&outcome, 1, "exception #UD in Prism, error 0x0,");
    let told = told_of(&outcome.serial, 1);
    assert!(told.contains("has the mediator's lock") && !told.contains("frees"), "{told}");
}

/// A report that fails itself ends in one line.
#[test]
fn a_fault_in_the_report_ends_the_run() {
    let outcome = fault(machine("fault-twice"), "twice", 1);
    if outcome.end != PANIC || !outcome.serial.contains("PANIC: CPU 1: panic, in the report") {
        tests::fail(&outcome, "one line should say that the report failed");
    }
}

/// Nobody is left to say anything but the emulator, which has the registers, and the memory.
#[test]
fn a_triple_fault_is_told_by_the_runner() {
    let outcome = fault(machine("fault-triple"), "triple", 1);
    let words = &outcome.autopsy;
    let [first, second] = [0, 1].map(|cpu| told_of(words, cpu));
    let traced = first.contains("sleeps") && second.trim_end().ends_with("selftest: provokes a fault");
    // The IDT that the self-test loaded.
    let registers = words.contains("prism_hv::fault::provoke+") && words.contains("IDT=     0000000000000000 00000000");
    let kept = std::fs::read_to_string(outcome.dir.join("autopsy.log")).unwrap_or_default();
    if outcome.end != End::PowerOff || !traced || !registers || kept != *words {
        tests::fail(&outcome, "the runner should tell what each CPU did last");
    }
}

/// So is a machine whose time is up.
#[test]
fn an_endless_run_is_told_by_the_runner() {
    let mut running = machine("linger").arguments("selftest linger").start().unwrap();
    running.expect("@selftest", LIMIT).unwrap();
    let outcome = running.wait(Duration::from_millis(500)).unwrap();
    assert_eq!(outcome.end, End::TimedOut);
    assert!(told_of(&outcome.autopsy, 1).contains("interrupt 0x21 in Prism"), "{}", outcome.autopsy);
}

/// NMIs that nobody asked for do no harm: to the CPU that sends them, nor to one that sleeps.
#[test]
fn nmis_do_no_harm_in_root_mode() {
    for machine in [machine("nmi"), Machine::vmx_bochs("nmi-vmx", tests::image()).cpus(2)] {
        let outcome = fault(machine, "nmi", 1);
        if outcome.end != SUCCESS || !outcome.serial.contains("@nmis fewest=") {
            tests::fail(&outcome, "every CPU should take NMIs and go on");
        }
    }
}

/// Nor to one that runs a guest, at whatever instruction of the world switch they come.
#[test]
fn nmis_do_no_harm_to_guests() {
    for machine in [machine("nmi-guest"), Machine::vmx_bochs("nmi-guest-vmx", tests::image()).cpus(2)] {
        let nonce = tests::nonce();
        // On AMD-V in QEMU there is only one that guests run on, and that is CPU 1, too.
        let config = "[[vm]]\nname = \"ladder\"\nmemory_mib = 32\nvcpus = 2\ncpus = [1, 1]\nkernel = \"ladder\"\n";
        let ladder = qemu::build::assembled_guest("ladder", &nonce).unwrap();
        let bundle = Bundle::new(config).file("ladder", &ladder).finish();
        let outcome = machine.module(bundle).arguments("once nmis=20000").run(2 * LIMIT).unwrap();
        let console = qemu::console::Console::parse(&outcome.serial);
        let statistics = console.prism.iter().find_map(|line| line.strip_prefix("cpu 1: ")).unwrap_or_default();
        let taken =
            statistics.rsplit(", ").next().and_then(|nmis| nmis.strip_suffix(" NMI")?.parse().ok()).unwrap_or(0);
        let in_guest = console.count("ladder", "exit", "nmi").unwrap_or(0);
        println!("{}: {taken} NMIs, {in_guest} of them in the guest", outcome.dir.display());
        let lines = console.guest("ladder");
        let done = lines.iter().any(|line| line.trim() == format!("done {nonce}"));
        let bad = lines.iter().any(|line| line.starts_with("rung ") && !line.trim_end().ends_with(" ok"));
        if outcome.end != SUCCESS || !done || bad || in_guest == 0 || taken <= in_guest {
            tests::fail(&outcome, "the guest should not notice NMIs of its CPU");
        }
    }
}
