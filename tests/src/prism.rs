//! Guests with vGPUs under Prism: putting a run together, talking to it, and judging what it leaves.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::guest::Initrd;
use qemu::machine::{End, Gpu, Machine, Outcome, Running};
use qemu::provision::KernelKind;
use serde_json::Value;

use crate::{fail, image};

/// How long any step of a run may take.
pub const LIMIT: Duration = Duration::from_secs(300);
/// What Prism writes to the exit device when every guest has powered off by itself.
pub const SUCCESS: End = End::Verdict(0x10);
/// What i915 says when it finds PVINFO.
pub const DETECTED: &str = "Virtual GPU for Intel GVT-g detected";
/// What a guest's kernel log may not contain.
const TROUBLE: [&str; 8] =
    ["WARNING:", "*ERROR*", "BUG:", "Oops", "Call Trace", "wedged", "GPU HANG", "rcu_sched self-detected"];
/// The exceptions (three at most, issue 2): a line that contains the text, and why it is none of Prism's business.
pub const ALLOWED: [(&str, &str); 1] =
    [("Speculative Return Stack Overflow: WARNING: See", "the emulated CPU's microcode has no mitigation")];
/// Tells the host what of the kernel's log matters, with some lines around it.
const REPORT_LOG: &str = "dmesg > /tmp/log\n\
    grep -E -A 12 'Virtual GPU|WARNING:|[*]ERROR[*]|BUG:|Oops|Call Trace|wedged|GPU HANG|self-detected' /tmp/log | \
    sed 's/^/LOG /'\necho LOG end\n";

/// One guest.
pub struct Guest {
    name: &'static str,
    kernel: KernelKind,
    memory_mib: u32,
    gpu: &'static str,
    /// What its command line has besides the usual.
    words: String,
    programs: Vec<PathBuf>,
    /// Alternating: what comes before i915 is loaded, what comes after.
    before: String,
    after: String,
    driver: Driver,
}

/// Who drives the guest's vGPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Driver {
    I915,
    /// A program of ours, or nobody.
    Own,
}

impl Guest {
    /// A guest whose i915 drives its vGPU; `script` runs when it is loaded.
    pub fn new(name: &'static str, kernel: KernelKind, script: &str) -> Self {
        Self {
            name,
            kernel,
            memory_mib: 1024,
            gpu: "gpu = {}",
            words: String::new(),
            programs: vec![crate::smoke().clone()],
            before: String::new(),
            after: script.into(),
            driver: Driver::I915,
        }
    }

    /// A guest that never loads i915 but has these programs.
    pub fn bare(name: &'static str, kernel: KernelKind, programs: &[PathBuf], script: &str) -> Self {
        let programs = programs.to_vec();
        Self { programs, memory_mib: 512, driver: Driver::Own, ..Self::new(name, kernel, script) }
    }

    /// Runs this before i915 is loaded.
    pub fn before(mut self, script: &str) -> Self {
        self.before.push_str(script);
        self
    }

    /// How much memory it has.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// More words for its kernel's command line.
    pub fn words(mut self, words: &str) -> Self {
        self.words = format!("{} {words}", self.words);
        self
    }

    /// Adds a program to its `/bin`.
    pub fn program(mut self, program: &Path) -> Self {
        self.programs.push(program.into());
        self
    }

    /// The `gpu` line of its table in `prism.toml`.
    pub fn gpu(mut self, line: &'static str) -> Self {
        self.gpu = line;
        self
    }

    fn initrd(&self) -> Vec<u8> {
        let put = || -> qemu::Result<Vec<u8>> {
            let kernel = self.kernel.get()?;
            let mut initrd = Initrd::new()?;
            if self.driver == Driver::I915 {
                initrd = initrd.modules(&kernel)?.script(&self.before).load(&kernel, "error_capture=0")?;
            }
            for program in &self.programs {
                initrd = initrd.program(program)?;
            }
            Ok(initrd.script(&self.after).script(REPORT_LOG).script("poweroff -f").finish())
        };
        put().expect("the initrd is put together")
    }
}

/// A machine with these guests, whose software GPU ends the run if it meets something unknown; `gpu` are further options
/// for it.
pub fn machine(name: &str, guests: &[Guest], gpu: &[&str]) -> Machine {
    lenient_machine(name, guests, &[&["--strict"], gpu].concat())
}

/// The same with a GPU that takes what comes, for guests that try everything.
pub fn lenient_machine(name: &str, guests: &[Guest], gpu: &[&str]) -> Machine {
    let mut options = vec!["--stats".to_owned(), "stats.json".into()];
    options.extend(gpu.iter().map(|option| (*option).to_owned()));
    with_guests(Machine::svm_tcg(name, image()).gpu(Gpu::Model(options)), guests).arguments("once stats")
}

/// A machine that boots these guests.
pub fn with_guests(machine: Machine, guests: &[Guest]) -> Machine {
    let mut config = String::new();
    for guest in guests {
        writeln!(
            config,
            "[[vm]]\nname = \"{0}\"\nmemory_mib = {1}\nkernel = \"{0}.kernel\"\ninitrd = \"{0}.initrd\"\n\
             cmdline = \"console=ttyS0 quiet panic=-1{3}\"\n{2}",
            guest.name, guest.memory_mib, guest.gpu, guest.words
        )
        .expect("a string takes it");
    }
    let mut bundle = Bundle::new(&config);
    for guest in guests {
        let kernel = guest.kernel.get().expect("the kernel is provisioned");
        let kernel = std::fs::read(kernel.image).expect("the kernel is there");
        bundle = bundle.file(&format!("{}.kernel", guest.name), &kernel);
        bundle = bundle.file(&format!("{}.initrd", guest.name), &guest.initrd());
    }
    machine.module(bundle.finish()).arguments("once")
}

/// Script lines that wait for `Conversation::go`.
pub fn pause(at: &str) -> String {
    format!("echo PAUSE {at}\nread word\n")
}

/// A run that is talked to.
pub struct Conversation {
    running: Running,
    /// Prism's counters at the moments asked for.
    last: Console,
}

impl Conversation {
    /// Starts the machine.
    pub fn start(machine: Machine) -> Self {
        Self { running: machine.start().expect("the machine starts"), last: Console::default() }
    }

    /// Waits for a text.
    pub fn expect(&mut self, text: &str) -> String {
        self.running.expect(text, LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until these guests pause at this place, in whatever order.
    pub fn paused(&mut self, guests: &[&str], at: &str) -> String {
        let all: Vec<_> = guests.iter().map(|guest| (*guest, at)).collect();
        self.all_paused(&all)
    }

    /// Waits until each of these guests pauses at its place, in whatever order; gives all that was said meanwhile.
    pub fn all_paused(&mut self, guests: &[(&str, &str)]) -> String {
        let mut said = String::new();
        let mut waiting: Vec<String> = guests.iter().map(|(name, at)| format!("[{name}] PAUSE {at}")).collect();
        while !waiting.is_empty() {
            let text = self.expect("] PAUSE ") + &self.expect("\n");
            let line = text.lines().last().unwrap_or_default();
            waiting.retain(|awaited| awaited != line);
            said.push_str(&text);
        }
        said
    }

    /// Lets guest `number` (from 1) go on; all guests stay visible.
    pub fn go(&mut self, number: usize) {
        self.say(number, "go");
    }

    /// Lets guest `number` go on with a word of input.
    pub fn say(&mut self, number: usize, word: &str) {
        self.running.send(format!("\x1d{number}\x1da{word}\r").as_bytes()).expect("the machine listens");
    }

    /// Prism's counters as they are now.
    pub fn stats(&mut self) -> Console {
        self.running.send(b"\x1dm").expect("the machine listens");
        self.expect("prism> ");
        self.running.send(b"stats\r").expect("the machine listens");
        self.last = Console::parse(&self.expect("prism> "));
        self.last.clone()
    }

    /// Gives the monitor a command; all guests stay visible.
    pub fn command(&mut self, command: &str) {
        self.running.send(format!("\x1dm{command}\r\x1da").as_bytes()).expect("the machine listens");
    }

    /// All that was said so far.
    pub fn so_far(&self) -> String {
        self.running.so_far()
    }

    /// Waits for the end.
    pub fn end(self) -> Outcome {
        self.running.wait(LIMIT).expect("the machine ends")
    }
}

/// The vGPU's registers and page-table accesses that exited so far.
pub fn gpu_exits(console: &Console, vm: &str) -> u64 {
    ["reads", "writes", "gtt"].iter().filter_map(|name| console.count(vm, "exits", name)).sum()
}

/// The run ended well, and no guest's log speaks of trouble.
#[track_caller]
pub fn ended_well(outcome: &Outcome, guests: &[&str]) {
    if outcome.end != SUCCESS {
        fail(outcome, "every guest should power off, and Prism end with success");
    }
    let console = Console::parse(&outcome.serial);
    for name in guests {
        quiet(outcome, &console, name);
    }
}

/// No line of the guest's kernel log speaks of trouble, but for `ALLOWED`.
#[track_caller]
pub fn quiet(outcome: &Outcome, console: &Console, name: &str) {
    let lines = console.guest(name);
    if !lines.iter().any(|line| line == "LOG end") {
        fail(outcome, &format!("{name} did not come to the end of its script"));
    }
    let trouble = |line: &&String| TROUBLE.iter().any(|word| line.contains(word));
    let allowed = |line: &String| ALLOWED.iter().any(|(text, _)| line.contains(text));
    if let Some(line) = lines.iter().filter(trouble).find(|line| !allowed(line)) {
        fail(outcome, &format!("the kernel of {name} complains: {line}"));
    }
}

/// The guest's i915 found a vGPU.
#[track_caller]
pub fn detected(outcome: &Outcome, name: &str) {
    let console = Console::parse(&outcome.serial);
    if !console.guest(name).iter().any(|line| line.contains(DETECTED)) {
        fail(outcome, &format!("i915 of {name} does not see that it has a vGPU"));
    }
}

/// The test program's verdict of this name, and no failed case in it.
#[track_caller]
pub fn passed(outcome: &Outcome, guest: &str, verdict: &str) {
    let console = Console::parse(&outcome.serial);
    let lines = console.guest(guest);
    if let Some(line) = lines.iter().find(|line| line.contains(" FAIL ")) {
        fail(outcome, &format!("{guest}: {line}"));
    }
    if !lines.iter().any(|line| line.starts_with(&format!("VERDICT {verdict} pass"))) {
        fail(outcome, &format!("{guest} has no verdict {verdict}"));
    }
}

/// The statistics of the GPU process: it met nothing that it does not know.
#[track_caller]
pub fn gpu_stats(outcome: &Outcome) -> Value {
    let stats = gpu_stats_of_any_kind(outcome);
    let findings = stats["counts"]["gpu"]["findings"].as_object().expect("findings are listed");
    if let Some(text) = findings.keys().find(|text| text.contains("unknown")) {
        fail(outcome, &format!("the GPU met something unknown: {text}"));
    }
    stats
}

/// The statistics of the GPU process, whatever it met.
#[track_caller]
pub fn gpu_stats_of_any_kind(outcome: &Outcome) -> Value {
    let stats = std::fs::read(outcome.dir.join("stats.json")).expect("the GPU process wrote its statistics");
    serde_json::from_slice(&stats).expect("statistics are JSON")
}
