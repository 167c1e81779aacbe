# A guest that climbs: each rung prints "rung NAME ok" or "rung NAME bad". It starts in 64-bit mode with the first 4 GiB
# mapped one to one, as Linux does. With two virtual CPUs the second one starts in real mode.
.intel_syntax noprefix
.code64
.set COM1, 0x3F8
.set LAPIC, 0xFEE00000
.set IOAPIC, 0xFEC00000
.set AP_CODE, 0x50000
.set AP_FLAG, AP_CODE + 0x800
.set AP_COMMAND, AP_CODE + 0x810
.set AP_TOKEN, AP_CODE + 0x814
.set AP_POINTERS, AP_CODE + 0x900
# Linear addresses whose pages lie elsewhere: RAM, the I/O APIC, the LPC bridge's configuration, nothing, RAM, RAM.
.set WINDOW, 0x0C000000
.set TF, 0x100
.set IF, 0x200

.macro rung name
    lea rsi, [rip + name_\name]
    call rung_result
.endm

# Ends a rung that is about the order of events: what the handlers wrote is this.
.macro events text, name
    lea rsi, [rip + 1f]
    call events_are
    rung \name
    jmp 2f
1:  .asciz "\text"
2:
.endm

.macro set_flags bits
    pushfq
    or qword ptr [rsp], \bits
    popfq
.endm
.macro clear_flags bits
    pushfq
    and qword ptr [rsp], ~(\bits)
    popfq
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
    call set_up_window

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
    mov dx, COM1 + 7                   # the scratch register
    mov al, 0x5A
    out dx, al
    lea rdi, [rip + page_a]
    mov ecx, 3
    rep insb
    mov eax, [rip + page_a]
    and eax, 0xFFFFFF
    cmp eax, 0x5A5A5A
    sete al
    rung port_string_in

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

    call every_form
    rung mmio_forms

# --- Accesses that two regions share
    call judge_none
    mov edi, WINDOW + 0xFFC
    movabs rax, 0x00000001DEADBEEF
    mov [rdi], rax                     # RAM, then the I/O APIC's index
    mov eax, [rip + page_a + 0xFFC]
    cmp eax, 0xDEADBEEF
    call judge
    movabs rax, 0x00000001DEADBEEF
    cmp [rdi], rax
    call judge
    movabs rax, 0x00000001DEADBEEF
    movdqu xmm0, [rdi - 4]
    psrldq xmm0, 4
    movq rbx, xmm0
    cmp rbx, rax
    call judge
    movabs rax, 0x2918808600000000     # nothing of the I/O APIC's, then the LPC bridge's name
    cmp [rdi + 0x1000], rax
    call judge
    mov edi, 0x9FFFC
    movabs rax, 0x123456789ABCDEF0
    mov [rdi], rax                     # RAM, then nobody
    mov rbx, [rdi]
    mov ecx, 0x9ABCDEF0
    mov eax, -1
    shl rax, 32
    or rax, rcx
    cmp rbx, rax
    call judge
    mov rbx, LAPIC + 0xFFC
    mov rbx, [rbx]                     # nothing of the local APIC's, then nobody
    mov eax, -1
    shl rax, 32
    cmp rbx, rax
    call judge
    mov edi, WINDOW + 0x2FFC
    mov r14d, 1f - _start
    mov rax, [rdi]                     # the LPC bridge, then a page that is not present
1:  mov eax, 14
    call faulted_with
    cmp al, 1
    call judge
    cmp dword ptr [rip + last_cr2], WINDOW + 0x3000
    call judge
    mov al, r12b
    rung mmio_two_regions

# --- An instruction on two pages that are no neighbours: every way to split it
    mov r8d, LAPIC + 0x80 - 0x70000000
    mov r12d, 1
    mov r13d, 1
1:  mov edi, WINDOW + 0x5000
    sub edi, r13d
    lea rsi, [rip + code_piece]
    mov ecx, offset code_piece_end - code_piece
    rep movsb
    mov ebx, LAPIC + 0x80
    mov dword ptr [rbx], 0
    mov eax, WINDOW + 0x5000
    sub eax, r13d
    call rax
    cmp dword ptr [rbx], 0x70
    sete al
    and r12b, al
    inc r13d
    cmp r13d, 11
    jb 1b
    mov dword ptr [rbx], 0
    mov al, r12b
    rung code_two_pages

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

    call no_events
    mov eax, 15
    mov cr8, rax
    call send_40
    call send_50
    xor eax, eax
    mov cr8, rax
    nop
    events HI, interrupt_order
    # In the shadow of STI an instruction exits: the interrupt comes after it.
    cli
    call send_40
    xor eax, eax
    sti
    cpuid
1:  nop
    lea rax, [rip + 1b]
    cmp [rip + rip_40], rax
    sete r12b
    cli
    call send_40
    sti
    mov dword ptr [rbx + 0x80], 0
1:  nop
    lea rax, [rip + 1b]
    cmp [rip + rip_40], rax
    sete al
    and al, r12b
    rung sti_exit
    # The same with HLT, which does not sleep then.
    cli
    call send_40
    sti
    hlt
1:  lea rax, [rip + 1b]
    cmp [rip + rip_40], rax
    sete al
    rung hlt_pending

# --- NMIs: one while one is served waits for IRET, whether or not that lets interrupts in
    mov dword ptr [rip + nmis], 0
    mov dword ptr [rip + nmi_plan], 1
    call send_nmi
    nop
    nop
    cmp dword ptr [rip + nmis], 2
    sete al
    cmp dword ptr [rip + nmis_inside], 1
    sete ah
    and al, ah
    rung nmi
    cli
    mov dword ptr [rip + nmis], 0
    mov dword ptr [rip + nmi_plan], 1
    call send_nmi
    nop
    cmp dword ptr [rip + nmis], 2
    sete al
    cmp dword ptr [rip + nmis_inside], 1
    sete ah
    and al, ah
    rung nmi_masked

# --- What comes first: trap, NMI, interrupt (SDM volume 3, table 7-2)
    call no_events
    sti
    mov dword ptr [rip + nmi_plan], 3
    call send_nmi
    nop
    nop
    events NNI, nmi_first
    cli
    call send_40
    call no_events
    sti
    mov dword ptr [rbx + 0x300], 0x4400
    nop
    events NI, nmi_first_sti
    mov eax, 15
    mov cr8, rax
    call send_40
    xor eax, eax
    set_flags TF + IF
    mov cr8, rax
    clear_flags TF
    events DIDDD, trap_first
    # The handler's first instruction already gives way to the NMI.
    set_flags TF
    mov dword ptr [rbx + 0x300], 0x4400
    clear_flags TF
    lea rax, [rip + on_db]
    cmp [rip + rip_nmi], rax
    sete r12b
    lea rsi, [rip + text_nddd]
    call events_are
    and al, r12b
    rung trap_before_nmi

# --- HLT: the APIC's timer ends it
    cli
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
    call no_events
    set_flags TF
    mov dword ptr [rbx + 0x80], 0
    clear_flags TF
    events DDDD, step_mmio
    set_flags TF
    hlt
    clear_flags TF
    events DDDD, step_hlt
    # MOV SS lets no trap come before the instruction after it.
    mov eax, 0x18
    set_flags TF
    mov ss, eax
    cpuid
    clear_flags TF
    events DDDD, step_mov_ss
    mov eax, 0x18
    set_flags TF
    mov ss, eax
    mov dword ptr [rbx + 0x80], 0
    clear_flags TF
    events DDDD, step_mov_ss_mmio

# --- Mappings that change
    call remap

# --- A second virtual CPU: real mode, protected mode, PAE, long mode
    mov eax, 1
    cpuid
    shr ebx, 16
    cmp bl, 1
    je alone
    lea rsi, [rip + ap_start]
    mov edi, AP_CODE
    mov ecx, offset ap_end - ap_start
    rep movsb
    mov rax, cr3
    mov [AP_FLAG + 8], eax
    call start_ap
    rung modes
    # It does not sleep now: INIT stops it, and it starts again.
    call start_ap
    rung init

# --- A CPU that sleeps with interrupts off, for an NMI from the other
    mov dword ptr [rip + nmis], 0
    cli
    mov dword ptr [AP_COMMAND], 1
    hlt
    mov dword ptr [AP_COMMAND], 0
    cmp dword ptr [rip + nmis], 0
    setne al
    rung hlt_nmi

# --- Two that spin without an exit, interrupts off: the timer must take each out
    mov dword ptr [AP_TOKEN], 0
    mov dword ptr [AP_COMMAND], 2
    mov ecx, 3
1:  inc dword ptr [AP_TOKEN]
2:  test byte ptr [AP_TOKEN], 1
    jnz 2b
    dec ecx
    jnz 1b
    cmp dword ptr [AP_TOKEN], 6
    sete al
    rung preempt
alone:
    call x2apic
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
    # The place of a VGA's memory, as a BIOS writes to it and reads from it: nobody is there.
    mov ax, 0xB800
    mov es, ax
    xor di, di
    mov ax, 0x0720
    mov cx, 80
    cld
    rep stosw
    push ds
    mov ax, 0xB800
    mov ds, ax
    xor si, si
    mov ax, 0x5000
    mov es, ax
    mov di, 0x700
    mov cx, 4
    rep movsb
    pop ds
    cmp dword ptr ds:[0x700], -1
    jne ap_lost
    cmp di, 0x704
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
    mov ebx, [LAPIC + 0x20]            # its APIC id: 1
    cmp ebx, 1 << 24
    jne 2f
    or dword ptr [AP_FLAG], 2
2:
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
1:  pause
    cmp dword ptr [AP_COMMAND], 1
    je 2f
    cmp dword ptr [AP_COMMAND], 2
    jne 1b
    test byte ptr [AP_TOKEN], 1
    jz 1b
    inc dword ptr [AP_TOKEN]
    jmp 1b
2:  mov ebx, LAPIC                     # an NMI for the first, now and then
    mov dword ptr [rbx + 0x310], 0
    mov dword ptr [rbx + 0x300], 0x4400
    mov ecx, 100000
3:  dec ecx
    jnz 3b
    jmp 1b
ap_gdt_pointer:
    .word 5 * 8 - 1
    .long gdt
ap_end:

#include "forms.S"
#include "x2apic.S"
#include "text.S"
#include "support.S"
