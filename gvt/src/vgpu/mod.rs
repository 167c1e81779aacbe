//! One virtual GPU: configuration space, registers, interrupts, page tables, virtual engines.

pub(crate) mod budget;
pub(crate) mod config_space;
pub(crate) mod context;
pub(crate) mod copies;
pub(crate) mod execlist;
pub(crate) mod irq;
pub(crate) mod pvinfo;
pub(crate) mod registers;

use crate::gpu::PerEngine;
use crate::gtt::{Gtt, Partition};
use crate::host::{Host, Mapping, VmId};
use crate::stats::Stats;
use budget::Budget;
use config_space::ConfigSpace;
use execlist::VirtEngine;
use gvt_defs::execlist::{CSB_ENTRIES, CsbEntry, HWSP_CSB, HWSP_CSB_WRITE, csb_next};
use gvt_defs::reg::irq::MASTER;
use gvt_defs::{Engine, EngineMask, GgttAddr, Hpa, Nanos, event, ring};
use irq::{Edge, Irq};
use registers::RegisterFile;

/// Fence registers of a vGPU: first physical one and count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fences {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// The vGPU.
pub(crate) struct Vgpu {
    pub(crate) vm: VmId,
    pub(crate) weight: u64,
    pub(crate) config: ConfigSpace,
    pub(crate) file: RegisterFile,
    pub(crate) irq: Irq,
    /// The frame that the guest sees as its interrupt registers.
    pub(crate) irq_frame: Hpa,
    pub(crate) partition: Partition,
    pub(crate) gtt: Gtt,
    pub(crate) fences: Fences,
    pub(crate) engines: PerEngine<VirtEngine>,
    /// Pages of the mediator's graphics addresses that its shadows hold.
    pub(crate) pool_pages: u32,
    /// Engines whose switch registers the guest wrote since they were loaded.
    pub(crate) switch_dirty: EngineMask,
    /// A message is due at the end of this call.
    pub(crate) msi_due: bool,
    /// Resets of engines that others waited for, and the second in which they are counted.
    pub(crate) storm: Storm,
    /// What its interrupts may take of Prism's time.
    pub(crate) budget: Budget,
    pub(crate) stats: Stats,
}

/// Resets counted for a second.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Storm {
    since: Nanos,
    resets: u32,
}

impl Storm {
    /// Counts one; says how many there were in this second.
    pub(crate) fn count(&mut self, now: Nanos) -> u32 {
        if now.0.saturating_sub(self.since.0) >= 1_000_000_000 {
            *self = Self { since: now, resets: 0 };
        }
        self.resets = self.resets.saturating_add(1);
        self.resets
    }
}

impl Vgpu {
    /// Stores a register, and in the mapped page too.
    pub(crate) fn store(&mut self, host: &mut dyn Host, offset: u32, value: u32) {
        self.file.set(offset, value);
        if offset / 4096 == irq::PAGE {
            host.write_frame(self.irq_frame, (offset % 4096) as usize, &value.to_le_bytes());
        }
    }

    /// Fills the interrupt page and maps it.
    pub(crate) fn map_irq_page(&mut self, host: &mut dyn Host) {
        if let Some(page) = self.file.page(irq::PAGE) {
            for (index, value) in page.iter().enumerate() {
                host.write_frame(self.irq_frame, 4 * index, &value.to_le_bytes());
            }
        }
        for bank in gvt_defs::reg::irq::BANKS {
            self.show_irq(host, bank.base);
        }
        host.map_register_page(self.vm, irq::PAGE, Mapping::ReadOnly(self.irq_frame));
    }

    /// Writes what the guest may read of a bank, and of the master register, to the mapped page.
    fn show_irq(&mut self, host: &mut dyn Host, bank: u32) {
        let registers = [bank, bank + 4, bank + 8, bank + 12, MASTER];
        for offset in registers {
            let value = self.irq.read(offset);
            if self.file.get(offset) != value {
                self.store(host, offset, value);
            }
        }
    }

    /// The guest writes an interrupt register.
    pub(crate) fn write_irq(&mut self, host: &mut dyn Host, offset: u32, value: u32, lanes: u32) {
        let edge = if offset == MASTER {
            // Other lanes than the top one do not hold the enable bit.
            if lanes >> 31 == 0 { Edge::None } else { self.irq.write_master(value) }
        } else {
            self.irq.write(offset, value, lanes)
        };
        self.show_irq(host, offset & !0xF);
        self.msi_due |= edge == Edge::Raise;
    }

    /// An engine's events (bits of `gvt_defs::event`) reach the guest.
    pub(crate) fn raise(&mut self, host: &mut dyn Host, engine: Engine, events: u32) {
        let mask = self.file.get(irq::ring_imr(engine));
        let edge = self.irq.engine_event(engine, events, mask);
        self.show_irq(host, gvt_defs::reg::irq::GT_BANK0 + 0x10 * engine.info().irq_bank);
        self.msi_due |= edge == Edge::Raise;
    }

    /// The guest may have enabled messages: what is pending needs one.
    pub(crate) fn recheck_irq(&mut self) {
        self.msi_due |= self.irq.recheck() == Edge::Raise;
    }

    /// Sends the message that is due.
    pub(crate) fn send_msi(&mut self, host: &mut dyn Host) -> Sent {
        if !core::mem::take(&mut self.msi_due) {
            return Sent::Nothing;
        }
        let Some(target) = self.config.msi() else {
            self.irq.undelivered();
            return Sent::Nothing;
        };
        self.stats.msis += 1;
        host.raise_msi(self.vm, target.address, target.data);
        Sent::Message
    }

    /// Tells the guest the status entries that were held: entries, then the index, then the interrupt.
    pub(crate) fn tell(&mut self, host: &mut dyn Host, engine: Engine) -> arrayvec::ArrayVec<CsbEntry, 8> {
        let held = core::mem::take(&mut self.engines.get_mut(engine).held);
        if held.is_empty() {
            return held;
        }
        let status_page = self.file.status_page(engine);
        let pointer = self.file.engine(engine, ring::CSB_PTR);
        let mut write = pointer & 7;
        for entry in &held {
            write = csb_next(write);
            self.file.set_engine(engine, ring::CSB + 8 * write, entry.status);
            self.file.set_engine(engine, ring::CSB + 8 * write + 4, entry.id);
            let bytes = (u64::from(entry.id) << 32 | u64::from(entry.status)).to_le_bytes();
            self.write_status_page(host, status_page, HWSP_CSB + 8 * write, &bytes);
        }
        self.file.set_engine(engine, ring::CSB_PTR, pointer & !7 | write);
        self.write_status_page(host, status_page, HWSP_CSB_WRITE, &write.to_le_bytes());
        // It costs a message anyway: what is held back of the engine's events comes with it.
        let along = if self.budget.hides(engine) { event::USER_INTERRUPT | event::FLUSH_NOTIFY } else { 0 };
        self.raise(host, engine, event::CONTEXT_SWITCH | along);
        held
    }

    fn write_status_page(&self, host: &mut dyn Host, page: GgttAddr, offset: u32, data: &[u8]) {
        if page.0 != 0 {
            // A status page that is mapped nowhere is the guest's loss; it has the registers.
            let _ = self.gtt.write(host, GgttAddr(page.0 + offset), data);
        }
    }

    /// Puts a virtual engine back to its state after a reset. Nothing of it is on the hardware.
    pub(crate) fn reset_engine(&mut self, host: &mut dyn Host, engine: Engine) {
        let virt = self.engines.get_mut(engine);
        virt.elsp.clear();
        virt.active = None;
        virt.pending = None;
        virt.held.clear();
        virt.failed = false;
        virt.owed = 0;
        virt.last = None;
        if let Some(work) = virt.work.take() {
            self.gtt.ppgtt.release(host, work.pin);
        }
        for slot in virt.slots.iter_mut().flatten() {
            // The guest rebuilds its images: what the hardware had of them is void.
            slot.newer = false;
            slot.stamp = None;
        }
        self.file.reset_engine(engine);
    }

    /// The guest sets the status buffer's pointers (i915 does after every reset).
    pub(crate) fn set_csb_pointer(&mut self, engine: Engine, value: u32) {
        let clamp = |pointer: u32| if pointer >= CSB_ENTRIES { 7 } else { pointer };
        let (read, write) = (clamp(value >> 8 & 7), clamp(value & 7));
        self.file.set_engine(engine, ring::CSB_PTR, read << 8 | write);
    }
}

/// Whether a message went out.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    Nothing,
    Message,
}
