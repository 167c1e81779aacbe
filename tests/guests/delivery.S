# A guest whose interrupt descriptor table lies where no memory is.
.intel_syntax noprefix
.code64
.globl _start
_start:
    mov eax, 0xA0000
    push rax
    pushw 0xFFF
    lidt [rsp]
    ud2
