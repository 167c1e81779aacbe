//! From the first Rust instruction to a machine on which guests can be set up.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use hv_defs::Hpa;
use spin::Once;
use thiserror::Error;
use x86_64::registers::control::Cr3;

use crate::acpi::{self, Facts};
use crate::bootinfo::{BootEntry, BootError, BootInfo};
use crate::cpu::{self, Missing};
use crate::memory::{self, Image, LEAST_BYTES};
use crate::paging::{self, NoFrame};
use crate::percpu::{self, CpuId, PerCpu};
use crate::phys::Window;
use crate::power::{self, Exit};
use crate::{apic, console, heap, irq, pci, smp, tables, time};

/// What is known of the machine once Prism runs on it.
#[derive(Debug)]
pub struct Platform {
    /// What the boot loader told.
    pub boot: BootInfo,
    /// What the ACPI tables told.
    pub acpi: Facts,
}

/// Why Prism cannot run here. Its text is one line for the user.
#[derive(Debug, Error)]
pub enum Error {
    /// The loader's information is of no use.
    #[error("{0}")]
    Boot(#[from] BootError),
    /// The CPU lacks something.
    #[error("{0}")]
    Cpu(#[from] Missing),
    /// There is too little memory: so many bytes.
    #[error("memory: the machine has {} MiB; Prism itself needs {} MiB, and the guests theirs on top", .0 >> 20, LEAST_BYTES >> 20)]
    Memory(u64),
    /// The ACPI tables are of no use.
    #[error("{0}")]
    Acpi(#[from] acpi::Error),
    /// No counter to measure time by.
    #[error("time: neither the ACPI PM timer nor the 8254 counts; enable one in the firmware")]
    NoTimer,
}

impl Error {
    /// How a run that ends by this error exits.
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Memory(_) => Exit::Memory,
            _ => Exit::Machine,
        }
    }
}

static PLATFORM: Once<Platform> = Once::new();

/// The machine, once `boot` is through.
pub fn platform() -> Option<&'static Platform> {
    PLATFORM.get()
}

/// Takes the machine over. Call once, on the boot CPU, with interrupts disabled and the first 4 GiB mapped both at 0
/// and at `phys::DIRECT_BASE`.
///
/// # Errors
/// `Error` when Prism cannot run here.
pub fn boot(entry: BootEntry, image: &Image) -> Result<&'static Platform, Error> {
    let begun = time::tsc();
    console::init();
    tables::load_early_idt();
    cpu::check()?;
    let first_tables = current_tables();
    let boot = take_memory(entry, image)?;
    let short = |NoFrame| Error::Memory(memory::usable_bytes(&boot));
    heap::init(image.heap_bytes).ok_or_else(|| short(NoFrame))?;
    console::init_buffers();
    cpu::init();

    let acpi = Facts::read(boot.acpi)?;
    if let Some((port, typ)) = acpi.power_off {
        power::set_power_off(port, typ);
    }
    apic::mask_legacy();
    apic::init_cpu().map_err(short)?;
    init_boot_cpu().map_err(short)?;
    let rates = time::measure(acpi.pm_timer).ok_or(Error::NoTimer)?;
    time::start(rates.tsc_hz, begun);
    apic::set_timer_rate(rates.apic_hz);
    apic::start_timer();
    apic::route_isa(&acpi, console::ISA_IRQ, irq::vector::CONSOLE, CpuId(0)).map_err(short)?;
    pci::init(&acpi).map_err(short)?;
    match memory::find_start_page(&boot) {
        Some(page) => smp::start_others(&acpi.cpus, page, first_tables).map_err(short)?,
        None => crate::say!("smp: no free page below 1 MiB; going on with one CPU"),
    }
    Ok(PLATFORM.call_once(|| Platform { boot, acpi }))
}

/// Reads the loader's information, makes the frame allocator, and moves to Prism's own page tables.
fn take_memory(entry: BootEntry, image: &Image) -> Result<BootInfo, Error> {
    // SAFETY: 1. The entry code maps the first 4 GiB at `DIRECT_BASE`. 2. The loader's structures lie outside the
    // image, so nothing refers to them.
    let first = unsafe { Window::new(Hpa(0), 4 << 30) };
    let boot = BootInfo::parse(entry, first)?;
    let bytes = memory::usable_bytes(&boot);
    if bytes < LEAST_BYTES {
        return Err(Error::Memory(bytes));
    }
    memory::init_frames(&boot, image).ok_or(Error::Memory(bytes))?;
    memory::init_paging(&boot, image).map_err(|NoFrame| Error::Memory(bytes))?;
    // SAFETY: 1. `init_paging` maps the image, with code, variables and the first stack, where it is linked, and RAM at
    // `DIRECT_BASE` as before.
    unsafe { paging::activate() };
    Ok(boot)
}

/// The page tables of the entry code: other CPUs start on them.
fn current_tables() -> Hpa {
    let (frame, _) = Cr3::read();
    Hpa(frame.start_address().as_u64())
}

/// Gives the boot CPU its own data, tables and stack (used from `smp::start` on).
fn init_boot_cpu() -> Result<(), NoFrame> {
    let this: &'static PerCpu = Box::leak(Box::new(PerCpu::new(CpuId(0), apic::id())));
    this.stack_top.store(paging::map_stack(0)?, Ordering::Relaxed);
    this.state.store(smp::PARKED, Ordering::Release);
    percpu::register(this);
    percpu::attach(this);
    tables::load(CpuId(0));
    Ok(())
}
