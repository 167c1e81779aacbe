# Boots by itself, without Prism, on two CPUs: the first one runs an AMD-V guest again and again with an interrupt of its
# own waiting, which must not come between CLGI and STGI; the second one loads x87 state without end, nothing more. What is
# written to the exit device: 1, an interrupt came there; 0, it never did.
    .intel_syntax noprefix
    .code32
.set VMCB, 0x300000
.set HSAVE, 0x301000
.set HOST_IDT, 0x303000
.set MAPS, 0x304000
.set INSIDE, 0x308000                  # between CLGI and STGI
.set END, 0x309000
.set LAPIC, 0xFEE00000
.set AP_PAGE, 0x8000
.set OWN, 0x50
.set ROUNDS, 2000000

    .globl _start
_start:
    jmp main
    .balign 4
header:                                # Multiboot 0.6.96 with address fields
    .long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003), header, _start, 0, 0, main

.macro field at, value
    mov dword ptr [VMCB + \at], \value
.endm
.macro segment at, selector, attributes
    mov word ptr [VMCB + 0x400 + \at], \selector
    mov word ptr [VMCB + 0x402 + \at], \attributes
    mov dword ptr [VMCB + 0x404 + \at], -1
.endm

main:
    cli
    mov esp, END
    mov edi, VMCB
    xor eax, eax
    mov ecx, (END - VMCB) / 4
    rep stosd
    mov al, 0xFF
    out 0x21, al
    out 0xA1, al
    mov ecx, 0xC0000080                # EFER.SVME
    rdmsr
    or eax, 0x1000
    wrmsr
    mov ecx, 0xC0010117                # VM_HSAVE_PA
    mov eax, HSAVE
    xor edx, edx
    wrmsr
    mov eax, offset own
    mov word ptr [HOST_IDT + 8 * OWN], ax
    mov word ptr [HOST_IDT + 8 * OWN + 2], cs
    mov word ptr [HOST_IDT + 8 * OWN + 4], 0x8E00
    shr eax, 16
    mov word ptr [HOST_IDT + 8 * OWN + 6], ax
    lidt [host_idtr]
    mov dword ptr [LAPIC + 0xF0], 0x1FF
    field 0x0C, 1                      # INTR
    field 0x10, 1                      # VMRUN
    field 0x40, MAPS
    field 0x48, MAPS
    field 0x58, 1                      # ASID
    field 0x60, 1<<24                  # V_INTR_MASKING
    segment 0x00, ds, 0xC93
    segment 0x10, cs, 0xC9B
    segment 0x20, ss, 0xC93
    segment 0x30, ds, 0xC93
    field 0x4D0, 0x1000                # EFER
    field 0x558, 0x11                  # CR0
    field 0x560, 0x400                 # DR7
    field 0x568, 0xFFFF0FF0            # DR6
    field 0x570, 2                     # RFLAGS
    mov dword ptr [VMCB + 0x578], offset guest
    field 0x5D8, END-0x800             # RSP
    mov esi, offset second
    mov edi, AP_PAGE
    mov ecx, second_end - second
    rep movsb
    mov dword ptr [LAPIC + 0x310], 1<<24
    mov dword ptr [LAPIC + 0x300], 0x4500
    mov ecx, 100000000
1:  dec ecx
    jnz 1b
    mov dword ptr [LAPIC + 0x300], 0x4600 + AP_PAGE / 4096
    mov ebp, ROUNDS
2:  mov dword ptr [LAPIC + 0x300], 0x44000 + OWN
    mov eax, VMCB
    mov byte ptr [INSIDE], 1
    clgi
    sti
    vmload eax
    nop
    vmrun eax
    cli
    mov byte ptr [INSIDE], 0
    stgi
    sti
    nop
    cli
    dec ebp
    jnz 2b
    xor eax, eax
end:
    out 0xF4, eax
3:  hlt
    jmp 3b

own:
    movzx eax, byte ptr [INSIDE]
    test eax, eax
    jnz end
    mov dword ptr [LAPIC + 0xB0], 0
    iretd

guest:
    jmp guest

    .code16
second:
    cli
    fninit
1:  fldenv [0x9000]                    # zeros: no exception waits
    jmp 1b
second_end:
    .code32

host_idtr:
    .short 0xFFF
    .long HOST_IDT
