//! The short campaign of `cargo test`, the long one, and the replay of one input.
//!
//! `FUZZ_EXECUTIONS=1000000 FUZZ_SEED=1 FUZZ_TARGET=mediator cargo test --release -p fuzz-targets long -- --ignored
//! --nocapture`

use fuzz_targets::campaign::{Campaign, Outcome};
use fuzz_targets::{TARGETS, Target};
use std::path::PathBuf;
use std::str::FromStr;

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn campaign(target: Target, seed: u64, executions: u64) {
    let corpus = variable("FUZZ_CORPUS").unwrap_or_else(|| folder("corpus")).join(target.name);
    let artifacts = folder("artifacts").join(target.name);
    let outcome = Campaign { target, seed, executions, corpus: &corpus, artifacts: &artifacts }.run();
    let Outcome { executions, work, seconds, .. } = outcome;
    let rate = executions as f64 / seconds.max(1e-9);
    println!(
        "{}: {executions} executions in {seconds:.1} s, {rate:.0} a second; {work} done; seed {seed}",
        target.name
    );
    assert_eq!(outcome.broken, None, "{} broke a rule", target.name);
}

fn wanted() -> impl Iterator<Item = Target> {
    let only: Option<String> = variable("FUZZ_TARGET");
    TARGETS.into_iter().filter(move |target| only.as_deref().is_none_or(|only| only == target.name))
}

#[test]
fn short() {
    for target in wanted() {
        campaign(target, 1, target.short);
    }
}

#[test]
#[ignore = "as long as FUZZ_EXECUTIONS says"]
fn long() {
    let executions = variable("FUZZ_EXECUTIONS").unwrap_or(100_000);
    for target in wanted() {
        campaign(target, variable("FUZZ_SEED").unwrap_or(1), executions);
    }
}

#[test]
fn replay() {
    let Some(path) = variable::<PathBuf>("FUZZ_INPUT") else { return };
    let input = std::fs::read(&path).unwrap();
    let target = wanted().find(|target| path.to_string_lossy().contains(target.name)).unwrap();
    (target.run)(&input);
}
