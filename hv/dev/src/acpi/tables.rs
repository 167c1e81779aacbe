//! The tables around the DSDT, and how they lie in memory.

use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use hv_defs::Gpa;

use super::{Config, Tables, dsdt};
use crate::chipset::{IRQ_SCI, PIN_TIMER, pm};

const OEM_ID: [u8; 6] = *b"PRISM ";
const OEM_TABLE_ID: [u8; 8] = *b"Q35-LITE";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER: usize = 36;

/// The firmware control structure wants this alignment; the others do not mind.
const ALIGN: usize = 64;

const LAPIC_ADDRESS: u32 = 0xFEE0_0000;
const IOAPIC_ADDRESS: u32 = 0xFEC0_0000;

/// Builds all tables to lie at `base`.
pub(super) fn build(config: &Config, base: Gpa) -> Tables {
    let mut image = Image { base: base.0, bytes: Vec::new() };
    // The RSDP comes first, and is filled in when the XSDT has its place.
    let rsdp = image.add(&Rsdp::new(OEM_ID, 0));
    let facs = image.add(&FACS::new());
    let dsdt = image.add(&table(b"DSDT", 2, &dsdt::body(config)));
    // PCI Express configuration space: segment 0, all buses.
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(config.ecam, 0, 0, 0xFF);
    let entries = [
        image.add(&fadt(facs, dsdt)),
        image.add(&madt(config)),
        image.add(&mcfg),
        image.add(&table(b"WAET", 1, &3u32.to_le_bytes())),
    ];
    let xsdt = image.add(&table(b"XSDT", 1, entries.map(u64::to_le_bytes).as_flattened()));
    let mut bytes = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut bytes);
    image.bytes.splice(..bytes.len(), bytes);
    Tables { base, bytes: image.bytes, rsdp: Gpa(rsdp) }
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and yields its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let at = self.base + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        at
    }
}

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(*signature, HEADER as u32, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

/// Fixed ACPI description table, revision 6 (5.2.9). No keyboard controller: with its bit clear and no PNP0303, Linux
/// does not probe for one.
fn fadt(facs: u64, dsdt: u64) -> FADT {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const NO_VGA: u16 = 1 << 2;
    let block = |port: u16, bytes: u8, access| GAS::new(AddressSpace::SystemIo, 8 * bytes, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    (fadt.firmware_ctrl, fadt.dsdt, fadt.x_dsdt) = ((facs as u32).into(), (dsdt as u32).into(), dsdt.into());
    fadt.sci_int = u16::from(IRQ_SCI).into();
    // 32-bit address, length, and the generic address of each block.
    (fadt.pm1a_evt_blk, fadt.pm1_evt_len) = (u32::from(pm::BASE).into(), 4);
    (fadt.pm1a_cnt_blk, fadt.pm1_cnt_len) = (u32::from(pm::BASE + 4).into(), 2);
    (fadt.pm_tmr_blk, fadt.pm_tmr_len) = (u32::from(pm::BASE + 8).into(), 4);
    (fadt.gpe0_blk, fadt.gpe0_blk_len) = (u32::from(pm::BASE + 0x20).into(), 16);
    fadt.x_pm1a_evt_blk = block(pm::BASE, 4, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = block(pm::BASE + 4, 2, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = block(pm::BASE + 8, 4, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = block(pm::BASE + 0x20, 16, AccessSize::ByteAccess);
    // Latencies above the limits: no C2, no C3.
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (101.into(), 1001.into());
    fadt.century = 0x32;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    (fadt.reset_reg, fadt.reset_value) = (block(0xCF9, 1, AccessSize::ByteAccess), 0x06);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"PRISM\0\0\0").into();
    // No sleep button in fixed hardware.
    let flags = [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::RtcS4, Flags::TmrValExt, Flags::ResetRegSup];
    flags.into_iter().fold(fadt, FADTBuilder::flag).finalize()
}

/// Multiple APIC description table (5.2.12).
fn madt(config: &Config) -> Sdt {
    let mut body = Vec::new();
    body.extend_from_slice(&LAPIC_ADDRESS.to_le_bytes());
    // PCAT_COMPAT: the 8259 pair is there.
    body.extend_from_slice(&1u32.to_le_bytes());
    for id in 0..config.vcpus {
        match u8::try_from(id) {
            Ok(id) if id < 0xFF => body.extend_from_slice(&[0, 8, id, id, 1, 0, 0, 0]),
            _ => {
                body.extend_from_slice(&[9, 16, 0, 0]);
                for field in [id, 1, id] {
                    body.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
    }
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&IOAPIC_ADDRESS.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    // Overrides: the timer is on another pin; the SCI is level-triggered, active high.
    body.extend_from_slice(&[2, 10, 0, 0, PIN_TIMER, 0, 0, 0, 0, 0]);
    body.extend_from_slice(&[2, 10, 0, IRQ_SCI, IRQ_SCI, 0, 0, 0, 0x0D, 0]);
    // LINT1 of every processor is NMI.
    body.extend_from_slice(&[4, 6, 0xFF, 0, 0, 1]);
    table(b"APIC", 5, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::{ECAM, Layout};

    fn tables(vcpus: u32) -> Tables {
        super::super::build(&Config { vcpus, layout: Layout::new(5 << 30), ecam: ECAM })
    }

    impl Tables {
        fn at(&self, address: u64) -> &[u8] {
            &self.bytes[(address - self.base.0) as usize..]
        }

        fn table(&self, address: u64) -> &[u8] {
            let bytes = self.at(address);
            &bytes[..u32_at(bytes, 4) as usize]
        }

        /// The tables that the XSDT names, by signature.
        fn named(&self, signature: &[u8; 4]) -> &[u8] {
            let xsdt = self.table(u64_at(self.at(self.rsdp.0), 24));
            assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
            let addresses = (HEADER..xsdt.len()).step_by(8).map(|at| u64_at(xsdt, at));
            addresses.map(|address| self.table(address)).find(|table| &table[..4] == signature).unwrap()
        }
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_checksum_is_right() {
        let tables = tables(4);
        let rsdp = &tables.at(tables.rsdp.0)[..36];
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        for signature in [b"FACP", b"APIC", b"MCFG", b"WAET"] {
            assert_eq!(sum(tables.named(signature)), 0);
        }
        let fadt = tables.named(b"FACP");
        assert_eq!(fadt.len(), 276);
        let dsdt = tables.table(u64_at(fadt, 140));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
        let facs = u64::from(u32_at(fadt, 36));
        assert_eq!((&tables.table(facs)[..4], facs % 64), (&b"FACS"[..], 0));
    }

    #[test]
    fn the_fadt_names_the_ports_that_the_chipset_has() {
        let tables = tables(1);
        let fadt = tables.named(b"FACP");
        assert_eq!([56, 64, 76, 80].map(|at| u32_at(fadt, at)), [0x600, 0x604, 0x608, 0x620]);
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[220..232], [1, 128, 0, 1, 0x20, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(u32_at(fadt, 48), 0, "no SMI command port");
    }

    #[test]
    fn the_madt_names_every_processor() {
        let tables = tables(300);
        let madt = tables.named(b"APIC");
        let (mut at, mut ids) = (44, vec![]);
        while at < madt.len() {
            match madt[at] {
                0 => ids.push(u32::from(madt[at + 3])),
                9 => ids.push(u32_at(madt, at + 4)),
                _ => {}
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
        assert!(tables.bytes.len() < 0x2_0000, "fits in the firmware area");
    }
}
