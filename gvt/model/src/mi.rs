//! MI commands that steer the stream: batches, arbitration, predicates, semaphores.

use gvt_defs::command::{Command, Privilege, mi_command};
use gvt_defs::{Engine, event, mi, ring};

use crate::engine::{Batch, Exec, Flow, Level};
use crate::translate::Space;

/// Compares as MI_SEMAPHORE_WAIT and MI_CONDITIONAL_BATCH_BUFFER_END do: memory against data.
const fn compare(operation: u32, memory: u64, data: u64) -> bool {
    match operation & 7 {
        0 => memory > data,
        1 => memory >= data,
        2 => memory < data,
        3 => memory <= data,
        4 => memory == data,
        5 => memory != data,
        _ => false,
    }
}

impl Exec<'_> {
    /// Executes an MI command.
    pub fn mi(&mut self, header: u32, dwords: u32) -> Flow {
        let opcode = mi::opcode(header);
        match opcode {
            mi::NOOP => return self.noop(header),
            mi::ARB_CHECK => return Flow::Arbitrate(dwords),
            mi::BATCH_BUFFER_END => return self.batch_end(),
            _ => {}
        }
        let Some(command) = mi_command(header) else {
            return Flow::Next(dwords);
        };
        match opcode {
            mi::BATCH_BUFFER_START => return self.batch_start(command, dwords),
            mi::CONDITIONAL_BATCH_BUFFER_END => return self.conditional_end(command, dwords),
            _ => {}
        }
        if !self.privileged() && command.privilege == Privilege::Privileged {
            self.violation(header, 0);
            return Flow::Next(dwords);
        }
        if opcode != mi::SEMAPHORE_WAIT {
            self.effect();
        }
        match opcode {
            mi::SET_PREDICATE => self.set_predicate(header),
            mi::USER_INTERRUPT => {
                self.device.raise(self.state.engine, event::USER_INTERRUPT);
                Flow::Next(dwords)
            }
            mi::ARB_ON_OFF => {
                self.state.arbitration = header & mi::ARB_ENABLE != 0;
                Flow::Next(dwords)
            }
            mi::PREDICATE => self.predicate(header),
            mi::SEMAPHORE_WAIT => self.semaphore_wait(command, dwords),
            mi::SEMAPHORE_SIGNAL => self.semaphore_signal(header, dwords),
            mi::MATH => self.math(dwords),
            mi::LOAD_REGISTER_IMM => self.load_register_imm(command, header, dwords),
            mi::LOAD_REGISTER_MEM => self.load_register_mem(command, dwords),
            mi::LOAD_REGISTER_REG => self.load_register_reg(command, dwords),
            mi::STORE_REGISTER_MEM => self.store_register_mem(command, dwords),
            mi::STORE_DATA_IMM => self.store_data_imm(command, dwords),
            mi::STORE_DATA_INDEX => self.store_data_index(command, dwords),
            mi::COPY_MEM_MEM => self.copy_mem_mem(command, dwords),
            mi::ATOMIC => self.atomic(command, dwords),
            mi::FLUSH_DW => self.flush_dw(command, header, dwords),
            mi::REPORT_HEAD => self.report_head(command, dwords),
            mi::REPORT_PERF_COUNT => self.report_perf_count(command, dwords),
            mi::UPDATE_GTT => self.update_gtt(dwords),
            mi::DISPLAY_FLIP => self.unmodelled(header, dwords),
            // The rest has no effect that anybody could see here.
            _ => Flow::Next(dwords),
        }
    }

    fn noop(&mut self, header: u32) -> Flow {
        if header & mi::NOOP_WRITE_ID != 0 && self.privileged() {
            self.set_own(ring::NOPID, header & 0x3F_FFFF);
        }
        Flow::Next(1)
    }

    fn batch_end(&mut self) -> Flow {
        self.state.skipping = false;
        match self.state.level {
            Level::Second => self.state.level = Level::First,
            Level::First => self.state.level = Level::Ring,
            Level::PerContext | Level::Indirect => self.resume(),
            // In the ring it means nothing.
            Level::Ring => return Flow::Next(1),
        }
        Flow::Jumped
    }

    fn batch_start(&mut self, command: &Command, dwords: u32) -> Flow {
        let engine = self.state.engine;
        let head = self.head(dwords);
        let ([header, ..], [memory]) = (head, command.memory) else {
            return Flow::Next(dwords);
        };
        let predicate = self.device.ring(engine, ring::MI_PREDICATE_RESULT_1);
        if header & mi::BB_PREDICATION != 0 && predicate & 1 == 0 {
            return Flow::Next(dwords);
        }
        let mut address = memory.address(&head) & 0xFFFF_FFFF_FFFF;
        if header & mi::BB_ADD_OFFSET != 0 {
            address = address.wrapping_add(u64::from(self.device.ring(engine, ring::BB_OFFSET) & !3));
        }
        // What is unprivileged stays so.
        let space = if memory.global.of(&head) && self.privileged() { Space::Global } else { Space::Process };
        let target = Batch { address, space };
        self.leave_residue();
        let (_, here) = self.cursor();
        match self.state.level {
            Level::Ring => {
                self.advance(dwords);
                self.state.first = target;
                self.state.level = Level::First;
            }
            Level::First if header & mi::BB_SECOND_LEVEL != 0 => {
                self.advance(dwords);
                self.state.second = target;
                self.state.level = Level::Second;
            }
            Level::First => self.state.first = target,
            Level::Second => self.state.second = target,
            // A workaround batch that goes elsewhere never comes back.
            Level::Indirect | Level::PerContext => {
                self.state.workaround = target;
                self.state.level = Level::PerContext;
            }
        }
        // Going back is what loops do.
        if address <= here {
            self.state.spins += 1;
        }
        Flow::Jumped
    }

    fn conditional_end(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let ([header, data, ..], [memory]) = (head, command.memory) else {
            return Flow::Next(dwords);
        };
        let Some((space, address)) = self.place(&head, memory) else {
            return Flow::Next(dwords);
        };
        let (value, mask) = if header & mi::COND_COMPARE_MASK != 0 {
            let qword = self.view().read_u64(space, address);
            (qword as u32, (qword >> 32) as u32)
        } else {
            (self.view().read_u32(space, address), u32::MAX)
        };
        // Code 0 is what older parts do always: go on while memory is greater.
        let go_on = compare(header >> mi::SEMAPHORE_COMPARE_SHIFT, u64::from(value & mask), u64::from(data));
        if go_on { Flow::Next(dwords) } else { self.batch_end() }
    }

    fn set_predicate(&mut self, header: u32) -> Flow {
        let engine = self.state.engine;
        let result = self.device.ring(engine, ring::MI_PREDICATE_RESULT) & 1 != 0;
        let result2 = self.device.ring(engine, ring::MI_PREDICATE_RESULT_2) & 1 != 0;
        self.state.skipping = match header & 0xF {
            1 => !result2,
            2 => result2,
            3 => !result,
            4 => result,
            // This part has one slice.
            6 | 7 | 15 => true,
            _ => false,
        };
        Flow::Next(1)
    }

    fn predicate(&mut self, header: u32) -> Flow {
        let engine = self.state.engine;
        let old = self.device.ring(engine, ring::MI_PREDICATE_RESULT) & 1 != 0;
        let base = engine.base();
        let source0 = self.device.regs.get64(base + ring::MI_PREDICATE_SRC0);
        let source1 = self.device.regs.get64(base + ring::MI_PREDICATE_SRC1);
        let data = self.device.regs.get64(base + ring::MI_PREDICATE_DATA);
        let compared = match header & 3 {
            0 => true,
            1 => false,
            2 => source0 == source1,
            _ => source0.wrapping_sub(source1) == data,
        };
        let combined = match header >> 3 & 3 {
            0 => compared,
            1 => old && compared,
            2 => old || compared,
            _ => old != compared,
        };
        let result = match header >> 6 & 3 {
            2 => combined,
            3 => !combined,
            _ => old,
        };
        self.set_own(ring::MI_PREDICATE_RESULT, u32::from(result));
        self.set_own(ring::MI_PREDICATE_RESULT_1, u32::from(result));
        Flow::Next(1)
    }

    fn semaphore_wait(&mut self, command: &Command, dwords: u32) -> Flow {
        let engine = self.state.engine;
        let head = self.head(dwords);
        let ([header, data, ..], [memory], [register]) = (head, command.memory, command.registers) else {
            return Flow::Next(dwords);
        };
        if self.state.waiting && header & mi::SEMAPHORE_POLL == 0 && self.device.port(engine).signal.is_none() {
            return Flow::Wait;
        }
        let value = if register.unused.of(&head) {
            let Some((space, address)) = self.place(&head, memory) else {
                return Flow::Next(dwords);
            };
            self.view().read_u32(space, address)
        } else {
            self.device.read_register(register.offset(&head), self.by())
        };
        self.device.port(engine).signal = None;
        if compare(header >> mi::SEMAPHORE_COMPARE_SHIFT, u64::from(value), u64::from(data)) {
            self.state.waiting = false;
            self.effect();
            return Flow::Next(dwords);
        }
        if !self.state.waiting {
            self.state.waiting = true;
            self.device.raise(engine, event::SEMAPHORE_WAIT);
        }
        Flow::Wait
    }

    fn semaphore_signal(&mut self, header: u32, dwords: u32) -> Flow {
        let target = header >> 15 & 7;
        let id = self.operand(1);
        if let Some(engine) = Engine::ALL.into_iter().find(|e| e.info().signal == target) {
            self.device.port(engine).signal = Some(id);
        }
        Flow::Next(dwords)
    }
}
