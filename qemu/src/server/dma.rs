//! The device's view of client memory: which bus addresses lie where in which file, and what the device touched.
//!
//! QEMU repeats the layout of low memory many times while firmware runs, sends ROM without a descriptor, and with an
//! IOMMU sends one small range per run of pages, each with its own copy of the same descriptor: files are mapped
//! once (by device and inode), descriptors closed at once, and ranges are only offsets.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;

use super::memory::{Access, SharedMemory};
use super::wire::{DMA_READ, DMA_UNMAP_ALL, DMA_WRITE, DmaMap, DmaUnmap};

/// The most ranges that a client may have live (an IOMMU guest had 265).
const MAX_RANGES: usize = 65_536;
/// The most files kept mapped while no range names them.
const MAX_IDLE_FILES: usize = 8;
const PAGE_SHIFT: u32 = 12;

/// An access to a bus address behind which no client memory lies, or none that allows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmapped;

/// What lies behind one range of bus addresses.
#[derive(Clone, Debug)]
struct Backing {
    /// None: announced without a descriptor (ROM, a BAR of a device); such a range reads as nothing.
    memory: Option<Rc<SharedMemory>>,
    offset: u64,
    size: u64,
    flags: u32,
}

#[derive(Debug)]
struct KnownFile {
    device: u64,
    inode: u64,
    len: usize,
    memory: Rc<SharedMemory>,
}

/// The table of DMA ranges.
#[derive(Debug, Default)]
pub struct DmaTable {
    ranges: BTreeMap<u64, Backing>,
    files: Vec<KnownFile>,
    touched: Touched,
    /// Messages that changed the table: maps and unmaps.
    changes: (u64, u64),
}

impl DmaTable {
    /// Adds a range; what it overlaps is replaced.
    ///
    /// # Errors
    /// The errno for the reply: a range or offset that wraps or exceeds the file, too many ranges, no mapping.
    pub fn map(&mut self, request: DmaMap, file: Option<OwnedFd>) -> Result<(), Errno> {
        let end = request.address.checked_add(request.size).ok_or(Errno::INVAL)?;
        if request.size == 0 || request.flags & !(DMA_READ | DMA_WRITE) != 0 {
            return Err(Errno::INVAL);
        }
        if self.ranges.len() >= MAX_RANGES {
            return Err(Errno::NOSPC);
        }
        let memory = match file {
            Some(file) => Some(self.file(file, request.offset.checked_add(request.size).ok_or(Errno::INVAL)?)?),
            None => None,
        };
        self.carve(request.address, end - 1)?;
        let backing = Backing { memory, offset: request.offset, size: request.size, flags: request.flags };
        self.ranges.insert(request.address, backing);
        self.changes.0 += 1;
        Ok(())
    }

    /// Removes a range, parts of ranges, or everything. Removing what is not there is no error: with an IOMMU, QEMU passes
    /// on each invalidation as it comes, in powers of two up to all 64 bits of addresses, and takes any error for a failure.
    ///
    /// # Errors
    /// The errno for the reply: a flag that is not known, a range of nothing or one that wraps, too many pieces.
    pub fn unmap(&mut self, request: DmaUnmap) -> Result<(), Errno> {
        self.changes.1 += 1;
        if request.flags & !DMA_UNMAP_ALL != 0 {
            return Err(Errno::NOTSUP);
        }
        // Sizes have 64 bits, so that the whole space comes as no byte at 0.
        if request.flags & DMA_UNMAP_ALL != 0 || (request.address == 0 && request.size == 0) {
            self.ranges.clear();
            return Ok(());
        }
        let more = request.size.checked_sub(1).ok_or(Errno::INVAL)?;
        let last = request.address.checked_add(more).ok_or(Errno::INVAL)?;
        self.carve(request.address, last)
    }

    /// Copies from client memory. May cross ranges.
    ///
    /// # Errors
    /// `Unmapped` if any byte cannot be read; `buf` is then filled with ones from that piece on.
    pub fn read(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Unmapped> {
        self.touched.read.mark(address, buf.len());
        let (mut address, mut rest) = (address, buf);
        while !rest.is_empty() {
            let piece = self.piece(address, rest.len(), DMA_READ);
            let copied = piece.and_then(|(memory, offset, size)| {
                let (head, _) = rest.split_at_mut_checked(size)?;
                memory.read(offset, head).map(|()| size)
            });
            let Some(size) = copied else {
                rest.fill(0xff);
                return Err(Unmapped);
            };
            address = address.wrapping_add(size as u64);
            rest = rest.get_mut(size..).unwrap_or_default();
        }
        Ok(())
    }

    /// Copies to client memory. May cross ranges.
    ///
    /// # Errors
    /// `Unmapped` if any byte cannot be written; what lies before that piece has been stored.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Unmapped> {
        self.touched.written.mark(address, data.len());
        let (mut address, mut rest) = (address, data);
        while !rest.is_empty() {
            let (memory, offset, size) = self.piece(address, rest.len(), DMA_WRITE).ok_or(Unmapped)?;
            let (head, tail) = rest.split_at_checked(size).ok_or(Unmapped)?;
            memory.write(offset, head).ok_or(Unmapped)?;
            address = address.wrapping_add(size as u64);
            rest = tail;
        }
        Ok(())
    }

    /// The pages touched so far.
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    /// Live ranges, and the maps and unmaps that made them.
    pub fn counts(&self) -> (usize, u64, u64) {
        (self.ranges.len(), self.changes.0, self.changes.1)
    }

    /// The memory at `address`, the offset there, and how many of `len` bytes lie in the same range.
    fn piece(&self, address: u64, len: usize, need: u32) -> Option<(&SharedMemory, usize, usize)> {
        let (start, backing) = self.ranges.range(..=address).next_back()?;
        let inside = address.checked_sub(*start)?;
        let left = backing.size.checked_sub(inside).filter(|left| *left > 0)?;
        if backing.flags & need == 0 {
            return None;
        }
        let offset = usize::try_from(backing.offset.checked_add(inside)?).ok()?;
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        Some((backing.memory.as_deref()?, offset, size))
    }

    /// Removes `start..=last` from every range; a range that it cuts keeps its outer parts.
    ///
    /// # Errors
    /// `NOSPC` if there would be too many pieces; then it keeps the lower part only.
    fn carve(&mut self, start: u64, last: u64) -> Result<(), Errno> {
        let before = self.ranges.range(..start).next_back().map(|(at, _)| *at);
        let inside = self.ranges.range(start..=last).map(|(at, _)| *at);
        let hit: Vec<u64> = before.into_iter().chain(inside).collect();
        for at in hit {
            let Some(old) = self.ranges.remove(&at) else {
                continue;
            };
            let old_last = at.saturating_add(old.size - 1);
            if at < start {
                let kept = old.size.min(start - at);
                self.ranges.insert(at, Backing { size: kept, ..old.clone() });
            }
            if old_last > last {
                if self.ranges.len() >= MAX_RANGES {
                    return Err(Errno::NOSPC);
                }
                let cut = last - at + 1;
                let tail = Backing { offset: old.offset.saturating_add(cut), size: old.size - cut, ..old };
                self.ranges.insert(last + 1, tail);
            }
        }
        Ok(())
    }

    /// The mapping of `file`, made at first sight; it must hold at least `need` bytes.
    fn file(&mut self, file: OwnedFd, need: u64) -> Result<Rc<SharedMemory>, Errno> {
        let stat = fstat(&file)?;
        let len = usize::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        if need > len as u64 {
            return Err(Errno::INVAL);
        }
        let same = |known: &&KnownFile| known.device == stat.st_dev && known.inode == stat.st_ino && known.len == len;
        if let Some(known) = self.files.iter().find(same) {
            return Ok(Rc::clone(&known.memory));
        }
        let access = match fcntl_getfl(&file)? & OFlags::RWMODE {
            mode if mode == OFlags::RDWR => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        let memory = SharedMemory::map(file.as_fd(), len, access).map_err(|_| Errno::NOMEM)?;
        let memory = Rc::new(memory);
        if self.files.len() >= MAX_IDLE_FILES {
            self.files.retain(|known| Rc::strong_count(&known.memory) > 1);
        }
        self.files.push(KnownFile { device: stat.st_dev, inode: stat.st_ino, len, memory: Rc::clone(&memory) });
        Ok(memory)
    }
}

/// Every page of the bus that the device has touched, tried or done.
#[derive(Debug, Default)]
pub struct Touched {
    /// Pages read.
    pub read: PageSet,
    /// Pages written.
    pub written: PageSet,
}

/// A set of page numbers: one bit a page, in chunks of 1 GiB made on first use.
#[derive(Debug, Default)]
pub struct PageSet {
    chunks: BTreeMap<u64, Box<[u64]>>,
    /// The page marked last: most accesses stay in a page.
    last: Option<u64>,
}

const CHUNK_PAGES: u64 = 1 << 18;
/// Graphics addresses of this GPU have 39 bits: 512 chunks of 32 KiB bound the set; beyond, nothing is recorded.
const MAX_PAGE: u64 = 1 << (39 - PAGE_SHIFT);

impl PageSet {
    /// Adds the pages of a range.
    pub fn mark(&mut self, address: u64, len: usize) {
        let Some(last_byte) = (len as u64).checked_sub(1).map(|more| address.saturating_add(more)) else {
            return;
        };
        let (first, last) = (address >> PAGE_SHIFT, last_byte >> PAGE_SHIFT);
        if self.last == Some(first) && first == last {
            return;
        }
        for page in first..=last.min(MAX_PAGE - 1) {
            let words = || vec![0; (CHUNK_PAGES / 64) as usize].into_boxed_slice();
            let chunk = self.chunks.entry(page / CHUNK_PAGES).or_insert_with(words);
            if let Some(word) = chunk.get_mut((page % CHUNK_PAGES / 64) as usize) {
                *word |= 1 << (page % 64);
            }
        }
        self.last = Some(last);
    }

    /// The set as ranges of bus addresses, ascending: first byte and bytes.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (chunk, words) in &self.chunks {
            for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
                for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                    let start = (chunk * CHUNK_PAGES + index as u64 * 64 + bit) << PAGE_SHIFT;
                    match ranges.last_mut() {
                        Some((first, size)) if *first + *size == start => *size += 1 << PAGE_SHIFT,
                        _ => ranges.push((start, 1 << PAGE_SHIFT)),
                    }
                }
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    const RW: u32 = DMA_READ | DMA_WRITE;

    fn file(len: u64) -> OwnedFd {
        let file = memfd_create("dma", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    fn map(address: u64, size: u64, offset: u64) -> DmaMap {
        DmaMap { flags: RW, offset, address, size }
    }

    fn unmap(address: u64, size: u64) -> DmaUnmap {
        DmaUnmap { flags: 0, address, size }
    }

    fn starts(table: &DmaTable) -> Vec<(u64, u64, u64)> {
        table.ranges.iter().map(|(at, b)| (*at, b.size, b.offset)).collect()
    }

    #[test]
    fn two_descriptors_of_one_file_share_a_mapping() {
        let mut table = DmaTable::default();
        let file = file(0x10000);
        table.map(map(0, 0x8000, 0), Some(file.try_clone().unwrap())).unwrap();
        table.map(map(0x100000, 0x8000, 0x8000), Some(file)).unwrap();
        assert_eq!(table.files.len(), 1);
        table.write(0x100ffe, &[1, 2]).unwrap();
        table.write(0x7ffe, &[3, 4]).unwrap();
        let mut back = [0; 2];
        table.read(0x100ffe, &mut back).unwrap();
        assert_eq!(back, [1, 2]);
        table.read(0x7ffe, &mut back).unwrap();
        assert_eq!(back, [3, 4]);
    }

    #[test]
    fn an_access_crosses_adjacent_ranges_but_no_hole() {
        let mut table = DmaTable::default();
        let file = file(0x3000);
        table.map(map(0x1000, 0x1000, 0x2000), Some(file.try_clone().unwrap())).unwrap();
        table.map(map(0x2000, 0x1000, 0), Some(file)).unwrap();
        let data: Vec<u8> = (0..64).collect();
        table.write(0x1fe0, &data).unwrap();
        let mut back = [0; 64];
        table.read(0x1fe0, &mut back).unwrap();
        assert_eq!(back[..], data[..]);
        assert_eq!(table.read(0x2fff, &mut back[..2]), Err(Unmapped));
        assert_eq!(back[1], 0xff);
        assert_eq!(table.write(0xfff, &[0; 2]), Err(Unmapped));
        assert_eq!(table.read(u64::MAX, &mut back[..2]), Err(Unmapped));
    }

    #[test]
    fn ranges_without_a_descriptor_are_unreadable() {
        let mut table = DmaTable::default();
        table.map(map(0xc0000, 0x8000, 0), None).unwrap();
        assert_eq!(table.read(0xc0000, &mut [0; 4]), Err(Unmapped));
        assert_eq!(table.write(0xc0000, &[0; 4]), Err(Unmapped));
    }

    #[test]
    fn read_only_ranges_take_no_store() {
        let mut table = DmaTable::default();
        let request = DmaMap { flags: DMA_READ, ..map(0, 0x1000, 0) };
        table.map(request, Some(file(0x1000))).unwrap();
        assert_eq!(table.write(0, &[1]), Err(Unmapped));
        table.read(0, &mut [0; 4]).unwrap();
    }

    #[test]
    fn unmap_covers_parts_of_several_ranges() {
        let mut table = DmaTable::default();
        let file = file(0x10000);
        for at in [0x1000, 0x3000, 0x5000] {
            table.map(map(at, 0x2000, at), Some(file.try_clone().unwrap())).unwrap();
        }
        table.unmap(unmap(0x2000, 0x4000)).unwrap();
        assert_eq!(starts(&table), [(0x1000, 0x1000, 0x1000), (0x6000, 0x1000, 0x6000)]);
        table.unmap(unmap(0x6400, 0x400)).unwrap();
        assert_eq!(starts(&table)[1..], [(0x6000, 0x400, 0x6000), (0x6800, 0x800, 0x6800)]);
        table.unmap(unmap(0x100000, 0x1000)).unwrap();
        assert_eq!(table.counts(), (3, 3, 3));
        table.unmap(DmaUnmap { flags: DMA_UNMAP_ALL, address: 0, size: 0 }).unwrap();
        assert_eq!(starts(&table), []);
    }

    /// What QEMU sends when a guest's IOMMU drops everything, or what nothing was mapped at: no error, and nothing is left.
    #[test]
    fn invalidations_of_all_and_of_nothing_are_no_errors() {
        let top = 1 << 63;
        let cases: [(&[DmaUnmap], &[u64]); 6] = [
            (&[unmap(0, 0)], &[]),
            (&[unmap(0, top), unmap(top, top)], &[]),
            (&[unmap(top, top)], &[0x1000, 0x8000]),
            (&[unmap(0, 1 << 48)], &[]),
            (&[unmap(0, 0x1000), unmap(0x5000, 0x1000), unmap(u64::MAX - 0xfff, 0x1000)], &[0x1000, 0x8000]),
            (&[unmap(0, 0x8000), unmap(0, 0x8000)], &[0x8000]),
        ];
        for (requests, left) in cases {
            let mut table = DmaTable::default();
            table.map(map(0x1000, 0x2000, 0), None).unwrap();
            table.map(map(0x8000, 0x1000, 0), None).unwrap();
            for request in requests {
                assert_eq!(table.unmap(*request), Ok(()), "{request:x?}");
            }
            let starts: Vec<u64> = table.ranges.keys().copied().collect();
            assert_eq!(starts, left, "{requests:x?}");
        }
    }

    /// A range cut into many pieces is bounded like many ranges; what finds no room is gone, not kept.
    #[test]
    fn pieces_are_bounded() {
        let mut table = DmaTable::default();
        table.map(map(0, 1 << 40, 0), None).unwrap();
        let cut = |n: u64| unmap(n * 0x2000, 0x1000);
        let refused = (1..).find(|n| table.unmap(cut(*n)).is_err()).unwrap();
        assert_eq!((refused, table.ranges.len()), (MAX_RANGES as u64, MAX_RANGES));
        assert_eq!(table.unmap(cut(refused + 1)), Ok(()), "nothing is mapped there any more");
        assert!(table.ranges.range(refused * 0x2000..).next().is_none());
    }

    #[test]
    fn a_map_over_a_range_replaces_that_part() {
        let mut table = DmaTable::default();
        let file = file(0x10000);
        table.map(map(0, 0x8000, 0), Some(file.try_clone().unwrap())).unwrap();
        table.map(map(0x2000, 0x1000, 0x9000), Some(file)).unwrap();
        assert_eq!(starts(&table), [(0, 0x2000, 0), (0x2000, 0x1000, 0x9000), (0x3000, 0x5000, 0x3000)]);
    }

    #[test]
    fn nonsense_ranges_are_refused() {
        let mut table = DmaTable::default();
        assert_eq!(table.map(map(u64::MAX, 2, 0), None), Err(Errno::INVAL));
        assert_eq!(table.map(map(0, 0, 0), None), Err(Errno::INVAL));
        assert_eq!(table.map(DmaMap { flags: 8, ..map(0, 0x1000, 0) }, None), Err(Errno::INVAL));
        assert_eq!(table.map(map(0, 0x2000, 0), Some(file(0x1000))), Err(Errno::INVAL));
        assert_eq!(table.map(map(0, 0x1000, u64::MAX), Some(file(0x1000))), Err(Errno::INVAL));
        assert_eq!(table.unmap(unmap(u64::MAX, 2)), Err(Errno::INVAL));
        assert_eq!(table.unmap(unmap(0x1000, 0)), Err(Errno::INVAL));
        assert_eq!(table.unmap(DmaUnmap { flags: 1, ..unmap(0, 0x1000) }), Err(Errno::NOTSUP));
        assert_eq!(starts(&table), []);
    }

    #[test]
    fn touched_pages_are_recorded_as_ranges() {
        let mut table = DmaTable::default();
        table.map(map(0, 0x10000, 0), Some(file(0x10000))).unwrap();
        table.write(0x1ffc, &[0; 8]).unwrap();
        table.write(0x2ffc, &[0; 4]).unwrap();
        table.write(0x8000, &[0; 1]).unwrap();
        let _ = table.read(0x40_0000_0000, &mut [0; 1]);
        let _ = table.read(u64::MAX - 8, &mut [0; 1]);
        assert_eq!(table.touched().written.ranges(), [(0x1000, 0x2000), (0x8000, 0x1000)]);
        assert_eq!(table.touched().read.ranges(), [(0x40_0000_0000, 0x1000)]);
    }
}
