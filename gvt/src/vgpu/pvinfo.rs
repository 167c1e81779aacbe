//! The PVINFO page: how a guest's driver learns that its GPU is virtual and which graphics addresses are its own.

use super::registers::RegisterFile;
use crate::gtt::Partition;
use gvt_defs::{PAGE_SIZE, pvinfo};

/// Fills the page.
pub(crate) fn fill(file: &mut RegisterFile, id: u32, partition: &Partition, fences: u32) {
    let page = PAGE_SIZE as u32;
    let (aperture, hidden) = (partition.aperture(), partition.hidden());
    let bytes = |entries: &core::ops::Range<u32>| (entries.end - entries.start).wrapping_mul(page);
    for (offset, value) in [
        (pvinfo::MAGIC, pvinfo::MAGIC_VALUE as u32),
        (pvinfo::MAGIC + 4, (pvinfo::MAGIC_VALUE >> 32) as u32),
        // Major version 1 in the low half, minor 0 in the high.
        (pvinfo::VERSION_MAJOR, 1),
        (pvinfo::VGT_ID, id + 1),
        (pvinfo::VGT_CAPS, pvinfo::CAPS_FULL_PPGTT | pvinfo::CAPS_HWSP_EMULATION | pvinfo::CAPS_HUGE_GTT),
        (pvinfo::MAPPABLE_BASE, aperture.start.wrapping_mul(page)),
        (pvinfo::MAPPABLE_SIZE, bytes(&aperture)),
        (pvinfo::NONMAPPABLE_BASE, hidden.start.wrapping_mul(page)),
        (pvinfo::NONMAPPABLE_SIZE, bytes(&hidden)),
        (pvinfo::FENCE_COUNT, fences),
        (pvinfo::CURSOR_X_HOT, u32::MAX),
        (pvinfo::CURSOR_Y_HOT, u32::MAX),
    ] {
        file.set(pvinfo::BASE + offset, value);
    }
}

/// What a write to the page means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Write {
    /// Kept for a later notification.
    Store,
    /// A notification.
    Notify,
    /// The guest was given too little.
    TooLittle,
    /// Not the guest's to write.
    Ignore,
}

/// What a write at `offset` inside the page means.
pub(crate) fn write(offset: u32) -> Write {
    match offset {
        pvinfo::G2V_NOTIFY => Write::Notify,
        pvinfo::RESERVED5..=0x814 => Write::TooLittle,
        pvinfo::DISPLAY_READY | pvinfo::CURSOR_X_HOT..=pvinfo::EXECLIST_DESC_HI => Write::Store,
        _ => Write::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_half_is_read_only() {
        for offset in (0..0x800).step_by(4) {
            assert_eq!(write(offset), Write::Ignore);
        }
        assert_eq!(write(0x818), Write::Notify);
        assert_eq!(write(0x838), Write::Store);
        assert_eq!(write(0x808), Write::TooLittle);
        assert_eq!(write(0x860), Write::Ignore);
    }
}
