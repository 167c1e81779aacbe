//! The software Gen9 GPU: what a PCI device shows (configuration space, BARs, DMA, an interrupt), and nothing else.
//!
//! Engines run in [`Gpu::step`], never inside an access. Memory, time and interrupt delivery belong to the caller.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod aperture;
mod blitter;
mod command;
mod config;
mod context;
mod counters;
mod device;
mod display;
mod engine;
mod execlist;
mod fetch;
mod findings;
mod gpu;
mod gtt;
mod irq;
mod memory;
mod mi;
mod mi_memory;
mod mi_register;
mod mmio;
mod pcode;
mod post_sync;
mod profile;
mod ram;
mod recorder;
mod regs;
mod reset;
mod residue;
mod rop;
mod surface;
mod tiling;
mod trace;
mod translate;
mod witness;

pub use config::{Msi, Width};
pub use counters::{Counters, EngineCounters};
pub use findings::Finding;
pub use gpu::{Bar, Gpu, Progress, Recording};
pub use gvt_defs::{Hpa, Nanos};
pub use memory::{BusError, Memory};
pub use profile::{Arbitration, Blitter, Forcewake, Profile, Save, Strict};
pub use ram::Ram;
pub use recorder::{Place, Reached, Touch, Touched, TouchedRange};
pub use witness::{Purpose, Running, Seen};

/// One line of the trace.
pub use gvt_defs::trace::Entry as TraceEntry;
