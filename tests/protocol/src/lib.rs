//! The protocol by which CPUs wake, kick and flush each other, start and stop VMs, under every interleaving with a few
//! preemptions (`models` says how many).
//!
//! What is checked is the hypervisor's own source: `hv/src/{cpus,irq,vcpu}.rs`, `hv/src/vm/lifecycle.rs` and the local
//! APIC with its mailbox from `hv/dev` are compiled here a second time, with loom's atomics and locks for the real ones
//! and small stand-ins (`machine`, `stubs`) for what lies below. `models` plays the run loop, posters and guests.
//!
//! What a model assumes of the machine:
//! - An interrupt is an edge that stays pending at its target until that takes it; several of a vector are one. What
//!   its sender stored before is seen by whoever takes it (`apic::send` has the fence that x2APIC needs for that).
//! - Root mode takes interrupts only in `irq::poll` and `irq::wait`. HLT and guest mode last until one is pending: a
//!   guest leaves by itself only where a model says so, else whatever is not announced would come to light by chance.
//! - Loads may yield old values, as C11 allows and loom implements it (a sequentially consistent load or store counts
//!   as acquire or release only, a sequentially consistent fence as itself). x86 does less.
//! - Nothing fails and there is no time: no timer ever saves a CPU from a lost wake-up.
//!
//! Loom finds a lost wake-up as a deadlock (all threads blocked), an endless wait as too many branches, and an access to
//! what was taken away as a data race.
// Without the unit tests of those files, which need the whole hypervisor.
#![cfg(not(test))]
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs, unused_imports)]

// The files name what they use `hv_dev::...` and `spin::...`.
extern crate self as hv_dev;
extern crate self as spin;

pub mod apic;
pub mod models;

mod machine;
mod stubs;
mod sync;
mod vm;

// Skipped here, since rustfmt would look for their unit tests (and finds the files by their own crates).
#[rustfmt::skip]
#[path = "../../../hv/src/clock.rs"]
mod clock;
#[rustfmt::skip]
#[path = "../../../hv/src/cpus.rs"]
mod cpus;
#[rustfmt::skip]
#[path = "../../../hv/src/irq.rs"]
mod irq;
#[rustfmt::skip]
#[path = "../../../hv/src/vcpu.rs"]
mod vcpu;

#[rustfmt::skip]
#[path = "../../../hv/dev/src/message.rs"]
pub mod message;
#[rustfmt::skip]
#[path = "../../../hv/dev/src/wires.rs"]
pub mod wires;

pub(crate) use machine::{percpu, x86};
pub use stubs::Chipset;
pub(crate) use stubs::{Mutex, fpu, load, say, time, trace, vendor};
pub use wires::Wires;
