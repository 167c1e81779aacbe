//! A campaign without libFuzzer: every file of the corpus, then random inputs, so many executions and not so many
//! seconds. What breaks a rule is written to a file.

use crate::Target;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What came of a campaign.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Inputs run.
    pub executions: u64,
    /// What the target counts.
    pub work: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Where the first input that broke a rule is kept.
    pub broken: Option<PathBuf>,
}

/// A campaign.
#[derive(Clone, Copy, Debug)]
pub struct Campaign<'a> {
    /// Of what.
    pub target: Target,
    /// Where random inputs begin.
    pub seed: u64,
    /// How many of them.
    pub executions: u64,
    /// Files to run first.
    pub corpus: &'a Path,
    /// Where inputs that break a rule are kept.
    pub artifacts: &'a Path,
}

impl Campaign<'_> {
    /// Runs it, to its end or to the first input that breaks a rule.
    pub fn run(&self) -> Outcome {
        let begin = Instant::now();
        let mut outcome = Outcome { executions: 0, work: 0, seconds: 0.0, broken: None };
        let random = (0..self.executions).map(|i| random(self.seed, i, self.target.bytes));
        for input in files(self.corpus).into_iter().chain(random) {
            outcome.executions += 1;
            match catch_unwind(AssertUnwindSafe(|| (self.target.run)(&input))) {
                Ok(work) => outcome.work += work,
                Err(_) => {
                    outcome.broken = Some(self.keep(&input));
                    break;
                }
            }
        }
        outcome.seconds = begin.elapsed().as_secs_f64();
        outcome
    }

    /// Writes an input down and says how to run it again.
    fn keep(&self, input: &[u8]) -> PathBuf {
        let name = self.target.name;
        let hash =
            input.iter().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3));
        let path = self.artifacts.join(format!("{name}-{hash:016x}"));
        let kept = std::fs::create_dir_all(self.artifacts).and_then(|()| std::fs::write(&path, input));
        match kept {
            Ok(()) => println!("again: FUZZ_INPUT={} cargo test -p fuzz-targets replay", path.display()),
            Err(error) => println!("{}: {error}", path.display()),
        }
        path
    }
}

/// The inputs of a folder, by name; none if there is no such folder.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Random input number `index` of a seed: any length, the most often long ones.
fn random(seed: u64, index: u64, most: usize) -> Vec<u8> {
    let mut state = seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    };
    let length = most >> (next() % 4);
    let mut input = Vec::with_capacity(length + 8);
    while input.len() < length {
        input.extend(next().to_le_bytes());
    }
    input.truncate(length);
    input
}
