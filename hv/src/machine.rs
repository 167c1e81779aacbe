//! The machine as a whole: its VMs, the physical device's service, and how a run starts and ends.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hv_defs::Nanos;
use hv_dev::pci::PciFunction;
use spin::Once;
use thiserror::Error;

use crate::frame::Placement;
use crate::load::{Bundle, Config, VmConfig};
use crate::percpu::{self, CpuId};
use crate::power::{self, Exit};
use crate::vendor::{Extension, Missing};
use crate::vm::{BundleLoader, OutOfMemory, Status, Vm, VmId, VmSetup};
use crate::{backend, console, cpus, run, say, smp};

/// A driver of a physical device that guests share (the mediator): called from the run loop of the first CPU, never in
/// interrupt context.
pub trait DeviceService: Sync {
    /// The device raised its interrupt.
    fn interrupt(&self, now: Nanos);
    /// The deadline that the last call gave has passed, or `request_poll` was called. Gives the next deadline.
    fn poll(&self, now: Nanos) -> Option<Nanos>;
    /// Gives each of its counters for a VM: group, name, value.
    fn stats(&self, _vm: VmId, _each: &mut dyn FnMut(&str, &str, u64)) {}
    /// Gives each run of memory besides the guests' that the device was ever given to reach: first byte, bytes.
    fn memory(&self, _each: &mut dyn FnMut(u64, u64)) {}
}

/// When Prism ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ending {
    /// Never: the monitor stays.
    #[default]
    Interactive,
    /// When every guest has stopped.
    Once,
}

/// What the machine is built from.
pub struct MachineSetup {
    /// The VMs.
    pub vms: Vec<VmSetup>,
    /// The physical device's service.
    pub service: Option<&'static dyn DeviceService>,
    /// When to end.
    pub ending: Ending,
}

/// Why the machine cannot start, as one line for the user.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LaunchError {
    /// No usable virtualization extension.
    #[error("{0}")]
    Missing(Missing),
    /// A VM does not fit.
    #[error("prism.toml: vm \"{name}\", field memory_mib: {} MiB in one piece are not free on this machine; lower it", needs.needs_mib)]
    Memory {
        /// Its name.
        name: String,
        /// What it needs.
        needs: OutOfMemory,
    },
}

impl LaunchError {
    /// The exit status for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Missing(_) => Exit::Machine,
            Self::Memory { .. } => Exit::Memory,
        }
    }
}

/// The running machine.
pub struct Machine {
    vms: Vec<Vm>,
    service: Option<&'static dyn DeviceService>,
    ending: Ending,
    poll: AtomicBool,
    /// VMs that had something to do on the first CPU when the device's service was last called, a bit each.
    wanting: AtomicU64,
}

static MACHINE: Once<Machine> = Once::new();

/// The VMs' part of `prism.toml` as setups. `functions` gives the PCI functions of a VM, and the bytes of their BARs that
/// may be mapped page by page.
pub fn setups(
    bundle: Bundle<'static>,
    config: &Config,
    wall_clock: u64,
    mut functions: impl FnMut(VmId, &VmConfig) -> (Vec<(u8, Box<dyn PciFunction>)>, u64),
) -> Vec<VmSetup> {
    let bundle = alloc::sync::Arc::new(bundle);
    let count = percpu::count().max(1);
    let mut placer = Placer::new(backend::first_for_guests(count), count);
    let numbered = (1..).map(VmId).zip(&config.vm);
    numbered
        .map(|(id, vm)| {
            let (functions, mapped_bars) = functions(id, vm);
            VmSetup {
                id,
                name: vm.name.clone(),
                memory: vm.memory_mib << 20,
                cpus: placer.place(vm),
                functions,
                mapped_bars,
                // One guest low, the next high: 64-bit addresses are met early.
                placement: if id.0 % 2 == 1 { Placement::Low } else { Placement::High },
                loader: Box::new(BundleLoader { bundle: bundle.clone(), config: vm.clone() }),
                on_crash: vm.on_crash,
                restarts: vm.restarts(),
                wall_clock,
            }
        })
        .collect()
}

/// Chooses physical CPUs in turn, so that load spreads, among those that may run guests.
struct Placer {
    first: CpuId,
    count: u32,
    next: u32,
}

impl Placer {
    /// Of a machine's `cpus` CPUs, those from `first` on.
    fn new(first: CpuId, cpus: u32) -> Self {
        Self { first, count: cpus.saturating_sub(first.0).max(1), next: 0 }
    }

    /// `prism.toml` counts the CPUs that may run guests.
    fn place(&mut self, vm: &VmConfig) -> Vec<CpuId> {
        (0..vm.vcpus as usize)
            .map(|index| {
                let chosen = vm.cpus.get(index).copied().filter(|cpu| *cpu < self.count);
                let chosen = chosen.unwrap_or_else(|| {
                    self.next += 1;
                    (self.next - 1) % self.count
                });
                CpuId(self.first.0 + chosen)
            })
            .collect()
    }
}

/// Builds the VMs and runs them on all CPUs. Comes back only if it cannot start.
pub fn launch(setup: MachineSetup) -> LaunchError {
    backend::launch(setup)
}

/// The same, on an extension that this CPU has.
pub(crate) fn launch_on<E: Extension>(setup: MachineSetup) -> LaunchError {
    say!("virtualization: {}", E::NAME);
    if let CpuId(first @ 1..) = E::first_for_guests(percpu::count()) {
        say!("virtualization: this emulator changes the first CPU's state from others; guests run from CPU {first} on");
    }
    hv_emu::warm_up();
    let mut vms = Vec::new();
    for vm in setup.vms {
        let name = vm.name.clone();
        match Vm::new(vm, E::nested) {
            Ok(vm) => vms.push(vm),
            Err(needs) => return LaunchError::Memory { name, needs },
        }
    }
    let poll = AtomicBool::new(true);
    let machine = MACHINE.call_once(|| Machine {
        vms,
        service: setup.service,
        ending: setup.ending,
        poll,
        wanting: AtomicU64::new(0),
    });
    for vm in &machine.vms {
        console::add_vm(vm.id().0, vm.name());
        let memory = vm.memory().slots();
        let [low, high] = [memory.first(), memory.last()].map(|slot| slot.map_or(0, |slot| slot.hpa().0));
        let cpus: Vec<u32> = vm.cpus().iter().map(|cpu| cpu.0).collect();
        say!("{vm}: {} vCPUs on CPUs {cpus:?}, RAM from {low:#x} and {high:#x} of the host", cpus.len());
    }
    smp::start(run::enter::<E>)
}

/// The machine, once it is launched.
pub(crate) fn get() -> Option<&'static Machine> {
    MACHINE.get()
}

/// A VM by its number.
pub fn vm(id: VmId) -> Option<&'static Vm> {
    MACHINE.get()?.vms.iter().find(|vm| vm.id() == id)
}

/// Makes the first CPU call `DeviceService::poll` soon: the service's next deadline came nearer. From any CPU.
pub fn request_poll() {
    if let Some(machine) = MACHINE.get() {
        machine.poll.store(true, Ordering::SeqCst);
        cpus::nudge(CpuId(0));
    }
}

/// Whether a VM other than `id` had something to do on the first CPU when the device's service was last called: what the
/// service does there takes time from it.
pub fn is_first_cpu_wanted(id: VmId) -> bool {
    MACHINE.get().is_some_and(|machine| machine.wanting.load(Ordering::Relaxed) & !bit(id) != 0)
}

/// A VM's bit in a set.
const fn bit(id: VmId) -> u64 {
    1 << (id.0 & 63)
}

impl Machine {
    /// The VMs.
    pub fn vms(&'static self) -> &'static [Vm] {
        &self.vms
    }

    /// The physical device's service.
    pub fn service(&self) -> Option<&'static dyn DeviceService> {
        self.service
    }

    /// Whether `poll` was requested since the last call.
    pub(crate) fn take_poll(&self) -> bool {
        self.poll.load(Ordering::SeqCst) && self.poll.swap(false, Ordering::SeqCst)
    }

    /// The first CPU says who has something to do on it.
    pub(crate) fn set_wanting(&self, vms: impl Iterator<Item = VmId>) {
        self.wanting.store(vms.fold(0, |all, id| all | bit(id)), Ordering::Relaxed);
    }

    /// Ends the run if every guest has stopped and that is what was asked.
    pub(crate) fn end_if_done(&'static self) {
        if self.ending == Ending::Once && self.vms.iter().all(Vm::is_stopped) {
            crate::monitor::print_stats(self);
            let well = self.vms.iter().all(|vm| vm.status() == Status::Off);
            say!("every guest has stopped");
            say!("@end status={}", if well { "success" } else { "guest" });
            power::exit(if well { Exit::Success } else { Exit::Guest });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_cpus_go_where_guests_may_run() {
        let vm = |cpus: &str| {
            let text = format!("[[vm]]\nname = \"a\"\nmemory_mib = 64\nkernel = \"k\"\nvcpus = 3\ncpus = {cpus}\n");
            Config::parse(&text).unwrap().vm.remove(0)
        };
        let numbers = |cpus: Vec<CpuId>| cpus.into_iter().map(|cpu| cpu.0).collect::<Vec<_>>();
        let mut all = Placer::new(CpuId(0), 2);
        assert_eq!(numbers(all.place(&vm("[1, 1]"))), [1, 1, 0]);
        assert_eq!(numbers(all.place(&vm("[]"))), [1, 0, 1]);
        // `cpus` counts from the first that may; what there is not, is chosen.
        let mut spared = Placer::new(CpuId(1), 3);
        assert_eq!(numbers(spared.place(&vm("[0, 1, 2]"))), [1, 2, 1]);
        assert_eq!(numbers(Placer::new(CpuId(1), 2).place(&vm("[1]"))), [1, 1, 1]);
    }
}
