//! What this CPU's VT-x can do, and the controls that Prism runs guests with because of it.

use hv_defs::Hpa;
use hv_defs::vmx::{Allowed, basic, entry_control, ept_vpid, exit_control, misc, msr, pin, primary, secondary};

use super::instructions as vmx;
use super::vcpu::CARRYING;
use crate::vendor::Missing;
use crate::x86;

/// The controls of every virtual CPU on this CPU, and what else depends on its capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Capabilities {
    pub revision: u32,
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
    pub pages_of_1g: bool,
    /// Whether the CPU delivers interrupts out of a virtual-APIC page.
    pub can_carry: bool,
    /// TSC ticks in a tick of the preemption timer, as a power of two.
    pub timer_shift: u32,
    invept: Reach,
    /// None: VPIDs are not used, and every entry and exit flushes linear translations by itself.
    invvpid: Option<Reach>,
}

/// How finely translations can be flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    Single,
    All,
}

const PIN_NEEDED: u32 = pin::EXTERNAL_INTERRUPT_EXITING | pin::NMI_EXITING | pin::VIRTUAL_NMIS;
/// All ports exit, so that no bitmap is needed for them; the MSR bitmaps are, or system calls' MSRs would exit.
const PRIMARY_NEEDED: u32 = primary::INTERRUPT_WINDOW_EXITING
    | primary::USE_TSC_OFFSETTING
    | primary::HLT_EXITING
    | primary::MWAIT_EXITING
    | primary::MONITOR_EXITING
    | primary::RDPMC_EXITING
    | primary::NMI_WINDOW_EXITING
    | primary::UNCONDITIONAL_IO_EXITING
    | primary::USE_MSR_BITMAPS
    | primary::SECONDARY_CONTROLS;
/// Asked for only while something waits.
const WINDOWS: u32 = primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING;
/// Controls whose being forced on (CPUs without TRUE capability registers) would bring exits that nobody handles.
const UNHANDLED: u32 = primary::CR3_LOAD_EXITING | primary::CR3_STORE_EXITING | primary::INVLPG_EXITING;
const SECONDARY_WANTED: u32 = secondary::ENABLE_RDTSCP
    | secondary::ENABLE_VPID
    | secondary::WBINVD_EXITING
    | secondary::ENABLE_INVPCID
    | secondary::ENCLS_EXITING;
/// EFER and PAT differ between guest and host, and must change together with the rest.
const EXIT_NEEDED: u32 = exit_control::HOST_64_BIT
    | exit_control::SAVE_PAT
    | exit_control::LOAD_PAT
    | exit_control::SAVE_EFER
    | exit_control::LOAD_EFER
    | exit_control::SAVE_DEBUG_CONTROLS;
const ENTRY_NEEDED: u32 = entry_control::LOAD_PAT | entry_control::LOAD_EFER | entry_control::LOAD_DEBUG_CONTROLS;

const CPUID_RDTSCP: u32 = 1 << 27;
const CPUID_INVPCID: u32 = 1 << 10;

impl Capabilities {
    /// What the CPU that calls can do. It has VT-x.
    pub fn of_this_cpu() -> Result<Self, Missing> {
        let instructions = Instructions {
            rdtscp: x86::cpuid(0x8000_0001, 0).edx & CPUID_RDTSCP != 0,
            invpcid: x86::cpuid(7, 0).ebx & CPUID_INVPCID != 0,
        };
        Self::choose(&vmx::read_capability, instructions)
    }

    fn choose(read: &dyn Fn(u32) -> u64, instructions: Instructions) -> Result<Self, Missing> {
        let info = read(msr::IA32_VMX_BASIC);
        if info >> basic::MEMORY_TYPE_SHIFT & basic::MEMORY_TYPE_MASK != basic::MEMORY_TYPE_WB {
            return Err(Missing("VT-x that wants its structures uncached; a newer CPU is needed"));
        }
        let refined = info & basic::TRUE_CONTROLS != 0;
        let allowed = |plain, fine| Allowed(read(if refined { fine } else { plain }));
        let pin = allowed(msr::IA32_VMX_PINBASED_CTLS, msr::IA32_VMX_TRUE_PINBASED_CTLS)
            .choose(PIN_NEEDED, pin::PREEMPTION_TIMER)
            .map_err(|_| Missing("VT-x without virtual NMIs; a newer CPU is needed"))?;
        let primary = allowed(msr::IA32_VMX_PROCBASED_CTLS, msr::IA32_VMX_TRUE_PROCBASED_CTLS);
        let primary = choose_primary(primary)?;
        let secondaries = Allowed(read(msr::IA32_VMX_PROCBASED_CTLS2));
        let secondary = choose_secondary(secondaries, instructions)?;
        let without_switch = |_| Missing("VT-x that does not switch EFER and PAT; a newer CPU is needed");
        let exit = allowed(msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_TRUE_EXIT_CTLS);
        let entry = allowed(msr::IA32_VMX_ENTRY_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS);
        let caches = read(msr::IA32_VMX_EPT_VPID_CAP);
        let chosen = Self {
            revision: (info & basic::REVISION_MASK) as u32,
            pin,
            primary,
            secondary,
            exit: exit.choose(EXIT_NEEDED, 0).map_err(without_switch)?,
            entry: entry.choose(ENTRY_NEEDED, 0).map_err(without_switch)?,
            timer_shift: (read(msr::IA32_VMX_MISC) & misc::TIMER_SHIFT_MASK) as u32,
            can_carry: primary & primary::USE_TPR_SHADOW != 0 && secondaries.possible() & CARRYING == CARRYING,
            pages_of_1g: caches & ept_vpid::PAGE_1G != 0,
            invept: invept(caches)?,
            invvpid: invvpid(caches),
        };
        Ok(chosen.without_useless_vpids())
    }

    /// Identifiers that cannot be flushed are not used.
    fn without_useless_vpids(self) -> Self {
        let vpid = self.secondary & secondary::ENABLE_VPID != 0;
        match self.invvpid {
            Some(_) if vpid => self,
            _ => Self { secondary: self.secondary & !secondary::ENABLE_VPID, invvpid: None, ..self },
        }
    }

    /// Whether guests move CR8 without an exit.
    pub fn has_tpr_shadow(&self) -> bool {
        self.primary & primary::USE_TPR_SHADOW != 0
    }

    /// Whether a guest can be stopped by the count of a timer.
    pub fn has_preemption_timer(&self) -> bool {
        self.pin & pin::PREEMPTION_TIMER != 0
    }

    /// Drops what this CPU has cached of anybody's.
    pub fn flush_everything(&self) {
        vmx::invept(None);
        if self.invvpid.is_some() {
            vmx::invvpid(None);
        }
    }

    /// Drops all translations, of any virtual CPU, that came through these nested tables.
    pub fn flush_nested(&self, eptp: u64) {
        vmx::invept((self.invept == Reach::Single).then_some(Hpa(eptp)));
    }

    /// Drops the linear translations of one virtual CPU.
    pub fn flush_linear(&self, vpid: u16) {
        if let Some(reach) = self.invvpid {
            vmx::invvpid((reach == Reach::Single).then_some(vpid));
        }
    }
}

/// Instructions that CPUID shows to guests and that fault in a guest unless a control enables them.
#[derive(Clone, Copy, Debug)]
struct Instructions {
    rdtscp: bool,
    invpcid: bool,
}

fn choose_primary(allowed: Allowed) -> Result<u32, Missing> {
    let tpr = if allowed.possible() & primary::USE_TPR_SHADOW != 0 {
        primary::USE_TPR_SHADOW
    } else {
        // CR8 would be the host's.
        primary::CR8_LOAD_EXITING | primary::CR8_STORE_EXITING
    };
    let lacks = |bits| match bits {
        bits if bits & primary::SECONDARY_CONTROLS != 0 => Missing("VT-x without EPT; a newer CPU is needed"),
        _ => Missing("VT-x without an exit or a bitmap that Prism needs; a newer CPU is needed"),
    };
    let controls = allowed.choose(PRIMARY_NEEDED | tpr, 0).map_err(lacks)?;
    if allowed.forced() & (UNHANDLED | WINDOWS) != 0 {
        return Err(Missing("VT-x that exits whenever a guest changes page tables; a newer CPU is needed"));
    }
    Ok(controls & !WINDOWS)
}

fn choose_secondary(allowed: Allowed, instructions: Instructions) -> Result<u32, Missing> {
    if allowed.possible() & secondary::ENABLE_EPT == 0 {
        return Err(Missing("VT-x without EPT; a newer CPU is needed"));
    }
    let needed = secondary::ENABLE_EPT | secondary::UNRESTRICTED_GUEST;
    let controls = allowed
        .choose(needed, SECONDARY_WANTED)
        .map_err(|_| Missing("VT-x without unrestricted guests; a newer CPU is needed"))?;
    let faults = |shown, control| shown && controls & control == 0;
    if faults(instructions.rdtscp, secondary::ENABLE_RDTSCP) || faults(instructions.invpcid, secondary::ENABLE_INVPCID)
    {
        return Err(Missing("VT-x that cannot give guests RDTSCP or INVPCID although the CPU has them"));
    }
    Ok(controls)
}

fn invept(caches: u64) -> Result<Reach, Missing> {
    let format = ept_vpid::WALK_4 | ept_vpid::WB | ept_vpid::UC | ept_vpid::PAGE_2M;
    if caches & format != format {
        return Err(Missing("EPT without write-back tables of four levels and 2 MiB pages; a newer CPU is needed"));
    }
    match caches {
        _ if caches & ept_vpid::INVEPT == 0 || caches & ept_vpid::INVEPT_ALL == 0 => {
            Err(Missing("EPT without INVEPT; a newer CPU is needed"))
        }
        _ if caches & ept_vpid::INVEPT_SINGLE != 0 => Ok(Reach::Single),
        _ => Ok(Reach::All),
    }
}

fn invvpid(caches: u64) -> Option<Reach> {
    let has = |bits| caches & bits == bits;
    match () {
        () if !has(ept_vpid::INVVPID | ept_vpid::INVVPID_ALL) => None,
        () if has(ept_vpid::INVVPID_SINGLE) => Some(Reach::Single),
        () => Some(Reach::All),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Instructions = Instructions { rdtscp: true, invpcid: true };
    const NONE: Instructions = Instructions { rdtscp: false, invpcid: false };
    /// INVLPG and CR3 exits are forced in the plain registers and optional in the TRUE ones.
    const PLAIN_FORCED: u64 = 0x0401_E172;
    const TRUE_FORCED: u64 = 0x0400_6172;

    /// A CPU with everything; `change` takes away.
    fn cpu(change: &dyn Fn(u32, u64) -> u64, instructions: Instructions) -> Result<Capabilities, Missing> {
        let read = |number| {
            let value = match number {
                msr::IA32_VMX_BASIC => 0x12 | basic::MEMORY_TYPE_WB << 50 | basic::TRUE_CONTROLS,
                msr::IA32_VMX_PROCBASED_CTLS => !0 << 32 | PLAIN_FORCED,
                msr::IA32_VMX_TRUE_PROCBASED_CTLS => !0 << 32 | TRUE_FORCED,
                msr::IA32_VMX_EPT_VPID_CAP => 0xF01_0633_4141,
                _ => !0 << 32,
            };
            change(number, value)
        };
        Capabilities::choose(&read, instructions)
    }

    fn without(register: u32, bits: u64) -> impl Fn(u32, u64) -> u64 {
        move |number, value| if number == register { value & !bits } else { value }
    }

    #[test]
    fn a_full_cpu() {
        let chosen = cpu(&|_, value| value, ALL).unwrap();
        assert_eq!(chosen.revision, 0x12);
        assert!(
            chosen.has_tpr_shadow() && chosen.can_carry && chosen.pages_of_1g && chosen.invvpid == Some(Reach::Single)
        );
        assert_eq!(chosen.primary & WINDOWS, 0, "windows open only when asked for");
        assert_eq!(chosen.primary & (primary::CR8_LOAD_EXITING | UNHANDLED), 0);
        assert_eq!(chosen.primary & TRUE_FORCED as u32, TRUE_FORCED as u32);
        let all = secondary::ENABLE_EPT | secondary::UNRESTRICTED_GUEST | SECONDARY_WANTED;
        assert_eq!(chosen.secondary, all);
    }

    #[test]
    fn what_lacks_is_named() {
        let said = |register, bits: u64| cpu(&without(register, bits), NONE).unwrap_err().0;
        let high = |bits: u32| u64::from(bits) << 32;
        assert!(said(msr::IA32_VMX_PROCBASED_CTLS2, high(secondary::ENABLE_EPT)).contains("without EPT"));
        assert!(said(msr::IA32_VMX_TRUE_PROCBASED_CTLS, high(primary::SECONDARY_CONTROLS)).contains("without EPT"));
        assert!(said(msr::IA32_VMX_PROCBASED_CTLS2, high(secondary::UNRESTRICTED_GUEST)).contains("unrestricted"));
        assert!(said(msr::IA32_VMX_TRUE_PINBASED_CTLS, high(pin::VIRTUAL_NMIS)).contains("virtual NMIs"));
        assert!(said(msr::IA32_VMX_TRUE_EXIT_CTLS, high(exit_control::LOAD_EFER)).contains("EFER"));
        assert!(said(msr::IA32_VMX_EPT_VPID_CAP, ept_vpid::INVEPT).contains("INVEPT"));
        assert!(said(msr::IA32_VMX_EPT_VPID_CAP, ept_vpid::WALK_4).contains("four levels"));
        assert!(said(msr::IA32_VMX_BASIC, basic::TRUE_CONTROLS).contains("changes page tables"));
    }

    #[test]
    fn the_optional_may_lack() {
        let high = |bits: u32| u64::from(bits) << 32;
        let no_tpr = cpu(&without(msr::IA32_VMX_TRUE_PROCBASED_CTLS, high(primary::USE_TPR_SHADOW)), ALL).unwrap();
        assert!(!no_tpr.has_tpr_shadow() && !no_tpr.can_carry);
        let apicv = without(msr::IA32_VMX_PROCBASED_CTLS2, high(secondary::VIRTUAL_INTERRUPT_DELIVERY));
        assert!(!cpu(&apicv, ALL).unwrap().can_carry);
        assert_ne!(no_tpr.primary & primary::CR8_STORE_EXITING, 0);
        let no_flush = cpu(&without(msr::IA32_VMX_EPT_VPID_CAP, ept_vpid::INVVPID), ALL).unwrap();
        assert_eq!((no_flush.invvpid, no_flush.secondary & secondary::ENABLE_VPID), (None, 0));
        let coarse = cpu(&without(msr::IA32_VMX_EPT_VPID_CAP, ept_vpid::INVEPT_SINGLE), ALL).unwrap();
        assert_eq!(coarse.invept, Reach::All);
        let old = without(msr::IA32_VMX_PROCBASED_CTLS2, high(secondary::ENABLE_INVPCID));
        assert!(cpu(&old, NONE).is_ok() && cpu(&old, ALL).is_err(), "CPUID would promise what faults");
    }
}
