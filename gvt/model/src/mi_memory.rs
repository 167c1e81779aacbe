//! MI commands that write memory.

use gvt_defs::command::Command;
use gvt_defs::{PAGE_SIZE, mi, ring};

use crate::engine::{Exec, Flow};
use crate::recorder::{Place, Touch};
use crate::translate::Space;

/// Bytes of an OA report.
const REPORT: usize = 256;

impl Exec<'_> {
    /// The context's status page, where "store data index" writes go.
    pub fn status_page(&self) -> u64 {
        self.state.running.map_or(0, |running| u64::from(running.lrca().0))
    }

    /// The engine's status page, where they go with the global bit.
    pub fn engine_status_page(&self) -> u64 {
        u64::from(self.device.ring(self.state.engine, ring::HWS_PGA) & !0xFFF)
    }

    pub fn store_data_imm(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let Some((space, address)) = command.memory.first().and_then(|memory| self.place(&head, memory)) else {
            return Flow::Next(dwords);
        };
        if head[0] & mi::STORE_QWORD != 0 && dwords <= 5 {
            // Eight bytes even if there are but four of data, and not aligned to eight.
            let data = u64::from(head[4]) << 32 | u64::from(head[3]);
            self.view().write(space, address, &data.to_le_bytes());
        } else {
            // Without the qword flag a longer command stores a run of dwords.
            for i in 0..dwords.saturating_sub(3).max(1) {
                let data = self.operand(3 + i);
                self.view().write_u32(space, address.wrapping_add(u64::from(4 * i)), data);
            }
            self.budget = self.budget.saturating_sub(dwords / 8);
        }
        Flow::Next(dwords)
    }

    pub fn store_data_index(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let Some((space, address)) = command.memory.first().and_then(|memory| self.place(&head, memory)) else {
            return Flow::Next(dwords);
        };
        self.view().write_u32(space, address, head[2]);
        if dwords >= 4 {
            self.view().write_u32(space, address + 4, head[3]);
        }
        Flow::Next(dwords)
    }

    /// Into both status pages, since one is said here and the other there.
    pub fn report_head(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let at = command.memory.first().map_or(0, |memory| memory.address(&head));
        let value = self.state.ring.head | self.state.ring.wraps;
        for page in [self.status_page(), self.engine_status_page()] {
            self.view().write_u32(Space::Global, page + at, value);
        }
        Flow::Next(dwords)
    }

    pub fn copy_mem_mem(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let [to, from] = command.memory else {
            return Flow::Next(dwords);
        };
        let (Some((to, destination)), Some((from, source))) = (self.place(&head, to), self.place(&head, from)) else {
            return Flow::Next(dwords);
        };
        let value = self.view().read_u32(from, source);
        self.view().write_u32(to, destination, value);
        Flow::Next(dwords)
    }

    /// A report of the observation counters, which all stand at zero.
    pub fn report_perf_count(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let Some((space, address)) = command.memory.first().and_then(|memory| self.place(&head, memory)) else {
            return Flow::Next(dwords);
        };
        let mut report = [0; REPORT];
        let id = head[3];
        let time = self.device.timestamp() as u32;
        let context = self.state.running.map_or(0, |running| running.id());
        for (slot, value) in report.chunks_exact_mut(4).zip([id, time, context]) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        self.view().write(space, address, &report);
        Flow::Next(dwords)
    }

    /// Writes GGTT entries; privileged streams only.
    pub fn update_gtt(&mut self, dwords: u32) -> Flow {
        let first = self.operand(1) / PAGE_SIZE as u32;
        for i in 0..dwords.saturating_sub(2) / 2 {
            let entry = self.operand64(2 + 2 * i);
            self.device.recorder.reach(Place::Entry(first.wrapping_add(i)), 8, Touch::Write, 0);
            self.device.gtt.set_entry(first.wrapping_add(i), entry);
        }
        Flow::Next(dwords)
    }

    pub fn atomic(&mut self, command: &Command, dwords: u32) -> Flow {
        let head = self.head(dwords);
        let ([header, ..], [memory]) = (head, command.memory) else {
            return Flow::Next(dwords);
        };
        let Some((space, address)) = self.place(&head, memory) else {
            return Flow::Next(dwords);
        };
        let inline = header & mi::ATOMIC_INLINE != 0 && dwords >= 11;
        let operation = header >> 8 & 0xFF;
        let bytes = memory.bytes.of(header, dwords) as usize;
        let wide = bytes > 4;
        // Two operands: interleaved in the command by dword, or in GPR 0 and 1.
        let (one, two) = if inline { (self.interleaved(3), self.interleaved(4)) } else { (self.gpr(0), self.gpr(1)) };
        // Of sixteen bytes the upper eight stay as they are.
        let mut held = [0; 16];
        let Some(held) = held.get_mut(..bytes) else {
            return Flow::Next(dwords);
        };
        self.view().read(space, address, held);
        let old = held.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let new = atomic_result(operation, wide, old, one, two);
        for (byte, new) in held.iter_mut().zip(new.to_le_bytes()) {
            *byte = new;
        }
        self.view().write(space, address, held);
        if header & mi::ATOMIC_RETURN != 0 {
            self.set_gpr(0, old);
        }
        Flow::Next(dwords)
    }

    /// A 64-bit operand of an inline atomic: its halves are two dwords apart.
    fn interleaved(&mut self, index: u32) -> u64 {
        u64::from(self.operand(index + 2)) << 32 | u64::from(self.operand(index))
    }
}

/// What memory holds after an atomic operation.
const fn atomic_result(operation: u32, wide: bool, old: u64, one: u64, two: u64) -> u64 {
    let mask = if wide { u64::MAX } else { 0xFFFF_FFFF };
    let shift = if wide { 0 } else { 32 };
    let (old, one, two) = (old & mask, one & mask, two & mask);
    let (signed_old, signed_one) = ((old << shift) as i64, (one << shift) as i64);
    let new = match operation & 0x1F {
        0x1 => old & one,
        0x2 => old | one,
        0x3 => old ^ one,
        0x4 => one,
        0x5 => old.wrapping_add(1),
        0x6 | 0xF => old.wrapping_sub(1),
        0x7 => old.wrapping_add(one),
        0x8 => old.wrapping_sub(one),
        0x9 => one.wrapping_sub(old),
        0xA if signed_one > signed_old => one,
        0xB if signed_one < signed_old => one,
        0xC if one > old => one,
        0xD if one < old => one,
        // Compare and write: the second operand if memory equals the first.
        0xE if old == one => two,
        _ => old,
    };
    new & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomics() {
        let narrow = |op, old, one| atomic_result(op, false, old, one, 9);
        assert_eq!(narrow(0x5, 0xFFFF_FFFF, 0), 0);
        assert_eq!(narrow(0x6, 0, 0), 0xFFFF_FFFF);
        assert_eq!(narrow(0x9, 3, 10), 7);
        assert_eq!(narrow(0xA, 0xFFFF_FFFF, 1), 1);
        assert_eq!(narrow(0xC, 0xFFFF_FFFF, 1), 0xFFFF_FFFF);
        assert_eq!((narrow(0xE, 5, 5), narrow(0xE, 5, 6)), (9, 5));
        assert_eq!(atomic_result(0x27, true, 0xFFFF_FFFF, 1, 0), 0x1_0000_0000);
    }
}
