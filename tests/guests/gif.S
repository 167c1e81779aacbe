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

#include "amd_v.S"

main:
    begin
    gate HOST_IDT, OWN, own
    lidt [host_idtr]
    mov dword ptr [LAPIC + 0xF0], 0x1FF
    flat_guest MAPS, 2
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
