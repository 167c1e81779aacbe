//! The host half of the control structure: what the CPU goes back to at each exit. Constant for a CPU once Prism runs.

use core::arch::asm;

use hv_defs::msr;
use hv_defs::vmx::field;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::model_specific::{FsBase, GsBase};
use x86_64::registers::segmentation::{CS, FS, GS, SS, Segment};

use super::entry;
use super::vmcs::Vmcs;
use crate::x86;

/// Writes the host state of the CPU that calls.
pub(super) fn describe_to(vmcs: &mut Vmcs) {
    let (page_table, cr3_flags) = Cr3::read_raw();
    vmcs.write(field::HOST_CR0, Cr0::read_raw());
    vmcs.write(field::HOST_CR3, page_table.start_address().as_u64() | u64::from(cr3_flags));
    vmcs.write(field::HOST_CR4, Cr4::read_raw());
    vmcs.write(field::HOST_RIP, entry::exit_address());

    // Null selectors for all data segments but SS; TI and RPL must be zero, and in Prism are.
    vmcs.write(field::HOST_CS_SELECTOR, u64::from(CS::get_reg().0));
    vmcs.write(field::HOST_SS_SELECTOR, u64::from(SS::get_reg().0));
    vmcs.write(field::HOST_DS_SELECTOR, 0);
    vmcs.write(field::HOST_ES_SELECTOR, 0);
    vmcs.write(field::HOST_FS_SELECTOR, u64::from(FS::get_reg().0 & !7));
    vmcs.write(field::HOST_GS_SELECTOR, u64::from(GS::get_reg().0 & !7));
    vmcs.write(field::HOST_FS_BASE, FsBase::read().as_u64());
    vmcs.write(field::HOST_GS_BASE, GsBase::read().as_u64());

    let (gdt, task) = (sgdt(), task_register());
    vmcs.write(field::HOST_GDTR_BASE, gdt.base.as_u64());
    vmcs.write(field::HOST_IDTR_BASE, sidt().base.as_u64());
    vmcs.write(field::HOST_TR_SELECTOR, u64::from(task));
    vmcs.write(field::HOST_TR_BASE, task_base(gdt.base.as_u64(), task));

    // SAFETY: 1. Both registers exist on every 64-bit CPU. 2. Reading has no effect.
    let (pat, efer) = unsafe { (x86::read_msr(msr::IA32_PAT), x86::read_msr(msr::EFER)) };
    vmcs.write(field::HOST_IA32_PAT, pat);
    vmcs.write(field::HOST_IA32_EFER, efer);
    vmcs.write(field::HOST_IA32_SYSENTER_CS, 0);
    vmcs.write(field::HOST_IA32_SYSENTER_ESP, 0);
    vmcs.write(field::HOST_IA32_SYSENTER_EIP, 0);
}

fn task_register() -> u16 {
    let selector: u16;
    // SAFETY: 1. STR only reads.
    unsafe { asm!("str {:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}

/// Base address in the TSS descriptor that `selector` names.
fn task_base(gdt: u64, selector: u16) -> u64 {
    let descriptor = core::ptr::with_exposed_provenance::<[u64; 2]>((gdt + u64::from(selector & !7)) as usize);
    // SAFETY: 1. The CPU's own GDTR and TR say that a descriptor of 16 bytes is there. 2. `tables::load` leaked the GDT,
    // and nothing changes it after that.
    let [low, high] = unsafe { descriptor.read_unaligned() };
    low >> 16 & 0xFF_FFFF | (low >> 56 & 0xFF) << 24 | high << 32
}
