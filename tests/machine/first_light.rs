//! The hypervisor image alone: every way to boot it, its own tests, and what it says to bad input.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu::console::Console;
use qemu::machine::{End, Gpu, Machine, Outcome};
use qemu::provision::Grub;

const LIMIT: Duration = Duration::from_secs(60);
/// What Prism writes to the exit device: see `hv::power::Exit`.
const SUCCESS: End = End::Verdict(0x10);
const NO_BUNDLE: End = End::Verdict(0x12);
const MEMORY: End = End::Verdict(0x13);
const CONFIG: End = End::Verdict(0x14);

fn boot(name: &str, image: &Path) -> Machine {
    Machine::svm_tcg(name, image).gpu(Gpu::None)
}

/// The self-test's last line carries a hash of the nonce that no echo of the command line contains.
#[track_caller]
fn expect_passed(outcome: &Outcome, nonce: &str, booted_by: &str) {
    let console = Console::parse(&outcome.serial);
    let proof = format!("{:016x}", fnv1a(nonce.as_bytes()));
    let done = console
        .facts
        .iter()
        .any(|fact| fact.kind == "selftest" && fact.get("failed") == "0" && fact.get("proof") == proof);
    let way = format!("selftest: booted by {booted_by},");
    let came_so = console.prism.iter().any(|line| line.starts_with(&way));
    if outcome.end != SUCCESS || !done || !came_so {
        tests::fail(outcome, "the self-test did not pass");
    }
}

#[track_caller]
fn expect_refused(outcome: &Outcome, end: End, words: &[&str]) {
    let console = Console::parse(&outcome.serial);
    let said = |line: &String| words.iter().all(|word| line.contains(word));
    if outcome.end != end || !console.prism.iter().any(said) {
        tests::fail(outcome, &format!("the run should end with {end:?} and name {words:?}"));
    }
    assert!(!outcome.serial.contains("PANIC"), "{}", outcome.serial);
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// QEMU finds the multiboot1 header first.
#[test]
fn boots_by_multiboot1() {
    let nonce = tests::nonce();
    let outcome = boot("mb1", tests::image()).arguments(&format!("selftest nonce={nonce}")).run(LIMIT).unwrap();
    expect_passed(&outcome, &nonce, "multiboot1");
}

/// With that header's magic gone, QEMU takes the PVH note.
#[test]
fn boots_by_pvh() {
    let nonce = tests::nonce();
    let image = without_multiboot1(tests::image());
    let outcome =
        boot("pvh", &image).module(vec![0; 5000]).arguments(&format!("selftest nonce={nonce}")).run(LIMIT).unwrap();
    expect_passed(&outcome, &nonce, "PVH");
}

/// GRUB starts it as on a PC with a disk.
#[test]
fn boots_by_multiboot2() {
    let nonce = tests::nonce();
    let script = format!("multiboot2 (hd1)/prism-hv selftest nonce={nonce}\nboot\n");
    let image = fs::read(tests::image()).unwrap();
    let disks = Grub::get().unwrap().disks(&script, &[("prism-hv", &image)]).unwrap();
    let outcome = boot("mb2", tests::image()).disks(disks).run(LIMIT).unwrap();
    expect_passed(&outcome, &nonce, "multiboot2");
}

/// Each takes an interrupt from the first.
#[test]
fn several_cpus_come_up() {
    let nonce = tests::nonce();
    let outcome = boot("smp", tests::image()).cpus(4).arguments(&format!("selftest nonce={nonce}")).run(LIMIT).unwrap();
    expect_passed(&outcome, &nonce, "multiboot1");
    assert!(outcome.serial.contains(" 4 cpus,"), "{}", outcome.serial);
}

/// Without x2APIC and 1 GiB pages, as on older CPUs, and on a chipset without mapped PCI configuration space.
#[test]
fn old_machines_do() {
    let nonce = tests::nonce();
    let outcome = boot("old", tests::image())
        .emulator("-cpu")
        .emulator("qemu64,-x2apic,-pdpe1gb,+svm,+npt")
        .emulator("-machine")
        .emulator("pc")
        .arguments(&format!("selftest nonce={nonce}"))
        .run(LIMIT)
        .unwrap();
    expect_passed(&outcome, &nonce, "multiboot1");
}

/// What the emulator's own page walk finds, on both CPUs: no page of theirs is writable and executable.
#[test]
fn no_page_is_writable_and_executable() {
    let mut machine = boot("wx", tests::image())
        .cpus(2)
        .emulator("-monitor")
        .emulator("unix:monitor.sock,server=on,wait=off")
        .arguments("selftest linger")
        .start()
        .unwrap();
    machine.expect("@selftest", LIMIT).unwrap();
    let mut monitor = Monitor::connect(&machine.dir().join("monitor.sock"));
    for cpu in ["cpu 0", "cpu 1"] {
        monitor.ask(cpu);
        let pages = monitor.ask("info tlb");
        let pages: Vec<Page> = pages.lines().filter_map(Page::parse).collect();
        let executable = pages.iter().filter(|page| page.executable).count();
        assert!(executable > 4 && pages.len() > executable, "{cpu}: {} pages", pages.len());
        let both: Vec<_> = pages.iter().filter(|page| page.executable && page.writable).collect();
        assert!(both.is_empty(), "{cpu}: {both:x?}");
        // All that is executable is the image's code, from 1 MiB on.
        let outside = pages.iter().find(|page| page.executable && !(1 << 20..4 << 20).contains(&page.at));
        assert!(outside.is_none(), "{cpu}: {outside:x?}");
    }
    monitor.send("quit");
    machine.wait(LIMIT).unwrap();
}

/// A PCI function's registers and its message interrupt.
#[test]
fn a_device_is_reached() {
    let nonce = tests::nonce();
    let outcome = boot("edu", tests::image())
        .emulator("-device")
        .emulator("edu,addr=02.0")
        .arguments(&format!("selftest nonce={nonce}"))
        .run(LIMIT)
        .unwrap();
    expect_passed(&outcome, &nonce, "multiboot1");
    assert!(outcome.serial.contains("edu: ok"), "{}", outcome.serial);
}

/// One clear line, never a panic.
#[test]
fn a_missing_bundle_is_said() {
    let outcome = boot("no-bundle", tests::image()).run(LIMIT).unwrap();
    expect_refused(&outcome, NO_BUNDLE, &["no bundle", "-initrd"]);
}

#[test]
fn a_module_that_is_no_bundle_is_said() {
    let outcome = boot("bad-bundle", tests::image()).module(b"this is no archive".to_vec()).run(LIMIT).unwrap();
    expect_refused(&outcome, CONFIG, &["bundle"]);
}

#[test]
fn too_little_memory_is_said() {
    let outcome = boot("small", tests::image()).memory_mib(48).run(LIMIT).unwrap();
    expect_refused(&outcome, MEMORY, &["memory: the machine has 47 MiB", "needs 64 MiB"]);
}

/// A line of `info tlb`: virtual address, physical address, and nine flags from X (not executable) to W.
#[derive(Debug)]
struct Page {
    at: u64,
    executable: bool,
    writable: bool,
}

impl Page {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let at = u64::from_str_radix(words.next()?.strip_suffix(':')?, 16).ok()?;
        let flags = words.nth(1).filter(|flags| flags.len() == 9)?;
        Some(Self { at, executable: !flags.starts_with('X'), writable: flags.ends_with('W') })
    }
}

/// QEMU's human monitor.
struct Monitor(UnixStream);

impl Monitor {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut monitor = Self(stream);
        monitor.answer();
        monitor
    }

    fn send(&mut self, command: &str) {
        writeln!(self.0, "{command}").unwrap();
    }

    fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    /// All up to the next prompt.
    fn answer(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut buffer = [0; 65536];
        while !bytes.ends_with(b"\n(qemu) ") && bytes != b"(qemu) " {
            let count = self.0.read(&mut buffer).unwrap();
            assert!(count > 0, "the monitor closed: {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn without_multiboot1(image: &Path) -> PathBuf {
    let mut bytes = fs::read(image).unwrap();
    let magic = 0x1bad_b002_u32.to_le_bytes();
    // The header lies in the first 8 KiB, on a multiple of 4 (Multiboot Specification 0.6.96, section 3.1).
    let at = (0..8192).step_by(4).find(|&at| bytes[at..at + 4] == magic).expect("the image has a multiboot1 header");
    bytes[at] ^= 0xff;
    let path = image.with_extension("pvh");
    fs::write(&path, bytes).unwrap();
    path
}
