//! Two virtual CPUs, each on a CPU of its own: one stores page-table entries without end, the other submits (issue 2, S4).

use qemu::provision::KernelKind;
use tests::prism::{self, Conversation, Guest};

const ROUNDS: u32 = 40;
const SYNCS: u32 = 400;

#[test]
fn no_store_to_a_page_table_is_missed() {
    let script = format!("bare race {ROUNDS}\nbare sync {SYNCS}\n");
    let guest = Guest::bare("alpha", KernelKind::V6_1Cloud, &[tests::bare().clone()], &script);
    let machine = prism::machine("vgpu-race", &[guest.gpu("vcpus = 2\ngpu = {}")], &[]).guest_cpus(2);
    let outcome = Conversation::start(machine).end();
    prism::ended_well(&outcome, &["alpha"]);
    prism::passed(&outcome, "alpha", "race");
    prism::passed(&outcome, "alpha", "sync");
}
