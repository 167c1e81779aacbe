# A guest that keeps what it has: it fills registers that a world switch may forget with a word of its own, spins through
# several time slices, and looks again. It prints "kept WORD", or "lost REGISTER" for each that changed.
.intel_syntax noprefix
.code64
.set COM1, 0x3F8
.set ROUNDS, 60
.set SPINS, 1000000

.macro lost name
    je 1f
    lea rsi, [rip + name_\name]
    call lost
1:
.endm

.macro set_msr number
    mov ecx, \number
    mov rax, r12
    xor edx, edx
    wrmsr
.endm

.macro check_msr number, name
    mov ecx, \number
    rdmsr
    cmp eax, r12d
    lost \name
.endm

.text
.globl _start
_start:
    mov rsp, offset stack_top
    mov rax, cr4
    or eax, 0x600                      # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov r12d, [rip + own_word]             # letters: a canonical address, too
    mov r13d, r12d
    and r13d, 0x0F
    mov eax, 0xFFFF0FF0                # B0-B3 of DR6 and what is always set
    or r13, rax
    xor r14d, r14d
    mov r15d, ROUNDS
round:
    mov cr2, r12
    mov dr0, r12
    mov dr6, r13
    movq xmm0, r12
    movq xmm15, r12
    set_msr 0xC0000081                 # STAR
    set_msr 0xC0000082                 # LSTAR
    set_msr 0xC0000083                 # CSTAR
    set_msr 0xC0000084                 # FMASK
    set_msr 0xC0000100                 # FS base
    set_msr 0xC0000101                 # GS base
    set_msr 0xC0000102                 # base that SWAPGS brings
    mov ebx, SPINS
1:  dec ebx
    jnz 1b
    mov rax, cr2
    cmp rax, r12
    lost cr2
    mov rax, dr0
    cmp rax, r12
    lost dr0
    mov rax, dr6
    cmp rax, r13
    lost dr6
    movq rax, xmm0
    cmp rax, r12
    lost xmm0
    movq rax, xmm15
    cmp rax, r12
    lost xmm15
    check_msr 0xC0000081, star
    check_msr 0xC0000082, lstar
    check_msr 0xC0000083, cstar
    check_msr 0xC0000084, fmask
    check_msr 0xC0000100, fs
    check_msr 0xC0000101, gs
    check_msr 0xC0000102, kernel_gs
    dec r15d
    jnz round
    test r14d, r14d
    jnz off
    lea rsi, [rip + text_kept]
    call print
off:
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
1:  hlt
    jmp 1b

# RSI: the register's name.
lost:
    inc r14d
    push rsi
    lea rsi, [rip + text_lost]
    call print
    pop rsi
    call print
    lea rsi, [rip + text_end]
    jmp print

#include "text.S"

.data
text_kept: .ascii "kept "
own_word: .ascii NONCE
text_end: .asciz "\n"
text_lost: .asciz "lost "
.irp name, cr2, dr0, dr6, xmm0, xmm15, star, lstar, cstar, fmask, fs, gs, kernel_gs
name_\name: .asciz "\name"
.endr
.balign 16
.skip 4096
stack_top:
