//! Single instructions that the world switch and the policies need.

use core::arch::asm;

use hv_defs::cpuid::Regs;

/// CPUID of this CPU.
pub fn cpuid(leaf: u32, subleaf: u32) -> Regs {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Regs { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}

/// Reads a model-specific register.
///
/// # Safety
/// 1. The register exists on this CPU.
pub unsafe fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: 1. The caller's.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// 1. The register exists on this CPU and takes the value. 2. Nothing that Rust relies on depends on its old value.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: 1. and 2. are the caller's.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") msr,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags),
        );
    }
}

/// Takes the interrupts that wait. (On the host there are none.)
pub fn take_interrupts() {
    #[cfg(target_os = "none")]
    // SAFETY: 1. The handlers set bits in `PerCpu` and nothing else; no code of ours depends on their not running.
    // 2. STI holds interrupts off for one more instruction, so the NOP is the one they are taken after.
    unsafe {
        asm!("sti", "nop", "cli", options(nostack));
    }
}

/// Halts until an interrupt comes, and takes it; one that waits already ends it at once.
pub fn halt_until_interrupt() {
    #[cfg(target_os = "none")]
    // SAFETY: 1. As for `take_interrupts`. 2. The HLT is in the shadow of the STI: an interrupt that waits ends it.
    unsafe {
        asm!("sti", "hlt", "cli", options(nostack));
    }
}
