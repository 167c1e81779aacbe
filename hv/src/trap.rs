//! Interrupt and exception entry: 256 stubs, one register frame, one dispatcher.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::registers::control::Cr2;

use crate::irq::{self, Pending, vector};
use crate::trace::{self, What};
use crate::{apic, percpu, power, say, tables, time};

/// What the stubs leave on the stack: all registers, the vector, the error code (or 0), and the CPU's own frame.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Names by vector (SDM volume 3A, table 6-1).
const NAMES: [&str; 32] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF", "15", "#MF",
    "#AC", "#MC", "#XM", "#VE", "#CP", "22", "23", "24", "25", "26", "27", "#HV", "#VC", "#SX", "31",
];

/// Exceptions that are taken on a stack of their own.
const STACK_SWITCHING: [u8; 3] = [2, 8, 18];
const BREAKPOINT: u8 = 3;
const NMI: u8 = 2;

/// Breakpoints taken: the self-test checks that an exception is entered and left.
static BREAKPOINTS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn breakpoints() -> u64 {
    BREAKPOINTS.load(Ordering::Relaxed)
}

// Each stub is 16 bytes long, so that its address follows from its vector. Vectors 8, 10-14, 17, 21, 29 and 30 push an
// error code of their own (SDM volume 3A, 6.13; APM volume 2, 8.2). The stack is 16-byte aligned at the frame: the CPU
// aligns it before it pushes five words, the stub adds two and fifteen registers, 22 in all.
global_asm!(
    ".balign 16",
    "prism_trap_stubs:",
    ".set prism_vector, 0",
    ".rept 256",
    ".balign 16",
    ".if prism_vector == 8 || (prism_vector >= 10 && prism_vector <= 14) || prism_vector == 17 || prism_vector == 21 || prism_vector == 29 || prism_vector == 30",
    ".else",
    "push 0",
    ".endif",
    "push prism_vector",
    "jmp prism_trap_common",
    ".set prism_vector, prism_vector + 1",
    ".endr",
    ".balign 16",
    "prism_trap_common:",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    "cld",
    "mov rdi, rsp",
    "call {dispatch}",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8",
    "pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax",
    "add rsp, 16",
    "iretq",
    dispatch = sym dispatch,
);

unsafe extern "C" {
    static prism_trap_stubs: u8;
}

/// Where the stub of a vector begins.
pub(crate) fn stub_address(vector: u8) -> VirtAddr {
    VirtAddr::new_truncate((&raw const prism_trap_stubs).addr() as u64 + 16 * u64::from(vector))
}

extern "C" fn dispatch(frame: &Frame) {
    match frame.vector as u8 {
        NMI => nmi(frame),
        BREAKPOINT => _ = BREAKPOINTS.fetch_add(1, Ordering::Relaxed),
        vector @ ..0x20 => fatal(vector, frame),
        vector::STOP => power::halt(),
        vector => {
            let cpu = tables::current();
            trace::record(cpu, time::tsc(), What::Interrupt, [vector, 0, 0], [frame.rip, 0]);
            percpu::get(cpu).inspect(|cpu| irq::record(cpu, vector));
            if vector != vector::SPURIOUS {
                apic::end_of_interrupt();
            }
        }
    }
}

/// An NMI may come at any instruction, so this relies on no lock and not on GS. Prism's last words stop the others by
/// one; else it changes nothing but bits and counts.
fn nmi(frame: &Frame) {
    let cpu = tables::current();
    trace::record(cpu, time::tsc(), What::Nmi, [0; 3], [frame.rip, 0]);
    crate::panic::stop_if_over(cpu);
    if let Some(cpu) = percpu::get(cpu) {
        irq::count(cpu, Pending::NMI);
    }
}

#[cold]
fn fatal(vector: u8, frame: &Frame) -> ! {
    let name = NAMES.get(usize::from(vector)).copied().unwrap_or("?");
    let cr2 = Cr2::read_raw();
    trace::record(tables::current(), time::tsc(), What::Fault, [vector, 0, 0], [frame.rip, cr2]);
    let cpu = crate::panic::begin(format_args!("exception {name} at {:#x}", frame.rip));
    say!("PANIC: CPU {}: exception {name} in Prism, error {:#x}, cr2 {cr2:#x}", cpu.0, frame.error);
    let Frame { rip, rsp, rflags, cs, ss, .. } = *frame;
    say!("  rip {rip:#018x} rsp {rsp:#018x} rflags {rflags:#x} cs {cs:#x} ss {ss:#x}");
    say!("  rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}", frame.rax, frame.rbx, frame.rcx, frame.rdx);
    say!("  rsi {:#018x} rdi {:#018x} rbp {:#018x} r8  {:#018x}", frame.rsi, frame.rdi, frame.rbp, frame.r8);
    say!("  r9  {:#018x} r10 {:#018x} r11 {:#018x} r12 {:#018x}", frame.r9, frame.r10, frame.r11, frame.r12);
    say!("  r13 {:#018x} r14 {:#018x} r15 {:#018x}", frame.r13, frame.r14, frame.r15);
    if !STACK_SWITCHING.contains(&vector) {
        print_stack(frame.rsp);
    }
    crate::panic::end(cpu)
}

/// What lies on the stack, as far as the page goes: frames of interrupts and calls.
fn print_stack(rsp: u64) {
    // At the very end of a page the frame lies in the one below, and the next need not be mapped.
    let words = if rsp & 0xFFF == 0 { 0 } else { (0x1000 - (rsp & 0xFFF)) / 8 }.min(48);
    let word = |index: u64| {
        // SAFETY: 1. The exception was taken on this stack, right below `rsp`, so that the page is mapped. 2. The address
        // is aligned, and in that page. 3. Nobody else runs on this stack.
        unsafe { core::ptr::with_exposed_provenance::<u64>((rsp + 8 * index) as usize & !7).read_volatile() }
    };
    for index in (0..words).step_by(4).filter(|index| index + 4 <= words) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|n| word(index + n));
        say!("  stack {:#x}: {a:#018x} {b:#018x} {c:#018x} {d:#018x}", rsp + 8 * index);
    }
}
