//! A bounded record of what the mediator did, newest events kept.

use alloc::vec::Vec;
use core::fmt;
use gvt_defs::trace::{By, Entry, Kind};
use gvt_defs::{Engine, Nanos};

/// Events kept.
pub const EVENTS: usize = 1024;

/// One event: a line as the software GPU writes it, and the vGPU concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Number of the vGPU; `None` where it is the physical GPU that speaks.
    pub vgpu: Option<u8>,
    /// What happened.
    pub entry: Entry,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vgpu {
            Some(vgpu) => write!(f, "v{vgpu} {}", self.entry),
            None => write!(f, "-- {}", self.entry),
        }
    }
}

/// What the mediator records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Note {
    /// A guest wrote a register: offset, value.
    Write(u32, u32),
    /// A guest read a register: offset, value.
    Read(u32, u32),
    /// A guest submitted: engine, first descriptor.
    Submit(Engine, u64),
    /// A context was given to the hardware: engine, tag.
    Load(Engine, u32),
    /// The hardware let go of it: engine, tag.
    Unload(Engine, u32),
    /// A context status entry for the guest: engine, status, id.
    Csb(Engine, u32, u32),
    /// A message for the guest.
    Msi,
    /// The hardware's interrupt: master register.
    Interrupt(u32),
    /// An engine was told to give up its context.
    Preempt(Engine),
    /// An engine was reset.
    EngineReset(Engine),
    /// The guest reset engines: GDRST value.
    GuestReset(u32),
    /// A submission was refused.
    Refused(Engine),
}

impl Note {
    fn entry(self, time: Nanos) -> Entry {
        let line = |kind, by, offset, value| Entry { time, kind, by, offset, value };
        match self {
            Self::Write(offset, value) => line(Kind::Write, By::Host, offset, value.into()),
            Self::Read(offset, value) => line(Kind::Read, By::Host, offset, value.into()),
            Self::Submit(engine, descriptor) => line(Kind::Submit, By::Engine(engine), 0, descriptor),
            Self::Load(engine, tag) => line(Kind::Load, By::Engine(engine), 0, tag.into()),
            Self::Unload(engine, tag) => line(Kind::Save, By::Engine(engine), 0, tag.into()),
            Self::Csb(engine, status, id) => line(Kind::Status, By::Engine(engine), status, id.into()),
            Self::Msi => line(Kind::Interrupt, By::Host, 0, 0),
            Self::Interrupt(master) => line(Kind::Interrupt, By::Host, 0, master.into()),
            // The empty descriptor: nothing is to follow what runs.
            Self::Preempt(engine) => line(Kind::Submit, By::Engine(engine), 0, 0),
            Self::EngineReset(engine) => line(Kind::Reset, By::Engine(engine), 0, engine.info().reset.into()),
            Self::GuestReset(value) => line(Kind::Reset, By::Host, 0, value.into()),
            Self::Refused(engine) => line(Kind::Event, By::Engine(engine), 0, 0),
        }
    }
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

    pub(crate) fn push(&mut self, at: Nanos, vgpu: Option<usize>, note: Note) {
        let event = Event { vgpu: vgpu.map(|vgpu| vgpu as u8), entry: note.entry(at) };
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
            trace.push(Nanos(i), Some(0), Note::Msi);
        }
        let at: Vec<u64> = trace.iter().map(|e| e.entry.time.0).collect();
        assert_eq!(at.len(), EVENTS);
        assert_eq!((at[0], at[EVENTS - 1]), (3, EVENTS as u64 + 2));
        assert!(at.windows(2).all(|w| w[0] < w[1]));
    }
}
