//! The tables as firmware loads them: two files and a script of relocations for it to carry out.
//! Facts: QEMU, hw/acpi/bios-linker-loader.c; edk2, OvmfPkg/AcpiPlatformDxe/QemuLoader.h.

use alloc::vec::Vec;

use hv_defs::Gpa;

use super::tables::{self, CHECKSUM, FADT_POINTERS, HEADER, RSDP_CHECKSUM, RSDP_EXTENDED_CHECKSUM, RSDP_OLD_LENGTH};
use super::{Config, Tables};

/// Name of the file with the RSDP.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// Name of the file with all other tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// Name of the script's file.
pub const SCRIPT_FILE: &str = "etc/table-loader";

const COMMAND: usize = 128;
const FILE_NAME: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

/// Where in the RSDP the address of the XSDT lies.
const RSDP_XSDT: usize = 24;

/// Contents of the three files.
#[derive(Clone, Debug)]
pub struct Files {
    /// For [`RSDP_FILE`].
    pub rsdp: Vec<u8>,
    /// For [`TABLES_FILE`].
    pub tables: Vec<u8>,
    /// For [`SCRIPT_FILE`].
    pub script: Vec<u8>,
}

/// Builds the files.
pub(super) fn files(config: &Config) -> Files {
    // Built to lie at 0, so that every address is an offset in the file.
    let Tables { mut bytes, .. } = tables::build(config, Gpa(0));
    let mut rsdp = bytes.get(..HEADER).map(<[u8]>::to_vec).unwrap_or_default();
    let xsdt = read(&bytes, RSDP_XSDT, 8);
    let xsdt_length = read(&bytes, xsdt + 4, 4);
    let fadt = read(&bytes, xsdt + HEADER, 8);
    let fadt_length = read(&bytes, fadt + 4, 4);

    let mut script = Script::default();
    script.allocate(RSDP_FILE, 16, ZONE_FSEG);
    script.allocate(TABLES_FILE, 64, ZONE_HIGH);
    script.pointer(RSDP_FILE, RSDP_XSDT, 8);
    (HEADER..xsdt_length).step_by(8).for_each(|entry| script.pointer(TABLES_FILE, xsdt + entry, 8));
    FADT_POINTERS.into_iter().for_each(|(offset, size)| script.pointer(TABLES_FILE, fadt + offset, size));
    script.checksum(TABLES_FILE, &mut bytes, xsdt, xsdt_length, CHECKSUM);
    script.checksum(TABLES_FILE, &mut bytes, fadt, fadt_length, CHECKSUM);
    script.checksum(RSDP_FILE, &mut rsdp, 0, RSDP_OLD_LENGTH, RSDP_CHECKSUM);
    script.checksum(RSDP_FILE, &mut rsdp, 0, HEADER, RSDP_EXTENDED_CHECKSUM);
    Files { rsdp, tables: bytes, script: script.0 }
}

fn read(bytes: &[u8], at: usize, size: usize) -> usize {
    let bytes = bytes.get(at..at + size).unwrap_or(&[]);
    bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.command(ALLOCATE, &[file], &[&align.to_le_bytes(), &[zone]]);
    }

    /// The field at `offset` of `file` holds an offset in the tables' file and must become an address.
    fn pointer(&mut self, file: &str, offset: usize, size: u8) {
        self.command(ADD_POINTER, &[file, TABLES_FILE], &[&(offset as u32).to_le_bytes(), &[size]]);
    }

    /// The byte at `at` of a table makes its sum zero once the pointers are right; until then it is zero.
    fn checksum(&mut self, file: &str, bytes: &mut [u8], start: usize, length: usize, at: usize) {
        if let Some(byte) = bytes.get_mut(start + at) {
            *byte = 0;
        }
        let fields = [start + at, start, length].map(|field| (field as u32).to_le_bytes());
        self.command(ADD_CHECKSUM, &[file], &[fields.as_flattened()]);
    }

    fn command(&mut self, command: u32, names: &[&str], fields: &[&[u8]]) {
        let end = self.0.len() + COMMAND;
        self.0.extend_from_slice(&command.to_le_bytes());
        for name in names {
            let next = self.0.len() + FILE_NAME;
            self.0.extend_from_slice(name.as_bytes());
            self.0.resize(next, 0);
        }
        fields.iter().for_each(|field| self.0.extend_from_slice(field));
        self.0.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e820::{ECAM, Layout};

    /// Carries out a script as firmware does, with the RSDP at `rsdp_at` and the tables at `tables_at`.
    fn load(files: &mut Files, rsdp_at: u64, tables_at: u64) {
        let name = |command: &[u8], at: usize| {
            let name = &command[at..at + FILE_NAME];
            String::from_utf8(name.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap()
        };
        let address = |name: &str| {
            if name == RSDP_FILE { rsdp_at } else { tables_at }
        };
        for command in files.script.clone().chunks(COMMAND) {
            let file = name(command, 4);
            let bytes = if file == RSDP_FILE { &mut files.rsdp } else { &mut files.tables };
            match read(command, 0, 4) as u32 {
                ALLOCATE => assert_eq!(address(&file) % read(command, 60, 4) as u64, 0),
                ADD_POINTER => {
                    let (at, size) = (read(command, 116, 4), usize::from(command[120]));
                    let value = read(bytes, at, size) as u64 + address(&name(command, 60));
                    bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let [at, start, length] = [60, 64, 68].map(|field| read(command, field, 4));
                    let sum = bytes[start..start + length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[at] = 0u8.wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
    }

    #[test]
    fn the_script_makes_the_tables_of_a_direct_boot() {
        let config = Config { vcpus: 3, layout: Layout::new(1 << 30), ecam: ECAM };
        let mut files = files(&config);
        assert_eq!(files.script.len() % COMMAND, 0);
        let base = 0x7FBF_C000;
        load(&mut files, 0xF_5000, base);
        let direct = tables::build(&config, Gpa(base));
        assert_eq!(files.rsdp, direct.bytes[..HEADER]);
        assert_eq!(files.tables[64..], direct.bytes[64..]);
    }
}
