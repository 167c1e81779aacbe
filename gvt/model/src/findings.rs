//! Findings: what a driver (or this model) did that hardware would not forgive, or that the model does not know.

use alloc::vec::Vec;
use core::fmt;

use gvt_defs::Engine;
use gvt_defs::residue::Residue;

/// Findings kept until they are taken; later ones are counted only.
const MAX: usize = 256;

/// One finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A register that the tables do not list was read.
    UnknownRead(u32),
    /// A register that the tables do not list was written.
    UnknownWrite(u32, u32),
    /// An access to a register of a power domain that is not awake.
    Asleep(u32),
    /// An opcode that the engine does not know: header, address.
    UnknownCommand(Engine, u32, u64),
    /// A command that is known but not modelled; it was skipped.
    Unmodelled(Engine, u32),
    /// ELSP written while a submission was pending.
    ElspOverrun(Engine),
    /// ELSP written while GFX_MODE does not enable execlists; the write is ignored.
    ElspDisabled(Engine),
    /// ELSP element 0 is not valid, or both elements name one context.
    BadSubmission(Engine),
    /// The context status sequence broke the rule that drivers check.
    StatusSequence(Engine, u32),
    /// GDRST without RESET_CTL saying ready.
    ResetWithoutReady(Engine),
    /// A context image that does not parse: position, dword.
    BadImage(Engine, u32, u32),
    /// An absent GGTT entry was used: address.
    GgttFault(u32),
    /// An absent PPGTT entry was used: address.
    PpgttFault(Engine, u64),
    /// A command ran over the ring's tail.
    PartialCommand(Engine, u32),
    /// A privileged command or register in an unprivileged batch: header, register or 0.
    Privilege(Engine, u32, u32),
    /// An access to memory that nobody answers: address.
    BusError(u64),
    /// A context was loaded while the engine still held what render work of another owner had left: kind, from whom, for
    /// whom.
    Residue(Residue, u32, u32),
    /// Findings that were dropped for lack of room.
    Dropped(u32),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownRead(offset) => write!(f, "read of unknown register {offset:#x}"),
            Self::UnknownWrite(offset, value) => {
                write!(f, "write of {value:#x} to unknown register {offset:#x}")
            }
            Self::Asleep(offset) => write!(f, "access to register {offset:#x} without forcewake"),
            Self::UnknownCommand(e, header, address) => {
                write!(f, "{}: unknown command {header:#010x} at {address:#x}", e.info().name)
            }
            Self::Unmodelled(e, header) => write!(f, "{}: command {header:#010x} is not modelled", e.info().name),
            Self::ElspOverrun(e) => write!(f, "{}: ELSP written while a submission is pending", e.info().name),
            Self::ElspDisabled(e) => write!(f, "{}: ELSP written without execlists enabled", e.info().name),
            Self::BadSubmission(e) => write!(f, "{}: bad execlist submission", e.info().name),
            Self::StatusSequence(e, status) => {
                write!(f, "{}: context status {status:#x} out of sequence", e.info().name)
            }
            Self::ResetWithoutReady(e) => {
                write!(f, "{}: reset without RESET_CTL ready", e.info().name)
            }
            Self::BadImage(e, position, dword) => {
                write!(f, "{}: context image does not parse at dword {position:#x}: {dword:#010x}", e.info().name)
            }
            Self::GgttFault(address) => write!(f, "absent GGTT entry used at {address:#x}"),
            Self::PpgttFault(e, address) => write!(f, "{}: absent PPGTT entry used at {address:#x}", e.info().name),
            Self::PartialCommand(e, header) => {
                write!(f, "{}: command {header:#010x} runs over the ring's tail", e.info().name)
            }
            Self::Privilege(e, header, register) => {
                write!(f, "{}: unprivileged batch used {header:#010x}, register {register:#x}", e.info().name)
            }
            Self::BusError(address) => write!(f, "no memory at {address:#x}"),
            Self::Residue(kind, from, to) => write!(f, "{kind:?} left by {from} met by {to}"),
            Self::Dropped(n) => write!(f, "{n} further findings"),
        }
    }
}

#[derive(Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    dropped: u32,
}

impl Findings {
    /// Adds a finding unless the same is there already.
    #[cold]
    pub fn add(&mut self, finding: Finding) {
        if self.list.contains(&finding) {
            return;
        }
        if self.list.len() < MAX {
            self.list.push(finding);
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    pub fn take(&mut self) -> Vec<Finding> {
        let mut list = core::mem::take(&mut self.list);
        if self.dropped != 0 {
            list.push(Finding::Dropped(core::mem::take(&mut self.dropped)));
        }
        list
    }
}
