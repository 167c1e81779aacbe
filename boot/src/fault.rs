//! Faults on purpose, for tests: here, as only this crate can have them while the mediator's lock is held.
//!
//! `fault=KIND,cpu=N`: that CPU does what must never happen, or must do no harm, while the others sleep; with `selftest`
//! at once, else once the mediator is there, with its lock held. `nmis=COUNT` pesters CPUs that run guests.

use core::arch::asm;
use core::fmt::from_fn;
use core::sync::atomic::{AtomicU64, Ordering};

use hv::irq::{self, Pending};
use hv::machine::DeviceService;
use hv::percpu::{self, CpuId};
use hv::power::{self, Exit};
use hv::trace::{self, What};
use hv::{apic, say, smp, start, time};
use hv_defs::Nanos;

/// Takes all CPUs for the fault, if one is asked for.
pub fn serve_if_asked() {
    if asked().is_some() {
        smp::start(enter)
    }
}

fn option(key: &str) -> Option<&'static str> {
    start::platform()?.boot.option(key)
}

/// Which fault, and where.
fn asked() -> Option<(&'static str, CpuId)> {
    let (kind, cpu) = option("fault")?.split_once(",cpu=")?;
    Some((kind, CpuId(cpu.parse().ok()?)))
}

fn enter() -> ! {
    static HERE: AtomicU64 = AtomicU64::new(0);
    HERE.fetch_add(1, Ordering::AcqRel);
    while asked().is_none_or(|(_, cpu)| cpu != percpu::current()) {
        irq::wait();
    }
    while HERE.load(Ordering::Acquire) < percpu::count().into() {
        core::hint::spin_loop();
    }
    let sleeps = |cpu: CpuId| cpu == percpu::current() || trace::did_last(cpu) == Some(What::Sleeps as u8);
    while !percpu::all().all(|cpu| sleeps(cpu.id())) {
        core::hint::spin_loop();
    }
    trace::note(What::SelfTest, [0; 3], [0; 2]);
    crate::gpu::locked(provoke);
    provoke();
    say!("selftest: nothing came of the fault");
    power::exit(Exit::SelfTest)
}

fn provoke() {
    let kind = asked().map_or("", |(kind, _)| kind);
    match kind {
        "nmi" => nmis(),
        // The CPU then holds the console's lock.
        "say" => say!("{}", from_fn(|_| panic!("selftest fault={kind}"))),
        "twice" => panic!("{}", from_fn(|_| panic!("selftest fault={kind}"))),
        _ => {}
    }
    // SAFETY: 1. None: each of these must fault, which is what the test is about; the run ends there.
    unsafe {
        match kind {
            "write" => (provoke as *const ()).cast_mut().cast::<u8>().write_volatile(0xC3),
            "gp" => asm!("mov al, [{0}]", in(reg) 1u64 << 63, out("al") _),
            "ud" => asm!("ud2"),
            "stack" => asm!("2: push 0", "jmp 2b"),
            // Stands in for a machine check, which no instruction raises.
            "mc" => asm!("int 18"),
            // A GS base at which nothing is mapped.
            "gs" => {
                asm!("wrmsr", in("ecx") 0xC000_0101u32, in("eax") 0, in("edx") 0xFFFF_F000u32);
                percpu::current();
            }
            "triple" => asm!("lidt [{0}]", "ud2", in(reg) &[0u64; 2]),
            _ => {}
        }
    }
    panic!("selftest fault={kind}")
}

/// Every CPU takes many, this one too, and goes on.
fn nmis() {
    for n in 0..2_000 {
        percpu::all().for_each(|cpu| apic::send_nmi(cpu.id()));
        time::spin(n * 7919 % 40_000);
    }
    let fewest = percpu::all().map(|cpu| cpu.interrupts(Pending::NMI)).min().unwrap_or(0);
    say!("@nmis fewest={fewest}");
    power::exit(if fewest > 0 { Exit::Success } else { Exit::SelfTest })
}

/// Sends `nmis=COUNT` NMIs from the run loop of the first CPU to the others, at odd intervals.
struct Pest {
    left: AtomicU64,
}

static PEST: Pest = Pest { left: AtomicU64::new(0) };

/// The sender of NMIs, if it is asked for: for machines without a GPU.
pub fn pest() -> Option<&'static dyn DeviceService> {
    PEST.left.store(option("nmis")?.parse().ok()?, Ordering::Relaxed);
    Some(&PEST)
}

impl DeviceService for Pest {
    fn interrupt(&self, _: Nanos) {}

    fn poll(&self, now: Nanos) -> Option<Nanos> {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store(left.checked_sub(1)?, Ordering::Relaxed);
        (1..percpu::count()).map(CpuId).for_each(apic::send_nmi);
        Some(Nanos(now.0 + left * 7919 % 60_000))
    }
}
