//! One format of trace for the software GPU and the mediator, so that two runs can be compared line by line.

use core::fmt;

use crate::{Engine, Nanos};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Register read: offset, value returned.
    Read,
    /// Register write: offset, value written.
    Write,
    /// GGTT entry written: offset is the entry's index.
    Gtt,
    /// Execlist submission: offset is the element, value the descriptor.
    Submit,
    /// Context image loaded: value is the descriptor.
    Load,
    /// Context image saved: value is the descriptor.
    Save,
    /// Context status entry: offset is the status, value the context id.
    Status,
    /// Interrupt event of an engine: value is the event bits.
    Event,
    /// Interrupt delivered: value is the pending part of the master register.
    Interrupt,
    /// Reset: value is the domains.
    Reset,
}

impl Kind {
    /// Short word in the text form.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "rd",
            Self::Write => "wr",
            Self::Gtt => "gtt",
            Self::Submit => "submit",
            Self::Load => "load",
            Self::Save => "save",
            Self::Status => "csb",
            Self::Event => "event",
            Self::Interrupt => "irq",
            Self::Reset => "reset",
        }
    }
}

/// Who did it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum By {
    /// A CPU access, or the device itself.
    Host,
    /// A command of this engine, or its execlist machinery.
    Engine(Engine),
}

/// One line of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When.
    pub time: Nanos,
    /// What.
    pub kind: Kind,
    /// Who.
    pub by: By,
    /// Where; see [`Kind`].
    pub offset: u32,
    /// How much; see [`Kind`].
    pub value: u64,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            By::Host => "host",
            By::Engine(engine) => engine.info().name,
        };
        let (s, ns) = (self.time.0 / 1_000_000_000, self.time.0 % 1_000_000_000);
        write!(f, "{s}.{ns:09} {by:<5} {:<6} {:06x} {:x}", self.kind.word(), self.offset, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let e = Entry { time: Nanos(1_000_000_123), kind: Kind::Write, by: By::Host, offset: 0x2230, value: 0xABC };
        assert_eq!(e.to_string(), "1.000000123 host  wr     002230 abc");
    }
}
