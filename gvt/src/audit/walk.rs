//! The walk over a copy: one rule a command, and what is done with the commands that have addresses or registers.

use super::batch::{Pending, Place, Target};
use super::registers::{self, ContextRegisters, Policy};
use super::table::{COMMON, Kind, Tables};
use super::{Audit, AuditFault, Part, Reason, fault};
use gvt_defs::gfx::pipe_control;
use gvt_defs::pte::strip;
use gvt_defs::{Engine, GgttAddr, PAGE_SIZE, mi, ring};

/// Whether a batch was started from the ring or from another batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Level {
    First,
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
enum Verdict {
    /// It stays, as it is now.
    Keep,
    /// It becomes no-ops.
    Blank,
    /// It is the last one.
    End,
}

use Verdict::{Blank, Keep};

/// Whose rules hold for a global address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Global,
    Process,
}

impl Stream<'_> {
    fn is_user(&self) -> bool {
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
            Kind::ConditionalBatchEnd => self.conditional_batch_end(command, stream),
            Kind::BatchStart => self.batch_start(command, at, stream),
            Kind::SemaphoreWait => self.semaphore_wait(command, stream),
            Kind::StoreDataImmediate => self.store_data_immediate(command, stream),
            Kind::StoreDataIndex => store_data_index(command, stream),
            Kind::LoadRegisterImmediate => self.load_register_immediate(command, stream),
            Kind::StoreRegisterMemory => self.store_register_memory(command, stream),
            Kind::LoadRegisterMemory => self.load_register_memory(command, stream),
            Kind::LoadRegisterRegister => self.load_register_register(command, stream),
            Kind::FlushDw => self.flush_dw(command, stream),
            Kind::PipeControl => self.pipe_control(command, stream),
            Kind::ReportPerfCount => self.report_perf_count(command, stream),
            Kind::CopyMemory => self.copy_memory(command, stream),
            Kind::Atomic => self.atomic(command, stream),
        }
    }

    /// An access of `bytes` bytes at an address of the space that the command names. An unprivileged batch's global
    /// access is a no-op, as the hardware has it.
    fn access(&self, space: Space, low: u32, high: u32, bytes: u32, stream: Stream<'_>) -> Result<Verdict, Reason> {
        if space == Space::Process {
            return Ok(Keep);
        }
        if stream.is_user() {
            return Ok(Blank);
        }
        // The high half of a global address is ignored by some commands and not by others: none is given one.
        let inside = high == 0 && self.partition.holds(GgttAddr(low), bytes);
        if inside { Ok(Keep) } else { Err(Reason::Address) }
    }

    fn user_interrupt(&mut self, stream: Stream<'_>) -> Verdict {
        if stream.is_user() {
            return Blank;
        }
        self.summary.user_interrupts += 1;
        Keep
    }

    fn conditional_batch_end(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, _, low, high] = command else {
            return Err(Reason::Length);
        };
        if !matches!(stream, Stream::Batch(..) | Stream::User(..)) {
            return Ok(Blank);
        }
        // A mask may follow the value in memory.
        self.access(global_if(*header & mi::GLOBAL_GTT), *low & !3, *high, 8, stream)
    }

    fn semaphore_wait(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, _, low, high] = command else {
            return Err(Reason::Length);
        };
        let poll_register = *header & mi::SEMAPHORE_REGISTER_POLL != 0;
        // In signal mode it would wait for a signal to a context id that the hardware never sees.
        *header |= mi::SEMAPHORE_POLL;
        if poll_register {
            // The register is the address' low half. It would wait, or go on, by what is not the guest's to know.
            return match registers::readable(self.engine, *low & mi::REGISTER_MASK) {
                true => Ok(Keep),
                // No process may have its driver's submission refused.
                false if stream.is_user() => Ok(Blank),
                false => Err(Reason::Forbidden),
            };
        }
        self.access(global_if(*header & mi::GLOBAL_GTT), *low & !3, *high, 4, stream)
    }

    fn store_data_immediate(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, low, high, data @ ..] = command else {
            return Err(Reason::Length);
        };
        if data.is_empty() {
            return Err(Reason::Length);
        }
        // Bit 0 of the address would add an offset by engine core.
        *low &= !3;
        self.access(global_if(*header & mi::GLOBAL_GTT), *low, *high, data.len() as u32 * 4, stream)
    }

    fn load_register_immediate(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let engine = self.engine;
        let [header, pairs @ ..] = command else { return Err(Reason::Length) };
        *header &= !RELATIVE;
        let (pairs, []) = pairs.as_chunks_mut::<2>() else {
            return Err(Reason::Length);
        };
        for [offset, value] in pairs {
            let register = *offset & mi::REGISTER_MASK;
            let policy = policy(engine, register, stream);
            if policy == Policy::Refused {
                return Err(Reason::Forbidden);
            }
            if let Some(admitted) = policy.admit(*value) {
                *value = admitted;
            } else {
                self.drop_write(register, *value, stream);
                // A register that holds what was last written to it, and no more.
                *offset = engine.base() + ring::NOPID;
                *value = 0;
            }
        }
        Ok(Keep)
    }

    fn store_register_memory(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, register, low, high] = command else {
            return Err(Reason::Length);
        };
        *header &= !RELATIVE;
        let (space, address, top) = (*header & mi::GLOBAL_GTT, *low & !3, *high);
        let verdict = self.access(global_if(space), address, top, 4, stream)?;
        if !registers::readable(self.engine, *register & mi::REGISTER_MASK) {
            // A command of the same length stores the zero that is read there.
            let store = mi::with_length(mi::STORE_DATA_IMM, 4) | space;
            command.copy_from_slice(&[store, address, top, 0]);
        }
        Ok(verdict)
    }

    fn load_register_memory(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, register, low, high] = command else {
            return Err(Reason::Length);
        };
        *header &= !RELATIVE;
        let verdict = self.access(global_if(*header & mi::GLOBAL_GTT), *low & !3, *high, 4, stream)?;
        Ok(self.any_value(*register, stream)?.unwrap_or(verdict))
    }

    fn load_register_register(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, source, register] = command else {
            return Err(Reason::Length);
        };
        *header &= !RELATIVE;
        let (source, register) = (*source & mi::REGISTER_MASK, *register);
        let verdict = self.any_value(register, stream)?.unwrap_or(Keep);
        if matches!(verdict, Keep) && !registers::readable(self.engine, source) {
            command.copy_from_slice(&[mi::load_register_imm(1), register & mi::REGISTER_MASK, 0]);
        }
        Ok(verdict)
    }

    /// The verdict on a write of a value that is not known yet: `None` if it may be any.
    fn any_value(&mut self, register: u32, stream: Stream<'_>) -> Result<Option<Verdict>, Reason> {
        let register = register & mi::REGISTER_MASK;
        match policy(self.engine, register, stream) {
            Policy::Any => return Ok(None),
            Policy::Refused => return Err(Reason::Forbidden),
            Policy::Without(_) | Policy::NotPhysical | Policy::Denied => {}
        }
        self.summary.dropped += 1;
        Ok(Some(Blank))
    }

    fn drop_write(&mut self, register: u32, value: u32, stream: Stream<'_>) {
        self.summary.dropped += 1;
        if !stream.is_user()
            && !matches!(stream, Stream::Image(_))
            && let Some(dropped) = &mut self.dropped
        {
            dropped(register, value);
        }
    }

    fn flush_dw(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        // Five dwords store eight bytes, four store four: both forms have an address.
        let ([header, low, high, _] | [header, low, high, _, _]) = command else {
            return Err(Reason::Length);
        };
        self.summary.notifies += u32::from(*header & mi::FLUSH_NOTIFY != 0);
        if (*header >> mi::FLUSH_POST_SYNC_SHIFT) & 3 == 0 {
            return Ok(Keep);
        }
        if *header & mi::FLUSH_STORE_INDEX != 0 {
            // With it the index would count from the engine's status page, which is the mediator's.
            *low &= !mi::FLUSH_DW1_GLOBAL_GTT;
            return status_index(*low & !7, *high, 8);
        }
        self.access(global_if(*low & mi::FLUSH_DW1_GLOBAL_GTT), *low & !7, *high, 8, stream)
    }

    fn pipe_control(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [_, flags, low, high, _, _] = command else {
            return Err(Reason::Length);
        };
        self.summary.notifies += u32::from(*flags & pipe_control::NOTIFY != 0);
        // Resets counters and the timestamp that all share.
        *flags &= !GLOBAL_SNAPSHOT_RESET;
        if *flags & pipe_control::LRI_POST_SYNC != 0 {
            if self.any_value(*low, stream)?.is_some() {
                *flags &= !(pipe_control::LRI_POST_SYNC | pipe_control::POST_SYNC_MASK);
            }
            return Ok(Keep);
        }
        if *flags & pipe_control::POST_SYNC_MASK == 0 {
            return Ok(Keep);
        }
        if *flags & pipe_control::STORE_DATA_INDEX != 0 {
            // As for MI_FLUSH_DW: the context's status page, not the engine's.
            *flags &= !pipe_control::GLOBAL_GTT;
            return status_index(*low & !7, *high, 8);
        }
        // The store is of eight bytes and must be aligned; bit 2 asked for the global space in earlier generations.
        *low &= !7;
        self.access(global_if(*flags & pipe_control::GLOBAL_GTT), *low, *high, 8, stream)
    }

    fn report_perf_count(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [_, low, high, _] = command else {
            return Err(Reason::Length);
        };
        self.access(global_if(*low & mi::REPORT_DW1_GLOBAL_GTT), *low & !63, *high, 256, stream)
    }

    fn copy_memory(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [header, to_low, to_high, from_low, from_high] = command else {
            return Err(Reason::Length);
        };
        let to = global_if(*header & mi::COPY_DESTINATION_GLOBAL_GTT);
        let from = global_if(*header & mi::COPY_SOURCE_GLOBAL_GTT);
        match self.access(to, *to_low & !3, *to_high, 4, stream)? {
            Keep => self.access(from, *from_low & !3, *from_high, 4, stream),
            other => Ok(other),
        }
    }

    fn atomic(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let ([header, low, high] | [header, low, high, _, _, _, _, _, _, _, _]) = command else {
            return Err(Reason::Length);
        };
        let bytes = match (*header >> 19) & 3 {
            0 => 4,
            1 => 8,
            _ => 16,
        };
        self.access(global_if(*header & mi::GLOBAL_GTT), *low & !3, *high, bytes, stream)
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
            Stream::Batch(Level::Second, _) | Stream::User(Level::Second, _) if second => {
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
        if stream.is_user() && !process {
            return Ok(Blank);
        }
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

/// LOAD_REGISTER_*: zero on these GPUs; on later ones the registers would be taken from some engine's base.
const RELATIVE: u32 = 7 << 17;
/// PIPE_CONTROL: Global Snapshot Count Reset.
const GLOBAL_SNAPSHOT_RESET: u32 = 1 << 19;

fn global_if(flag: u32) -> Space {
    if flag != 0 { Space::Global } else { Space::Process }
}

fn policy(engine: Engine, register: u32, stream: Stream<'_>) -> Policy {
    match stream {
        Stream::User(..) => registers::unprivileged(engine, register),
        Stream::Image(registers) => registers.policy(register),
        Stream::Ring | Stream::Batch(..) | Stream::Indirect | Stream::PerContext => {
            registers::privileged(engine, register)
        }
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

/// Leads a batch start to a copy in the global space.
pub(super) fn redirect(command: &mut [u32], target: GgttAddr) {
    if let [header, low, high, ..] = command {
        *header &= !mi::BB_PPGTT;
        *low = target.0;
        *high = 0;
    }
}

fn batch_end(stream: Stream<'_>) -> Verdict {
    match stream {
        Stream::Ring | Stream::Indirect => Blank,
        Stream::Batch(..) | Stream::User(..) | Stream::PerContext | Stream::Image(_) => Verdict::End,
    }
}

fn store_data_index(command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
    let ([header, offset, _] | [header, offset, _, _]) = command else {
        return Err(Reason::Length);
    };
    if stream.is_user() {
        return Ok(Blank);
    }
    // The context's own status page; the engine's is the mediator's.
    *header |= mi::STORE_INDEX_PPHWSP;
    *offset &= 0xFFC;
    status_index(*offset, 0, 8)
}

/// A store of `bytes` bytes into the context's status page.
fn status_index(offset: u32, high: u32, bytes: u32) -> Result<Verdict, Reason> {
    let inside = high == 0 && u64::from(offset) + u64::from(bytes) <= PAGE_SIZE;
    if inside { Ok(Keep) } else { Err(Reason::Index) }
}
