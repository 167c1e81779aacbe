//! Virtual interrupts: the master register over eleven banks, with IIR double buffering, and the one message that the
//! guest gets (spec/gen9.md B.10). The page that holds them is mapped read-only to the guest, so every change is
//! written to its frame as well.

use gvt_defs::reg::irq::{BANKS, IER, IIR, IMR, ISR, MASTER, MASTER_ENABLE};
use gvt_defs::{Engine, ring};

/// Page of BAR0 that holds the master register and all banks but the south display's.
pub(crate) const PAGE: u32 = MASTER / 4096;

/// One bank.
#[derive(Clone, Copy, Default, Debug)]
struct Bank {
    imr: u32,
    iir: u32,
    /// Second occurrences: they move up when the first is cleared.
    queued: u32,
    ier: u32,
}

/// Whether the guest needs a message.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Edge {
    None,
    Raise,
}

/// The interrupt registers of one vGPU.
#[derive(Clone, Debug)]
pub(crate) struct Irq {
    banks: [Bank; BANKS.len()],
    enabled: bool,
    /// A message is on its way and the guest has not acted on it: it will find whatever else comes meanwhile.
    outstanding: bool,
}

impl Irq {
    /// Power-on state: all masked.
    pub(crate) const fn new() -> Self {
        let bank = Bank { imr: u32::MAX, iir: 0, queued: 0, ier: 0 };
        Self { banks: [bank; BANKS.len()], enabled: false, outstanding: false }
    }

    /// The bank and register that `offset` means.
    fn locate(offset: u32) -> Option<(usize, u32)> {
        let index = BANKS.iter().position(|bank| (bank.base..bank.base + 0x10).contains(&offset))?;
        Some((index, offset & 0xC))
    }

    /// What the master register reads.
    pub(crate) fn master(&self) -> u32 {
        self.level() | if self.enabled { MASTER_ENABLE } else { 0 }
    }

    fn level(&self) -> u32 {
        self.banks.iter().zip(&BANKS).fold(0, |level, (bank, place)| {
            let active = bank.iir & bank.ier;
            let low = if active & 0xFFFF != 0 { place.low } else { 0 };
            let high = if active >> 16 != 0 { place.high } else { 0 };
            level | low | high
        })
    }

    /// A register of a bank, or the master register.
    pub(crate) fn read(&self, offset: u32) -> u32 {
        if offset == MASTER {
            return self.master();
        }
        let Some((bank, register)) = Self::locate(offset) else { return 0 };
        let Some(bank) = self.banks.get(bank) else { return 0 };
        match register {
            IMR => bank.imr,
            IIR => bank.iir,
            IER => bank.ier,
            _ => 0,
        }
    }

    /// The guest writes the master register: only bit 31 is its.
    pub(crate) fn write_master(&mut self, value: u32) -> Edge {
        self.outstanding = false;
        self.enabled = value & MASTER_ENABLE != 0;
        self.edge()
    }

    /// The guest writes a register of a bank.
    pub(crate) fn write(&mut self, offset: u32, value: u32, lanes: u32) -> Edge {
        let Some((bank, register)) = Self::locate(offset) else { return Edge::None };
        let Some(bank) = self.banks.get_mut(bank) else { return Edge::None };
        let merged = |old: u32| old & !lanes | value & lanes;
        match register {
            IMR => bank.imr = merged(bank.imr),
            IER => bank.ier = merged(bank.ier),
            IIR => {
                let cleared = value & lanes & bank.iir;
                bank.iir = bank.iir & !cleared | cleared & bank.queued;
                bank.queued &= !cleared;
            }
            _ => debug_assert_eq!(register, ISR),
        }
        self.outstanding = false;
        self.edge()
    }

    /// Events of an engine, as bits of `gvt_defs::event`; `ring_imr` is the engine's own mask in bank positions.
    pub(crate) fn engine_event(&mut self, engine: Engine, events: u32, ring_imr: u32) -> Edge {
        let info = engine.info();
        let bits = (events << info.irq_shift) & !ring_imr;
        let Some(bank) = self.banks.get_mut(info.irq_bank as usize) else { return Edge::None };
        let bits = bits & !bank.imr;
        bank.queued |= bank.iir & bits;
        bank.iir |= bits;
        self.edge()
    }

    /// The message that was asked for could not be sent.
    pub(crate) fn undelivered(&mut self) {
        self.outstanding = false;
    }

    /// Whether what is pending needs a message.
    pub(crate) fn recheck(&mut self) -> Edge {
        self.edge()
    }

    fn edge(&mut self) -> Edge {
        if self.outstanding || !self.enabled || self.level() == 0 {
            return Edge::None;
        }
        self.outstanding = true;
        Edge::Raise
    }
}

/// Offset of RING_IMR of an engine.
pub(crate) const fn ring_imr(engine: Engine) -> u32 {
    engine.base() + ring::IMR
}

#[cfg(test)]
mod tests {
    use super::*;
    use gvt_defs::event::{CONTEXT_SWITCH, USER_INTERRUPT};
    use gvt_defs::reg::irq::GT_BANK0;

    /// As i915 leaves it after installing its handler.
    fn armed() -> Irq {
        let mut irq = Irq::new();
        for bank in 0..4 {
            let base = GT_BANK0 + 0x10 * bank;
            assert_eq!(irq.write(base + IER, u32::MAX, u32::MAX), Edge::None);
            assert_eq!(irq.write(base + IMR, 0, u32::MAX), Edge::None);
        }
        assert_eq!(irq.write_master(MASTER_ENABLE), Edge::None);
        irq
    }

    #[test]
    fn one_message_for_all_that_is_ready() {
        let mut irq = armed();
        assert_eq!(irq.engine_event(Engine::Rcs, USER_INTERRUPT, 0), Edge::Raise);
        assert_eq!(irq.engine_event(Engine::Rcs, CONTEXT_SWITCH, 0), Edge::None);
        assert_eq!(irq.engine_event(Engine::Bcs, USER_INTERRUPT, 0), Edge::None);
        // The handler: master off, read, clear, master on.
        assert_eq!(irq.write_master(0), Edge::None);
        assert_eq!(irq.read(MASTER), 3);
        let iir = irq.read(GT_BANK0 + IIR);
        assert_eq!(iir, USER_INTERRUPT | CONTEXT_SWITCH | USER_INTERRUPT << 16);
        assert_eq!(irq.write(GT_BANK0 + IIR, iir, u32::MAX), Edge::None);
        assert_eq!(irq.write_master(MASTER_ENABLE), Edge::None);
        assert_eq!(irq.read(MASTER), MASTER_ENABLE);
    }

    #[test]
    fn an_event_behind_a_latched_bit_survives_the_clear() {
        let mut irq = armed();
        assert_eq!(irq.engine_event(Engine::Rcs, CONTEXT_SWITCH, 0), Edge::Raise);
        assert_eq!(irq.write_master(0), Edge::None);
        assert_eq!(irq.engine_event(Engine::Rcs, CONTEXT_SWITCH, 0), Edge::None);
        assert_eq!(irq.write(GT_BANK0 + IIR, CONTEXT_SWITCH, u32::MAX), Edge::None);
        assert_eq!(irq.read(GT_BANK0 + IIR), CONTEXT_SWITCH);
        // The message comes at the moment the master bit is set again.
        assert_eq!(irq.write_master(MASTER_ENABLE), Edge::Raise);
        assert_eq!(irq.write_master(0), Edge::None);
        assert_eq!(irq.write(GT_BANK0 + IIR, CONTEXT_SWITCH, u32::MAX), Edge::None);
        assert_eq!(irq.write_master(MASTER_ENABLE), Edge::None);
    }

    #[test]
    fn nothing_while_masked_or_disabled() {
        let mut irq = Irq::new();
        assert_eq!(irq.engine_event(Engine::Rcs, USER_INTERRUPT, 0), Edge::None);
        assert_eq!(irq.read(GT_BANK0 + IIR), 0);
        let mut irq = armed();
        assert_eq!(irq.engine_event(Engine::Rcs, USER_INTERRUPT, USER_INTERRUPT), Edge::None);
        assert_eq!(irq.write_master(0), Edge::None);
        assert_eq!(irq.engine_event(Engine::Vecs, USER_INTERRUPT, 0), Edge::None);
        assert_eq!(irq.read(MASTER), 1 << 6);
    }

    #[test]
    fn a_handler_that_leaves_the_master_on_still_hears_of_what_is_left() {
        let mut irq = armed();
        assert_eq!(irq.engine_event(Engine::Rcs, USER_INTERRUPT, 0), Edge::Raise);
        assert_eq!(irq.engine_event(Engine::Vecs, USER_INTERRUPT, 0), Edge::None);
        assert_eq!(irq.write(GT_BANK0 + IIR, USER_INTERRUPT, u32::MAX), Edge::Raise);
    }

    #[test]
    fn byte_writes_touch_their_lanes_only() {
        let mut irq = armed();
        assert_eq!(irq.write(GT_BANK0 + IMR, 0xFFFF_FFFF, 0x0000_FF00), Edge::None);
        assert_eq!(irq.read(GT_BANK0 + IMR), 0xFF00);
    }
}
