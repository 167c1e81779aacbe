//! What work costs (design D19). A unit is about a microsecond on metal. All that the mediator does for a guest is made
//! of calls of `Host` and `Hw`, which are counted where they pass, and of entries and commands looked at, which are
//! counted where that is done. What the longest call cost is kept; that none may pass 1,000 units is not enforced yet.

use crate::host::{Backing, Dirty, Host, Mapping, NoFrame, NotRam, Owner, VmId};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use gvt_defs::{Gfn, Gpa, Hpa};

#[cfg(test)]
mod tests;

/// Prices are in parts of a unit.
const UNIT: u64 = 19_200;
/// Bytes that copies are counted by.
const LINE: usize = 64;

/// A piece of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// A register read or written, or an entry of the global page table written.
    Register,
    /// An entry of a page table, or a register of a file, looked at.
    Entry,
    /// An entry of a page table that changed, translated.
    Change,
    /// A dword of commands audited.
    Dword,
    /// A command whose operands are judged.
    Command,
    /// A frame zeroed, when it is given out or comes back.
    Frame,
    /// A look for the memory behind an address, or for a page's place.
    Lookup,
    /// A line copied: 64 of them are a table.
    Line,
    /// A page that is watched from now on, or no more.
    Watch,
    /// A page of BAR0 that is mapped in another way.
    Map,
    /// A harvest: processors that run the guest are interrupted.
    Harvest,
    /// A page that a harvest hands out.
    Dirty,
    /// A message to a guest.
    Message,
}

impl Work {
    /// The price table: measured by `units_cost` in the tests, but for what only silicon or a hypervisor can tell.
    #[inline]
    const fn price(self) -> u64 {
        match self {
            Self::Register | Self::Map => UNIT,
            Self::Entry => UNIT / 400,
            Self::Change => UNIT / 60,
            Self::Dword => UNIT / 300,
            Self::Command => UNIT / 100,
            Self::Frame | Self::Watch => UNIT / 2,
            Self::Lookup => UNIT / 40,
            Self::Line => UNIT / 2 / 64,
            Self::Harvest => 10 * UNIT,
            Self::Dirty => UNIT / 20,
            Self::Message => 2 * UNIT,
        }
    }
}

/// Whole units that parts of units amount to.
pub(crate) fn units(parts: u64) -> u32 {
    u32::try_from(parts.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// What the present call has cost. All parts that do work share it; they never do so at the same time.
#[derive(Clone, Default, Debug)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl Meter {
    /// A call begins.
    #[inline]
    pub(crate) fn start(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Counts work.
    #[inline]
    pub(crate) fn charge(&self, work: Work, count: usize) {
        let cost = work.price().saturating_mul(count as u64);
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(cost), Ordering::Relaxed);
    }

    /// Units spent.
    pub(crate) fn spent(&self) -> u32 {
        units(self.parts())
    }

    /// Parts of units spent: what most calls compare is not worth a division.
    #[inline]
    pub(crate) fn parts(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The hypervisor, each of its services at its price.
pub(crate) struct Metered<'a> {
    host: &'a mut dyn Host,
    meter: &'a Meter,
}

impl<'a> Metered<'a> {
    #[inline]
    pub(crate) fn new(host: &'a mut dyn Host, meter: &'a Meter) -> Self {
        Self { host, meter }
    }

    fn copy(&self, bytes: usize) {
        self.meter.charge(Work::Lookup, 1);
        self.meter.charge(Work::Line, bytes.div_ceil(LINE));
    }
}

impl Host for Metered<'_> {
    fn read(&mut self, vm: VmId, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        self.copy(buf.len());
        self.host.read(vm, gpa, buf)
    }

    fn write(&mut self, vm: VmId, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.copy(data.len());
        self.host.write(vm, gpa, data)
    }

    fn translate(&mut self, vm: VmId, gfn: Gfn) -> Option<Backing> {
        self.meter.charge(Work::Lookup, 1);
        self.host.translate(vm, gfn)
    }

    fn track(&mut self, vm: VmId, gfn: Gfn) -> Result<(), NotRam> {
        self.meter.charge(Work::Watch, 1);
        self.host.track(vm, gfn)
    }

    fn untrack(&mut self, vm: VmId, gfn: Gfn) {
        self.meter.charge(Work::Watch, 1);
        self.host.untrack(vm, gfn);
    }

    fn harvest(&mut self, vm: VmId, each: &mut dyn FnMut(Dirty)) {
        self.meter.charge(Work::Harvest, 1);
        self.host.harvest(vm, &mut |dirty| {
            self.meter.charge(Work::Dirty, 1);
            each(dirty);
        });
    }

    fn alloc_frame(&mut self, owner: Owner) -> Result<Hpa, NoFrame> {
        self.meter.charge(Work::Frame, 1);
        self.host.alloc_frame(owner)
    }

    fn free_frame(&mut self, owner: Owner, frame: Hpa) {
        self.meter.charge(Work::Frame, 1);
        self.host.free_frame(owner, frame);
    }

    fn read_frame(&mut self, frame: Hpa, offset: usize, buf: &mut [u8]) {
        self.copy(buf.len());
        self.host.read_frame(frame, offset, buf);
    }

    fn write_frame(&mut self, frame: Hpa, offset: usize, data: &[u8]) {
        self.copy(data.len());
        self.host.write_frame(frame, offset, data);
    }

    fn map_register_page(&mut self, vm: VmId, page: u32, mapping: Mapping) {
        self.meter.charge(Work::Map, 1);
        self.host.map_register_page(vm, page, mapping);
    }

    fn raise_msi(&mut self, vm: VmId, address: u64, data: u32) {
        self.meter.charge(Work::Message, 1);
        self.host.raise_msi(vm, address, data);
    }

    fn is_cpu_wanted(&mut self, vm: VmId) -> bool {
        self.meter.charge(Work::Lookup, 1);
        self.host.is_cpu_wanted(vm)
    }
}
