//! What the fuzzers run. A target is a plain function over bytes that panics where a rule is broken: the same bytes do
//! the same each time. libFuzzer (`tests/fuzz`) and the [`campaign`] of `cargo test` call the same functions.
#![forbid(unsafe_code)]

pub mod audit;
pub mod bundle;
pub mod bytes;
pub mod campaign;
pub mod chipset;
pub mod emulator;
pub mod mediator;
pub mod server;
pub mod vgpu;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Runs one input; gives how much was done, in what the target counts. Panics where a rule is broken.
    pub run: fn(&[u8]) -> u64,
    /// Bytes of an input, at most.
    pub bytes: usize,
    /// Inputs in the short campaign.
    pub short: u64,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "mediator", run: mediator::run, bytes: 4096, short: 60 },
    Target { name: "audit", run: audit::run, bytes: 2048, short: 3000 },
    Target { name: "vgpu", run: vgpu::run, bytes: 4096, short: 20 },
    Target { name: "emulator", run: emulator::run, bytes: 1024, short: 2000 },
    Target { name: "chipset", run: chipset::run, bytes: 2048, short: 1000 },
    Target { name: "bundle", run: bundle::run, bytes: 1024, short: 2000 },
    Target { name: "config", run: bundle::run_config, bytes: 512, short: 2000 },
    Target { name: "server", run: server::run, bytes: 2048, short: 200 },
];
