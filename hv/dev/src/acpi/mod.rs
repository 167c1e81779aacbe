//! The guest's ACPI tables (ACPI specification 6.5), made for the board that [`crate::Chipset`] is.

mod dsdt;
mod tables;

use alloc::vec::Vec;
use core::ops::Range;

use hv_defs::Gpa;

use crate::e820::{self, Layout};

/// Where the tables of a direct boot lie: in the firmware area, where a guest looks for the RSDP by itself.
pub const DIRECT_BOOT_BASE: Gpa = Gpa(0xE_0000);

/// 32 GiB: where the 64-bit PCI window begins, if RAM does not reach so far.
const HIGH_WINDOW: u64 = 0x8_0000_0000;
const HIGH_WINDOW_SIZE: u64 = 0x8_0000_0000;

/// What the tables describe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Number of vCPUs; their APIC IDs count from 0.
    pub vcpus: u32,
    /// The VM's RAM: the 64-bit PCI window begins above it.
    pub layout: Layout,
    /// Base of ECAM.
    pub ecam: u64,
}

impl Config {
    /// The 64-bit PCI window.
    pub fn high_window(&self) -> Range<u64> {
        let base = self.layout.top().next_multiple_of(1 << 30).max(HIGH_WINDOW);
        base..base + HIGH_WINDOW_SIZE
    }

    /// The 32-bit PCI window.
    pub fn low_window(&self) -> Range<u64> {
        e820::PCI_WINDOW
    }
}

/// The tables, ready to be copied into guest memory.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Where `bytes` belong.
    pub base: Gpa,
    /// All tables, back to back.
    pub bytes: Vec<u8>,
    /// Address of the RSDP, for boot_params or the PVH start info.
    pub rsdp: Gpa,
}

/// Builds the tables for a direct boot. With some thousand vCPUs they would outgrow the firmware area; a VM has fewer.
pub fn build(config: &Config) -> Tables {
    tables::build(config, DIRECT_BOOT_BASE)
}
