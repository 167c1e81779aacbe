//! What a user types, as typed.

use std::process::{Command, Output};

fn cargo_run(arguments: &[&str]) -> Output {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Cargo tells a test about its package; a user's shell does not.
    command.current_dir(qemu::paths::workspace()).env_remove("CARGO_MANIFEST_DIR");
    command.args(["run", "--quiet", "--"]).args(arguments).output().unwrap()
}

#[test]
fn help_lists_machines_guests_and_options() {
    let out = cargo_run(&["--help"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for word in ["svm-tcg", "vmx-kvm", "vmx-bochs", "native", "--once", "--config", "6.12", "provision", "Ctrl-] m"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
}

#[test]
fn mistakes_end_in_one_line_that_names_them() {
    let cases: [(&[&str], &str); 4] = [
        (&["--config", "/nowhere/p.toml"], "/nowhere/p.toml"),
        (&["--machine", "vax"], "vax"),
        (&["provision", "coffee"], "coffee"),
        (&["--frobnicate"], "--frobnicate"),
    ];
    for (arguments, named) in cases {
        let out = cargo_run(arguments);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.trim().lines().count() == 1 && text.contains(named), "{text}");
    }
}

/// The demo: two stock guests share the GPU, each checks its own results; then the table.
#[test]
fn the_demo_ends_by_itself_and_well() {
    let out = cargo_run(&["--once"]);
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let tail: Vec<&str> = text.lines().rev().take(60).collect();
    assert!(out.status.success(), "{errors}\n{tail:#?}");
    for row in ["state", "submissions rcs0", "engine time, us bcs0", "bytes audited", "TLB flushes", "exits"] {
        let line = text.lines().rev().find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("no row {row}"));
        assert!(!line.contains(" 0 ") && !line.contains(" - "), "{line}");
    }
}

/// Four guests at once, as often as it takes to meet what comes seldom.
fn four_guests(cpus: &str, times: usize) {
    for round in 1..=times {
        let out = cargo_run(&["--once", "--cpus", cpus, "--config", "qemu/demo/four.toml"]);
        let text = String::from_utf8_lossy(&out.stdout);
        let tail: Vec<&str> = text.lines().rev().take(60).collect();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "round {round}: {errors}\n{tail:#?}");
        println!("round {round} of {times} on {cpus} CPUs passed");
    }
}

#[test]
#[ignore = "takes most of an hour"]
fn four_guests_on_two_cpus_20_times() {
    four_guests("2", 20);
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn four_guests_on_four_cpus_5_times() {
    four_guests("4", 5);
}
