//! Registers that the control structure does not switch and Prism itself does not use: they stay in the CPU across exits
//! and move only when another virtual CPU takes over.

use core::arch::asm;

use hv_defs::{msr, regs};
use x86_64::registers::control::Cr2;

use crate::x86;

/// Of system calls and SWAPGS: guests reach them without an exit.
const MSRS: [u32; 5] = [msr::STAR, msr::LSTAR, msr::CSTAR, msr::SFMASK, msr::KERNEL_GS_BASE];

/// One virtual CPU's values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Switched {
    msrs: [u64; MSRS.len()],
    dr6: u64,
    cr2: u64,
}

impl Switched {
    /// The values after RESET.
    pub const RESET: Self = Self { msrs: [0; MSRS.len()], dr6: regs::DR6_RESET, cr2: 0 };

    /// Takes them out of the CPU.
    pub fn save() -> Self {
        // SAFETY: 1. These registers exist on every 64-bit CPU. 2. Reading has no effect.
        let msrs = MSRS.map(|msr| unsafe { x86::read_msr(msr) });
        Self { msrs, dr6: dr6(), cr2: Cr2::read_raw() }
    }

    /// Puts them into the CPU.
    pub fn load(self) {
        for (msr, value) in MSRS.into_iter().zip(self.msrs) {
            // SAFETY: 1. As in `save`; the value was in the register before, or is zero. 2. Prism uses neither SYSCALL
            // nor SWAPGS.
            unsafe { x86::write_msr(msr, value) };
        }
        set_dr6(self.dr6);
        set_cr2(self.cr2);
    }
}

/// Sets CR2 of the guest in this CPU.
pub(super) fn set_cr2(value: u64) {
    // SAFETY: 1. Page-fault handlers only read CR2: the guest's, or Prism's last words.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// DR6 as the guest in this CPU left it.
pub(super) fn dr6() -> u64 {
    let value: u64;
    // SAFETY: 1. Reading DR6 in ring 0 has no effect; DR7.GD is clear in root mode.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Sets DR6 of the guest in this CPU.
pub(super) fn set_dr6(value: u64) {
    // SAFETY: 1. Prism does not use DR6. 2. The upper half, which would fault, is cut.
    unsafe { asm!("mov dr6, {}", in(reg) value & 0xFFFF_FFFF, options(nomem, nostack, preserves_flags)) };
}
