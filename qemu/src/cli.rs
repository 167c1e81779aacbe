//! The command line of `cargo run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::error::{Error, Result, read};
use crate::machine::Kind;
use crate::provision::{self, KernelKind, Qemu};
use crate::{build, demo, server};

/// Runs the program; true means that what was asked for succeeded.
pub fn main() -> Result<bool> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "gpu-model") {
        server::main(arguments.drain(..).skip(1))?;
        return Ok(true);
    }
    match parse(arguments)? {
        Command::Help => {
            print!("{HELP}");
            Ok(true)
        }
        Command::Build => {
            let image = build::image(build::Variant::Product)?;
            println!("{} ({} bytes)", image.display(), read(&image)?.len());
            Ok(true)
        }
        Command::Provision { what } => provision(&what).map(|()| true),
        Command::Run(options) => demo::run(&options),
    }
}

/// What to run, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The computer; the best that there is, if the user does not say.
    pub machine: Option<Kind>,
    /// The guests, if not those of the demo; on machine `native` the first one's kernel and initrd are booted.
    pub config: Option<PathBuf>,
    /// Whether guests power off after their tests.
    pub lifetime: Lifetime,
    /// Physical CPUs that run guests, if the user says how many.
    pub cpus: Option<u32>,
    /// Physical memory.
    pub memory_mib: Option<u32>,
    /// How long the whole run may take.
    pub limit: Duration,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// By itself, with an exit status, when every guest has done its part.
    Once,
    /// When the user says so: each guest ends in a shell.
    Interactive,
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Build,
    Provision { what: Vec<String> },
    Run(Options),
}

const HELP: &str = "\
Prism shares one Intel GPU among virtual machines. This program builds it and boots it in an emulator.

Usage: cargo run [-- COMMAND OPTION...]

Commands:
  (none)               boot the demo: two stock Debian guests share the software GPU
  build                build the hypervisor image and print its path
  provision [WHAT...]  fetch what runs need: qemu, busybox, rust-src or a kernel (default: all of it)

Options of a run:
  --once               end by itself: status 0 when every guest's GPU test has passed
  --config FILE        the guests (default: qemu/demo/prism.toml, or no-gpu.toml beside it; copy and change it)
  --machine NAME       vmx-kvm:   Prism in QEMU with KVM (default where KVM gives its guests VT-x)
                       svm-tcg:   Prism in QEMU, on an emulated AMD CPU (default elsewhere)
                       vmx-bochs: Prism in Bochs, on an emulated Intel CPU; slow: its default guests have no GPU
                       native:    the first guest of the configuration alone, without Prism
  --cpus N             physical CPUs that run guests (default 2 where the host has as many; vmx-bochs and native 1)
  --memory MIB         physical memory of the machine (default 5120; vmx-bochs 1024, native 2048)
  --limit SECONDS      give up after this time (default: 900 with --once, else never)

Guests' kernels, for names like debian-6.1/vmlinuz in a configuration:
  6.1        Debian 12's             6.12     Debian 13's
  6.1-cloud  the same for clouds     newest   Debian's development kernel

At the console of an interactive run:
  Ctrl-] 1, 2, ...     type to guest 1, 2, ...
  Ctrl-] m             Prism's monitor; `help` there lists its commands
  Ctrl-] q             end the run

Packages come from the mirror in the host's apt configuration; where that is not Debian's, from the Debian mirror
whose address is in the environment variable PRISM_MIRROR.
Logs of the last run are in target/prism/runs/demo/.
";

fn parse(arguments: Vec<OsString>) -> Result<Command> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut options = Options {
        machine: None,
        config: None,
        lifetime: Lifetime::Interactive,
        cpus: None,
        memory_mib: None,
        limit: Duration::ZERO,
    };
    let mut words = Vec::new();
    while let Some(argument) = parser.next().map_err(bad)? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("once") => options.lifetime = Lifetime::Once,
            Long("config") => options.config = Some(parser.value().map_err(bad)?.into()),
            Long("cpus") => options.cpus = Some(number(&mut parser, "--cpus", 1..=16)?),
            Long("memory") => options.memory_mib = Some(number(&mut parser, "--memory", 256..=1 << 20)?),
            Long("limit") => {
                options.limit = Duration::from_secs(number(&mut parser, "--limit", 1..=1 << 20)?.into());
            }
            Long("machine") => options.machine = Some(machine(&parser.value().map_err(bad)?.to_string_lossy())?),
            Value(word) => words.push(word.to_string_lossy().into_owned()),
            other => return Err(bad(other.unexpected())),
        }
    }
    if options.limit.is_zero() {
        options.limit = match options.lifetime {
            Lifetime::Once => Duration::from_secs(900),
            Lifetime::Interactive => Duration::from_secs(u64::from(u32::MAX)),
        };
    }
    let mut words = words.into_iter();
    match words.next().as_deref() {
        None => Ok(Command::Run(options)),
        Some("build") => Ok(Command::Build),
        Some("provision") => Ok(Command::Provision { what: words.collect() }),
        Some(other) => Err(Error::new(format!("no command {other}: see `cargo run -- --help`"))),
    }
}

fn number(parser: &mut lexopt::Parser, name: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32> {
    let text = parser.value().map_err(bad)?;
    let value = text.to_str().and_then(|text| text.parse().ok()).filter(|value| range.contains(value));
    value.ok_or_else(|| Error::new(format!("{name} takes a number from {} to {}", range.start(), range.end())))
}

fn machine(name: &str) -> Result<Kind> {
    let names = Kind::ALL.map(Kind::name).join(", ");
    Kind::from_name(name).ok_or_else(|| Error::new(format!("no machine {name}: there are {names}")))
}

fn bad(error: lexopt::Error) -> Error {
    Error::new(format!("{error}: see `cargo run -- --help`"))
}

fn provision(what: &[String]) -> Result<()> {
    let all = ["qemu", "busybox", "6.1-cloud", "6.1", "6.12", "newest"].map(String::from);
    for name in if what.is_empty() { &all } else { what } {
        match name.as_str() {
            "qemu" => drop(Qemu::get()?),
            "busybox" => drop(provision::busybox()?),
            "rust-src" => drop(provision::rust_source(&build::rust_version()?)?),
            name => match KernelKind::from_name(name) {
                Some(kernel) => drop(kernel.get()?),
                None => {
                    return Err(Error::new(format!("nothing called {name} to fetch: see `cargo run -- --help`")));
                }
            },
        }
        println!("{name}: ready");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn options_of_a_run() {
        let Ok(Command::Run(options)) = parsed("--once --machine native --cpus 2") else { panic!() };
        assert_eq!((options.machine, options.cpus), (Some(Kind::Native), Some(2)));
        assert_eq!(options.limit, Duration::from_secs(900));
        let Ok(Command::Run(options)) = parsed("") else { panic!() };
        assert_eq!(options.lifetime, Lifetime::Interactive);
    }

    #[test]
    fn mistakes_are_one_line_that_says_what_to_do() {
        for line in ["--bogus", "dance", "--machine vax", "--cpus 0", "--memory much", "--cpus"] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.len() < 120, "{error}");
        }
        assert!(parsed("--cpus 0").unwrap_err().to_string().contains("1 to 16"));
    }
}
