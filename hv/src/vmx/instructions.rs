//! The VMX instructions, one function each.
#![cfg_attr(test, allow(dead_code, reason = "unit tests have a model of the control structure"))]

use core::arch::asm;

use hv_defs::Hpa;
use hv_defs::vmx::{Field, INVALIDATE_ALL_CONTEXTS, INVALIDATE_SINGLE_CONTEXT};

use crate::x86;

/// The CPU refused a VMX instruction (VMfail).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused;

fn refused(failed: u8) -> Result<(), Refused> {
    if failed == 0 { Ok(()) } else { Err(Refused) }
}

/// Reads a capability register or IA32_FEATURE_CONTROL; where CPUID shows VT-x.
pub(super) fn read_capability(msr: u32) -> u64 {
    // SAFETY: 1. The callers read only registers that exist with VT-x (appendix A; those with conditions, the TRUE and
    // the EPT ones, after the bits that announce them). 2. Reading has no effect.
    unsafe { x86::read_msr(msr) }
}

/// Enters VMX root operation.
///
/// # Safety
/// 1. VT-x is there and allowed by IA32_FEATURE_CONTROL. 2. CR0 and CR4 have the fixed bits and VMXE.
/// 3. `region` is a frame of ours, used for nothing else from now on, whose first word is the revision.
pub(super) unsafe fn vmxon(region: Hpa) -> Result<(), Refused> {
    let failed: u8;
    // SAFETY: 1. to 3. are the caller's.
    unsafe { asm!("vmxon [{}]", "setna {}", in(reg) &region.0, out(reg_byte) failed, options(nostack)) };
    refused(failed)
}

/// Makes a control structure inactive and not launched.
///
/// # Safety
/// 1. This CPU is in VMX root operation. 2. `vmcs` is a frame of ours, active on no other CPU.
pub(super) unsafe fn vmclear(vmcs: Hpa) -> Result<(), Refused> {
    let failed: u8;
    // SAFETY: 1. and 2. are the caller's.
    unsafe { asm!("vmclear [{}]", "setna {}", in(reg) &vmcs.0, out(reg_byte) failed, options(nostack)) };
    refused(failed)
}

/// Makes a control structure the current one.
///
/// # Safety
/// 1. and 2. as for `vmclear`. 3. Its first word is the revision.
pub(super) unsafe fn vmptrld(vmcs: Hpa) -> Result<(), Refused> {
    let failed: u8;
    // SAFETY: 1. to 3. are the caller's.
    unsafe { asm!("vmptrld [{}]", "setna {}", in(reg) &vmcs.0, out(reg_byte) failed, options(nostack)) };
    refused(failed)
}

/// Reads a field of the current control structure.
///
/// # Safety
/// 1. This CPU is in VMX root operation with a current control structure.
pub(super) unsafe fn vmread(field: Field) -> Result<u64, Refused> {
    let (value, failed): (u64, u8);
    // SAFETY: 1. The caller's; the instruction changes nothing but its operand.
    unsafe {
        asm!("vmread {}, {}", "setna {}", out(reg) value, in(reg) u64::from(field.0), out(reg_byte) failed,
            options(nostack));
    }
    refused(failed).map(|()| value)
}

/// Writes a field of the current control structure.
///
/// # Safety
/// 1. As for `vmread`.
/// 2. The value keeps the next entry sound: host state is Prism's, nested tables reach the guest's memory only.
pub(super) unsafe fn vmwrite(field: Field, value: u64) -> Result<(), Refused> {
    let failed: u8;
    // SAFETY: 1. and 2. are the caller's.
    unsafe {
        asm!("vmwrite {}, {}", "setna {}", in(reg) u64::from(field.0), in(reg) value, out(reg_byte) failed,
            options(nostack));
    }
    refused(failed)
}

/// Drops what is cached of the nested tables with this pointer, or of all. The CPU has the type (`Capabilities`).
pub(super) fn invept(pointer: Option<Hpa>) {
    let kind = if pointer.is_some() { INVALIDATE_SINGLE_CONTEXT } else { INVALIDATE_ALL_CONTEXTS };
    let descriptor = [pointer.map_or(0, |pointer| pointer.0), 0];
    // SAFETY: 1. Extensions exist only after VMXON, and only with INVEPT of this type. 2. It drops cached translations.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// Drops the linear translations cached under this identifier, or under all. The CPU has the type (`Capabilities`).
pub(super) fn invvpid(vpid: Option<u16>) {
    let kind = if vpid.is_some() { INVALIDATE_SINGLE_CONTEXT } else { INVALIDATE_ALL_CONTEXTS };
    let descriptor = [u64::from(vpid.unwrap_or(0)), 0];
    // SAFETY: 1. Extensions exist only after VMXON, and only with INVVPID of this type. 2. It drops cached translations.
    unsafe { asm!("invvpid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// Hands an NMI that ended a guest to Prism's own handler, whose IRET also lets the next one come.
pub(super) fn deliver_nmi() {
    // SAFETY: 1. The IDT has a handler for vector 2, on a stack of its own, which keeps all registers.
    unsafe { asm!("int 2") };
}
