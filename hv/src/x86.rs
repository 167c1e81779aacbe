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
