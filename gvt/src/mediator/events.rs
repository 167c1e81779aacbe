//! Events that engines signal to guests, and what becomes of those of a guest whose interrupts have taken Prism as much
//! time as they may (`crate::vgpu::budget`): the engine's mask hides them, and some time later they are passed on,
//! whether there were any or not, since the hardware keeps no trace of them. A completion takes them along: it costs
//! a message anyway, so who waits for each small submission waits no longer than before.

use super::{Gvt, VGPUS};
use crate::gpu::reset::{GUEST_EVENTS, OWN_EVENTS};
use crate::gpu::{Events, engines};
use crate::host::Host;
use crate::hw::Hw;
use crate::vgpu::Vgpu;
use crate::vgpu::budget::{self, Balance};
use gvt_defs::{Engine, Nanos, event, ring};

/// A vGPU that has had work for an engine this long ago still shares the GPU, in nanoseconds.
const RECENT: u64 = 10_000_000;

/// What the events of one interrupt cost, in units.
pub(super) struct Bill {
    /// vGPUs whose events came with it, a bit each.
    of: u32,
    /// What the call had cost before.
    before: u32,
    /// What passing the events on cost: all of it, if there is no other reason for the interrupt.
    passing: Option<u32>,
}

impl<W: Hw> Gvt<W> {
    /// Passes on the events that an interrupt brought; what that costs is to be settled at the end of the call.
    pub(super) fn pass_events(&mut self, host: &mut dyn Host, events: &Events, before: u32) -> Bill {
        let start = self.gpu.hw.meter.spent();
        let mut bill = Bill { of: 0, before, passing: None };
        let mut switched = false;
        for &(engine, bits) in events {
            if let Some(owner) = self.gpu.engines.get(engine).owner
                && bits & GUEST_EVENTS != 0
            {
                bill.of |= 1 << owner;
            }
            switched |= bits & event::CONTEXT_SWITCH != 0;
            self.engine_events(host, engine, bits);
        }
        if switched {
            bill.passing = Some(self.gpu.hw.meter.spent().saturating_sub(start));
        }
        bill
    }

    /// Each vGPU whose events an interrupt brought pays for it, as if it had come for that one's alone.
    pub(super) fn settle_bill(&mut self, host: &mut dyn Host, bill: &Bill, now: Nanos) {
        let all = self.gpu.hw.meter.spent().saturating_sub(bill.before).saturating_add(budget::ENTRY);
        let units = bill.passing.unwrap_or(all);
        for index in (0..VGPUS).filter(|index| bill.of >> index & 1 != 0) {
            let Some(vm) = self.vgpu(index).map(|vgpu| vgpu.vm) else { continue };
            let spent = self.pay(index, units, now) == Balance::Spent;
            if spent && (self.others_work(index, now) || host.is_cpu_wanted(vm)) {
                self.hold_back(index, now);
            }
        }
    }

    fn pay(&mut self, index: usize, units: u32, now: Nanos) -> Balance {
        let Some(vgpu) = self.vgpu_mut(index) else { return Balance::Left };
        vgpu.stats.interrupt_units += u64::from(units);
        vgpu.budget.take(units, now)
    }

    /// Whether a vGPU other than `index` has work for the GPU, or had some lately.
    fn others_work(&self, index: usize, now: Nanos) -> bool {
        let works = |vgpu: &Vgpu, engine| {
            let virt = vgpu.engines.get(engine);
            virt.wants() || virt.rested.0 != 0 && now.0.saturating_sub(virt.rested.0) < RECENT
        };
        let others = (0..VGPUS).filter(|other| *other != index);
        others.filter_map(|other| self.vgpu(other)).any(|vgpu| Engine::ALL.iter().any(|engine| works(vgpu, *engine)))
    }

    /// Hides a vGPU's events from now on.
    fn hold_back(&mut self, index: usize, now: Nanos) {
        let before = self.gpu.hw.meter.spent();
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        if vgpu.budget.holds_back() {
            return;
        }
        vgpu.budget.hold_back(now);
        vgpu.stats.merges += 1;
        self.note_holding();
        self.follow_imrs(index);
        let _ = self.pay(index, self.gpu.hw.meter.spent().saturating_sub(before), now);
    }

    /// Events that have been held back long enough are passed on.
    pub(super) fn let_go(&mut self, host: &mut dyn Host, now: Nanos) {
        if self.holding.is_none_or(|deadline| deadline > now) {
            return;
        }
        for index in 0..VGPUS {
            let before = self.gpu.hw.meter.spent();
            let Some(vgpu) = self.vgpu_mut(index) else { continue };
            if vgpu.budget.deadline().is_none_or(|deadline| deadline > now) {
                continue;
            }
            let hidden = vgpu.budget.let_go();
            // What comes after this is seen.
            self.follow_imrs(index);
            let Some(vgpu) = self.vgpu_mut(index) else { continue };
            for engine in engines(hidden) {
                vgpu.raise(host, engine, GUEST_EVENTS);
            }
            let spent = self.gpu.hw.meter.spent().saturating_sub(before);
            // A message and an entry of the timer's come on top.
            let _ = self.pay(index, spent.saturating_add(2 * budget::ENTRY), now);
        }
        self.note_holding();
    }

    /// Keeps the first time at which events are to be passed on: it is asked for after every access of a guest.
    fn note_holding(&mut self) {
        self.holding = self.vgpus.iter().flatten().filter_map(|vgpu| vgpu.budget.deadline()).min();
    }

    /// Events of an engine that an interrupt brought go to the vGPU that owns it, at once.
    pub(super) fn engine_events(&mut self, host: &mut dyn Host, engine: Engine, bits: u32) {
        if bits & (GUEST_EVENTS | event::CS_MASTER_ERROR) == 0 {
            return;
        }
        let Some(owner) = self.gpu.engines.get(engine).owner else { return };
        if bits & event::CS_MASTER_ERROR != 0 {
            self.pass_error(host, owner, engine);
        }
        if let Some(vgpu) = self.vgpu_mut(owner)
            && bits & GUEST_EVENTS != 0
        {
            vgpu.raise(host, engine, bits & GUEST_EVENTS);
        }
    }

    /// The engine met a command it cannot execute: its owner hears of it as from its own hardware.
    fn pass_error(&mut self, host: &mut dyn Host, owner: usize, engine: Engine) {
        let base = engine.base();
        let errors = self.gpu.hw.read(base + ring::EIR);
        self.gpu.hw.write(base + ring::EIR, errors);
        let state = [ring::ESR, ring::IPEHR, ring::INSTDONE, ring::HEAD].map(|at| (at, self.gpu.hw.read(base + at)));
        let Some(vgpu) = self.vgpu_mut(owner) else { return };
        for (local, value) in state {
            vgpu.file.set_engine(engine, local, value);
        }
        let visible = errors & !vgpu.file.engine(engine, ring::EMR);
        if visible != 0 {
            vgpu.file.set_engine(engine, ring::EIR, vgpu.file.engine(engine, ring::EIR) | visible);
            vgpu.raise(host, engine, event::CS_MASTER_ERROR);
        }
    }

    fn follow_imrs(&mut self, index: usize) {
        for engine in engines(self.gpu.present) {
            if self.gpu.engines.get(engine).owner == Some(index) {
                self.follow_imr(index, engine);
            }
        }
    }

    /// Lets through the events that the owner of an engine has unmasked, unless they are held back, and the mediator's
    /// own.
    pub(super) fn follow_imr(&mut self, index: usize, engine: Engine) {
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        let shift = engine.info().irq_shift;
        let mut guest = vgpu.file.engine(engine, ring::IMR) | !(GUEST_EVENTS << shift);
        if vgpu.budget.holds_back() {
            vgpu.budget.hide(engine);
            guest = u32::MAX;
        }
        let mask = guest & !(OWN_EVENTS << shift);
        self.gpu.engines.get_mut(engine).set_imr(&mut self.gpu.hw, mask);
    }
}
