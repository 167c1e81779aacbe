# A guest whose first exception finds no descriptor table.
.intel_syntax noprefix
.code64
.globl _start
_start:
    xor eax, eax
    push rax
    push rax
    lidt [rsp]
    ud2
