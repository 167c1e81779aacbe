//! A run that a person watches: the guests of a configuration on a machine, their consoles, a table at the end.

use std::path::PathBuf;
use std::time::Duration;

use crate::build::{self, Variant};
use crate::bundle::{Bundle, guests_with_gpu, named_files};
use crate::cli::{Lifetime, Options};
use crate::console::Console;
use crate::error::{Error, Result, read};
use crate::guest::Initrd;
use crate::machine::{End, Kind, Machine, Outcome, Show, kvm};
use crate::provision::KernelKind;
use crate::{paths, report, terminal};

/// What Prism writes to the exit device when every guest has powered off by itself.
const SUCCESS: u32 = 0x10;

/// What runs where, once it is decided.
struct Run<'a> {
    options: &'a Options,
    kind: Kind,
    config: PathBuf,
    nonce: String,
}

/// Provisions, builds, boots, shows; true when a `--once` run passed or an interactive one ended.
pub fn run(options: &Options) -> Result<bool> {
    // Before a machine is looked for, which may take a while.
    options.config.as_deref().map(read).transpose()?;
    let kind = choose(options.machine)?;
    let default = if kind.has_gpu() { "qemu/demo/prism.toml" } else { "qemu/demo/no-gpu.toml" };
    let config = options.config.clone().unwrap_or_else(|| paths::workspace().join(default));
    // The test program prints it in its verdict; Linux does not echo what is in its initrd.
    let nonce = format!("{:08x}", std::process::id().wrapping_mul(0x9e37_79b9));
    Run { options, kind, config, nonce }.go()
}

/// The machine that the user names, else the best that there is.
fn choose(named: Option<Kind>) -> Result<Kind> {
    match named {
        Some(Kind::VmxKvm) => kvm::available().map(|_| Kind::VmxKvm),
        Some(kind) => Ok(kind),
        None => Ok(match kvm::available() {
            Ok(_) => Kind::VmxKvm,
            Err(why) => {
                eprintln!("machine {}: {why}", Kind::SvmTcg.name());
                Kind::SvmTcg
            }
        }),
    }
}

/// Two, as any real machine has, where the host has them to give; Bochs runs all in one thread, and the first guest
/// alone has one.
fn usual_cpus(kind: Kind) -> u32 {
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match kind {
        Kind::SvmTcg | Kind::VmxKvm if host >= 2 => 2,
        _ => 1,
    }
}

impl Run<'_> {
    fn go(&self) -> Result<bool> {
        let machine = if self.kind == Kind::Native { self.native()? } else { self.prism()? };
        let machine = machine.guest_cpus(self.options.cpus.unwrap_or_else(|| usual_cpus(self.kind)));
        let machine = match self.options.memory_mib {
            Some(mib) => machine.memory_mib(mib),
            None => machine,
        };
        eprintln!("starting the machine; Ctrl-] q ends the run ...");
        let outcome = terminal::attach(machine.show(Show::Serial).start()?, self.options.limit)?;
        self.conclude(&outcome)
    }

    fn prism(&self) -> Result<Machine> {
        let text = String::from_utf8_lossy(&read(&self.config)?).into_owned();
        // Where the machine has none, the image brings one.
        let variant = match guests_with_gpu(&text)? {
            1.. if !self.kind.has_gpu() => Variant::SoftGpu,
            _ => Variant::Product,
        };
        let bundle = Bundle::of(&self.config, |name| provided(name, self.options.lifetime, &self.nonce))?;
        let image = build::image(variant)?;
        let arguments = match self.options.lifetime {
            Lifetime::Once => "once stats",
            Lifetime::Interactive => "stats",
        };
        let machine = Machine::of(self.kind, "demo", &image).module(bundle.finish()).arguments(arguments);
        // Bochs' tests need less than these guests do.
        Ok(if self.kind == Kind::VmxBochs { machine.memory_mib(1024) } else { machine })
    }

    fn native(&self) -> Result<Machine> {
        let text = String::from_utf8_lossy(&read(&self.config)?).into_owned();
        let files = named_files(&text)?;
        let kind = files.iter().find_map(|name| kernel_of(name)).ok_or_else(|| {
            Error::new(format!("{} names no debian-KERNEL/vmlinuz to boot natively", self.config.display()))
        })?;
        let initrd = demo_initrd(kind, self.options.lifetime, &self.nonce)?;
        let machine = Machine::native("demo", &kind.get()?.image);
        Ok(machine.module(initrd).arguments("console=ttyS0 quiet panic=-1"))
    }

    fn conclude(&self, outcome: &Outcome) -> Result<bool> {
        let console = Console::parse(&outcome.serial);
        report::print(&console);
        eprintln!(
            "ended after {:.1?}; logs are in {}",
            outcome.time.min(Duration::from_secs(86_400)),
            outcome.dir.display()
        );
        let lifetime = self.options.lifetime;
        let good = if self.kind == Kind::Native { End::PowerOff } else { End::Verdict(SUCCESS) };
        // The user ends an interactive run by killing the machine.
        let ended = outcome.end == good || (lifetime == Lifetime::Interactive && outcome.end == End::TimedOut);
        if !ended {
            let why = reason(outcome.end);
            eprint!("{}", outcome.autopsy);
            return Err(Error::new(format!("{why}; see {}", outcome.dir.join("serial.log").display())));
        }
        if lifetime == Lifetime::Once {
            let passes = outcome.serial.matches(&format!("VERDICT {} pass", self.nonce)).count();
            println!("{}", told(passes, self.tested()?)?);
        }
        Ok(true)
    }

    /// How many guests have a GPU to test.
    fn tested(&self) -> Result<usize> {
        match self.kind {
            Kind::Native => Ok(1),
            _ => guests_with_gpu(&String::from_utf8_lossy(&read(&self.config)?)),
        }
    }
}

/// The last line of a run in which every guest ended well.
fn told(passes: usize, tested: usize) -> Result<String> {
    match tested {
        _ if passes != tested => Err(Error::new(format!("the GPU test passed in {passes} of {tested} guests"))),
        0 => Ok("every guest ended well; none has a GPU".into()),
        1 => Ok("the GPU test passed in the guest".into()),
        count => Ok(format!("the GPU test passed in all {count} guests")),
    }
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
    let test = format!(
        "if [ -e /sys/bus/pci/devices/0000:00:02.0 ]; then smoke {nonce}; else echo 'no GPU in this guest'; fi"
    );
    let end = match lifetime {
        Lifetime::Once => "poweroff -f",
        Lifetime::Interactive => "echo 'a shell: try `smoke again` or `dmesg`'; setsid cttyhack sh; poweroff -f",
    };
    let initrd = Initrd::new()?.modules(&kernel)?.load(&kernel, "")?.program(&smoke)?;
    Ok(initrd.script("echo \"Linux $(uname -r) is up\"").script(&test).script(end).finish())
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
