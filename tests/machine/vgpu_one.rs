//! One guest with a vGPU: stock i915 probes it without complaint, the smoke program passes, and what a probe, a
//! submission and a page-table update cost is within the design's bounds (design section 6).

use qemu::console::Console;
use qemu::guest::Initrd;
use qemu::machine::{Gpu, Machine};
use qemu::provision::KernelKind;
use tests::prism::{self, Conversation, Guest};

/// GPU register and page-table exits of a probe, the display fused off.
const PROBE: u64 = 1_500;
/// GPU register exits of a submission that does nothing, its completion interrupt included.
const SUBMISSION: f64 = 9.0;
/// The same for one that the driver sleeps for: with the exits for letting in and hearing of a user interrupt, which on
/// a busy host comes before that of the completion.
const WAITED: f64 = 14.0;
const COUNT: u32 = 500;
const REMAPS: u32 = 100;

fn one_guest(kernel: KernelKind, run: &str, gpu: &[&str]) {
    let nonce = tests::nonce();
    let pause = prism::pause;
    let script = [
        pause("probed"),
        format!("smoke bench {COUNT} rcs0 polled\n"),
        pause("polled-rcs0"),
        format!("smoke bench {COUNT} bcs0 polled\n"),
        pause("polled-bcs0"),
        format!("smoke bench {COUNT} rcs0 waited\n"),
        pause("waited-rcs0"),
        format!("smoke bench {COUNT} bcs0 waited\n"),
        pause("waited-bcs0"),
        format!("smoke remap {REMAPS}\n"),
        pause("remapped"),
        format!("smoke {nonce}"),
    ];
    let guest = Guest::new("alpha", kernel, &script.concat()).before(&pause("unloaded"));
    let mut talk = Conversation::start(prism::machine(run, &[guest], gpu));
    let mut at = |moment: &str| {
        talk.paused(&["alpha"], moment);
        let stats = talk.stats();
        talk.go(1);
        stats
    };
    let unloaded = at("unloaded");
    let counts = ["probed", "polled-rcs0", "polled-bcs0", "waited-rcs0", "waited-bcs0", "remapped"].map(&mut at);
    let outcome = talk.end();
    prism::ended_well(&outcome, &["alpha"]);
    prism::detected(&outcome, "alpha");
    prism::passed(&outcome, "alpha", &nonce);
    prism::gpu_stats(&outcome);
    let console = Console::parse(&outcome.serial);

    let between = |from: &Console, to: &Console| prism::gpu_exits(to, "alpha") - prism::gpu_exits(from, "alpha");
    let probe = between(&unloaded, &counts[0]);
    println!("{run}: {probe} GPU exits of a probe");
    assert!(probe > 100 && probe <= PROBE, "a probe took {probe} GPU exits");
    let waits = [("polled for", "rcs0"), ("polled for", "bcs0"), ("waited for", "rcs0"), ("waited for", "bcs0")];
    for ((how, engine), pair) in waits.into_iter().zip(counts.windows(2)) {
        let more = |group: &str, name: &str| {
            let of = |c: &Console| c.count("alpha", group, name).unwrap_or(0);
            of(&pair[1]) - of(&pair[0])
        };
        // The kernel submits as well, now and then: heartbeats and what an engine goes idle with, no-ops all.
        let submissions = more("submissions", engine);
        assert!((COUNT.into()..=2 * u64::from(COUNT)).contains(&submissions), "{submissions} submissions on {engine}");
        let each = between(&pair[0], &pair[1]) as f64 / submissions as f64;
        let interrupts = more("interrupts", "msi") as f64 / submissions as f64;
        println!(
            "{run}: a no-op {how} on {engine}: {each:.2} GPU exits, {interrupts:.2} messages ({submissions} of them)"
        );
        // Who waits by interrupt arms it, and on a busy host hears of the end of the work and of the context apart.
        let bound = if how == "polled for" { SUBMISSION } else { WAITED };
        assert!(each > 4.0 && each <= bound, "a no-op {how} on {engine} took {each} GPU exits");
    }
    let tracked = |c: &Console| c.count("alpha", "exit", "tracked-write").unwrap_or(0);
    let each = (tracked(&counts[5]) - tracked(&counts[4])) as f64 / f64::from(REMAPS);
    println!("{run}: {each:.2} exits at page tables a buffer of 2 MiB that i915 moves");
    for line in console.guest("alpha").iter().filter(|line| line.starts_with("BENCH") || line.starts_with("REMAP")) {
        println!("{run}: {line}");
    }
}

#[test]
fn linux_6_1() {
    one_guest(KernelKind::V6_1, "vgpu-one-6.1", &[]);
}

/// Context images are written back late, as silicon may; the blitter obeys register writes, as silicon does.
#[test]
fn linux_6_12() {
    one_guest(KernelKind::V6_12, "vgpu-one-6.12", &["--profile", "kbl,display,late-save,obeys-lri"]);
}

/// Submit and wait, in a guest against on the same machine without Prism. A report: nothing is decided by time.
#[test]
#[ignore = "times, which mean something on an idle machine only"]
fn ratio_to_native() {
    let script = format!("smoke bench {COUNT} rcs0 waited\nsmoke bench {COUNT} bcs0 waited");
    let kernel = KernelKind::V6_1.get().expect("the kernel is provisioned");
    let initrd = Initrd::new().and_then(|initrd| initrd.modules(&kernel)?.load(&kernel, "error_capture=0"));
    let initrd = initrd.and_then(|initrd| initrd.program(tests::smoke())).expect("the initrd is put together");
    let native = Machine::native("vgpu-ratio-native", &kernel.image)
        .module(initrd.script(&script).script("poweroff -f").finish())
        .arguments("console=ttyS0 rdinit=/init quiet panic=-1")
        .gpu(Gpu::Model(Vec::new()))
        .run(prism::LIMIT)
        .expect("the machine runs");
    let guest = prism::machine("vgpu-ratio", &[Guest::new("alpha", KernelKind::V6_1, &script)], &[]);
    let guest = guest.run(prism::LIMIT).expect("the machine runs");
    for engine in ["rcs0", "bcs0"] {
        for what in ["mean_ns", "median_ns", "min_ns"] {
            let [inside, outside] = [&guest, &native].map(|outcome| {
                let start = format!("BENCH wait {engine} ");
                let line = outcome.serial.lines().find_map(|line| line.split_once(&start)).map(|(_, fields)| fields);
                let field = line.and_then(|fields| fields.split_whitespace().find_map(|word| word.strip_prefix(what)));
                let number = field.and_then(|text| text.strip_prefix('=')?.parse::<f64>().ok());
                number.unwrap_or_else(|| tests::fail(outcome, "no figure"))
            });
            println!("{engine} {what}: guest {inside:.0}, native {outside:.0}, ratio {:.2}", inside / outside);
        }
    }
}
