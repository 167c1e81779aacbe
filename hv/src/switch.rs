//! What the world switches of both vendors share: the general registers, and the instructions that exchange them.

/// Guest registers by hardware number, as far as the vendor's control block does not hold them: never RSP, and not RAX on
/// AMD-V.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Gprs(pub [u64; 16]);

/// Keeps the registers that a function must not change (System V ABI).
macro_rules! push_host {
    () => {
        "push rbx; push rbp; push r12; push r13; push r14; push r15"
    };
}

/// Undoes `push_host`.
macro_rules! pop_host {
    () => {
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx"
    };
}

/// Loads all but RAX and RSP from the `Gprs` at RDI. Moves leave the flags alone.
macro_rules! load_guest {
    () => {
        "mov rcx, [rdi + 8*1]
        mov rdx, [rdi + 8*2]
        mov rbx, [rdi + 8*3]
        mov rbp, [rdi + 8*5]
        mov rsi, [rdi + 8*6]
        mov r8,  [rdi + 8*8]
        mov r9,  [rdi + 8*9]
        mov r10, [rdi + 8*10]
        mov r11, [rdi + 8*11]
        mov r12, [rdi + 8*12]
        mov r13, [rdi + 8*13]
        mov r14, [rdi + 8*14]
        mov r15, [rdi + 8*15]
        mov rdi, [rdi + 8*7]"
    };
}

/// Stores all but RAX and RSP to the `Gprs` whose address is popped from the stack, and which RDI then points at.
macro_rules! store_guest {
    () => {
        "xchg rdi, [rsp]
        mov [rdi + 8*1], rcx
        mov [rdi + 8*2], rdx
        mov [rdi + 8*3], rbx
        mov [rdi + 8*5], rbp
        mov [rdi + 8*6], rsi
        mov [rdi + 8*8], r8
        mov [rdi + 8*9], r9
        mov [rdi + 8*10], r10
        mov [rdi + 8*11], r11
        mov [rdi + 8*12], r12
        mov [rdi + 8*13], r13
        mov [rdi + 8*14], r14
        mov [rdi + 8*15], r15
        pop rcx
        mov [rdi + 8*7], rcx"
    };
}

/// Leaves nothing of the guest's in a register that code mispredicted from here on might use; the rest is popped.
macro_rules! clear_scratch {
    () => {
        "xor eax, eax; xor ecx, ecx; xor edx, edx; xor esi, esi; xor edi, edi
        xor r8d, r8d; xor r9d, r9d; xor r10d, r10d; xor r11d, r11d"
    };
}

pub(crate) use {clear_scratch, load_guest, pop_host, push_host, store_guest};
