//! MI commands that move registers: loads, stores, the ALU.

use gvt_defs::command::Command;
use gvt_defs::trace::By;
use gvt_defs::{Engine, mi, nonpriv, ring};

use crate::engine::{Exec, Flow};
use crate::profile::Blitter;
use crate::recorder::{Place, Touch};

impl Exec<'_> {
    /// The initiator for traces.
    pub const fn by(&self) -> By {
        By::Engine(self.state.engine)
    }

    /// Writes a register for a command, if the stream may.
    pub fn command_write(&mut self, header: u32, register: u32, value: u32) {
        if self.may_write(register) {
            let by = self.by();
            self.device.write_register(register, value, by);
        } else {
            self.violation(header, register);
        }
    }

    fn may_write(&self, register: u32) -> bool {
        let engine = self.state.engine;
        if self.privileged() || nonpriv::allowed(engine, register) {
            return true;
        }
        if engine == Engine::Bcs && self.device.profile.blitter == Blitter::ObeysLri {
            return true;
        }
        (0..ring::FORCE_TO_NONPRIV_SLOTS).any(|slot| {
            let held = self.device.ring(engine, ring::FORCE_TO_NONPRIV + 4 * slot);
            nonpriv::slot_opens(held, register)
        })
    }

    /// Reads a register for a command. Reads are not restricted.
    pub fn command_read(&mut self, register: u32) -> u32 {
        if Engine::of_register(register).is_some_and(|(engine, local)| engine == self.state.engine && local < 0x200) {
            self.publish();
        }
        let by = self.by();
        self.device.read_register(register, by)
    }

    pub fn load_register_imm(&mut self, command: &Command, header: u32, dwords: u32) -> Flow {
        let [first] = command.registers else {
            return Flow::Next(dwords);
        };
        let pairs = (dwords - 1) / 2;
        for pair in 0..pairs {
            let at = u32::from(first.dword) + u32::from(first.every) * pair;
            let (register, value) = (self.operand(at) & first.mask, self.operand(at + 1));
            self.command_write(header, register, value);
        }
        self.budget = self.budget.saturating_sub(pairs);
        Flow::Barrier(dwords)
    }

    pub fn load_register_mem(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let ([memory], [register]) = (command.memory, command.registers) else {
            return Flow::Next(dwords);
        };
        let Some((space, address)) = self.place(&head, memory) else {
            return Flow::Next(dwords);
        };
        let value = self.view().read_u32(space, address);
        self.command_write(head[0], register.offset(&head), value);
        Flow::Barrier(dwords)
    }

    pub fn load_register_reg(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let [source, destination] = command.registers else {
            return Flow::Next(dwords);
        };
        let value = self.command_read(source.offset(&head));
        self.command_write(head[0], destination.offset(&head), value);
        Flow::Barrier(dwords)
    }

    pub fn store_register_mem(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let ([header, ..], [memory], [register]) = (head, command.memory, command.registers) else {
            return Flow::Next(dwords);
        };
        let predicate = self.device.ring(self.state.engine, ring::MI_PREDICATE_RESULT);
        if header & mi::PREDICATE_ENABLE != 0 && predicate & 1 == 0 {
            return Flow::Next(dwords);
        }
        let Some((space, address)) = self.place(&head, memory) else {
            return Flow::Next(dwords);
        };
        let value = self.command_read(register.offset(&head));
        self.view().write_u32(space, address, value);
        Flow::Next(dwords)
    }

    /// A general purpose register.
    pub fn gpr(&self, index: u32) -> u64 {
        self.device.regs.get64(self.state.engine.base() + ring::GPR + 8 * (index % ring::GPRS))
    }

    /// Stores a general purpose register.
    pub fn set_gpr(&mut self, index: u32, value: u64) {
        let offset = ring::GPR + 8 * (index % ring::GPRS);
        self.set_own(offset, value as u32);
        self.set_own(offset + 4, (value >> 32) as u32);
    }

    /// Stores a register of the engine's own that a command writes without naming it.
    pub fn set_own(&mut self, local: u32, value: u32) {
        let engine = self.state.engine;
        self.device.recorder.reach(Place::Register(engine.base() + local), 4, Touch::Write, value);
        self.device.set_ring(engine, local, value);
    }

    /// MI_MATH: a program for the 64-bit ALU.
    pub fn math(&mut self, dwords: u32) -> Flow {
        let mut alu = Alu::default();
        for i in 1..dwords {
            let instruction = self.operand(i);
            let (opcode, one, two) = (instruction >> 20, instruction >> 10 & 0x3FF, instruction & 0x3FF);
            match opcode {
                mi::math::LOAD => alu.load(one, self.math_source(&alu, two)),
                mi::math::LOADINV => alu.load(one, !self.math_source(&alu, two)),
                mi::math::LOAD0 => alu.load(one, 0),
                mi::math::LOAD1 => alu.load(one, u64::MAX),
                mi::math::STORE => self.math_store(one, alu.read(two)),
                mi::math::STOREINV => self.math_store(one, !alu.read(two)),
                _ => alu.compute(opcode),
            }
        }
        self.budget = self.budget.saturating_sub(dwords / 4);
        Flow::Next(dwords)
    }

    fn math_source(&self, alu: &Alu, operand: u32) -> u64 {
        if operand < ring::GPRS { self.gpr(operand) } else { alu.read(operand) }
    }

    fn math_store(&mut self, operand: u32, value: u64) {
        if operand < ring::GPRS {
            self.set_gpr(operand, value);
        }
    }
}

#[derive(Default)]
struct Alu {
    a: u64,
    b: u64,
    accumulator: u64,
    zero: bool,
    carry: bool,
}

impl Alu {
    fn load(&mut self, operand: u32, value: u64) {
        match operand {
            mi::math::SRCA => self.a = value,
            mi::math::SRCB => self.b = value,
            _ => {}
        }
    }

    /// A flag reads as all ones or zero.
    fn read(&self, operand: u32) -> u64 {
        let flag = |set: bool| if set { u64::MAX } else { 0 };
        match operand {
            mi::math::SRCA => self.a,
            mi::math::SRCB => self.b,
            mi::math::ACCU => self.accumulator,
            mi::math::ZF => flag(self.zero),
            mi::math::CF => flag(self.carry),
            _ => 0,
        }
    }

    fn compute(&mut self, opcode: u32) {
        let (value, carry) = match opcode {
            mi::math::ADD => self.a.overflowing_add(self.b),
            mi::math::SUB => self.a.overflowing_sub(self.b),
            mi::math::AND => (self.a & self.b, false),
            mi::math::OR => (self.a | self.b, false),
            mi::math::XOR => (self.a ^ self.b, false),
            _ => return,
        };
        (self.accumulator, self.carry, self.zero) = (value, carry, value == 0);
    }
}
