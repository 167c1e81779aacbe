//! The physical GPU: everything that touches `Hw` except the page tables.

pub(crate) mod engine;
pub(crate) mod init;
pub(crate) mod parking;
pub(crate) mod pool;
pub(crate) mod reset;
pub(crate) mod switch;
pub(crate) mod wash;

use crate::hw::{Aperture, Hw};
use crate::stats::Totals;
use crate::units::{Meter, Work};
use alloc::vec::Vec;
use engine::{Health, PhysEngine};
use gvt_defs::reg::irq;
use gvt_defs::{ENGINES, Engine, EngineMask, event, reg};
use pool::Pool;

/// PCI configuration space as it was before anything touched the GPU, in dwords.
pub(crate) type ConfigSnapshot = [u32; 64];

/// Reads of a self-clearing or acknowledging register before it counts as dead: some milliseconds. Silicon needs
/// microseconds.
pub(crate) const POLLS: u32 = 5_000;

/// `Hw` with its accesses counted.
pub(crate) struct Counted<W> {
    inner: W,
    pub(crate) meter: Meter,
    pub(crate) totals: Totals,
}

impl<W: Hw> Counted<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, meter: Meter::default(), totals: Totals::default() }
    }

    /// Register accesses so far.
    pub(crate) fn accesses(&self) -> u64 {
        self.totals.reads + self.totals.writes
    }

    /// Reads `offset` until `done`, a bounded number of times.
    pub(crate) fn poll(&mut self, offset: u32, done: impl Fn(u32) -> bool) -> bool {
        (0..POLLS).any(|_| done(self.read(offset)))
    }
}

impl<W: Hw> Hw for Counted<W> {
    fn config_read(&mut self, offset: u16) -> u32 {
        self.meter.charge(Work::Register, 1);
        self.inner.config_read(offset)
    }

    fn config_write(&mut self, offset: u16, value: u32) {
        self.meter.charge(Work::Register, 1);
        self.inner.config_write(offset, value);
    }

    fn read(&mut self, offset: u32) -> u32 {
        self.totals.reads += 1;
        self.meter.charge(Work::Register, 1);
        self.inner.read(offset)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.totals.writes += 1;
        self.meter.charge(Work::Register, 1);
        self.inner.write(offset, value);
    }

    fn ggtt_read(&mut self, index: u32) -> u64 {
        self.meter.charge(Work::Register, 1);
        self.inner.ggtt_read(index)
    }

    fn ggtt_write(&mut self, index: u32, pte: u64) {
        self.totals.ptes += 1;
        self.meter.charge(Work::Register, 1);
        self.inner.ggtt_write(index, pte);
    }

    fn ggtt_entries(&mut self) -> u32 {
        self.inner.ggtt_entries()
    }

    fn aperture(&mut self) -> Aperture {
        self.inner.aperture()
    }
}

/// One value per engine, reachable without indexing.
#[derive(Debug)]
pub(crate) struct PerEngine<T>([T; ENGINES]);

impl<T> PerEngine<T> {
    pub(crate) fn from_fn(make: impl FnMut(Engine) -> T) -> Self {
        Self(Engine::ALL.map(make))
    }

    pub(crate) const fn from_array(values: [T; ENGINES]) -> Self {
        Self(values)
    }

    pub(crate) fn get(&self, engine: Engine) -> &T {
        let [rcs, bcs, vcs0, vcs1, vecs] = &self.0;
        match engine {
            Engine::Rcs => rcs,
            Engine::Bcs => bcs,
            Engine::Vcs0 => vcs0,
            Engine::Vcs1 => vcs1,
            Engine::Vecs => vecs,
        }
    }

    pub(crate) fn get_mut(&mut self, engine: Engine) -> &mut T {
        let [rcs, bcs, vcs0, vcs1, vecs] = &mut self.0;
        match engine {
            Engine::Rcs => rcs,
            Engine::Bcs => bcs,
            Engine::Vcs0 => vcs0,
            Engine::Vcs1 => vcs1,
            Engine::Vecs => vecs,
        }
    }
}

/// The engines that a set names.
pub(crate) fn engines(mask: EngineMask) -> impl Iterator<Item = Engine> {
    Engine::ALL.into_iter().filter(move |engine| mask.has(*engine))
}

/// The physical GPU.
pub(crate) struct Gpu<W> {
    pub(crate) hw: Counted<W>,
    pub(crate) present: EngineMask,
    pub(crate) engines: PerEngine<PhysEngine>,
    pub(crate) pool: Pool,
    pub(crate) config: ConfigSnapshot,
    pub(crate) registers: Vec<(u32, u32)>,
    pub(crate) aperture: Aperture,
}

/// Events by engine that one interrupt brought, as bits of `gvt_defs::event`.
pub(crate) type Events = [(Engine, u32); ENGINES];

const NO_EVENTS: Events = [(Engine::Rcs, 0), (Engine::Bcs, 0), (Engine::Vcs0, 0), (Engine::Vcs1, 0), (Engine::Vecs, 0)];

impl<W: Hw> Gpu<W> {
    /// Takes what the interrupt registers hold: master off, banks read and cleared. The caller ends with `rearm`.
    /// Banks of engines that have something to do are looked at first; the master register, which costs a read of
    /// its own, only if they hold nothing.
    pub(crate) fn take_interrupts(&mut self) -> (u32, Events) {
        self.hw.totals.interrupts += 1;
        self.hw.write(irq::MASTER, 0);
        let mut events = NO_EVENTS;
        let awake = engines(self.present).filter(|engine| self.engines.get(*engine).awake());
        let banks = awake.fold(0u32, |banks, engine| banks | 1 << engine.info().irq_bank);
        self.take_banks(banks, &mut events);
        if events.iter().any(|(_, bits)| *bits != 0) {
            return (0, events);
        }
        let master = self.hw.read(irq::MASTER) & !irq::MASTER_ENABLE;
        let pending = Engine::ALL.into_iter().filter(|engine| master & engine.info().master != 0);
        let banks = pending.fold(0u32, |banks, engine| banks | 1 << engine.info().irq_bank);
        self.take_banks(banks, &mut events);
        (master, events)
    }

    fn take_banks(&mut self, banks: u32, events: &mut Events) {
        for bank in (0..irq::GT_BANKS).filter(|bank| banks & 1 << bank != 0) {
            self.take_bank(bank, events);
        }
    }

    /// Lets the hardware interrupt again; it does at once if anything is pending.
    pub(crate) fn rearm(&mut self) {
        self.hw.write(irq::MASTER, irq::MASTER_ENABLE);
    }

    /// Takes an engine's events outside an interrupt, but for the context switch: that one is left to the interrupt.
    pub(crate) fn take_engine_events(&mut self, engine: Engine) -> u32 {
        let info = engine.info();
        let iir_at = irq::GT_BANK0 + 0x10 * info.irq_bank + irq::IIR;
        let own = (0xFFFF & !event::CONTEXT_SWITCH) << info.irq_shift;
        let iir = self.hw.read(iir_at) & own;
        if iir != 0 {
            self.hw.write(iir_at, iir);
        }
        iir >> info.irq_shift
    }

    fn take_bank(&mut self, bank: u32, events: &mut Events) {
        let iir_at = irq::GT_BANK0 + 0x10 * bank + irq::IIR;
        let iir = self.hw.read(iir_at);
        if iir == 0 {
            return;
        }
        self.hw.write(iir_at, iir);
        // A second context switch may be queued behind the first. Status buffers are looked at after this, and an
        // entry is written before its event is raised: clearing it here loses nothing and saves an interrupt.
        let switches = iir & (event::CONTEXT_SWITCH | event::CONTEXT_SWITCH << 16);
        if switches != 0 {
            self.hw.write(iir_at, switches);
        }
        for (engine, bits) in events.iter_mut() {
            let info = engine.info();
            if info.irq_bank == bank {
                *bits |= (iir >> info.irq_shift) & 0xFFFF;
            }
        }
    }

    /// Starts a TLB invalidation of an engine and waits for it, a bounded time, and once: one that does not end is not
    /// tried again before a reset.
    pub(crate) fn flush_tlb(&mut self, engine: Engine) -> Flushed {
        if self.engines.get(engine).health != Health::Well {
            return Flushed::Stuck;
        }
        let at = engine.info().tlb;
        self.hw.write(at, reg::TLB_INVALIDATE);
        if self.hw.poll(at, |value| value & reg::TLB_INVALIDATE == 0) {
            return Flushed::Done;
        }
        self.engines.get_mut(engine).health = Health::Stuck;
        Flushed::Stuck
    }
}

/// Whether a TLB invalidation ended.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flushed {
    Done,
    Stuck,
}
