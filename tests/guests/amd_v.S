# What programs that boot by themselves need for one AMD-V guest in 32-bit mode: the header of Multiboot 0.6.96 with address
# fields, and macros. Expects VMCB, HSAVE and END.
    .globl _start
_start:
    jmp main
    .balign 4
header:
    .long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003), header, _start, 0, 0, main

.macro gate table, vector, handler
    mov eax, offset \handler
    mov word ptr [\table + 8 * \vector], ax
    mov word ptr [\table + 8 * \vector + 2], cs
    mov word ptr [\table + 8 * \vector + 4], 0x8E00
    shr eax, 16
    mov word ptr [\table + 8 * \vector + 6], ax
.endm
.macro field at, value
    mov dword ptr [VMCB + \at], \value
.endm
.macro segment at, selector, attributes
    mov word ptr [VMCB + 0x400 + \at], \selector
    mov word ptr [VMCB + 0x402 + \at], \attributes
    mov dword ptr [VMCB + 0x404 + \at], -1
.endm

# Clears all from VMCB to END, masks the firmware's timer, switches AMD-V on.
.macro begin
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
.endm

# A guest with the host's flat segments, RFLAGS as given, that exits on INTR and by VMRUN.
.macro flat_guest maps, rflags
    field 0x0C, 1                      # INTR
    field 0x10, 1                      # VMRUN
    field 0x40, \maps
    field 0x48, \maps
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
    field 0x570, \rflags
    mov dword ptr [VMCB + 0x578], offset guest
    field 0x5D8, END-0x800             # RSP
.endm
