//! VT-x with extended page tables and unrestricted guests. Every control is checked against the CPU's capability
//! registers before it is used; what is optional may lack.

mod capabilities;
mod entry;
mod host;
mod instructions;
mod switched;
mod vcpu;
mod vmcs;

use alloc::boxed::Box;
use alloc::vec::Vec;

use hv_defs::PAGE_SIZE;
use hv_defs::paging::{Ept, Level};
use hv_defs::vmx::{self as defs, msr};
use x86_64::registers::control::{Cr0, Cr4, Cr4Flags};

use crate::frame::{self, OwnerId};
use crate::nested::{Nested, NestedMap, Pool};
use crate::phys::Window;
use crate::speculation::Barriers;
use crate::vendor::{Extension, Missing};
use crate::x86;

use self::capabilities::Capabilities;
use self::instructions as vmx;
use self::switched::Switched;
pub use self::vcpu::VmxVcpu;

/// VT-x on one CPU.
pub struct Vmx {
    capabilities: Capabilities,
    barriers: Barriers,
    /// Tag of the virtual CPU whose switched registers are in the CPU; 0 for none.
    loaded: u16,
    /// The switched registers of the others, by tag.
    parked: Vec<Switched>,
}

/// Whether CPUID shows VT-x.
pub fn is_there() -> bool {
    x86::cpuid(1, 0).ecx & defs::CPUID_1_ECX_VMX != 0
}

impl Extension for Vmx {
    type Vcpu = VmxVcpu;
    const NAME: &'static str = "VT-x with EPT";

    fn probe() -> Result<(), Missing> {
        if !is_there() {
            return Err(Missing("this CPU has no VT-x"));
        }
        allowing_vmxon(vmx::read_capability(msr::IA32_FEATURE_CONTROL))?;
        Capabilities::of_this_cpu().map(|_| ())
    }

    fn enable() -> Result<Self, Missing> {
        Self::probe()?;
        let capabilities = Capabilities::of_this_cpu()?;
        let region = frame::alloc_zeroed(OwnerId::HYPERVISOR).ok_or(Missing("no memory for VT-x"))?;
        // SAFETY: 1. The frame was just allocated and nobody else refers to it. It is never freed.
        let window = unsafe { Window::new(region.hpa(), PAGE_SIZE) };
        let _ = window.write_u32(0, capabilities.revision);
        allow_vmxon()?;
        set_fixed_bits()?;
        // SAFETY: 1. `probe` found VT-x, allowed by the firmware or, just now, by us. 2. CR0 and CR4 have the fixed bits.
        // 3. The region is a zeroed frame of our own with the CPU's revision.
        if unsafe { vmx::vmxon(region.hpa()) }.is_err() {
            return Err(Missing("VMXON fails although VT-x is allowed; is another hypervisor active?"));
        }
        // Nobody knows what was cached under our pointers and identifiers before this VMXON.
        capabilities.flush_everything();
        Ok(Self { capabilities, barriers: Barriers::enable(), loaded: 0, parked: Vec::new() })
    }

    fn nested(pool: Pool) -> Option<Box<dyn NestedMap>> {
        let has_1g = Capabilities::of_this_cpu().is_ok_and(|capabilities| capabilities.pages_of_1g);
        Nested::<Ept>::boxed(pool, if has_1g { Level::L3 } else { Level::L2 })
    }
}

impl Vmx {
    /// Brings a virtual CPU's switched registers into the CPU, unless they are there.
    fn own(&mut self, tag: u16, fresh: bool) {
        if self.loaded == tag && !fresh {
            return;
        }
        let last = usize::from(tag.max(self.loaded));
        if self.parked.len() <= last {
            self.parked.resize(last + 1, Switched::RESET);
        }
        if self.loaded != tag
            && let Some(place) = self.parked.get_mut(usize::from(self.loaded)).filter(|_| self.loaded != 0)
        {
            *place = Switched::save();
        }
        let parked = self.parked.get(usize::from(tag)).copied().filter(|_| !fresh);
        parked.unwrap_or(Switched::RESET).load();
        self.loaded = tag;
    }
}

/// What IA32_FEATURE_CONTROL must hold for VMXON outside SMX. Firmware that leaves it unlocked leaves the choice open.
fn allowing_vmxon(found: u64) -> Result<u64, Missing> {
    let (lock, vmxon) = (defs::FEATURE_CONTROL_LOCK, defs::FEATURE_CONTROL_VMXON);
    match (found & lock != 0, found & vmxon != 0) {
        (true, false) => Err(Missing("VT-x is locked off by the firmware; switch virtualization on in its setup")),
        (true, true) => Ok(found),
        (false, _) => Ok(found | lock | vmxon),
    }
}

fn allow_vmxon() -> Result<(), Missing> {
    let found = vmx::read_capability(msr::IA32_FEATURE_CONTROL);
    let allowing = allowing_vmxon(found)?;
    if allowing != found {
        // SAFETY: 1. The register exists where VT-x does, and is not locked. 2. It governs VMXON only.
        unsafe { x86::write_msr(msr::IA32_FEATURE_CONTROL, allowing) };
    }
    Ok(())
}

/// VMXON wants some bits of CR0 and CR4 to be set.
fn set_fixed_bits() -> Result<(), Missing> {
    let fixed = |one, zero| (vmx::read_capability(one), vmx::read_capability(zero));
    let (cr0_set, cr0_may) = fixed(msr::IA32_VMX_CR0_FIXED0, msr::IA32_VMX_CR0_FIXED1);
    let (cr4_set, cr4_may) = fixed(msr::IA32_VMX_CR4_FIXED0, msr::IA32_VMX_CR4_FIXED1);
    let cr0 = Cr0::read_raw() | cr0_set;
    let cr4 = Cr4::read_raw() | cr4_set | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits();
    if cr0 & !cr0_may != 0 || cr4 & !cr4_may != 0 {
        return Err(Missing("VT-x forbids a control-register bit that Prism runs with"));
    }
    // SAFETY: 1. What is added is NE (Prism has no x87 code) and VMXE; paging and protection are on already.
    unsafe {
        Cr0::write_raw(cr0);
        Cr4::write_raw(cr4);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit 0 locks; bit 1 is VMXON inside SMX, which Prism is not in; bit 2 outside.
    #[test]
    fn firmware_may_have_locked_it_off() {
        for off in [1, 3] {
            assert!(allowing_vmxon(off).unwrap_err().0.contains("locked off by the firmware"));
        }
        assert_eq!([0, 2, 4, 5, 7].map(|found| allowing_vmxon(found).unwrap()), [5, 7, 5, 5, 7]);
    }
}
