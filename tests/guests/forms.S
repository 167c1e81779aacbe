# Every form of instruction that the emulator is to know (the set of spec/guest-platform.md, section 12, and what came
# on top), each executed twice: on RAM, by the CPU, and on registers of a device, by Prism. Registers, flags and memory
# must be the same after both.

# Four dwords of the LPC bridge's configuration space: its decode ranges, of which these bits can be written.
.set LPC_CONFIG, 0xB00F8000
.set DEVICE, LPC_CONFIG + 0x84
.set WRITABLE, 0x00FCFFFD
.set PATTERN, 0x00545454

.macro on_ram
    lea rbx, [rip + form_ram]
    call form_begin
.endm
.macro on_device
    call form_first
    mov ebx, DEVICE
    call form_begin
.endm
.macro form insn:vararg
    on_ram
    \insn
    on_device
    \insn
    call form_second
.endm
# The same for several instructions, in quotes.
.macro forms insns
    on_ram
    \insns
    on_device
    \insns
    call form_second
.endm
# Which flags count from here on: the others are undefined.
.macro flags_that_count bits
    mov dword ptr [rip + form_flags], \bits
.endm
.set CF, 0x01
.set ZF, 0x40
.set STATUS, 0x8D5
.set AF, 0x10

.macro forms_of op
    form \op [rbx + 1], cl
    form \op [rbx + 2], cx
    form \op [rbx], ecx
    form \op [rbx], rcx
    form \op cl, [rbx + 5]
    form \op ch, [rbx]
    form \op cx, [rbx]
    form \op ecx, [rbx + rdx - 8]
    form \op r9, [rbx]
    form \op byte ptr [rbx], 0x34
    form \op word ptr [rbx], 0x1234
    form \op dword ptr [rbx], 0x123456
    form \op dword ptr [rbx], -3
    form \op qword ptr [rbx], 0x123456
    form lock \op dword ptr [rbx], ecx
.endm

.text
# AL: all are the same.
every_form:
    call judge_none
    flags_that_count STATUS
    mov rax, cr4
    or eax, 0x600                      # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    # Moves of each width, by each way to write an address.
    form mov [rbx], cl
    form mov [rbx + 3], ch
    form mov [rbx], cx
    form mov [rbx + 4], ecx
    form mov [rbx], rcx
    form mov [rbx + rdx * 4 - 32], r9d
    form mov [r10 + r11 * 8 + 0x7F0], r9b
    form mov [ebx + 4], ecx
    form mov cl, [rbx]
    form mov ah, [rbx + 1]
    form mov cx, [rbx]
    form mov ecx, [rbx]
    form mov r9, [r10]
    form mov ecx, [r10 + r11 * 8 + 0x7F0]
    form mov ecx, [ebx]
    form mov byte ptr [rbx], 0x54
    form mov word ptr [rbx], 0x5454
    form mov dword ptr [rbx + rdx], 0x54
    form mov qword ptr [rbx], 0x123454
    form mov qword ptr [rbx], -4
    form mov [rbx + 1], ecx            # unaligned
    form mov rcx, [rbx + 3]
    form movnti [rbx], ecx
    form movzx ecx, byte ptr [rbx]
    form movzx cx, byte ptr [rbx]
    form movzx rcx, word ptr [rbx]
    form movsx ecx, byte ptr [rbx + 1]
    form movsx rcx, word ptr [rbx]
    form movsxd rcx, dword ptr [rbx]
    .irp op, add, adc, sub, sbb
    forms_of \op
    .endr
    flags_that_count STATUS & ~AF
    .irp op, and, or, xor
    forms_of \op
    .endr
    form test [rbx], cl
    form test [rbx], ecx
    form test byte ptr [rbx], 0x54
    form test dword ptr [rbx], 0x10001
    flags_that_count STATUS
    form cmp [rbx], cl
    form cmp [rbx], ecx
    form cmp ecx, [rbx]
    form cmp r9, [rbx]
    form cmp byte ptr [rbx], 0x60
    form cmp dword ptr [rbx], PATTERN
    form cmp qword ptr [rbx], -1
    form xchg [rbx], cl
    form xchg [rbx], ecx
    form xchg rcx, [rbx]
    form xadd [rbx], ecx
    form lock xadd [rbx], cx
    form lock cmpxchg [rbx], ecx
    forms "mov eax, PATTERN; lock cmpxchg [rbx], ecx"
    forms "mov rax, [rip + form_pair]; cmpxchg [rbx], r9"
    flags_that_count CF | ZF
    .irp op, bt, bts, btr, btc
    form \op dword ptr [rbx], 18
    form \op qword ptr [rbx], 35
    forms "mov ecx, 69; \op [rbx], ecx"
    forms "mov rcx, -29; \op [rbx + 8], rcx"
    .endr
    flags_that_count STATUS
    .irp op, inc, dec, not, neg
    form \op byte ptr [rbx]
    form \op dword ptr [rbx]
    .endr
    forms "push qword ptr [rbx]; pop rcx"
    forms "push rcx; pop qword ptr [rbx]"
    # Strings: to the device, from it, many, and downwards.
    .irp size, b, w, d, q
    form stos\size
    form movs\size
    forms "xchg rsi, rdi; movs\size"
    forms "xchg rsi, rdi; lods\size"
    form scas\size
    form cmps\size
    .endr
    forms "mov ecx, 3; rep stosd"
    forms "mov ecx, 16; rep movsb"
    forms "xchg rsi, rdi; mov ecx, 2; rep movsq"
    forms "lea rdi, [rdi + 12]; mov ecx, 3; std; rep stosd; cld"
    forms "mov eax, PATTERN; mov ecx, 9; repe scasd"
    forms "xor ecx, ecx; rep stosb"
    # Vectors.
    forms "movd xmm0, ecx; movd [rbx], xmm0"
    forms "movq xmm0, rcx; movq [rbx], xmm0"
    forms "movdqu xmm0, [rbx]; movq rcx, xmm0; psrldq xmm0, 8; movq r9, xmm0"
    forms "movq xmm0, rcx; movups [rbx], xmm0"
    # AVX, where there is: half of each of these 32 bytes lies before the four dwords.
    mov eax, 1
    cpuid
    not ecx
    test ecx, 0x14000000                # XSAVE, AVX
    jnz no_avx
    mov rax, cr4
    or eax, 0x40000                     # OSXSAVE
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 7
    xsetbv
    forms "vmovdqu ymm0, [rbx - 16]; vextractf128 xmm0, ymm0, 1; vmovq r9, xmm0"
    forms "vmovq xmm9, rcx; vinsertf128 ymm9, ymm9, xmm9, 1; vmovups [rbx - 16], ymm9"
    forms "vmovq xmm0, rcx; vmovdqu [rbx], xmm0"
    # What a load of 16 bytes does to the other half.
    forms "vmovq xmm0, rcx; vinsertf128 ymm0, ymm0, xmm0, 1; vmovdqu xmm0, [rbx]; vextractf128 xmm0, ymm0, 1; vmovq r9, xmm0"
    forms "vmovq xmm0, rcx; vinsertf128 ymm0, ymm0, xmm0, 1; movdqu xmm0, [rbx]; vextractf128 xmm0, ymm0, 1; vmovq r9, xmm0"
no_avx:
    # Addresses in full, and relative to RIP.
    mov eax, DEVICE
    mov dword ptr [rax], PATTERN
    movabs eax, [DEVICE]
    cmp eax, PATTERN
    call judge
    movabs al, [DEVICE + 1]
    cmp al, 0x54
    call judge
    mov eax, 0x44
    movabs [DEVICE], al
    lea rsi, [rip + relative_piece]
    mov edi, WINDOW + 0x5000
    mov ecx, 7
    rep movsb
    mov eax, WINDOW + 0x5000
    call rax
    cmp ecx, (PATTERN & ~0xFF) + 0x44
    call judge
    mov eax, 0x101010
    movabs [DEVICE], eax
    mov ecx, [WINDOW + 0x2084]
    cmp ecx, 0x101010
    call judge
    mov al, r12b
    ret

# Copied to WINDOW + 0x5000; the instruction has 6 bytes.
relative_piece:
    mov ecx, [rip + 0x2084 - 0x5006]
    ret

# Before a form: RBX is its memory. All that it may use is set, flags too.
form_begin:
    mov ecx, 4
1:  mov dword ptr [rbx + rcx * 4 - 4], PATTERN
    dec ecx
    jnz 1b
    lea rsi, [rip + form_source]
    mov rax, [rip + form_pair]
    mov [rsi], rax
    mov [rsi + 8], rax
    mov rdi, rbx
    mov edx, 8
    mov r10, rbx
    mov r11, -0xFE
    movabs rcx, 0x0014040500240C11
    mov r9, rcx
    mov rax, rcx
    test eax, eax
    stc
    ret

# After it: what it left. RBX is the memory still.
.macro form_left
    pushfq
    sub rdi, rbx
    mov [rip + form_after], rax
    mov [rip + form_after + 8], rcx
    mov [rip + form_after + 16], r9
    mov [rip + form_after + 24], rdi
    sub rsi, rbx
    mov [rip + form_after + 32], rsi
    pop rax
    and eax, [rip + form_flags]
    mov [rip + form_after + 40], rax
    .irp at, 0, 4, 8, 12
    mov eax, [rbx + \at]
    and eax, WRITABLE
    mov [rip + form_after + 48 + \at], eax
    .endr
    mov rax, [rip + form_source]
    mov [rip + form_after + 64], rax
.endm

form_first:
    form_left
    lea rsi, [rip + form_after]
    lea rdi, [rip + form_expected]
    mov ecx, 9
    rep movsq
    ret

form_second:
    form_left
    lea rsi, [rip + form_after]
    lea rdi, [rip + form_expected]
    # RSI and RDI: one of them may be the distance between the memory and the source, which only RAM's is near.
    mov rax, [rsi + 24]
    add rax, [rsi + 32]
    mov rcx, [rdi + 24]
    add rcx, [rdi + 32]
    sub rax, rcx
    lea rcx, [rip + form_ram]
    sub rcx, rbx
    sub rax, rcx
    mov [rsi + 24], rax
    mov qword ptr [rdi + 24], 0
    mov qword ptr [rdi + 32], 0
    mov qword ptr [rsi + 32], 0
    mov ecx, 9
    repe cmpsq
    jmp judge

.data
.balign 16
form_ram: .quad 0, 0, 0, 0
form_source: .quad 0, 0
form_pair: .quad 0x0054545400545454
form_after: .skip 72
form_expected: .skip 72
form_flags: .long 0
.text
