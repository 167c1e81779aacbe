//! What the mediator tells the hypervisor about a guest that broke a rule (design D9), and why it could not start.

use crate::VmId;
use crate::audit::AuditFault;
use alloc::collections::VecDeque;
use core::fmt;
use gvt_defs::Engine;

/// What the hypervisor should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing: it was contained; the line is for the operator.
    Note,
    /// Stop the VM.
    StopVm,
}

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A submission was refused by the audit.
    Audit {
        /// The engine submitted to.
        engine: Engine,
        /// What the audit found.
        fault: AuditFault,
    },
    /// A submission was malformed before any command was looked at.
    Submission {
        /// The engine submitted to.
        engine: Engine,
        /// What is wrong.
        what: &'static str,
    },
    /// The mediator's or the VM's quota of frames or graphics addresses is spent.
    NoRoom {
        /// The engine submitted to.
        engine: Engine,
    },
    /// An engine reached no arbitration point in time while another vGPU waited.
    Hang {
        /// The engine that was reset.
        engine: Engine,
    },
    /// So many resets of an engine in a second that another vGPU waited for.
    ResetStorm {
        /// The engine that was reset last.
        engine: Engine,
    },
    /// An engine does not even reset. Whatever this VM had on it may run on; nobody else is let in.
    DeadEngine {
        /// The engine.
        engine: Engine,
    },
    /// The guest's driver says that it was given too little (PVINFO reserved words).
    TooLittle,
}

/// One report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The VM concerned.
    pub vm: VmId,
    /// What to do.
    pub action: Action,
    /// Why.
    pub cause: Cause,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vGPU of VM {}: ", self.vm.0)?;
        match self.cause {
            Cause::Audit { engine, fault } => write!(f, "{} refused a submission: {fault}", engine.info().name),
            Cause::Submission { engine, what } => write!(f, "{} refused a submission: {what}", engine.info().name),
            Cause::NoRoom { engine } => write!(f, "{} refused a submission: quota spent", engine.info().name),
            Cause::Hang { engine } => write!(f, "{} hung while others waited; reset", engine.info().name),
            Cause::ResetStorm { engine } => {
                write!(
                    f,
                    "{} was reset too often in a second while others waited; the VM is stopped",
                    engine.info().name
                )
            }
            Cause::DeadEngine { engine } => write!(f, "{} does not reset; it is out of use", engine.info().name),
            Cause::TooLittle => write!(f, "the guest's driver asks for more graphics memory"),
        }
    }
}

const KEPT: usize = 32;

/// Reports not yet taken; the oldest are dropped when nobody takes them.
#[derive(Debug)]
pub(crate) struct Reports(VecDeque<Report>);

impl Reports {
    pub(crate) fn new() -> Self {
        Self(VecDeque::with_capacity(KEPT))
    }

    pub(crate) fn push(&mut self, report: Report) {
        if self.0.len() >= KEPT {
            // A guest makes as many notes as it likes: none pushes out that a VM is to be stopped.
            let note = self.0.iter().position(|kept| kept.action == Action::Note);
            self.0.remove(note.unwrap_or(0));
        }
        self.0.push_back(report);
    }

    pub(crate) fn take(&mut self) -> Option<Report> {
        self.0.pop_front()
    }
}

/// Why the mediator cannot drive the GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitError {
    /// No function answers, or it is not Intel's: vendor and device id as read.
    NoGpu(u32),
    /// A GPU that Prism does not know: device id.
    UnknownDevice(u16),
    /// Registers read all ones: BAR0 does not decode.
    DeadRegisters,
    /// A forcewake domain does not wake: its request register.
    Forcewake(u32),
    /// A reset does not complete: the GDRST value written.
    Reset(u32),
    /// The global page table has fewer entries than Prism needs: entries found.
    SmallGgtt(u32),
    /// The hypervisor has too few frames for the mediator.
    NoFrame,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoGpu(id) => write!(f, "GPU at 00:02.0: none found (id {id:#010x})"),
            Self::UnknownDevice(id) => {
                write!(f, "GPU at 00:02.0: device {id:#06x} is not supported (Skylake to Comet Lake are)")
            }
            Self::DeadRegisters => write!(f, "GPU at 00:02.0: registers read all ones; does BAR0 decode?"),
            Self::Forcewake(at) => write!(f, "GPU at 00:02.0: no answer to forcewake request {at:#x}"),
            Self::Reset(bits) => write!(f, "GPU at 00:02.0: reset {bits:#x} does not complete"),
            Self::SmallGgtt(entries) => {
                write!(
                    f,
                    "GPU at 00:02.0: global page table has {entries} entries, 262144 are needed; raise it in firmware setup"
                )
            }
            Self::NoFrame => write!(f, "GPU at 00:02.0: too little memory for the mediator"),
        }
    }
}

/// Why a vGPU cannot be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// A field of the configuration that makes no sense.
    BadConfig(&'static str),
    /// What there is not enough of: "aperture", "hidden", "fences", "vgpus".
    NoRoom(&'static str),
    /// The VM has a vGPU already.
    HasOne,
    /// The VM's quota of frames is too small.
    NoFrame,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadConfig(field) => write!(f, "vGPU: field {field} is out of range"),
            Self::NoRoom(what) => write!(f, "vGPU: no {what} left on this GPU"),
            Self::HasOne => write!(f, "vGPU: this VM has one already"),
            Self::NoFrame => write!(f, "vGPU: too little memory for its page tables"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_push_out_notes() {
        let report = |action, vm| Report { vm: VmId(vm), action, cause: Cause::ResetStorm { engine: Engine::Rcs } };
        let mut reports = Reports::new();
        reports.push(report(Action::StopVm, 1));
        (0..2 * KEPT).for_each(|_| reports.push(report(Action::Note, 2)));
        let kept: Vec<VmId> = core::iter::from_fn(|| reports.take()).map(|report| report.vm).collect();
        assert_eq!((kept.len(), kept.first()), (KEPT, Some(&VmId(1))));
    }
}
