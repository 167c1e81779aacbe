//! The hypervisor proper: CPUs, memory, virtual machines and their run loop. It knows nothing of GPUs.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod bootinfo;
pub mod frame;
pub mod load;
pub mod nested;
pub mod phys;
