//! The hypervisor proper: CPUs, memory, virtual machines and their run loop. It knows nothing of GPUs.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod apic;
mod backend;
pub mod bootinfo;
mod clock;
pub mod console;
pub mod cpu;
mod cpus;
mod exits;
mod fpu;
pub mod frame;
pub mod heap;
pub mod irq;
pub mod load;
pub mod machine;
pub mod memory;
pub mod mmio;
mod monitor;
pub mod nested;
pub mod paging;
pub mod panic;
pub mod pci;
pub mod percpu;
pub mod phys;
pub mod power;
pub mod rtc;
mod run;
pub mod selftest;
pub mod smp;
mod speculation;
pub mod start;
pub mod stats;
mod svm;
mod switch;
mod sync;
mod tables;
pub mod time;
pub mod trace;
mod trap;
mod vcpu;
pub mod vendor;
pub mod vm;
mod vmx;
mod x86;
