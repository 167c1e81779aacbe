# A guest that has its registers to itself: each virtual CPU deals itself values that depend on the VM, its number and the
# round, loads them into all that a world switch may forget, spins, and looks whether they are still there. Its own timer,
# messages between the two, faults, halts and exits come in between, and the slices of other VMs that do the same. The first
# difference ends it: "twins: vCPU 0: GS base is ..., should be ...". At its end it says what it compared: "vCPU 0 ok xmm".
.intel_syntax noprefix
.code64
.set COM1, 0x3F8
.set LAPIC, 0xFEE00000
.set AP_CODE, 0x50000
.set ROUNDS, 150
.set PASSES, 8
.set TIMER, 0xE0
.set FIXED, 0xE1
.set SELF, 0xE2
# The slowest vCPU must have taken its messages after so many interrupts of the other's timer.
.set PATIENCE, 5000

.set GS_BASE, 0xC0000101
.set KERNEL_GS_BASE, 0xC0000102

# --- Where things lie: first what a virtual CPU has of its own, at the same linear address for all by its page tables.
.set MINE, 0x0C000000
.set UNMAPPED, 0x0C200000              # nothing is there
.set MARK, 0x0C400000                  # which tables these are
.set HOME, MINE + 0x08                 # where MINE is in memory
.set SEED, MINE + 0x10                 # of the program, and of the timer's handler
.set SEED_TIMER, MINE + 0x18
.set STACK, MINE + 0x20
.set SPINS, MINE + 0x28
.set FAULT, MINE + 0x30                # an address that may fault, and where that goes on
.set FAULT_BACK, MINE + 0x38
.set IST, MINE + 0x40                  # where interrupts' stack begins, by the task register
.set SETTLED, MINE + 0x48              # handlers may compare
.set ARMED, MINE + 0x50
.set X2APIC, MINE + 0x58
.set HAS_AVX, MINE + 0x60
.set ME, MINE + 0x68                   # its number, and that of the other: its own, if there is none
.set OTHER, MINE + 0x70
.set IN_MEMORY, MINE + 0x78            # what counts the spins
.set PASS, MINE + 0x80
.set ROUND, MINE + 0x88
.set TICKS, MINE + 0x90
.set COUNTS, MINE + 0x100              # comparisons of each group
.set EXPECTED, MINE + 0x1000
.set FOUND, MINE + 0x2000
.set FX, MINE + 0x7000
.set FX_FOUND, MINE + 0x7200
.set STACK_TOP, MINE + 0x10000
# The same from HOME on. Eight places for each table; which one is in use is among the values.
.set ROOTS, 0x20000
.set GDTS, 0x30000
.set IDTS, 0x40000
.set TASKS, 0x60000
.set LDTS, 0x68000
.set STACKS, 0x80000
.set NMI_STACKS, 0x90000
.set HOMES, 0x800000
.set HOME_SHIFT, 21
# --- What the two share: by the number of the receiver, messages sent and taken.
.set SHARED, 0x700000
.set SENT, SHARED
.set TAKEN, SHARED + 0x40
.set DONE, SHARED + 0x80
.set READY, SHARED + 0x88
.set PRINTING, SHARED + 0x90
.set FAILED, SHARED + 0x98
.set KIND_FIXED, 0                     # offsets in SENT and TAKEN
.set KIND_SELF, 0x10
.set KIND_NMI, 0x20

# --- What is compared. A value is random under a mask, with some bits that are set, and may count from HOME.
.set index, 0
.set groups_end, 0
.macro group name, text
    .data 3
9:  .asciz "\text"
    .data 2
    .quad 9b, index
    .set G_\name, groups_end
    .set groups_end, groups_end + 16
    .text
.endm
.macro item name, text, mask=-1, bits=0, relative=0
    .set I_\name, index
    .set index, index + 1
    .data 3
9:  .asciz "\text"
    .data 1
    .quad 9b, \mask, \bits, -\relative
    .text
.endm
.set CANONICAL, 0x00007FFFFFFFFFFF
.set UPPER, 0xFFFF800000000000
.data 1
.balign 8
items:
.data 2
.balign 8
groups:
.text
group general, "general"
.irp name, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
item \name, "\name"
.endr
group flags, "flags"
item rflags, "RFLAGS", 0x240CD5, 0x202
group segments, "segments"
item ds, "DS", 0x18
item es, "ES", 0x18
item ss, "SS", 0x10, 8
item fs, "FS", 0x18
item gs, "GS", 0x18
group tables, "tables"
item gdtr, "GDTR base", 0x7000, GDTS, 1
item gdt_limit, "GDTR limit", 0x7F00, 0xFF
item idtr, "IDTR base", 0x7000, IDTS, 1
item idt_limit, "IDTR limit", 0xF000, 0xFFF
item tr, "TR", 0x30, 0x40
item ldtr, "LDTR", 0x30, 0x80
item ldt, "limit in the LDT", 0xFFFFF
group control, "control"
item cr0, "CR0", 0x50002, 0x80000031
item cr4, "CR4", 0x1C8, 0x620
item cr8, "CR8", 7
item xcr0, "XCR0", 4, 3
group paging, "paging"
item cr2, "CR2"
item cr3, "CR3", 0x8018, ROOTS, 1
item mark, "mark of the page tables"
group debug, "debug"
item dr0, "DR0"
item dr1, "DR1"
item dr2, "DR2"
item dr3, "DR3"
item dr6, "DR6", 0x600F, 0xFFFF0FF0
item dr7, "DR7", 0xEEEE0300, 0x11110400
group bases, "bases"
item fs_base, "FS base", CANONICAL
item gs_base, "GS base", CANONICAL     # programs' below, the kernel's above: so handlers tell whether to swap
item kernel_gs, "KERNEL_GS_BASE", CANONICAL, UPPER
group syscall, "syscall"
item star, "STAR"
item lstar, "LSTAR", CANONICAL
item cstar, "CSTAR", CANONICAL
item sfmask, "SFMASK", 0xFFFFFFFF
item sysenter_cs, "SYSENTER_CS", 0xFFFF
item sysenter_esp, "SYSENTER_ESP", CANONICAL, UPPER
item sysenter_eip, "SYSENTER_EIP", CANONICAL, UPPER
group tsc, "tsc"
item tsc_aux, "TSC_AUX", 0xFFFFFFFF
item tsc, "upper part of the TSC"
group x87, "x87"
item x87, "x87 control, status and tags", 0x7F3F0C00, 0xFF0000037F
item mxcsr, "MXCSR", 0xE03F, 0x1F80
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
item st\n, "ST\n"
item st_high\n, "upper part of ST\n", 0xFFFF
.endr
group xmm, "xmm"
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
item xmm\n, "XMM\n"
item xmm_high\n, "upper half of XMM\n"
.endr
group ymm, "ymm"
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
item ymm\n, "upper half of YMM\n"
item ymm_high\n, "top of YMM\n"
.endr
# These exit, and are looked at once a round.
group exiting, "exiting"
item efer, "EFER", 0x801, 0x500
item pat, "PAT", 0x0101010100000000, 0x0606060600070406
item tsc_adjust, "TSC_ADJUST", 0x003F000000000000
item tsc_aux_read, "TSC_AUX by RDMSR"
item tpr, "the APIC's task priority"
group end, ""
.data 1
items_end:
.text

# RAX: the next of these numbers. Changes RDX.
.macro next_random seed
    mov rax, [\seed]
    mov rdx, rax
    shl rdx, 13
    xor rax, rdx
    mov rdx, rax
    shr rdx, 7
    xor rax, rdx
    mov rdx, rax
    shl rdx, 17
    xor rax, rdx
    mov [\seed], rax
.endm

.macro expected register, name
    mov \register, [EXPECTED + 8 * I_\name]
.endm
.macro found name, register
    mov [FOUND + 8 * I_\name], \register
.endm

.text
.globl _start
_start:
    mov rsp, 0x80000
    call set_up
    cmp dword ptr [OTHER], 0
    je started
    lea rsi, [rip + ap_start]
    mov edi, AP_CODE
    mov ecx, offset ap_end - ap_start
    rep movsb
    mov edx, 1
    mov eax, 0xC500                    # INIT
    call send
    mov edx, 1
    mov eax, 0x4600 + AP_CODE / 4096   # STARTUP
    call send
started:
    mov dword ptr [ROUND], ROUNDS
rounds:
    call deal
    mov eax, [ME]
    mov byte ptr [READY + rax], 1
    mov dword ptr [PASS], PASSES
1:  call spin
    call look
    lea rdi, [rip + groups + G_general]
    lea rsi, [rip + groups + G_exiting]
    call compare
    call disturb
    dec dword ptr [PASS]
    jnz 1b
    call look_exiting
    lea rdi, [rip + groups + G_exiting]
    lea rsi, [rip + groups + G_end]
    call compare
    dec dword ptr [ROUND]
    jnz rounds
    call take_all
    call say_what
    mov eax, [ME]
    lock inc dword ptr [DONE]
    test eax, eax
    jz 2f
1:  hlt
    jmp 1b
2:  hlt                                # the first waits for the other
    mov eax, [OTHER]
    inc eax
    cmp [DONE], eax
    jne 2b
    lea rsi, [rip + text_done]
    call print
off:
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
    cli
1:  hlt
    jmp 1b

# --- Values

# New ones for everything. Interrupts wait meanwhile; NMIs do not, and compare nothing.
deal:
    cli
    mov dword ptr [SETTLED], 0
    lea rsi, [rip + items]
    lea rbx, [rip + items_end]
    mov edi, EXPECTED
1:  next_random SEED
    and rax, [rsi + 8]
    or rax, [rsi + 16]
    mov rdx, [rsi + 24]
    and rdx, [HOME]
    add rax, rdx
    stosq
    add rsi, 32
    cmp rsi, rbx
    jb 1b
    call make_whole
    call load_control
    call load_tables
    lea rsi, [rip + msrs]
    lea rdi, [rip + msrs_end]
    call load_msrs
    call load_debug
    call load_vectors
    mov dword ptr [SETTLED], 1
    sti
    ret

# What follows from other values, or from what the CPU has.
make_whole:
    expected rax, tsc_adjust
    mov [EXPECTED + 8 * I_tsc], rax
    expected rax, tsc_aux
    mov [EXPECTED + 8 * I_tsc_aux_read], rax
    expected rax, cr8
    shl eax, 4
    mov [EXPECTED + 8 * I_tpr], rax
    expected eax, cr3
    and eax, 0x8000
    add rax, [HOME]
    mov rax, [rax + 0x100000]          # see set_up_roots
    mov [EXPECTED + 8 * I_mark], rax
    mov eax, [HAS_AVX]
    shl eax, 18                        # OSXSAVE
    or [EXPECTED + 8 * I_cr4], rax
    ret

load_control:
    expected rax, cr3
    mov cr3, rax
    expected rax, cr0
    mov cr0, rax
    expected rax, cr4
    mov cr4, rax
    expected rax, cr8
    mov cr8, rax
    expected rax, cr2
    mov cr2, rax
    ret

# The descriptors of this round's selectors, in this round's table.
load_tables:
    expected rdi, gdtr
    expected ebx, tr
    mov ecx, ebx
    shl ecx, 8
    add rcx, [HOME]
    add rcx, STACKS
    mov [IST], rcx
    lea rdx, [rcx + NMI_STACKS - STACKS]
    mov esi, ebx
    shl esi, 4
    add rsi, [HOME]
    add rsi, TASKS
    mov [rsi + 0x24], rcx
    mov [rsi + 0x2C], rdx
    shl rsi, 16
    movabs rax, 0x0000890000000067     # a TSS that is not busy
    or rax, rsi
    mov [rdi + rbx], rax
    expected ebx, ldtr
    mov esi, ebx
    shl esi, 4
    add rsi, [HOME]
    add rsi, LDTS
    expected eax, ldt
    movzx edx, ax
    shr eax, 16
    shl rax, 48
    or rax, rdx
    movabs rdx, 0x0040930000000000
    or rax, rdx
    mov [rsi], rax
    shl rsi, 16
    movabs rax, 0x000082000000000F
    or rax, rsi
    mov [rdi + rbx], rax

    push rdi
    expected eax, gdt_limit
    push ax
    lgdt [rsp]
    add rsp, 10
    push qword ptr [EXPECTED + 8 * I_idtr]
    expected eax, idt_limit
    push ax
    lidt [rsp]
    add rsp, 10
    ltr word ptr [EXPECTED + 8 * I_tr]
    lldt word ptr [EXPECTED + 8 * I_ldtr]
    mov ss, word ptr [EXPECTED + 8 * I_ss]
    mov ds, word ptr [EXPECTED + 8 * I_ds]
    mov es, word ptr [EXPECTED + 8 * I_es]
    mov fs, word ptr [EXPECTED + 8 * I_fs]
    # A handler tells by GS base whose it is.
    mov gs, word ptr [EXPECTED + 8 * I_gs]
    ret

# RSI to RDI: MSRs and where their values are.
load_msrs:
    mov ecx, [rsi]
    mov eax, [rsi + 4]
    mov rdx, [EXPECTED + 8 * rax]
    mov eax, edx
    shr rdx, 32
    wrmsr
    add rsi, 8
    cmp rsi, rdi
    jb load_msrs
    ret

load_debug:
    .irp n, 0, 1, 2, 3, 6, 7
    expected rax, dr\n
    mov dr\n, rax
    .endr
    ret

# x87 and SSE as FXRSTOR takes them; then the upper halves, before XCR0 may hide them.
load_vectors:
    expected rax, x87
    mov [FX], rax
    expected rax, mxcsr
    mov [FX + 24], rax
    mov esi, EXPECTED + 8 * I_st0
    mov edi, FX + 32
    mov ecx, 48
    rep movsq
    cmp dword ptr [HAS_AVX], 0
    je 1f
    xor ecx, ecx
    xor edx, edx
    mov eax, 7
    xsetbv
    fxrstor64 [FX]
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinsertf128 ymm\n, ymm\n, [EXPECTED + 8 * I_ymm\n], 1
    .endr
    expected eax, xcr0
    xsetbv
    ret
1:  fxrstor64 [FX]
    ret

# --- Looking

.macro load_general
    push qword ptr [EXPECTED + 8 * I_rflags]
    popfq
    .irp name, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rsp
    expected \name, \name
    .endr
.endm

# Loads the general registers and the flags, spins, and stores them. No instruction between needs a stack, or what is in
# any register: those of handlers come from the task state segment. Either RCX counts, and no flag changes, or memory does.
spin:
    next_random SEED
    mov ecx, eax
    and ecx, 0xFFF
    inc ecx
    test eax, 0x70000
    jnz 1f
    shl ecx, 4                         # a long one
1:  mov [SPINS], rcx
    shr eax, 31
    mov [IN_MEMORY], eax
    mov [STACK], rsp
    test eax, eax
    jz 2f
    load_general
1:  dec qword ptr [SPINS]
    jnz 1b
    jmp 3f
2:  load_general
    mov rcx, [SPINS]
1:  loop 1b
    expected rcx, rcx
3:  .irp name, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    found \name, \name
    .endr
    mov rsp, [STACK]
    pushfq
    pop qword ptr [FOUND + 8 * I_rflags]
    push 0x202
    popfq
    cmp dword ptr [IN_MEMORY], 0
    je 1f
    expected rax, rflags
    found rflags, rax
1:  ret

.macro look_at name, register
    mov rax, \register
    found \name, rax
.endm

# All others that do not exit.
look:
    .irp name, ds, es, ss, fs, gs
    mov eax, \name
    found \name, rax
    .endr
    .irp name, cr0, cr2, cr3, cr4, cr8, dr0, dr1, dr2, dr3, dr6, dr7
    look_at \name, \name
    .endr
    look_at mark, [MARK]
    sub rsp, 16
    sgdt [rsp]
    look_at gdtr, [rsp + 2]
    movzx eax, word ptr [rsp]
    found gdt_limit, rax
    sidt [rsp]
    look_at idtr, [rsp + 2]
    movzx eax, word ptr [rsp]
    found idt_limit, rax
    add rsp, 16
    str eax
    found tr, rax
    sldt eax
    found ldtr, rax
    mov ecx, 4                         # the first of the LDT
    xor eax, eax
    lsl eax, ecx
    found ldt, rax
    lea rsi, [rip + msrs]
    lea rdi, [rip + exiting_msrs]
    call look_at_msrs
    rdtscp
    found tsc_aux, rcx
    shl rdx, 32
    movabs rax, 0x003F000000000000
    and rax, rdx
    found tsc, rax

look_at_vectors:
    fxsave64 [FX_FOUND]
    look_at x87, [FX_FOUND]
    mov eax, [FX_FOUND + 24]
    found mxcsr, rax
    mov esi, FX_FOUND + 32
    mov edi, FOUND + 8 * I_st0
    mov ecx, 48
    rep movsq
    cmp dword ptr [HAS_AVX], 0
    je 2f
    xor ecx, ecx
    xgetbv
    found xcr0, rax
    test eax, 4
    jz 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextractf128 [FOUND + 8 * I_ymm\n], ymm\n, 1
    .endr
    ret
2:  expected rax, xcr0
    found xcr0, rax
1:  dec dword ptr [COUNTS + G_ymm]     # nothing shows them: not compared
    mov esi, EXPECTED + 8 * I_ymm0
    mov edi, FOUND + 8 * I_ymm0
    mov ecx, 32
    rep movsq
    ret

look_exiting:
    lea rsi, [rip + exiting_msrs]
    lea rdi, [rip + msrs_end]
    call look_at_msrs
    mov ecx, 8
    call apic_read
    found tpr, rax
    ret

look_at_msrs:
    mov ecx, [rsi]
    rdmsr
    shl rdx, 32
    or rax, rdx
    mov ecx, [rsi + 4]
    mov [FOUND + 8 * rcx], rax
    add rsi, 8
    cmp rsi, rdi
    jb look_at_msrs
    ret

# RDI to RSI: groups.
compare:
    mov ecx, [rdi + 8]
    mov r8d, [rdi + 24]
1:  mov rax, [FOUND + 8 * rcx]
    mov rdx, [EXPECTED + 8 * rcx]
    cmp rax, rdx
    jne differs
    inc ecx
    cmp ecx, r8d
    jb 1b
    mov rax, rdi
    lea rdx, [rip + groups]
    sub rax, rdx
    inc dword ptr [COUNTS + rax]
    add rdi, 16
    cmp rdi, rsi
    jb compare
    ret
differs:
    shl ecx, 5
    lea rsi, [rip + items]
    mov rsi, [rsi + rcx]
# RSI: what differs; RAX: what it is, RDX: what it should be. Ends this guest.
report:
    cli
    cld
    mov dword ptr [SETTLED], 0         # NMIs still come
    mov ecx, 1
    xchg [FAILED], ecx
    test ecx, ecx
    jnz 1f
    push rdx
    push rax
    push rsi
    lea rsi, [rip + text_twins]
    call print_me
    lea rsi, [rip + text_colon]
    call print
    pop rsi
    call print
    lea rsi, [rip + text_is]
    call print
    pop rax
    mov ecx, 16
    call print_digits
    lea rsi, [rip + text_should]
    call print
    pop rax
    mov ecx, 16
    call print_digits
    lea rsi, [rip + text_end]
    call print
    jmp off
1:  hlt
    jmp 1b

# --- What happens in between

disturb:
    next_random SEED
    shr eax, 13
    and eax, 15
    lea rdx, [rip + disturbances]
    jmp [rdx + 8 * rax]
nothing:
    ret
halt:                                  # until its timer comes, at the latest
    hlt
    ret
ask_cpuid:
    mov eax, 1
    cpuid
    mov eax, ebx
    shr eax, 24
    mov edx, [ME]
    lea rsi, [rip + text_id]
    cmp eax, edx
    jne report
    ret
read_port:
    in al, 0x21
    ret
read_msr:
    mov ecx, 0x1B
    rdmsr
    ret
message:
    mov edx, [OTHER]
    mov ebx, KIND_FIXED
    mov eax, 0x4000 + FIXED
    jmp post
to_itself:
    mov edx, [ME]
    mov ebx, KIND_SELF
    mov eax, 0x4000 + SELF
    jmp post
nmi:
    mov edx, [OTHER]
    mov ebx, KIND_NMI
    mov eax, 0x4400
# To EDX by command EAX, unless the last one of this kind is still under way.
post:
    cmp byte ptr [READY + rdx], 0
    je nothing
    lea ecx, [rbx + 8 * rdx]
    mov esi, [SENT + rcx]
    cmp esi, [TAKEN + rcx]
    jne nothing
    inc dword ptr [SENT + rcx]
    jmp send
# The CPU itself sets CR2.
fault:
    mov dword ptr [SETTLED], 0
    next_random SEED
    and eax, 0x1FFFF8
    add eax, UNMAPPED
    lea rdx, [rip + 1f]
    mov [FAULT_BACK], rdx
    mov [FAULT], rax
    mov rdx, [rax]
1:  mov qword ptr [FAULT], 0
    mov [EXPECTED + 8 * I_cr2], rax
    mov dword ptr [SETTLED], 1
    ret

# Messages sent to it so far come, sooner or later.
take_all:
    .irp kind, KIND_FIXED, KIND_SELF, KIND_NMI
    mov ebx, [ME]
    lea ebx, [\kind + 8 * rbx]
    mov edx, [SENT + rbx]
    mov dword ptr [TICKS], 0
1:  mov eax, [TAKEN + rbx]
    cmp eax, edx
    jge 2f
    lea rsi, [rip + text_lost]
    cmp dword ptr [TICKS], PATIENCE
    ja report
    hlt
    jmp 1b
2:
    .endr
    ret

# --- Handlers

.macro inside msr, name, text
    mov ecx, \msr
    rdmsr
    shl rdx, 32
    or rax, rdx
    expected rdx, \name
    lea rsi, [rip + \text]
    cmp rax, rdx
    jne report
.endm

.macro enter_handler
    push rax
    push rcx
    push rdx
    push rbx
    push rsi
    push rdi
    call enter_kernel
.endm

# As an operating system does it that may interrupt itself. RBX: whether the bases were exchanged.
enter_kernel:
    xor ebx, ebx
    mov ecx, GS_BASE
    rdmsr
    test edx, edx
    js 1f
    swapgs
    inc ebx
1:  cmp dword ptr [SETTLED], 0
    je 2f
    inside GS_BASE, kernel_gs, text_gs_inside
    inside KERNEL_GS_BASE, gs_base, text_kernel_gs_inside
    inside 0xC0000100, fs_base, text_fs_inside
    mov rax, cr2
    expected rdx, cr2
    lea rsi, [rip + text_cr2_inside]
    cmp rax, rdx
    jne report
2:  ret

leave_handler:
    test ebx, ebx
    jz 1f
    swapgs
1:  pop rdi
    pop rsi
    pop rbx
    pop rdx
    pop rcx
    pop rax
    iretq

# RDI: the kind of message. It comes once.
take:
    mov eax, [ME]
    lea edi, [rdi + 8 * rax]
    inc dword ptr [TAKEN + rdi]
    mov eax, [TAKEN + rdi]
    mov edx, [SENT + rdi]
    lea rsi, [rip + text_twice]
    cmp eax, edx
    ja report
    ret

on_nmi:
    enter_handler
    mov edi, KIND_NMI
    call take
    jmp leave_handler
on_fixed:
    enter_handler
    mov edi, KIND_FIXED
    jmp 1f
on_self:
    enter_handler
    mov edi, KIND_SELF
1:  call take
    jmp ended
on_timer:
    enter_handler
    inc dword ptr [TICKS]
    xor eax, eax
    xchg eax, [ARMED]
    mov edx, 1
    lea rsi, [rip + text_timer_twice]
    cmp eax, edx
    jne report
    call arm
ended:
    lea rax, [rsp + 11 * 8]            # six registers, and what the CPU pushes
    mov rdx, [IST]
    lea rsi, [rip + text_stack]
    cmp rax, rdx
    jne report
    mov ecx, 0xB                       # EOI
    xor eax, eax
    call apic_write
    jmp leave_handler

on_pf:
    push rax
    mov rax, cr2
    cmp rax, [FAULT]
    jne 1f
    mov rax, [FAULT_BACK]
    mov [rsp + 16], rax
    pop rax
    add rsp, 8
    iretq
1:  pop rax
    push 14
on_fault:
    pop rax
    pop rdx
    lea rsi, [rip + text_fault]
    jmp report
.balign 16
faults:
.set number, 0
.rept 32
    push number
    jmp on_fault
    .balign 16
    .set number, number + 1
.endr

# --- The local APIC, by the register's number in x2APIC mode

apic_write:
    cmp dword ptr [X2APIC], 0
    jne 1f
    shl ecx, 4
    mov edx, LAPIC
    mov [rdx + rcx], eax
    ret
1:  add ecx, 0x800
    xor edx, edx
    wrmsr
    ret
apic_read:
    cmp dword ptr [X2APIC], 0
    jne 1f
    shl ecx, 4
    mov edx, LAPIC
    mov eax, [rdx + rcx]
    ret
1:  add ecx, 0x800
    rdmsr
    ret
# EAX: command, EDX: to whom.
send:
    cmp dword ptr [X2APIC], 0
    jne 1f
    mov ecx, LAPIC
    shl edx, 24
    mov [rcx + 0x310], edx
    mov [rcx + 0x300], eax
    ret
1:  mov ecx, 0x830
    wrmsr
    ret
# The timer, once, some time from now.
arm:
    next_random SEED_TIMER
    and eax, 0x1FFFFF
    or eax, 0x8000
    mov dword ptr [ARMED], 1
    mov ecx, 0x38
    jmp apic_write

# --- Set-up, in what the loader left: the first 4 GiB one to one

set_up:
    mov eax, 1
    cpuid
    shr ebx, 16
    movzx r13d, bl                     # how many there are
    movzx ebx, bh
    mov r12d, ebx                      # its number
    mov edi, r12d
    shl edi, HOME_SHIFT
    add edi, HOMES
    mov r14, rdi
    mov r15d, ecx
    call set_up_roots
    mov [HOME], r14
    mov [ME], r12d
    xor r12d, 1
    cmp r12d, r13d
    cmovae r12d, [ME]
    mov [OTHER], r12d
    shr r15d, 28                       # AVX
    and r15d, 1
    mov [HAS_AVX], r15d
    call set_up_seeds
    mov rax, cr4
    or eax, 0x600
    mov cr4, rax
    call set_up_tables
    pop rdx
    mov rsp, STACK_TOP
    push rdx
    jmp set_up_apic

# Two sets of page tables in HOME (R14), like the loader's but for what is at MINE, UNMAPPED and MARK.
set_up_roots:
    mov rax, cr3
    mov rsi, [rax]
    and rsi, ~0xFFF
    mov rsi, [rsi]
    and rsi, ~0xFFF
    mov r8, rsi                        # the directory of the first GiB
    lea rdi, [r14 + ROOTS]
    mov r9, r14
    mov r10d, 2
1:  lea rdx, [rdi + 0x1003]
    mov [rdi], rdx
    mov rsi, cr3
    mov rsi, [rsi]
    and rsi, ~0xFFF
    push rdi
    add rdi, 0x1000
    mov ecx, 512
    rep movsq
    mov rsi, r8
    mov ecx, 512
    rep movsq
    pop rdi
    lea rdx, [rdi + 0x2003]
    mov [rdi + 0x1000], rdx
    lea rdx, [r14 + 0x83]
    mov [rdi + 0x2000 + (MINE >> 21) * 8], rdx
    mov qword ptr [rdi + 0x2000 + (UNMAPPED >> 21) * 8], 0
    lea rdx, [r9 + 0x83]
    mov [rdi + 0x2000 + (MARK >> 21) * 8], rdx
    # What MARK begins with, also where `make_whole` finds it.
    mov rdx, r9
    rol rdx, 24
    xor rdx, [rip + nonce]
    mov [r9], rdx
    mov rax, rdi
    sub rax, r14
    and eax, 0x8000
    mov [r14 + rax + 0x100000], rdx
    add rdi, 0x8000
    add r9, 0x400000
    dec r10d
    jnz 1b
    lea rax, [r14 + ROOTS]
    mov cr3, rax
    ret

# By the VM's letter and the number, so that runs repeat.
set_up_seeds:
    movzx eax, byte ptr [rip + nonce]
    mov [X2APIC], eax
    and dword ptr [X2APIC], 1
    shl eax, 8
    or eax, [ME]
    inc eax
    movabs rdx, 0x9E3779B97F4A7C15
    imul rax, rdx
    mov [SEED], rax
    not rax
    mov [SEED_TIMER], rax
    ret

set_up_tables:
    lea rsi, [rip + gdt]
    lea rdi, [r14 + GDTS]
    mov ecx, 4
    rep movsq
    lea rbx, [r14 + IDTS]
    xor eax, eax
    mov r8d, 1
    lea rdx, [rip + faults]
1:  call set_gate
    add rdx, 16
    inc eax
    cmp eax, 32
    jb 1b
    .irp vector, 14, TIMER, FIXED, SELF
    mov eax, \vector
    lea rdx, [rip + on_\vector]
    call set_gate
    .endr
    mov eax, 2
    inc r8d
    lea rdx, [rip + on_nmi]
    call set_gate
    # The other seven of each.
    .irp table, GDTS, IDTS
    lea rsi, [r14 + \table]
    lea rdi, [r14 + \table + 0x1000]
    mov ecx, 7 * 512
    rep movsq
    .endr
    ret
.set on_14, on_pf
.set on_TIMER, on_timer
.set on_FIXED, on_fixed
.set on_SELF, on_self
# RBX: table, EAX: vector, RDX: handler, R8: stack.
set_gate:
    mov ecx, eax
    shl ecx, 4
    add rcx, rbx
    mov [rcx], dx
    mov word ptr [rcx + 2], 0x10
    mov [rcx + 4], r8b
    mov byte ptr [rcx + 5], 0x8E
    ror rdx, 16
    mov [rcx + 6], dx
    rol rdx, 16
    ret

set_up_apic:
    cmp dword ptr [X2APIC], 0
    je 1f
    mov ecx, 0x1B
    rdmsr
    or eax, 0xC00
    wrmsr
1:  mov ecx, 0x0F                      # enabled
    mov eax, 0x1FF
    call apic_write
    mov ecx, 0x32                      # the timer: vector, and rate
    mov eax, TIMER
    call apic_write
    mov ecx, 0x3E
    mov eax, 0xB
    call apic_write
    jmp arm

# What the second virtual CPU runs at AP_CODE.
.code16
ap_start:
    cli
    mov ax, cs
    mov ds, ax
    lgdt ds:[ap_gdt - ap_start]
    mov eax, 0x20
    mov cr4, eax
    mov eax, HOMES + ROOTS
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000011
    mov cr0, eax
    .byte 0x66, 0xEA
    .long AP_CODE + ap_64 - ap_start
    .word 0x10
.code64
ap_64:
    mov eax, 0x18
    mov ss, eax
    mov rsp, 0x90000
    mov rax, offset set_up
    call rax
    mov rax, offset started
    jmp rax
ap_gdt:
    .word 4 * 8 - 1
    .long gdt
ap_end:

# --- What it says

print_me:
    call print
    mov eax, [ME]
    ror rax, 4
    mov ecx, 1
    jmp print_digits

say_what:
1:  mov eax, 1
    xchg [PRINTING], eax
    test eax, eax
    jz 2f
    pause
    jmp 1b
2:  lea rbx, [rip + groups]
    xor ebp, ebp
1:  cmp dword ptr [COUNTS + rbp], 0
    je 2f
    lea rsi, [rip + text_vcpu]
    call print_me
    lea rsi, [rip + text_ok]
    call print
    mov rsi, [rbx + rbp]
    call print
    lea rsi, [rip + text_end]
    call print
2:  add ebp, 16
    cmp ebp, G_end
    jb 1b
    mov dword ptr [PRINTING], 0
    ret

#include "text.S"

.data
.balign 8
disturbances:
    .quad nothing, nothing, nothing, nothing, nothing, nothing, halt, ask_cpuid, read_port, read_msr
    .quad message, message, to_itself, nmi, nmi, fault
# KERNEL_GS_BASE first, then GS base: a handler never finds a swapped pair.
msrs:
    .long KERNEL_GS_BASE, I_kernel_gs, GS_BASE, I_gs_base, 0xC0000100, I_fs_base
    .long 0xC0000081, I_star, 0xC0000082, I_lstar, 0xC0000083, I_cstar, 0xC0000084, I_sfmask
    .long 0x174, I_sysenter_cs, 0x175, I_sysenter_esp, 0x176, I_sysenter_eip
exiting_msrs:
    .long 0xC0000080, I_efer, 0x277, I_pat, 0x3B, I_tsc_adjust, 0xC0000103, I_tsc_aux_read
msrs_end:
gdt:
    .quad 0
    .quad 0x00CF93000000FFFF           # 0x08: data
    .quad 0x00AF9B000000FFFF           # 0x10: 64-bit code
    .quad 0x00CF93000000FFFF           # 0x18: data
text_done: .ascii "done "
nonce:
    .ascii NONCE
text_end: .asciz "\n"
text_twins: .ascii "twins: "
text_vcpu: .asciz "vCPU "
text_colon: .asciz ": "
text_ok: .asciz " ok "
text_is: .asciz " is "
text_should: .asciz ", should be "
text_id: .asciz "the APIC id by CPUID"
text_lost: .asciz "messages taken of those sent"
text_twice: .asciz "a message taken twice: the count"
text_timer_twice: .asciz "the timer in its handler: armed"
text_stack: .asciz "the stack that the TSS names"
text_fault: .asciz "an exception: its number, and what is on the stack,"
text_gs_inside: .asciz "GS base in a handler"
text_kernel_gs_inside: .asciz "KERNEL_GS_BASE in a handler"
text_fs_inside: .asciz "FS base in a handler"
text_cr2_inside: .asciz "CR2 in a handler"
