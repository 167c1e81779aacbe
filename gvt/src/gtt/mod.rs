//! Page tables of a vGPU: the guest's as it wrote them, and the physical ones made from them at sync points.

mod ggtt;
mod partition;
mod ppgtt;
mod translate;

#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

pub use ggtt::{Ggtt, Share, Stamp, Unmapped};
pub use partition::Partition;
pub(crate) use ppgtt::WINDOW_PAGES;
pub use ppgtt::{Generation, Limits, Pin, Ppgtt, Shadow, Window};

use crate::host::{Dirty, Host, NoFrame, Owner, VmId};
use crate::hw::Hw;
use crate::units::Meter;
use gvt_defs::{Gfn, GgttAddr, Gpa, Hpa, PAGE_SIZE, PpgttAddr, reg};

/// What a sync point did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Synced {
    /// GGTT pages compared.
    pub ggtt_tables: u32,
    /// GGTT entries written (the global TLB was flushed if there were any).
    pub ggtt_entries: u32,
    /// PPGTT tables compared or built.
    pub ppgtt_tables: u32,
    /// PPGTT entries written.
    pub ppgtt_entries: u32,
    /// Engine TLBs must be flushed before the next submission, and before their registers read idle.
    pub flush: bool,
}

/// What a sync point has to follow still.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Waiting {
    /// Pages of the global table.
    global: usize,
    /// Process tables.
    process: usize,
}

impl Waiting {
    /// Nothing.
    pub const NONE: Self = Self { global: 0, process: 0 };
}

/// Process tables that are followed at a time: what takes about a millisecond (design D19).
const PROCESS_PART: u32 = 48;

impl Synced {
    /// Whether it took so little time that more can be done before others are let in.
    pub const fn is_short(&self) -> bool {
        self.ggtt_tables <= 4 && self.ggtt_entries <= 64 && self.ppgtt_tables <= 8
    }
}

/// All page tables of one vGPU.
#[derive(Debug)]
pub struct Gtt {
    vm: VmId,
    /// The global table.
    pub ggtt: Ggtt,
    /// The process tables.
    pub ppgtt: Ppgtt,
    scratch: Hpa,
}

impl Gtt {
    /// Maps the guest's table pages into its BAR0; every entry of the partition leads to scratch.
    ///
    /// # Errors
    /// `NoFrame` if the VM's quota is too small; nothing is kept then.
    pub fn new(
        host: &mut dyn Host,
        hw: &mut (impl Hw + ?Sized),
        vm: VmId,
        partition: Partition,
        limits: Limits,
    ) -> Result<Self, NoFrame> {
        let scratch = host.alloc_frame(Owner::Vm(vm))?;
        let ppgtt = match Ppgtt::new(host, vm, scratch, limits) {
            Ok(ppgtt) => ppgtt,
            Err(NoFrame) => {
                host.free_frame(Owner::Vm(vm), scratch);
                return Err(NoFrame);
            }
        };
        match Ggtt::new(host, hw, vm, partition, scratch) {
            Ok(ggtt) => Ok(Self { vm, ggtt, ppgtt, scratch }),
            Err(NoFrame) => {
                ppgtt.destroy_all(host);
                host.free_frame(Owner::Vm(vm), scratch);
                Err(NoFrame)
            }
        }
    }

    /// What is done from now on is counted here.
    pub(crate) fn meter(&mut self, meter: &Meter) {
        self.ggtt.meter = meter.clone();
        self.ppgtt.meter(meter);
    }

    /// A sync point in one go: harvests, compares what was written, mends the physical tables. `other` gets each frame
    /// that is watched but holds no page table.
    pub fn sync(&mut self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized), other: &mut dyn FnMut(Gfn)) -> Synced {
        self.harvest(host, other);
        let global = self.ggtt.sync(host, hw, Share::ALL);
        let process = self.ppgtt.sync(host);
        Synced {
            ggtt_tables: global.tables,
            ggtt_entries: global.entries,
            ppgtt_tables: process.tables,
            ppgtt_entries: process.entries,
            flush: self.ppgtt.needs_flush(),
        }
    }

    /// A sync point begins: harvests. Gives what it must follow.
    pub fn gather(&mut self, host: &mut dyn Host) -> Waiting {
        self.harvest(host, &mut |_| {});
        Waiting { global: self.ggtt.waiting(), process: self.ppgtt.waiting() }
    }

    /// Follows a part of what waits, and counts it off: the global table first, and the process tables with it where
    /// that took no time worth mentioning.
    pub fn sync_part(&mut self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized), left: &mut Waiting) -> Synced {
        let mut synced = Synced::default();
        if left.global > 0 {
            let work = self.ggtt.sync(host, hw, Share::PART);
            left.global = left.global.saturating_sub(work.tables.max(1) as usize);
            (synced.ggtt_tables, synced.ggtt_entries) = (work.tables, work.entries);
        }
        if left.global == 0 && left.process > 0 && synced.is_short() {
            let work = self.ppgtt.sync_part(host, PROCESS_PART);
            // It follows one of them at least; when it has followed all, none waits.
            left.process = (left.process - 1).min(self.ppgtt.waiting());
            (synced.ppgtt_tables, synced.ppgtt_entries) = (work.tables, work.entries);
        }
        synced.flush = self.ppgtt.needs_flush();
        synced
    }

    fn harvest(&mut self, host: &mut dyn Host, other: &mut dyn FnMut(Gfn)) {
        let (ggtt, ppgtt) = (&mut self.ggtt, &mut self.ppgtt);
        host.harvest(self.vm, &mut |dirty| match dirty {
            Dirty::Register(page) => {
                ggtt.mark(page);
            }
            Dirty::Guest(gfn) => {
                if !ppgtt.mark(gfn) {
                    other(gfn);
                }
            }
        });
    }

    /// A trapped load in the GGTT half of BAR0; `offset` is in BAR0.
    pub fn mmio_read(&self, host: &mut dyn Host, offset: u32, bytes: usize) -> u64 {
        offset.checked_sub(reg::GGTT_OFFSET as u32).map_or(0, |offset| self.ggtt.load(host, offset, bytes))
    }

    /// A trapped store in the GGTT half of BAR0; `offset` is in BAR0.
    pub fn mmio_write(&mut self, host: &mut dyn Host, offset: u32, bytes: usize, value: u64) {
        if let Some(offset) = offset.checked_sub(reg::GGTT_OFFSET as u32) {
            self.ggtt.store(host, offset, bytes, value);
        }
    }

    /// Copies from guest memory at a global graphics address.
    ///
    /// # Errors
    /// `Unmapped` if a byte of it is not the guest's; `buf` then holds nothing of use.
    pub fn read(&self, host: &mut dyn Host, addr: GgttAddr, buf: &mut [u8]) -> Result<(), Unmapped> {
        let mut at = addr.0;
        let mut left = buf;
        while !left.is_empty() {
            let (piece, rest) = split(left, u64::from(at));
            let gpa = self.ggtt.gpa(GgttAddr(at)).ok_or(Unmapped)?;
            host.read(self.vm, gpa, piece).map_err(|_| Unmapped)?;
            at = at.wrapping_add(piece.len() as u32);
            left = rest;
        }
        Ok(())
    }

    /// Copies to guest memory at a global graphics address.
    ///
    /// # Errors
    /// `Unmapped` if a byte of it is not the guest's; the pages before it are written.
    pub fn write(&self, host: &mut dyn Host, addr: GgttAddr, data: &[u8]) -> Result<(), Unmapped> {
        let mut at = addr.0;
        let mut left = data;
        while !left.is_empty() {
            let room = (PAGE_SIZE - u64::from(at) % PAGE_SIZE) as usize;
            let (piece, rest) = left.split_at(room.min(left.len()));
            let gpa = self.ggtt.gpa(GgttAddr(at)).ok_or(Unmapped)?;
            host.write(self.vm, gpa, piece).map_err(|_| Unmapped)?;
            at = at.wrapping_add(piece.len() as u32);
            left = rest;
        }
        Ok(())
    }

    /// Copies from guest memory at an address of the process space under `pml4`.
    ///
    /// # Errors
    /// `Unmapped` if a byte of it is not the guest's; `buf` then holds nothing of use.
    pub fn ppgtt_read(&self, host: &mut dyn Host, pml4: Gpa, addr: PpgttAddr, buf: &mut [u8]) -> Result<(), Unmapped> {
        let mut at = addr.0;
        let mut left = buf;
        while !left.is_empty() {
            let (piece, rest) = split(left, at);
            let gpa = self.ppgtt.gpa(host, pml4, PpgttAddr(at)).ok_or(Unmapped)?;
            host.read(self.vm, gpa, piece).map_err(|_| Unmapped)?;
            at = at.wrapping_add(piece.len() as u64);
            left = rest;
        }
        Ok(())
    }

    /// Virtual device reset: nothing is mapped any more. Roots in use stay until they are released.
    pub fn reset(&mut self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized)) {
        // What was written before the reset is of no interest.
        host.harvest(self.vm, &mut |_| ());
        self.ppgtt.clear(host);
        self.ggtt.clear(host, hw);
    }

    /// Frees everything. The caller runs nothing of this vGPU any more and has flushed the engine TLBs; the global
    /// entries lead to `dead` (and are flushed) before a frame goes.
    pub fn destroy(self, host: &mut dyn Host, hw: &mut (impl Hw + ?Sized), dead: Hpa) {
        self.ggtt.destroy(host, hw, dead);
        self.ppgtt.destroy_all(host);
        host.free_frame(Owner::Vm(self.vm), self.scratch);
    }
}

/// Cuts a buffer at the next page boundary of `at`.
fn split(buf: &mut [u8], at: u64) -> (&mut [u8], &mut [u8]) {
    let room = (PAGE_SIZE - at % PAGE_SIZE) as usize;
    let room = room.min(buf.len());
    buf.split_at_mut(room)
}
