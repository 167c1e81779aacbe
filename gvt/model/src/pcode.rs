//! The PCODE mailbox: commands complete at once.

use gvt_defs::reg::{self, pcode};

use crate::device::Device;

/// Memory latencies in microseconds for levels 0..3 and 4..7 (what Skylake desktops report).
const LATENCY_LOW: u32 = 0x1E1A_1100;
const LATENCY_HIGH: u32 = 0x6151_4B3D;

impl Device {
    /// A write to the mailbox: runs the command and leaves an error code with bit 31 clear.
    pub fn pcode(&mut self, value: u32) {
        let error = if value & reg::PCODE_READY != 0 { self.pcode_command(value & 0xFF) } else { value & 0xFF };
        self.regs.set(reg::PCODE_MAILBOX, value & !reg::PCODE_READY & !0xFF | error);
    }

    fn pcode_command(&mut self, command: u32) -> u32 {
        let data = self.regs.get(reg::PCODE_DATA0);
        let reply = match command {
            pcode::READ_MEM_LATENCY => {
                if data == 0 {
                    LATENCY_LOW
                } else {
                    LATENCY_HIGH
                }
            }
            // Request 3 asks whether the power controller is ready; others tell a voltage level.
            pcode::CDCLK_CONTROL => data | 1,
            pcode::READ_RC6VIDS => data | 1,
            // Most efficient ratio in 50 MHz units.
            pcode::DYNAMIC_DUTY_CYCLE => 0x0700,
            // GT ratio to ring and core ratio: one for one, half for the core.
            pcode::READ_MIN_FREQ_TABLE => (data & 0xFF) << 8 | data & 0xFF,
            pcode::SAGV_CONTROL => 1,
            _ => data,
        };
        self.regs.set(reg::PCODE_DATA0, reply);
        pcode::SUCCESS
    }
}
