//! World switch: the few instructions that enter a guest and come back.

use core::arch::naked_asm;

use hv_defs::vmx::field;

use crate::speculation::fill_return_predictor;
use crate::switch::{Gprs, clear_scratch, load_guest, pop_host, push_host, store_guest};

/// Runs a guest until it exits. 0: it ran; 1: the CPU refused the entry without trying (VMfail).
///
/// # Safety
/// 1. This CPU is in VMX root operation, interrupts off.
/// 2. Its current control structure is the guest's: nested tables reach the guest's memory only, the host state is this
///    CPU's, exits go to `exit_address`.
/// 3. `launched` is zero exactly at the first entry after VMCLEAR.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(gprs: *mut Gprs, launched: u64) -> u64 {
    naked_asm!(
        push_host!(),
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "test rsi, rsi",
        "mov rax, [rdi + 8*0]",
        load_guest!(),
        "jz 2f",
        "vmresume",
        "jmp 3f",
        "2: vmlaunch",
        // Still here: the entry was refused.
        "3: pop rdi",
        pop_host!(),
        "mov eax, 1",
        "ret",
        host_rsp = const field::HOST_RSP.0,
    )
}

/// Where exits go: `enter` continued, with the stack that it had and the guest's registers.
#[unsafe(naked)]
unsafe extern "sysv64" fn exited() {
    naked_asm!(store_guest!(), "mov [rdi + 8*0], rax", fill_return_predictor!(), clear_scratch!(), pop_host!(), "ret",)
}

/// The value for HOST_RIP.
pub(super) fn exit_address() -> u64 {
    (exited as *const ()).expose_provenance() as u64
}
