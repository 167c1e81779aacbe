//! Process page tables: the walk, and copies by graphics address.

use gvt_defs::execlist::Addressing;
use gvt_defs::pte::{self, Level, PpgttEntry};
use gvt_defs::reg;
use gvt_defs::{Engine, Hpa, PAGE_SIZE};

use crate::device::Device;
use crate::findings::Finding;
use crate::gtt::{Looker, Page};
use crate::memory::Dma;
use crate::recorder::{Place, Touch};
use crate::witness::Purpose;

/// A graphics address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    /// GGTT.
    Global,
    /// The PPGTT of the running context.
    Process,
}

/// Page directory pointers of the running context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    pub pdp: [u64; 4],
    pub addressing: Addressing,
}

impl Default for Root {
    fn default() -> Self {
        Self { pdp: [0; 4], addressing: Addressing::Legacy64 }
    }
}

/// One engine's view of memory.
pub(crate) struct View<'a, 'm> {
    pub device: &'a mut Device,
    pub memory: &'a mut dyn crate::memory::Memory,
    pub engine: Engine,
    pub root: &'m Root,
}

/// Whether a copy found everything mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    All,
    Missing,
}

impl View<'_, '_> {
    /// Finds the page of an address. An absent one is reported.
    #[inline]
    pub fn translate(&mut self, space: Space, address: u64) -> Option<Page> {
        match space {
            Space::Global => {
                let page = self.device.gtt.translate(Looker::Engine(self.engine), address as u32);
                if page.is_none() {
                    self.device.findings.add(Finding::GgttFault(address as u32));
                }
                page
            }
            Space::Process => self.translate_process(address),
        }
    }

    fn translate_process(&mut self, address: u64) -> Option<Page> {
        let address = pte::strip(address).0;
        let number = address / PAGE_SIZE;
        if let Some(page) = self.device.gtt.process_tlb(self.engine)?.find(number) {
            return Some(page);
        }
        match self.walk(address) {
            Some(page) => {
                self.device.gtt.process_tlb(self.engine)?.insert(number, page);
                Some(page)
            }
            None => {
                self.fault(address);
                None
            }
        }
    }

    /// Walks the tables from the root.
    fn walk(&mut self, address: u64) -> Option<Page> {
        let (mut table, mut level) = match self.root.addressing {
            Addressing::Advanced64 | Addressing::Legacy64 => (Hpa(self.root.pdp[0] & pte::ADDRESS_MASK), Level::Pml4),
            Addressing::Advanced | Addressing::Legacy32 => {
                let pdp = self.root.pdp.get((address >> Level::Pdp.shift()) as usize)?;
                (Hpa(pdp & pte::ADDRESS_MASK), Level::Pd)
            }
        };
        let mut writable = true;
        let mut big_pages = false;
        loop {
            let mut index = level.index(pte::strip(address));
            if big_pages {
                index &= !0xF;
            }
            let entry = self.fetch_entry(Hpa(table.0 + 8 * index as u64))?;
            writable &= entry.writable();
            match level {
                Level::Pml4 => {}
                Level::Pdp if entry.is_large() => {
                    let frame = Hpa(entry.frame().0 & !0x3FFF_FFFF | address & 0x3FFF_F000);
                    return Some(Page { frame, writable });
                }
                Level::Pdp => {}
                Level::Pd if entry.is_large() => {
                    let frame = Hpa(entry.frame_2m().0 | address & 0x1F_F000);
                    return Some(Page { frame, writable });
                }
                Level::Pd => big_pages = entry.is_64k_table(),
                Level::Pt if big_pages => {
                    return Some(Page { frame: Hpa(entry.frame_64k().0 | address & 0xF000), writable });
                }
                Level::Pt => {
                    return Some(Page { frame: entry.frame(), writable });
                }
            }
            table = entry.frame();
            level = level.below()?;
        }
    }

    fn fetch_entry(&mut self, at: Hpa) -> Option<PpgttEntry> {
        let before = self.purpose(Purpose::Table);
        let read = self.dma().read_u64(at);
        self.purpose(before);
        let entry = match read {
            Ok(raw) => PpgttEntry(raw),
            Err(_) => {
                self.device.findings.add(Finding::BusError(at.0));
                return None;
            }
        };
        entry.present().then_some(entry)
    }

    fn fault(&mut self, address: u64) {
        self.device.findings.add(Finding::PpgttFault(self.engine, address));
        if self.device.regs.get(reg::RING_FAULT) & 1 == 0 {
            self.device.regs.set(reg::RING_FAULT, self.engine.info().fault_id << 12 | 1);
            self.device.regs.set(reg::FAULT_TLB_DATA0, (address >> 12) as u32);
            self.device.regs.set(reg::FAULT_TLB_DATA1, (address >> 44) as u32 & 0xF);
        }
    }

    /// Notes where a command gets to.
    #[inline]
    pub fn reach(&mut self, space: Space, address: u64, bytes: usize, touch: Touch) {
        let place = match space {
            Space::Global => Place::Global(address),
            Space::Process => Place::Process(pte::strip(address).0),
        };
        self.device.recorder.reach(place, bytes, touch, 0);
    }

    /// Says why memory is accessed from here on; gives why it was until now.
    pub fn purpose(&mut self, purpose: Purpose) -> Purpose {
        core::mem::replace(&mut self.device.recorder.witness.purpose, purpose)
    }

    pub fn dma(&mut self) -> Dma<'_> {
        Dma { memory: self.memory, recorder: &mut self.device.recorder }
    }

    /// Copies out of a space; what is absent reads as zeros.
    pub fn read(&mut self, space: Space, address: u64, buf: &mut [u8]) -> Found {
        self.reach(space, address, buf.len(), Touch::Read);
        let mut found = Found::All;
        let mut done = 0;
        while done < buf.len() {
            let at = address.wrapping_add(done as u64);
            let len = (buf.len() - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let page = self.translate(space, at);
            let Some(piece) = buf.get_mut(done..done + len) else {
                break;
            };
            match page {
                Some(page) => self.read_physical(page.at(at), piece),
                None => {
                    piece.fill(0);
                    found = Found::Missing;
                }
            }
            done += len;
        }
        found
    }

    /// Writes into a page, unless it is read-only.
    #[inline]
    pub fn write_page(&mut self, page: Page, address: u64, piece: &[u8]) {
        if !page.writable {
            return;
        }
        if self.device.fetch_frame == Some(page.frame) {
            self.device.fetch_stale = true;
        }
        let hpa = page.at(address);
        if self.dma().write(hpa, piece).is_err() {
            self.device.findings.add(Finding::BusError(hpa.0));
        }
    }

    #[inline]
    pub fn read_physical(&mut self, hpa: Hpa, piece: &mut [u8]) {
        if self.dma().read(hpa, piece).is_err() {
            self.device.findings.add(Finding::BusError(hpa.0));
        }
    }

    /// Copies into a space; what is absent or read-only is dropped.
    pub fn write(&mut self, space: Space, address: u64, data: &[u8]) {
        self.reach(space, address, data.len(), Touch::Write);
        let mut rest = data;
        let mut at = address;
        while !rest.is_empty() {
            let len = rest.len().min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            let (piece, tail) = rest.split_at(len);
            if let Some(page) = self.translate(space, at) {
                self.write_page(page, at, piece);
            }
            at = at.wrapping_add(len as u64);
            rest = tail;
        }
    }

    pub fn read_u32(&mut self, space: Space, address: u64) -> u32 {
        let mut buf = [0; 4];
        self.read(space, address & !3, &mut buf);
        u32::from_le_bytes(buf)
    }

    pub fn read_u64(&mut self, space: Space, address: u64) -> u64 {
        let mut buf = [0; 8];
        self.read(space, address, &mut buf);
        u64::from_le_bytes(buf)
    }

    pub fn write_u32(&mut self, space: Space, address: u64, value: u32) {
        self.write(space, address & !3, &value.to_le_bytes());
    }

    pub fn write_u64(&mut self, space: Space, address: u64, value: u64) {
        self.write(space, address & !7, &value.to_le_bytes());
    }
}
