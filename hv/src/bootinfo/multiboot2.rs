//! Multiboot2, by the `multiboot2` crate. The loader is trusted to write a well-formed structure; the checks here
//! keep the crate's own assertions from firing on an odd one.

use hv_defs::Hpa;
use multiboot2::{BootInformation, BootInformationHeader, MemoryMapTag, ModuleTag, TagType};

use super::{AcpiRoot, BootError, BootInfo};
use crate::console::clip;
use crate::phys::{self, Window};

/// Most that a loader's information may measure; GRUB's is a few KiB.
const MOST_BYTES: u32 = 1 << 20;
/// Bytes of a memory map entry.
const AREA_BYTES: u32 = 24;

pub(super) fn parse(info: Hpa, memory: Window) -> Result<BootInfo, BootError> {
    const BAD: BootError = BootError::Malformed("information");
    let total = memory.read_u32(info.0).filter(|&total| total <= MOST_BYTES).ok_or(BAD)?;
    memory.part(info.0, u64::from(total)).ok_or(BAD)?;
    // SAFETY: 1. The range, bounded above, is mapped. 2. Nothing writes to it while `loaded` lives: the other CPUs
    // are not started, and this function only reads.
    let loaded = unsafe { BootInformation::load(phys::pointer(info).cast::<BootInformationHeader>()) };
    let loaded = loaded.map_err(|_| BAD)?;
    check_shapes(&loaded)?;

    let mut found = BootInfo::new("multiboot2");
    let map = loaded.memory_map_tag().ok_or(BootError::NoMemoryMap)?;
    for area in map.memory_areas() {
        let len = area.end_address().wrapping_sub(area.start_address());
        found.add_region(area.start_address(), len, u32::from(area.typ()));
    }
    for module in loaded.module_tags() {
        add_module(&mut found, module)?;
    }
    if let Some(text) = loaded.command_line_tag().and_then(|tag| tag.cmdline().ok()) {
        found.command_line = clip(text.chars());
    }
    found.acpi = acpi_root(&loaded);
    Ok(found)
}

/// The crate asserts on the sizes of the tags that it casts; refuse such tags first.
fn check_shapes(loaded: &BootInformation<'_>) -> Result<(), BootError> {
    for tag in loaded.tags() {
        let header = tag.header();
        let fits = match TagType::from(header.typ) {
            TagType::Mmap => header.size >= 16 && (header.size - 16).is_multiple_of(AREA_BYTES),
            TagType::Module => header.size > 16,
            TagType::Cmdline => header.size > 8,
            TagType::AcpiV1 => header.size >= 28,
            TagType::AcpiV2 => header.size >= 44,
            _ => true,
        };
        if !fits {
            return Err(BootError::Malformed("information"));
        }
    }
    let entries_fit = |map: &MemoryMapTag| map.entry_size() == AREA_BYTES;
    if loaded.memory_map_tag().is_some_and(|map| !entries_fit(map)) {
        return Err(BootError::Malformed("memory map"));
    }
    Ok(())
}

fn add_module(found: &mut BootInfo, module: &ModuleTag) -> Result<(), BootError> {
    let (start, end) = (u64::from(module.start_address()), u64::from(module.end_address()));
    let len = end.checked_sub(start).ok_or(BootError::Malformed("module list"))?;
    found.add_module(start, len)
}

/// The loader passes a copy of the RSDP inside the information, so take the table's address from it.
fn acpi_root(loaded: &BootInformation<'_>) -> AcpiRoot {
    if let Some(tag) = loaded.rsdp_v2_tag() {
        AcpiRoot::Table { revision: tag.revision(), address: Hpa(tag.xsdt_address() as u64) }
    } else if let Some(tag) = loaded.rsdp_v1_tag() {
        AcpiRoot::Table { revision: 0, address: Hpa(tag.rsdt_address() as u64) }
    } else {
        AcpiRoot::Search
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{memory, put_words};
    use super::*;

    /// Writes tags (type, words after the header) at 0x1000, each padded to 8 bytes.
    fn filled(tags: &[(u32, &[u32])]) -> Window {
        let memory = memory();
        let mut at = 0x1008;
        for (kind, words) in tags.iter().copied().chain([(0, &[][..])]) {
            let size = 8 + 4 * words.len() as u64;
            put_words(memory, at, &[kind, size as u32]);
            put_words(memory, at + 8, words);
            at += size.next_multiple_of(8);
        }
        put_words(memory, 0x1000, &[(at - 0x1000) as u32, 0]);
        memory
    }

    const MAP: (u32, &[u32]) = (6, &[24, 0, 0x10_0000, 0, 0x700_0000, 0, 1, 0]);
    const SELF: u32 = u32::from_le_bytes(*b"self");
    const TEST: u32 = u32::from_le_bytes(*b"test");

    #[test]
    fn reads_all_that_prism_uses() {
        let module: &[u32] = &[0x4000, 0x4800, SELF, 0];
        let memory =
            filled(&[MAP, (1, &[SELF, TEST, 0]), (3, module), (14, &[0x2044_5352, 0x2052_5450, 0, 0, 0x7FE_0000])]);
        let info = parse(Hpa(0x1000), memory).unwrap();
        assert_eq!(info.command_line.as_str(), "selftest");
        assert_eq!((info.modules[0].start, info.modules[0].len), (Hpa(0x4000), 0x800));
        assert_eq!(info.memory[0].end, Hpa(0x710_0000));
        assert_eq!(info.acpi, AcpiRoot::Table { revision: 0, address: Hpa(0x7FE_0000) });
    }

    #[test]
    fn refuses_what_does_not_parse() {
        let odd_entries: (u32, &[u32]) = (6, &[20, 0, 0x10_0000, 0, 0x700_0000, 0, 1, 0]);
        let backwards: (u32, &[u32]) = (3, &[0x4800, 0x4000, 0]);
        for (tags, error) in [
            (&[odd_entries][..], BootError::Malformed("memory map")),
            (&[(6, &[24][..])][..], BootError::Malformed("information")),
            (&[MAP, (3, &[1][..])][..], BootError::Malformed("information")),
            (&[MAP, backwards][..], BootError::Malformed("module list")),
            (&[][..], BootError::NoMemoryMap),
        ] {
            assert_eq!(parse(Hpa(0x1000), filled(tags)), Err(error));
        }
        let memory = filled(&[MAP]);
        put_words(memory, 0x1000, &[u32::MAX]);
        assert_eq!(parse(Hpa(0x1000), memory), Err(BootError::Malformed("information")));
    }
}
