//! The physical GPU: a PCI function with registers and page table in BAR0 and its aperture in BAR2.

use gvt::{Aperture, ApertureAccess, Hw};
use hv::mmio::Mmio;
use hv::pci::{ConfigSpace, Function};

/// Byte offset of the global page table in BAR0 (KBL PRM vol 2c, GTTMMADR).
const GTT: u64 = 8 << 20;
/// GMCH graphics control: bits 7:6 give the page table's size, 1 << n MiB.
const GMCH_CTRL: u16 = 0x50;

/// The function and its mapped registers.
pub struct PciGpu {
    function: Function,
    registers: Mmio,
    aperture: Aperture,
}

impl PciGpu {
    /// Maps the GPU's BARs; `None` if it is not an Intel display device with both.
    pub fn new(function: Function) -> Option<Self> {
        let intel = function.read32(0) & 0xFFFF == 0x8086;
        let display = function.read32(8) >> 24 == 0x03;
        if !intel || !display {
            return None;
        }
        let bars = function.bars();
        let registers = bars.iter().find(|bar| bar.index == 0)?.map()?;
        let gmadr = bars.iter().find(|bar| bar.index == 2)?;
        let aperture = Aperture { base: gmadr.base.0, size: gmadr.size, access: ApertureAccess::Mappable };
        Some(Self { function, registers, aperture })
    }
}

impl Hw for PciGpu {
    fn config_read(&mut self, offset: u16) -> u32 {
        self.function.read32(offset)
    }
    fn config_write(&mut self, offset: u16, value: u32) {
        self.function.write32(offset, value);
    }
    fn read(&mut self, offset: u32) -> u32 {
        self.registers.read32(u64::from(offset))
    }
    fn write(&mut self, offset: u32, value: u32) {
        self.registers.write32(u64::from(offset), value);
    }
    fn ggtt_read(&mut self, index: u32) -> u64 {
        self.registers.read64(GTT + u64::from(index) * 8)
    }
    fn ggtt_write(&mut self, index: u32, pte: u64) {
        self.registers.write64(GTT + u64::from(index) * 8, pte);
    }
    fn ggtt_entries(&mut self) -> u32 {
        match (self.function.read32(GMCH_CTRL) >> 6) & 3 {
            0 => 0,
            code => (1 << (20 + code)) / 8,
        }
    }
    fn aperture(&mut self) -> Aperture {
        self.aperture
    }
}
