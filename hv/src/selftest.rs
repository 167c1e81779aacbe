//! The boot self-test: `selftest nonce=TEXT` on the command line. It checks what only a booted machine can show, and
//! proves by a hash of the nonce, which no echo of the command line contains, that it got to its end.

use core::sync::atomic::Ordering;

use hv_defs::Nanos;
use x86_64::structures::paging::PageTableFlags as Flags;

use crate::frame::{self, OwnerId, Placement};
use crate::irq::{self, Pending};
use crate::pci::{ConfigSpace, Decode, Function};
use crate::percpu::{self, CpuId};
use crate::power::{self, Exit};
use crate::smp;
use crate::start::Platform;
use crate::{apic, heap, paging, say, time, trap};

/// How long an interrupt may take to arrive.
const PATIENCE_NANOS: u64 = 1_000_000_000;

type Check = (&'static str, fn(&Platform) -> Result<(), &'static str>);

const CHECKS: [Check; 10] = [
    ("division", division),
    ("memory", memory),
    ("pages", pages),
    ("exception", exception),
    ("time", clock),
    ("timer", timer),
    ("cpus", cpus),
    ("pci", host_bridge),
    ("message", message),
    ("heap", heap_is_modest),
];

/// Runs all checks and ends.
pub fn run(platform: &'static Platform) -> ! {
    let boot = &platform.boot;
    let (mib, modules, cpus) = (frame::free_frames() >> 8, boot.modules.len(), percpu::count());
    let (protocol, hz) = (boot.protocol, time::tsc_hz());
    say!("selftest: booted by {protocol}, {mib} MiB free, {modules} modules, {cpus} cpus, tsc {hz} Hz");
    let mut failed = 0;
    for (name, check) in CHECKS {
        match check(platform) {
            Ok(()) => say!("PASS {name}"),
            Err(why) => {
                failed += 1;
                say!("FAIL {name}: {why}");
            }
        }
    }
    let proof = fnv1a(boot.option("nonce").unwrap_or_default().as_bytes());
    say!("@selftest checks={} failed={failed} proof={proof:016x}", CHECKS.len());
    if boot.has("linger") {
        // For a test that looks at this CPU from the emulator's side.
        loop {
            irq::wait();
        }
    }
    power::exit(if failed == 0 { Exit::Success } else { Exit::SelfTest })
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

fn ensure(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}

/// Signed 64-bit division, which one packaged emulator gets wrong.
fn division(_: &Platform) -> Result<(), &'static str> {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        seed as i64
    };
    for _ in 0..2000 {
        let (dividend, divisor) = core::hint::black_box((next(), next() >> 33));
        let (quotient, rest) = (dividend.wrapping_div(divisor | 1), dividend.wrapping_rem(divisor | 1));
        let back = quotient.wrapping_mul(divisor | 1).wrapping_add(rest);
        ensure(
            back == dividend && rest.unsigned_abs() < (divisor | 1).unsigned_abs(),
            "IDIV is wrong on this machine",
        )?;
    }
    Ok(())
}

fn memory(_: &Platform) -> Result<(), &'static str> {
    let before = frame::free_frames();
    let large = frame::alloc_run(OwnerId(9), 512, 512, Placement::High).ok_or("no 2 MiB run")?;
    let small = frame::alloc_zeroed(OwnerId(9)).ok_or("no frame")?;
    ensure(large.0 % 512 == 0 && small != large, "misplaced frames")?;
    // SAFETY: 1. Just allocated: RAM in the direct map that nobody refers to.
    let window = unsafe { crate::phys::Window::new(large.hpa(), 2 << 20) };
    window.write((2 << 20) - 8, &[0xA5; 8]).map_err(|_| "no write")?;
    ensure(window.read_u64((2 << 20) - 8) == Some(0xA5A5_A5A5_A5A5_A5A5), "memory does not hold")?;
    frame::free_run(OwnerId(9), large, 512);
    frame::free(OwnerId(9), small);
    ensure(frame::free_frames() == before && frame::mistakes() == 0, "the books do not balance")
}

fn pages(_: &Platform) -> Result<(), &'static str> {
    let space = paging::address_space().ok_or("no address space")?;
    let (mut both, mut executable) = (0u64, 0u64);
    space.for_each_page(&mut |_, size, flags| {
        let runs = !flags.contains(Flags::NO_EXECUTE);
        executable += if runs { size } else { 0 };
        both += u64::from(runs && flags.contains(Flags::WRITABLE));
    });
    ensure(both == 0, "pages are writable and executable")?;
    ensure((1..4 << 20).contains(&executable), "odd amount of executable pages")
}

fn exception(_: &Platform) -> Result<(), &'static str> {
    let before = trap::breakpoints();
    x86_64::instructions::interrupts::int3();
    ensure(trap::breakpoints() == before + 1, "INT3 did not arrive")
}

fn clock(_: &Platform) -> Result<(), &'static str> {
    let start = time::now();
    time::spin(1_000_000);
    let end = time::now();
    ensure(end.0 - start.0 >= 1_000_000, "time does not pass")?;
    let there = time::nanos_to_tsc(Nanos(123_456_789));
    ensure(time::tsc_to_nanos(there).0.abs_diff(123_456_789) < 100, "time does not convert")
}

fn timer(_: &Platform) -> Result<(), &'static str> {
    irq::poll();
    for _ in 0..4 {
        let due = Nanos(time::now().0 + 5_000_000);
        apic::arm(due);
        while !irq::wait().contains(Pending::TIMER) {
            ensure(time::now().0 < due.0 + PATIENCE_NANOS, "it does not fire")?;
        }
        ensure(time::now() >= due, "it fires early, which costs a second interrupt")?;
    }
    Ok(())
}

fn cpus(platform: &Platform) -> Result<(), &'static str> {
    ensure(percpu::count() as usize == platform.acpi.cpus.len(), "a CPU is missing")?;
    for cpu in (1..percpu::count()).map(CpuId) {
        let taken = || percpu::get(cpu).map_or(0, |cpu| cpu.interrupts(Pending::KICK));
        let before = taken();
        apic::kick(cpu);
        let end = time::now().0 + PATIENCE_NANOS;
        while taken() == before {
            ensure(time::now().0 < end, "a CPU does not take interrupts")?;
            core::hint::spin_loop();
        }
        let parked = percpu::get(cpu).is_some_and(|cpu| cpu.state.load(Ordering::Acquire) == smp::PARKED);
        ensure(parked, "a CPU is not where it should be")?;
    }
    Ok(())
}

/// A PC has a host bridge at 00:00.0: class 6, subclass 0.
fn host_bridge(_: &Platform) -> Result<(), &'static str> {
    let bridge = Function::find(0, 0, 0).ok_or("no function at 00:00.0")?;
    ensure(bridge.read16(0x0A) == 0x0600, "00:00.0 is no host bridge")?;
    ensure(Function::find(0, 31, 7).is_none_or(|other| other != bridge), "configuration space repeats")
}

/// With QEMU's teaching device at 00:02.0 (its docs/specs/edu.rst): its registers answer and its message arrives.
fn message(_: &Platform) -> Result<(), &'static str> {
    const EDU: u32 = 0x11E8_1234;
    const LIVENESS: u64 = 0x04;
    const RAISE: u64 = 0x60;
    const ACKNOWLEDGE: u64 = 0x64;
    let Some(edu) = Function::find(0, 2, 0).filter(|found| found.read32(0) == EDU) else { return Ok(()) };
    let bar = edu.bars().first().copied().ok_or("no BAR")?;
    ensure(bar.size == 1 << 20, "wrong size of BAR 0")?;
    edu.set_decode(Decode::MemoryAndMaster);
    let registers = bar.map().ok_or("BAR 0 cannot be mapped")?;
    registers.write32(LIVENESS, 0x1234_5678);
    ensure(registers.read32(LIVENESS) == !0x1234_5678, "registers do not answer")?;
    edu.enable_msi(percpu::current(), 5).ok_or("no message interrupt")?;
    registers.write32(RAISE, 1);
    let end = time::now().0 + PATIENCE_NANOS;
    while !irq::poll().contains(Pending::DEVICE) {
        ensure(time::now().0 < end, "no message came")?;
    }
    registers.write32(ACKNOWLEDGE, 1);
    edu.set_decode(Decode::Off);
    ensure(irq::take_devices() == 1 << 5, "the message came by another slot")?;
    say!("edu: ok");
    Ok(())
}

fn heap_is_modest(_: &Platform) -> Result<(), &'static str> {
    ensure(heap::used() < heap::HEAP_BYTES as usize / 4, "set-up used more than a quarter of the heap")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_F739_67E8);
    }
}
