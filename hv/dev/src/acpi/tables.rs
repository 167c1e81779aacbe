//! The tables around the DSDT, and how they lie in memory.

use alloc::vec;
use alloc::vec::Vec;

use hv_defs::Gpa;

use super::{Config, Tables, dsdt};
use crate::chipset::{IRQ_SCI, PIN_TIMER, pm};

const OEM_ID: [u8; 6] = *b"PRISM ";
const OEM_TABLE_ID: [u8; 8] = *b"Q35-LITE";
const CREATOR: [u8; 4] = *b"PRSM";

pub(super) const HEADER: usize = 36;
/// Byte of a table, and of the RSDP, that makes its sum zero.
pub(super) const CHECKSUM: usize = 9;
pub(super) const RSDP_CHECKSUM: usize = 8;
pub(super) const RSDP_EXTENDED_CHECKSUM: usize = 32;
pub(super) const RSDP_OLD_LENGTH: usize = 20;

/// The firmware control structure wants this alignment; the others do not mind.
const ALIGN: usize = 64;

const LAPIC_ADDRESS: u32 = 0xFEE0_0000;
const IOAPIC_ADDRESS: u32 = 0xFEC0_0000;
const PM_BASE: u32 = pm::BASE as u32;

/// Builds all tables to lie at `base`.
pub(super) fn build(config: &Config, base: Gpa) -> Tables {
    let mut image = Image { base: base.0, bytes: Vec::new() };
    // The RSDP comes first, and is filled in when the XSDT has its place.
    let rsdp = image.add(&[0; HEADER]);
    let facs = image.add(&facs());
    let dsdt = image.add(&table(b"DSDT", 2, &dsdt::body(config)));
    let entries = [
        image.add(&fadt(facs, dsdt)),
        image.add(&madt(config)),
        image.add(&mcfg(config)),
        image.add(&table(b"WAET", 1, &3u32.to_le_bytes())),
    ];
    let xsdt = image.add(&table(b"XSDT", 1, entries.map(u64::to_le_bytes).as_flattened()));
    let rsdp_bytes = rsdp_bytes(xsdt);
    image.bytes.splice(..rsdp_bytes.len(), rsdp_bytes);
    Tables { base, bytes: image.bytes, rsdp: Gpa(rsdp) }
}

struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and yields its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        at
    }
}

/// Puts the common header (ACPI 6.5, 5.2.6) in front of a body.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(signature);
    bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(&[revision, 0]);
    bytes.extend_from_slice(&OEM_ID);
    bytes.extend_from_slice(&OEM_TABLE_ID);
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&CREATOR);
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(body);
    settle_checksum(&mut bytes, CHECKSUM);
    bytes
}

fn settle_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(at) {
        *checksum = checksum.wrapping_sub(sum);
    }
}

/// ACPI 6.5, 5.2.5.3. There is no RSDT: revision 2 does not need one.
fn rsdp_bytes(xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(b"RSD PTR \0");
    bytes.extend_from_slice(&OEM_ID);
    bytes.extend_from_slice(&[2, 0, 0, 0, 0]);
    bytes.extend_from_slice(&(HEADER as u32).to_le_bytes());
    bytes.extend_from_slice(&xsdt.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    if let Some(old) = bytes.get_mut(..RSDP_OLD_LENGTH) {
        settle_checksum(old, RSDP_CHECKSUM);
    }
    settle_checksum(&mut bytes, RSDP_EXTENDED_CHECKSUM);
    bytes
}

/// Firmware control structure (5.2.10): nobody wakes up here.
fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let fields = b"FACS\x40\0\0\0";
    bytes.splice(..fields.len(), fields.iter().copied());
    if let Some(version) = bytes.get_mut(32) {
        *version = 2;
    }
    bytes
}

/// A block of ports: where, how long, and how wide its accesses are (as the GAS encodes it: 1, 2, 3 for 8, 16, 32 bits).
struct Block {
    port: u32,
    bytes: u8,
    access: u8,
}

const PM1_EVENT: Block = Block { port: PM_BASE, bytes: 4, access: 2 };
const PM1_CONTROL: Block = Block { port: PM_BASE + 4, bytes: 2, access: 2 };
const PM_TIMER: Block = Block { port: PM_BASE + 8, bytes: 4, access: 3 };
const GPE0: Block = Block { port: PM_BASE + 0x20, bytes: 16, access: 1 };
const RESET: Block = Block { port: 0xCF9, bytes: 1, access: 1 };
const RESET_VALUE: u8 = 0x06;

/// WBINVD, PROC_C1, SLP_BUTTON (none in fixed hardware), RTC_S4, TMR_VAL_EXT, RESET_REG_SUP.
const FADT_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10;
/// Legacy devices; no VGA. No keyboard controller: with the bit clear and no PNP0303, Linux does not probe for one.
const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2;
const CENTURY: u8 = 0x32;
const FADT_LENGTH: usize = 276;

/// Fixed ACPI description table, revision 6 (5.2.9).
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut body = vec![0; FADT_LENGTH - HEADER];
    let mut put = |offset: usize, bytes: &[u8]| {
        let at = offset - HEADER;
        body.splice(at..at + bytes.len(), bytes.iter().copied());
    };
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &u16::from(IRQ_SCI).to_le_bytes());
    // 32-bit address, length, and the generic address of each block.
    for (block, address, length, extended) in
        [(PM1_EVENT, 56, 88, 148), (PM1_CONTROL, 64, 89, 172), (PM_TIMER, 76, 91, 208), (GPE0, 80, 92, 220)]
    {
        put(address, &block.port.to_le_bytes());
        put(length, &[block.bytes]);
        put(extended, &generic_address(&block));
    }
    // Latencies above the limits: no C2, no C3.
    put(96, &101u16.to_le_bytes());
    put(98, &1001u16.to_le_bytes());
    put(108, &[CENTURY]);
    put(109, &BOOT_ARCHITECTURE.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(116, &generic_address(&RESET));
    put(128, &[RESET_VALUE]);
    put(140, &dsdt.to_le_bytes());
    put(268, b"PRISM\0\0\0");
    table(b"FACP", 6, &body)
}

/// Generic address structure (5.2.3.2) in port space.
fn generic_address(block: &Block) -> [u8; 12] {
    let [a, b, c, d] = block.port.to_le_bytes();
    [1, block.bytes * 8, 0, block.access, a, b, c, d, 0, 0, 0, 0]
}

/// Multiple APIC description table (5.2.12).
fn madt(config: &Config) -> Vec<u8> {
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

/// PCI Express configuration space (PCI Firmware Specification 3.3, 4.1.2): segment 0, all buses.
fn mcfg(config: &Config) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend_from_slice(&config.ecam.to_le_bytes());
    body.extend_from_slice(&[0, 0, 0, 0xFF, 0, 0, 0, 0]);
    table(b"MCFG", 1, &body)
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
