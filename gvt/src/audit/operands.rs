//! Commands that name memory or registers. Where those stand, `gvt_defs::command` says; here is what a guest may do with
//! them, and what becomes of a command that does more.

use super::registers::{self, Policy};
use super::table::Kind;
use super::walk::Stream;
use super::walk::Verdict::{self, Blank, Keep};
use super::{Audit, Reason};
use gvt_defs::command::{self, Command, Privilege};
use gvt_defs::gfx::pipe_control;
use gvt_defs::operand::Memory;
use gvt_defs::{Engine, GgttAddr, mi, ring};

/// LOAD_REGISTER_*: zero on these GPUs; on later ones the registers would be taken from some engine's base.
const RELATIVE: u32 = 7 << 17;
/// PIPE_CONTROL: Global Snapshot Count Reset.
const GLOBAL_SNAPSHOT_RESET: u32 = 1 << 19;

/// The two that drivers emit by the thousand have their lines of the table here as constants.
const LOAD: Command = command::mi_entry(mi::LOAD_REGISTER_IMM);
const PIPE: Command = command::PIPE_CONTROL;

impl Audit<'_> {
    /// Judges a command in which memory or registers are named.
    pub(super) fn named(&mut self, kind: Kind, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let facts = command.first().and_then(|header| command::find(*header)).ok_or(Reason::Unknown)?;
        if !facts.forms.allow(command.len() as u32) {
            return Err(Reason::Length);
        }
        if stream.is_user() && facts.privilege == Privilege::Privileged {
            return Ok(Blank);
        }
        match kind {
            Kind::ConditionalBatchEnd if !matches!(stream, Stream::Batch(..) | Stream::User(..)) => Ok(Blank),
            Kind::SemaphoreWait => self.semaphore_wait(facts, command, stream),
            Kind::StoreRegisterMemory => self.store_register_memory(facts, command, stream),
            Kind::LoadRegisterMemory => self.load_register_memory(facts, command, stream),
            Kind::LoadRegisterRegister => self.load_register_register(facts, command, stream),
            Kind::FlushDw => self.flush_dw(facts, command, stream),
            _ => self.memory(facts, command, stream),
        }
    }

    /// All memory that a command names.
    fn memory(&self, facts: &Command, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        for operand in facts.memory {
            match self.access(operand, command, stream)? {
                Keep => {}
                other => return Ok(other),
            }
        }
        Ok(Keep)
    }

    /// An access to memory. An unprivileged batch's global access is a no-op, as the hardware has it.
    #[inline(always)]
    fn access(&self, operand: &Memory, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        if operand.unused.of(command) {
            return Ok(Keep);
        }
        // Bits that are neither address nor flag mean an offset by engine core, or another space, on other parts.
        operand.tidy(command);
        let (global, index) = (operand.global.of(command), operand.index.of(command));
        if !global && !index {
            return Ok(Keep);
        }
        self.reach(operand, command, stream)
    }

    /// An access that leaves the space of the process.
    #[inline(never)]
    fn reach(&self, operand: &Memory, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let header = command.first().copied().unwrap_or(0);
        let (address, bytes) = (operand.address(command), operand.bytes.of(header, command.len() as u32));
        let (global, index) = (operand.global.of(command), operand.index.of(command));
        let outside = index && !Memory::in_status_page(address, bytes);
        if stream.is_user() && (global || outside) {
            return Ok(Blank);
        }
        if outside {
            return Err(Reason::Index);
        }
        if !global {
            return Ok(Keep);
        }
        if index {
            return Ok(self.store_by_index(operand, command, address as u32, bytes));
        }
        // The high half of a global address is ignored by some commands and not by others: none is given one.
        let inside = u32::try_from(address).is_ok_and(|low| self.partition.holds(GgttAddr(low), bytes));
        if inside { Ok(Keep) } else { Err(Reason::Address) }
    }

    /// An index into the engine's status page, which is the mediator's: the store goes to the page that the guest takes
    /// for it. Where there is none, or where the command has no form for it (MI_STORE_DATA_INDEX is a dword shorter than a
    /// store that has an address), it goes to the context's status page.
    fn store_by_index(&self, operand: &Memory, command: &mut [u32], offset: u32, bytes: u32) -> Verdict {
        let own = self.status_page.and_then(|page| page.0.checked_add(offset));
        if let Some(own) = own
            && self.partition.holds(GgttAddr(own), bytes)
            && operand.index.refute(command)
        {
            operand.aim(command, own);
            return Keep;
        }
        if operand.global.refute(command) { Keep } else { Blank }
    }

    fn semaphore_wait(&self, facts: &Command, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let [register] = facts.registers else { return Err(Reason::Length) };
        // In signal mode it would wait for a signal to a context id that the hardware never sees.
        set(command, 0, mi::SEMAPHORE_POLL);
        if register.unused.of(command) {
            return self.memory(facts, command, stream);
        }
        // It would wait, or go on, by what is not the guest's to know.
        match registers::readable(self.engine, register.offset(command)) {
            true => Ok(Keep),
            // No process may have its driver's submission refused.
            false if stream.is_user() => Ok(Blank),
            false => Err(Reason::Forbidden),
        }
    }

    pub(super) fn load_register_immediate(
        &mut self,
        command: &mut [u32],
        stream: Stream<'_>,
    ) -> Result<Verdict, Reason> {
        let engine = self.engine;
        let ([first], true) = (LOAD.registers, LOAD.forms.allow(command.len() as u32)) else {
            return Err(Reason::Length);
        };
        clear(command, 0, RELATIVE);
        let pairs = command.get_mut(usize::from(first.dword)..).unwrap_or_default();
        let (pairs, []) = pairs.as_chunks_mut::<{ command::LOADED }>() else {
            return Err(Reason::Length);
        };
        for [offset, value] in pairs {
            let register = *offset & first.mask;
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

    fn store_register_memory(
        &self,
        facts: &Command,
        command: &mut [u32],
        stream: Stream<'_>,
    ) -> Result<Verdict, Reason> {
        let [register] = facts.registers else { return Err(Reason::Length) };
        clear(command, 0, RELATIVE);
        let verdict = self.memory(facts, command, stream)?;
        if let [header, _, low, high] = *command
            && !registers::readable(self.engine, register.offset(command))
        {
            // A command of the same length stores the zero that is read there.
            let store = mi::with_length(mi::STORE_DATA_IMM, 4) | header & mi::GLOBAL_GTT;
            command.copy_from_slice(&[store, low, high, 0]);
        }
        Ok(verdict)
    }

    fn load_register_memory(
        &mut self,
        facts: &Command,
        command: &mut [u32],
        stream: Stream<'_>,
    ) -> Result<Verdict, Reason> {
        let [register] = facts.registers else { return Err(Reason::Length) };
        clear(command, 0, RELATIVE);
        let verdict = self.memory(facts, command, stream)?;
        Ok(self.any_value(register.offset(command), stream)?.unwrap_or(verdict))
    }

    fn load_register_register(
        &mut self,
        facts: &Command,
        command: &mut [u32],
        stream: Stream<'_>,
    ) -> Result<Verdict, Reason> {
        let [source, target] = facts.registers else { return Err(Reason::Length) };
        clear(command, 0, RELATIVE);
        let (source, target) = (source.offset(command), target.offset(command));
        let verdict = self.any_value(target, stream)?.unwrap_or(Keep);
        if matches!(verdict, Keep) && !registers::readable(self.engine, source) {
            command.copy_from_slice(&[mi::load_register_imm(1), target, 0]);
        }
        Ok(verdict)
    }

    /// The verdict on a write of a value that is not known yet: `None` if it may be any.
    fn any_value(&mut self, register: u32, stream: Stream<'_>) -> Result<Option<Verdict>, Reason> {
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

    fn flush_dw(&mut self, facts: &Command, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let notifies = command.first().is_some_and(|header| header & mi::FLUSH_NOTIFY != 0);
        let verdict = self.memory(facts, command, stream)?;
        self.summary.notifies += u32::from(notifies && matches!(verdict, Keep));
        Ok(verdict)
    }

    pub(super) fn pipe_control(&mut self, command: &mut [u32], stream: Stream<'_>) -> Result<Verdict, Reason> {
        let ([memory], [register], true) = (PIPE.memory, PIPE.registers, PIPE.forms.allow(command.len() as u32)) else {
            return Err(Reason::Length);
        };
        // Resets counters and the timestamp that all share.
        clear(command, 1, GLOBAL_SNAPSHOT_RESET);
        if !register.unused.of(command) {
            // The write of a register leaves no room for another (PRM): what a part would make of both is not known.
            clear(command, 1, pipe_control::POST_SYNC_MASK);
            if self.any_value(register.offset(command), stream)?.is_some() {
                clear(command, 1, pipe_control::LRI_POST_SYNC);
            }
        }
        let verdict = self.access(memory, command, stream)?;
        self.summary.notifies += u32::from(command.get(1).is_some_and(|flags| flags & pipe_control::NOTIFY != 0));
        Ok(verdict)
    }
}

fn set(command: &mut [u32], at: usize, bits: u32) {
    if let Some(dword) = command.get_mut(at) {
        *dword |= bits;
    }
}

fn clear(command: &mut [u32], at: usize, bits: u32) {
    if let Some(dword) = command.get_mut(at) {
        *dword &= !bits;
    }
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
