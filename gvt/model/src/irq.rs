//! Interrupt banks, the master register and the edges of the message.
//!
//! IIR is double-buffered: an event that arrives while its bit is set is kept and sets the bit again after the clear.

use gvt_defs::Engine;
use gvt_defs::reg::irq::{BANKS, IER, IIR, IMR, ISR, MASTER_ENABLE};

const COUNT: usize = BANKS.len();

#[derive(Clone, Copy)]
struct Bank {
    isr: u32,
    imr: u32,
    iir: u32,
    ier: u32,
    /// Events that arrived while their IIR bit was set.
    queued: u32,
}

const RESET: Bank = Bank { isr: 0, imr: 0xFFFF_FFFF, iir: 0, ier: 0, queued: 0 };

pub(crate) struct Irq {
    banks: [Bank; COUNT],
    enabled: bool,
    /// Pending bits of the master register as last delivered or seen.
    level: u32,
    edge: bool,
}

impl Irq {
    pub const fn new() -> Self {
        Self { banks: [RESET; COUNT], enabled: false, level: 0, edge: false }
    }

    /// Index and register of the bank that holds `offset`.
    pub fn find(offset: u32) -> Option<(usize, u32)> {
        BANKS.iter().position(|bank| bank.base == offset & !0xF).map(|i| (i, offset & 0xC))
    }

    pub fn read(&self, index: usize, register: u32) -> u32 {
        let Some(bank) = self.banks.get(index) else {
            return 0;
        };
        match register {
            ISR => bank.isr,
            IMR => bank.imr,
            IIR => bank.iir,
            _ => bank.ier,
        }
    }

    pub fn write(&mut self, index: usize, register: u32, value: u32) {
        let Some(bank) = self.banks.get_mut(index) else {
            return;
        };
        match register {
            IMR => bank.imr = value,
            IER => bank.ier = value,
            IIR => {
                bank.iir &= !value;
                let again = bank.queued & value;
                bank.queued &= !value;
                // The bit falls and rises again: show the fall to the edge detector first.
                if again != 0 {
                    self.update();
                    if let Some(bank) = self.banks.get_mut(index) {
                        bank.iir |= again;
                    }
                }
            }
            _ => {}
        }
        self.update();
    }

    /// An event of an engine; `ring_imr` is the engine's own mask, with bits where the bank has them.
    pub fn engine_event(&mut self, engine: Engine, bits: u32, ring_imr: u32) -> bool {
        let info = engine.info();
        let bits = bits << info.irq_shift & !ring_imr;
        self.event(info.irq_bank as usize, bits)
    }

    /// An event; says whether anything was latched.
    pub fn event(&mut self, index: usize, bits: u32) -> bool {
        let Some(bank) = self.banks.get_mut(index) else {
            return false;
        };
        let bits = bits & !bank.imr;
        bank.queued |= bits & bank.iir;
        bank.iir |= bits;
        self.update();
        bits != 0
    }

    /// The master register.
    pub fn master(&self) -> u32 {
        self.pending() | if self.enabled { MASTER_ENABLE } else { 0 }
    }

    pub fn write_master(&mut self, value: u32) {
        let enable = value & MASTER_ENABLE != 0;
        if enable && !self.enabled && self.pending() != 0 {
            self.edge = true;
        }
        self.enabled = enable;
        self.level = self.pending();
    }

    /// Pending bits of the master register: a level, whatever bit 31 says.
    pub fn pending(&self) -> u32 {
        let mut pending = 0;
        for (bank, desc) in self.banks.iter().zip(&BANKS) {
            let live = bank.iir & bank.ier;
            if live & 0xFFFF != 0 {
                pending |= desc.low;
            }
            if live >> 16 != 0 {
                pending |= desc.high;
            }
        }
        pending
    }

    fn update(&mut self) {
        let now = self.pending();
        if self.enabled && now & !self.level != 0 {
            self.edge = true;
        }
        self.level = now;
    }

    pub fn take_edge(&mut self) -> bool {
        core::mem::take(&mut self.edge)
    }

    pub fn level(&self) -> bool {
        self.enabled && self.pending() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gvt_defs::event::{CONTEXT_SWITCH, USER_INTERRUPT};

    fn open() -> Irq {
        let mut irq = Irq::new();
        irq.write(0, IMR, 0);
        irq.write(0, IER, 0xFFFF_FFFF);
        irq
    }

    #[test]
    fn master_gates_delivery_only() {
        let mut irq = open();
        assert!(irq.engine_event(Engine::Bcs, USER_INTERRUPT, 0));
        assert_eq!(irq.master(), 2);
        assert!(!irq.take_edge() && !irq.level());
        irq.write_master(MASTER_ENABLE);
        assert!(irq.take_edge() && irq.level());
        irq.write_master(MASTER_ENABLE);
        assert!(!irq.take_edge(), "no edge without a rise");
        irq.write_master(0);
        irq.write_master(MASTER_ENABLE);
        assert!(irq.take_edge(), "still pending when enabled again");
        irq.write(0, IIR, 1 << 16);
        assert_eq!(irq.master(), MASTER_ENABLE);
    }

    #[test]
    fn an_event_during_a_set_bit_survives_one_clear() {
        let mut irq = open();
        irq.write_master(MASTER_ENABLE);
        irq.event(0, 1);
        irq.event(0, 1);
        irq.event(0, 1);
        assert!(irq.take_edge());
        irq.write(0, IIR, 1);
        assert_eq!(irq.read(0, IIR), 1, "second occurrence");
        assert!(irq.take_edge());
        irq.write(0, IIR, 1);
        assert_eq!(irq.read(0, IIR), 0);
        assert!(!irq.take_edge());
    }

    #[test]
    fn masks() {
        let mut irq = open();
        assert!(!irq.engine_event(Engine::Bcs, CONTEXT_SWITCH, CONTEXT_SWITCH << 16));
        irq.write(0, IMR, 0xFFFF_FFFF);
        assert!(!irq.event(0, 1));
        irq.write(0, IMR, 0);
        assert_eq!(irq.read(0, IIR), 0, "unmasking latches nothing");
        irq.write(0, IER, 0);
        irq.event(0, 1);
        assert_eq!((irq.read(0, IIR), irq.master()), (1, 0));
    }

    #[test]
    fn edge_when_a_second_engine_rises() {
        let mut irq = open();
        irq.write_master(MASTER_ENABLE);
        irq.event(0, 1);
        assert!(irq.take_edge());
        irq.event(0, 2);
        assert!(!irq.take_edge(), "same level bit");
        irq.event(0, 1 << 16);
        assert!(irq.take_edge());
    }
}
