//! The two permission maps. Both are the same for every vCPU: all ports exit, and all MSRs but the `Native` ones.

use hv_defs::msr::{Policy, TABLE};
use hv_defs::svm::{IOPM_BYTES, MSRPM_BYTES, msrpm_position};
use hv_defs::{Hpa, PAGE_SIZE};
use spin::Once;

use crate::frame::{self, OwnerId, Placement};
use crate::phys::Window;

/// Where the maps lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permissions {
    pub io: Hpa,
    pub msr: Hpa,
}

static MAPS: Once<Option<Permissions>> = Once::new();

/// The maps, built at the first call. `None` without memory.
pub(super) fn get() -> Option<Permissions> {
    *MAPS.call_once(build)
}

fn build() -> Option<Permissions> {
    let io = block(IOPM_BYTES)?;
    fill(io, &[0xFF; IOPM_BYTES])?;
    let msr = block(MSRPM_BYTES)?;
    fill(msr, &msr_bits())?;
    Some(Permissions { io: io.base(), msr: msr.base() })
}

/// All bits set (exit), both bits clear for what the guest reaches natively.
fn msr_bits() -> [u8; MSRPM_BYTES] {
    let mut bits = [0xFF; MSRPM_BYTES];
    let native = TABLE.iter().filter(|row| row.policy == Policy::Native).flat_map(|row| row.first..=row.last);
    for (byte, shift) in native.filter_map(msrpm_position) {
        if let Some(byte) = bits.get_mut(byte) {
            *byte &= !(0b11 << shift);
        }
    }
    bits
}

fn block(bytes: usize) -> Option<Window> {
    let frames = (bytes as u64).div_ceil(PAGE_SIZE);
    let first = frame::alloc_run(OwnerId::HYPERVISOR, frames, 1, Placement::High)?;
    // SAFETY: 1. Frames just allocated: RAM in the direct map. 2. Nobody else refers to them.
    Some(unsafe { Window::new(first.hpa(), frames * PAGE_SIZE) })
}

fn fill(window: Window, bytes: &[u8]) -> Option<()> {
    window.write(0, bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_defs::msr;

    #[test]
    fn only_native_registers_pass() {
        let bits = msr_bits();
        let passes = |msr| msrpm_position(msr).is_some_and(|(byte, shift)| bits[byte] >> shift & 0b11 == 0);
        for native in [msr::STAR, msr::LSTAR, msr::FS_BASE, msr::KERNEL_GS_BASE, msr::IA32_SYSENTER_CS] {
            assert!(passes(native), "{native:#x}");
        }
        for trapped in [msr::EFER, msr::IA32_APIC_BASE, msr::VM_HSAVE_PA, 0x2000 - 1, 0xC000_0104] {
            assert!(!passes(trapped), "{trapped:#x}");
        }
        let clear: u32 = bits.iter().map(|byte| byte.count_zeros()).sum();
        let native = TABLE.iter().filter(|row| row.policy == Policy::Native).count() as u32;
        assert_eq!(clear, 2 * native, "no register passes that no row names");
    }
}
