//! What one vGPU's work has left in an engine goes before another one comes (design D21).

use super::Gvt;
use crate::gpu::parking::Stay;
use crate::host::Host;
use crate::hw::Hw;
use crate::report::Cause;
use gvt_defs::{Engine, Nanos};

/// Whether an engine holds nothing that a vGPU must not meet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Washed {
    Clean,
    NotYet,
}

impl<W: Hw> Gvt<W> {
    /// What the parking context does behind a context of a vGPU: who waits already, or is likely to come soon, need not ask
    /// for a wash.
    pub(super) fn stay_after(&self, index: usize, engine: Engine, now: Nanos) -> Stay {
        let changed = self.gpu.engines.get(engine).changed;
        let lately = changed.is_some_and(|at| now.0.saturating_sub(at.0) < self.config.slice.0);
        if lately || self.others_wait(index, engine) { Stay::Wash } else { Stay::Rest }
    }

    /// Has what another vGPU's work left in an engine taken away before a vGPU comes onto it (design D21). Nothing is
    /// waited for here: when the parking context is at its end, the status buffer tells, and the engine is free again.
    pub(super) fn wash(&mut self, host: &mut dyn Host, index: usize, engine: Engine, now: Nanos) -> Washed {
        let phys = self.gpu.engines.get_mut(engine);
        if phys.is_clean_for(index) {
            return Washed::Clean;
        }
        phys.washing.get_or_insert(now);
        if !phys.is_washing() {
            phys.park(host, &mut self.gpu.hw, Stay::Wash);
        }
        Washed::NotYet
    }

    /// A wash does not end. That is a hang of the vGPU whose work came before: nobody else has been there.
    pub(super) fn lose_wash(&mut self, host: &mut dyn Host, engine: Engine, now: Nanos) {
        if let Some(index) = self.gpu.engines.get(engine).marked_by() {
            self.report(index, Cause::Hang { engine });
            self.count_reset(index, engine, now);
        }
        self.lose_engine(host, engine, now);
    }
}
