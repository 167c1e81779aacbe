//! Set-up of memory: the frame allocator over the loader's map, then Prism's own page tables.

use core::ops::Range;

use hv_defs::{Hpa, PAGE_SIZE};
use raw_cpuid::CpuId as Cpuid;

use crate::bootinfo::{BootInfo, Module, Region, RegionKind};
use crate::frame::{self, Allocator};
use crate::paging::{self, GiantPages, NoFrame, PageTable, Protection};
use crate::phys::{self, DIRECT_BASE};

/// Memory below this is left to firmware, loader and the start of CPUs.
const LOW_END: u64 = 1 << 20;
/// The first page tables, made by the entry code, map this much; the bitmap must lie within.
const FIRST_MAP: u64 = 4 << 30;
/// RAM above this is not used.
const HIGHEST: u64 = 1 << 40;
/// Prism's own share: less is refused.
pub const LEAST_BYTES: u64 = 64 << 20;

/// Where the linker put the image; physical and virtual addresses are the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Code.
    pub text: Range<u64>,
    /// Constants.
    pub rodata: Range<u64>,
    /// Variables with a value.
    pub data: Range<u64>,
    /// Variables that begin as 0, the first stack in front. The page below it stays unmapped.
    pub bss: Range<u64>,
    /// How large a heap it needs, in bytes: whole pages.
    pub heap_bytes: u64,
}

impl Image {
    fn whole(&self) -> Range<u64> {
        self.text.start..self.bss.end
    }

    /// What is never writable.
    fn constant(&self) -> Range<u64> {
        self.text.start..self.rodata.end
    }
}

/// Usable RAM in bytes.
pub(crate) fn usable_bytes(info: &BootInfo) -> u64 {
    info.usable().map(|region| region.end.0 - region.start.0).sum()
}

/// Makes the frame allocator; `None` when there is no place for its bitmap.
pub(crate) fn init_frames(info: &BootInfo, image: &Image) -> Option<()> {
    let end = info.usable().map(|region| region.end.0.min(HIGHEST)).max()?;
    let frames = end / PAGE_SIZE;
    let words = frame::words_for(frames);
    let bytes = (words as u64 * 8).next_multiple_of(PAGE_SIZE);
    let place = find_place(info, image, bytes)?;
    let pointer = phys::pointer(Hpa(place)).cast::<u64>();
    // SAFETY: 1. The range is usable RAM inside the first map, clear of image and modules, and reserved below: nobody
    // else gets it. 2. Any bit pattern is a u64, and `Allocator::new` clears them first.
    let words = unsafe { core::slice::from_raw_parts_mut(pointer, words) };
    let mut allocator = Allocator::new(words, frames)?;
    for region in info.usable() {
        allocator.add(Hpa(region.start.0.max(LOW_END)), region.end);
    }
    // Maps overlap on some machines: what anything else claims is not ours.
    for region in info.memory.iter().filter(|region| region.kind != RegionKind::Usable) {
        allocator.reserve(region.start, region.end);
    }
    for module in &info.modules {
        allocator.reserve(module.start, module.end());
    }
    allocator.reserve(Hpa(image.whole().start), Hpa(image.whole().end));
    allocator.reserve(Hpa(place), Hpa(place + bytes));
    frame::install(allocator);
    Some(())
}

/// The lowest place for `bytes` bytes, clear of image and modules.
fn find_place(info: &BootInfo, image: &Image, bytes: u64) -> Option<u64> {
    let taken = || info.modules.iter().map(module_range).chain([image.whole()]);
    for region in info.usable() {
        let mut start = region.start.0.max(LOW_END).next_multiple_of(PAGE_SIZE);
        // Each turn steps past one obstacle, so there are at most as many as obstacles.
        while let Some(obstacle) = taken().find(|range| range.start < start + bytes && start < range.end) {
            start = obstacle.end.next_multiple_of(PAGE_SIZE);
        }
        let end = start.checked_add(bytes)?;
        if end <= region.end.0.min(FIRST_MAP) && !claimed(info, start, end) {
            return Some(start);
        }
    }
    None
}

fn module_range(module: &Module) -> Range<u64> {
    module.start.0..module.end().0
}

fn claimed(info: &BootInfo, start: u64, end: u64) -> bool {
    info.memory.iter().any(|region| region.kind != RegionKind::Usable && region.start.0 < end && start < region.end.0)
}

/// Makes the page tables that all CPUs run on.
pub(crate) fn init_paging(info: &BootInfo, image: &Image) -> Result<(), NoFrame> {
    let features = Cpuid::new().get_extended_processor_and_feature_identifiers();
    let giant = match features.is_some_and(|features| features.has_1gib_pages()) {
        true => GiantPages::Present,
        false => GiantPages::Absent,
    };
    paging::install(build(info, image, giant)?);
    Ok(())
}

fn build(info: &BootInfo, image: &Image, giant: GiantPages) -> Result<PageTable, NoFrame> {
    let table = PageTable::new(giant)?;
    let map = |range: &Range<u64>, protection| {
        table.map(range.start, Hpa(range.start), range.end.saturating_sub(range.start), protection)
    };
    map(&image.text, Protection::ReadExecute)?;
    map(&image.rodata, Protection::Read)?;
    map(&image.data, Protection::ReadWrite)?;
    map(&image.bss, Protection::ReadWrite)?;

    let constant = image.constant();
    table.map(direct(constant.start), Hpa(constant.start), constant.end - constant.start, Protection::Read)?;
    for region in info.usable() {
        map_direct(table, region)?;
    }
    for module in &info.modules {
        // A loader may leave modules out of the usable memory.
        let start = module.start.align_down(PAGE_SIZE);
        let end = Hpa(module.end().0.next_multiple_of(PAGE_SIZE));
        map_direct(table, &Region { start, end, kind: RegionKind::Usable })?;
    }
    Ok(table)
}

/// The image's constant part is in the table already, and stays as it is.
fn map_direct(table: PageTable, region: &Region) -> Result<(), NoFrame> {
    let start = region.start.0.next_multiple_of(PAGE_SIZE);
    let end = region.end.0.min(HIGHEST) & !(PAGE_SIZE - 1);
    table.map(direct(start), Hpa(start), end.saturating_sub(start), Protection::ReadWrite)
}

const fn direct(hpa: u64) -> u64 {
    DIRECT_BASE + hpa
}

/// A page below 1 MiB that other CPUs can start in: RAM that neither firmware nor a module needs.
pub(crate) fn find_start_page(info: &BootInfo) -> Option<Hpa> {
    let usable = |page: u64| {
        info.usable().any(|region| region.start.0 <= page && page + PAGE_SIZE <= region.end.0)
            && !claimed(info, page, page + PAGE_SIZE)
            && !info.modules.iter().map(module_range).any(|range| range.start < page + PAGE_SIZE && page < range.end)
    };
    // Page 0 holds the real-mode vectors.
    (1..LOW_END / PAGE_SIZE).rev().map(|page| page * PAGE_SIZE).find(|&page| usable(page)).map(Hpa)
}

#[cfg(test)]
mod tests {
    use arrayvec::{ArrayString, ArrayVec};
    use x86_64::structures::paging::PageTableFlags as Flags;

    use super::*;
    use crate::bootinfo::AcpiRoot;

    fn image() -> Image {
        Image {
            text: 0x10_0000..0x11_0000,
            rodata: 0x11_0000..0x11_4000,
            data: 0x11_4000..0x11_5000,
            bss: 0x11_6000..0x12_0000,
            heap_bytes: 0,
        }
    }

    fn info() -> BootInfo {
        let region = |start, end, kind| Region { start: Hpa(start), end: Hpa(end), kind };
        BootInfo {
            protocol: "test",
            memory: [
                region(0, 0x9_F800, RegionKind::Usable),
                region(0x9_F800, 0x10_0000, RegionKind::Reserved),
                region(0x10_0000, 0x80_0000, RegionKind::Usable),
                region(0x7F_0000, 0x80_0000, RegionKind::Acpi),
            ]
            .into_iter()
            .collect(),
            modules: [(0x12_0000, 0x1234), (0x9_8000, 0x6000)]
                .map(|(start, len)| Module { start: Hpa(start), len })
                .into_iter()
                .collect::<ArrayVec<_, 8>>(),
            command_line: ArrayString::new(),
            acpi: AcpiRoot::Search,
        }
    }

    #[test]
    fn what_is_claimed_is_never_given_out() {
        phys::fake::install(0x80_0000);
        init_frames(&info(), &image()).unwrap();
        let first = frame::alloc(frame::OwnerId::HYPERVISOR).unwrap();
        assert_eq!(first.hpa(), Hpa(0x12_3000), "behind image, module and the bitmap's page");
        let last = frame::alloc_run(frame::OwnerId::HYPERVISOR, 1, 1, frame::Placement::High).unwrap();
        assert_eq!(last.hpa(), Hpa(0x7E_F000), "below the overlapping ACPI region");
    }

    #[test]
    fn no_page_is_writable_and_executable_and_constants_are_writable_nowhere() {
        phys::fake::install(0x80_0000);
        init_frames(&info(), &image()).unwrap();
        let table = build(&info(), &image(), GiantPages::Present).unwrap();
        let mut mapped = 0;
        table.for_each_page(&mut |virt, size, flags| {
            let writable = flags.contains(Flags::WRITABLE);
            assert!(!writable || flags.contains(Flags::NO_EXECUTE), "{virt:#x}");
            let phys = virt & !DIRECT_BASE;
            let constant = phys < image().rodata.end && phys + size > image().text.start;
            assert!(!(writable && constant), "{virt:#x}");
            assert!(!(0x11_5000..0x11_6000).contains(&virt), "the guard page is mapped");
            mapped += size;
        });
        let image_bytes = 0x1_F000;
        assert_eq!(mapped, image_bytes + 0x9_F000 + 0x70_0000);
    }

    #[test]
    fn the_start_page_is_clear_of_modules_and_firmware() {
        // 0x9f000 is half reserved; the module covers 0x98000-0x9dfff.
        assert_eq!(find_start_page(&info()), Some(Hpa(0x9_E000)));
        let mut full = info();
        full.modules[1].start = Hpa(0);
        full.modules[1].len = 0x10_0000;
        assert_eq!(find_start_page(&full), None);
    }

    #[test]
    fn no_room_is_an_answer() {
        let mut none = info();
        none.memory.truncate(2);
        assert_eq!(init_frames(&none, &image()), None);
    }
}
