# Text on the console.

# RSI: text that ends with a zero.
print:
    mov dx, COM1
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  ret

# RAX: the upper ECX of its hexadecimal digits.
print_digits:
    rol rax, 4
    push rax
    and eax, 0xF
    lea rsi, [rip + text_digits]
    mov al, [rsi + rax]
    mov dx, COM1
    out dx, al
    pop rax
    dec ecx
    jnz print_digits
    ret

.data
text_digits: .ascii "0123456789abcdef"
.text
