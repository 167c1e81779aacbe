//! PIPE_CONTROL and MI_FLUSH_DW: flushes, TLB invalidation, post-sync writes, notification.

use gvt_defs::gfx::pipe_control::{
    GLOBAL_GTT, LRI_POST_SYNC, NOTIFY, POST_SYNC_DEPTH_COUNT, POST_SYNC_MASK, POST_SYNC_TIMESTAMP, POST_SYNC_WRITE,
    STORE_DATA_INDEX, TLB_INVALIDATE,
};
use gvt_defs::{event, mi};

use crate::engine::{Exec, Flow};
use crate::translate::Space;

impl Exec<'_> {
    pub fn pipe_control(&mut self, header: u32, dwords: u32) -> Flow {
        self.effect();
        let flags = if dwords >= 2 { self.operand(1) } else { 0 };
        if flags & TLB_INVALIDATE != 0 {
            self.device.gtt.flush_engine(self.state.engine);
        }
        let address = if dwords >= 4 { self.operand64(2) } else { 0 };
        let data = if dwords >= 6 { self.operand64(4) } else { 0 };
        if flags & LRI_POST_SYNC != 0 {
            self.command_write(header, address as u32, data as u32);
        } else if flags & POST_SYNC_MASK != 0 {
            self.pipe_control_write(header, flags, address, data);
        }
        if flags & NOTIFY != 0 {
            self.device.raise(self.state.engine, event::FLUSH_NOTIFY);
        }
        Flow::Arbitrate(dwords)
    }

    fn pipe_control_write(&mut self, header: u32, flags: u32, address: u64, data: u64) {
        let (space, address) = if flags & STORE_DATA_INDEX != 0 {
            let Some(page) = self.index_page(header, flags & GLOBAL_GTT != 0) else {
                return;
            };
            (Space::Global, page + (address & 0xFF8))
        } else {
            let Some(space) = self.space(header, flags & GLOBAL_GTT != 0) else {
                return;
            };
            (space, address & !7)
        };
        let value = match flags & POST_SYNC_MASK {
            POST_SYNC_WRITE => data,
            POST_SYNC_TIMESTAMP => self.device.timestamp(),
            POST_SYNC_DEPTH_COUNT => self.device.regs.get64(0x2350),
            _ => return,
        };
        self.view().write_u64(space, address, value);
    }

    /// The page that a "store data index" counts from: the engine's with the global bit, else the context's. `None`
    /// if an unprivileged batch asks for the engine's.
    fn index_page(&mut self, header: u32, global: bool) -> Option<u64> {
        match self.space(header, global)? {
            Space::Global => Some(self.engine_status_page()),
            Space::Process => Some(self.status_page()),
        }
    }

    pub fn flush_dw(&mut self, header: u32, dwords: u32) -> Flow {
        if header & mi::FLUSH_TLB_INVALIDATE != 0 {
            self.device.gtt.flush_engine(self.state.engine);
        }
        let post_sync = header >> mi::FLUSH_POST_SYNC_SHIFT & 3;
        if post_sync != 0 && dwords >= 4 {
            self.flush_dw_write(header, dwords, post_sync);
        }
        if header & mi::FLUSH_NOTIFY != 0 {
            self.device.raise(self.state.engine, event::FLUSH_NOTIFY);
        }
        Flow::Next(dwords)
    }

    fn flush_dw_write(&mut self, header: u32, dwords: u32, post_sync: u32) {
        let target = self.operand64(1);
        let global = target & u64::from(mi::FLUSH_DW1_GLOBAL_GTT) != 0;
        let (space, address) = if header & mi::FLUSH_STORE_INDEX != 0 {
            let Some(page) = self.index_page(header, global) else {
                return;
            };
            (Space::Global, page + (target & 0xFF8))
        } else {
            let Some(space) = self.space(header, global) else {
                return;
            };
            (space, target & !7)
        };
        match (post_sync, dwords) {
            (3, _) => {
                let time = self.device.timestamp();
                self.view().write_u64(space, address, time);
            }
            (_, 4) => {
                let data = self.operand(3);
                self.view().write_u32(space, address, data);
            }
            _ => {
                let data = self.operand64(3);
                self.view().write_u64(space, address, data);
            }
        }
    }
}
