//! The vGPU's PCI configuration space: an image of the physical one with write masks, BAR sizing, MSI and the power
//! state (spec/gvt.md C).

use crate::gpu::ConfigSnapshot;
use gvt_defs::pci;

/// Bytes of configuration space.
pub const CONFIG_BYTES: usize = 256;

const BAR0_BYTES: u64 = gvt_defs::reg::GTTMMADR_SIZE;
const MSI_CONTROL: usize = 2;
const MSI_ENABLE: u16 = 1 << 0;
const MSI_64: u16 = 1 << 7;
const PMCSR: usize = 4;
const CAP_ID_MSI: u8 = 0x05;
const CAP_ID_PM: u8 = 0x01;

/// A BAR that decodes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// 0 (registers and page table) or 2 (aperture).
    pub bar: u8,
    /// Guest-physical base.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// Where the guest wants its interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MsiTarget {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The image.
#[derive(Clone)]
pub(crate) struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    aperture_bytes: u64,
    msi: Option<usize>,
    pm: Option<usize>,
}

impl ConfigSpace {
    /// From the physical function's space: no stolen memory, no decoding, no OpRegion, no ROM.
    pub(crate) fn new(snapshot: &ConfigSnapshot, aperture_bytes: u64) -> Self {
        let mut bytes = [0; CONFIG_BYTES];
        for (to, from) in bytes.chunks_exact_mut(4).zip(snapshot) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let mut config = Self { bytes, aperture_bytes, msi: None, pm: None };
        config.set16(pci::COMMAND.into(), 0);
        config.set16(pci::STATUS.into(), config.get16(pci::STATUS.into()) & 0x0010);
        config.set32(pci::BAR0.into(), 0x4);
        config.set32(usize::from(pci::BAR0) + 4, 0);
        config.set32(pci::BAR2.into(), 0xC);
        config.set32(usize::from(pci::BAR2) + 4, 0);
        // BAR4 (I/O), BAR5 and the ROM are not there.
        for offset in [0x20, 0x24, 0x30] {
            config.set32(offset, 0);
        }
        let gmch = config.get16(pci::GMCH_CTRL.into()) & 0x00FF;
        config.set16(pci::GMCH_CTRL.into(), gmch);
        config.set32(pci::BDSM.into(), 0);
        config.set32(pci::ASLS.into(), 0);
        config.set16(pci::SWSCI.into(), 0);
        config.msi = config.capability(CAP_ID_MSI);
        config.pm = config.capability(CAP_ID_PM);
        if let Some(msi) = config.msi {
            // One vector, no masking: what the mediator raises.
            let control = config.get16(msi + MSI_CONTROL) & MSI_64;
            config.set16(msi + MSI_CONTROL, control);
            config.set32(msi + 4, 0);
            config.set32(msi + 8, 0);
        }
        if let Some(pm) = config.pm {
            config.set16(pm + PMCSR, 0x0008);
        }
        config
    }

    fn capability(&self, id: u8) -> Option<usize> {
        let mut at = usize::from(self.byte(pci::CAP_PTR.into()) & !3);
        for _ in 0..CONFIG_BYTES / 4 {
            if !(0x40..CONFIG_BYTES - 16).contains(&at) {
                return None;
            }
            if self.byte(at) == id {
                return Some(at);
            }
            at = usize::from(self.byte(at + 1) & !3);
        }
        None
    }

    fn byte(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0xFF)
    }

    fn get16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.byte(offset), self.byte(offset + 1)])
    }

    fn get32(&self, offset: usize) -> u32 {
        u32::from(self.get16(offset)) | u32::from(self.get16(offset + 2)) << 16
    }

    fn set16(&mut self, offset: usize, value: u16) {
        self.set_bytes(offset, &value.to_le_bytes());
    }

    fn set32(&mut self, offset: usize, value: u32) {
        self.set_bytes(offset, &value.to_le_bytes());
    }

    fn set_bytes(&mut self, offset: usize, value: &[u8]) {
        if let Some(to) = self.bytes.get_mut(offset..offset + value.len()) {
            to.copy_from_slice(value);
        }
    }

    /// A load; all ones where the access makes no sense.
    pub(crate) fn read(&self, offset: u16, bytes: usize) -> u32 {
        let offset = usize::from(offset);
        if !matches!(bytes, 1 | 2 | 4) || !offset.is_multiple_of(bytes) || offset + bytes > CONFIG_BYTES {
            return u32::MAX;
        }
        (0..bytes).fold(0, |value, i| value | u32::from(self.byte(offset + i)) << (8 * i))
    }

    /// A store; ignored where the access makes no sense.
    pub(crate) fn write(&mut self, offset: u16, bytes: usize, value: u32) {
        let offset = usize::from(offset);
        if !matches!(bytes, 1 | 2 | 4) || !offset.is_multiple_of(bytes) || offset + bytes > CONFIG_BYTES {
            return;
        }
        let dword = offset & !3;
        let shift = 8 * (offset - dword) as u32;
        let lanes = (u64::MAX >> (64 - 8 * bytes as u32)) as u32;
        let (value, lanes) = (value.wrapping_shl(shift), lanes << shift);
        let old = self.get32(dword);
        let written = old & !lanes | value & lanes;
        let mask = self.write_mask(dword) & lanes;
        let new = match dword {
            0x10 => bar_low(written, BAR0_BYTES, 0x4),
            0x14 => written & bar_high_mask(BAR0_BYTES),
            0x18 => bar_low(written, self.aperture_bytes, 0xC),
            0x1C => written & bar_high_mask(self.aperture_bytes),
            _ => old & !mask | value & mask,
        };
        self.set32(dword, new);
    }

    /// Bits of a dword that a guest may change. Status bits are never set, so clearing them is nothing.
    fn write_mask(&self, dword: usize) -> u32 {
        if self.msi.is_some_and(|msi| dword == msi) {
            return u32::from(MSI_ENABLE) << 16;
        }
        if self.msi.is_some_and(|msi| dword == msi + 4) {
            return 0xFFFF_FFFC;
        }
        if self.msi.is_some_and(|msi| (msi + 8..msi + 16).contains(&dword)) {
            return u32::MAX;
        }
        if self.pm.is_some_and(|pm| dword == pm + PMCSR) {
            return 0x0003;
        }
        match dword {
            0x04 => u32::from(pci::COMMAND_MEMORY | pci::COMMAND_BUS_MASTER | pci::COMMAND_INTX_DISABLE | 1),
            0x0C => 0x0000_00FF,
            0x3C => 0x0000_00FF,
            // SWSCI and ASLS: storage, for drivers that write them.
            0xE8 | 0xFC => u32::MAX,
            _ => 0,
        }
    }

    fn command(&self) -> u16 {
        self.get16(pci::COMMAND.into())
    }

    /// The BARs that decode now: memory enabled, awake, and an address given.
    pub(crate) fn bars(&self) -> [Option<Bar>; 2] {
        let awake = self.pm.is_none_or(|pm| self.get16(pm + PMCSR) & 3 == 0);
        if self.command() & pci::COMMAND_MEMORY == 0 || !awake {
            return [None; 2];
        }
        let bar = |bar: u8, at: u16, size: u64| {
            let at = usize::from(at);
            let base = u64::from(self.get32(at) & !0xF) | u64::from(self.get32(at + 4)) << 32;
            // All ones is a size probe with decoding left on: no address yet.
            let sized = base.checked_add(size).is_some() && base != 0;
            sized.then_some(Bar { bar, base, size })
        };
        [bar(0, pci::BAR0, BAR0_BYTES), bar(2, pci::BAR2, self.aperture_bytes)]
    }

    /// Where a message goes, if the guest has enabled them.
    pub(crate) fn msi(&self) -> Option<MsiTarget> {
        let msi = self.msi?;
        let control = self.get16(msi + MSI_CONTROL);
        if control & MSI_ENABLE == 0 || self.command() & pci::COMMAND_BUS_MASTER == 0 {
            return None;
        }
        let low = u64::from(self.get32(msi + 4));
        Some(if control & MSI_64 != 0 {
            MsiTarget { address: low | u64::from(self.get32(msi + 8)) << 32, data: u32::from(self.get16(msi + 12)) }
        } else {
            MsiTarget { address: low, data: u32::from(self.get16(msi + 8)) }
        })
    }
}

fn bar_low(written: u32, size: u64, flags: u32) -> u32 {
    written & !(size.wrapping_sub(1) as u32) & !0xF | flags
}

fn bar_high_mask(size: u64) -> u32 {
    !(size.wrapping_sub(1) >> 32) as u32
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn snapshot() -> ConfigSnapshot {
        let mut s = [0u32; 64];
        s[0] = 0x5912_8086;
        s[1] = 0x0010_0006;
        s[2] = 0x0300_0004;
        s[4] = 0xF000_0004;
        s[6] = 0xC000_000C;
        s[0x34 / 4] = 0x40;
        s[0x40 / 4] = 0x0000_AC09;
        s[0xAC / 4] = 0x0080_D005;
        s[0xD0 / 4] = 0x0002_0001;
        s[0x50 / 4] = 0x02C0;
        s[0x5C / 4] = 0x7C00_0001;
        s[0xFC / 4] = 0x7A00_0018;
        s
    }

    fn space() -> ConfigSpace {
        ConfigSpace::new(&snapshot(), 512 << 20)
    }

    #[test]
    fn starts_without_stolen_memory_decoding_and_opregion() {
        let config = space();
        assert_eq!(config.read(0, 4), 0x5912_8086);
        assert_eq!(config.read(0x50, 2), 0xC0);
        assert_eq!((config.read(0x5C, 4), config.read(0xFC, 4), config.read(4, 2)), (0, 0, 0));
        assert_eq!(config.bars(), [None, None]);
        assert_eq!(config.msi(), None);
    }

    #[test]
    fn bars_size_with_decoding_on() {
        let mut config = space();
        config.write(4, 2, 2);
        config.write(0x10, 4, u32::MAX);
        assert_eq!(config.read(0x10, 4), 0xFF00_0004);
        config.write(0x14, 4, u32::MAX);
        assert_eq!(config.read(0x14, 4), u32::MAX);
        assert_eq!(config.bars()[0], None);
        config.write(0x18, 4, u32::MAX);
        assert_eq!(config.read(0x18, 4), 0xE000_000C);
        config.write(0x10, 4, 0xE000_0000);
        config.write(0x14, 4, 0);
        config.write(0x18, 4, 0);
        config.write(0x1C, 4, 2);
        assert_eq!(
            config.bars(),
            [
                Some(Bar { bar: 0, base: 0xE000_0000, size: 16 << 20 }),
                Some(Bar { bar: 2, base: 0x2_0000_0000, size: 512 << 20 })
            ]
        );
        // D3 stops decoding.
        config.write(0xD4, 2, 3);
        assert_eq!(config.bars(), [None, None]);
        config.write(0xD4, 1, 0);
        assert!(config.bars()[0].is_some());
    }

    #[test]
    fn read_only_bytes_stay() {
        let mut config = space();
        for offset in (0..256u16).step_by(4) {
            config.write(offset, 4, u32::MAX);
        }
        assert_eq!(config.read(0, 4), 0x5912_8086);
        assert_eq!(config.read(8, 4), 0x0300_0004);
        assert_eq!(config.read(0x34, 1), 0x40);
        assert_eq!(config.read(0x30, 4), 0);
        assert_eq!(config.read(0xAC, 4), 0x0081_D005);
    }

    #[test]
    fn msi_target() {
        let mut config = space();
        config.write(0xB0, 4, 0xFEE0_1000);
        config.write(0xB8, 2, 0x4041);
        config.write(0xAE, 2, 0x0071);
        assert_eq!(config.read(0xAE, 2), 0x0081);
        assert_eq!(config.msi(), None);
        config.write(4, 1, 6);
        assert_eq!(config.msi(), Some(MsiTarget { address: 0xFEE0_1000, data: 0x4041 }));
    }

    #[test]
    fn odd_accesses() {
        let mut config = space();
        assert_eq!(config.read(1, 2), u32::MAX);
        assert_eq!(config.read(0xFF, 1), 0);
        assert_eq!(config.read(0, 3), u32::MAX);
        assert_eq!(config.read(256, 4), u32::MAX);
        config.write(254, 4, 1);
        config.write(5, 1, 0xFF);
        assert_eq!(config.read(4, 2), 0x0400);
    }
}
