//! Device models of the guest's machine, "q35-lite": pure state machines without threads, clocks or `unsafe`.
//!
//! - [`Chipset`]: everything on ports and MMIO but local APICs and PCI functions with behaviour; one per VM.
//! - [`apic`]: the local APIC of one vCPU, and the lock-free mailbox through which any CPU posts to it.
//! - [`pci`]: configuration mechanisms, the header builder and the trait of an external PCI function.
//! - [`acpi`]: the guest's ACPI tables; [`e820`]: its memory map.
//!
//! Time is an argument (`now: Nanos`), results leave through [`Wires`], and whatever a guest does costs bounded work.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
// A guest's value must not be able to panic us.
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo)]

extern crate alloc;

// The mailbox's; `tests/protocol` compiles it with others.
use core::sync::atomic as sync;

pub mod acpi;
pub mod apic;
mod chipset;
pub mod e820;
pub mod message;
pub mod pci;
mod wires;

pub use chipset::{Chipset, Config, DateTime, Full};
pub use message::{Delivery, Destination, Message, Trigger};
pub use wires::{Level, PowerEvent, Wires};
