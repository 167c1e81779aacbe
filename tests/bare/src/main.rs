//! A guest program that drives a vGPU by itself, without i915, from user space as root.
//!
//!     bare clear              write every global page-table entry of the partition, submit, see that they count
//!     bare update COUNT       change 512 entries of one table of an address space and submit, again and again
//!     bare race ROUNDS        one CPU stores entries of a page table without end while another submits
//!     bare sync ROUNDS        one CPU stores entries of the global page table without end while another asks for syncs
//!     bare hostile SECRET     break every rule; no memory of others may be seen (it is full of SECRET) or changed
//!
//! `clear` and `update` wait for a line on standard input where they say `PAUSE`, so that others can count between.
//! Every mode ends with `VERDICT <mode> pass|fail n/m`.

mod attacks;
mod counts;
mod gpu;
mod hostile;
mod race;
mod reach;
mod sys;

use std::process::ExitCode;

/// Counts cases and prints a line for each.
#[derive(Default)]
pub struct Report {
    passed: usize,
    all: usize,
}

impl Report {
    fn case(&mut self, name: &str, on: impl std::fmt::Display, outcome: Result<(), String>) {
        self.all += 1;
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("CASE {name} {on} ok");
            }
            Err(reason) => println!("CASE {name} {on} FAIL {reason}"),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut report = Report::default();
    let done = match words[..] {
        ["clear"] => counts::clear(&mut report),
        ["update", count] => counts::update(&mut report, count.parse().unwrap_or(1)),
        ["race", rounds] => race::race(&mut report, rounds.parse().unwrap_or(1)),
        ["sync", rounds] => reach::sync(&mut report, rounds.parse().unwrap_or(1)),
        ["hostile", secret] => hostile::all(&mut report, secret),
        _ => {
            eprintln!("usage: bare clear | update COUNT | race ROUNDS | sync ROUNDS | hostile SECRET");
            return ExitCode::from(2);
        }
    };
    if let Err(reason) = done {
        report.case("start", "gpu", Err(reason.to_string()));
    }
    let pass = report.all > 0 && report.passed == report.all;
    println!("VERDICT {} {} {}/{}", words[0], if pass { "pass" } else { "fail" }, report.passed, report.all);
    if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
