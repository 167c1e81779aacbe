# Boots by itself, without Prism, on two CPUs: one of them runs an AMD-V guest again and again with an interrupt of its own
# waiting, which must not come between CLGI and STGI; the other one loads x87 state without end, nothing more. The guest is
# the first CPU's, or, with SECOND, the second one's. What is written to the exit device: 1, an interrupt came there; 0, it
# never did.
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
.set X87_STATE, 0x9000                 # zeros: no exception waits
.set OWN, 0x50
.set ROUNDS, 500000

#include "amd_v.S"

main:
    cli
    lgdt [own_gdtr]
    jmp 0x08:1f
1:  mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esi, offset second
    mov edi, AP_PAGE
    mov ecx, offset second_end - second
    rep movsb
    mov dword ptr [LAPIC + 0xF0], 0x1FF
    mov dword ptr [LAPIC + 0x310], 1<<24
    mov dword ptr [LAPIC + 0x300], 0x4500
    mov ecx, 100000000
1:  dec ecx
    jnz 1b
    mov dword ptr [LAPIC + 0x300], 0x4600 + AP_PAGE / 4096
#ifdef SECOND
    jmp load
#else
    jmp run
#endif

run:
    begin
    gate HOST_IDT, OWN, own
    lidt [host_idtr]
    mov dword ptr [LAPIC + 0xF0], 0x1FF
    flat_guest MAPS, 2
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

load:
    fninit
1:  fldenv [X87_STATE]
    jmp 1b

    .code16
second:
    cli
    lgdt [AP_PAGE + second_gdtr - second]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    data32 jmp 0x08:second_32
second_gdtr:
    .short 0x17
    .long gdt
second_end:
    .code32
second_32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
#ifdef SECOND
    jmp run
#else
    jmp load
#endif

    .balign 8
gdt:
    .quad 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
own_gdtr:
    .short 0x17
    .long gdt
host_idtr:
    .short 0xFFF
    .long HOST_IDT
