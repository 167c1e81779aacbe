//! One terminal, two guests and the monitor: who is shown, who gets the keys, and what commands do.

use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::guest::Initrd;
use qemu::machine::{End, Gpu, Machine};
use qemu::provision::KernelKind;

const LIMIT: Duration = Duration::from_secs(120);

/// Answers each number with seven times it, and `off` by powering off.
fn guest(name: &str, nonce: &str) -> Vec<u8> {
    let script = format!(
        "echo ready {nonce} {name}\n\
         while read word; do case $word in off) poweroff -f;; *) echo {name} says $((word * 7));; esac; done"
    );
    Initrd::new().unwrap().script(&script).finish()
}

fn machine(nonce: &str) -> Machine {
    let vm = |name: &str| {
        format!(
            "[[vm]]\nname = \"{name}\"\nmemory_mib = 256\nkernel = \"kernel\"\ninitrd = \"{name}\"\n\
             cmdline = \"console=ttyS0 quiet panic=-1\"\n"
        )
    };
    let kernel = std::fs::read(KernelKind::V6_1Cloud.get().unwrap().image).unwrap();
    let bundle = Bundle::new(&(vm("alpha") + &vm("beta")))
        .file("kernel", &kernel)
        .file("alpha", &guest("alpha", nonce))
        .file("beta", &guest("beta", nonce))
        .finish();
    Machine::svm_tcg("console", tests::image()).gpu(Gpu::None).module(bundle).arguments("once")
}

#[test]
fn the_console_serves_two_guests_and_a_monitor() {
    let nonce = tests::nonce();
    let mut running = machine(&nonce).start().unwrap();
    let mut talk = |keys: &str, answers: &[&str]| {
        running.send(keys.as_bytes()).unwrap();
        for answer in answers {
            running.expect(answer, LIMIT).unwrap_or_else(|error| panic!("after {keys:?}: {error}"));
        }
    };
    // What is typed earlier is lost: firmware and Prism set the UART up.
    talk("", &["@vm vm=beta n=2 state=running"]);
    // What a guest said before it got the focus is shown again.
    talk("\x1d1", &["-- alpha --", &format!("ready {nonce} alpha")]);
    talk("6\r", &["\nalpha says 42"]);
    talk("\x1d2", &["-- beta --", &format!("ready {nonce} beta")]);
    talk("5\r", &["\nbeta says 35"]);
    // Among all, keys still go to the guest that had the focus last, and lines carry names.
    talk("\x1da", &["-- all guests --"]);
    talk("4\r", &["[beta] beta says 28"]);
    talk("\x1d9", &["-- no such guest --"]);
    talk("\x1dm", &["prism> "]);
    talk("vms\r", &["prism: vm 1 (alpha): ", "prism: vm 2 (beta): ", "prism> "]);
    talk("kill 7\r", &["there is no guest 7", "prism> "]);
    talk("nonsense\r", &["unknown; try help", "prism> "]);
    talk("help\r", &["reset N", "prism> "]);
    talk("stats\r", &["@stat vm=alpha group=exit", "@stat vm=beta group=exit", "prism> "]);
    talk("kill 1\r", &["@vm vm=alpha n=1 state="]);
    talk("\r", &["-- back --"]);
    talk("3\r", &["[beta] beta says 21"]);
    talk("off\r", &["@vm vm=beta n=2 state=off cause=poweroff"]);
    let outcome = running.wait(LIMIT).unwrap();
    if !matches!(outcome.end, End::Verdict(_)) {
        tests::fail(&outcome, "the run should end when no guest is left");
    }
}
