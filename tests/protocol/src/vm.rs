//! A VM, with the life-cycle from `hv/src/vm/lifecycle.rs`.

#[rustfmt::skip]
#[path = "../../../hv/src/vm/lifecycle.rs"]
mod lifecycle;

#[rustfmt::skip]
#[path = "../../../hv/src/vm/restart.rs"]
mod restart;

#[rustfmt::skip]
#[path = "../../../hv/src/vm/timed.rs"]
mod timed;

use self::lifecycle::Lifecycle;
pub use self::lifecycle::{Request, Status};
use self::restart::RestartPolicy;
pub(crate) use self::timed::Timed;
use crate::Chipset;
use crate::apic::{Posted, deliver};
use crate::cpus::{self, Generation, VmId};
use crate::load::OnCrash;
use crate::load::linux::Entry;
use crate::message::Message;
use crate::percpu::CpuId;

pub struct Vm {
    name: &'static str,
    id: VmId,
    cpus: Vec<CpuId>,
    posted: Vec<Posted>,
    lifecycle: Lifecycle,
    loader: Loader,
    pub generation: Generation,
}

pub struct Loader;

impl Loader {
    fn load(&self, _: &Vm) -> Result<Entry, &'static str> {
        Ok(Entry)
    }
}

pub struct Stats;

impl Stats {
    pub fn injected(&self, _: u32) {}
}

impl Vm {
    pub fn new(id: u8, cpus: &[u32]) -> Self {
        Self {
            name: "",
            id: VmId(id),
            cpus: cpus.iter().map(|cpu| CpuId(*cpu)).collect(),
            posted: (0..cpus.len() as u32).map(Posted::new).collect(),
            lifecycle: Lifecycle::new(cpus.len(), RestartPolicy { limit: 10, window: hv_defs::Nanos(60_000_000_000) }),
            loader: Loader,
            generation: Generation::new(),
        }
    }
    pub fn id(&self) -> VmId {
        self.id
    }
    pub fn posted(&self) -> &[Posted] {
        &self.posted
    }
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }
    pub fn nested_root(&self) {}
    pub fn on_crash(&self) -> OnCrash {
        OnCrash::Stop
    }
    pub fn stats(&self) -> Stats {
        Stats
    }
    pub fn home(&self) -> CpuId {
        self.cpus[0]
    }
    /// As in `hv/src/vm.rs`.
    pub fn deliver(&self, message: &Message, sender: Option<u32>) {
        deliver(&self.posted, message, sender, |index| cpus::nudge(self.cpus[index]));
    }
    fn reset_functions(&self) {}
    fn say_rest(&self) {}
    pub fn with_chipset<R>(&self, action: impl FnOnce(&mut Chipset, &mut ()) -> R) -> R {
        action(&mut Chipset, &mut ())
    }
}

impl core::fmt::Display for Vm {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Ok(())
    }
}
