//! `fault=KIND,cpu=N`: that CPU does what must never happen, or must do no harm, while the others sleep. With `selftest`
//! at once, without it once the mediator is there, whose lock is then held. `nmis=COUNT` pesters CPUs that run guests.

use core::arch::asm;
use core::fmt;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::{DescriptorTablePointer, lidt};
use x86_64::registers::model_specific::GsBase;

use crate::irq::{self, Pending};
use crate::percpu::{self, CpuId, PerCpu};
use crate::power::{self, Exit};
use crate::trace::{self, What};
use crate::{apic, console, cpus, say, smp, start, time};

/// Runs what provokes the fault, perhaps with a lock held.
pub type Within = fn(fn());

static WITHIN: Once<Within> = Once::new();

/// Takes all CPUs for it.
pub fn run(within: Within) -> ! {
    WITHIN.call_once(|| within);
    smp::start(enter)
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
    while asked().is_none_or(|(_, cpu)| cpu != percpu::current()) {
        cpus::sleeping();
        irq::wait();
        cpus::returned();
    }
    // By then the others sleep.
    time::spin(5_000_000);
    trace::note(What::SelfTest, [0; 3], [0; 2]);
    WITHIN.get().iter().for_each(|within| within(provoke));
    say!("selftest: nothing came of the fault");
    power::exit(Exit::SelfTest)
}

fn provoke() {
    let kind = asked().map_or("", |(kind, _)| kind);
    match kind {
        "nmi" => nmis(),
        "stack" => say!("{}", deeper(1)),
        "lock" => console::lock_up(),
        "twice" => say!("{}", Broken),
        _ => {}
    }
    let code = (run as *const ()).cast_mut().cast::<u8>();
    // SAFETY: 1. None: each of these must fault, which is what the test is about; the run ends there.
    unsafe {
        match kind {
            "write" => code.write_volatile(0xC3),
            "gp" => asm!("mov al, [{0}]", in(reg) 1u64 << 63, out("al") _),
            // Stands in for a machine check, which no instruction raises.
            "mc" => asm!("int 18"),
            "gs" => {
                GsBase::write(VirtAddr::new_truncate(0xFFFF_F000_0000_0000));
                percpu::current();
            }
            "triple" => lidt(&DescriptorTablePointer { limit: 0, base: VirtAddr::zero() }),
            _ => {}
        }
        if ["ud", "triple"].contains(&kind) {
            asm!("ud2");
        }
    }
    panic!("selftest fault={kind}")
}

/// Recurs until the stack ends.
fn deeper(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    let local = core::hint::black_box([depth; 64]);
    deeper(depth + 1).wrapping_add(local.iter().sum())
}

/// What cannot be printed: the report of the panic fails like what it reports.
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("{Self}")
    }
}

/// Every CPU takes many, this one too, and goes on.
fn nmis() {
    send_nmis(2_000, 0);
    let fewest = percpu::all().map(|cpu| cpu.interrupts(Pending::NMI)).min().unwrap_or(0);
    say!("@nmis fewest={fewest}");
    power::exit(if fewest > 0 { Exit::Success } else { Exit::SelfTest })
}

/// To every CPU from `first` on, at odd intervals.
fn send_nmis(count: u64, first: u32) {
    for n in 0..count {
        (first..percpu::count()).map(CpuId).for_each(apic::send_nmi);
        time::spin(n * 7919 % 40_000);
    }
}

/// The first CPU sends `nmis=COUNT` to the others, which run guests or sleep, before it runs any itself.
pub(crate) fn pester() {
    let count = option("nmis").and_then(|count| count.parse().ok());
    if let (Some(count), CpuId(0)) = (count, percpu::current()) {
        send_nmis(count, 1);
        let taken: u64 = percpu::all().map(|cpu: &PerCpu| cpu.interrupts(Pending::NMI)).sum();
        say!("@nmis taken={taken}");
    }
}
