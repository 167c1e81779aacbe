//! Frames that the control structure points to.

use hv_defs::apic;
use hv_defs::msr::{Policy, TABLE, X2APIC_FIRST};
use hv_defs::vmx::{MSR_BITMAP_BYTES, MSR_BITMAP_WRITES, msr_bitmap_position};
use hv_defs::{Hpa, PAGE_SIZE};
use spin::Once;

use crate::frame::{self, OwnerId};
use crate::phys::Window;

/// The MSR bitmaps, the same for every virtual CPU: all exit but the `Native` ones; and the bitmaps for those whose APIC
/// the CPU carries. `None` without memory.
pub(super) fn msr_bitmaps() -> Option<[Hpa; 2]> {
    static BITMAPS: Once<Option<[Hpa; 2]>> = Once::new();
    *BITMAPS.call_once(|| Some([frame_of(&msr_bits())?, frame_of(&carried_bits())?]))
}

fn frame_of(bits: &[u8; MSR_BITMAP_BYTES]) -> Option<Hpa> {
    let frame = frame::alloc_zeroed(OwnerId::HYPERVISOR)?;
    // SAFETY: 1. The frame was just allocated: RAM in the direct map that nobody else refers to.
    let window = unsafe { Window::new(frame.hpa(), PAGE_SIZE) };
    window.write(0, bits).ok()?;
    Some(frame.hpa())
}

fn msr_bits() -> [u8; MSR_BITMAP_BYTES] {
    let mut bits = [0xFF; MSR_BITMAP_BYTES];
    for msr in TABLE.iter().filter(|row| row.policy == Policy::Native).flat_map(|row| row.first..=row.last) {
        pass(&mut bits, msr, 0);
        pass(&mut bits, msr, MSR_BITMAP_WRITES);
    }
    bits
}

/// Of the x2APIC's registers pass the two that the CPU's own logic answers fully: task priority and end of interrupt
/// (which cannot be read).
fn carried_bits() -> [u8; MSR_BITMAP_BYTES] {
    let mut bits = msr_bits();
    let [priority, end] = [apic::TPR, apic::EOI].map(|register| X2APIC_FIRST + u32::from(register));
    pass(&mut bits, priority, 0);
    pass(&mut bits, priority, MSR_BITMAP_WRITES);
    pass(&mut bits, end, MSR_BITMAP_WRITES);
    bits
}

fn pass(bits: &mut [u8; MSR_BITMAP_BYTES], msr: u32, direction: usize) {
    if let Some((byte, bit)) = msr_bitmap_position(msr)
        && let Some(byte) = bits.get_mut(byte + direction)
    {
        *byte &= !(1 << bit);
    }
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
        let carried: u32 = carried_bits().iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(carried, clear + 3, "TPR, and the write to EOI");
        let (byte, bit) = msr_bitmap_position(0x80B).unwrap();
        let end = [byte, byte + MSR_BITMAP_WRITES].map(|byte| carried_bits()[byte] >> bit & 1);
        assert_eq!(end, [1, 0], "a read faults");
    }
}
