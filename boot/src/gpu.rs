//! The glue between hypervisor and mediator: the physical GPU as `gvt::Hw`, the hypervisor as `gvt::Host`, each vGPU as
//! a PCI function of its VM. Nothing here decides anything; it only carries calls across.

mod function;
mod host;
mod physical;
mod service;
#[cfg(feature = "soft-gpu")]
mod soft;

use core::fmt;

use alloc::boxed::Box;
use alloc::vec::Vec;

use gvt::{Gvt, VgpuConfig};
use gvt_defs::Nanos;
use hv::load::{Config, VmConfig};
use hv::machine::DeviceService;
use hv::percpu::CpuId;
use hv::trace::{self, What};
use hv::vm::VmId;
use hv_dev::pci::PciFunction;
use spin::{Mutex, Once};

use host::Services;
use physical::PciGpu;
#[cfg(feature = "soft-gpu")]
use soft::Device;

/// The GPU that is shared.
#[cfg(not(feature = "soft-gpu"))]
type Device = PciGpu;

/// Where a guest finds its vGPU: 00:02.0, as on every machine with such a GPU.
pub const DEVICE: u8 = 2;
/// Interrupt slot of the physical GPU's message.
const MSI_SLOT: u8 = 0;

/// The mediator behind its lock, and the hypervisor's services that it is called with.
struct Shared {
    mediator: Mutex<Mediator>,
}

struct Mediator {
    gvt: Gvt<Device>,
    host: Services,
}

static SHARED: Once<Shared> = Once::new();

/// Why the GPU cannot be shared, as one line for the user.
pub enum Error {
    /// The machine has no such GPU, but a guest asks for a part of it.
    NoGpu,
    /// The mediator refuses the GPU.
    Init(gvt::InitError),
    /// A vGPU cannot be made.
    Create {
        /// The VM's name.
        vm: alloc::string::String,
        /// What is missing.
        cause: gvt::CreateError,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGpu => write!(
                f,
                "prism.toml: a vm has a gpu table, but there is no Intel GPU at 00:02.0; remove the table or add the device"
            ),
            Self::Init(cause) => write!(f, "gpu 00:02.0: {cause}"),
            Self::Create { vm, cause } => write!(f, "prism.toml: vm \"{vm}\", field gpu: {cause}"),
        }
    }
}

/// Takes over the physical GPU, if any guest wants a part of it.
pub fn start(config: &Config) -> Result<Option<&'static dyn DeviceService>, Error> {
    if config.vm.iter().all(|vm| vm.gpu.is_none()) {
        return Ok(None);
    }
    let mut host = Services::new(config);
    let function = hv::pci::Function::find(0, DEVICE, 0);
    let hw = function.and_then(PciGpu::new);
    let function = function.filter(|_| hw.is_some());
    #[cfg(feature = "soft-gpu")]
    let hw = Some(Device::choose(hw, &mut host));
    let hw = hw.ok_or(Error::NoGpu)?;
    let settings = gvt::Config {
        slice: Nanos(u64::from(config.gpu.slice_us) * 1_000),
        hang: Nanos(u64::from(config.gpu.hang_ms) * 1_000_000),
        ..gvt::Config::default()
    };
    let gvt = Gvt::new(hw, settings, &mut host, now()).map_err(Error::Init)?;
    if let Some(function) = function {
        function.enable_msi(CpuId(0), MSI_SLOT).ok_or(Error::NoGpu)?;
    }
    SHARED.call_once(|| Shared { mediator: Mutex::new(Mediator { gvt, host }) });
    // What the GPU had to say before its messages were on.
    with(|gvt, host| gvt.interrupt(host, now()));
    Ok(Some(&service::SERVICE))
}

/// A PCI function and its device number.
pub type Slotted = (u8, Box<dyn PciFunction>);

/// The PCI functions of one VM (its vGPU, if it has one), and the bytes of their BARs that are mapped page by page.
pub fn functions(id: VmId, vm: &VmConfig) -> Result<(Vec<Slotted>, u64), Error> {
    let Some(gpu) = &vm.gpu else { return Ok((Vec::new(), 0)) };
    let config = VgpuConfig {
        aperture: gpu.aperture_mib << 20,
        hidden: gpu.hidden_mib << 20,
        fences: gpu.fences,
        weight: gpu.weight,
    };
    let created = with(|gvt, host| gvt.create_vgpu(host, host::to_gvt(id), config)).ok_or(Error::NoGpu)?;
    let vgpu = created.map_err(|cause| Error::Create { vm: vm.name.clone(), cause })?;
    let function = function::VgpuFunction::new(id, vgpu);
    let mapped = function.mapped_bytes();
    Ok((alloc::vec![(DEVICE, Box::new(function) as Box<dyn PciFunction>)], mapped))
}

/// Runs `call` with the mediator, then carries out what it asks for: reports, and a nearer deadline.
fn with<T>(call: impl FnOnce(&mut Gvt<Device>, &mut Services) -> T) -> Option<T> {
    let shared = SHARED.get()?;
    let (result, deadline) = {
        trace::note(What::WaitsForMediator, [0; 3], [0; 2]);
        let mut mediator = shared.mediator.lock();
        trace::note(What::HasMediator, [0; 3], [0; 2]);
        let Mediator { gvt, host } = &mut *mediator;
        #[cfg(feature = "soft-gpu")]
        soft::run(gvt, host);
        let result = call(gvt, host);
        while let Some(report) = gvt.take_report() {
            service::carry_out(&report);
        }
        #[cfg(feature = "soft-gpu")]
        host.refresh_apertures();
        (result, deadline(gvt, host))
    };
    trace::note(What::FreesMediator, [0; 3], [0; 2]);
    service::consider(deadline);
    Some(result)
}

/// Runs this with the mediator's lock held, if there is one.
pub fn locked(run: fn()) {
    with(|_, _| run());
}

/// When the run loop is to call again.
fn deadline(gvt: &Gvt<Device>, host: &Services) -> Option<Nanos> {
    gvt.deadline().into_iter().chain(host.device_deadline()).min()
}

fn now() -> Nanos {
    Nanos(hv::time::now().0)
}
