//! The composition root: entry code, and the only place that sees both the hypervisor and the GPU mediator.
#![no_std]
#![no_main]

extern crate alloc;

mod entry;
mod fault;
mod gpu;

use core::panic::PanicInfo;

use hv::bootinfo::BootEntry;
use hv::load;
use hv::machine::{self, Ending, MachineSetup};
use hv::power::{self, Exit};
use hv::say;
use hv::start::{self, Platform};

/// Called by the entry code.
fn main(from: BootEntry) -> ! {
    match start::boot(from, &entry::image()) {
        Ok(platform) => run(platform),
        Err(error) => {
            say!("{error}");
            power::exit(error.exit())
        }
    }
}

fn run(platform: &'static Platform) -> ! {
    if platform.boot.has("selftest") {
        fault::serve_if_asked();
        hv::selftest::run(platform)
    }
    let Some(module) = platform.boot.modules.first() else {
        say!("boot: no bundle; give one as a boot module (QEMU: -initrd bundle.cpio, GRUB: module2 /bundle.cpio)");
        power::exit(Exit::NoBundle)
    };
    let (bundle, config) = match load::open(module.bytes()) {
        Ok(opened) => opened,
        Err(error) => {
            say!("{error}");
            power::exit(Exit::Config)
        }
    };
    let service = gpu::start(&config).unwrap_or_else(|error| refuse(&error)).or_else(fault::pest);
    fault::serve_if_asked();
    let vms = machine::setups(bundle, &config, hv::rtc::wall_clock(), |id, vm| {
        gpu::functions(id, vm).unwrap_or_else(|error| refuse(&error))
    });
    let ending = if platform.boot.has("once") { Ending::Once } else { Ending::Interactive };
    let error = machine::launch(MachineSetup { vms, service, ending });
    say!("{error}");
    power::exit(error.exit())
}

fn refuse(error: &gpu::Error) -> ! {
    say!("{error}");
    power::exit(Exit::Config)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hv::panic::report(info)
}

/// `boot` runs on bare metal only; tools that look at it on the host still want an allocator, and `hv` has none there.
#[cfg(not(target_os = "none"))]
mod on_host {
    use core::alloc::{GlobalAlloc, Layout};

    struct Nothing;

    #[global_allocator]
    static NOTHING: Nothing = Nothing;

    // SAFETY: 1. It never gives out memory, so there is nothing to overlap or to return.
    unsafe impl GlobalAlloc for Nothing {
        unsafe fn alloc(&self, _: Layout) -> *mut u8 {
            core::ptr::null_mut()
        }
        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }
}
