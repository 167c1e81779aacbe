//! PCI configuration space: 256 bytes with a mask of writable bits.

use gvt_defs::pci;
use gvt_defs::reg::GTTMMADR_SIZE;

use crate::profile::Profile;

/// Width of a configuration access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
}

impl Width {
    /// The width of so many bytes.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }
}

/// The interrupt message that software programmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Where to write.
    pub address: u64,
    /// What to write.
    pub data: u32,
}

/// Bytes of BAR4.
pub(crate) const IO_SIZE: u64 = 64;

const MSI_CONTROL: usize = pci::CAP_MSI as usize + 2;
const MSI_ADDRESS: usize = pci::CAP_MSI as usize + 4;
const MSI_DATA: usize = pci::CAP_MSI as usize + 8;
const PM_CONTROL: usize = pci::CAP_PM as usize + 4;

pub(crate) struct Config {
    bytes: [u8; 256],
    writable: [u8; 256],
}

impl Config {
    pub fn new(profile: &Profile) -> Self {
        let mut config = Self { bytes: [0; 256], writable: [0; 256] };
        config.identity(profile);
        config.bars(profile);
        config.capabilities();
        config
    }

    fn set(&mut self, offset: usize, value: u32, writable: u32, len: usize) {
        let value = value.to_le_bytes();
        let writable = writable.to_le_bytes();
        for i in 0..len {
            if let (Some(b), Some(w)) = (self.bytes.get_mut(offset + i), self.writable.get_mut(offset + i)) {
                (*b, *w) = (value[i], writable[i]);
            }
        }
    }

    fn identity(&mut self, profile: &Profile) {
        self.set(0x00, u32::from(profile.device) << 16 | u32::from(pci::VENDOR_INTEL), 0, 4);
        let enables = pci::COMMAND_MEMORY | pci::COMMAND_BUS_MASTER | pci::COMMAND_INTX_DISABLE | 1;
        // Status: capability list.
        self.set(0x04, 0x0010_0000, u32::from(enables), 4);
        self.set(0x08, profile.class << 8 | u32::from(profile.revision), 0, 4);
        self.set(0x0C, 0, 0xFF, 4);
        self.set(0x2C, 0x2212_8086, 0, 4);
        self.set(0x34, u32::from(pci::CAP_MSI), 0, 1);
        // Interrupt line is scratch, pin A.
        self.set(0x3C, 0x0100, 0x00FF, 4);
        self.set(usize::from(pci::GMCH_CTRL), u32::from(pci::GGMS_8_MIB), 0, 2);
        self.set(usize::from(pci::SWSCI), 0, 0xFFFF, 2);
        self.set(usize::from(pci::ASLS), 0, 0xFFFF_FFFF, 4);
    }

    fn bars(&mut self, profile: &Profile) {
        let size_mask = |size: u64| !(size - 1);
        let bar0 = size_mask(GTTMMADR_SIZE);
        self.set(usize::from(pci::BAR0), 0x4, bar0 as u32 & !0xF, 4);
        self.set(usize::from(pci::BAR0) + 4, 0, (bar0 >> 32) as u32, 4);
        let bar2 = size_mask(profile.aperture);
        self.set(usize::from(pci::BAR2), 0xC, bar2 as u32 & !0xF, 4);
        self.set(usize::from(pci::BAR2) + 4, 0, (bar2 >> 32) as u32, 4);
        self.set(usize::from(pci::BAR4), 0x1, size_mask(IO_SIZE) as u32 & !0x3, 4);
    }

    /// MSI (one vector, 32-bit address), then power management.
    fn capabilities(&mut self) {
        self.set(usize::from(pci::CAP_MSI), u32::from(pci::CAP_PM) << 8 | 0x05, 0x0001_0000, 4);
        self.set(MSI_ADDRESS, 0, 0xFFFF_FFFC, 4);
        self.set(MSI_DATA, 0, 0xFFFF, 4);
        self.set(usize::from(pci::CAP_PM), 0x0002_0001, 0, 4);
        self.set(PM_CONTROL, 0, 0x3, 4);
    }

    pub fn read(&self, offset: u16, width: Width) -> u32 {
        let mut value = [0; 4];
        for (i, byte) in value.iter_mut().enumerate().take(width.bytes()) {
            // Beyond the conventional space nobody answers.
            *byte = self.bytes.get(usize::from(offset) + i).copied().unwrap_or(0xFF);
        }
        u32::from_le_bytes(value)
    }

    pub fn write(&mut self, offset: u16, width: Width, value: u32) {
        for (i, new) in value.to_le_bytes().into_iter().enumerate().take(width.bytes()) {
            let at = usize::from(offset) + i;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    fn dword(&self, offset: usize) -> u32 {
        self.read(offset as u16, Width::Dword)
    }

    pub fn msi(&self) -> Option<Msi> {
        (self.dword(MSI_CONTROL) & 1 != 0)
            .then(|| Msi { address: u64::from(self.dword(MSI_ADDRESS)), data: self.dword(MSI_DATA) & 0xFFFF })
    }

    pub fn intx_disabled(&self) -> bool {
        self.dword(usize::from(pci::COMMAND)) as u16 & pci::COMMAND_INTX_DISABLE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_size_and_keep_their_type_bits() {
        let mut c = Config::new(&Profile::default());
        for (bar, low) in [(0x10, 0xFF00_0004), (0x18, 0xE000_000C), (0x20, 0xFFFF_FFC1)] {
            c.write(bar, Width::Dword, 0xFFFF_FFFF);
            assert_eq!(c.read(bar, Width::Dword), low);
        }
        c.write(0x14, Width::Dword, 0xFFFF_FFFF);
        assert_eq!(c.read(0x14, Width::Dword), 0xFFFF_FFFF);
    }

    #[test]
    fn identity_and_limits() {
        let mut c = Config::new(&Profile::default());
        assert_eq!(c.read(0, Width::Dword), 0x5912_8086);
        c.write(0, Width::Dword, 0);
        assert_eq!(c.read(2, Width::Word), 0x5912);
        assert_eq!(c.read(0x50, Width::Word), 0xC0);
        assert_eq!(c.read(0x100, Width::Dword), 0xFFFF_FFFF);
        assert_eq!(c.read(0xFF, Width::Word), 0xFF00);
    }

    #[test]
    fn msi_is_told_when_enabled() {
        let mut c = Config::new(&Profile::default());
        assert_eq!(c.read(0x34, Width::Byte), 0xAC);
        c.write(0xB0, Width::Dword, 0xFEE0_1004);
        c.write(0xB4, Width::Word, 0x41);
        assert_eq!(c.msi(), None);
        c.write(0xAE, Width::Word, 1);
        assert_eq!(c.msi(), Some(Msi { address: 0xFEE0_1004, data: 0x41 }));
    }
}
