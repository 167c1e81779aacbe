//! Resets of the physical GPU and of one engine, and the programming that must follow them.

use crate::gpu::parking::Stay;
use crate::gpu::{Gpu, engines};
use crate::host::Host;
use crate::hw::Hw;
use crate::report::InitError;
use gvt_defs::execlist::CSB_ENTRIES;
use gvt_defs::{Engine, event, masked, reg, ring};

/// Events that every engine reports: the context switch and errors are the mediator's, the rest follows the guest.
pub(crate) const OWN_EVENTS: u32 = event::CONTEXT_SWITCH | event::CS_MASTER_ERROR;
/// Events that a guest may unmask.
pub(crate) const GUEST_EVENTS: u32 = event::USER_INTERRUPT | event::FLUSH_NOTIFY | event::SEMAPHORE_WAIT;

/// Whether an engine was reset.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reset {
    Done,
    /// It may go on with what it had.
    Stuck,
}

/// RING_MODE and friends that an engine needs to take execlists.
fn enable<W: Hw>(gpu: &mut Gpu<W>, engine: Engine) {
    let base = engine.base();
    let status = gpu.engines.get(engine).status_page();
    let pointer = CSB_ENTRIES - 1;
    let csb = masked::exactly(pointer << 8 | pointer);
    for (local, value) in [
        (ring::HWSTAM, u32::MAX),
        (ring::GFX_MODE, masked::enable(ring::GFX_RUN_LIST_ENABLE)),
        (ring::MI_MODE, masked::disable(ring::MI_MODE_STOP_RING)),
        (ring::HWS_PGA, status.0),
        (ring::CSB_PTR, csb),
        (ring::CSB_PTR, csb),
        (ring::EMR, u32::MAX),
        (ring::EIR, u32::MAX),
        (ring::EMR, !ring::ERROR_INSTRUCTION),
    ] {
        gpu.hw.write(base + local, value);
    }
    for (offset, set, clear) in WORKAROUNDS_OF_RENDER {
        if engine == Engine::Rcs {
            let value = gpu.hw.read(offset);
            gpu.hw.write(offset, value & !clear | set);
        }
    }
}

/// Render registers that i915 changes on all Gen9 parts (spec/gen9.md B.16): offset, bits to set, bits to clear.
/// A guest does so too, in its own register file; these hold for the parking context.
const WORKAROUNDS_OF_RENDER: [(u32, u32, u32); 3] =
    [(0xB004, 1 << 7, 0), (0xB118, 1 << 21, 1 << 22), (0xB11C, 1 << 2, 1 << 8)];

/// Registers of the whole GT, likewise. They are lost in a full reset only.
const WORKAROUNDS_OF_GT: [(u32, u32, u32); 5] = [
    // All engines may use 64 KiB pages.
    (reg::GAMW_ECO_DEV_RW_IA, 0xF, 0),
    (reg::GAM_ECOCHK, 1 << 25 | 1 << 8, 0),
    (0x4DDC, 1 << 31 | 1 << 27, 0),
    (0x940C, 1 << 14, 0),
    (reg::GAMT_ECO_RW_IA, 1 << 18, 0),
];

/// Cacheability of the eight PAT entries, as every Linux guest programs it: write-back in LLC, write-combining in LLC
/// and eLLC, write-back, uncached, write-back in both with ages 0 to 3. PAT exists once, so no guest owns it.
const PAT: [(u32, u32); 2] = [(reg::PRIVATE_PAT_LO, 0x0003_0907), (reg::PRIVATE_PAT_HI, 0x3B2B_1B0B)];

impl<W: Hw> Gpu<W> {
    /// Resets everything and makes all engines ready.
    pub(crate) fn reset_all(&mut self, host: &mut dyn Host) -> Result<(), InitError> {
        let present = self.present;
        for engine in engines(present) {
            self.request_reset(engine);
        }
        self.hw.write(reg::GDRST, reg::GDRST_FULL);
        if !self.hw.poll(reg::GDRST, |value| value & reg::GDRST_FULL == 0) {
            return Err(InitError::Reset(reg::GDRST_FULL));
        }
        for engine in engines(present) {
            self.hw.write(engine.base() + ring::RESET_CTL, masked::disable(ring::RESET_CTL_REQUEST));
        }
        for (offset, set, clear) in WORKAROUNDS_OF_GT {
            let value = self.hw.read(offset);
            self.hw.write(offset, value & !clear | set);
        }
        for (offset, value) in PAT {
            self.hw.write(offset, value);
        }
        for engine in engines(present) {
            self.make_ready(host, engine);
        }
        Ok(())
    }

    /// Resets one engine and makes it ready. Whatever ran on it is gone. An engine that does not even reset stays as it is,
    /// and gets nothing more to do.
    pub(crate) fn reset_engine(&mut self, host: &mut dyn Host, engine: Engine) -> Reset {
        self.hw.totals.resets += 1;
        let base = engine.base();
        let info = engine.info();
        self.request_reset(engine);
        self.hw.write(reg::GDRST, info.reset);
        if !self.hw.poll(reg::GDRST, |value| value & info.reset == 0) {
            self.engines.get_mut(engine).give_up();
            return Reset::Stuck;
        }
        self.hw.write(base + ring::RESET_CTL, masked::disable(ring::RESET_CTL_REQUEST));
        self.make_ready(host, engine);
        Reset::Done
    }

    /// Stops an engine and gets it ready to be reset. One that never says it is ready is reset all the same.
    fn request_reset(&mut self, engine: Engine) {
        let base = engine.base();
        self.hw.write(base + ring::MI_MODE, masked::enable(ring::MI_MODE_STOP_RING));
        self.hw.write(base + ring::RESET_CTL, masked::enable(ring::RESET_CTL_REQUEST));
        self.hw.poll(base + ring::RESET_CTL, |value| value & ring::RESET_CTL_READY != 0);
    }

    /// After a reset: execlists on, and the parking context loaded, so that no guest context is ever the first.
    fn make_ready(&mut self, host: &mut dyn Host, engine: Engine) {
        self.engines.get_mut(engine).restart(host);
        enable(self, engine);
        self.show_own_events(engine);
        self.engines.get_mut(engine).park(host, &mut self.hw, Stay::Wash);
    }

    /// RING_IMR of an engine that no vGPU uses.
    pub(crate) fn show_own_events(&mut self, engine: Engine) {
        let mask = !(OWN_EVENTS << engine.info().irq_shift);
        self.engines.get_mut(engine).set_imr(&mut self.hw, mask);
    }
}
