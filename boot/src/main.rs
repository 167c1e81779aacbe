//! The composition root: entry code, and the only place that sees both the hypervisor and the GPU mediator.
#![no_std]
#![no_main]

mod entry;

use core::panic::PanicInfo;

use hv::bootinfo::BootEntry;
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
        hv::selftest::run(platform)
    }
    if platform.boot.modules.is_empty() {
        say!("boot: no bundle; give one as a boot module (QEMU: -initrd bundle.cpio, GRUB: module2 /bundle.cpio)");
        power::exit(Exit::NoBundle)
    }
    power::exit(Exit::Success)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    hv::panic::report(info)
}
