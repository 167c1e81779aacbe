//! The firmware configuration device that OVMF takes its memory map and ACPI tables from: ports 0x510-0x51B, with DMA.
//! Facts: QEMU documentation, docs/specs/fw_cfg.rst. Optional: a directly booted guest has none.

use alloc::boxed::Box;
use alloc::vec::Vec;

use hv_defs::{Gpa, Width};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_CPU_COUNT: u16 = 0x05;
const KEY_DIRECTORY: u16 = 0x19;
const KEY_FIRST_FILE: u16 = 0x20;
/// Kernel, initrd, command line and setup sizes: firmware takes what it finds here for a kernel to boot.
const KEYS_OF_ZERO: [u16; 5] = [0x08, 0x0B, 0x0E, 0x14, 0x17];
/// Selector bits that do not belong to the key: write channel.
const KEY_MASK: u16 = 0xBFFF;

/// Traditional interface and DMA.
const ID: u32 = 0b11;
/// What the DMA address register reads as, big-endian.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;
/// Zeros that one transfer may append to an item. More is refused: a length of 4 GiB would keep us busy.
const MAX_PADDING: u64 = 64 << 10;
/// How much is copied at a time.
const CHUNK: usize = 512;

const NAME: usize = 56;
const MAX_FILES: usize = 64;

/// Data of an item that may be too large to copy: a kernel, an initrd.
pub trait Blob: Send {
    /// Its length in bytes.
    fn size(&self) -> u64;
    /// Copies bytes from `offset` on; the range lies within `size`.
    fn read(&self, offset: u64, buf: &mut [u8]);
}

impl Blob for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }
    fn read(&self, offset: u64, buf: &mut [u8]) {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..buf.len()));
        if let Some(from) = from {
            buf.copy_from_slice(from);
        }
    }
}

/// Guest RAM, for DMA.
pub trait Ram {
    /// Copies out of RAM; `None` if a byte of the range is not RAM.
    fn read(&mut self, gpa: Gpa, buf: &mut [u8]) -> Option<()>;
    /// Copies into RAM.
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Option<()>;
}

/// The name is too long, or there are too many files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoPlace;

enum Data {
    Fixed(Box<dyn Blob>),
    /// The guest may change it, not its length.
    Writable(Vec<u8>),
}

struct Item {
    key: u16,
    name: Option<[u8; NAME]>,
    data: Data,
}

impl Item {
    fn size(&self) -> u64 {
        match &self.data {
            Data::Fixed(blob) => blob.size(),
            Data::Writable(bytes) => bytes.size(),
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        match &self.data {
            Data::Fixed(blob) => blob.read(offset, buf),
            Data::Writable(bytes) => bytes.read(offset, buf),
        }
    }
}

/// The device.
pub struct FwCfg {
    items: Vec<Item>,
    selected: u16,
    offset: u64,
    dma_high: u32,
}

impl FwCfg {
    /// A device that names the number of vCPUs and has no files.
    pub fn new(vcpus: u16) -> Self {
        let mut device = Self { items: Vec::new(), selected: 0, offset: 0, dma_high: 0 };
        device.add(KEY_SIGNATURE, None, b"QEMU".to_vec());
        device.add(KEY_ID, None, ID.to_le_bytes().to_vec());
        device.add(KEY_CPU_COUNT, None, vcpus.to_le_bytes().to_vec());
        KEYS_OF_ZERO.into_iter().for_each(|key| device.add(key, None, alloc::vec![0; 4]));
        device.add(KEY_DIRECTORY, None, 0u32.to_be_bytes().to_vec());
        device
    }

    /// Adds a file, or replaces the one with that name.
    ///
    /// # Errors
    /// `NoPlace`.
    pub fn set_file(&mut self, name: &str, data: impl Blob + 'static) -> Result<(), NoPlace> {
        self.put_file(name, Data::Fixed(Box::new(data)))
    }

    /// Adds a file that the guest writes, such as `etc/ramfb`.
    ///
    /// # Errors
    /// `NoPlace`.
    pub fn set_writable_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), NoPlace> {
        self.put_file(name, Data::Writable(data))
    }

    /// What the guest has written to a writable file.
    pub fn written(&self, name: &str) -> Option<&[u8]> {
        let name = padded(name)?;
        self.items.iter().find_map(|item| match &item.data {
            Data::Writable(bytes) if item.name == Some(name) => Some(&bytes[..]),
            _ => None,
        })
    }

    /// Replaces a numbered item: 0x11 and 0x08 for a kernel and its size, and so on.
    pub fn set_item(&mut self, key: u16, data: impl Blob + 'static) {
        self.items.retain(|item| item.key != key);
        self.items.push(Item { key, name: None, data: Data::Fixed(Box::new(data)) });
    }

    /// The machine's reset.
    pub fn reset(&mut self) {
        (self.selected, self.offset, self.dma_high) = (0, 0, 0);
    }

    /// Reads a port; `None` if it is not the device's.
    pub fn port_read(&mut self, port: u16, width: Width) -> Option<u32> {
        match (port, width) {
            (DATA, Width::B1) => {
                let mut byte = [0];
                self.take(&mut byte);
                Some(byte[0].into())
            }
            (DMA_HIGH..=0x51B, _) => {
                let at = usize::from(port - DMA_HIGH);
                let bytes = DMA_SIGNATURE.get(at..at + width.bytes().min(4))?;
                Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            }
            _ => None,
        }
    }

    /// Writes a port; `None` if it is not the device's. DMA is done when this returns.
    pub fn port_write(&mut self, port: u16, width: Width, value: u32, ram: &mut dyn Ram) -> Option<()> {
        match (port, width) {
            (SELECTOR, Width::B2) => self.select(value as u16),
            // Writing data through the port went out of use long ago.
            (DATA, Width::B1) => {}
            (DMA_HIGH, Width::B4) => self.dma_high = value.swap_bytes(),
            (DMA_LOW, Width::B4) => {
                let high = core::mem::take(&mut self.dma_high);
                self.transfer(Gpa(u64::from(high) << 32 | u64::from(value.swap_bytes())), ram);
            }
            _ => return None,
        }
        Some(())
    }
}

impl FwCfg {
    fn add(&mut self, key: u16, name: Option<[u8; NAME]>, data: Vec<u8>) {
        self.items.push(Item { key, name, data: Data::Fixed(Box::new(data)) });
    }

    fn put_file(&mut self, name: &str, data: Data) -> Result<(), NoPlace> {
        let name = padded(name).ok_or(NoPlace)?;
        let files = self.items.iter().filter(|item| item.name.is_some());
        let next = files.clone().map(|item| item.key + 1).max().unwrap_or(KEY_FIRST_FILE);
        let count = files.count();
        if let Some(item) = self.items.iter_mut().find(|item| item.name == Some(name)) {
            item.data = data;
        } else if count < MAX_FILES {
            self.items.push(Item { key: next, name: Some(name), data });
        } else {
            return Err(NoPlace);
        }
        self.set_item(KEY_DIRECTORY, self.directory());
        Ok(())
    }

    fn directory(&self) -> Vec<u8> {
        let files = self.items.iter().filter_map(|item| Some((item, item.name?)));
        let mut bytes = (files.clone().count() as u32).to_be_bytes().to_vec();
        for (item, name) in files {
            bytes.extend_from_slice(&(item.size() as u32).to_be_bytes());
            bytes.extend_from_slice(&item.key.to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&name);
        }
        bytes
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.offset) = (key & KEY_MASK, 0);
    }

    fn item(&self) -> Option<&Item> {
        self.items.iter().find(|item| item.key == self.selected)
    }

    /// Bytes of the item that have not been read.
    fn left(&self) -> u64 {
        self.item().map_or(0, |item| item.size().saturating_sub(self.offset))
    }

    /// Reads on in the item; behind its end there are zeros.
    fn take(&mut self, buf: &mut [u8]) {
        let real = self.left().min(buf.len() as u64) as usize;
        buf.fill(0);
        if let (Some(item), Some(buf)) = (self.item(), buf.get_mut(..real)) {
            item.read(self.offset, buf);
        }
        self.offset = self.offset.saturating_add(buf.len() as u64);
    }

    /// Carries out the DMA command at `place` and reports there.
    fn transfer(&mut self, place: Gpa, ram: &mut dyn Ram) {
        let mut command = [0; 16];
        if ram.read(place, &mut command).is_none() {
            return;
        }
        let [a, b, c, d, e, f, g, h, address @ ..] = command;
        let (control, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let (address, length) = (Gpa(u64::from_be_bytes(address)), u64::from(length));
        let done = if control & DMA_READ != 0 {
            self.read_to(address, length, ram)
        } else if control & DMA_WRITE != 0 {
            self.write_from(address, length, ram)
        } else {
            if control & DMA_SKIP != 0 {
                self.offset = self.offset.saturating_add(length);
            }
            Some(())
        };
        let status = if done.is_some() { 0 } else { DMA_ERROR };
        // It was readable a moment ago; if it is not writable, nobody can be told.
        let _ = ram.write(place, &status.to_be_bytes());
    }

    fn read_to(&mut self, to: Gpa, length: u64, ram: &mut dyn Ram) -> Option<()> {
        (length <= self.left() + MAX_PADDING).then_some(())?;
        let mut buf = [0; CHUNK];
        let mut done = 0;
        while done < length {
            let piece = buf.get_mut(..(length - done).min(CHUNK as u64) as usize)?;
            self.take(piece);
            ram.write(to.checked_add(done)?, piece)?;
            done += piece.len() as u64;
        }
        Some(())
    }

    fn write_from(&mut self, from: Gpa, length: u64, ram: &mut dyn Ram) -> Option<()> {
        let (selected, offset) = (self.selected, usize::try_from(self.offset).ok()?);
        let item = self.items.iter_mut().find(|item| item.key == selected)?;
        let Data::Writable(bytes) = &mut item.data else {
            return None;
        };
        let end = offset.checked_add(usize::try_from(length).ok()?)?;
        ram.read(from, bytes.get_mut(offset..end)?)?;
        self.offset = end as u64;
        Some(())
    }
}

fn padded(name: &str) -> Option<[u8; NAME]> {
    let mut bytes = [0; NAME];
    // The last byte stays zero: the name is a C string.
    bytes.get_mut(..NAME - 1)?.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl Ram for Memory {
        fn read(&mut self, gpa: Gpa, buf: &mut [u8]) -> Option<()> {
            let at = usize::try_from(gpa.0).ok()?;
            buf.copy_from_slice(self.0.get(at..at.checked_add(buf.len())?)?);
            Some(())
        }
        fn write(&mut self, gpa: Gpa, data: &[u8]) -> Option<()> {
            let at = usize::try_from(gpa.0).ok()?;
            self.0.get_mut(at..at.checked_add(data.len())?)?.copy_from_slice(data);
            Some(())
        }
    }

    const COMMAND: u64 = 0x1000;
    const BUFFER: u64 = 0x2000;

    fn device() -> (FwCfg, Memory) {
        let mut device = FwCfg::new(2);
        device.set_file("etc/e820", vec![1, 2, 3]).unwrap();
        device.set_writable_file("etc/ramfb", vec![0; 28]).unwrap();
        (device, Memory(vec![0xAA; 0x10_0000]))
    }

    fn select(device: &mut FwCfg, key: u16, ram: &mut Memory) {
        device.port_write(SELECTOR, Width::B2, key.into(), ram).unwrap();
    }

    fn bytes(device: &mut FwCfg, count: usize) -> Vec<u8> {
        (0..count).map(|_| device.port_read(DATA, Width::B1).unwrap() as u8).collect()
    }

    fn dma(device: &mut FwCfg, ram: &mut Memory, control: u32, length: u32, address: u64) -> u32 {
        let command = [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
        ram.write(Gpa(COMMAND), &command).unwrap();
        device.port_write(DMA_HIGH, Width::B4, 0, ram).unwrap();
        device.port_write(DMA_LOW, Width::B4, (COMMAND as u32).swap_bytes(), ram).unwrap();
        let mut status = [0; 4];
        ram.read(Gpa(COMMAND), &mut status).unwrap();
        u32::from_be_bytes(status)
    }

    #[test]
    fn firmware_finds_the_device_and_its_files() {
        let (mut device, mut ram) = device();
        assert_eq!(bytes(&mut device, 5), *b"QEMU\0");
        select(&mut device, KEY_ID, &mut ram);
        assert_eq!(bytes(&mut device, 4), [3, 0, 0, 0]);
        assert_eq!(device.port_read(DMA_HIGH, Width::B4), Some(u32::from_le_bytes(*b"QEMU")));
        select(&mut device, KEY_CPU_COUNT, &mut ram);
        assert_eq!(bytes(&mut device, 2), [2, 0]);
        select(&mut device, KEY_DIRECTORY, &mut ram);
        let directory = bytes(&mut device, 4 + 2 * 64);
        assert_eq!(directory[..12], [0, 0, 0, 2, 0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(directory[12..21], *b"etc/e820\0");
        assert_eq!(directory[68..74], [0, 0, 0, 28, 0, 0x21]);
        select(&mut device, 0x20, &mut ram);
        assert_eq!(bytes(&mut device, 4), [1, 2, 3, 0]);
    }

    #[test]
    fn dma_reads_skips_and_pads() {
        let (mut device, mut ram) = device();
        assert_eq!(dma(&mut device, &mut ram, 0x20 << 16 | DMA_SELECT | DMA_SKIP, 1, 0), 0);
        assert_eq!(dma(&mut device, &mut ram, DMA_READ, 4, BUFFER), 0);
        assert_eq!(ram.0[BUFFER as usize..][..5], [2, 3, 0, 0, 0xAA]);
        device.set_file("big", vec![7; 1000]).unwrap();
        assert_eq!(dma(&mut device, &mut ram, 0x22 << 16 | DMA_SELECT | DMA_READ, 1000, BUFFER), 0);
        assert_eq!(ram.0[BUFFER as usize..][998..1001], [7, 7, 0xAA]);
    }

    #[test]
    fn dma_writes_only_what_is_writable() {
        let (mut device, mut ram) = device();
        assert_eq!(dma(&mut device, &mut ram, 0x21 << 16 | DMA_SELECT | DMA_WRITE, 28, BUFFER), 0);
        assert_eq!(device.written("etc/ramfb"), Some(&[0xAA; 28][..]));
        assert_eq!(dma(&mut device, &mut ram, 0x21 << 16 | DMA_SELECT | DMA_WRITE, 29, BUFFER), DMA_ERROR);
        assert_eq!(dma(&mut device, &mut ram, 0x20 << 16 | DMA_SELECT | DMA_WRITE, 1, BUFFER), DMA_ERROR);
        assert_eq!(device.written("etc/e820"), None);
    }

    #[test]
    fn hostile_transfers_are_refused() {
        let (mut device, mut ram) = device();
        assert_eq!(dma(&mut device, &mut ram, 0x20 << 16 | DMA_SELECT | DMA_READ, u32::MAX, BUFFER), DMA_ERROR);
        assert_eq!(dma(&mut device, &mut ram, 0x20 << 16 | DMA_SELECT | DMA_READ, 3, u64::MAX - 1), DMA_ERROR);
        assert_eq!(dma(&mut device, &mut ram, 0x20 << 16 | DMA_SELECT | DMA_READ, 3, 0xF_FFFF), DMA_ERROR);
        assert_eq!(dma(&mut device, &mut ram, 0x7777 << 16 | DMA_SELECT | DMA_READ, 3, BUFFER), 0, "reads zeros");
        device.port_write(DMA_LOW, Width::B4, u32::MAX, &mut ram).unwrap();
        for _ in 0..40 {
            assert_eq!(dma(&mut device, &mut ram, DMA_SKIP, u32::MAX, 0), 0);
        }
        assert_eq!(bytes(&mut device, 1), [0]);
        assert_eq!(device.set_file(&"x".repeat(56), vec![]), Err(NoPlace));
    }
}
