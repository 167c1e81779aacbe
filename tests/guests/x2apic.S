# The same APIC as MSRs: what a CPU may carry by itself, order and priorities, and the end of a level-triggered interrupt.
# Each handler logs a letter when it begins and the same as a capital when it ends; its plan says what it does between.

# Keeps nothing of EAX, ECX, EDX.
.macro x2write register, value
    mov ecx, 0x800 + \register
    mov eax, \value
    xor edx, edx
    wrmsr
.endm
.macro x2is register, value
    mov ecx, 0x800 + \register
    rdmsr
    cmp eax, \value
    call judge
.endm
.set SELF_60, 0x44060
.set SELF_70, 0x44070
.set INDEX, IOAPIC
.set DATA, IOAPIC + 0x10
.set PIN_OF_COM1, 0x18

x2apic:
    cli
    mov ecx, 0x1B
    rdmsr
    or eax, 0xC00
    wrmsr
    x2write 0xF, 0x1FF
    call no_events
    # The higher first; the lower when that has ended.
    x2write 0x30, SELF_60
    x2write 0x30, SELF_70
    sti
    nop
    cli
    events bBaA, x2apic_order
    # The higher interrupts the lower's handler, not the other way round.
    mov dword ptr [rip + plan_60], SELF_70
    x2write 0x30, SELF_60
    sti
    nop
    cli
    mov dword ptr [rip + plan_70], SELF_60
    x2write 0x30, SELF_70
    sti
    nop
    cli
    events abBAbBaA, x2apic_nested

    # Held back by the task priority, by its lower half too where registers show it; then not.
    call judge_none
    x2write 8, 0x65
    x2write 0x30, SELF_60
    sti
    nop
    x2is 8, 0x65
    x2is 0xA, 0x65
    x2is 0x23, 1
    mov rax, cr8
    cmp eax, 6
    call judge
    lea rax, [rip + events_log]
    cmp [rip + events_end], rax
    call judge
    mov eax, 5
    mov cr8, rax
    nop
    cli
    x2is 8, 0x50
    x2is 0x23, 0
    x2is 0x13, 0
    cmp dword ptr [rip + served_60], 1
    call judge
    x2write 8, 0
    lea rsi, [rip + text_aa]
    call events_are
    and al, r12b
    rung x2apic_priority

    # It waits already when the guest halts; then the timer's.
    x2write 0x30, SELF_60
    sti
    hlt
    cli
    events aA, x2apic_hlt_pending
    x2write 0x3E, 0xB
    x2write 0x32, 0x60
    x2write 0x38, 1000000
1:  sti
    hlt
    cli
    lea rax, [rip + events_log]
    cmp [rip + events_end], rax
    je 1b
    x2write 0x32, 0x10060
    events aA, x2apic_hlt

    # COM1 as a level-triggered line that stays up: each end brings it again, until the third handler lowers it.
    mov ebx, INDEX
    mov ebp, DATA
    mov dword ptr [rbx], PIN_OF_COM1 + 1
    mov dword ptr [rbp], 0
    mov dword ptr [rbx], PIN_OF_COM1
    mov dword ptr [rbp], 0x8060
    mov dword ptr [rip + plan_60], -3
    mov dx, COM1 + 4
    mov al, 8
    out dx, al
    mov dx, COM1 + 1
    mov al, 2
    out dx, al
    sti
    mov ecx, 100000
1:  dec ecx
    jnz 1b
    cli
    mov dword ptr [rbx], PIN_OF_COM1
    mov dword ptr [rbp], 0x10000
    events aAaAaA, x2apic_level
    ret

on_60:
    push rax
    push rcx
    push rdx
    mov eax, 'a'
    call log_event
    mov ecx, 0x813
    rdmsr
    mov [rip + served_60], eax
    mov eax, [rip + plan_60]
    test eax, eax
    js 1f
    jz 2f
    mov dword ptr [rip + plan_60], 0
    mov ecx, 0x830
    xor edx, edx
    wrmsr
    sti
    nop
    cli
    jmp 2f
1:  inc dword ptr [rip + plan_60]
    jnz 2f
    mov dx, COM1 + 1
    xor eax, eax
    out dx, al
2:  mov eax, 'A'
    jmp 3f
on_70:
    push rax
    push rcx
    push rdx
    mov eax, 'b'
    call log_event
    mov eax, [rip + plan_70]
    test eax, eax
    jz 2f
    mov dword ptr [rip + plan_70], 0
    mov ecx, 0x830
    xor edx, edx
    wrmsr
    sti
    nop
    cli
2:  mov eax, 'B'
3:  call log_event
    x2write 0xB, 0
    pop rdx
    pop rcx
    pop rax
    iretq

.data
plan_60: .long 0
plan_70: .long 0
served_60: .long 0
text_aa: .asciz "aA"
.text
