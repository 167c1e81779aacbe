//! PIPE_CONTROL and MI_FLUSH_DW: flushes, TLB invalidation, post-sync writes, notification.

use gvt_defs::command::Command;
use gvt_defs::gfx::pipe_control::{
    NOTIFY, POST_SYNC_DEPTH_COUNT, POST_SYNC_MASK, POST_SYNC_TIMESTAMP, POST_SYNC_WRITE, TLB_INVALIDATE,
};
use gvt_defs::{event, mi};

use crate::command::Head;
use crate::engine::{Exec, Flow};
use crate::translate::Space;

impl Exec<'_> {
    pub fn pipe_control(&mut self, command: &Command, header: u32, dwords: u32) -> Flow {
        self.effect();
        let head = self.head(dwords);
        let ([_, flags, ..], [memory], [register]) = (head, command.memory, command.registers) else {
            return Flow::Next(dwords);
        };
        if flags & TLB_INVALIDATE != 0 {
            self.device.gtt.flush_engine(self.state.engine);
        }
        self.device.clear_residue(flags);
        let data = if dwords >= 6 { self.operand64(4) } else { 0 };
        // A register and memory at once makes no sense; what obeys both is the worst that a part can be.
        if !register.unused.of(&head) {
            self.command_write(header, register.offset(&head), data as u32);
        }
        if let Some((space, address)) = self.place(&head, memory) {
            self.pipe_control_write(flags, space, address, data);
        }
        if flags & NOTIFY != 0 {
            self.device.raise(self.state.engine, event::FLUSH_NOTIFY);
        }
        Flow::Arbitrate(dwords)
    }

    fn pipe_control_write(&mut self, flags: u32, space: Space, address: u64, data: u64) {
        let value = match flags & POST_SYNC_MASK {
            POST_SYNC_WRITE => data,
            POST_SYNC_TIMESTAMP => self.device.timestamp(),
            POST_SYNC_DEPTH_COUNT => self.device.regs.get64(0x2350),
            _ => return,
        };
        self.view().write_u64(space, address, value);
    }

    pub fn flush_dw(&mut self, command: &Command, header: u32, dwords: u32) -> Flow {
        let head = self.head(dwords);
        if header & mi::FLUSH_TLB_INVALIDATE != 0 {
            self.device.gtt.flush_engine(self.state.engine);
        }
        if let Some((space, address)) = command.memory.first().and_then(|memory| self.place(&head, memory)) {
            self.flush_dw_write(&head, dwords, space, address);
        }
        if header & mi::FLUSH_NOTIFY != 0 {
            self.device.raise(self.state.engine, event::FLUSH_NOTIFY);
        }
        Flow::Next(dwords)
    }

    fn flush_dw_write(&mut self, head: &Head, dwords: u32, space: Space, address: u64) {
        let [header, _, _, low, high] = *head;
        match (header >> mi::FLUSH_POST_SYNC_SHIFT & 3, dwords) {
            (3, _) => {
                let time = self.device.timestamp();
                self.view().write_u64(space, address, time);
            }
            (_, ..=4) => self.view().write_u32(space, address, low),
            _ => self.view().write_u64(space, address, u64::from(high) << 32 | u64::from(low)),
        }
    }
}
