//! What Prism takes from the firmware's ACPI tables: CPUs, I/O APICs, PCI configuration space, the PM timer, power-off.
//! The tables are firmware, and so trusted; odd ones are reported, not survived at any price.

use core::ptr::NonNull;

use acpi::address::AddressSpace;
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::mcfg::Mcfg;
use acpi::{AcpiError, AcpiHandler, AcpiTables, PhysicalMapping};
use arrayvec::ArrayVec;
use hv_defs::Hpa;
use thiserror::Error;

use crate::bootinfo::AcpiRoot;
use crate::paging;
use crate::percpu::MAX_CPUS;

/// Entries of a MADT that are looked at.
const MOST_ENTRIES: usize = 4096;
/// Bytes of a DSDT that are searched.
const MOST_DSDT: u32 = 4 << 20;

/// An I/O APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its registers.
    pub address: Hpa,
    /// The first of its global interrupts.
    pub gsi_base: u32,
}

/// Where an ISA interrupt really arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// The ISA line.
    pub irq: u8,
    /// The global interrupt.
    pub gsi: u32,
    /// Polarity and trigger mode as the MADT gives them.
    pub flags: u16,
}

/// Memory-mapped PCI configuration space of segment 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ecam {
    /// Where bus 0 would lie.
    pub base: Hpa,
    /// First bus that is there.
    pub first_bus: u8,
    /// Last bus that is there.
    pub last_bus: u8,
}

/// The power-management timer: 3.579545 MHz.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmTimer {
    /// Its I/O port.
    pub port: u16,
}

/// What Prism takes from the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// APIC IDs of the CPUs that can be started, in the firmware's order.
    pub cpus: ArrayVec<u32, MAX_CPUS>,
    /// The I/O APICs.
    pub io_apics: ArrayVec<IoApic, 8>,
    /// ISA interrupts that are routed differently.
    pub overrides: ArrayVec<Override, 16>,
    /// PCI configuration space, if mapped.
    pub ecam: Option<Ecam>,
    /// The PM timer, if there is one at a port.
    pub pm_timer: Option<PmTimer>,
    /// PM1a_CNT and the S5 value of SLP_TYP, for power-off.
    pub power_off: Option<(u16, u8)>,
}

/// Why the tables are of no use.
#[derive(Debug, Error)]
pub enum Error {
    /// No table, or none that parses.
    #[error("acpi: no usable tables ({0:?}); enable ACPI in the firmware")]
    Tables(AcpiError),
    /// They do not say which CPUs there are.
    #[error("acpi: no usable MADT ({0:?}); enable the APIC in the firmware")]
    NoMadt(AcpiError),
}

impl Facts {
    /// Reads the tables.
    ///
    /// # Errors
    /// `Error` when there are none, or no MADT.
    pub fn read(root: AcpiRoot) -> Result<Self, Error> {
        let tables = open(root).map_err(Error::Tables)?;
        let mut facts = Self::default();
        let madt = tables.find_table::<Madt>().map_err(Error::NoMadt)?;
        for entry in madt.get().entries().take(MOST_ENTRIES) {
            facts.add(&entry);
        }
        if let Ok(mcfg) = tables.find_table::<Mcfg>() {
            facts.ecam = mcfg.entries().iter().find(|entry| { entry.pci_segment_group } == 0).map(|entry| Ecam {
                base: Hpa(entry.base_address),
                first_bus: entry.bus_number_start,
                last_bus: entry.bus_number_end,
            });
        }
        if let Ok(fadt) = tables.find_table::<Fadt>() {
            facts.pm_timer = port(fadt.pm_timer_block().ok().flatten()).map(|port| PmTimer { port });
            facts.power_off = port(fadt.pm1a_control_block().ok()).map(|port| (port, s5(&tables)));
        }
        Ok(facts)
    }

    fn add(&mut self, entry: &MadtEntry<'_>) {
        // Bit 0 of the flags: enabled (ACPI 6.5, table 5.22). A CPU that is only "online capable" is not there yet.
        match entry {
            MadtEntry::LocalApic(cpu) if { cpu.flags } & 1 != 0 => self.add_cpu(u32::from(cpu.apic_id)),
            MadtEntry::LocalX2Apic(cpu) if { cpu.flags } & 1 != 0 => self.add_cpu(cpu.x2apic_id),
            MadtEntry::IoApic(io) => {
                let io =
                    IoApic { address: Hpa(u64::from(io.io_apic_address)), gsi_base: io.global_system_interrupt_base };
                let _more_than_used = self.io_apics.try_push(io);
            }
            MadtEntry::InterruptSourceOverride(line) => {
                let line = Override { irq: line.irq, gsi: line.global_system_interrupt, flags: line.flags };
                let _more_than_lines = self.overrides.try_push(line);
            }
            _ => {}
        }
    }

    fn add_cpu(&mut self, apic_id: u32) {
        if !self.cpus.contains(&apic_id) {
            let _stays_parked = self.cpus.try_push(apic_id);
        }
    }

    /// Where an ISA interrupt arrives: global interrupt and flags.
    pub fn isa_irq(&self, irq: u8) -> (u32, u16) {
        let found = self.overrides.iter().find(|line| line.irq == irq);
        found.map_or((u32::from(irq), 0), |line| (line.gsi, line.flags))
    }
}

fn open(root: AcpiRoot) -> Result<AcpiTables<Firmware>, AcpiError> {
    // SAFETY: 1. The addresses are the firmware's or the loader's, which are trusted to name tables. 2. `Firmware` maps
    // whatever they lead to, read-only.
    unsafe {
        match root {
            AcpiRoot::Search => AcpiTables::search_for_rsdp_bios(Firmware),
            AcpiRoot::Rsdp(address) => AcpiTables::from_rsdp(Firmware, address.0 as usize),
            AcpiRoot::Table { revision, address } => AcpiTables::from_rsdt(Firmware, revision, address.0 as usize),
        }
    }
}

fn port(address: Option<acpi::address::GenericAddress>) -> Option<u16> {
    let address = address.filter(|address| address.address_space == AddressSpace::SystemIo)?;
    u16::try_from(address.address).ok().filter(|&port| port != 0)
}

fn s5(tables: &AcpiTables<Firmware>) -> u8 {
    let Ok(dsdt) = tables.dsdt() else { return 0 };
    let len = dsdt.length.min(MOST_DSDT);
    let Ok(virt) = paging::map_firmware(Hpa(dsdt.address as u64), u64::from(len)) else {
        return 0;
    };
    let start = core::ptr::with_exposed_provenance::<u8>(virt as usize);
    // SAFETY: 1. The range has just been mapped, read-only and for good. 2. Firmware tables do not change.
    let aml = unsafe { core::slice::from_raw_parts(start, len as usize) };
    find_s5(aml).unwrap_or(0)
}

/// The first element of the package `\_S5_` (ACPI 6.5, 7.4.2 and 20.2): NameOp, the name, PackageOp, the package's
/// length (1 to 4 bytes), its count, and a ZeroOp, a OneOp or a byte constant.
fn find_s5(aml: &[u8]) -> Option<u8> {
    let at = aml.windows(5).position(|window| window == b"_S5_\x12")?;
    let after = aml.get(at + 5..)?;
    let length_bytes = 1 + usize::from(after.first()? >> 6);
    match after.get(length_bytes + 1..)? {
        [0, ..] => Some(0),
        [1, ..] => Some(1),
        [0x0A, value, ..] => Some(*value),
        _ => None,
    }
}

/// Maps tables for the `acpi` crate.
#[derive(Clone, Copy, Debug)]
struct Firmware;

/// What a table that cannot be mapped looks like: its signature is wrong.
static NOTHING: [u8; 4096] = [0; 4096];

impl AcpiHandler for Firmware {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let mapped = paging::map_firmware(Hpa(address as u64), size as u64).ok();
        let start = match mapped {
            Some(virt) => core::ptr::with_exposed_provenance_mut::<T>(virt as usize),
            None => {
                assert!(size <= NOTHING.len(), "acpi: a table of {size} bytes at {address:#x} cannot be mapped");
                NOTHING.as_ptr().cast::<T>().cast_mut()
            }
        };
        let start = NonNull::new(start).unwrap_or(NonNull::dangling());
        // SAFETY: 1. `size` bytes at `start` are mapped for good.
        unsafe { PhysicalMapping::new(address, start, size, size, *self) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_s5_value() {
        // As QEMU and Bochs write it: Name (_S5, Package (4) {0, 0, 0, 0}), and with byte constants.
        assert_eq!(find_s5(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"), Some(0));
        assert_eq!(find_s5(b"..\x08_S5_\x12\x0A\x04\x0A\x07\x0A\x07\x00\x00"), Some(7));
        assert_eq!(find_s5(b"\x08_S5_\x12\x46\x00\x04\x01\x00\x00\x00"), Some(1));
        assert_eq!(find_s5(b"\x08_S5_\x12"), None);
        assert_eq!(find_s5(b"\x08_S4_\x12\x06\x04\x00"), None);
    }

    #[test]
    fn isa_lines_follow_their_overrides() {
        let mut facts = Facts::default();
        facts.overrides.push(Override { irq: 0, gsi: 2, flags: 0 });
        assert_eq!(facts.isa_irq(0), (2, 0));
        assert_eq!(facts.isa_irq(4), (4, 0));
    }

    #[test]
    fn a_cpu_listed_twice_counts_once() {
        let mut facts = Facts::default();
        for apic_id in (0..200).chain(0..200) {
            facts.add_cpu(apic_id);
        }
        assert_eq!(facts.cpus.len(), MAX_CPUS);
        assert_eq!(facts.cpus.last(), Some(&63));
    }
}
