//! The walk over a copy: one rule a command, and what is done with the commands that steer the stream.

use super::batch::{Pending, Place, Target};
use super::registers::ContextRegisters;
use super::table::{COMMON, Kind, Tables};
use super::{Audit, AuditFault, Part, Reason, fault};
use gvt_defs::pte::{canonical, strip};
use gvt_defs::{Engine, GgttAddr, mi};

/// Whether a batch was started from the ring or from another batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// From the ring.
    First,
    /// From a batch, to which it returns.
    Second,
}

/// What is being walked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream<'a> {
    Ring,
    /// A batch in the global space: privileged.
    Batch(Level, Origin),
    /// A batch in a process space on an engine that does not police it.
    User(Level, Origin),
    Indirect,
    PerContext,
    Image(&'a ContextRegisters),
}

/// Where a copy begins in the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Origin(pub(super) u32);

/// How far a walk came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// First dword not walked: a command that is not whole, or what follows the end.
    pub(super) at: usize,
    /// The stream ends before `at`.
    pub(super) ended: bool,
}

/// What becomes of a command.
pub(super) enum Verdict {
    /// It stays, as it is now.
    Keep,
    /// It becomes no-ops.
    Blank,
    /// It is the last one.
    End,
}

use Verdict::{Blank, Keep};

impl Stream<'_> {
    pub(super) fn is_user(&self) -> bool {
        matches!(self, Self::User(..))
    }

    /// What a fault in it is said to be in.
    pub(super) const fn part(&self) -> Part {
        match self {
            Self::Ring => Part::Ring,
            Self::Batch(..) => Part::Batch,
            Self::User(..) => Part::ProcessBatch,
            Self::Indirect | Self::PerContext => Part::Workaround,
            Self::Image(_) => Part::Image,
        }
    }
}

impl Audit<'_> {
    /// Walks whole commands from dword `at` on.
    pub(super) fn walk(&mut self, dwords: &mut [u32], at: usize, stream: Stream<'_>) -> Result<Progress, AuditFault> {
        let tables = self.tables;
        let (start, mut at) = (at, at);
        let mut commands = 0;
        let mut ended = false;
        while let Some(&header) = dwords.get(at) {
            // Most commands: the next one is found from the header alone, and the processor need not wait for the
            // rule, which it guesses. This halves the cost of a walk.
            if tables.is_common(header) {
                let end = at + COMMON.dwords(header);
                if end > dwords.len() {
                    break;
                }
                commands += 1;
                at = end;
                continue;
            }
            let rule = tables.rule(header);
            let end = at + rule.dwords(header);
            if end > dwords.len() {
                break;
            }
            if !rule.is_plain() {
                let Some(command) = dwords.get_mut(at..end) else {
                    break;
                };
                self.summary.judged += 1;
                match self.judge(rule.kind(), command, at, stream) {
                    Ok(Keep) => {}
                    Ok(Blank) => {
                        command.fill(0);
                        self.summary.blanked += 1;
                    }
                    Ok(Verdict::End) => ended = true,
                    Err(reason) => {
                        self.summary.dwords += (at - start) as u32;
                        return Err(fault(dwords, at, reason));
                    }
                }
            }
            commands += 1;
            at = end;
            if ended {
                break;
            }
        }
        self.summary.commands += commands;
        self.summary.dwords += (at - start) as u32;
        Ok(Progress { at, ended })
    }

    #[inline(never)]
    fn judge(&mut self, kind: Kind, command: &mut [u32], at: usize, stream: Stream<'_>) -> Result<Verdict, Reason> {
        if matches!(stream, Stream::Image(_)) && !matches!(kind, Kind::LoadRegisterImmediate | Kind::BatchEnd) {
            return Err(if kind == Kind::Unknown { Reason::Unknown } else { Reason::Forbidden });
        }
        match kind {
            Kind::Plain => Ok(Keep),
            Kind::Unknown => Err(Reason::Unknown),
            Kind::Blank => Ok(Blank),
            Kind::Forbidden if stream.is_user() => Ok(Blank),
            Kind::Forbidden => Err(Reason::Forbidden),
            Kind::UserInterrupt => Ok(self.user_interrupt(stream)),
            Kind::Arbitration => Ok(arbitration(command, stream)),
            Kind::BatchEnd => Ok(batch_end(stream)),
            Kind::BatchStart => self.batch_start(command, at, stream),
            Kind::LoadRegisterImmediate => self.load_register_immediate(command, stream),
            Kind::PipeControl => self.pipe_control(command, stream),
            kind => self.named(kind, command, stream),
        }
    }

    fn user_interrupt(&mut self, stream: Stream<'_>) -> Verdict {
        if stream.is_user() {
            return Blank;
        }
        self.summary.user_interrupts += 1;
        Keep
    }

    fn batch_start(&mut self, command: &mut [u32], at: usize, stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, low, high] = command else {
            return Err(Reason::Length);
        };
        let (process, predicated) = (*header & mi::BB_PPGTT != 0, *header & mi::BB_PREDICATION != 0);
        let second = *header & mi::BB_SECOND_LEVEL != 0;
        let (place, level, chains) = match stream {
            Stream::Ring => {
                // There is no second level below a ring.
                *header &= !mi::BB_SECOND_LEVEL;
                (Place::Ring(at as u32), Level::First, false)
            }
            Stream::User(level, _)
                if !process || predicated || *header & mi::BB_ADD_OFFSET != 0 || (second && level == Level::Second) =>
            {
                return Ok(end_instead(command));
            }
            Stream::Batch(Level::Second, _) if second => {
                return Err(Reason::Forbidden);
            }
            Stream::Batch(level, Origin(origin)) | Stream::User(level, Origin(origin)) => {
                let below = if second { Level::Second } else { level };
                (Place::Arena(origin + at as u32), below, !second && !predicated)
            }
            Stream::Indirect | Stream::PerContext | Stream::Image(_) => {
                return Err(Reason::Forbidden);
            }
        };
        let then = if chains { Verdict::End } else { Keep };
        if process && self.engine != Engine::Bcs {
            return Ok(then);
        }
        if *header & mi::BB_ADD_OFFSET != 0 {
            return Err(Reason::Forbidden);
        }
        let target = if process {
            Target::Process(strip(u64::from(*high) << 32 | u64::from(*low & !3)))
        } else if *high == 0 && self.partition.holds(GgttAddr(*low & !3), 4) {
            Target::Global(GgttAddr(*low & !3))
        } else {
            return Err(Reason::Address);
        };
        let pending = Pending { place, target, level };
        self.pending.try_push(pending).map_err(|_| Reason::TooManyBatches)?;
        Ok(then)
    }
}

/// With arbitration off a batch could hold the engine for ever; the guest's driver turns it off around each batch
/// because it does not preempt (design D13).
fn arbitration(command: &mut [u32], stream: Stream<'_>) -> Verdict {
    match stream {
        Stream::User(..) => return Blank,
        Stream::Ring | Stream::Batch(..) => enable_arbitration(command),
        // Around workarounds that must not be torn apart, for as long as they take.
        Stream::Indirect | Stream::PerContext | Stream::Image(_) => {}
    }
    Keep
}

fn enable_arbitration(command: &mut [u32]) {
    if let [header, ..] = command {
        *header |= mi::ARB_ENABLE;
    }
}

/// A batch that runs at every restore must not leave arbitration off: its last word on it is "on".
pub(super) fn leave_arbitration_on(tables: &Tables, dwords: &mut [u32]) {
    let (mut at, mut last) = (0, None);
    while let Some(&header) = dwords.get(at) {
        let rule = tables.rule(header);
        if rule.kind() == Kind::Arbitration {
            last = Some(at);
        }
        at += rule.dwords(header);
    }
    if let Some(command) = last.and_then(|at| dwords.get_mut(at..)) {
        enable_arbitration(command);
    }
}

/// Leads a batch start to a copy, in the space that it asked for.
pub(super) fn redirect(command: &mut [u32], target: Target) {
    let at = match target {
        Target::Global(at) => u64::from(at.0),
        Target::Process(at) => canonical(at),
    };
    if let [_, low, high, ..] = command {
        (*low, *high) = (at as u32, (at >> 32) as u32);
    }
}

/// A start in the copy of a process batch that may lead to what is no copy: the batch ends there.
fn end_instead(command: &mut [u32]) -> Verdict {
    command.fill(0);
    if let Some(header) = command.first_mut() {
        *header = mi::header(mi::BATCH_BUFFER_END);
    }
    Verdict::End
}

fn batch_end(stream: Stream<'_>) -> Verdict {
    match stream {
        Stream::Ring | Stream::Indirect => Blank,
        Stream::Batch(..) | Stream::User(..) | Stream::PerContext | Stream::Image(_) => Verdict::End,
    }
}
