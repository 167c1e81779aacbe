//! The mediator: several virtual GPUs on one Intel Gen8 to Gen9.5 GPU, as a state machine between `Host` and `Hw`.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(
    test,
    allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")
)]

extern crate alloc;

pub mod audit;
mod gpu;
pub mod gtt;
pub mod host;
pub mod hw;
mod mediator;
mod report;
pub mod stats;
pub mod trace;
mod units;
mod vgpu;

pub use host::{Backing, Dirty, Host, Mapping, NoFrame, NotRam, Owner, VmId};
pub use hw::{Aperture, ApertureAccess, Hw};
pub use mediator::{ApertureSlice, Config, Destroyed, Gvt, Progress, ResetKind, Store, VGPUS, VgpuConfig, VgpuId};
pub use report::{Action, Cause, CreateError, InitError, Report};
pub use stats::{Stats, Totals};
pub use vgpu::config_space::Bar;

#[cfg(any(test, feature = "testing"))]
#[allow(
    missing_docs,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may"
)]
pub mod testing;
