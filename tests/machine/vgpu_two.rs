//! Two guests, one GPU: both get right results at the same time, equal shares of a contended engine, and an idle one
//! costs the other nothing.

use std::collections::BTreeMap;

use qemu::console::Console;
use qemu::machine::Outcome;
use qemu::provision::KernelKind;
use tests::prism::{self, Conversation, Guest};
use tests::{fail, nonce};

const BOTH: [&str; 2] = ["alpha", "beta"];
/// One engine after the other: with all of them at once on one core the emulator's CPU is what is short, engines stand
/// idle half of the time, and shares say nothing about who is let in.
const ENGINES: [&str; 4] = ["rcs0", "bcs0", "vcs0", "vecs0"];
const LOAD_SECONDS: u32 = 5;
const LOTS: usize = 9;
/// Submissions of a lot: a thousand in all.
const LOT: usize = 112;

/// Both run the smoke program, then keep every engine loaded.
fn two_guests(kernel: KernelKind, run: &str, gpu: &[&str]) {
    let nonce = nonce();
    let loads = ENGINES.map(|engine| prism::pause(engine) + &format!("smoke load {LOAD_SECONDS} {engine} paused\n"));
    let script = prism::pause("ready") + &format!("smoke {nonce}\n") + &loads.concat();
    let guests = BOTH.map(|name| Guest::new(name, kernel, &script));
    let mut talk = Conversation::start(prism::machine(run, &guests, gpu));
    talk.paused(&BOTH, "ready");
    talk.go(1);
    talk.go(2);
    for engine in ENGINES {
        talk.paused(&BOTH, engine);
        // Each finds the length of its pieces alone; then both are let go, with pieces of one length.
        let mut units = 1;
        for (number, name) in (1..).zip(BOTH) {
            talk.go(number);
            let said = talk.paused(&[name], "calibrated");
            let found = said.lines().rfind(|line| line.starts_with(&format!("[{name}] LOAD {engine} ")));
            let found = found.and_then(|line| line.trim_end().rsplit_once("units=")?.1.parse::<u32>().ok());
            units = units.max(found.unwrap_or_else(|| panic!("{name} did not tell the length of its pieces: {said}")));
        }
        (1..=2).for_each(|number| talk.say(number, &units.to_string()));
    }
    let outcome = talk.end();
    prism::ended_well(&outcome, &BOTH);
    for name in BOTH {
        prism::detected(&outcome, name);
        prism::passed(&outcome, name, &nonce);
        prism::passed(&outcome, name, "load");
    }
    prism::gpu_stats(&outcome);
    ran_at_once(&outcome);
    for (engine, shares) in shares(&outcome) {
        println!("{run}: on {engine}, alpha got {:.1} % of the work", 100.0 * shares);
        if !(0.4..=0.6).contains(&shares) {
            fail(&outcome, &format!("alpha got {:.1} % of the work on {engine}", 100.0 * shares));
        }
    }
}

/// At least half of each guest's cases ended while the other was at its own.
fn ran_at_once(outcome: &Outcome) {
    let of = |name: &str| {
        let start = format!("[{name}] CASE ");
        let numbered = outcome.serial.lines().enumerate();
        numbered.filter(|(_, line)| line.starts_with(&start) && !line.contains(" load ")).map(|(at, _)| at).collect()
    };
    let cases: [Vec<usize>; 2] = BOTH.map(of);
    for (own, other) in [(&cases[0], &cases[1]), (&cases[1], &cases[0])] {
        let span = other[0]..other[other.len() - 1];
        let inside = own.iter().filter(|at| span.contains(at)).count();
        if 2 * inside < own.len() {
            fail(outcome, &format!("only {inside} of {} cases ran beside the other guest", own.len()));
        }
    }
}

/// Pieces that one guest has done on one engine.
#[derive(Default, Clone, Copy)]
struct Load {
    done: u64,
    first: u64,
    counting: bool,
}

/// By engine, alpha's part of the work from when both were loaded to when the first was done.
fn shares(outcome: &Outcome) -> BTreeMap<String, f64> {
    let mut loads: BTreeMap<String, [Load; 2]> = BTreeMap::new();
    let mut over: BTreeMap<String, f64> = BTreeMap::new();
    for line in outcome.serial.lines() {
        let Some((guest, text)) = line.strip_prefix('[').and_then(|line| line.split_once("] LOAD ")) else { continue };
        let Some(index) = BOTH.iter().position(|name| *name == guest) else { continue };
        let (engine, fields) = text.split_once(' ').unwrap_or_default();
        let number = |key: &str| {
            let word = fields.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            word.and_then(|word| word.trim().parse::<u64>().ok())
        };
        let pair = loads.entry(engine.to_owned()).or_default();
        pair[index].done = number("done").unwrap_or(pair[index].done);
        if pair.iter().all(|load| load.done > 0) && !pair[0].counting {
            for load in pair.iter_mut() {
                (load.first, load.counting) = (load.done, true);
            }
        }
        if fields.contains(" end ") && !over.contains_key(engine) {
            let work = pair.map(|load| (load.done - load.first) as f64);
            // A handful of pieces says nothing about shares.
            if work.iter().sum::<f64>() < 20.0 {
                fail(outcome, &format!("too little was done on {engine}: {work:?} pieces"));
            }
            over.insert(engine.to_owned(), work[0] / (work[0] + work[1]));
        }
    }
    if over.len() < 4 {
        fail(outcome, &format!("only {} engines were loaded by both", over.len()));
    }
    over
}

#[test]
fn linux_6_1() {
    two_guests(KernelKind::V6_1, "vgpu-two-6.1", &["--profile", "kbl,display,late-save"]);
}

#[test]
fn linux_6_12() {
    two_guests(KernelKind::V6_12, "vgpu-two-6.12", &["--profile", "kbl,obeys-lri"]);
}

#[test]
#[ignore = "the same again, three times a kernel"]
fn again_and_again() {
    for round in 1..=3 {
        for (kernel, name) in [(KernelKind::V6_1, "6.1"), (KernelKind::V6_12, "6.12"), (KernelKind::Newest, "newest")] {
            two_guests(kernel, &format!("vgpu-two-{name}-{round}"), &["--profile", "kbl,display,late-save,obeys-lri"]);
        }
    }
}

/// What a submission costs, in thousandths of an exit and of an access to the physical GPU.
#[derive(Debug)]
struct Cost {
    exits: u64,
    physical: u64,
}

/// The median of several lots: an emulator that is held up now and then gets interrupts in other company. Each guest has
/// a CPU of its own: on a shared one the neighbour's clock ticks would come in between, and i915 then arms interrupts
/// that it otherwise does without.
fn cost(run: &str, neighbour: bool) -> Cost {
    // Heartbeats would come by the clock, not by the submission.
    let calm = "for f in /sys/class/drm/card*/engine/*/heartbeat_interval_ms; do echo 0 > $f; done\n";
    let warm = "smoke bench 50 rcs0 waited\n";
    let lots: String = (0..LOTS)
        .map(|lot| prism::pause(&format!("lot-{lot}")) + &format!("smoke bench {LOT} rcs0 waited\n"))
        .collect();
    let script = format!("{calm}{warm}{lots}{}", prism::pause("done"));
    let mut guests = vec![Guest::new("alpha", KernelKind::V6_1, &script)];
    if neighbour {
        guests.push(Guest::new("beta", KernelKind::V6_1, &(warm.to_owned() + &prism::pause("idle"))));
    }
    let mut talk = Conversation::start(prism::machine(run, &guests, &[]).cpus(2));
    let mut waiting = vec![("alpha", "lot-0")];
    waiting.extend(neighbour.then_some(("beta", "idle")));
    talk.all_paused(&waiting);
    let mut counts = vec![talk.stats()];
    for lot in 1..=LOTS {
        talk.go(1);
        talk.paused(&["alpha"], &if lot < LOTS { format!("lot-{lot}") } else { "done".into() });
        counts.push(talk.stats());
    }
    talk.go(1);
    if neighbour {
        talk.go(2);
    }
    let outcome = talk.end();
    prism::ended_well(&outcome, if neighbour { &BOTH } else { &["alpha"] });
    let all = |c: &Console, group: &str, name: &str| BOTH.iter().filter_map(|vm| c.count(vm, group, name)).sum::<u64>();
    let median = |count: &dyn Fn(&Console) -> u64| {
        let submissions = |c: &Console| all(c, "submissions", "rcs0");
        let each = |w: &[Console]| 1_000 * (count(&w[1]) - count(&w[0])) / (submissions(&w[1]) - submissions(&w[0]));
        let mut lots: Vec<u64> = counts.windows(2).map(each).collect();
        lots.sort_unstable();
        lots[lots.len() / 2]
    };
    // Nothing at all is done for the idle vGPU: no switch, no exit, no access, no flush, no interrupt.
    let idle = |c: &Console| -> Vec<_> {
        c.facts.iter().filter(|f| f.kind == "gpu" && f.get("vm") == "beta").cloned().collect()
    };
    let (before, after) = (idle(&counts[0]), idle(&counts[LOTS]));
    assert_eq!(before, after, "an idle vGPU's counters moved");
    assert_eq!(before.is_empty(), !neighbour, "the neighbour has counters");
    Cost {
        exits: median(&|c| prism::gpu_exits(c, "alpha") + prism::gpu_exits(c, "beta")),
        physical: median(&|c| all(c, "phys", "registers")),
    }
}

fn an_idle_neighbour(percent: u64) {
    let (alone, beside) = (cost("vgpu-alone", false), cost("vgpu-beside", true));
    println!("thousandths a submission: alone {alone:?}, beside an idle neighbour {beside:?}");
    let no_dearer = |alone: u64, beside: u64| beside * 100 <= alone * (100 + percent);
    assert!(no_dearer(alone.exits, beside.exits), "{alone:?} {beside:?}");
    assert!(no_dearer(alone.physical, beside.physical), "{alone:?} {beside:?}");
}

/// The idle vGPU's own counters decide. What the other pays is compared with room for a busy host: runs of one kind differ
/// by 2 % there, since a guest that is held up waits by interrupt where it would else have polled.
#[test]
fn an_idle_neighbour_costs_nothing() {
    an_idle_neighbour(5);
}

/// The bound of issue 2. `gvt` has the same test on a clock of its own (`an_idle_neighbour_costs_nothing`).
#[test]
#[ignore = "decides on 1 %, which takes a host that does nothing else"]
fn an_idle_neighbour_costs_less_than_one_percent() {
    an_idle_neighbour(1);
}
