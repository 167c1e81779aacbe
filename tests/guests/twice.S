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

#include "amd_v.S"

main:
    begin
    gate IDT, INJECTED, handler
    gate HOST_IDT, OWN, own
    lidt [host_idtr]
    mov dword ptr [LAPIC + 0xF0], 0x1FF
    flat_guest MAPS, 0x202
    field 0x0C, 0x80000001             # SHUTDOWN, INTR
    field 0x10, 3                      # VMMCALL, VMRUN
    field 0xA8, 0x80000000+INJECTED    # EVENTINJ
    sgdt [VMCB + 0x700]
    movzx eax, word ptr [VMCB + 0x700]
    mov [VMCB + 0x464], eax
    mov eax, [VMCB + 0x702]
    mov [VMCB + 0x468], eax
    field 0x484, 0xFFF
    field 0x488, IDT
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
