//! The part of the global graphics address space that belongs to one vGPU.

use core::ops::Range;
use gvt_defs::{GgttAddr, PAGE_SIZE};

/// Two ranges of GGTT entries: a slice of the aperture, and hidden space above it (design D11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    aperture: Range<u32>,
    hidden: Range<u32>,
}

impl Partition {
    /// From byte addresses and sizes. `None` unless page aligned, in order and below 4 GiB.
    pub fn new(aperture: GgttAddr, aperture_bytes: u32, hidden: GgttAddr, hidden_bytes: u32) -> Option<Self> {
        let aperture = entries(aperture, aperture_bytes)?;
        let hidden = entries(hidden, hidden_bytes)?;
        (aperture.end <= hidden.start).then_some(Self { aperture, hidden })
    }

    /// Entries of the aperture slice.
    pub fn aperture(&self) -> Range<u32> {
        self.aperture.clone()
    }

    /// Entries of the hidden range.
    pub fn hidden(&self) -> Range<u32> {
        self.hidden.clone()
    }

    /// Whether the entry at `index` is the vGPU's.
    #[inline]
    pub fn owns(&self, index: u32) -> bool {
        self.aperture.contains(&index) || self.hidden.contains(&index)
    }

    /// Whether `bytes` bytes (at least one) from `addr` on lie wholly inside one of the two ranges.
    #[inline]
    pub fn holds(&self, addr: GgttAddr, bytes: u32) -> bool {
        let Some(last) = addr.0.checked_add(bytes.saturating_sub(1)) else {
            return false;
        };
        let (first, last) = (addr.index(), GgttAddr(last).index());
        let inside = |range: &Range<u32>| range.contains(&first) && range.contains(&last);
        inside(&self.aperture) || inside(&self.hidden)
    }

    /// Whether `bytes` bytes (at least one) from `addr` on lie wholly inside the aperture slice.
    pub fn shows(&self, addr: u64, bytes: u64) -> bool {
        let slice = u64::from(self.aperture.start) * PAGE_SIZE..u64::from(self.aperture.end) * PAGE_SIZE;
        slice.contains(&addr) && bytes <= slice.end - addr
    }
}

fn entries(start: GgttAddr, bytes: u32) -> Option<Range<u32>> {
    let page = PAGE_SIZE as u32;
    if !start.0.is_multiple_of(page) || !bytes.is_multiple_of(page) {
        return None;
    }
    // A range may end at 4 GiB exactly.
    let end = u64::from(start.0) + u64::from(bytes);
    (end <= 1 << 32).then(|| start.index()..start.index() + bytes / page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_edges() {
        let p = Partition::new(GgttAddr(0x10_0000), 0x2000, GgttAddr(0xFFFF_F000), 0x1000).unwrap();
        assert!(p.owns(0x100) && p.owns(0x101) && !p.owns(0x102) && !p.owns(0xFF) && p.owns(0xF_FFFF));
        assert!(p.holds(GgttAddr(0x10_0000), 0x2000));
        assert!(!p.holds(GgttAddr(0x10_0000), 0x2001));
        assert!(!p.holds(GgttAddr(0xF_FFFF), 1));
        assert!(p.holds(GgttAddr(0xFFFF_FFFC), 4));
        assert!(!p.holds(GgttAddr(0xFFFF_FFFC), 8));
        assert!(!p.holds(GgttAddr(0x10_0000), 0xFFFF_FFFF));
        assert!(p.shows(0x10_0000, 0x2000) && p.shows(0x10_1FFF, 1));
        assert!(!p.shows(0x10_0000, 0x2001) && !p.shows(0xF_FFFF, 2) && !p.shows(0x10_2000, 1));
        assert!(!p.shows(0xFFFF_F000, 1) && !p.shows(0x10_0001, u64::MAX));
    }

    #[test]
    fn refuses_nonsense() {
        assert!(Partition::new(GgttAddr(0x800), 0x1000, GgttAddr(0x10_0000), 0x1000).is_none());
        assert!(Partition::new(GgttAddr(0), 0x2000, GgttAddr(0x1000), 0x1000).is_none());
        assert!(Partition::new(GgttAddr(0), 0x1000, GgttAddr(0xFFFF_F000), 0x2000).is_none());
    }
}
