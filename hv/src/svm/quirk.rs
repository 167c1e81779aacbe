//! Faults of emulated AMD-V that are worked round, each only where CPUID shows that emulator.

use hv_defs::cpuid::HYPERVISOR_BASE;

use crate::percpu::CpuId;
use crate::x86;

/// What CPUID's hypervisor leaf says where QEMU itself executes instructions (TCG).
const TCG: [u8; 12] = *b"TCGTCGTCGTCG";
/// CPUID 1 ECX: a hypervisor is there, so its leaf is.
const HYPERVISOR: u32 = 1 << 31;

/// What becomes of an external interrupt that VMRUN injects.
///
/// QEMU's `helper_vmrun` leaves the vector of an injected interrupt (type 0, no other) in `exception_index` after it has
/// delivered it. When the emulator's thread next leaves its loop for a reason of the emulator's own, before the guest
/// exits (`exit_request` in `cpu_handle_interrupt`: another CPU's thread wants it to stop), the vector is delivered once
/// more, whatever the guest's IF says. Linux then runs its timer handler in a section that holds a spinlock, or enters
/// the kernel twice without SWAPGS. Any exit of the guest clears what was left (QEMU 11.1, and as far as its source
/// tells 10.0; shown by the test `emulators`, `an_injected_interrupt_comes_twice_in_qemu_unless_the_guest_exits`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Injection {
    /// It is delivered once.
    Once,
    /// It may be delivered again until the guest exits: have it exit before its first instruction.
    UntilExit,
}

impl Injection {
    /// By what this CPU says of itself.
    pub fn of_this_cpu() -> Self {
        if is_tcg() { Self::UntilExit } else { Self::Once }
    }
}

/// What a guest's move to CR8 does while a virtual interrupt waits (V_IRQ).
///
/// QEMU's `helper_write_crN` then calls `cpu_interrupt` without the lock that this needs: from 11.1 on that is an
/// assertion, and the emulator ends, with all guests (shown by the test `ladder`, `twins_on_svm`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PriorityWrite {
    /// It sets the priority.
    Sound,
    /// It must exit.
    Fatal,
}

impl PriorityWrite {
    /// By what this CPU says of itself.
    pub fn of_this_cpu() -> Self {
        if is_tcg() { Self::Fatal } else { Self::Sound }
    }
}

/// Who changes the state of the CPU that booted.
///
/// QEMU's `cpu_clear_ignne`, which the thread of *any* CPU runs when it loads x87 state without a pending exception
/// (FLDENV, FXRSTOR, XRSTOR: a guest's as well), reads and writes `hflags2` of the first CPU without a lock. What that
/// CPU changes there at the same moment comes back as it was: GIF is set behind CLGI, and, worse, nested paging stays on
/// behind #VMEXIT or off behind VMRUN. A first CPU that runs no guest loses nothing that it needs (QEMU 11.1; shown by
/// the test `emulators`, `the_first_cpus_flags_are_changed_by_others_in_qemu`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FirstCpu {
    /// Itself alone.
    ItsOwn,
    /// Every other CPU: none of the guests may run there.
    Changed,
}

impl FirstCpu {
    /// By what this CPU says of itself.
    pub fn of_this_machine() -> Self {
        if is_tcg() { Self::Changed } else { Self::ItsOwn }
    }

    /// The first of `cpus` CPUs that may run guests: with one CPU alone there is nobody to change it.
    pub fn first_for_guests(self, cpus: u32) -> CpuId {
        match self {
            Self::Changed if cpus > 1 => CpuId(1),
            _ => CpuId(0),
        }
    }
}

fn is_tcg() -> bool {
    if x86::cpuid(1, 0).ecx & HYPERVISOR == 0 {
        return false;
    }
    let leaf = x86::cpuid(HYPERVISOR_BASE, 0);
    names_tcg([leaf.ebx, leaf.ecx, leaf.edx])
}

fn names_tcg(words: [u32; 3]) -> bool {
    words.iter().flat_map(|word| word.to_le_bytes()).eq(TCG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tcg_has_it() {
        let words = |text: &[u8; 12]| {
            let word = |n: usize| u32::from_le_bytes([text[n], text[n + 1], text[n + 2], text[n + 3]]);
            [word(0), word(4), word(8)]
        };
        assert!(names_tcg(words(b"TCGTCGTCGTCG")));
        assert!(!names_tcg(words(b"KVMKVMKVM\0\0\0")));
        assert!(!names_tcg([0; 3]));
    }

    #[test]
    fn a_first_cpu_that_others_change_runs_guests_only_when_alone() {
        let first = |cpu: FirstCpu| [1, 2, 3].map(|cpus| cpu.first_for_guests(cpus).0);
        assert_eq!(first(FirstCpu::Changed), [0, 1, 1]);
        assert_eq!(first(FirstCpu::ItsOwn), [0, 0, 0]);
    }
}
