//! Prism's own address space: the image where it was linked, all RAM at `phys::DIRECT_BASE`, stacks with guard pages,
//! device registers uncached, firmware tables read-only. No page is ever writable and executable.

use core::sync::atomic::{AtomicU64, Ordering};

use hv_defs::{Hpa, PAGE_SIZE};
use spin::Mutex;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::{PageTableFlags as Flags, PhysFrame};

use crate::frame::{self, OwnerId};
use crate::mmio::Mmio;
use crate::phys::Window;

/// Guarded stacks, one slot a CPU.
const STACK_BASE: u64 = 0xFFFF_C000_0000_0000;
/// Device registers: physical address 0 would be here.
const MMIO_BASE: u64 = 0xFFFF_D000_0000_0000;
/// Firmware tables: physical address 0 would be here.
const FIRMWARE_BASE: u64 = 0xFFFF_E000_0000_0000;
/// Bytes of each of these regions.
const REGION_BYTES: u64 = 1 << 44;

/// Size of a CPU's stack.
pub const STACK_BYTES: u64 = 64 * 1024;
/// Distance between two stacks: at least a page between them stays unmapped.
const STACK_STRIDE: u64 = 2 * STACK_BYTES;

/// What may be done to a page. There is no writable and executable one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Code.
    ReadExecute,
    /// Constants, firmware tables.
    Read,
    /// Data.
    ReadWrite,
    /// Device registers (PAT entry 3, strong uncached after reset).
    Device,
}

impl Protection {
    fn flags(self) -> Flags {
        match self {
            Self::ReadExecute => Flags::PRESENT,
            Self::Read => Flags::PRESENT | Flags::NO_EXECUTE,
            Self::ReadWrite => Flags::PRESENT | Flags::NO_EXECUTE | Flags::WRITABLE,
            Self::Device => {
                Flags::PRESENT | Flags::NO_EXECUTE | Flags::WRITABLE | Flags::NO_CACHE | Flags::WRITE_THROUGH
            }
        }
    }
}

/// There was no frame for a page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoFrame;

/// Whether the CPU has 1 GiB pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GiantPages {
    /// It has.
    Present,
    /// The largest page is 2 MiB.
    Absent,
}

/// A four-level page table (SDM volume 3A, 4.5).
#[derive(Clone, Copy, Debug)]
pub struct PageTable {
    root: Hpa,
    giant: GiantPages,
}

const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const ENTRIES: u64 = 512;

impl PageTable {
    /// An empty table.
    ///
    /// # Errors
    /// `NoFrame` when memory is spent.
    pub fn new(giant: GiantPages) -> Result<Self, NoFrame> {
        let root = frame::alloc_zeroed(OwnerId::HYPERVISOR).ok_or(NoFrame)?.hpa();
        Ok(Self { root, giant })
    }

    /// The physical address of the top level, as CR3 takes it.
    pub const fn root(self) -> Hpa {
        self.root
    }

    /// Maps `len` bytes at `virt` to `phys` with the largest pages that fit; all three are multiples of 4 KiB.
    /// What is mapped already stays as it is.
    ///
    /// # Errors
    /// `NoFrame` when memory is spent: the range is then mapped in part.
    pub fn map(self, virt: u64, phys: Hpa, len: u64, protection: Protection) -> Result<(), NoFrame> {
        let mut done = 0;
        while done < len {
            done += self.map_one(virt + done, phys.wrapping_add(done), len - done, protection)?;
        }
        Ok(())
    }

    /// Maps one page, or steps over one that is mapped; gives how far that went.
    fn map_one(self, virt: u64, phys: Hpa, left: u64, protection: Protection) -> Result<u64, NoFrame> {
        let mut table = self.root;
        for level in (1..4u32).rev() {
            let size = page_size(level + 1);
            let entry = read(table, index(virt, level + 1));
            if entry & Flags::PRESENT.bits() == 0 {
                let fits = self.has_pages(level + 1) && size <= left && (virt | phys.0).is_multiple_of(size);
                if fits {
                    write(table, index(virt, level + 1), phys.0 | protection.flags().bits() | Flags::HUGE_PAGE.bits());
                    return Ok(size);
                }
                let below = frame::alloc_zeroed(OwnerId::HYPERVISOR).ok_or(NoFrame)?.hpa();
                write(table, index(virt, level + 1), below.0 | (Flags::PRESENT | Flags::WRITABLE).bits());
                table = below;
            } else if is_leaf(level + 1, entry) {
                return Ok(size - virt % size);
            } else {
                table = Hpa(entry & ADDRESS);
            }
        }
        if read(table, index(virt, 1)) & Flags::PRESENT.bits() == 0 {
            write(table, index(virt, 1), phys.0 | protection.flags().bits());
        }
        Ok(PAGE_SIZE)
    }

    fn has_pages(self, level: u32) -> bool {
        match level {
            2 => true,
            3 => self.giant == GiantPages::Present,
            _ => false,
        }
    }

    /// Calls `each` with every page: virtual address, size, flags.
    pub fn for_each_page(self, each: &mut dyn FnMut(u64, u64, Flags)) {
        walk(self.root, 4, 0, each);
    }
}

fn walk(table: Hpa, level: u32, virt: u64, each: &mut dyn FnMut(u64, u64, Flags)) {
    for index in 0..ENTRIES {
        let entry = read(table, index);
        if entry & Flags::PRESENT.bits() == 0 {
            continue;
        }
        let at = virt | index << (12 + 9 * (level - 1));
        let at = if at & 1 << 47 != 0 { at | 0xFFFF_0000_0000_0000 } else { at };
        if level == 1 || is_leaf(level, entry) {
            each(at, page_size(level), Flags::from_bits_retain(entry & !ADDRESS));
        } else {
            walk(Hpa(entry & ADDRESS), level - 1, at, each);
        }
    }
}

fn is_leaf(level: u32, entry: u64) -> bool {
    level < 4 && entry & Flags::HUGE_PAGE.bits() != 0
}

/// Bytes that an entry of a table at `level` (1 is the lowest) covers.
const fn page_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

const fn index(virt: u64, level: u32) -> u64 {
    (virt >> (12 + 9 * (level - 1))) % ENTRIES
}

fn table_window(table: Hpa) -> Window {
    // SAFETY: 1. Page-table frames come from the frame allocator: RAM in the direct map. 2. They are only accessed
    // through such windows (and by the CPU's walker).
    unsafe { Window::new(table, PAGE_SIZE) }
}

fn read(table: Hpa, index: u64) -> u64 {
    table_window(table).read_u64(index * 8).unwrap_or(0)
}

fn write(table: Hpa, index: u64, entry: u64) {
    let _inside = table_window(table).write_u64(index * 8, entry);
}

/// The table that all CPUs run on, once it exists. The lock is for adding mappings; nothing is ever unmapped, so no
/// CPU can hold a stale translation.
static ADDRESS_SPACE: Mutex<Option<PageTable>> = Mutex::new(None);
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Makes `table` the one that the functions below extend and that `activate` loads.
pub(crate) fn install(table: PageTable) {
    *ADDRESS_SPACE.lock() = Some(table);
    ROOT.store(table.root().0, Ordering::Release);
}

/// CR3 of every CPU, 0 before `install`.
pub(crate) fn root() -> Hpa {
    Hpa(ROOT.load(Ordering::Acquire))
}

/// The address space of all CPUs.
pub fn address_space() -> Option<PageTable> {
    *ADDRESS_SPACE.lock()
}

/// Maps device registers, uncached, for good.
///
/// # Errors
/// `NoFrame` when memory is spent or the address is beyond 2^44.
pub fn map_device(hpa: Hpa, len: u64) -> Result<Mmio, NoFrame> {
    let virt = map_offset(MMIO_BASE, hpa, len, Protection::Device)?;
    // SAFETY: 1. The range has just been mapped, uncached, and stays mapped. 2. It is no RAM: callers pass the
    // addresses of BARs and of registers that ACPI names, so no Rust object lies there.
    Ok(unsafe { Mmio::new(virt, len) })
}

/// Maps firmware tables read-only, for good; gives the virtual address.
pub(crate) fn map_firmware(hpa: Hpa, len: u64) -> Result<u64, NoFrame> {
    map_offset(FIRMWARE_BASE, hpa, len, Protection::Read)
}

fn map_offset(base: u64, hpa: Hpa, len: u64, protection: Protection) -> Result<u64, NoFrame> {
    let end = hpa.0.checked_add(len).filter(|&end| end <= REGION_BYTES).ok_or(NoFrame)?;
    let start = hpa.align_down(PAGE_SIZE);
    let space = ADDRESS_SPACE.lock();
    let table = (*space).ok_or(NoFrame)?;
    table.map(base + start.0, start, end.next_multiple_of(PAGE_SIZE) - start.0, protection)?;
    Ok(base + hpa.0)
}

/// Makes a stack with an unmapped page below it; gives its top.
pub(crate) fn map_stack(slot: u32) -> Result<u64, NoFrame> {
    let bottom = STACK_BASE + u64::from(slot) * STACK_STRIDE + STACK_BYTES;
    let space = ADDRESS_SPACE.lock();
    let table = (*space).ok_or(NoFrame)?;
    for page in 0..STACK_BYTES / PAGE_SIZE {
        let frame = frame::alloc(OwnerId::HYPERVISOR).ok_or(NoFrame)?;
        table.map(bottom + page * PAGE_SIZE, frame.hpa(), PAGE_SIZE, Protection::ReadWrite)?;
    }
    Ok(bottom + STACK_BYTES)
}

/// Loads the installed table into this CPU.
///
/// # Safety
/// 1. The table maps the code that runs, its stack and all data in use at the addresses in use.
pub(crate) unsafe fn activate() {
    let frame = PhysFrame::containing_address(PhysAddr::new(root().0));
    // SAFETY: 1. The caller vouches for the table.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::fake;

    fn table(giant: GiantPages) -> PageTable {
        fake::install(0x40_0000);
        PageTable::new(giant).unwrap()
    }

    fn pages(table: PageTable) -> Vec<(u64, u64, Flags)> {
        let mut found = Vec::new();
        table.for_each_page(&mut |virt, size, flags| found.push((virt, size, flags - Flags::HUGE_PAGE)));
        found
    }

    #[test]
    fn uses_the_largest_pages_that_fit() {
        let table = table(GiantPages::Present);
        let virt = 0xFFFF_8000_0000_0000;
        table.map(virt + 0x1FF000, Hpa(0x1FF000), (1 << 30) + 0x2000, Protection::ReadWrite).unwrap();
        let found = pages(table);
        assert_eq!(found.first().map(|page| (page.0, page.1)), Some((virt + 0x1FF000, 0x1000)));
        assert_eq!(found.get(1).map(|page| (page.0, page.1)), Some((virt + 0x20_0000, 0x20_0000)));
        assert_eq!(found.iter().map(|page| page.1).sum::<u64>(), (1 << 30) + 0x2000);
        table.map(virt + (4 << 30), Hpa(4 << 30), 1 << 30, Protection::Read).unwrap();
        assert_eq!(pages(table).last().map(|page| page.1), Some(1 << 30));
    }

    #[test]
    fn without_giant_pages_takes_large_ones() {
        let table = table(GiantPages::Absent);
        table.map(0, Hpa(0), 1 << 30, Protection::Read).unwrap();
        assert_eq!(pages(table).len(), 512);
    }

    #[test]
    fn what_is_mapped_stays() {
        let table = table(GiantPages::Present);
        table.map(0x20_1000, Hpa(0x20_1000), 0x1000, Protection::Read).unwrap();
        table.map(0x20_0000, Hpa(0x20_0000), 0x40_0000, Protection::ReadWrite).unwrap();
        let found = pages(table);
        assert_eq!(found.len(), 512 + 1);
        assert_eq!(found[1], (0x20_1000, 0x1000, Protection::Read.flags()));
        assert_eq!(found[512], (0x40_0000, 0x20_0000, Protection::ReadWrite.flags()));
    }

    #[test]
    fn no_protection_is_writable_and_executable() {
        for protection in [Protection::ReadExecute, Protection::Read, Protection::ReadWrite, Protection::Device] {
            let flags = protection.flags();
            assert!(!flags.contains(Flags::WRITABLE) || flags.contains(Flags::NO_EXECUTE));
        }
    }

    #[test]
    fn runs_out_of_frames_by_value() {
        fake::install(0x1_3000);
        let table = PageTable::new(GiantPages::Absent).unwrap();
        assert_eq!(table.map(0, Hpa(0), 0x1000, Protection::Read), Err(NoFrame));
    }
}
