//! World switch: the few instructions that enter a guest and come back.

use core::arch::{asm, naked_asm};

use hv_defs::{Hpa, msr, svm::VM_CR_SVMDIS};

use crate::speculation::fill_return_predictor;
use crate::switch::{Gprs, clear_scratch, load_guest, pop_host, push_host, store_guest};
use crate::x86;

/// Whether VM_CR.SVMDIS is set.
pub(super) fn is_disabled_by_firmware() -> bool {
    // SAFETY: 1. VM_CR exists wherever CPUID reports SVM, which the caller has checked. 2. Reading has no effect.
    unsafe { x86::read_msr(msr::VM_CR) & VM_CR_SVMDIS != 0 }
}

/// Stores this CPU's FS, GS, TR, LDTR and system-call registers.
///
/// # Safety
/// 1. EFER.SVME is set. 2. `block` is a frame of ours.
pub(super) unsafe fn save_host(block: Hpa) {
    // SAFETY: 1. and 2. are the caller's.
    unsafe { asm!("vmsave rax", in("rax") block.0, options(nostack, preserves_flags)) };
}

/// Runs a guest until it exits.
///
/// Between CLGI and STGI nothing can interrupt the switch. VMRUN with V_INTR_MASKING takes the guest out on a physical
/// interrupt only if the host's IF is set, so IF is on for VMRUN, which stands in the shadow of the STI, and for the
/// CLI that follows: at no time while FS and GS are the guest's, whatever becomes of GIF. (In QEMU other CPUs may set the
/// first CPU's GIF: `quirk::FirstCpu`. Linux' KVM had STI in this place up to 6.13; for what it costs on some CPUs see
/// `SvmVcpu::requeue`.)
///
/// # Safety
/// 1. EFER.SVME is set and VM_HSAVE_PA holds a frame of this CPU.
/// 2. `guest` is a valid control block, used by this CPU alone, whose nested tables reach the guest's RAM and devices only.
/// 3. `host` was filled by `save_host` on this CPU.
/// 4. Interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(gprs: *mut Gprs, guest: u64, host: u64) {
    naked_asm!(
        push_host!(),
        "push rdx",
        "push rdi",
        "mov rax, rsi",
        "clgi",
        "vmload rax",
        load_guest!(),
        "sti",
        "vmrun rax",
        "cli",
        // RAX and RSP are the host's again; every other register still is the guest's.
        "vmsave rax",
        store_guest!(),
        "pop rax",
        "vmload rax",
        "stgi",
        "cld",
        fill_return_predictor!(),
        clear_scratch!(),
        pop_host!(),
        "ret",
    )
}
