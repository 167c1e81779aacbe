//! AMD-V with nested paging. What QEMU's TCG has is enough: no next-RIP, no decode assists, no ASID flush.

mod entry;
mod permissions;
mod quirk;
mod vcpu;

use alloc::boxed::Box;

use hv_defs::paging::{Level, Npt};
use hv_defs::regs::Efer;
use hv_defs::{Frame, Hpa, msr, svm as defs};

use crate::frame::{self, OwnerId};
use crate::nested::{Nested, NestedMap, Pool};
use crate::percpu::CpuId;
use crate::speculation::Barriers;
use crate::vendor::{Extension, Missing};
use crate::x86;

pub use self::vcpu::SvmVcpu;

/// AMD-V on one CPU.
pub struct Svm {
    /// Control block that `VMSAVE` filled with this CPU's own FS, GS, TR and syscall registers.
    host: Frame,
    /// The host state-save area; kept for the life of the CPU.
    _save_area: Frame,
    barriers: Barriers,
    injection: quirk::Injection,
}

/// Whether CPUID shows AMD-V.
pub fn is_there() -> bool {
    let extended = x86::cpuid(0x8000_0001, 0);
    x86::cpuid(0x8000_0000, 0).eax >= defs::CPUID_SVM && extended.ecx & defs::CPUID_8000_0001_ECX_SVM != 0
}

impl Extension for Svm {
    type Vcpu = SvmVcpu;
    const NAME: &'static str = "AMD-V with nested paging";

    fn probe() -> Result<(), Missing> {
        if !is_there() {
            return Err(Missing("this CPU has no AMD-V"));
        }
        let features = x86::cpuid(defs::CPUID_SVM, 0);
        if features.edx & defs::FEATURE_NP == 0 {
            return Err(Missing("AMD-V without nested paging; a newer CPU is needed"));
        }
        if features.ebx < 2 {
            return Err(Missing("AMD-V without address-space identifiers; a newer CPU is needed"));
        }
        Ok(())
    }

    fn enable() -> Result<Self, Missing> {
        Self::probe()?;
        if entry::is_disabled_by_firmware() {
            return Err(Missing("AMD-V is disabled by the firmware; switch SVM on in its setup"));
        }
        let memory = Missing("no memory for AMD-V's host state");
        let host = frame::alloc_zeroed(OwnerId::HYPERVISOR).ok_or(memory)?;
        let save_area = frame::alloc_zeroed(OwnerId::HYPERVISOR).ok_or(memory)?;
        // SAFETY: 1. `probe` found SVM, and the firmware has not disabled it. 2. Both frames are zeroed, ours alone and
        // never freed.
        unsafe {
            x86::write_msr(msr::EFER, x86::read_msr(msr::EFER) | Efer::SVME.bits());
            x86::write_msr(msr::VM_HSAVE_PA, save_area.hpa().0);
            entry::save_host(host.hpa());
        }
        Ok(Self {
            host,
            _save_area: save_area,
            barriers: Barriers::enable(),
            injection: quirk::Injection::of_this_cpu(),
        })
    }

    fn first_for_guests(cpus: u32) -> CpuId {
        quirk::FirstCpu::of_this_machine().first_for_guests(cpus)
    }

    fn nested(pool: Pool) -> Option<Box<dyn NestedMap>> {
        let has_1g = x86::cpuid(0x8000_0001, 0).edx & (1 << 26) != 0;
        Nested::<Npt>::boxed(pool, if has_1g { Level::L3 } else { Level::L2 })
    }
}

impl Svm {
    fn host(&self) -> Hpa {
        self.host.hpa()
    }
}
