//! A run that a person watches: the guests of a configuration on a machine, their consoles, a table at the end.

use std::time::Duration;

use crate::bundle::{Bundle, guests, named_files};
use crate::cli::{Lifetime, Options};
use crate::console::Console;
use crate::error::{Error, Result, read};
use crate::guest::Initrd;
use crate::machine::{End, Kind, Machine, Outcome, Show};
use crate::provision::KernelKind;
use crate::{build, report, terminal};

/// What Prism writes to the exit device when every guest has powered off by itself.
const SUCCESS: u32 = 0x10;

/// Provisions, builds, boots, shows; true when a `--once` run passed or an interactive one ended.
pub fn run(options: &Options) -> Result<bool> {
    // The test program prints it in its verdict; Linux does not echo what is in its initrd.
    let nonce = format!("{:08x}", std::process::id().wrapping_mul(0x9e37_79b9));
    let machine = match options.machine {
        Kind::SvmTcg => prism(options, &nonce)?,
        Kind::Native => native(options, &nonce)?,
    };
    let machine = machine.cpus(options.cpus);
    let machine = match options.memory_mib {
        Some(mib) => machine.memory_mib(mib),
        None => machine,
    };
    eprintln!("starting the machine; Ctrl-] q ends the run ...");
    let outcome = terminal::attach(machine.show(Show::Serial).start()?, options.limit)?;
    conclude(options, &outcome, &nonce)
}

fn prism(options: &Options, nonce: &str) -> Result<Machine> {
    let bundle = Bundle::of(&options.config, |name| provided(name, options.lifetime, nonce))?;
    let image = build::image()?;
    let arguments = match options.lifetime {
        Lifetime::Once => "once stats",
        Lifetime::Interactive => "stats",
    };
    Ok(Machine::svm_tcg("demo", &image).module(bundle.finish()).arguments(arguments))
}

fn native(options: &Options, nonce: &str) -> Result<Machine> {
    let text = String::from_utf8_lossy(&read(&options.config)?).into_owned();
    let files = named_files(&text)?;
    let kind = files.iter().find_map(|name| kernel_of(name)).ok_or_else(|| {
        Error::new(format!("{} names no debian-KERNEL/vmlinuz to boot natively", options.config.display()))
    })?;
    let initrd = demo_initrd(kind, options.lifetime, nonce)?;
    let machine = Machine::native("demo", &kind.get()?.image);
    Ok(machine.module(initrd).arguments("console=ttyS0 quiet panic=-1"))
}

/// Files that configurations may name without having them.
fn provided(name: &str, lifetime: Lifetime, nonce: &str) -> Result<Option<Vec<u8>>> {
    let Some(kind) = kernel_of(name) else {
        return Ok(None);
    };
    match name.split_once('/').map(|(_, file)| file) {
        Some("vmlinuz") => read(&kind.get()?.image).map(Some),
        Some("demo.initrd") => demo_initrd(kind, lifetime, nonce).map(Some),
        _ => Ok(None),
    }
}

/// The kernel of a name like `debian-6.1/vmlinuz`.
fn kernel_of(name: &str) -> Option<KernelKind> {
    KernelKind::from_name(name.strip_prefix("debian-")?.split_once('/')?.0)
}

fn demo_initrd(kind: KernelKind, lifetime: Lifetime, nonce: &str) -> Result<Vec<u8>> {
    let kernel = kind.get()?;
    let smoke = build::guest_program("smoke")?;
    let test = format!("smoke {nonce}");
    let end = match lifetime {
        Lifetime::Once => "poweroff -f",
        Lifetime::Interactive => "echo 'a shell: try `smoke again` or `dmesg`'; setsid cttyhack sh; poweroff -f",
    };
    let initrd = Initrd::new()?.modules(&kernel)?.load(&kernel, "")?.program(&smoke)?;
    Ok(initrd.script("echo \"Linux $(uname -r) is up\"").script(&test).script(end).finish())
}

fn conclude(options: &Options, outcome: &Outcome, nonce: &str) -> Result<bool> {
    let console = Console::parse(&outcome.serial);
    report::print(&console);
    eprintln!(
        "ended after {:.1?}; logs are in {}",
        outcome.time.min(Duration::from_secs(86_400)),
        outcome.dir.display()
    );
    let good = match (options.machine, options.lifetime) {
        (Kind::Native, _) => outcome.end == End::PowerOff,
        (Kind::SvmTcg, _) => outcome.end == End::Verdict(SUCCESS),
    };
    // The user ends an interactive run by killing the machine.
    let ended = good || (options.lifetime == Lifetime::Interactive && outcome.end == End::TimedOut);
    if !ended {
        let why = reason(outcome.end);
        return Err(Error::new(format!("{why}; see {}", outcome.dir.join("serial.log").display())));
    }
    if options.lifetime == Lifetime::Interactive {
        return Ok(true);
    }
    let count = match options.machine {
        Kind::SvmTcg => guests(&String::from_utf8_lossy(&read(&options.config)?))?,
        Kind::Native => 1,
    };
    let passes = outcome.serial.matches(&format!("VERDICT {nonce} pass")).count();
    if passes != count {
        return Err(Error::new(format!("the GPU test passed in {passes} of {count} guests")));
    }
    println!("the GPU test passed in {}", if count == 1 { "the guest".into() } else { format!("all {count} guests") });
    Ok(true)
}

/// What a machine's end means; the values of verdicts are those of `hv::power::Exit`.
fn reason(end: End) -> String {
    let text = match end {
        End::Verdict(SUCCESS) => "Prism ended",
        End::Verdict(0x11) => "Prism panicked",
        End::Verdict(0x12) => "Prism was given no bundle",
        End::Verdict(0x13) => "the machine has too little memory for the configuration",
        End::Verdict(0x14) => "Prism refuses the configuration",
        End::Verdict(0x15) => "the machine lacks what Prism needs",
        End::Verdict(0x16) => "Prism's self-test failed",
        End::Verdict(0x17) => "a guest ended by a fault of its own",
        End::Verdict(_) | End::Emulator(_) | End::Signal => return format!("the emulator ended with {end:?}"),
        End::PowerOff => "the machine went off or reset before Prism ended",
        End::TimedOut => "time was up",
    };
    text.into()
}
