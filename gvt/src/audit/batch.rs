//! Copies of batches: each is read page by page while it is walked, until it ends, and what starts it is led to the
//! copy. The whole tree of a submission goes into one arena.

use super::walk::{Level, Origin, Stream, redirect};
use super::{Audit, AuditFault, LINE, Part, Reason, fault};
use alloc::vec::Vec;
use gvt_defs::{GgttAddr, PAGE_SIZE, PpgttAddr, mi};

/// Dwords read at a time; divides a page.
const CHUNK: usize = 256;

/// Where the guest's batches are read from.
pub trait Source {
    /// Copies dwords from the global space; they do not cross a page. False if nothing is there.
    fn global(&mut self, at: GgttAddr, dwords: &mut [u32]) -> bool;
    /// Copies dwords from the context's process space; they do not cross a page. False if nothing is there.
    fn process(&mut self, at: PpgttAddr, dwords: &mut [u32]) -> bool;
}

/// The guest's address of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// In the global space: privileged.
    Global(GgttAddr),
    /// In the space of a process.
    Process(PpgttAddr),
}

/// Where an arena begins in the spaces that its copies run in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bases {
    /// In the global space, for privileged batches.
    pub global: GgttAddr,
    /// In the process space, for batches of processes.
    pub process: Option<PpgttAddr>,
}

impl Bases {
    /// Where a copy runs that begins at a dword of the arena.
    fn place(self, of: Target, origin: u32) -> Option<Target> {
        Some(match of {
            Target::Global(_) => Target::Global(GgttAddr(self.global.0.wrapping_add(4 * origin))),
            Target::Process(_) => Target::Process(PpgttAddr(self.process?.0.wrapping_add(4 * u64::from(origin)))),
        })
    }
}

/// A batch that was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchCopy {
    /// Where the guest has it.
    pub guest: Target,
    /// The level that it runs on.
    pub level: Level,
    /// Where the copy begins in the arena, in dwords.
    pub start: u32,
    /// Dwords of the copy.
    pub dwords: u32,
}

/// Where the command that starts it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Dword of the ring copy.
    Ring(u32),
    /// Dword of the arena.
    Arena(u32),
}

/// A batch to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pending {
    pub(super) place: Place,
    pub(super) target: Target,
    pub(super) level: Level,
}

pub(super) fn copy_all(
    audit: &mut Audit<'_>,
    source: &mut dyn Source,
    bases: Bases,
    arena: &mut Vec<u32>,
    limit: usize,
) -> Result<(), AuditFault> {
    arena.clear();
    for start in core::mem::take(&mut audit.pending) {
        copy_tree(audit, source, bases, arena, limit, start).map_err(|fault| match start.place {
            // The ring can be cut before the start that leads to too many.
            Place::Ring(offset) if fault.reason == Reason::TooManyBatches => {
                AuditFault { offset, part: Part::Ring, ..fault }
            }
            _ => fault,
        })?;
    }
    Ok(())
}

/// Copies what a start leads to.
fn copy_tree(
    audit: &mut Audit<'_>,
    source: &mut dyn Source,
    bases: Bases,
    arena: &mut Vec<u32>,
    limit: usize,
    start: Pending,
) -> Result<(), AuditFault> {
    let mut next = Some(start);
    while let Some(pending) = next {
        let known = audit.copies.iter().find(|copy| (copy.guest, copy.level) == (pending.target, pending.level));
        let origin = match known {
            Some(copy) => copy.start,
            None => {
                let start = copy(audit, source, &pending, arena, limit)?;
                let dwords = arena.len() as u32 - start;
                let copy = BatchCopy { guest: pending.target, level: pending.level, start, dwords };
                let full = fault(arena, start as usize, Reason::TooManyBatches);
                audit.copies.try_push(copy).map_err(|_| full)?;
                audit.summary.batches += 1;
                start
            }
        };
        let nowhere = fault(arena, origin as usize, Reason::NoWindow).within(Part::ProcessBatch);
        lead(audit, &pending, bases.place(pending.target, origin).ok_or(nowhere)?, arena)?;
        next = audit.pending.pop();
    }
    Ok(())
}

/// Leads the start of a batch to its copy.
fn lead(audit: &mut Audit<'_>, pending: &Pending, to: Target, arena: &mut [u32]) -> Result<(), AuditFault> {
    match pending.place {
        Place::Arena(at) => redirect(arena.get_mut(at as usize..).unwrap_or_default(), to),
        Place::Ring(at) => {
            let full = AuditFault { offset: at, header: 0, reason: Reason::TooManyBatches, part: Part::Ring };
            audit.patches.try_push((at, to)).map_err(|_| full)?;
        }
    }
    Ok(())
}

/// Appends one batch to the arena; returns where it begins.
fn copy(
    audit: &mut Audit<'_>,
    source: &mut dyn Source,
    pending: &Pending,
    arena: &mut Vec<u32>,
    limit: usize,
) -> Result<u32, AuditFault> {
    let start = arena.len().next_multiple_of(LINE);
    let origin = Origin(start as u32);
    let stream = match pending.target {
        Target::Global(_) => Stream::Batch(pending.level, origin),
        Target::Process(_) => Stream::User(pending.level, origin),
    };
    arena.resize(start, 0);
    let mut walked = 0;
    loop {
        let here = |fault: AuditFault| fault.within(stream.part());
        read(source, pending.target, start, arena, limit).map_err(here)?;
        let progress = audit.walk(arena.get_mut(start..).unwrap_or_default(), walked, stream).map_err(here)?;
        walked = progress.at;
        if progress.ended {
            arena.truncate(start + walked);
            // Should the engine ever pass the end, it ends here and not in the next copy.
            arena.extend([mi::header(mi::BATCH_BUFFER_END), 0]);
            return Ok(origin.0);
        }
    }
}

/// Appends what follows of a batch, up to the end of its page at most.
fn read(
    source: &mut dyn Source,
    target: Target,
    start: usize,
    arena: &mut Vec<u32>,
    limit: usize,
) -> Result<(), AuditFault> {
    let end = arena.len();
    let done = ((end - start) * 4) as u64;
    let at = match target {
        Target::Global(at) => u64::from(at.0),
        Target::Process(at) => at.0,
    } + done;
    let count = CHUNK - (at / 4) as usize % CHUNK;
    let here = |reason| AuditFault { offset: (end - start) as u32, header: 0, reason, part: Part::Ring };
    // Two dwords for the guard.
    if end + count + 2 > limit {
        return Err(here(Reason::TooLong));
    }
    debug_assert!(at % PAGE_SIZE + 4 * count as u64 <= PAGE_SIZE);
    arena.resize(end + count, 0);
    let room = arena.get_mut(end..).unwrap_or_default();
    let there = match target {
        Target::Global(_) => u32::try_from(at).is_ok_and(|at| source.global(GgttAddr(at), room)),
        Target::Process(_) => source.process(gvt_defs::pte::strip(at), room),
    };
    if there { Ok(()) } else { Err(here(Reason::Unmapped)) }
}
