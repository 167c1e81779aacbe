//! Guest state that Prism itself never uses: x87, SSE, AVX, debug address registers, TSC_AUX. It stays in the CPU across
//! exits and moves only when another virtual CPU takes the physical CPU over (Prism is compiled for soft float).

use alloc::boxed::Box;
use core::arch::asm;
use core::ops::Range;

use hv_defs::msr;
use hv_defs::regs::{Cr0, Cr4, Xcr0};
use hv_emu::{Upper, Vector};

use crate::x86;

/// What Prism lets guests use. Protection keys and AMX are left out (see `hv_defs::cpuid`).
const OFFERED: u64 = Xcr0::X87.bits()
    | Xcr0::SSE.bits()
    | Xcr0::AVX.bits()
    | Xcr0::OPMASK.bits()
    | Xcr0::ZMM_HI256.bits()
    | Xcr0::HI16_ZMM.bits();
/// The standard form of all that is offered takes 2,688 bytes.
const AREA: usize = 4096;
const FXSAVE_FCW: usize = 0;
const FXSAVE_MXCSR: usize = 24;

#[repr(C, align(64))]
struct Area([u8; AREA]);

/// A virtual CPU's copy.
pub struct GuestState {
    area: Box<Area>,
    /// XCR0 as the guest has it.
    pub xcr0: u64,
    /// DR0 to DR3.
    debug: [u64; 4],
    /// TSC_AUX.
    pub tsc_aux: u64,
}

/// Components that guests may enable in XCR0; 0 on a CPU without XSAVE.
pub fn supported() -> u64 {
    if has_xsave() {
        let host = x86::cpuid(0xD, 0);
        (u64::from(host.edx) << 32 | u64::from(host.eax)) & OFFERED
    } else {
        0
    }
}

fn has_xsave() -> bool {
    x86::cpuid(1, 0).ecx & (1 << 26) != 0
}

fn has_tsc_aux() -> bool {
    x86::cpuid(0x8000_0001, 0).edx & (1 << 27) != 0
}

/// Prepares the CPU that calls.
pub fn enable() {
    let xsave = if has_xsave() { Cr4::OSXSAVE.bits() } else { 0 };
    // SAFETY: 1. Prism uses neither x87 nor SSE, so that TS and EM off and OSFXSR on change nothing for it. 2. OSXSAVE is
    // set only where XSAVE exists.
    unsafe {
        asm!("mov {0}, cr0", "and {0}, {1}", "mov cr0, {0}", out(reg) _,
            in(reg) !(Cr0::TS | Cr0::EM).bits(), options(nostack));
        asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _,
            in(reg) xsave | (Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits(), options(nostack));
    }
}

impl GuestState {
    /// The state after power-on.
    pub fn new() -> Self {
        let mut state = Self { area: Box::new(Area([0; AREA])), xcr0: 1, debug: [0; 4], tsc_aux: 0 };
        state.reset();
        state
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.area.0.fill(0);
        // An area without components in XSTATE_BV loads the initial state; FXRSTOR needs the values.
        for (at, value) in [(FXSAVE_FCW, 0x037F_u32), (FXSAVE_MXCSR, 0x1F80)] {
            if let Some(place) = self.area.0.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
        (self.xcr0, self.debug, self.tsc_aux) = (1, [0; 4], 0);
    }

    /// Takes the state out of this CPU.
    pub fn save(&mut self) {
        let area = self.area.0.as_mut_ptr();
        // SAFETY: 1. The area is 64-byte aligned and large enough for all of `OFFERED` (`fits` checks it). 2. XCR0 takes
        // what the CPU supports. 3. The rest are register moves without effect on Prism.
        unsafe {
            if has_xsave() {
                set_xcr0(supported());
                asm!("xsave64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack));
            } else {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack));
            }
            let [d0, d1, d2, d3] = &mut self.debug;
            asm!(
                "mov {}, dr0",
                "mov {}, dr1",
                "mov {}, dr2",
                "mov {}, dr3",
                out(reg) * d0,
                out(reg) * d1,
                out(reg) * d2,
                out(reg) * d3,
                options(nostack)
            );
        }
    }

    /// Puts the state into this CPU.
    pub fn load(&self) {
        let area = self.area.0.as_ptr();
        // SAFETY: 1. to 3. as in `save`; the area holds what `save` or `reset` left. 4. DR7 is inactive in root mode.
        // 5. The guest's XCR0 was checked when it was set.
        unsafe {
            if has_xsave() {
                set_xcr0(supported());
                asm!("xrstor64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack));
                set_xcr0(self.xcr0);
            } else {
                asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
            }
            let [d0, d1, d2, d3] = self.debug;
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                in(reg) d0, in(reg) d1, in(reg) d2, in(reg) d3, options(nostack));
        }
        self.load_tsc_aux();
    }

    /// Sets XCR0 while this virtual CPU's state is in the CPU; `value` has been checked.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if has_xsave() {
            // SAFETY: 1. `Xcr0::is_valid` accepted the value for this CPU.
            unsafe { set_xcr0(value) };
        }
    }

    /// Sets TSC_AUX while this virtual CPU's state is in the CPU.
    pub fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value & 0xFFFF_FFFF;
        self.load_tsc_aux();
    }

    fn load_tsc_aux(&self) {
        if has_tsc_aux() {
            // SAFETY: 1. RDTSCP is reported, so TSC_AUX exists; it takes any 32-bit value. 2. Prism does not use it.
            unsafe { x86::write_msr(msr::TSC_AUX, self.tsc_aux) };
        }
    }
}

/// Where FXSAVE and XSAVE store XMM0, and XSAVE which components are not in their initial state.
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
const AVX: u32 = 2;
const ZMM_HI256: u32 = 6;

/// Reads a vector register of the guest whose state is in this CPU.
pub fn read_vector(index: u8) -> Option<Vector> {
    let (mut area, mut value) = (Area([0; AREA]), Vector::default());
    let xcr0 = capture(&mut area);
    let (low, high) = value.split_at_mut(16);
    low.copy_from_slice(area.0.get(xmm(index)?)?);
    if xcr0 & Xcr0::AVX.bits() != 0 {
        high.copy_from_slice(area.0.get(part(AVX, index, 16)?)?);
    }
    Some(value)
}

/// Loads a vector register of the guest whose state is in this CPU.
pub fn write_vector(index: u8, value: Vector, upper: Upper) -> Option<()> {
    let mut area = Area([0; AREA]);
    let xcr0 = capture(&mut area);
    let (low, high) = value.split_at(16);
    area.0.get_mut(xmm(index)?)?.copy_from_slice(low);
    let mut changed = Xcr0::SSE.bits();
    if upper == Upper::Loaded && xcr0 & Xcr0::AVX.bits() != 0 {
        area.0.get_mut(part(AVX, index, 16)?)?.copy_from_slice(high);
        changed |= Xcr0::AVX.bits();
        if xcr0 & Xcr0::ZMM_HI256.bits() != 0 {
            area.0.get_mut(part(ZMM_HI256, index, 32)?)?.fill(0);
        }
    }
    let present = area.0.get_mut(XSTATE_BV)?;
    *present |= changed as u8;
    let area = area.0.as_ptr();
    // SAFETY: 1. The area is aligned, large enough, and holds what `capture` stored, but for one vector register, which
    // takes any value.
    unsafe {
        if xcr0 != 0 {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack));
        } else {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
        }
    }
    Some(())
}

/// Stores the state that is in this CPU; answers XCR0 if that was by XSAVE, which leaves SSE out of what XCR0 leaves out.
fn capture(area: &mut Area) -> u64 {
    let area = area.0.as_mut_ptr();
    // SAFETY: 1. The area is aligned and large enough (`fits`). 2. XGETBV and XSAVE are used where they exist.
    unsafe {
        let mut xcr0 = 0_u32;
        if has_xsave() {
            asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nomem, nostack));
        }
        if u64::from(xcr0) & Xcr0::SSE.bits() != 0 {
            asm!("xsave64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack));
            return u64::from(xcr0);
        }
        asm!("fxsave64 [{}]", in(reg) area, options(nostack));
    }
    0
}

fn xmm(index: u8) -> Option<Range<usize>> {
    let at = XMM + usize::from(index) * 16;
    (index < 16).then_some(at..at + 16)
}

/// What a component of the standard form holds of one of 16 registers.
fn part(component: u32, index: u8, size: usize) -> Option<Range<usize>> {
    let at = x86::cpuid(0xD, component).ebx as usize + usize::from(index) * size;
    (index < 16).then_some(at..at + size)
}

/// # Safety
/// 1. CR4.OSXSAVE is set. 2. The CPU supports the value.
unsafe fn set_xcr0(value: u64) {
    // SAFETY: 1. and 2. are the caller's.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Whether the state of all supported components fits the area.
pub fn fits() -> bool {
    let supported = supported();
    let end = |component: u32| {
        let size = x86::cpuid(0xD, component);
        (size.eax + size.ebx) as usize
    };
    (2..63).filter(|component| supported >> component & 1 != 0).all(|component| end(component) <= AREA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_aligned_and_initialised() {
        let state = GuestState::new();
        assert!(state.area.0.as_ptr().addr().is_multiple_of(64));
        assert_eq!(&state.area.0[..2], &[0x7F, 0x03]);
        assert_eq!(&state.area.0[24..28], &[0x80, 0x1F, 0, 0]);
        assert!(state.area.0[512..576].iter().all(|byte| *byte == 0), "XSTATE_BV is zero");
        assert!(fits());
    }
}
