//! A bounded record of what the mediator did, newest events kept.

use alloc::vec::Vec;
use gvt_defs::{Engine, Nanos};

/// Events kept.
pub const EVENTS: usize = 1024;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A guest wrote a register: offset, value.
    Write(u32, u32),
    /// A guest read a register: offset, value.
    Read(u32, u32),
    /// A guest submitted: engine, first descriptor.
    Submit(Engine, u64),
    /// A context was given to the hardware: engine, context tag.
    Load(Engine, u32),
    /// The hardware let go of it: engine, context tag.
    Unload(Engine, u32),
    /// A context status entry for the guest: engine, status, id.
    Csb(Engine, u32, u32),
    /// A message-signalled interrupt for the guest.
    Msi,
    /// The hardware's interrupt: master register.
    Interrupt(u32),
    /// An engine was told to give up its context.
    Preempt(Engine),
    /// An engine was reset.
    EngineReset(Engine),
    /// The guest reset engines: GDRST value.
    GuestReset(u32),
    /// A submission was refused: engine.
    Refused(Engine),
}

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When.
    pub at: Nanos,
    /// The vGPU concerned; 255 for none.
    pub vgpu: u8,
    /// What.
    pub kind: Kind,
}

/// The ring of events.
#[derive(Debug)]
pub struct Trace {
    events: Vec<Event>,
    next: usize,
}

impl Trace {
    /// Room for `EVENTS` events, allocated now.
    pub(crate) fn new() -> Self {
        Self { events: Vec::with_capacity(EVENTS), next: 0 }
    }

    pub(crate) fn push(&mut self, at: Nanos, vgpu: u8, kind: Kind) {
        let event = Event { at, vgpu, kind };
        match self.events.get_mut(self.next) {
            Some(slot) => *slot = event,
            None => self.events.push(event),
        }
        self.next = (self.next + 1) % EVENTS;
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        let (new, old) = self.events.split_at(self.next.min(self.events.len()));
        old.iter().chain(new.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_in_order() {
        let mut trace = Trace::new();
        for i in 0..EVENTS as u64 + 3 {
            trace.push(Nanos(i), 0, Kind::Msi);
        }
        let at: Vec<u64> = trace.iter().map(|e| e.at.0).collect();
        assert_eq!(at.len(), EVENTS);
        assert_eq!((at[0], at[EVENTS - 1]), (3, EVENTS as u64 + 2));
        assert!(at.windows(2).all(|w| w[0] < w[1]));
    }
}
