//! Which virtualization extension this CPU has: the one place above `vendor` that knows there are two.

use crate::machine::{LaunchError, MachineSetup, launch_on};
use crate::percpu::CpuId;
use crate::svm::{self, Svm};
use crate::vendor::{Extension, Missing};
use crate::vmx::{self, Vmx};

/// Launches on the extension that CPUID shows. Comes back only if it cannot start.
pub(crate) fn launch(setup: MachineSetup) -> LaunchError {
    if vmx::is_there() {
        launch_if_usable::<Vmx>(setup)
    } else if svm::is_there() {
        launch_if_usable::<Svm>(setup)
    } else {
        LaunchError::Missing(Missing("this CPU has neither VT-x nor AMD-V; Prism cannot run guests on it"))
    }
}

/// The first of a machine's `cpus` CPUs that may run guests.
pub(crate) fn first_for_guests(cpus: u32) -> CpuId {
    if !vmx::is_there() && svm::is_there() { Svm::first_for_guests(cpus) } else { Vmx::first_for_guests(cpus) }
}

fn launch_if_usable<E: Extension>(setup: MachineSetup) -> LaunchError {
    match E::probe() {
        Ok(()) => launch_on::<E>(setup),
        Err(missing) => LaunchError::Missing(missing),
    }
}
