//! Local APIC of a vCPU (Intel SDM Vol. 3A, chapter 11), split in two so that no lock is needed:
//! [`Lapic`] is owned by its vCPU; [`Posted`] is shared, and every other CPU writes only there.

mod lapic;
mod posted;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use lapic::{ApicBus, Bootstrap, Interrupt, Interrupts, Lapic, Mode, Signals};
pub use posted::{Delivered, Posted, deliver};
#[cfg(test)]
pub(crate) use tests::Xorshift;
pub use timer::Deadline;
pub use vectors::VectorSet;

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;
