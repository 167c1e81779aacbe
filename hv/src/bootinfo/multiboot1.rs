//! Multiboot Specification 0.6.96, section 3.3: boot information format.

use hv_defs::Hpa;

use super::{BootError, BootInfo, c_string};
use crate::phys::Window;

/// Bits of `flags`.
const CMDLINE: u32 = 1 << 2;
const MODS: u32 = 1 << 3;
const MMAP: u32 = 1 << 6;

/// Offsets in the information structure.
const AT_FLAGS: u64 = 0;
const AT_CMDLINE: u64 = 16;
const AT_MODS_COUNT: u64 = 20;
const AT_MODS_ADDR: u64 = 24;
const AT_MMAP_LENGTH: u64 = 44;
const AT_MMAP_ADDR: u64 = 48;

const MODULE_BYTES: u64 = 16;
/// Bytes of a map entry that `size` must cover: base, length, type.
const ENTRY_BYTES: u32 = 20;
/// Entries looked at in all; a loader's map has a few dozen.
const MOST_ENTRIES: u32 = 4096;

pub(super) fn parse(info: Hpa, memory: Window) -> Result<BootInfo, BootError> {
    let word =
        |at: u64| info.0.checked_add(at).and_then(|at| word_at(memory, at)).ok_or(BootError::Malformed("information"));
    let mut found = BootInfo::new("multiboot1");
    let flags = word(AT_FLAGS)?;
    if flags & MMAP == 0 {
        return Err(BootError::NoMemoryMap);
    }
    memory_map(&mut found, memory, word(AT_MMAP_ADDR)?, word(AT_MMAP_LENGTH)?)?;
    if flags & CMDLINE != 0 {
        found.command_line = c_string(memory, u64::from(word(AT_CMDLINE)?));
    }
    if flags & MODS != 0 {
        modules(&mut found, memory, word(AT_MODS_ADDR)?, word(AT_MODS_COUNT)?)?;
    }
    Ok(found)
}

fn memory_map(found: &mut BootInfo, memory: Window, start: u32, len: u32) -> Result<(), BootError> {
    const BAD: BootError = BootError::Malformed("memory map");
    let end = u64::from(start) + u64::from(len);
    let mut at = u64::from(start);
    for _ in 0..MOST_ENTRIES {
        if at + 4 + u64::from(ENTRY_BYTES) > end {
            return Ok(());
        }
        let size = word_at(memory, at).filter(|&size| size >= ENTRY_BYTES).ok_or(BAD)?;
        let mut entry = [0; ENTRY_BYTES as usize];
        memory.read(at + 4, &mut entry).map_err(|_| BAD)?;
        let [base, length] = [0, 8].map(|offset| {
            entry.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes))
        });
        let kind = entry.last_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        found.add_region(base, length, kind);
        at += 4 + u64::from(size);
    }
    Err(BAD)
}

fn modules(found: &mut BootInfo, memory: Window, start: u32, count: u32) -> Result<(), BootError> {
    const BAD: BootError = BootError::Malformed("module list");
    for index in 0..u64::from(count) {
        let at = u64::from(start) + index * MODULE_BYTES;
        let word = |offset: u64| word_at(memory, at + offset).map(u64::from).ok_or(BAD);
        let (first, end) = (word(0)?, word(4)?);
        let len = end.checked_sub(first).ok_or(BAD)?;
        found.add_module(first, len)?;
    }
    Ok(())
}

/// A dword at any address: the specification promises no alignment.
fn word_at(memory: Window, at: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read(at, &mut bytes).ok().map(|()| u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{memory, put_words};
    use super::super::{AcpiRoot, RegionKind};
    use super::*;

    fn filled(count: u32) -> Window {
        let memory = memory();
        let mut words = [0; 16];
        words[0] = CMDLINE | MODS | MMAP;
        words[4] = 0x2000;
        words[5] = count;
        words[6] = 0x3000;
        words[11] = 48;
        words[12] = 0x4000;
        put_words(memory, 0x1000, &words);
        memory.write(0x2000, b"prism-hv selftest\0").unwrap();
        put_words(memory, 0x3000, &[0x10_0000, 0x10_0123, 0x2100, 0]);
        memory.write(0x2100, b"bundle.cpio\0").unwrap();
        put_words(memory, 0x4000, &[20, 0, 0, 0x9_F000, 0, 1]);
        put_words(memory, 0x4018, &[20, 0x10_0000, 1, 0x4000_0000, 0, 1]);
        memory
    }

    #[test]
    fn reads_all_that_prism_uses() {
        let info = parse(Hpa(0x1000), filled(1)).unwrap();
        assert_eq!(info.command_line.as_str(), "prism-hv selftest");
        assert_eq!(info.modules[0].start, Hpa(0x10_0000));
        assert_eq!(info.modules[0].len, 0x123);
        assert_eq!(info.memory.len(), 2);
        assert_eq!((info.memory[1].start, info.memory[1].end), (Hpa(0x1_0010_0000), Hpa(0x1_4010_0000)));
        assert_eq!(info.memory[1].kind, RegionKind::Usable);
        assert_eq!(info.acpi, AcpiRoot::Search);
    }

    #[test]
    fn refuses_what_does_not_parse() {
        let memory = filled(1);
        put_words(memory, 0x4000, &[4]);
        assert_eq!(parse(Hpa(0x1000), memory), Err(BootError::Malformed("memory map")));
        let memory = filled(1);
        put_words(memory, 0x3000, &[5, 4]);
        assert_eq!(parse(Hpa(0x1000), memory), Err(BootError::Malformed("module list")));
        let memory = filled(1);
        put_words(memory, 0x1000, &[MODS]);
        assert_eq!(parse(Hpa(0x1000), memory), Err(BootError::NoMemoryMap));
        assert_eq!(parse(Hpa(u64::MAX), filled(1)), Err(BootError::Malformed("information")));
    }

    #[test]
    fn a_huge_module_count_ends() {
        assert!(matches!(parse(Hpa(0x1000), filled(u32::MAX)), Err(BootError::Malformed(_))));
    }
}
