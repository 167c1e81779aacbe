//! Registers that must be what they were, whatever interrupted meanwhile.

use std::arch::asm;
use std::cell::Cell;

use crate::{Progress, Random, pin};

std::thread_local! {
    /// Found through FS.
    static MARK: Cell<u64> = const { Cell::new(0) };
}

/// Fills registers with a pattern, spins for a while, compares.
pub fn keep(progress: &Progress, cpu: usize, seed: u64) {
    pin(cpu);
    let mut random = Random::new(seed);
    MARK.set(seed);
    while progress.turn() {
        let pattern = random.below(u64::MAX >> 11) << 8 | seed & 0xFF;
        let differ = spin(pattern, 1 + random.below(20_000));
        if differ != 0 {
            progress.wrong(format!("registers lost their values: {differ:#x} of {pattern:#x}"));
        }
        if MARK.get() != seed {
            progress.wrong(format!("FS leads to {:#x}", MARK.get()));
        }
        if random.below(8) == 0 {
            std::thread::yield_now();
        }
    }
}

/// Gives the bits in which any register differs from `pattern` in the end.
fn spin(pattern: u64, turns: u64) -> u64 {
    let differ: u64;
    // SAFETY: 1. Registers only, all named as changed.
    unsafe {
        asm!(
            "movq xmm0, {pattern}", "punpcklqdq xmm0, xmm0",
            "movdqa xmm1, xmm0", "movdqa xmm5, xmm0", "movdqa xmm9, xmm0", "movdqa xmm15, xmm0",
            "mov r8, {pattern}", "mov r9, {pattern}", "mov r10, {pattern}", "mov r11, {pattern}",
            "mov r12, {pattern}", "mov r13, {pattern}", "mov r14, {pattern}", "mov r15, {pattern}",
            "2: pause", "dec {turns}", "jnz 2b",
            "pxor xmm1, xmm0", "pxor xmm5, xmm0", "pxor xmm9, xmm0", "pxor xmm15, xmm0",
            "por xmm1, xmm5", "por xmm1, xmm9", "por xmm1, xmm15",
            "movq {differ}, xmm1", "psrldq xmm1, 8", "movq {turns}, xmm1", "or {differ}, {turns}",
            "movq {turns}, xmm0", "xor {turns}, {pattern}", "or {differ}, {turns}",
            "xor r8, {pattern}", "xor r9, {pattern}", "xor r10, {pattern}", "xor r11, {pattern}",
            "xor r12, {pattern}", "xor r13, {pattern}", "xor r14, {pattern}", "xor r15, {pattern}",
            "or {differ}, r8", "or {differ}, r9", "or {differ}, r10", "or {differ}, r11",
            "or {differ}, r12", "or {differ}, r13", "or {differ}, r14", "or {differ}, r15",
            pattern = in(reg) pattern,
            turns = inout(reg) turns => _,
            differ = out(reg) differ,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            out("xmm0") _, out("xmm1") _, out("xmm5") _, out("xmm9") _, out("xmm15") _,
            options(nomem, nostack),
        );
    }
    differ
}
