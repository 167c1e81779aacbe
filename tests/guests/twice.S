# Boots by itself, without Prism: runs one AMD-V guest with an external interrupt injected by VMRUN, whose handler spins
# with IF = 0 for a second or more and then ends the guest. What is written to the exit device is how often the handler
# was entered: 1 on a CPU. With BOUNCE an interrupt of the host's own waits, so that the guest exits before its handler's
# first instruction, and is entered again with nothing injected.
    .intel_syntax noprefix
    .code32
.set VMCB, 0x300000
.set HSAVE, 0x301000
.set IDT, 0x302000                     # the guest's
.set HOST_IDT, 0x303000
.set MAPS, 0x304000                    # permissions: nothing exits
.set ENTERED, 0x308000
.set END, 0x309000
.set LAPIC, 0xFEE00000
.set INJECTED, 0x40
.set OWN, 0x50

    .globl _start
_start:
    jmp main
    .balign 4
header:                                # Multiboot 0.6.96 with address fields
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

main:
    cli
    mov esp, END
    mov edi, VMCB
    xor eax, eax
    mov ecx, (END - VMCB) / 4
    rep stosd
    mov al, 0xFF                       # the firmware's timer is none of ours
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
    gate IDT, INJECTED, handler
    gate HOST_IDT, OWN, own
    lidt [host_idtr]
    mov dword ptr [LAPIC + 0xF0], 0x1FF
    field 0x0C, 0x80000001             # SHUTDOWN, INTR
    field 0x10, 3                      # VMMCALL, VMRUN
    field 0x40, MAPS
    field 0x48, MAPS
    field 0x58, 1                      # ASID
    field 0x60, 1<<24                  # V_INTR_MASKING
    field 0xA8, 0x80000000+INJECTED    # EVENTINJ
    segment 0x00, ds, 0xC93
    segment 0x10, cs, 0xC9B
    segment 0x20, ss, 0xC93
    segment 0x30, ds, 0xC93
    sgdt [VMCB + 0x700]
    movzx eax, word ptr [VMCB + 0x700]
    mov [VMCB + 0x464], eax
    mov eax, [VMCB + 0x702]
    mov [VMCB + 0x468], eax
    field 0x484, 0xFFF
    field 0x488, IDT
    field 0x4D0, 0x1000                # EFER
    field 0x558, 0x11                  # CR0
    field 0x560, 0x400                 # DR7
    field 0x568, 0xFFFF0FF0            # DR6
    field 0x570, 0x202                 # RFLAGS
    mov dword ptr [VMCB + 0x578], offset guest
    field 0x5D8, END-0x800             # RSP
#ifdef BOUNCE
    mov dword ptr [LAPIC + 0x300], 0x44000 + OWN
#endif
enter:
    mov eax, VMCB
    clgi
    sti
    vmrun eax
    cli
    stgi
    sti
    nop
    cli
    cmp dword ptr [VMCB + 0x70], 0x60  # an interrupt of the host's: go on
    je enter
    mov eax, [ENTERED]
    out 0xF4, eax
1:  hlt
    jmp 1b

own:
    mov dword ptr [LAPIC + 0xB0], 0
    iretd

guest:
    jmp guest
handler:
    inc dword ptr [ENTERED]
    mov ecx, 1000000000
2:  dec ecx
    jnz 2b
    vmmcall

host_idtr:
    .short 0xFFF
    .long HOST_IDT
