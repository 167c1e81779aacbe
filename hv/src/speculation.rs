//! What Prism does about speculative execution: all decisions are here, made for each CPU from what CPUID and
//! IA32_ARCH_CAPABILITIES say of it (SDM volume 4; Intel's and AMD's guidance for hypervisors). Untested on real CPUs.
//!
//! | what could leak | what is done |
//! |---|---|
//! | branch targets from one VM to another | IBPB when a CPU goes over to a virtual CPU of another VM |
//! | branch targets from a guest to Prism | enhanced IBRS for good where there is; else IBRS at each exit, off at each entry |
//! | return addresses from a guest to Prism | each exit fills the return predictor before the first RET |
//! | L1 terminal fault, sampling of buffers (MDS) | L1D flush, or VERW where that is enough, at the entry after this CPU touched what is not this VM's: a switch of VMs, the mediator's work |
//! | the same between hyper-threads | nothing: switch Hyper-Threading off if guests distrust each other |
//! | Prism's own bounds checks (Spectre 1) | nothing, beyond zeroed registers after an exit |
//!
//! Guests see none of these controls: IA32_SPEC_CTRL and IA32_PRED_CMD raise #GP and CPUID hides them, so that there is
//! nothing to save and restore, and guest kernels fall back on what needs no register.

use core::arch::asm;

use crate::x86;

const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_ARCH_CAPABILITIES: u32 = 0x10A;
const IA32_FLUSH_CMD: u32 = 0x10B;
const SPEC_CTRL_IBRS: u64 = 1 << 0;
const PRED_CMD_IBPB: u64 = 1 << 0;
const FLUSH_CMD_L1D: u64 = 1 << 0;
/// Bits of IA32_ARCH_CAPABILITIES: not affected by meltdown and L1TF; enhanced IBRS; no L1D flush at entries; no MDS.
const RDCL_NO: u64 = 1 << 0;
const IBRS_ALL: u64 = 1 << 1;
const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
const MDS_NO: u64 = 1 << 5;
/// CPUID 7.0 EDX.
const MD_CLEAR: u32 = 1 << 10;
const IBRS_IBPB: u32 = 1 << 26;
const L1D_FLUSH: u32 = 1 << 28;
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// CPUID 8000_0008 EBX: IBPB; IBRS; IBRS may stay on.
const AMD_IBPB: u32 = 1 << 12;
const AMD_IBRS: u32 = 1 << 14;
const AMD_IBRS_ALWAYS: u32 = 1 << 16;

/// What a CPU says of itself.
#[derive(Clone, Copy, Default, Debug)]
struct Told {
    leaf7_edx: u32,
    leaf8_ebx: u32,
    /// 0 where the register does not exist.
    capabilities: u64,
}

/// What is to be done on one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Barriers {
    ibpb: bool,
    ibrs: Ibrs,
    scrub: Scrub,
}

/// How Prism's indirect branches are kept from a guest's training.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Ibrs {
    #[default]
    None,
    Always,
    EachExit,
}

/// How data of others is taken out of caches and buffers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Scrub {
    #[default]
    None,
    Buffers,
    L1d,
}

/// Instructions between an exit and the first RET: 32 CALLs, two a turn, after which no return address of the guest's is
/// predicted. Uses EAX and the flags.
macro_rules! fill_return_predictor {
    () => {
        "mov eax, 16
        22: call 24f
        23: pause
        lfence
        jmp 23b
        24: call 26f
        25: pause
        lfence
        jmp 25b
        26: dec eax
        jnz 22b
        add rsp, 256
        lfence"
    };
}
pub(crate) use fill_return_predictor;

impl Barriers {
    /// Decides for the CPU that calls, and switches on what stays on.
    pub fn enable() -> Self {
        let has = |leaf: u32| x86::cpuid(leaf & 0x8000_0000, 0).eax >= leaf;
        let leaf7_edx = if has(7) { x86::cpuid(7, 0).edx } else { 0 };
        let leaf8_ebx = if has(0x8000_0008) { x86::cpuid(0x8000_0008, 0).ebx } else { 0 };
        // SAFETY: 1. CPUID announces the register. 2. Reading has no effect.
        let read = || unsafe { x86::read_msr(IA32_ARCH_CAPABILITIES) };
        let capabilities = if leaf7_edx & ARCH_CAPABILITIES != 0 { read() } else { 0 };
        let barriers = Self::choose(Told { leaf7_edx, leaf8_ebx, capabilities });
        if barriers.ibrs == Ibrs::Always {
            command(IA32_SPEC_CTRL, SPEC_CTRL_IBRS);
        }
        barriers
    }

    fn choose(told: Told) -> Self {
        let seven = |bit| told.leaf7_edx & bit != 0;
        let eight = |bit| told.leaf8_ebx & bit != 0;
        let safe_from = |bit| told.capabilities & bit != 0;
        let ibrs = match () {
            () if safe_from(IBRS_ALL) || eight(AMD_IBRS_ALWAYS) => Ibrs::Always,
            () if seven(IBRS_IBPB) || eight(AMD_IBRS) => Ibrs::EachExit,
            () => Ibrs::None,
        };
        let scrub = match () {
            () if seven(L1D_FLUSH) && !safe_from(RDCL_NO) && !safe_from(SKIP_L1DFL_VMENTRY) => Scrub::L1d,
            () if seven(MD_CLEAR) && !safe_from(MDS_NO) => Scrub::Buffers,
            () => Scrub::None,
        };
        Self { ibpb: seven(IBRS_IBPB) || eight(AMD_IBPB), ibrs, scrub }
    }

    /// Another VM takes over this CPU.
    pub fn on_switch(self, command: impl Fn(u32, u64)) {
        if self.ibpb {
            command(IA32_PRED_CMD, PRED_CMD_IBPB);
        }
    }

    /// The last thing before an entry, if this CPU touched what the guest must not see.
    pub fn scrub(self, command: impl Fn(u32, u64)) {
        match self.scrub {
            Scrub::None => {}
            // Overwrites the buffers too.
            Scrub::L1d => command(IA32_FLUSH_CMD, FLUSH_CMD_L1D),
            Scrub::Buffers => overwrite_buffers(),
        }
    }

    /// Before each entry.
    #[inline]
    pub fn on_entry(self, command: impl Fn(u32, u64)) {
        if self.ibrs == Ibrs::EachExit {
            command(IA32_SPEC_CTRL, 0);
        }
    }

    /// After each exit, before the first indirect branch.
    #[inline]
    pub fn on_exit(self, command: impl Fn(u32, u64)) {
        if self.ibrs == Ibrs::EachExit {
            command(IA32_SPEC_CTRL, SPEC_CTRL_IBRS);
        }
    }
}

/// Writes one of the registers above, on the CPU that said it has it.
#[inline]
pub(crate) fn command(msr: u32, value: u64) {
    // SAFETY: 1. `Barriers::choose` asks only for registers and bits that CPUID announces. 2. They change what the CPU
    // speculates on, nothing that a program can compute.
    unsafe { x86::write_msr(msr, value) };
}

fn overwrite_buffers() {
    let selector: u16 = 0x10;
    // SAFETY: 1. VERW reads a selector of the GDT, whichever, and changes ZF; with MD_CLEAR it overwrites the buffers.
    unsafe { asm!("verw word ptr [{}]", in(reg) &selector, options(nostack, readonly)) };
}

#[cfg(test)]
mod tests;
