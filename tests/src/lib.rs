//! Common ground of the tests that boot machines.
#![forbid(unsafe_code)]

pub mod fit;
pub mod prism;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use qemu::build::Variant;
use qemu::machine::Outcome;

/// The hypervisor image, built once a test process.
pub fn image() -> &'static PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| qemu::build::image(Variant::Product).expect("the image builds"))
}

/// The image with the software GPU linked in, built once a test process.
pub fn soft_gpu_image() -> &'static PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| qemu::build::image(Variant::SoftGpu).expect("the image builds"))
}

/// The guest program that exercises a GPU, built once a test process.
pub fn smoke() -> &'static PathBuf {
    static SMOKE: OnceLock<PathBuf> = OnceLock::new();
    SMOKE.get_or_init(|| qemu::build::guest_program("smoke").expect("the guest program builds"))
}

/// The guest program that drives a vGPU without i915, built once a test process.
pub fn bare() -> &'static PathBuf {
    static BARE: OnceLock<PathBuf> = OnceLock::new();
    BARE.get_or_init(|| qemu::build::guest_program("bare").expect("the guest program builds"))
}

/// The guest program that keeps CPUs, timers and page tables busy, built once a test process.
pub fn churn() -> &'static PathBuf {
    static CHURN: OnceLock<PathBuf> = OnceLock::new();
    CHURN.get_or_init(|| qemu::build::guest_program("churn").expect("the guest program builds"))
}

/// A word that no earlier run has printed. Put it where nothing echoes it (a guest's script, not a command line):
/// its appearance then proves that the guest came so far.
pub fn nonce() -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:08x}{:08x}", time.subsec_nanos(), std::process::id().wrapping_mul(0x9e37_79b9))
}

/// Fails with the end of the log, or with what the machine was at when its time was up, and where the rest is.
pub fn fail(outcome: &Outcome, why: &str) -> ! {
    let log = if outcome.autopsy.is_empty() { outcome.tail(30) } else { outcome.autopsy.clone() };
    panic!("{why}: {:?} after {:.1?}\n{}\nlogs: {}", outcome.end, outcome.time, log, outcome.dir.display())
}
