//! A guest program that exercises a GPU through stock i915 and says what it found, one line a case.
//!
//!     smoke NONCE                        every case on every engine
//!     smoke load SECONDS [ENGINE|all [paused]]   keep two pieces of work of about 20 ms queued (begin when told)
//!     smoke hang ENGINE COUNT            submit a batch that never ends, and be reset, again and again
//!     smoke hang-once                    on every engine: one such batch is reset and the next batch runs
//!     smoke bench COUNT [ENGINE [waited|queued|polled]]   time batches that do nothing
//!     smoke remap COUNT                  put two buffers of 2 MiB at one GPU address in turn
//!
//! Every mode ends with `VERDICT <nonce or mode> pass|fail n/m`; the exit status says the same.

mod batch;
mod blit;
mod cases;
mod i915;
mod modes;
mod sys;

use std::process::ExitCode;

use cases::Outcome;
use i915::{Class, Gpu};
use modes::{Begin, Bench};

/// Counts cases and prints a line for each.
#[derive(Default)]
pub struct Report {
    passed: usize,
    all: usize,
}

impl Report {
    fn case(&mut self, name: &str, on: impl std::fmt::Display, outcome: Outcome) {
        self.all += 1;
        match outcome {
            Ok(remark) => {
                self.passed += 1;
                println!("CASE {name} {on} ok {remark}");
            }
            Err(reason) => println!("CASE {name} {on} FAIL {reason}"),
        }
    }

    fn verdict(&self, nonce: &str) -> ExitCode {
        let pass = self.all > 0 && self.passed == self.all;
        println!("VERDICT {nonce} {} {}/{}", if pass { "pass" } else { "fail" }, self.passed, self.all);
        if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().ok();
    let mut report = Report::default();
    let done = match words[..] {
        ["load", seconds] => number(seconds).map(|seconds| modes::load(&mut report, seconds, "bcs0", Begin::Now)),
        ["load", seconds, engine] => {
            number(seconds).map(|seconds| modes::load(&mut report, seconds, engine, Begin::Now))
        }
        ["load", seconds, engine, "paused"] => {
            number(seconds).map(|seconds| modes::load(&mut report, seconds, engine, Begin::OnLine))
        }
        ["hang", engine, count] => number(count).map(|count| modes::hang(&mut report, engine, count)),
        ["hang-once"] => Some(modes::hang_once(&mut report)),
        ["bench", count] => number(count).map(|count| modes::bench(&mut report, count, "rcs0", Bench::Both)),
        ["bench", count, engine] => number(count).map(|count| modes::bench(&mut report, count, engine, Bench::Both)),
        ["bench", count, engine, "waited"] => {
            number(count).map(|count| modes::bench(&mut report, count, engine, Bench::Waited))
        }
        ["bench", count, engine, "queued"] => {
            number(count).map(|count| modes::bench(&mut report, count, engine, Bench::Queued))
        }
        ["bench", count, engine, "polled"] => {
            number(count).map(|count| modes::bench(&mut report, count, engine, Bench::Polled))
        }
        ["remap", count] => number(count).map(|count| modes::remap(&mut report, count)),
        [_nonce] => Some(all(&mut report)),
        _ => None,
    };
    match done {
        Some(Ok(())) => {}
        Some(Err(reason)) => report.case("start", "gpu", Err(reason)),
        None => {
            eprintln!(
                "usage: smoke NONCE | load SECONDS [ENGINE|all [paused]] | hang ENGINE COUNT | hang-once | bench COUNT [ENGINE [waited|queued|polled]] | remap COUNT"
            );
            return ExitCode::from(2);
        }
    }
    report.verdict(words.first().unwrap_or(&"-"))
}

/// Every case on every engine.
fn all(report: &mut Report) -> Result<(), String> {
    let gpu = cases::told(Gpu::open(), "open")?;
    let engines = cases::told(gpu.engines(), "engines")?;
    for engine in &engines {
        for (name, case) in cases::CASES {
            report.case(name, engine, case(&gpu, *engine));
        }
    }
    for engine in engines.iter().filter(|engine| engine.class == Class::Copy) {
        blit::all(&gpu, *engine, |name, outcome| report.case(name, engine, outcome));
    }
    report.case("aperture", "gpu", cases::aperture(&gpu));
    report.case("cpu-time", "gpu", cases::cpu_time(&gpu));
    Ok(())
}
