//! The command audit: pure functions over copies of what a guest wants the GPU to run. A copy is walked once; what
//! a guest may not do is put right in the copy where that is harmless, or refused with the place and the reason
//! (design D7, D8, D9). Nothing here touches guest memory: the caller copies in, and runs only what came out.
//!
//! On RCS, VCS and VECS a process (PPGTT) batch runs unread: the hardware makes its privileged commands no-ops. On
//! Gen9 the blitter does not police register writes (CVE-2019-0155), so its batches are copied and audited too, and
//! run as process batches from a copy that they cannot write; what the hardware would make a no-op is made one here.

mod batch;
mod operands;
mod registers;
mod table;
mod walk;

#[cfg(test)]
pub(crate) mod bench;
#[cfg(test)]
mod tests;

pub use batch::{Bases, BatchCopy, Source, Target};
pub use registers::ContextRegisters;
pub(crate) use registers::may_open;
pub use walk::Level;

use crate::gtt::Partition;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use batch::Pending;
use core::fmt;
use gvt_defs::context::CACHELINE;
use gvt_defs::{Engine, GgttAddr};
use table::Tables;
use walk::{Progress, Stream};

/// Batches copied in one submission.
pub(crate) const MANY: usize = 64;

/// Why a submission is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The engine has no such command.
    Unknown,
    /// The command is longer than what is left of the buffer.
    Truncated,
    /// The command must have another length.
    Length,
    /// A guest may not use the command here.
    Forbidden,
    /// A global address outside the vGPU's partition.
    Address,
    /// An offset outside the status page.
    Index,
    /// More batches than are copied in one submission.
    TooManyBatches,
    /// More commands than are copied in one submission.
    TooLong,
    /// A batch lies where the guest has mapped nothing.
    Unmapped,
    /// The process space has no room for the copy of a batch.
    NoWindow,
}

/// A submission that must not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditFault {
    /// Dwords from the beginning of the buffer that was audited.
    pub offset: u32,
    /// The command's header.
    pub header: u32,
    /// What is wrong with it.
    pub reason: Reason,
    /// Where it stands.
    pub part: Part,
}

/// A part of a submission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The ring.
    Ring,
    /// A batch in the global space.
    Batch,
    /// A batch of a process.
    ProcessBatch,
    /// The batch that runs at each restore (INDIRECT_CTX), or the one after it (BB_PER_CTX_PTR).
    Workaround,
    /// The context image.
    Image,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "the ring",
            Self::Batch => "a privileged batch",
            Self::ProcessBatch => "a process batch",
            Self::Workaround => "a workaround batch",
            Self::Image => "the context image",
        })
    }
}

impl AuditFault {
    const fn within(mut self, part: Part) -> Self {
        self.part = part;
        self
    }
}

impl fmt::Display for AuditFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            Reason::Unknown => "unknown command",
            Reason::Truncated => "command runs past the end",
            Reason::Length => "command of a wrong length",
            Reason::Forbidden => "command not for guests here",
            Reason::Address => "address outside the vGPU's graphics memory",
            Reason::Index => "offset outside the status page",
            Reason::TooManyBatches => "too many privileged batches",
            Reason::TooLong => "batch too long",
            Reason::Unmapped => "batch in unmapped memory",
            Reason::NoWindow => "no room for copies in the process space",
        };
        write!(f, "{reason}: {:#010x} at dword {:#x} of {}", self.header, self.offset, self.part)?;
        match (self.reason, self.header >> 29) {
            (Reason::Unknown, 3) => write!(f, ", 3D or media opcode {:#06x}", self.header >> 16),
            (Reason::Unknown, 0) => write!(f, ", MI opcode {:#04x}", gvt_defs::mi::opcode(self.header)),
            _ => Ok(()),
        }
    }
}

/// What the audit saw.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Summary {
    /// Commands walked.
    pub commands: u32,
    /// Dwords walked.
    pub dwords: u32,
    /// Commands whose operands were looked at.
    pub judged: u32,
    /// Commands turned into no-ops.
    pub blanked: u32,
    /// Register writes that were dropped.
    pub dropped: u32,
    /// MI_USER_INTERRUPTs that will be raised.
    pub user_interrupts: u32,
    /// Flushes that will notify.
    pub notifies: u32,
    /// Batches copied.
    pub batches: u32,
}

/// The audit of one submission of one context.
pub struct Audit<'a> {
    engine: Engine,
    tables: &'static Tables,
    partition: &'a Partition,
    /// Where the vGPU has its engine's status page.
    status_page: Option<GgttAddr>,
    summary: Summary,
    pending: ArrayVec<Pending, MANY>,
    /// Batch starts in the ring: dword of the header, where the copy lies.
    patches: ArrayVec<(u32, Target), MANY>,
    copies: ArrayVec<BatchCopy, MANY>,
    dropped: Option<&'a mut dyn FnMut(u32, u32)>,
}

impl<'a> Audit<'a> {
    /// Nothing seen yet.
    pub fn new(engine: Engine, partition: &'a Partition) -> Self {
        Self {
            engine,
            tables: Tables::of(engine),
            partition,
            status_page: None,
            summary: Summary::default(),
            pending: ArrayVec::new(),
            patches: ArrayVec::new(),
            copies: ArrayVec::new(),
            dropped: None,
        }
    }

    /// Register writes of privileged code that are dropped go to `sink` with their values, as they are walked: what the
    /// guest's CPU might as well have written through BAR0.
    pub fn telling(self, sink: &'a mut dyn FnMut(u32, u32)) -> Self {
        Self { dropped: Some(sink), ..self }
    }

    /// The same for a vGPU that has set a status page for its engine (HWS_PGA).
    #[must_use]
    pub fn with_status_page(self, page: GgttAddr) -> Self {
        Self { status_page: (page != GgttAddr(0)).then_some(page), ..self }
    }

    /// Audits a copy of the ring between head and tail, in one piece.
    ///
    /// # Errors
    /// The first command that must not run.
    pub fn ring(&mut self, dwords: &mut [u32]) -> Result<(), AuditFault> {
        self.whole(dwords, Stream::Ring).map(|_| ())
    }

    /// Audits a copy of the batch that runs at each restore of a render context (INDIRECT_CTX). It has no end mark.
    ///
    /// # Errors
    /// The first command that must not run.
    pub fn indirect(&mut self, dwords: &mut [u32]) -> Result<(), AuditFault> {
        self.whole(dwords, Stream::Indirect)?;
        walk::leave_arbitration_on(self.tables, dwords);
        Ok(())
    }

    /// Audits a copy of the batch that runs after it (BB_PER_CTX_PTR); returns how many dwords of it count. Those
    /// must be run from a copy, which then ends with MI_BATCH_BUFFER_END.
    ///
    /// # Errors
    /// The first command that must not run, or no end in `dwords`.
    pub fn per_context(&mut self, dwords: &mut [u32]) -> Result<usize, AuditFault> {
        let here = |fault: AuditFault| fault.within(Part::Workaround);
        let progress = self.walk(dwords, 0, Stream::PerContext).map_err(here)?;
        if !progress.ended {
            return Err(here(fault(dwords, progress.at, Reason::Truncated)));
        }
        walk::leave_arbitration_on(self.tables, dwords.get_mut(..progress.at).unwrap_or_default());
        Ok(progress.at)
    }

    /// Audits the engine part of a context image: the register page from dword 0x50 on and the pages after it, in
    /// one piece. Registers that do not belong there are dropped.
    ///
    /// # Errors
    /// The first command that must not be there.
    pub fn context(&mut self, dwords: &mut [u32], registers: &ContextRegisters) -> Result<(), AuditFault> {
        self.whole(dwords, Stream::Image(registers)).map(|_| ())
    }

    /// Batches that must be copied before the ring can run.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Copies and audits the batches that are pending, and those that they start in turn. What ends up in `arena`
    /// (at most `limit` dwords in all) must be written at `bases`, and the ring [patched](Self::patch), before it runs.
    ///
    /// Every distinct start is copied once, so chains that go round end; on the GPU they go round, like any other
    /// endless batch.
    ///
    /// # Errors
    /// The first command that must not run.
    pub fn copy_batches(
        &mut self,
        source: &mut dyn Source,
        bases: Bases,
        arena: &mut Vec<u32>,
        limit: usize,
    ) -> Result<(), AuditFault> {
        batch::copy_all(self, source, bases, arena, limit)
    }

    /// Leads the ring's batch starts to the copies.
    pub fn patch(&self, ring: &mut [u32]) {
        for (at, target) in &self.patches {
            if let Some(start) = ring.get_mut(*at as usize..) {
                walk::redirect(start, *target);
            }
        }
    }

    /// The batches that were copied.
    pub fn copies(&self) -> &[BatchCopy] {
        &self.copies
    }

    /// What was seen so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Walks a buffer that must hold whole commands.
    fn whole(&mut self, dwords: &mut [u32], stream: Stream<'_>) -> Result<Progress, AuditFault> {
        let here = |fault: AuditFault| fault.within(stream.part());
        let progress = self.walk(dwords, 0, stream).map_err(here)?;
        if !progress.ended && progress.at < dwords.len() {
            return Err(here(fault(dwords, progress.at, Reason::Truncated)));
        }
        Ok(progress)
    }
}

fn fault(dwords: &[u32], at: usize, reason: Reason) -> AuditFault {
    AuditFault { offset: at as u32, header: dwords.get(at).copied().unwrap_or(0), reason, part: Part::Ring }
}

/// Dwords in a cache line: copies begin at one.
const LINE: usize = CACHELINE as usize / 4;
