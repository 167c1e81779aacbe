//! The global page table and the TLBs. A TLB forgets only at the architected flushes, so that a missing one shows.

use alloc::vec;
use alloc::vec::Vec;

use gvt_defs::pte::GgttPte;
use gvt_defs::{ENGINES, Engine, Hpa, PAGE_SIZE};

/// Entries of the global table: 8 MiB of them map 4 GiB.
pub(crate) const GGTT_ENTRIES: usize = 1 << 20;

/// Entries of a TLB. Far more than silicon has: a stale entry should stay visible.
const SLOTS: usize = 8192;

/// A translated page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    pub frame: Hpa,
    pub writable: bool,
}

impl Page {
    /// The physical address that `address` (of any space) has in this page.
    #[inline]
    pub const fn at(self, address: u64) -> Hpa {
        Hpa(self.frame.0 | address & (PAGE_SIZE - 1))
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    number: u64,
    frame: u64,
    generation: u32,
    writable: bool,
}

/// Remembers translations of page numbers until flushed.
pub(crate) struct Tlb {
    entries: Vec<Entry>,
    generation: u32,
}

impl Tlb {
    fn new() -> Self {
        Self { entries: vec![Entry::default(); SLOTS], generation: 1 }
    }

    /// The two slots in which a page may be remembered: neighbours are neighbours in the first; the second spreads
    /// surfaces that lie a power of two apart.
    #[inline]
    const fn slots(number: u64) -> [usize; 2] {
        let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - SLOTS.trailing_zeros());
        [number as usize & (SLOTS - 1), spread as usize]
    }

    #[inline]
    fn at(&self, slot: usize, number: u64) -> Option<Page> {
        let entry = self.entries.get(slot)?;
        (entry.generation == self.generation && entry.number == number)
            .then_some(Page { frame: Hpa(entry.frame), writable: entry.writable })
    }

    #[inline]
    pub fn find(&self, number: u64) -> Option<Page> {
        let [first, second] = Self::slots(number);
        self.at(first, number).or_else(|| self.at(second, number))
    }

    pub fn insert(&mut self, number: u64, page: Page) {
        let generation = self.generation;
        let [first, second] = Self::slots(number);
        let taken = self.entries.get(first).is_some_and(|e| e.generation == generation && e.number != number);
        if let Some(slot) = self.entries.get_mut(if taken { second } else { first }) {
            *slot = Entry { number, frame: page.frame.0, generation, writable: page.writable };
        }
    }

    pub fn flush(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.entries.fill(Entry::default());
            self.generation = 1;
        }
    }
}

/// What one engine remembers of the two spaces.
pub(crate) struct EngineTlb {
    pub global: Tlb,
    pub process: Tlb,
}

/// The global page table with all TLBs.
pub(crate) struct Gtt {
    entries: Vec<u64>,
    engines: [EngineTlb; ENGINES],
    /// The CPU's way through the aperture.
    aperture: Tlb,
}

/// Who looks an address up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Looker {
    Aperture,
    Engine(Engine),
}

impl Gtt {
    pub fn new() -> Self {
        let tlb = |_| EngineTlb { global: Tlb::new(), process: Tlb::new() };
        Self { entries: vec![0; GGTT_ENTRIES], engines: core::array::from_fn(tlb), aperture: Tlb::new() }
    }

    pub fn entry(&self, index: u32) -> u64 {
        self.entries.get(index as usize).copied().unwrap_or(0)
    }

    /// Stores an entry. TLBs keep what they remember.
    pub fn set_entry(&mut self, index: u32, value: u64) {
        if let Some(slot) = self.entries.get_mut(index as usize) {
            *slot = value;
        }
    }

    pub fn process_tlb(&mut self, engine: Engine) -> Option<&mut Tlb> {
        self.engines.get_mut(engine.index()).map(|tlb| &mut tlb.process)
    }

    /// Translates a global address. Absent entries are not remembered.
    #[inline]
    pub fn translate(&mut self, looker: Looker, address: u32) -> Option<Page> {
        let number = address / PAGE_SIZE as u32;
        let tlb = match looker {
            Looker::Aperture => &mut self.aperture,
            Looker::Engine(engine) => &mut self.engines.get_mut(engine.index())?.global,
        };
        if let Some(page) = tlb.find(u64::from(number)) {
            return Some(page);
        }
        let pte = GgttPte(self.entries.get(number as usize).copied()?);
        let page = pte.present().then(|| Page { frame: pte.frame(), writable: true })?;
        tlb.insert(u64::from(number), page);
        Some(page)
    }

    /// GFX_FLSH_CNTL: everybody forgets the global space.
    pub fn flush_global(&mut self) {
        self.aperture.flush();
        for tlb in &mut self.engines {
            tlb.global.flush();
        }
    }

    /// An engine's TLB invalidation: it forgets both spaces.
    pub fn flush_engine(&mut self, engine: Engine) {
        if let Some(tlb) = self.engines.get_mut(engine.index()) {
            tlb.global.flush();
            tlb.process.flush();
        }
    }

    /// New page directory pointers: the engine forgets the process space.
    pub fn flush_process(&mut self, engine: Engine) {
        if let Some(tlb) = self.engines.get_mut(engine.index()) {
            tlb.process.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_until_the_right_flush() {
        let mut gtt = Gtt::new();
        let rcs = Looker::Engine(Engine::Rcs);
        gtt.set_entry(3, 0x5001);
        assert_eq!(gtt.translate(rcs, 0x3010).map(|p| p.at(0x3010)), Some(Hpa(0x5010)));
        gtt.set_entry(3, 0x6001);
        assert_eq!(gtt.translate(rcs, 0x3000).map(|p| p.frame), Some(Hpa(0x5000)), "remembered");
        assert_eq!(gtt.translate(Looker::Aperture, 0x3000).map(|p| p.frame), Some(Hpa(0x6000)));
        gtt.flush_process(Engine::Rcs);
        gtt.flush_engine(Engine::Bcs);
        assert_eq!(gtt.translate(rcs, 0x3000).map(|p| p.frame), Some(Hpa(0x5000)), "others' flushes");
        gtt.flush_global();
        assert_eq!(gtt.translate(rcs, 0x3000).map(|p| p.frame), Some(Hpa(0x6000)));
        gtt.set_entry(3, 0);
        gtt.flush_engine(Engine::Rcs);
        assert_eq!(gtt.translate(rcs, 0x3000), None);
        gtt.set_entry(3, 0x7001);
        assert_eq!(gtt.translate(rcs, 0x3000).map(|p| p.frame), Some(Hpa(0x7000)), "absence is not remembered");
    }
}
