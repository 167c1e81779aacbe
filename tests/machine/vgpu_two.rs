//! Two guests, one GPU: both get right results at the same time, equal shares of a contended engine, and an idle one
//! costs the other nothing.

use std::collections::BTreeMap;

use qemu::console::Console;
use qemu::machine::Outcome;
use qemu::provision::KernelKind;
use tests::fit::least_squares;
use tests::prism::{self, Conversation, Guest};
use tests::{fail, nonce};

const BOTH: [&str; 2] = ["alpha", "beta"];
const ENGINES: [&str; 4] = ["rcs0", "bcs0", "vcs0", "vecs0"];
const LOAD_SECONDS: u32 = 15;
/// Lots of submissions between which the counters are read, the first uncounted.
const LOTS: usize = 17;
const LOT: usize = 70;

/// Both run the smoke program, then keep all engines loaded at once, each with pieces whose length it finds by itself.
fn two_guests(kernel: KernelKind, run: &str, gpu: &[&str]) {
    let nonce = nonce();
    let script = prism::pause("ready")
        + &format!("smoke {nonce}\n")
        + &prism::pause("load")
        + &format!("smoke load {LOAD_SECONDS} all paused\n");
    let guests = BOTH.map(|name| Guest::new(name, kernel, &script));
    // A CPU each: on one for all of them, guests that submit and the process that is the GPU take it from each other.
    let mut talk = Conversation::start(prism::machine(run, &guests, gpu).guest_cpus(2));
    talk.paused(&BOTH, "ready");
    talk.go(1);
    talk.go(2);
    talk.paused(&BOTH, "load");
    for (number, name) in (1..).zip(BOTH) {
        talk.go(number);
        talk.paused(&[name], "calibrated");
    }
    talk.go(1);
    talk.go(2);
    let outcome = talk.end();
    prism::ended_well(&outcome, &BOTH);
    for name in BOTH {
        prism::detected(&outcome, name);
        prism::passed(&outcome, name, &nonce);
        prism::passed(&outcome, name, "load");
    }
    prism::gpu_stats(&outcome);
    ran_at_once(&outcome);
    let shares = shares(&outcome);
    for (engine, share) in &shares {
        println!("{run}: on {engine}, alpha got {:.1} % of the work", 100.0 * share);
    }
    if let Some((engine, share)) = shares.iter().find(|(_, share)| !(0.4..=0.6).contains(share)) {
        fail(&outcome, &format!("alpha got {:.1} % of the work on {engine}", 100.0 * share));
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

/// What one guest says of its load of one engine.
#[derive(Default, Clone, Copy)]
struct Load {
    /// Microseconds that a unit took it alone.
    unit: f64,
    pieces: u64,
    /// Units done: the same work, whoever does it and however long his pieces are.
    done: u64,
    /// Units done when both were loaded.
    first: u64,
    begun: bool,
}

/// By engine, and in all, alpha's part of the work from when both had loaded the engine to when the first was done.
fn shares(outcome: &Outcome) -> Vec<(&'static str, f64)> {
    let mut loads = ENGINES.map(|engine| (engine, [Load::default(); 2]));
    let mut over: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for line in outcome.serial.lines() {
        let Some((guest, text)) = line.strip_prefix('[').and_then(|line| line.split_once("] LOAD ")) else { continue };
        let Some(index) = BOTH.iter().position(|name| *name == guest) else { continue };
        let (name, fields) = text.split_once(' ').unwrap_or_default();
        let Some((engine, pair)) = loads.iter_mut().find(|(engine, _)| *engine == name) else { continue };
        let number = |key: &str| {
            let word = fields.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            word.and_then(|word| word.parse::<u64>().ok())
        };
        if let Some(unit) = number("unit_us") {
            pair[index].unit = unit as f64;
        }
        if let (Some(pieces), Some(units)) = (number("done"), number("units")) {
            (pair[index].pieces, pair[index].done) = (pieces, pieces * units);
            if !pair[index].begun {
                pair[index].begun = true;
                pair.iter_mut().for_each(|load| load.first = load.done);
            }
        }
        if fields.trim_end().ends_with(" end") && pair.iter().all(|load| load.begun) {
            // A handful of pieces says nothing about shares.
            if pair.iter().map(|load| load.pieces).sum::<u64>() < 20 {
                fail(outcome, &format!("too little was done on {engine}"));
            }
            // In microseconds of an engine that does nothing else.
            let unit = (pair[0].unit + pair[1].unit) / 2.0;
            over.entry(engine).or_insert_with(|| pair.map(|load| (load.done - load.first) as f64 * unit));
        }
    }
    if over.len() < ENGINES.len() {
        fail(outcome, &format!("only {} engines were loaded by both", over.len()));
    }
    let share = |work: &[f64; 2]| work[0] / (work[0] + work[1]);
    let all = over.values().fold([0.0; 2], |all, work| [all[0] + work[0], all[1] + work[1]]);
    over.iter().chain([(&"all engines", &all)]).map(|(engine, work)| (*engine, share(work))).collect()
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

/// What happened between two readings of Prism's counters.
struct Lot {
    /// What a guest asked for or was told, at its own pace.
    causes: [f64; CAUSES.len()],
    exits: f64,
    physical: f64,
}

/// Counters of what makes exits and accesses to the physical GPU. How many submissions i915 adds when an engine has
/// come to rest, how many interrupts share a message and how often it lets one in for itself depend on how busy the
/// host is; what each costs does not.
const CAUSES: [(&str, &str); 5] =
    [("submissions", "rcs0"), ("interrupts", "msi"), ("interrupts", "masks"), ("flushes", "tlb"), ("flushes", "ggtt")];

/// Each guest has a CPU of its own: on a shared one the neighbour's clock ticks would come in between.
fn lots(run: &str, neighbour: bool) -> Vec<Lot> {
    // Heartbeats would come by the clock, not by the submission.
    let calm = "for f in /sys/class/drm/card*/engine/*/heartbeat_interval_ms; do echo 0 > $f; done\n";
    let warm = "smoke bench 50 rcs0 polled\n";
    let lots: String = (0..LOTS)
        .map(|lot| prism::pause(&format!("lot-{lot}")) + &format!("smoke bench {LOT} rcs0 polled\n"))
        .collect();
    let script = format!("{calm}{warm}{lots}{}", prism::pause("done"));
    let mut guests = vec![Guest::new("alpha", KernelKind::V6_1, &script)];
    if neighbour {
        guests.push(Guest::new("beta", KernelKind::V6_1, &(warm.to_owned() + &prism::pause("idle"))));
    }
    let mut talk = Conversation::start(prism::machine(run, &guests, &[]).guest_cpus(2));
    let mut waiting = vec![("alpha", "lot-0")];
    waiting.extend(neighbour.then_some(("beta", "idle")));
    talk.all_paused(&waiting);
    let mut counts = Vec::new();
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
    // Nothing at all is done for the idle vGPU: no switch, no exit, no access, no flush, no interrupt.
    let idle = |c: &Console| -> Vec<_> {
        c.facts.iter().filter(|f| f.kind == "gpu" && f.get("vm") == "beta").cloned().collect()
    };
    let (before, after) = (idle(&counts[0]), idle(&counts[LOTS - 1]));
    assert_eq!(before, after, "an idle vGPU's counters moved");
    assert_eq!(before.is_empty(), !neighbour, "the neighbour has counters");
    let all = |c: &Console, group: &str, name: &str| BOTH.iter().filter_map(|vm| c.count(vm, group, name)).sum::<u64>();
    let switches = |c: &Console| all(c, "switches", "all");
    assert_eq!(switches(&counts[0]), switches(&counts[LOTS - 1]), "an engine was switched");
    let exits = |c: &Console| BOTH.iter().map(|vm| prism::gpu_exits(c, vm)).sum::<u64>();
    let moved = |pair: &[Console], count: &dyn Fn(&Console) -> u64| (count(&pair[1]) - count(&pair[0])) as f64;
    // The first lot is not among them: it takes the engine back from the neighbour.
    let lot = |pair: &[Console]| Lot {
        causes: CAUSES.map(|(group, name)| moved(pair, &|c| all(c, group, name))),
        exits: moved(pair, &exits),
        physical: moved(pair, &|c| all(c, "phys", "registers")),
    };
    counts.windows(2).map(lot).collect()
}

/// By how many percent a submission beside the neighbour is dearer than alone, all else being equal: the causes and the
/// neighbour's presence explain a count, and what falls to the presence is set against the whole.
fn surcharge(alone: &[Lot], beside: &[Lot], count: fn(&Lot) -> f64) -> f64 {
    let row = |lot: &Lot, present: f64| {
        let [submissions, messages, masks, tlb, table] = lot.causes;
        [submissions, messages, masks, tlb, table, submissions * present]
    };
    let rows: Vec<_> = alone.iter().map(|lot| row(lot, 0.0)).chain(beside.iter().map(|lot| row(lot, 1.0))).collect();
    let counts: Vec<f64> = alone.iter().chain(beside).map(count).collect();
    let factors = least_squares(&rows, &counts);
    let submissions: f64 = alone.iter().map(|lot| lot.causes[0]).sum();
    100.0 * factors[5] / (alone.iter().map(count).sum::<f64>() / submissions)
}

/// The bound of issue 2, for a thousand submissions and more. `gvt` has the same test on a clock of its own, where the
/// counts are equal (`an_idle_neighbour_costs_nothing`).
#[test]
fn an_idle_neighbour_costs_less_than_one_percent() {
    let (alone, beside) = (lots("vgpu-alone", false), lots("vgpu-beside", true));
    let mut costs = Vec::new();
    for (what, count) in [("exits", (|lot| lot.exits) as fn(&Lot) -> f64), ("physical accesses", |lot| lot.physical)] {
        let total =
            |lots: &[Lot]| lots.iter().map(count).sum::<f64>() / lots.iter().map(|lot| lot.causes[0]).sum::<f64>();
        let more = surcharge(&alone, &beside, count);
        println!(
            "{what}: {:.3} a submission alone, {:.3} beside; the neighbour costs {more:.2} %",
            total(&alone),
            total(&beside)
        );
        costs.push((what, more));
    }
    for (what, more) in costs {
        assert!(more < 1.0, "an idle neighbour costs {more:.2} % in {what}");
    }
}
