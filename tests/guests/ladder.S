# A guest that climbs: each rung prints "rung NAME ok" or "rung NAME bad". It starts in 64-bit mode with the first 4 GiB
# mapped one to one, as Linux does. With two virtual CPUs the second one starts in real mode.
.intel_syntax noprefix
.code64
.set COM1, 0x3F8
.set LAPIC, 0xFEE00000
.set IOAPIC, 0xFEC00000
.set AP_CODE, 0x50000
.set AP_FLAG, AP_CODE + 0x800
.set AP_POINTERS, AP_CODE + 0x900

.macro rung name
    lea rsi, [rip + name_\name]
    call rung_result
.endm

.text
.globl _start
_start:
    mov rsp, offset stack_top
    call set_up_idt
    lgdt [rip + gdt_pointer]
    mov eax, 0x18
    mov ss, eax
    mov ds, eax
    mov es, eax

# --- CPUID: the hypervisor's name
    mov eax, 0x40000000
    xor ecx, ecx
    cpuid
    cmp ebx, 0x73697250                # "Pris"
    sete al
    rung cpuid

# --- MSRs: one that exits, one that does not, one that nobody has
    mov ecx, 0xC0000080
    rdmsr
    mov ebx, eax
    or eax, 1                          # SCE
    wrmsr
    rdmsr
    or ebx, 1
    cmp eax, ebx
    sete r12b
    mov ecx, 0xC0000082
    mov eax, 0x12345678
    mov edx, 0xFFFF8000
    wrmsr
    xor eax, eax
    xor edx, edx
    rdmsr
    cmp eax, 0x12345678
    sete al
    and r12b, al
    cmp edx, 0xFFFF8000
    sete al
    and al, r12b
    rung msr
    mov ecx, 0x1234
    mov r14d, 1f - _start
    rdmsr
1:  mov eax, 13                        # #GP
    call faulted_with
    rung msr_unknown

# --- Ports: three widths; a string
    mov dx, 0xCF8
    mov eax, 0x80000000
    out dx, eax
    mov dx, 0xCFC
    in eax, dx
    mov ebx, eax
    in ax, dx
    cmp ax, bx
    sete r12b
    inc dx
    in al, dx
    cmp al, bh
    sete al
    and al, r12b
    rung port
    lea rsi, [rip + text_string]
    mov ecx, offset text_string_end - text_string
    mov dx, COM1
    rep outsb
    test ecx, ecx
    sete al
    rung port_string

# --- Memory of devices: the task priority register in many forms
    mov ebx, LAPIC + 0x80
    mov dword ptr [rbx], 0x10
    mov eax, [rbx]
    cmp eax, 0x10
    sete r12b
    or dword ptr [rbx], 0x20
    cmp dword ptr [rbx], 0x30
    sete al
    and r12b, al
    mov ecx, 0x40
    xchg ecx, [rbx]
    cmp ecx, 0x30
    sete al
    and r12b, al
    and dword ptr [rbx], 0
    test dword ptr [rbx], 0xFF
    setz al
    and r12b, al
    movzx eax, byte ptr [rbx]
    test eax, eax
    setz al
    and r12b, al
    push rdi
    mov rdi, rbx
    mov eax, 0x50
    stosd
    pop rdi
    mov eax, dword ptr [rbx]
    cmp eax, 0x50
    sete al
    and al, r12b
    mov dword ptr [rbx], 0
    rung mmio
    mov r8d, LAPIC + 0x80 - 0x70000000
    jmp straddle
straddled:
    cmp eax, 0x70
    sete al
    rung mmio_page_end
    mov rbx, IOAPIC
    mov dword ptr [rbx], 1
    mov eax, [rbx + 0x10]
    and eax, 0xFF
    cmp eax, 0x20
    sete al
    rung mmio_chipset

# --- Exceptions that Prism raises
    mov r14d, 1f - _start
    vmcall
1:  mov eax, 6                         # #UD
    call faulted_with
    rung undefined
    xor ecx, ecx
    mov r14d, 1f - _start
    rdpmc
1:  mov eax, 13
    call faulted_with
    rung rdpmc

# --- Control registers: what the guest sets it sees
    mov rax, cr0
    mov rbx, rax
    or eax, 0x40000000                 # CD
    mov cr0, rax
    mov rcx, cr0
    mov cr0, rbx
    cmp rcx, rax
    sete r12b
    mov rcx, cr0
    cmp rcx, rbx
    sete al
    and r12b, al
    mov rbx, cr4
    mov rax, rbx
    or eax, 0x40                       # MCE
    mov cr4, rax
    mov rcx, cr4
    cmp rcx, rax
    sete al
    and r12b, al
    mov cr4, rbx
    mov rcx, cr4
    cmp rcx, rbx
    sete al
    and al, r12b
    rung control

# --- Interrupts: by a message to itself
    call enable_apic
    xor r15d, r15d
    call send_40
    sti
    nop
    cmp r15d, 1
    sete al
    rung interrupt
    cli
    xor r15d, r15d
    call send_40
    sti
    mov r12d, r15d                     # in the shadow of STI: not yet
    nop
    test r12d, r12d
    setz al
    cmp r15d, 1
    sete ah
    and al, ah
    rung sti_shadow
    cli
    xor r15d, r15d
    call send_40
    sti
    cli
    mov r12d, r15d
    sti
    nop
    test r12d, r12d
    setz al
    cmp r15d, 1
    sete ah
    and al, ah
    rung sti_cli
    xor r15d, r15d
    mov eax, 15
    mov cr8, rax
    call send_40
    nop
    mov r12d, r15d
    xor eax, eax
    mov cr8, rax
    nop
    test r12d, r12d
    setz al
    cmp r15d, 1
    sete ah
    and al, ah
    rung priority

# --- NMIs: one while one is served waits for IRET
    mov dword ptr [rip + nmis], 0
    mov dword ptr [rip + nmis_inside], 0
    call send_nmi
    nop
    nop
    cmp dword ptr [rip + nmis], 2
    sete al
    cmp dword ptr [rip + nmis_inside], 1
    sete ah
    and al, ah
    rung nmi

# --- HLT: the APIC's timer ends it
    xor r15d, r15d
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x3E0], 0xB
    mov dword ptr [rbx + 0x320], 0x40
    mov dword ptr [rbx + 0x380], 1000000
1:  sti
    hlt
    cli
    test r15d, r15d
    jz 1b
    mov al, 1
    rung hlt

# --- Single step over an instruction that exits
    mov dword ptr [rip + steps], 0
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    cpuid
    pushfq
    and qword ptr [rsp], ~0x100
    popfq
    cmp dword ptr [rip + steps], 4
    sete al
    rung step

# --- A second virtual CPU: real mode, protected mode, PAE, long mode
    lea rsi, [rip + ap_start]
    mov edi, AP_CODE
    mov ecx, offset ap_end - ap_start
    rep movsb
    mov dword ptr [AP_FLAG], 0
    mov rax, cr3
    mov [AP_FLAG + 8], eax
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x310], 1 << 24
    mov dword ptr [rbx + 0x300], 0xC500
    mov dword ptr [rbx + 0x310], 1 << 24
    mov dword ptr [rbx + 0x300], 0x4600 + AP_CODE / 4096
    mov rcx, 400000000
1:  pause
    cmp dword ptr [AP_FLAG], 0xF
    je 2f
    dec rcx
    jnz 1b
2:  cmp dword ptr [AP_FLAG], 0xF
    sete al
    rung modes

    lea rsi, [rip + text_done]
    call print
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
1:  hlt
    jmp 1b

# The last bytes of this instruction lie on the next page.
.balign 4096
.skip 4096 - 26
straddle:
    mov dword ptr [rbx], 0x70          # 6 bytes
    mov eax, [rbx]                     # 2
    mov dword ptr [rbx], 0             # 6
    mov dword ptr [rbx], 0x70          # 6
    mov ecx, [r8 + 0x70000000]         # 7, of which 1 on the next page
    mov eax, ecx
    mov dword ptr [rbx], 0
    jmp straddled

enable_apic:
    mov ebx, LAPIC
    mov dword ptr [rbx + 0xF0], 0x1FF
    ret
send_40:
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x300], 0x44040   # self, fixed, vector 0x40
    ret
send_nmi:
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x310], 0
    mov dword ptr [rbx + 0x300], 0x4400    # to APIC 0
    ret

# AL: passed. RSI: name. Keeps nothing.
rung_result:
    push rax
    push rsi
    lea rsi, [rip + text_rung]
    call print
    pop rsi
    call print
    pop rax
    lea rsi, [rip + text_bad]
    test al, al
    jz 1f
    lea rsi, [rip + text_ok]
1:
print:
    mov dx, COM1
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  ret

# EAX: vector expected of the instruction before. AL: whether it came.
faulted_with:
    cmp dword ptr [rip + last_fault], eax
    sete al
    mov dword ptr [rip + last_fault], -1
    ret

set_up_idt:
    lea rdi, [rip + idt]
    lea rsi, [rip + gates]
1:  lodsq
    cmp rax, -1
    je 2f
    mov ecx, eax
    shl ecx, 4
    lodsq
    mov [rdi + rcx], ax
    mov word ptr [rdi + rcx + 2], 0x10
    mov word ptr [rdi + rcx + 4], 0x8E00
    shr rax, 16
    mov [rdi + rcx + 6], ax
    mov qword ptr [rdi + rcx + 8], 0
    jmp 1b
2:  lidt [rip + idt_pointer]
    ret

# Exceptions go on at _start + R14.
on_ud:
    mov dword ptr [rip + last_fault], 6
    jmp 1f
on_gp:
    mov dword ptr [rip + last_fault], 13
    add rsp, 8
1:  lea rax, [rip + _start]
    add rax, r14
    mov [rsp], rax
    iretq
on_db:
    inc dword ptr [rip + steps]
    iretq
on_40:
    inc r15d
    push rbx
    mov ebx, LAPIC
    mov dword ptr [rbx + 0xB0], 0
    pop rbx
    iretq
on_nmi:
    inc dword ptr [rip + nmis]
    cmp dword ptr [rip + nmis], 1
    jne 1f
    push rbx
    call send_nmi
    nop
    nop
    pop rbx
    push rax
    mov eax, [rip + nmis]
    mov [rip + nmis_inside], eax
    pop rax
1:  iretq

# What the second virtual CPU runs at AP_CODE.
.code16
ap_start:
    cli
    mov ax, cs
    mov ds, ax
    mov eax, 0x40000000
    cpuid
    cmp ebx, 0x73697250
    jne ap_lost
    mov dword ptr ds:[0x800], 1
    lgdt ds:[ap_gdt_pointer - ap_start]
    mov eax, 0x11
    mov cr0, eax
    .byte 0x66, 0xEA
    .long AP_CODE + ap_32 - ap_start
    .word 0x20
ap_lost:
    hlt
    jmp ap_lost
.code32
ap_32:
    mov ax, 0x18
    mov ds, ax
    mov ss, ax
    cpuid
    or dword ptr [AP_FLAG], 2
    # PAE: the directories of the 64-bit tables, under pointers of this mode's kind.
    mov esi, [AP_FLAG + 8]
    mov esi, [esi]
    and esi, ~0xFFF
    mov edi, AP_POINTERS
    mov ecx, 4
1:  mov eax, [esi]
    and eax, ~0xFFF
    or eax, 1
    mov [edi], eax
    mov dword ptr [edi + 4], 0
    add esi, 8
    add edi, 8
    dec ecx
    jnz 1b
    mov eax, AP_POINTERS
    mov cr3, eax
    mov eax, 0x20
    mov cr4, eax
    mov eax, 0x80000011
    mov cr0, eax
    mov eax, [LAPIC + 0x20]            # its APIC id: 1
    cmp eax, 1 << 24
    jne 2f
    mov eax, 0x40000000
    cpuid
    or dword ptr [AP_FLAG], 4
2:  mov eax, 0x11
    mov cr0, eax
    mov eax, [AP_FLAG + 8]
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000011
    mov cr0, eax
    .byte 0xEA
    .long AP_CODE + ap_64 - ap_start
    .word 0x10
.code64
ap_64:
    mov eax, 0x40000000
    cpuid
    or dword ptr [AP_FLAG], 8
1:  hlt
    jmp 1b
ap_gdt_pointer:
    .word 5 * 8 - 1
    .long gdt
ap_end:

.data
.balign 8
gates:
    .quad 1, on_db, 2, on_nmi, 6, on_ud, 13, on_gp, 0x40, on_40, -1
gdt:
    .quad 0, 0
    .quad 0x00AF9B000000FFFF           # 0x10: 64-bit code
    .quad 0x00CF93000000FFFF           # 0x18: data
    .quad 0x00CF9B000000FFFF           # 0x20: 32-bit code
gdt_pointer:
    .word 5 * 8 - 1
    .quad gdt
idt_pointer:
    .word 0x41 * 16 - 1
    .quad idt
last_fault: .long -1
steps: .long 0
nmis: .long 0
nmis_inside: .long 0
text_rung: .asciz "rung "
text_ok: .asciz " ok\n"
text_bad: .asciz " bad\n"
text_done: .ascii "done "
    .ascii NONCE
    .asciz "\n"
text_string: .ascii "a string\n"
text_string_end:
.irp name, cpuid, msr, msr_unknown, port, port_string, mmio, mmio_page_end, mmio_chipset, undefined, rdpmc, control, interrupt, sti_shadow, sti_cli, priority, nmi, hlt, step, modes
name_\name: .asciz "\name"
.endr
.balign 4096
idt: .skip 4096
.skip 4096
stack_top:
