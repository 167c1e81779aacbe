//! The first instructions: boot headers, and the way from 32-bit mode to Rust.
//!
//! All three protocols enter in 32-bit protected mode without paging, flat segments, interrupts off. The code maps the
//! first 4 GiB twice, at 0 and at `hv::phys::DIRECT_BASE`, by 2 MiB pages; `hv` replaces these tables at once.

use core::arch::global_asm;

use hv::bootinfo::{BootEntry, MAGIC_PVH};
use hv::memory::Image;
use hv_defs::Hpa;

/// Size of the first stack; `hv` moves each CPU to one of its own before guests run.
const STACK_BYTES: usize = 256 * 1024;
/// The software GPU keeps some 13 MiB of tables.
const HEAP_BYTES: u64 = if cfg!(feature = "soft-gpu") { 2 * hv::heap::HEAP_BYTES } else { hv::heap::HEAP_BYTES };

// Multiboot Specification 0.6.96, 3.1: page-aligned modules, memory information, and the address fields, by which
// loaders take an ELF64 file too. All its fields are addresses in the one segment that linker.ld lays out.
global_asm!(
    ".pushsection .prism.headers, \"a\"",
    ".balign 8",
    "prism_multiboot1:",
    ".long 0x1BADB002",
    ".long 0x00010003",
    ".long -(0x1BADB002 + 0x00010003)",
    ".long prism_multiboot1",
    ".long prism_text_start",
    ".long prism_file_end",
    ".long prism_image_end",
    ".long prism_entry_multiboot",
    // Multiboot2 Specification 2.0, 3.1: architecture i386; tags: module alignment, end.
    ".balign 8",
    "prism_multiboot2:",
    ".long 0xE85250D6, 0, prism_multiboot2_end - prism_multiboot2",
    ".long -(0xE85250D6 + (prism_multiboot2_end - prism_multiboot2))",
    ".short 6, 0",
    ".long 8",
    ".short 0, 0",
    ".long 8",
    "prism_multiboot2_end:",
    ".popsection",
    // PVH: note XEN_ELFNOTE_PHYS32_ENTRY (18) of "Xen", its descriptor the entry point.
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad prism_entry_pvh",
    ".popsection",
);

global_asm!(
    ".pushsection .text.prism_entry, \"ax\"",
    ".code32",
    ".globl prism_entry_multiboot",
    "prism_entry_pvh:",
    "movl ${magic_pvh}, %eax",
    "prism_entry_multiboot:",
    "cli",
    "cld",
    // EDI and ESI carry the magic and the information to `prism_main`.
    "movl %eax, %edi",
    "movl %ebx, %esi",
    "movl $prism_stack_top, %esp",
    // Long mode is bit 29 of EDX in leaf 0x80000001, no-execute bit 20.
    "movl $0x80000000, %eax",
    "cpuid",
    "cmpl $0x80000001, %eax",
    "jb 7f",
    "movl $0x80000001, %eax",
    "cpuid",
    "andl $0x20100000, %edx",
    "cmpl $0x20100000, %edx",
    "jne 7f",
    // Level 4, entries 0 and 256 -> one level 3, entries 0-3 -> four level 2, each 512 pages of 2 MiB.
    "movl $prism_first_l3 + 3, %eax",
    "movl %eax, prism_first_l4",
    "movl %eax, prism_first_l4 + 2048",
    "movl $prism_first_l2 + 3, %eax",
    "movl $prism_first_l3, %ecx",
    "2: movl %eax, (%ecx)",
    "addl $8, %ecx",
    "addl $0x1000, %eax",
    "cmpl $prism_first_l2 + 0x4003, %eax",
    "jne 2b",
    // Present, writable, 2 MiB.
    "movl $0x83, %eax",
    "movl $prism_first_l2, %ecx",
    "3: movl %eax, (%ecx)",
    "addl $8, %ecx",
    "addl $0x200000, %eax",
    "cmpl $prism_first_l2 + 0x4000, %ecx",
    "jne 3b",
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl $prism_first_l4, %eax",
    "movl %eax, %cr3",
    // IA32_EFER: LME and NXE.
    "movl $0xC0000080, %ecx",
    "rdmsr",
    "orl $0x900, %eax",
    "wrmsr",
    // CR0: PG, WP, NE, ET, MP, PE.
    "movl $0x80010033, %eax",
    "movl %eax, %cr0",
    "lgdtl prism_first_gdtr",
    "ljmpl $0x08, $prism_entry_64",
    // No long mode: say so on COM1 and stop.
    "7: movl $prism_no_long_mode, %esi",
    "movl $0x3F8, %edx",
    "8: lodsb",
    "testb %al, %al",
    "jz 9f",
    "outb %al, %dx",
    "jmp 8b",
    "9: movl $0x14, %eax",
    "outl %eax, $0xF4",
    "hlt",
    "jmp 9b",
    ".code64",
    "prism_entry_64:",
    "movl $0x10, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "xorl %eax, %eax",
    "movl %eax, %fs",
    "movl %eax, %gs",
    "movl $prism_stack_top, %esp",
    "xorl %ebp, %ebp",
    "movl %edi, %edi",
    "movl %esi, %esi",
    "call {main}",
    "ud2",
    ".popsection",
    ".pushsection .rodata.prism_entry, \"a\"",
    ".balign 8",
    "prism_first_gdt:",
    // Null, 64-bit code, data.
    ".quad 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF",
    "prism_first_gdtr:",
    ".short prism_first_gdtr - prism_first_gdt - 1",
    ".long prism_first_gdt",
    "prism_no_long_mode:",
    ".asciz \"prism: cpu: no long mode or no no-execute pages; Prism needs a 64-bit CPU\\r\\n\"",
    ".popsection",
    // linker.ld puts it right above a page that is left unmapped.
    ".pushsection .bss.prism_stack, \"aw\", @nobits",
    ".balign 4096",
    ".skip {stack_bytes}",
    "prism_stack_top:",
    ".popsection",
    ".pushsection .bss.prism_entry, \"aw\", @nobits",
    ".balign 4096",
    "prism_first_l4: .skip 0x1000",
    "prism_first_l3: .skip 0x1000",
    "prism_first_l2: .skip 0x4000",
    ".popsection",
    magic_pvh = const MAGIC_PVH,
    stack_bytes = const STACK_BYTES,
    main = sym prism_main,
    options(att_syntax)
);

unsafe extern "C" {
    static prism_text_start: u8;
    static prism_text_end: u8;
    static prism_rodata_end: u8;
    static prism_guard_start: u8;
    static prism_guard_end: u8;
    static prism_image_end: u8;
}

/// Where linker.ld put the parts of the image.
pub(crate) fn image() -> Image {
    let at = |symbol: *const u8| symbol.addr() as u64;
    let [text_start, text_end] = [&raw const prism_text_start, &raw const prism_text_end].map(at);
    let [rodata_end, image_end] = [&raw const prism_rodata_end, &raw const prism_image_end].map(at);
    let [guard_start, guard_end] = [&raw const prism_guard_start, &raw const prism_guard_end].map(at);
    Image {
        text: text_start..text_end,
        rodata: text_end..rodata_end,
        data: rodata_end..guard_start,
        bss: guard_end..image_end,
        heap_bytes: HEAP_BYTES,
    }
}

extern "C" fn prism_main(magic: u32, info: u32) -> ! {
    crate::main(BootEntry { magic, info: Hpa(u64::from(info)) })
}
