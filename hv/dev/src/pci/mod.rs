//! PCI functions as the guest's bus sees them. Bus 0 only; each external device has function 0 only.

mod header;

use arrayvec::ArrayVec;
use hv_defs::{Nanos, Width};

pub use header::{Header, Identity};

/// Address space of a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Memory-mapped.
    Memory,
    /// Ports.
    Io,
}

/// An address range that a function decodes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarWindow {
    /// Index of the BAR's (first) register, 0 to 5.
    pub bar: u8,
    /// Which address space.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

impl BarWindow {
    /// Offset of `address` in the window, if it lies there.
    pub const fn offset_of(&self, address: u64) -> Option<u64> {
        match address.checked_sub(self.base) {
            Some(offset) if offset < self.size => Some(offset),
            _ => None,
        }
    }
}

/// The windows of one function.
pub type BarWindows = ArrayVec<BarWindow, 6>;

/// A PCI function with behaviour. Its configuration space is reached through both mechanisms, by aligned accesses of
/// 1, 2 or 4 bytes at offsets below 4096.
pub trait PciFunction: Send {
    /// Reads configuration space.
    fn config_read(&mut self, offset: u16, width: Width) -> u32;
    /// Writes configuration space.
    fn config_write(&mut self, offset: u16, width: Width, value: u32);
    /// What the function decodes now; honours COMMAND. Asked again after each configuration write.
    fn bars(&self) -> BarWindows;
    /// Reads from a BAR. Accesses may have any offset in it and any width.
    fn bar_read(&mut self, bar: u8, offset: u64, width: Width, now: Nanos) -> u64;
    /// Writes to a BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, width: Width, value: u64, now: Nanos);
    /// The machine's reset.
    fn reset(&mut self);
}

/// Whether a configuration access is one that a function may be given: aligned, within 4 KiB, at most 4 bytes.
pub(crate) const fn is_regular(offset: u16, width: Width) -> bool {
    width.bytes() <= 4 && (offset as usize).is_multiple_of(width.bytes()) && offset < 4096
}
