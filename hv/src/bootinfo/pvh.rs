//! PVH direct boot: `struct hvm_start_info` as the header `arch-x86/hvm/start_info.h` of Xen's public interface
//! lays it out.

use hv_defs::Hpa;

use super::{AcpiRoot, BootError, BootInfo, MAGIC_PVH, c_string};
use crate::phys::Window;

/// Offsets in the start information.
const AT_MAGIC: u64 = 0;
const AT_VERSION: u64 = 4;
const AT_NR_MODULES: u64 = 12;
const AT_MODLIST: u64 = 16;
const AT_CMDLINE: u64 = 24;
const AT_RSDP: u64 = 32;
const AT_MEMMAP: u64 = 40;
const AT_MEMMAP_ENTRIES: u64 = 48;

const MODULE_BYTES: u64 = 32;
const ENTRY_BYTES: u64 = 24;
/// Entries looked at; a map has a few dozen.
const MOST_ENTRIES: u32 = 4096;

pub(super) fn parse(info: Hpa, memory: Window) -> Result<BootInfo, BootError> {
    const BAD: BootError = BootError::Malformed("start information");
    let at = |offset: u64| info.0.checked_add(offset).ok_or(BAD);
    let word = |offset: u64| at(offset).and_then(|at| memory.read_u32(at).ok_or(BAD));
    let long = |offset: u64| at(offset).and_then(|at| memory.read_u64(at).ok_or(BAD));
    if word(AT_MAGIC)? != MAGIC_PVH {
        return Err(BAD);
    }
    // Version 0 has no memory map.
    if word(AT_VERSION)? == 0 {
        return Err(BootError::NoMemoryMap);
    }
    let mut found = BootInfo::new("PVH");
    memory_map(&mut found, memory, long(AT_MEMMAP)?, word(AT_MEMMAP_ENTRIES)?)?;
    modules(&mut found, memory, long(AT_MODLIST)?, word(AT_NR_MODULES)?)?;
    match long(AT_CMDLINE)? {
        0 => {}
        text => found.command_line = c_string(memory, text),
    }
    match long(AT_RSDP)? {
        0 => {}
        rsdp => found.acpi = AcpiRoot::Rsdp(Hpa(rsdp)),
    }
    Ok(found)
}

fn memory_map(found: &mut BootInfo, memory: Window, start: u64, count: u32) -> Result<(), BootError> {
    const BAD: BootError = BootError::Malformed("memory map");
    if count > MOST_ENTRIES {
        return Err(BAD);
    }
    for index in 0..u64::from(count) {
        let at = start.checked_add(index * ENTRY_BYTES).ok_or(BAD)?;
        let (base, len) = (memory.read_u64(at).ok_or(BAD)?, memory.read_u64(at + 8).ok_or(BAD)?);
        found.add_region(base, len, memory.read_u32(at + 16).ok_or(BAD)?);
    }
    Ok(())
}

fn modules(found: &mut BootInfo, memory: Window, start: u64, count: u32) -> Result<(), BootError> {
    const BAD: BootError = BootError::Malformed("module list");
    for index in 0..u64::from(count) {
        let at = start.checked_add(index * MODULE_BYTES).ok_or(BAD)?;
        let (base, len) = (memory.read_u64(at).ok_or(BAD)?, memory.read_u64(at + 8).ok_or(BAD)?);
        found.add_module(base, len)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{memory, put_words};
    use super::*;

    fn filled() -> Window {
        let memory = memory();
        let info = [MAGIC_PVH, 1, 0, 1, 0x3000, 0, 0x2000, 0, 0xF_5AE0, 0, 0x4000, 0, 1, 0];
        put_words(memory, 0x1000, &info);
        memory.write(0x2000, b"selftest\0").unwrap();
        put_words(memory, 0x3000, &[0x20_0000, 0, 0x800, 0, 0, 0, 0, 0]);
        put_words(memory, 0x4000, &[0x10_0000, 0, 0x700_0000, 0, 1, 0]);
        memory
    }

    #[test]
    fn reads_all_that_prism_uses() {
        let info = parse(Hpa(0x1000), filled()).unwrap();
        assert_eq!(info.command_line.as_str(), "selftest");
        assert_eq!((info.modules[0].start, info.modules[0].len), (Hpa(0x20_0000), 0x800));
        assert_eq!(info.memory[0].end, Hpa(0x710_0000));
        assert_eq!(info.acpi, AcpiRoot::Rsdp(Hpa(0xF_5AE0)));
    }

    #[test]
    fn refuses_what_does_not_parse() {
        let cases: [(u64, u32, BootError); 5] = [
            (0, 7, BootError::Malformed("start information")),
            (4, 0, BootError::NoMemoryMap),
            (12, u32::MAX, BootError::Malformed("module list (more than 8 modules)")),
            (44, u32::MAX, BootError::Malformed("memory map")),
            (48, u32::MAX, BootError::Malformed("memory map")),
        ];
        for (at, value, error) in cases {
            let memory = filled();
            put_words(memory, 0x1000 + at, &[value]);
            assert_eq!(parse(Hpa(0x1000), memory), Err(error), "offset {at}");
        }
    }
}
