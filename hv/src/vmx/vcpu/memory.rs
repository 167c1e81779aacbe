//! Frames that the control structure points to.

use hv_defs::msr::{Policy, TABLE};
use hv_defs::vmx::{MSR_BITMAP_BYTES, MSR_BITMAP_WRITES, msr_bitmap_position};
use hv_defs::{Frame, Hpa, PAGE_SIZE};
use spin::Once;

use crate::frame::{self, OwnerId};
use crate::phys::Window;

/// Offset of the task priority in the virtual-APIC page.
const VTPR: u64 = 0x80;

/// The virtual-APIC page: all that is used of it is the task priority, for CR8.
pub(super) struct ApicPage(Frame);

impl ApicPage {
    pub fn new() -> Option<Self> {
        frame::alloc_zeroed(OwnerId::HYPERVISOR).map(Self)
    }

    pub fn hpa(&self) -> Hpa {
        self.0.hpa()
    }

    pub fn cr8(&self) -> u8 {
        self.window().read_u32(VTPR).map_or(0, |priority| (priority >> 4 & 0xF) as u8)
    }

    pub fn set_cr8(&self, value: u8) {
        let _ = self.window().write_u32(VTPR, u32::from(value) << 4);
    }

    fn window(&self) -> Window {
        // SAFETY: 1. The frame is ours until `drop`: RAM in the direct map. 2. Besides this handle only the CPU uses it,
        // inside the guest.
        unsafe { Window::new(self.0.hpa(), PAGE_SIZE) }
    }
}

impl Drop for ApicPage {
    fn drop(&mut self) {
        frame::free(OwnerId::HYPERVISOR, self.0);
    }
}

/// The MSR bitmaps, the same for every virtual CPU: all exit but the `Native` ones. `None` without memory.
pub(super) fn msr_bitmap() -> Option<Hpa> {
    static BITMAP: Once<Option<Hpa>> = Once::new();
    *BITMAP.call_once(|| {
        let frame = frame::alloc_zeroed(OwnerId::HYPERVISOR)?;
        // SAFETY: 1. The frame was just allocated: RAM in the direct map that nobody else refers to.
        let window = unsafe { Window::new(frame.hpa(), PAGE_SIZE) };
        window.write(0, &msr_bits()).ok()?;
        Some(frame.hpa())
    })
}

fn msr_bits() -> [u8; MSR_BITMAP_BYTES] {
    let mut bits = [0xFF; MSR_BITMAP_BYTES];
    let native = TABLE.iter().filter(|row| row.policy == Policy::Native).flat_map(|row| row.first..=row.last);
    for (byte, bit) in native.filter_map(msr_bitmap_position) {
        for place in [byte, byte + MSR_BITMAP_WRITES] {
            if let Some(byte) = bits.get_mut(place) {
                *byte &= !(1 << bit);
            }
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_defs::msr;

    #[test]
    fn only_native_registers_pass() {
        let bits = msr_bits();
        let passes =
            |number, offset| msr_bitmap_position(number).is_some_and(|(byte, bit)| bits[byte + offset] >> bit & 1 == 0);
        for native in [msr::STAR, msr::LSTAR, msr::FS_BASE, msr::KERNEL_GS_BASE, msr::IA32_SYSENTER_CS] {
            assert!(passes(native, 0) && passes(native, MSR_BITMAP_WRITES), "{native:#x}");
        }
        for trapped in [msr::EFER, msr::IA32_PAT, msr::IA32_APIC_BASE, msr::TSC_AUX, 0x3A, 0x1FFF, 0xC000_1FFF] {
            assert!(!passes(trapped, 0) && !passes(trapped, MSR_BITMAP_WRITES), "{trapped:#x}");
        }
        let clear: u32 = bits.iter().map(|byte| byte.count_zeros()).sum();
        let native = TABLE.iter().filter(|row| row.policy == Policy::Native).count() as u32;
        assert_eq!(clear, 2 * native, "no register passes that no row names");
    }
}
