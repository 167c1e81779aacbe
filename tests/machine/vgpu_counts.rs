//! What page-table updates cost a guest, counted by Prism, where a guest program of ours does nothing else: i915 would
//! do other things in between.

use qemu::console::Console;
use qemu::machine::Outcome;
use qemu::provision::KernelKind;
use tests::fail;
use tests::prism::{self, Conversation, Guest};

/// Exits of a write of every entry of a 448 MiB partition, 224 table pages, and a submission.
const CLEAR: u64 = 300;
const TABLES: usize = 224;
const UPDATES: u64 = 50;

/// Runs a mode of the guest program; gives the counters at each of its pauses.
fn bare(run: &str, mode: &str, gpu: &'static str, moments: [&str; 2]) -> (Outcome, [Console; 2]) {
    let guest = Guest::bare("alpha", KernelKind::V6_1Cloud, &[tests::bare().clone()], &format!("bare {mode}\n"));
    let mut talk = Conversation::start(prism::machine(run, &[guest.gpu(gpu)], &[]));
    let counts = moments.map(|moment| {
        talk.paused(&["alpha"], moment);
        let stats = talk.stats();
        talk.go(1);
        stats
    });
    let outcome = talk.end();
    prism::ended_well(&outcome, &["alpha"]);
    prism::passed(&outcome, "alpha", mode.split(' ').next().unwrap_or_default());
    (outcome, counts)
}

fn tracked(console: &Console) -> u64 {
    console.count("alpha", "exit", "tracked-write").unwrap_or(0)
}

#[test]
fn clearing_a_partition() {
    let gpu = "gpu = { aperture_mib = 64, hidden_mib = 384 }";
    let (outcome, [whole, cleared]) = bare("vgpu-clear", "clear", gpu, ["whole", "cleared"]);
    let exits =
        tracked(&cleared) - tracked(&whole) + prism::gpu_exits(&cleared, "alpha") - prism::gpu_exits(&whole, "alpha");
    println!("{exits} exits of a write of every entry of a 448 MiB partition, and a submission");
    if !Console::parse(&outcome.serial).guest("alpha").iter().any(|line| line.ends_with(&format!("tables={TABLES}"))) {
        fail(&outcome, "the partition should have 224 table pages");
    }
    assert!(exits >= TABLES as u64 && exits <= CLEAR, "clearing took {exits} exits");
}

#[test]
fn updating_a_table() {
    let mode = format!("update {UPDATES}");
    let (outcome, [whole, updated]) = bare("vgpu-update", &mode, "gpu = {}", ["whole", "updated"]);
    let updates = tracked(&updated) - tracked(&whole);
    println!("{updates} exits at page tables of {UPDATES} updates of 512 entries");
    if updates != UPDATES {
        fail(&outcome, &format!("{UPDATES} updates of 512 entries of a table took {updates} exits, not one each"));
    }
}
