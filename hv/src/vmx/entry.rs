//! World switch: the few instructions that enter a guest and come back.

use core::arch::naked_asm;

use hv_defs::vmx::field;

use crate::speculation::fill_return_predictor;

/// Guest registers that the control structure does not hold, by hardware number. The place of RSP is unused.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(super) struct Gprs(pub [u64; 16]);

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
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        // Moves leave the flags alone.
        "test rsi, rsi",
        "mov rax, [rdi + 8*0]",
        "mov rcx, [rdi + 8*1]",
        "mov rdx, [rdi + 8*2]",
        "mov rbx, [rdi + 8*3]",
        "mov rbp, [rdi + 8*5]",
        "mov rsi, [rdi + 8*6]",
        "mov r8,  [rdi + 8*8]",
        "mov r9,  [rdi + 8*9]",
        "mov r10, [rdi + 8*10]",
        "mov r11, [rdi + 8*11]",
        "mov r12, [rdi + 8*12]",
        "mov r13, [rdi + 8*13]",
        "mov r14, [rdi + 8*14]",
        "mov r15, [rdi + 8*15]",
        "mov rdi, [rdi + 8*7]",
        "jz 2f",
        "vmresume",
        "jmp 3f",
        "2: vmlaunch",
        // Still here: the entry was refused.
        "3: pop rdi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "mov eax, 1",
        "ret",
        host_rsp = const field::HOST_RSP.0,
    )
}

/// Where exits go: `enter` continued, with the stack that it had and the guest's registers.
#[unsafe(naked)]
unsafe extern "sysv64" fn exited() {
    naked_asm!(
        "xchg rdi, [rsp]",
        "mov [rdi + 8*0], rax",
        "mov [rdi + 8*1], rcx",
        "mov [rdi + 8*2], rdx",
        "mov [rdi + 8*3], rbx",
        "mov [rdi + 8*5], rbp",
        "mov [rdi + 8*6], rsi",
        "mov [rdi + 8*8], r8",
        "mov [rdi + 8*9], r9",
        "mov [rdi + 8*10], r10",
        "mov [rdi + 8*11], r11",
        "mov [rdi + 8*12], r12",
        "mov [rdi + 8*13], r13",
        "mov [rdi + 8*14], r14",
        "mov [rdi + 8*15], r15",
        "pop rax",
        "mov [rdi + 8*7], rax",
        fill_return_predictor!(),
        // Nothing of the guest's stays in a register that code mispredicted from here on might use.
        "xor eax, eax",
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

/// The value for HOST_RIP.
pub(super) fn exit_address() -> u64 {
    (exited as *const ()).expose_provenance() as u64
}
