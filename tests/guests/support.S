# What the rungs of the ladder call, the handlers of its interrupts and exceptions, and all of its data.

# What is copied to the end of one page and the begin of another.
code_piece:
    mov dword ptr [r8 + 0x70000000], 0x70   # 11 bytes
    ret
code_piece_end:

set_up_window:
    mov rax, cr3
    mov rax, [rax]
    and eax, ~0xFFF
    mov rax, [rax]
    and eax, ~0xFFF
    lea rbx, [rip + window_table]
    or ebx, 3
    mov [rax + (WINDOW >> 21) * 8], rbx
    mov rax, cr3
    mov cr3, rax
    ret

# AL: it came through all modes.
start_ap:
    mov dword ptr [AP_FLAG], 0
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
    ret

# BAR0 of a vGPU, if there is one: its page table is memory that follows it when it moves. Nothing here flushes.
.set BAR_HERE, 0xC0000000
.set BAR_THERE, 0xC2000000
.macro config register, value
    mov edi, 0x80001000 + \register
    mov eax, \value
    call config_write
.endm
remap:
    mov eax, 0x80001000                # 00:02.0
    mov dx, 0xCF8
    out dx, eax
    mov dx, 0xCFC
    in eax, dx
    cmp ax, 0x8086
    lea rsi, [rip + text_no_gpu]
    jne print
    config 0x10, BAR_HERE
    config 0x14, 0
    config 0x18, 0                     # the aperture out of the way, above 4 GiB
    config 0x1C, 4
    config 0x04, 6
    mov ecx, BAR_HERE
    mov ecx, [rcx + 0x78040]           # PVINFO: where its part of the aperture begins
    shr ecx, 9
    mov r8d, BAR_HERE + 0x800000
    add r8, rcx
    mov r9d, BAR_THERE - BAR_HERE
    movabs r10, 0x0000001234567001
    movabs r11, 0x0000007654321001
    call judge_none
    mov [r8], r10
    cmp [r8], r10
    call judge
    config 0x10, BAR_THERE
    cmp qword ptr [r8], -1
    call judge
    cmp [r8 + r9], r10
    call judge
    mov [r8 + r9], r11
    cmp qword ptr [r8], -1
    call judge
    config 0x10, BAR_HERE
    cmp qword ptr [r8 + r9], -1
    call judge
    cmp [r8], r11
    call judge
    mov al, r12b
    mov qword ptr [r8], 0
    rung remap
    # An NMI whose delivery is the first write to a page that Prism watches.
    mov dword ptr [rip + nmis], 0
    mov rcx, rsp
    lea rsp, [r8 + 0x8000]
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x300], 0x4400
    nop
    mov rsp, rcx
    cmp dword ptr [rip + nmis], 1
    sete al
    rung delivery
    ret
# EDI: address, EAX: value.
config_write:
    xchg eax, edi
    mov dx, 0xCF8
    out dx, eax
    xchg eax, edi
    mov dx, 0xCFC
    out dx, eax
    ret

# A rung of several parts, each of which ends with Z if it is right: R12B says whether all were, R13 counts them.
judge_none:
    mov r12d, 1
    xor r13d, r13d
    ret
judge:
    sete al
    inc r13d
    and r12b, al
    test al, al
    jnz 1f
    lea rsi, [rip + text_part]
    call print
    mov eax, r13d
    call print_number
1:  ret

# RSI: what the handlers should have written. AL: whether they did. Ends with none.
events_are:
    lea rdi, [rip + events_log]
    mov rcx, [rip + events_end]
    mov byte ptr [rcx], 0
1:  lodsb
    scasb
    jne 2f
    test al, al
    jnz 1b
    mov al, 1
    jmp no_events
2:  lea rsi, [rip + text_events]
    call print
    lea rsi, [rip + events_log]
    call print
    lea rsi, [rip + text_events_end]
    call print
    xor eax, eax
no_events:
    push rax
    lea rax, [rip + events_log]
    mov [rip + events_end], rax
    pop rax
    ret

# EAX, in hexadecimal.
print_number:
    shl rax, 32
    mov ecx, 8
    call print_digits
    lea rsi, [rip + text_events_end]
    jmp print

enable_apic:
    mov ebx, LAPIC
    mov dword ptr [rbx + 0xF0], 0x1FF
    ret
send_40:
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x300], 0x44040   # self, fixed, vector 0x40
    ret
send_50:
    mov ebx, LAPIC
    mov dword ptr [rbx + 0x300], 0x44050
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
1:  jmp print

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
on_pf:
    mov rax, cr2
    mov [rip + last_cr2], rax
    mov dword ptr [rip + last_fault], 14
    add rsp, 8
    jmp 1b
on_db:
    inc dword ptr [rip + steps]
    push rax
    mov eax, 'D'
    call log_event
    pop rax
    iretq
on_50:
    push rax
    mov eax, 'H'
    jmp 1f
on_40:
    inc r15d
    push rax
    mov rax, [rsp + 8]
    mov [rip + rip_40], rax
    mov eax, 'I'
1:  call log_event
    mov eax, LAPIC
    mov dword ptr [rax + 0xB0], 0
    pop rax
    iretq
# One NMI may have a plan: 1 for another NMI, 2 for an interrupt, both while it is served.
on_nmi:
    inc dword ptr [rip + nmis]
    push rax
    mov rax, [rsp + 8]
    mov [rip + rip_nmi], rax
    mov eax, 'N'
    call log_event
    xor eax, eax
    xchg eax, [rip + nmi_plan]
    push rbx
    test al, 1
    jz 1f
    call send_nmi
1:  test al, 2
    jz 1f
    call send_40
1:  nop
    nop
    mov ebx, [rip + nmis]
    test eax, eax
    jz 1f
    mov [rip + nmis_inside], ebx
1:  pop rbx
    pop rax
    iretq
# EAX: what happened.
log_event:
    push rbx
    mov rbx, [rip + events_end]
    mov [rbx], al
    lea rax, [rip + events_log_end - 1]
    cmp rbx, rax
    adc rbx, 0                         # the last place is written again and again
    mov [rip + events_end], rbx
    pop rbx
    ret

.data
.balign 8
gates:
    .quad 1, on_db, 2, on_nmi, 6, on_ud, 13, on_gp, 14, on_pf, 0x40, on_40, 0x50, on_50, 0x60, on_60, 0x70, on_70, -1
gdt:
    .quad 0, 0
    .quad 0x00AF9B000000FFFF           # 0x10: 64-bit code
    .quad 0x00CF93000000FFFF           # 0x18: data
    .quad 0x00CF9B000000FFFF           # 0x20: 32-bit code
gdt_pointer:
    .word 5 * 8 - 1
    .quad gdt
idt_pointer:
    .word 0x71 * 16 - 1
    .quad idt
events_end: .quad events_log
rip_40: .quad 0
rip_nmi: .quad 0
last_cr2: .quad 0
last_fault: .long -1
steps: .long 0
nmis: .long 0
nmis_inside: .long 0
nmi_plan: .long 0
events_log: .skip 32
events_log_end:
text_nddd: .asciz "NDDDD"
text_part: .asciz "wrong part: "
text_events: .asciz "events: "
text_events_end: .asciz "\n"
text_no_gpu: .asciz "no vGPU\n"
text_rung: .asciz "rung "
text_ok: .asciz " ok\n"
text_bad: .asciz " bad\n"
text_done: .ascii "done "
    .ascii NONCE
    .asciz "\n"
text_string: .ascii "a string\n"
text_string_end:
.irp name, cpuid, msr, msr_unknown, port, port_string, port_string_in, mmio, mmio_page_end, mmio_chipset, mmio_forms, mmio_two_regions, code_two_pages, undefined, rdpmc, control, interrupt, sti_shadow, sti_cli, priority, interrupt_order, sti_exit, hlt_pending, nmi, nmi_masked, nmi_first, nmi_first_sti, trap_first, trap_before_nmi, hlt, step, step_mmio, step_hlt, step_mov_ss, step_mov_ss_mmio, remap, delivery, modes, init, hlt_nmi, preempt, x2apic_order, x2apic_nested, x2apic_priority, x2apic_hlt_pending, x2apic_hlt, x2apic_level
name_\name: .asciz "\name"
.endr
.balign 4096
window_table:
    .quad page_a + 3, IOAPIC + 3, LPC_CONFIG + 3, 0, page_c + 3, page_b + 3
    .skip 4096 - 6 * 8
page_a: .skip 4096
page_b: .skip 4096
page_c: .skip 4096
idt: .skip 4096
.skip 4096
stack_top:
