//! Everything at once on several CPUs: guests of one and two virtual CPUs that share them, the GPU loaded on all
//! engines, interrupts between CPUs, timers of every kind, page tables that change, neighbours that reset and switch off
//! at random moments.

use std::time::{Duration, Instant};

use qemu::console::Console;
use qemu::machine::{End, Outcome};
use qemu::provision::KernelKind;
use tests::fail;
use tests::prism::{self, Conversation, Guest};

/// How long the load lasts in each round.
const SECONDS: u64 = 50;
/// The guests that are judged by their verdicts; the others are reset and switched off under them.
const LASTING: [&str; 2] = ["alpha", "beta"];
/// What no guest's kernel may say, besides what `prism::quiet` looks for.
const TROUBLE: [&str; 7] = ["stall", "lockup", "BUG", "Oops", "Kernel panic", "stack guard page", "general protection"];
/// What Prism writes to the exit device when a guest did not end by itself: two are killed.
const KILLED: End = End::Verdict(0x17);

/// Numbers that look random: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Kernels look at their own pace for what does not go on; on a busy host a CPU that four guests share is slow.
const PATIENT: &str = "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120";

/// A script that waits to be told, then runs these jobs at the same time.
fn at_once(jobs: &[&str]) -> String {
    let started: String = jobs.iter().map(|job| format!("({job}) &\n")).collect();
    prism::pause("ready") + &started + "wait\n"
}

fn guests(seed: u64) -> [Guest; 4] {
    let churn = |seed: u64| format!("churn {SECONDS} {seed}");
    let load = format!("smoke load {SECONDS} all");
    let remaps = format!(
        "end=$(($(cut -d. -f1 /proc/uptime) + {SECONDS}))\n\
         while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do smoke remap 10 || echo CASE remap FAIL again; done"
    );
    let alpha = Guest::new("alpha", KernelKind::V6_1, &at_once(&[&churn(seed), &load, &remaps]))
        .gpu("vcpus = 2\ncpus = [0, 1]\ngpu = { aperture_mib = 64 }");
    // Without TSC deadlines its local APIC's timer counts down.
    let beta = Guest::new("beta", KernelKind::V6_12, &at_once(&[&churn(seed + 1), &load, &remaps]))
        .gpu("cpus = [0]\ngpu = { aperture_mib = 64 }")
        .words("lapic=notscdeadline");
    // Reset from outside, wherever it is: in its kernel's start, i915's probe, or its load.
    let gamma =
        Guest::new("gamma", KernelKind::V6_1, "smoke load 600 all\n").gpu("cpus = [1]\ngpu = { aperture_mib = 64 }");
    // Switches itself off after a random time, and is started again.
    let off = format!("sleep $((($(date +%s) + {seed}) % 4))\npoweroff -f\n");
    let delta = Guest::bare("delta", KernelKind::V6_1Cloud, &[], &off).gpu("cpus = [1]").words("nolapic_timer");
    [alpha, beta, gamma, delta].map(|guest| guest.memory_mib(512).words(PATIENT).program(tests::churn()))
}

/// Resets one neighbour at random moments, and starts the other one again when it has switched itself off.
fn disturb(talk: &mut Conversation, random: &mut Random) -> u32 {
    let end = Instant::now() + Duration::from_secs(SECONDS + 5);
    let mut disturbances = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(300 + random.below(5000)));
        let console = Console::parse(&talk.so_far());
        let rests = |name: &str| console.state(name).is_some_and(|state| ["off", "stopped"].contains(&state.0));
        match random.below(3) {
            _ if rests("delta") => talk.command("reset 4"),
            _ if rests("gamma") => talk.command("reset 3"),
            0 => talk.command("reset 4"),
            _ => talk.command("reset 3"),
        }
        disturbances += 1;
    }
    disturbances
}

fn stress(run: &str, cpus: u32, seed: u64) {
    println!("{run}: seed {seed}");
    let guests = guests(seed % 1_000_000);
    let mut talk = Conversation::start(prism::machine(run, &guests, &["--profile", "kbl,late-save"]).guest_cpus(cpus));
    let mut random = Random(seed | 1);
    // The neighbours come when the others have their drivers: i915 gives a GPU up whose first answer takes a fifth of a
    // second, which it may take while others load it.
    for (number, name) in [(3, "gamma"), (4, "delta")] {
        talk.expect(&format!("@vm vm={name} n={number} state=running"));
        talk.command(&format!("kill {number}"));
    }
    talk.paused(&LASTING, "ready");
    talk.go(1);
    talk.go(2);
    let disturbances = disturb(&mut talk, &mut random);
    // In whatever order.
    for _ in LASTING {
        talk.expect("] LOG end");
    }
    talk.command("kill 3");
    talk.command("kill 4");
    judge(&talk.end(), disturbances);
}

fn judge(outcome: &Outcome, disturbances: u32) {
    let console = Console::parse(&outcome.serial);
    for (name, lines) in &console.guests {
        if let Some(line) = lines.iter().find(|line| TROUBLE.iter().any(|word| line.contains(word))) {
            fail(outcome, &format!("the kernel of {name} says: {line}"));
        }
    }
    if let Some(line) = console.prism.iter().find(|line| line.contains("crashed") || line.contains("PANIC")) {
        fail(outcome, &format!("Prism says: {line}"));
    }
    if outcome.end != KILLED {
        fail(outcome, "two guests should power off, two be killed, and Prism end by itself");
    }
    for name in LASTING {
        prism::quiet(outcome, &console, name);
        for verdict in ["churn", "load", "remap"] {
            prism::passed(outcome, name, verdict);
        }
    }
    let began = |name| console.facts.iter().filter(|f| f.get("vm") == name && f.get("state") == "running").count();
    let (gamma, delta) = (began("gamma"), began("delta"));
    println!("{disturbances} disturbances: gamma began {gamma} times, delta {delta} times");
    if gamma < 3 || delta < 2 {
        fail(outcome, "the neighbours should have begun anew several times");
    }
    prism::gpu_stats(outcome);
}

/// A seed that no earlier run has had; told, so that a run can be had again.
fn fresh_seed() -> u64 {
    let word = std::env::var("PRISM_STRESS_SEED").ok();
    let told = word.and_then(|word| word.parse().ok());
    told.unwrap_or_else(|| u64::from_str_radix(&tests::nonce()[..12], 16).unwrap_or(1))
}

#[test]
fn two_cpus() {
    stress("stress-2", 2, fresh_seed());
}

#[test]
fn two_cpus_again() {
    stress("stress-2-again", 2, fresh_seed());
}

#[test]
#[ignore = "four CPUs want a host that has them"]
fn four_cpus() {
    stress("stress-4", 4, fresh_seed());
}

#[test]
#[ignore = "takes half an hour and more"]
fn twenty_in_a_row() {
    for round in 1..=20 {
        stress(&format!("stress-2-{round}"), 2, fresh_seed());
    }
}
