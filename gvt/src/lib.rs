//! The mediator: several virtual GPUs on one Intel Gen8 to Gen9.5 GPU, as a state machine between `Host` and `Hw`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod host;
pub mod hw;

pub use host::{Backing, Dirty, Host, Mapping, NoFrame, NotRam, Owner, VmId};
pub use hw::{Aperture, ApertureAccess, Hw};
