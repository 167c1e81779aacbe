# A guest that measures what exits cost: it prints "cost NAME TICKS", the mean over 1000 of the ticks of the TSC that an
# exit takes, the loop around it left out. Where the TSC counts instructions, these are instructions.
.intel_syntax noprefix
.code64
.set COM1, 0x3F8
.set IOAPIC, 0xFEC00000
.set LAPIC, 0xFEE00000
.set TIMES, 1000
.set BAR0, 0xC0000000
# Byte offsets in BAR0: a register without behaviour, the flush of the page table's buffers, PVINFO's view of the
# partition, the page table.
.set GPU_REGISTER, 0x2358
.set GFX_FLSH_CNTL, 0x101008
.set PVINFO_APERTURE, 0x78040
.set GGTT, 0x800000

.macro measure name, insns
    call begin
1:  \insns
    dec r12d
    jnz 1b
    lea rsi, [rip + 2f]
    call end
    jmp 3f
2:  .asciz "\name"
3:
.endm

.text
.globl _start
_start:
    mov rsp, offset stack_top
    xor r14d, r14d
    # Twice: the first one warms up, and its numbers are dropped.
    call everything
    inc r14d
    call everything
    mov ecx, 0x1B                      # to x2APIC mode, from which there is no way back
    rdmsr
    or eax, 0xC00
    wrmsr
    mov ecx, 0x80B
    measure eoi, "xor eax, eax; xor edx, edx; wrmsr"
    lea rsi, [rip + text_done]
    call print
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
1:  hlt
    jmp 1b

everything:
    xor r15d, r15d
    measure nothing, "nop"
    mov r15, rax                       # what the loop takes
    measure cpuid, "mov eax, 0x40000000; cpuid"
    mov dx, COM1 + 7
    measure port, "in al, dx"
    mov ebx, LAPIC + 0x80
    measure apic, "mov eax, [rbx]"
    mov ebx, IOAPIC
    measure chipset, "mov eax, [rbx]"
    mov ecx, 0xC0000080
    measure msr, "rdmsr"
    call find_gpu
    jne no_gpu
    mov ebx, BAR0 + GPU_REGISTER
    measure gpu, "mov eax, [rbx]"
    mov ebx, BAR0 + GFX_FLSH_CNTL
    measure flush, "mov dword ptr [rbx], 1"
    mov r13, r15
    add r15, rax
    mov ecx, BAR0
    mov ecx, [rcx + PVINFO_APERTURE]
    shr ecx, 9
    mov edi, BAR0 + GGTT
    add rdi, rcx
    # A store to a page that is watched, then what makes Prism watch it again, of which the cost is known.
    measure track, "mov qword ptr [rdi], 0; mov dword ptr [rbx], 1"
    mov r15, r13
no_gpu:
    ret

# Z: there is a vGPU, at BAR0.
find_gpu:
    mov edi, 0x80001000                # 00:02.0
    call config_address
    in eax, dx
    cmp ax, 0x8086
    jne 1f
    .irp register, 0x10, 0x14, 0x18, 0x1C, 0x04
    mov edi, 0x80001000 + \register
    call config_address
    .if \register == 0x10
    mov eax, BAR0
    .elseif \register == 0x1C
    mov eax, 4                         # the aperture, above 4 GiB
    .elseif \register == 0x04
    mov eax, 6
    .else
    xor eax, eax
    .endif
    out dx, eax
    .endr
    xor eax, eax
1:  ret

# EDI: address. DX: the data port.
config_address:
    mov eax, edi
    mov dx, 0xCF8
    out dx, eax
    mov dx, 0xCFC
    ret

begin:
    mov r12d, TIMES
    mov r8d, edx
    mov r9d, ecx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rbp, rax
    mov edx, r8d
    mov ecx, r9d
    ret

# RSI: name. RAX: the mean.
end:
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, rbp
    xor edx, edx
    mov ecx, TIMES
    div rcx
    sub rax, r15
    push rax
    test r14d, r14d
    jz 1f
    push rsi
    lea rsi, [rip + text_cost]
    call print
    pop rsi
    call print
    mov al, ' '
    out dx, al
    mov rax, [rsp]
    call print_decimal
    mov al, 10
    out dx, al
1:  pop rax
    ret

print_decimal:
    mov ecx, 10
    xor edx, edx
    div rcx
    push rdx
    test rax, rax
    jz 1f
    call print_decimal
1:  pop rax
    add al, '0'
    mov dx, COM1
    out dx, al
    ret

#include "text.S"

.data
text_cost: .asciz "cost "
text_done: .ascii "done "
    .ascii NONCE
    .asciz "\n"
.balign 16
.skip 4096
stack_top:
