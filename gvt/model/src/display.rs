//! The display core as a driver sees it when nothing is connected: power wells, clocks and buses answer, no pipe runs.

use gvt_defs::reg::display::{
    self, AUX_CTL_A, DBUF_CTL, DDI_BUF_CTL_A, DDI_BUF_ENABLE, DDI_BUF_IDLE, DDI_PORTS, DPLL_STATUS, GMBUS0, GMBUS1,
    GMBUS2, LCPLL1_CTL, LCPLL2_CTL, PIPE_STRIDE, PIPECONF_A, PIPECONF_EDP, PIPES, PP_CONTROL, PP_STATUS, PWR_WELL_CTL1,
    PWR_WELL_CTLS, SBI_CTL_STAT, WRPLL1_CTL, WRPLL2_CTL,
};

use crate::device::Device;

/// Bit 31 asks, bit 30 answers: PLLs, DBUF, pipes.
const ENABLE: u32 = 1 << 31;
const STATE: u32 = 1 << 30;

/// Requests of power wells are odd bits, states even ones.
const WELL_REQUESTS: u32 = 0xAAAA_AAAA;

/// GMBUS2: nobody acknowledged; GMBUS1: clear the engine; software ready.
const GMBUS2_NAK: u32 = 1 << 10;
const GMBUS1_CLEAR: u32 = 1 << 31;
const GMBUS1_READY: u32 = 1 << 30;

/// AUX: busy, done, timed out, receive error; the last three clear by writing 1.
const AUX_BUSY: u32 = 1 << 31;
const AUX_DONE: u32 = 1 << 30;
const AUX_TIME_OUT: u32 = 1 << 28;
const AUX_STICKY: u32 = AUX_DONE | AUX_TIME_OUT | 1 << 25;

/// Hotplug status bits of each port: write 1 to clear.
const HOTPLUG_STATUS: u32 = 0x0303_0303;

/// The lock bit in DPLL_STATUS of each PLL.
const LOCKS: [(u32, u32); 4] =
    [(LCPLL1_CTL, 1 << 0), (LCPLL2_CTL, 1 << 8), (WRPLL1_CTL, 1 << 16), (WRPLL2_CTL, 1 << 24)];

impl Device {
    /// A write to a display register that has behaviour; others are stored.
    pub fn write_display(&mut self, offset: u32, value: u32) {
        match offset {
            DBUF_CTL | LCPLL1_CTL | LCPLL2_CTL | WRPLL1_CTL | WRPLL2_CTL | PIPECONF_EDP => self.follow(offset, value),
            SBI_CTL_STAT => self.regs.set(offset, value & !1),
            PP_CONTROL => {
                self.regs.set(offset, value);
                self.regs.set(PP_STATUS, (value & 1) << 31);
            }
            display::PCH_PORT_HOTPLUG | display::PCH_PORT_HOTPLUG2 => {
                let status = self.regs.get(offset) & HOTPLUG_STATUS & !value;
                self.regs.set(offset, value & !HOTPLUG_STATUS | status);
            }
            GMBUS0..=0xC_5123 => self.gmbus(offset, value),
            _ => self.write_indexed(offset, value),
        }
    }

    fn write_indexed(&mut self, offset: u32, value: u32) {
        if (PWR_WELL_CTL1..PWR_WELL_CTL1 + 4 * PWR_WELL_CTLS).contains(&offset) {
            return self.power_well(offset, value);
        }
        let is_pipe = (0..PIPES).any(|pipe| offset == PIPECONF_A + PIPE_STRIDE * pipe);
        if is_pipe {
            return self.follow(offset, value);
        }
        for port in 0..DDI_PORTS {
            if offset == DDI_BUF_CTL_A + 0x100 * port {
                let idle = if value & DDI_BUF_ENABLE != 0 { 0 } else { DDI_BUF_IDLE };
                return self.regs.set(offset, value & !DDI_BUF_IDLE | idle);
            }
            if offset == AUX_CTL_A + 0x100 * port {
                return self.aux(offset, value);
            }
        }
        self.regs.set(offset, value);
    }

    /// What bit 31 asks for, bit 30 says at once; PLLs also lock.
    fn follow(&mut self, offset: u32, value: u32) {
        let state = if value & ENABLE != 0 { STATE } else { 0 };
        self.regs.set(offset, value & !STATE | state);
        if let Some((_, lock)) = LOCKS.iter().find(|(pll, _)| *pll == offset) {
            let locks = self.regs.get(DPLL_STATUS) & !lock;
            self.regs.set(DPLL_STATUS, if state != 0 { locks | lock } else { locks });
        }
    }

    /// A well is on while any of the four registers asks for it; each register shows it.
    fn power_well(&mut self, offset: u32, value: u32) {
        self.regs.set(offset, value & WELL_REQUESTS);
        let all = (0..PWR_WELL_CTLS).map(|n| PWR_WELL_CTL1 + 4 * n);
        let asked = all.clone().fold(0, |sum, register| sum | self.regs.get(register) & WELL_REQUESTS);
        for register in all {
            let own = self.regs.get(register) & WELL_REQUESTS;
            self.regs.set(register, own | asked >> 1);
        }
    }

    /// Nothing is connected: every transaction times out.
    fn aux(&mut self, offset: u32, value: u32) {
        let sticky = self.regs.get(offset) & AUX_STICKY & !value;
        let outcome = if value & AUX_BUSY != 0 { AUX_DONE | AUX_TIME_OUT } else { 0 };
        self.regs.set(offset, value & !AUX_BUSY & !AUX_STICKY | sticky | outcome);
    }

    /// Nothing is connected: every cycle is refused until software clears the error.
    fn gmbus(&mut self, offset: u32, value: u32) {
        match offset {
            GMBUS1 => {
                if value & GMBUS1_CLEAR != 0 {
                    self.regs.set(GMBUS2, 0);
                } else if value & GMBUS1_READY != 0 {
                    self.regs.set(GMBUS2, GMBUS2_NAK);
                }
                self.regs.set(offset, value);
            }
            GMBUS2 => {}
            _ => self.regs.set(offset, value),
        }
    }
}
