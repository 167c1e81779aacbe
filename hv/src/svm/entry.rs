//! World switch: the few instructions that enter a guest and come back.

use core::arch::{asm, naked_asm};

use hv_defs::{Hpa, msr, svm::VM_CR_SVMDIS};

use crate::speculation::fill_return_predictor;
use crate::x86;

/// Guest registers that the control block does not hold, by hardware number. The places of RAX and RSP are unused.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(super) struct Gprs(pub [u64; 16]);

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
/// Between CLGI and STGI nothing can interrupt the switch. IF is on inside, as VMRUN with V_INTR_MASKING takes the
/// guest out on a physical interrupt only if the host's IF is set; it is off again before STGI.
///
/// # Safety
/// 1. EFER.SVME is set and VM_HSAVE_PA holds a frame of this CPU.
/// 2. `guest` is a valid control block, used by this CPU alone, whose nested tables reach the guest's RAM and devices only.
/// 3. `host` was filled by `save_host` on this CPU.
/// 4. Interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(guest: u64, gprs: *mut Gprs, host: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rsi",
        "mov rax, rdi",
        "clgi",
        "sti",
        "vmload rax",
        "mov rcx, [rsi + 8*1]",
        "mov rdx, [rsi + 8*2]",
        "mov rbx, [rsi + 8*3]",
        "mov rbp, [rsi + 8*5]",
        "mov rdi, [rsi + 8*7]",
        "mov r8,  [rsi + 8*8]",
        "mov r9,  [rsi + 8*9]",
        "mov r10, [rsi + 8*10]",
        "mov r11, [rsi + 8*11]",
        "mov r12, [rsi + 8*12]",
        "mov r13, [rsi + 8*13]",
        "mov r14, [rsi + 8*14]",
        "mov r15, [rsi + 8*15]",
        "mov rsi, [rsi + 8*6]",
        "vmrun rax",
        // RAX and RSP are the host's again; every other register still is the guest's.
        "vmsave rax",
        "xchg rsi, [rsp]",
        "mov [rsi + 8*1], rcx",
        "mov [rsi + 8*2], rdx",
        "mov [rsi + 8*3], rbx",
        "mov [rsi + 8*5], rbp",
        "mov [rsi + 8*7], rdi",
        "mov [rsi + 8*8], r8",
        "mov [rsi + 8*9], r9",
        "mov [rsi + 8*10], r10",
        "mov [rsi + 8*11], r11",
        "mov [rsi + 8*12], r12",
        "mov [rsi + 8*13], r13",
        "mov [rsi + 8*14], r14",
        "mov [rsi + 8*15], r15",
        "pop rcx",
        "mov [rsi + 8*6], rcx",
        "pop rax",
        "vmload rax",
        "cli",
        "stgi",
        "cld",
        fill_return_predictor!(),
        // Nothing of the guest's stays in a register that code mispredicted from here on might use.
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
