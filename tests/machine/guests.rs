//! Guests on Prism: stock Debian kernels to their scripts, several at once, reboots, and crashes that stay where they are.

use std::fmt::Write;
use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::guest::Initrd;
use qemu::machine::{End, Gpu, Machine, Outcome};
use qemu::provision::KernelKind;

const LIMIT: Duration = Duration::from_secs(180);
/// What Prism writes to the exit device: see `hv::power::Exit`.
const SUCCESS: End = End::Verdict(0x10);
const GUEST: End = End::Verdict(0x17);

/// Prints what the tests look at. Kernel messages go to the console by themselves.
const REPORT: &str = "\
    cat /sys/devices/system/clocksource/clocksource0/current_clocksource > /tmp/clock\n\
    echo report cpus=$(nproc) clock=$(cat /tmp/clock) unstable=$(dmesg | grep -ci unstable)\n";

/// Counts boots in the real-time clock's year, which survives a reset: boot `n`, from 0 on, sets it to 2031 + n.
const COUNT_BOOTS: &str = "\
    test -e /dev/rtc0 || mknod /dev/rtc0 c $(cut -d: -f1 /sys/class/rtc/rtc0/dev) 0\n\
    y=$(cut -d- -f1 /sys/class/rtc/rtc0/date)\n\
    if [ $y -lt 2030 ]; then y=2030; fi\n\
    n=$((y - 2030))\n\
    date -s \"$((y + 1))-01-01 00:00:00\" > /dev/null\n\
    hwclock -w -u -f /dev/rtc0\n";

struct Guest {
    name: &'static str,
    kernel: KernelKind,
    vcpus: u32,
    memory_mib: u32,
    script: String,
}

impl Guest {
    /// A guest that reports, then powers off.
    fn reporting(name: &'static str, kernel: KernelKind, vcpus: u32, nonce: &str) -> Self {
        let script = format!("{REPORT}echo done {nonce} {name}\npoweroff -f");
        Self { name, kernel, vcpus, memory_mib: 512, script }
    }
}

/// A bundle with these guests; `extra` is more of `prism.toml`, with the files that it names.
fn bundle(guests: &[Guest], extra: &str, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut config = String::new();
    for Guest { name, vcpus, memory_mib, .. } in guests {
        writeln!(
            config,
            "[[vm]]\nname = \"{name}\"\nmemory_mib = {memory_mib}\nvcpus = {vcpus}\nkernel = \"{name}.kernel\"\n\
             initrd = \"{name}.initrd\"\ncmdline = \"console=ttyS0 panic=-1\""
        )
        .unwrap();
    }
    config.push_str(extra);
    let mut bundle = Bundle::new(&config);
    for guest in guests {
        let kernel = std::fs::read(guest.kernel.get().unwrap().image).unwrap();
        let initrd = Initrd::new().unwrap().script(&guest.script).finish();
        bundle = bundle.file(&format!("{}.kernel", guest.name), &kernel);
        bundle = bundle.file(&format!("{}.initrd", guest.name), &initrd);
    }
    files.iter().fold(bundle, |bundle, (name, content)| bundle.file(name, content)).finish()
}

fn prism(name: &str, cpus: u32, bundle: Vec<u8>) -> Machine {
    Machine::svm_tcg(name, tests::image()).gpu(Gpu::None).guest_cpus(cpus).module(bundle).arguments("once")
}

/// Each guest came to the end of its script, with a sound clock and all of its CPUs.
#[track_caller]
fn expect_reports(outcome: &Outcome, console: &Console, guests: &[(&str, u32)], nonce: &str) {
    for (name, vcpus) in guests {
        let lines = console.guest(name);
        let has = |text: &str| lines.iter().any(|line| line.contains(text));
        if !has(&format!("done {nonce} {name}")) {
            tests::fail(outcome, &format!("{name} did not come to the end of its script"));
        }
        if !has(&format!("report cpus={vcpus} clock=tsc unstable=0")) {
            tests::fail(outcome, &format!("{name} should have {vcpus} CPUs and a stable TSC as its clock"));
        }
        for bad in ["BUG:", "WARNING: CPU", "Oops", "soft lockup", "rcu_sched self-detected", "Call Trace"] {
            if has(bad) {
                tests::fail(outcome, &format!("{name} says '{bad}'"));
            }
        }
    }
}

#[test]
fn a_kernel_with_one_cpu_reaches_its_script() {
    for (run, kernel) in [("guest-cloud", KernelKind::V6_1Cloud), ("guest-generic", KernelKind::V6_1)] {
        let nonce = tests::nonce();
        let guests = [Guest::reporting("alpha", kernel, 1, &nonce)];
        let outcome = prism(run, 1, bundle(&guests, "", &[])).run(LIMIT).unwrap();
        let console = Console::parse(&outcome.serial);
        expect_reports(&outcome, &console, &[("alpha", 1)], &nonce);
        if outcome.end != SUCCESS || console.state("alpha") != Some(("off", "poweroff")) {
            tests::fail(&outcome, "the guest should power off, and Prism end well");
        }
    }
}

/// Two guests with two CPUs each, on two CPUs; one of them lies above 4 GiB.
#[test]
fn two_guests_run_at_once() {
    let nonce = tests::nonce();
    let guests = [
        Guest::reporting("alpha", KernelKind::V6_1Cloud, 2, &nonce),
        Guest { memory_mib: 1024, ..Guest::reporting("beta", KernelKind::V6_1, 2, &nonce) },
    ];
    let outcome = prism("guests-two", 2, bundle(&guests, "", &[])).run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    expect_reports(&outcome, &console, &[("alpha", 2), ("beta", 2)], &nonce);
    if outcome.end != SUCCESS {
        tests::fail(&outcome, "both guests power off, so Prism should end well");
    }
    let bases = console.prism.iter().filter_map(|line| line.split_once("RAM from 0x")?.1.split(' ').next());
    let high = bases.filter_map(|base| u64::from_str_radix(base, 16).ok()).any(|base| base >= 1 << 32);
    assert!(high, "one guest should lie above 4 GiB:\n{}", console.prism.join("\n"));
}

/// Four virtual CPUs share one physical CPU.
#[test]
fn more_virtual_cpus_than_cpus() {
    let nonce = tests::nonce();
    let guests = [
        Guest::reporting("alpha", KernelKind::V6_1Cloud, 2, &nonce),
        Guest::reporting("beta", KernelKind::V6_1Cloud, 2, &nonce),
    ];
    let outcome = prism("guests-shared", 1, bundle(&guests, "", &[])).run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    expect_reports(&outcome, &console, &[("alpha", 2), ("beta", 2)], &nonce);
    if outcome.end != SUCCESS {
        tests::fail(&outcome, "both guests power off, so Prism should end well");
    }
}

fn reboot(run: &str, times: u32, vcpus: u32) {
    let nonce = tests::nonce();
    let script = format!(
        "{COUNT_BOOTS}echo boot $n {nonce}\n{REPORT}if [ $n -lt {times} ]; then reboot -f; fi\n\
         echo done {nonce} alpha\npoweroff -f"
    );
    let guests = [Guest { name: "alpha", kernel: KernelKind::V6_1Cloud, vcpus, memory_mib: 256, script }];
    let limit = LIMIT + Duration::from_secs(20 * u64::from(times));
    // It means to reboot as often as this.
    let often = format!("restart_limit = {}\n", times + 1);
    let outcome = prism(run, 1, bundle(&guests, &often, &[])).run(limit).unwrap();
    let console = Console::parse(&outcome.serial);
    expect_reports(&outcome, &console, &[("alpha", vcpus)], &nonce);
    let boots = console.guest("alpha").iter().filter(|line| line.contains(&nonce) && line.contains("boot ")).count();
    let resets = console.facts.iter().filter(|fact| fact.kind == "vm" && fact.get("state") == "reset").count();
    if outcome.end != SUCCESS || (boots, resets) != (times as usize + 1, times as usize) {
        tests::fail(&outcome, &format!("{times} reboots: {boots} boots and {resets} resets were seen"));
    }
}

#[test]
fn a_guest_reboots_5_times() {
    reboot("guest-reboots", 5, 2);
}

#[test]
#[ignore = "takes minutes"]
fn a_guest_reboots_20_times() {
    reboot("guest-reboots-20", 20, 2);
}

/// The monitor starts a guest again that has switched itself off.
fn power_cycle(run: &str, times: u32) {
    let nonce = tests::nonce();
    let guests = [Guest::reporting("alpha", KernelKind::V6_1Cloud, 1, &nonce)];
    let machine = prism(run, 1, bundle(&guests, "", &[])).arguments("");
    let mut running = machine.start().unwrap();
    let off = "@vm vm=alpha n=1 state=off cause=poweroff";
    for round in 1..=times {
        running.expect(off, LIMIT).unwrap_or_else(|error| panic!("round {round}: {error}"));
        if round < times {
            running.send(b"\x1dmreset 1\r").unwrap();
        }
    }
    running.send(b"vms\r").unwrap();
    running.expect("0 crashes", LIMIT).unwrap();
}

#[test]
fn a_guest_powers_off_and_is_started_again_5_times() {
    power_cycle("guest-power-cycles", 5);
}

#[test]
#[ignore = "takes minutes"]
fn a_guest_powers_off_and_is_started_again_20_times() {
    power_cycle("guest-power-cycles-20", 20);
}

/// Guests that crash each in its way: a report for each, and the sound one among them goes on to its end.
#[test]
fn a_crash_stays_where_it_is() {
    let nonce = tests::nonce();
    let script = format!("{REPORT}sleep 3\necho done {nonce} sound\npoweroff -f");
    let guests = [Guest { name: "sound", kernel: KernelKind::V6_1Cloud, vcpus: 1, memory_mib: 512, script }];
    let programs: [(&str, Vec<u8>, &str); 6] = [
        ("triple", program(&TRIPLE_FAULT), "triple-fault"),
        ("garbage1", program(&garbage(1)), ""),
        ("garbage2", program(&garbage(2)), ""),
        ("garbage3", program(&garbage(3)), ""),
        ("device", program(&FLOAT_FROM_DEVICE), "instruction"),
        ("stack", program(&STACK_IN_DEVICE), "delivery"),
    ];
    let mut extra = String::new();
    for (name, ..) in &programs {
        writeln!(extra, "[[vm]]\nname = \"{name}\"\nmemory_mib = 32\nkernel = \"{name}\"").unwrap();
    }
    let files: Vec<(&str, Vec<u8>)> = programs.iter().map(|(name, image, _)| (*name, image.clone())).collect();
    let outcome = prism("guests-crash", 2, bundle(&guests, &extra, &files)).run(LIMIT).unwrap();
    let console = Console::parse(&outcome.serial);
    expect_reports(&outcome, &console, &[("sound", 1)], &nonce);
    for (name, _, cause) in &programs {
        let told = console.state(name).unwrap_or_default();
        let reported = console.prism.iter().any(|line| line.contains(&format!("({name}): vCPU 0 crashed")));
        if told.0 != "crashed" || !reported || (!cause.is_empty() && told.1 != *cause) {
            tests::fail(&outcome, &format!("{name} should end with a report ({cause}), not {told:?}"));
        }
    }
    if outcome.end != GUEST {
        tests::fail(&outcome, "a run with a crash should not count as a success");
    }
}

/// `xor eax, eax; push rax; push rax; lidt [rsp]; ud2`
const TRIPLE_FAULT: [u8; 10] = [0x31, 0xC0, 0x50, 0x50, 0x0F, 0x01, 0x1C, 0x24, 0x0F, 0x0B];
/// `mov eax, 0xFEC00000; fld qword [rax]; hlt`: the I/O APIC in a form that no driver uses.
const FLOAT_FROM_DEVICE: [u8; 8] = [0xB8, 0x00, 0x00, 0xC0, 0xFE, 0xDD, 0x00, 0xF4];
/// Exceptions pushed to the I/O APIC: an IDT of zeroed descriptors would end in a triple fault, so the stack moves first:
/// `mov esp, 0xFEC00800`, a descriptor table with one gate for #UD, `lidt`, `ud2`.
const STACK_IN_DEVICE: [u8; 64] = stack_in_device();

const fn stack_in_device() -> [u8; 64] {
    let mut code = [0x90; 64];
    // 0: mov dword [0x201060], 0x00100000 | low half of the handler (0x200000 >> 0 & 0xFFFF = 0)
    let text = [
        0xC7, 0x04, 0x25, 0x60, 0x10, 0x20, 0x00, 0x00, 0x00, 0x10, 0x00, // selector 0x10, offset 15:0 = 0
        0xC7, 0x04, 0x25, 0x64, 0x10, 0x20, 0x00, 0x00, 0x8E, 0x20,
        0x00, // present interrupt gate, offset 31:16 = 0x20
        0xC7, 0x04, 0x25, 0x68, 0x10, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, // offset 63:32 = 0
        0x0F, 0x01, 0x1C, 0x25, 0x36, 0x00, 0x20, 0x00, // lidt [0x200036]
        0xBC, 0x00, 0x08, 0xC0, 0xFE, // mov esp, 0xFEC00800
        0x0F, 0x0B, // ud2
        0x90, 0x90, 0x90, 0x90, 0x90, 0x90, // up to 0x36
        0xFF, 0x0F, 0x00, 0x10, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, // limit 0xFFF, base 0x201000
    ];
    let mut at = 0;
    while at < text.len() {
        code[at] = text[at];
        at += 1;
    }
    code
}

/// 4 KiB that no assembler made.
fn garbage(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    (0..4096).map(|_| next()).collect()
}

/// An ELF64 program with one segment of 8 KiB at 2 MiB, which is also its entry.
fn program(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x20_0000;
    const OFFSET: u64 = 0x1000;
    let mut image = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    for word in [BASE, 64, 0] {
        image.extend(u64::to_le_bytes(word));
    }
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    image.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [OFFSET, BASE, BASE, code.len() as u64, 0x2000, 0x1000] {
        image.extend(u64::to_le_bytes(word));
    }
    image.resize(OFFSET as usize, 0);
    image.extend(code);
    image
}
