//! GDRST: engine resets and the full reset. They are done by the time the write is answered.

use gvt_defs::reg::{self, GDRST_FULL};
use gvt_defs::trace::{By, Kind};
use gvt_defs::{Engine, ring};

use crate::device::{Device, Port};
use crate::engine::EngineState;
use crate::findings::Finding;

/// Registers of the render engine outside its block that a reset clears.
const RENDER: [(u32, u32); 6] =
    [(0x2800, 0x2D00), (0x5200, 0x5300), (0x7000, 0x7400), (0xE100, 0xE800), (0xB004, 0xB00C), (0xB020, 0xB120)];

impl Device {
    /// Does the resets that were asked for.
    pub fn reset_engines(&mut self, engines: &mut [EngineState]) {
        let domains = core::mem::take(&mut self.reset_request);
        if domains == 0 {
            return;
        }
        self.trace.add(self.now, Kind::Reset, By::Host, reg::GDRST, u64::from(domains));
        for state in engines {
            let info = state.engine.info();
            if domains & (GDRST_FULL | info.reset) != 0 {
                self.reset_engine(state.engine);
                *state = EngineState::new(state.engine);
            }
        }
        if domains & GDRST_FULL != 0 {
            self.gtt.flush_global();
        }
    }

    fn reset_engine(&mut self, engine: Engine) {
        let info = engine.info();
        let control = self.ring(engine, ring::RESET_CTL);
        if control & ring::RESET_CTL_READY == 0 && self.has(engine) {
            self.findings.add(Finding::ResetWithoutReady(engine));
        }
        *self.port(engine) = Port::default();
        self.recorder.witness.reset(engine);
        self.regs.reset_range(info.base, info.base + 0x800, &self.profile);
        self.set_ring(engine, ring::RESET_CTL, control);
        self.regs.reset_range(info.mocs, info.mocs + 4 * reg::MOCS_ENTRIES, &self.profile);
        if engine == Engine::Rcs {
            self.residues.reset();
            for (start, end) in RENDER {
                self.regs.reset_range(start, end, &self.profile);
            }
        }
        self.gtt.flush_engine(engine);
    }
}
