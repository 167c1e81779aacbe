//! Model-specific registers: numbers, and the policy table for guests (design D8). A register that no row names
//! raises #GP and is counted.
#![allow(missing_docs, reason = "constant tables: each name is the manual's own")]

pub const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
pub const IA32_APIC_BASE: u32 = 0x1B;
pub const IA32_TSC_ADJUST: u32 = 0x3B;
pub const IA32_MTRRCAP: u32 = 0xFE;
pub const IA32_SYSENTER_CS: u32 = 0x174;
pub const IA32_SYSENTER_ESP: u32 = 0x175;
pub const IA32_SYSENTER_EIP: u32 = 0x176;
pub const IA32_PAT: u32 = 0x277;
pub const IA32_TSC_DEADLINE: u32 = 0x6E0;
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8FF;
pub const EFER: u32 = 0xC000_0080;
pub const STAR: u32 = 0xC000_0081;
pub const LSTAR: u32 = 0xC000_0082;
pub const CSTAR: u32 = 0xC000_0083;
pub const SFMASK: u32 = 0xC000_0084;
pub const FS_BASE: u32 = 0xC000_0100;
pub const GS_BASE: u32 = 0xC000_0101;
pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
pub const TSC_AUX: u32 = 0xC000_0103;
pub const VM_CR: u32 = 0xC001_0114;
pub const VM_HSAVE_PA: u32 = 0xC001_0117;
pub const KVM_WALL_CLOCK: u32 = 0x4B56_4D00;
pub const KVM_SYSTEM_TIME: u32 = 0x4B56_4D01;

/// What a guest gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Reads give the constant, writes raise #GP.
    Constant(u64),
    /// Reads give the constant, writes are dropped.
    Ignored(u64),
    /// A register of the vCPU without effect: starts as `reset`; a write that sets a bit outside `writable` raises #GP.
    Stored { reset: u64, writable: u64 },
    /// Switched by the hardware with the vCPU: the guest reaches it without an exit.
    Native,
    /// The time-stamp counter.
    Tsc,
    /// IA32_TSC_ADJUST.
    TscAdjust,
    /// Local APIC base, x2APIC registers, TSC deadline.
    Apic,
    /// Extended features.
    Efer,
    /// Page attribute table.
    Pat,
    /// TSC_AUX, switched with the vCPU by software.
    TscAux,
    /// KVM clock, wall part.
    KvmWallClock,
    /// KVM clock, system-time part.
    KvmSystemTime,
}

/// One row: a register or a run of them under one policy.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub first: u32,
    pub last: u32,
    pub name: &'static str,
    pub policy: Policy,
}

const fn one(msr: u32, name: &'static str, policy: Policy) -> Row {
    Row { first: msr, last: msr, name, policy }
}
const fn run(first: u32, last: u32, name: &'static str, policy: Policy) -> Row {
    Row { first, last, name, policy }
}
const fn stored(reset: u64, writable: u64) -> Policy {
    Policy::Stored { reset, writable }
}

/// MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRRCAP: u64 = 0x508;
/// MTRR_DEF_TYPE: enabled with fixed ranges, write-back, as firmware leaves it (the ranges have no effect).
const MTRR_DEF_TYPE: u64 = 0xC06;
/// A fixed range of write-back.
const FIXED_WB: u64 = 0x0606_0606_0606_0606;

/// The policy. Sorted, without overlap.
pub const TABLE: &[Row] = &[
    one(IA32_TIME_STAMP_COUNTER, "TIME_STAMP_COUNTER", Policy::Tsc),
    one(0x17, "PLATFORM_ID", Policy::Constant(0)),
    one(IA32_APIC_BASE, "APIC_BASE", Policy::Apic),
    one(0x2A, "EBL_CR_POWERON", Policy::Constant(0)),
    one(0x34, "SMI_COUNT", Policy::Constant(0)),
    // Locked, VMX off.
    one(0x3A, "FEATURE_CONTROL", Policy::Constant(1)),
    one(IA32_TSC_ADJUST, "TSC_ADJUST", Policy::TscAdjust),
    one(0x79, "BIOS_UPDT_TRIG", Policy::Ignored(0)),
    // All ones: a hypervisor's way to say "up to date".
    one(0x8B, "BIOS_SIGN_ID", Policy::Ignored(0xFFFF_FFFF_0000_0000)),
    one(0xCE, "PLATFORM_INFO", Policy::Constant(0)),
    one(IA32_MTRRCAP, "MTRRCAP", Policy::Constant(MTRRCAP)),
    one(0x140, "MISC_FEATURE_ENABLES", Policy::Ignored(0)),
    one(IA32_SYSENTER_CS, "SYSENTER_CS", Policy::Native),
    one(IA32_SYSENTER_ESP, "SYSENTER_ESP", Policy::Native),
    one(IA32_SYSENTER_EIP, "SYSENTER_EIP", Policy::Native),
    // No machine-check banks.
    one(0x179, "MCG_CAP", Policy::Constant(0)),
    one(0x17A, "MCG_STATUS", Policy::Ignored(0)),
    one(0x17B, "MCG_CTL", Policy::Ignored(0)),
    one(0x198, "PERF_STATUS", Policy::Constant(0)),
    one(0x199, "PERF_CTL", Policy::Ignored(0)),
    one(0x19A, "CLOCK_MODULATION", Policy::Ignored(0)),
    one(0x19B, "THERM_INTERRUPT", Policy::Ignored(0)),
    one(0x19C, "THERM_STATUS", Policy::Constant(0)),
    // Fast strings; BTS and PEBS unavailable.
    one(0x1A0, "MISC_ENABLE", stored(0x1801, u64::MAX)),
    one(0x1AD, "TURBO_RATIO_LIMIT", Policy::Constant(0)),
    one(0x1D9, "DEBUGCTL", Policy::Ignored(0)),
    one(0x1DB, "LASTBRANCHFROMIP", Policy::Constant(0)),
    one(0x1DC, "LASTBRANCHTOIP", Policy::Constant(0)),
    one(0x1DD, "LASTINTFROMIP", Policy::Constant(0)),
    one(0x1DE, "LASTINTTOIP", Policy::Constant(0)),
    run(0x200, 0x20F, "MTRR_PHYSBASE/MASK", stored(0, u64::MAX)),
    one(0x250, "MTRR_FIX64K_00000", stored(FIXED_WB, u64::MAX)),
    run(0x258, 0x259, "MTRR_FIX16K", stored(FIXED_WB, u64::MAX)),
    run(0x268, 0x26F, "MTRR_FIX4K", stored(FIXED_WB, u64::MAX)),
    one(IA32_PAT, "PAT", Policy::Pat),
    one(0x2FF, "MTRR_DEF_TYPE", stored(MTRR_DEF_TYPE, 0xCFF)),
    one(0x606, "RAPL_POWER_UNIT", Policy::Constant(0)),
    one(0x611, "PKG_ENERGY_STATUS", Policy::Constant(0)),
    one(0x619, "DRAM_ENERGY_STATUS", Policy::Constant(0)),
    one(0x639, "PP0_ENERGY_STATUS", Policy::Constant(0)),
    one(0x641, "PP1_ENERGY_STATUS", Policy::Constant(0)),
    one(0x64E, "PPERF", Policy::Constant(0)),
    one(IA32_TSC_DEADLINE, "TSC_DEADLINE", Policy::Apic),
    run(X2APIC_FIRST, X2APIC_LAST, "X2APIC", Policy::Apic),
    one(KVM_WALL_CLOCK, "KVM_WALL_CLOCK_NEW", Policy::KvmWallClock),
    one(KVM_SYSTEM_TIME, "KVM_SYSTEM_TIME_NEW", Policy::KvmSystemTime),
    one(EFER, "EFER", Policy::Efer),
    one(STAR, "STAR", Policy::Native),
    one(LSTAR, "LSTAR", Policy::Native),
    one(CSTAR, "CSTAR", Policy::Native),
    one(SFMASK, "SFMASK", Policy::Native),
    one(FS_BASE, "FS_BASE", Policy::Native),
    one(GS_BASE, "GS_BASE", Policy::Native),
    one(KERNEL_GS_BASE, "KERNEL_GS_BASE", Policy::Native),
    one(TSC_AUX, "TSC_AUX", Policy::TscAux),
    run(0xC001_0000, 0xC001_0007, "PERF_CTL/CTR", Policy::Ignored(0)),
    one(0xC001_0010, "SYSCFG", Policy::Ignored(0)),
    // Bit 24 (TscFreqSel) must read one, or Linux calls it a firmware bug; the rest has no effect.
    one(0xC001_0015, "HWCR", stored(1 << 24, u64::MAX)),
    one(0xC001_001F, "NB_CFG", Policy::Ignored(0)),
    one(0xC001_0020, "PATCH_LOADER", Policy::Ignored(0)),
    one(0xC001_0055, "INTERRUPT_PENDING", Policy::Ignored(0)),
    one(0xC001_0058, "MMIO_CFG_BASE_ADDR", Policy::Ignored(0)),
    // SVM disabled and locked.
    one(VM_CR, "VM_CR", Policy::Ignored(0x18)),
    run(0xC001_0140, 0xC001_0141, "OSVW", Policy::Constant(0)),
    run(0xC001_1020, 0xC001_1023, "LS_CFG..", Policy::Ignored(0)),
    run(0xC001_1028, 0xC001_1028, "FP_CFG", Policy::Ignored(0)),
    // Bit 1: LFENCE is serializing.
    one(0xC001_1029, "DE_CFG", Policy::Ignored(1 << 1)),
    one(0xC001_102A, "BU_CFG2", Policy::Ignored(0)),
];

/// How many `Stored` registers a vCPU has.
pub const STORED: usize = stored_before(TABLE.len());

/// Sum of the `Stored` registers in the first `rows` rows.
const fn stored_before(rows: usize) -> usize {
    let mut sum = 0;
    let mut index = 0;
    while index < rows {
        if let Policy::Stored { .. } = TABLE[index].policy {
            sum += (TABLE[index].last - TABLE[index].first + 1) as usize;
        }
        index += 1;
    }
    sum
}

/// The row that covers `msr`, and the storage slot if it is `Stored`.
pub fn find(msr: u32) -> Option<(&'static Row, usize)> {
    let index = TABLE.partition_point(|row| row.last < msr);
    let row = TABLE.get(index).filter(|row| row.first <= msr)?;
    let slot = match row.policy {
        Policy::Stored { .. } => stored_before(index) + (msr - row.first) as usize,
        _ => 0,
    };
    Some((row, slot))
}

/// Values of the `Stored` registers after RESET.
pub fn stored_reset() -> [u64; STORED] {
    let mut values = [0; STORED];
    let stored = TABLE.iter().flat_map(|row| {
        let reset = match row.policy {
            Policy::Stored { reset, .. } => Some(reset),
            _ => None,
        };
        (row.first..=row.last).filter_map(move |_| reset)
    });
    for (slot, reset) in values.iter_mut().zip(stored) {
        *slot = reset;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_disjoint() {
        for row in TABLE {
            assert!(row.first <= row.last, "{}", row.name);
        }
        for pair in TABLE.windows(2) {
            assert!(pair[0].last < pair[1].first, "{} and {}", pair[0].name, pair[1].name);
        }
    }

    #[test]
    fn slots_are_dense_and_unique() {
        let mut seen = [false; STORED];
        for row in TABLE {
            if let Policy::Stored { reset, writable } = row.policy {
                for msr in row.first..=row.last {
                    let (found, slot) = find(msr).unwrap();
                    assert_eq!(found.name, row.name);
                    assert!(!core::mem::replace(&mut seen[slot], true));
                    assert_eq!(stored_reset()[slot], reset);
                    let _ = writable;
                }
            }
        }
        assert!(seen.iter().all(|taken| *taken));
    }

    #[test]
    fn unknown_registers_have_no_row() {
        assert!(find(0x1234).is_none());
        assert!(find(0).is_none());
        assert!(find(u32::MAX).is_none());
        assert!(find(VM_HSAVE_PA).is_none());
        assert_eq!(find(0x20F).unwrap().0.first, 0x200);
    }
}
