//! What the boot loader tells, in one form whichever way Prism was booted.
//!
//! Everything is copied out of loader memory here, once, and bounded; afterwards only the modules remain there.

mod multiboot1;
mod multiboot2;
mod pvh;

use arrayvec::{ArrayString, ArrayVec};
use hv_defs::Hpa;
use thiserror::Error;

use crate::console::clip;
use crate::phys::{self, Window};

/// Most regions of the memory map that are kept.
pub const MAX_REGIONS: usize = 256;
/// Most modules that are kept.
pub const MAX_MODULES: usize = 8;

/// How Prism was entered, as the first instructions saved it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootEntry {
    /// EAX of a multiboot loader, or `MAGIC_PVH`.
    pub magic: u32,
    /// Physical address of the loader's information.
    pub info: Hpa,
}

/// EAX after a multiboot1 boot (Multiboot Specification 0.6.96, 3.2).
pub const MAGIC_MULTIBOOT1: u32 = 0x2BAD_B002;
/// EAX after a multiboot2 boot (Multiboot2 Specification 2.0, 3.3).
pub const MAGIC_MULTIBOOT2: u32 = 0x36D7_6289;
/// First word of the PVH start information; the PVH entry point passes it as its magic.
pub const MAGIC_PVH: u32 = 0x336E_C578;

/// What a region of physical memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionKind {
    /// RAM that is free to use.
    Usable,
    /// ACPI tables, in RAM.
    Acpi,
    /// Anything else: never touched.
    Reserved,
}

/// A region of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First byte.
    pub start: Hpa,
    /// Byte after the last.
    pub end: Hpa,
    /// What it is.
    pub kind: RegionKind,
}

/// A file that the boot loader put into memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module {
    /// First byte.
    pub start: Hpa,
    /// Size in bytes.
    pub len: u64,
}

impl Module {
    /// Byte after the last.
    pub const fn end(&self) -> Hpa {
        self.start.wrapping_add(self.len)
    }

    /// The file's content, once `start::boot` is through.
    pub fn bytes(&self) -> &'static [u8] {
        // SAFETY: 1. The loader's memory map and module list are taken at their word; `start::boot` maps every module.
        // 2. It reserves them too, so nobody is given this memory: it never changes.
        unsafe { core::slice::from_raw_parts(phys::pointer(self.start), self.len as usize) }
    }
}

/// How to find the ACPI tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcpiRoot {
    /// Not told: search where a BIOS leaves it.
    Search,
    /// The RSDP lies here.
    Rsdp(Hpa),
    /// A copy of the RSDP named this RSDT (revision 0) or XSDT.
    Table {
        /// Revision of the RSDP.
        revision: u8,
        /// Address of the table.
        address: Hpa,
    },
}

/// What the boot loader tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootInfo {
    /// How Prism was booted, for messages.
    pub protocol: &'static str,
    /// The memory map, as given.
    pub memory: ArrayVec<Region, MAX_REGIONS>,
    /// The modules, in order.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// Prism's own command line.
    pub command_line: ArrayString<1024>,
    /// How to find the ACPI tables.
    pub acpi: AcpiRoot,
}

/// Why a boot information is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BootError {
    /// Not entered by a protocol that Prism knows.
    #[error("boot: unknown magic {0:#x}; boot Prism by multiboot, multiboot2 or PVH")]
    Magic(u32),
    /// The loader gave no memory map.
    #[error("boot: the loader gave no memory map; use another loader")]
    NoMemoryMap,
    /// A structure does not parse.
    #[error("boot: the loader's {0} does not parse; use another loader")]
    Malformed(&'static str),
}

impl BootInfo {
    /// Reads what the loader left, through `memory` (which starts at address 0).
    ///
    /// # Errors
    /// `BootError` when there is nothing that Prism could go on with.
    pub fn parse(entry: BootEntry, memory: Window) -> Result<Self, BootError> {
        let info = match entry.magic {
            MAGIC_MULTIBOOT1 => multiboot1::parse(entry.info, memory)?,
            MAGIC_MULTIBOOT2 => multiboot2::parse(entry.info, memory)?,
            MAGIC_PVH => pvh::parse(entry.info, memory)?,
            other => return Err(BootError::Magic(other)),
        };
        if info.usable().next().is_none() {
            return Err(BootError::NoMemoryMap);
        }
        Ok(info)
    }

    fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            memory: ArrayVec::new(),
            modules: ArrayVec::new(),
            command_line: ArrayString::new(),
            acpi: AcpiRoot::Search,
        }
    }

    /// The usable regions.
    pub fn usable(&self) -> impl Iterator<Item = &Region> {
        self.memory.iter().filter(|region| region.kind == RegionKind::Usable)
    }

    /// Whether `word` stands on the command line by itself.
    pub fn has(&self, word: &str) -> bool {
        self.command_line.split_ascii_whitespace().any(|have| have == word)
    }

    /// The value of the first `key=value` on the command line.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.command_line
            .split_ascii_whitespace()
            .find_map(|word| word.split_once('=').filter(|(have, _)| *have == key).map(|(_, value)| value))
    }

    /// Keeps one region of the E820 kind `kind`. When the map is full, RAM is lost, but nothing reserved is.
    fn add_region(&mut self, start: u64, len: u64, kind: u32) {
        let Some(end) = start.checked_add(len).filter(|_| len != 0) else {
            return;
        };
        // ACPI 6.5, table 15.5 (address range types).
        let kind = match kind {
            1 => RegionKind::Usable,
            3 | 4 => RegionKind::Acpi,
            _ => RegionKind::Reserved,
        };
        if let Some(last) = self.memory.last_mut()
            && last.kind == kind
            && last.end.0 == start
        {
            last.end = Hpa(end);
            return;
        }
        if self.memory.is_full()
            && kind != RegionKind::Usable
            && let Some(index) = self.memory.iter().rposition(|region| region.kind == RegionKind::Usable)
        {
            self.memory.remove(index);
        }
        let _full = self.memory.try_push(Region { start: Hpa(start), end: Hpa(end), kind });
    }

    fn add_module(&mut self, start: u64, len: u64) -> Result<(), BootError> {
        start.checked_add(len).ok_or(BootError::Malformed("module list"))?;
        self.modules
            .try_push(Module { start: Hpa(start), len })
            .map_err(|_| BootError::Malformed("module list (more than 8 modules)"))
    }
}

/// A NUL-terminated string at `at`, cut at `N` bytes; bytes that are not ASCII become `?`.
fn c_string<const N: usize>(memory: Window, at: u64) -> ArrayString<N> {
    let bytes = (0..N as u64).map_while(|offset| {
        let mut byte = [0];
        memory.read(at.saturating_add(offset), &mut byte).ok().map(|()| byte[0]).filter(|byte| *byte != 0)
    });
    clip(bytes.map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::fake;

    pub(super) fn memory() -> Window {
        fake::install(0x2_0000);
        // SAFETY: 1. Exactly the arena. 2. It is only accessed by copying.
        unsafe { Window::new(Hpa(0), 0x2_0000) }
    }

    pub(super) fn put_words(memory: Window, at: u64, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            memory.write_u32(at + 4 * index as u64, *word).unwrap();
        }
    }

    #[test]
    fn adjacent_regions_of_a_kind_become_one() {
        let mut info = BootInfo::new("test");
        info.add_region(0, 0x1000, 1);
        info.add_region(0x1000, 0x1000, 1);
        info.add_region(0x2000, 0, 1);
        info.add_region(0x2000, 0x1000, 4);
        info.add_region(u64::MAX, 2, 1);
        let ends: Vec<_> = info.memory.iter().map(|region| (region.end.0, region.kind)).collect();
        assert_eq!(ends, [(0x2000, RegionKind::Usable), (0x3000, RegionKind::Acpi)]);
    }

    #[test]
    fn a_full_map_gives_up_ram_before_a_reservation() {
        let mut info = BootInfo::new("test");
        for index in 0..MAX_REGIONS as u64 + 4 {
            info.add_region(index * 0x2000, 0x1000, 1);
        }
        info.add_region(0x8000_0000, 0x1000, 2);
        assert_eq!(info.memory.len(), MAX_REGIONS);
        assert_eq!(info.memory.last().map(|region| region.kind), Some(RegionKind::Reserved));
    }

    #[test]
    fn options_are_words() {
        let mut info = BootInfo::new("test");
        info.command_line = ArrayString::from("prism-hv  selftest nonce=a=b nonce=c").unwrap();
        assert!(info.has("selftest") && !info.has("self"));
        assert_eq!(info.option("nonce"), Some("a=b"));
        assert_eq!(info.option("selftest"), None);
    }

    #[test]
    fn strings_are_cut_and_cleaned() {
        let memory = memory();
        memory.write(0x100, b"ab\xFFc\0d").unwrap();
        assert_eq!(c_string::<16>(memory, 0x100).as_str(), "ab?c");
        assert_eq!(c_string::<2>(memory, 0x100).as_str(), "ab");
        assert_eq!(c_string::<16>(memory, u64::MAX).as_str(), "");
    }

    #[test]
    fn an_unknown_magic_is_named() {
        let entry = BootEntry { magic: 7, info: Hpa(0) };
        assert_eq!(BootInfo::parse(entry, memory()), Err(BootError::Magic(7)));
    }
}
