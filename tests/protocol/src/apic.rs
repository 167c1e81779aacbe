//! The local APIC's model from `hv/dev`, and what `hv` asks of the real one.

#[rustfmt::skip]
#[path = "../../../hv/dev/src/apic/lapic.rs"]
mod lapic;
#[rustfmt::skip]
#[path = "../../../hv/dev/src/apic/posted.rs"]
mod posted;
#[rustfmt::skip]
#[path = "../../../hv/dev/src/apic/timer.rs"]
mod timer;
#[rustfmt::skip]
#[path = "../../../hv/dev/src/apic/vectors.rs"]
mod vectors;

pub use lapic::{ApicBus, Bootstrap, Interrupt, Interrupts, Lapic, Mode, Signals};
pub use posted::{Delivered, Posted, deliver};
pub use timer::Deadline;
pub use vectors::VectorSet;

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

pub(crate) use crate::machine::{flush_ipi, kick};
