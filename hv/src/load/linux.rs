//! Kernels: bzImage by its 64-bit entry (Linux Documentation/arch/x86/boot.rst), and ELF64 with the same entry state.

use super::{OutOfRange, Sink};
use hv_defs::Gpa;
use hv_dev::e820;
use thiserror::Error;

/// Longest command line, in bytes, without its terminating NUL.
pub const MAX_CMDLINE: usize = 2047;

const BOOT_PARAMS: Gpa = Gpa(0x7000);
const PAGE_TABLES: Gpa = Gpa(0x9000);
const GDT: Gpa = Gpa(0x6000);
const CMDLINE: Gpa = Gpa(0x2_0000);
const STACK_TOP: u64 = 0x7000 - 16;

/// Kernel images above this are refused, in bytes.
const MAX_IMAGE: u64 = 1 << 30;
/// Bytes cleared at a time.
const CHUNK: usize = 4096;

/// What the loader must know besides the files.
#[derive(Debug)]
pub struct Params<'a> {
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Where RAM is.
    pub layout: &'a e820::Layout,
    /// ACPI root pointer, already written to guest memory.
    pub rsdp: Gpa,
}

/// State of the boot CPU: 64-bit mode, paging on, identity map of the low 4 GiB, interrupts off,
/// CS = 0x10, DS = ES = SS = 0x18, all flat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// Address of the boot parameters.
    pub rsi: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Page-table root.
    pub cr3: u64,
    /// Global descriptor table.
    pub gdt: Gpa,
    /// Its limit, in bytes minus one.
    pub gdt_limit: u16,
}

/// Why a file cannot be loaded. Displays as the end of a sentence that begins with the file's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ImageError {
    /// It does not exist.
    #[error("is not in the bundle; add the file or correct the name")]
    Missing,
    /// Neither a bzImage nor an ELF64 program.
    #[error("is neither a Linux bzImage nor an ELF64 program")]
    Unknown,
    /// A bzImage that is older than protocol 2.12 or has no 64-bit entry.
    #[error("has no 64-bit entry (boot protocol 2.12 or later is needed)")]
    Old,
    /// The headers point outside the file.
    #[error("is damaged: its headers point outside the file")]
    Damaged,
    /// The guest's memory cannot hold it.
    #[error("does not fit; raise memory_mib to {needs_mib} or more")]
    NoRoom {
        /// MiB that the file needs below the RAM hole.
        needs_mib: u64,
    },
}

impl From<OutOfRange> for ImageError {
    fn from(_: OutOfRange) -> Self {
        Self::Damaged
    }
}

/// Which file an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

/// Writes kernel, initial RAM disk, boot parameters, page tables and GDT into a guest.
///
/// # Errors
/// Which file is wrong, and how.
pub fn load(
    kernel: &[u8],
    initrd: Option<&[u8]>,
    params: &Params<'_>,
    sink: &mut dyn Sink,
) -> Result<Entry, (Which, ImageError)> {
    let mut guest = Guest { params, sink, boot_params: [0; 4096] };
    let image = guest.load_kernel(kernel).map_err(|error| (Which::Kernel, error))?;
    if let Some(initrd) = initrd {
        guest.load_initrd(initrd, &image).map_err(|error| (Which::Initrd, error))?;
    }
    let written = guest
        .fill_boot_params()
        .and_then(|()| guest.sink.write(BOOT_PARAMS, &guest.boot_params))
        .and_then(|()| write_cmdline(params.cmdline, guest.sink))
        .and_then(|()| write_gdt(guest.sink))
        .and_then(|()| write_page_tables(guest.sink));
    written.map_err(|_| (Which::Kernel, ImageError::NoRoom { needs_mib: 16 }))?;
    Ok(Entry {
        rip: image.entry,
        rsi: BOOT_PARAMS.0,
        rsp: STACK_TOP,
        cr3: PAGE_TABLES.0,
        gdt: GDT,
        gdt_limit: 4 * 8 - 1,
    })
}

/// Where a kernel landed.
struct Image {
    entry: u64,
    end: u64,
    initrd_max: u64,
}

/// Where the part of boot_params that comes from the file ends at the latest.
const HEADER_END: usize = 0x280;
/// Program headers at most.
const MAX_PHDRS: u64 = 16;
const PT_LOAD: u64 = 1;

/// A guest that is being loaded.
struct Guest<'a> {
    params: &'a Params<'a>,
    sink: &'a mut dyn Sink,
    boot_params: [u8; 4096],
}

impl Guest<'_> {
    fn load_kernel(&mut self, kernel: &[u8]) -> Result<Image, ImageError> {
        if field(kernel, 0x202, 4) == Some(u64::from(u32::from_le_bytes(*b"HdrS"))) {
            self.load_bzimage(kernel)
        } else if kernel.starts_with(b"\x7fELF\x02\x01") {
            self.load_elf(kernel)
        } else {
            Err(ImageError::Unknown)
        }
    }

    fn load_bzimage(&mut self, kernel: &[u8]) -> Result<Image, ImageError> {
        let get = |offset, len| field(kernel, offset, len).ok_or(ImageError::Damaged);
        let (version, loadflags, xloadflags) = (get(0x206, 2)?, get(0x211, 1)?, get(0x236, 2)?);
        if version < 0x20C || loadflags & 1 == 0 || xloadflags & 1 == 0 {
            return Err(ImageError::Old);
        }
        let setup_sectors = match get(0x1F1, 1)? {
            0 => 4,
            sectors => sectors,
        };
        let code = kernel.get((setup_sectors as usize + 1) * 512..).filter(|code| !code.is_empty());
        let code = code.ok_or(ImageError::Damaged)?;
        let len = code.len() as u64;
        // syssize, in units of 16 bytes: a file that ends earlier was cut short (a signature may follow).
        if get(0x1F4, 4)? * 16 > len {
            return Err(ImageError::Damaged);
        }
        let (load, init_size) = (get(0x258, 8)?, get(0x260, 4)?.max(len));
        let end = load.checked_add(init_size).ok_or(ImageError::Damaged)?;
        if load < 1 << 20 || len > MAX_IMAGE || end > self.params.layout.low {
            return Err(no_room(end));
        }
        self.sink.write(Gpa(load), code).map_err(|_| no_room(end))?;
        let header_end = (0x202 + get(0x201, 1)? as usize).min(HEADER_END);
        let setup = kernel.get(0x1F1..header_end).ok_or(ImageError::Damaged)?;
        self.boot_params.get_mut(0x1F1..header_end).ok_or(ImageError::Damaged)?.copy_from_slice(setup);
        Ok(Image { entry: load + 0x200, end, initrd_max: get(0x22C, 4)? })
    }

    fn load_elf(&mut self, kernel: &[u8]) -> Result<Image, ImageError> {
        let get = |offset, len| field(kernel, offset, len).ok_or(ImageError::Damaged);
        let (entry, table, size, count) =
            (get(0x18, 8)?, get(0x20, 8)? as usize, get(0x36, 2)? as usize, get(0x38, 2)?);
        if size < 56 || count > MAX_PHDRS {
            return Err(ImageError::Damaged);
        }
        let mut end = 1 << 20;
        for n in 0..count as usize {
            let header = table.checked_add(n * size).and_then(|at| kernel.get(at..)).ok_or(ImageError::Damaged)?;
            let get = |offset, len| field(header, offset, len).ok_or(ImageError::Damaged);
            if get(0, 4)? != PT_LOAD {
                continue;
            }
            let (offset, base, file_len, len) = (get(8, 8)?, get(0x18, 8)?, get(0x20, 8)?, get(0x28, 8)?);
            let top = base.checked_add(len.max(file_len)).ok_or(ImageError::Damaged)?;
            if base < 1 << 20 || len > MAX_IMAGE || top > self.params.layout.low {
                return Err(no_room(top));
            }
            let content = kernel.get(offset as usize..).and_then(|rest| rest.get(..file_len as usize));
            self.sink.write(Gpa(base), content.ok_or(ImageError::Damaged)?).map_err(|_| no_room(top))?;
            zero(Gpa(base + file_len), len.saturating_sub(file_len), self.sink).map_err(|_| no_room(top))?;
            end = end.max(top);
        }
        Ok(Image { entry, end, initrd_max: u64::from(u32::MAX) })
    }

    fn load_initrd(&mut self, initrd: &[u8], image: &Image) -> Result<(), ImageError> {
        let len = initrd.len() as u64;
        let top = self.params.layout.low.min(image.initrd_max.saturating_add(1));
        let no_room = || no_room(image.end + len);
        let base =
            top.checked_sub(len).map(|base| base & !0xFFF).filter(|base| *base >= image.end).ok_or_else(no_room)?;
        self.sink.write(Gpa(base), initrd).map_err(|_| no_room())?;
        self.put(0x218, &(base as u32).to_le_bytes())?;
        Ok(self.put(0x21C, &(len as u32).to_le_bytes())?)
    }

    /// The fields that a boot loader fills in (zero-page.rst and boot.rst).
    fn fill_boot_params(&mut self) -> Result<(), OutOfRange> {
        self.put(0x210, &[0xFF])?; // type_of_loader: undefined
        self.put(0x228, &(CMDLINE.0 as u32).to_le_bytes())?;
        self.put(0x070, &self.params.rsdp.0.to_le_bytes())?;
        let map = e820::direct_boot(self.params.layout);
        self.put(0x1E8, &[map.len() as u8])?;
        for (n, entry) in map.iter().enumerate() {
            let at = 0x2D0 + n * 20;
            self.put(at, &entry.base.0.to_le_bytes())?;
            self.put(at + 8, &entry.size.to_le_bytes())?;
            self.put(at + 16, &(entry.kind as u32).to_le_bytes())?;
        }
        Ok(())
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.boot_params.get_mut(offset..offset + bytes.len()).ok_or(OutOfRange)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// For a guest whose low memory would have to reach to `end`, and some way beyond.
fn no_room(end: u64) -> ImageError {
    ImageError::NoRoom { needs_mib: (end >> 20) + 16 }
}

fn write_cmdline(cmdline: &str, sink: &mut dyn Sink) -> Result<(), OutOfRange> {
    let bytes = cmdline.as_bytes().get(..MAX_CMDLINE.min(cmdline.len())).unwrap_or_default();
    sink.write(CMDLINE, bytes)?;
    sink.write(CMDLINE.wrapping_add(bytes.len() as u64), &[0])
}

fn write_gdt(sink: &mut dyn Sink) -> Result<(), OutOfRange> {
    const FLAT_CODE_64: u64 = 0x00AF_9B00_0000_FFFF;
    const FLAT_DATA: u64 = 0x00CF_9300_0000_FFFF;
    for (n, entry) in [0, 0, FLAT_CODE_64, FLAT_DATA].into_iter().enumerate() {
        sink.write(GDT.wrapping_add(n as u64 * 8), &entry.to_le_bytes())?;
    }
    Ok(())
}

/// Identity map of the low 4 GiB by 2 MiB pages: one PML4, one PDPT, four page directories.
fn write_page_tables(sink: &mut dyn Sink) -> Result<(), OutOfRange> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |n: u64| PAGE_TABLES.wrapping_add(n * 4096);
    for n in 0..2 {
        for at in (0..4096).step_by(512) {
            sink.write(table(n).wrapping_add(at), &[0; 512])?;
        }
    }
    sink.write(table(0), &(table(1).0 | PRESENT_WRITE).to_le_bytes())?;
    for gib in 0..4 {
        sink.write(table(1).wrapping_add(gib * 8), &(table(2 + gib).0 | PRESENT_WRITE).to_le_bytes())?;
        for n in 0..512 {
            let entry = (gib << 30) | (n << 21) | PRESENT_WRITE | LARGE;
            sink.write(table(2 + gib).wrapping_add(n * 8), &entry.to_le_bytes())?;
        }
    }
    Ok(())
}

fn zero(target: Gpa, len: u64, sink: &mut dyn Sink) -> Result<(), OutOfRange> {
    let piece = [0; CHUNK];
    for done in (0..len).step_by(CHUNK) {
        let take = (len - done).min(CHUNK as u64) as usize;
        sink.write(target.wrapping_add(done), piece.get(..take).unwrap_or_default())?;
    }
    Ok(())
}

/// A little-endian field of 1 to 8 bytes.
fn field(bytes: &[u8], offset: usize, len: usize) -> Option<u64> {
    let mut raw = [0; 8];
    raw.get_mut(..len)?.copy_from_slice(bytes.get(offset..)?.get(..len)?);
    Some(u64::from_le_bytes(raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    struct Ram(Vec<u8>);

    impl Sink for Ram {
        fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), OutOfRange> {
            let at = gpa.0 as usize;
            self.0.get_mut(at..at + data.len()).ok_or(OutOfRange)?.copy_from_slice(data);
            Ok(())
        }
    }

    fn bzimage(len: usize) -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + len];
        image[0x1F1] = 4;
        image[0x201] = 0x6A;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20Fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
        image[0x236] = 1;
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
        image[5 * 512..].fill(0xCC);
        image
    }

    fn run(kernel: &[u8], initrd: Option<&[u8]>, mib: usize) -> Result<(Entry, Vec<u8>), (Which, ImageError)> {
        let mut ram = Ram(vec![0; mib << 20]);
        let layout = e820::Layout::new((mib as u64) << 20);
        let params = Params { cmdline: "console=ttyS0", layout: &layout, rsdp: Gpa(0xE_0000) };
        load(kernel, initrd, &params, &mut ram).map(|entry| (entry, ram.0))
    }

    #[test]
    fn a_bzimage_lands_where_it_asks() {
        let (entry, ram) = run(&bzimage(10_000), Some(&[0xAB; 5000]), 64).unwrap();
        assert_eq!(entry.rip, 0x100_0200);
        assert_eq!(&ram[0x100_0000..0x100_0000 + 10_000], &[0xCC; 10_000][..]);
        let u32_at = |at: usize| u32::from_le_bytes(ram[at..at + 4].try_into().unwrap()) as usize;
        let zero_page = entry.rsi as usize;
        let (initrd, len) = (u32_at(zero_page + 0x218), u32_at(zero_page + 0x21C));
        assert_eq!(len, 5000);
        assert_eq!(&ram[initrd..initrd + len], &[0xAB; 5000][..]);
        assert_eq!(initrd % 4096, 0);
        assert_eq!(&ram[u32_at(zero_page + 0x228)..][..14], b"console=ttyS0\0");
        assert_eq!(&ram[zero_page + 0x202..zero_page + 0x206], b"HdrS");
        assert_eq!(u32_at(zero_page + 0x70), 0xE_0000);
        assert!(ram[zero_page + 0x1E8] >= 3);
    }

    #[test]
    fn the_identity_map_reaches_4_gib() {
        let (entry, ram) = run(&bzimage(100), None, 64).unwrap();
        let u64_at = |at: u64| u64::from_le_bytes(ram[at as usize..at as usize + 8].try_into().unwrap());
        for address in [0u64, 0x12_3456_7000 & 0xFFFF_FFFF, 0xFFFF_F000] {
            let pdpt = u64_at(entry.cr3) & !0xFFF;
            let directory = u64_at(pdpt + (address >> 30) * 8) & !0xFFF;
            let leaf = u64_at(directory + (address >> 21 & 0x1FF) * 8);
            assert_eq!(leaf, (address & !0x1F_FFFF) | 0x83);
        }
    }

    #[test]
    fn an_elf_is_loaded_by_its_segments() {
        let mut elf = vec![0; 0x2000];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x18..0x20].copy_from_slice(&0x20_0040u64.to_le_bytes());
        elf[0x20..0x28].copy_from_slice(&64u64.to_le_bytes());
        elf[0x36..0x38].copy_from_slice(&56u16.to_le_bytes());
        elf[0x38..0x3A].copy_from_slice(&1u16.to_le_bytes());
        let phdr = [1u64, 0x1000, 0, 0x20_0000, 0x100, 0x3000, 0x1000];
        for (n, value) in phdr.into_iter().enumerate() {
            elf[64 + n * 8..72 + n * 8].copy_from_slice(&value.to_le_bytes());
        }
        elf[0x1000..0x1100].fill(0x90);
        let (entry, ram) = run(&elf, None, 32).unwrap();
        assert_eq!(entry.rip, 0x20_0040);
        assert_eq!(&ram[0x20_0000..0x20_0100], &[0x90; 0x100][..]);
        assert_eq!(ram[0x20_0100], 0);
        elf[64 + 8..64 + 16].copy_from_slice(&0x10_0000u64.to_le_bytes()); // offset outside the file
        assert_eq!(run(&elf, None, 32).unwrap_err(), (Which::Kernel, ImageError::Damaged));
    }

    #[test]
    fn bad_images_are_values() {
        assert_eq!(run(b"MZ", None, 32).unwrap_err(), (Which::Kernel, ImageError::Unknown));
        let mut cut = bzimage(100);
        cut[0x1F4] = 7;
        assert_eq!(run(&cut, None, 64).unwrap_err(), (Which::Kernel, ImageError::Damaged));
        let mut old = bzimage(100);
        old[0x236] = 0;
        assert_eq!(run(&old, None, 32).unwrap_err(), (Which::Kernel, ImageError::Old));
        assert_eq!(run(&bzimage(100), None, 17).unwrap_err(), (Which::Kernel, ImageError::NoRoom { needs_mib: 34 }));
        let large = vec![0; 40 << 20];
        assert!(matches!(run(&bzimage(100), Some(&large), 32), Err((Which::Initrd, ImageError::NoRoom { .. }))));
        let mut seed = 1u32;
        let good = bzimage(100);
        for _ in 0..20_000 {
            let mut image = good.clone();
            for _ in 0..4 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = 0x1F1 + (seed >> 8) as usize % 0x90;
                image[at] = seed as u8;
            }
            let layout = e820::Layout::new(24 << 20);
            let params = Params { cmdline: "", layout: &layout, rsdp: Gpa(0) };
            let _ = load(&image, None, &params, &mut Nowhere);
        }
    }

    struct Nowhere;

    impl Sink for Nowhere {
        fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), OutOfRange> {
            if gpa.0 + data.len() as u64 > 24 << 20 { Err(OutOfRange) } else { Ok(()) }
        }
    }
}
