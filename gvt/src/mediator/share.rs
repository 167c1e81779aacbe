//! Who gets an engine. A vGPU's virtual time on an engine is the time that it has used, divided by its weight; the
//! engine's own is what the virtual time of somebody with a fair share would be. A vGPU behind it is owed time, one ahead
//! of it has had too much: work that cannot be preempted, or that came while another was away for an instant, is made up
//! for. Time for which a vGPU has no work is not owed to it.

use super::{Gvt, VGPUS};
use crate::gpu::engine::{Kept, Run};
use crate::hw::Hw;
use gvt_defs::{Engine, Nanos, ring};

/// Virtual time of a vGPU of weight 1 is this many times the time it used.
const SCALE: u64 = 1024;
/// Nanoseconds that a stay on an engine counts at least.
const LEAST: u64 = 10_000;
/// What is owed survives this many slices without work, and is at most as much time.
const OWED_SLICES: u64 = 20;

impl<W: Hw> Gvt<W> {
    /// Counts what the context on an engine has used until now.
    pub(super) fn settle(&mut self, engine: Engine, now: Nanos) {
        let Some(run) = &mut self.gpu.engines.get_mut(engine).run else { return };
        let since = core::mem::replace(&mut run.counted, now);
        let (index, used) = (run.vgpu, now.0.saturating_sub(since.0));
        if let Some(vgpu) = self.vgpu_mut(index) {
            vgpu.stats.engine_mut(engine).busy.0 += used;
        }
        self.use_up(index, engine, used);
    }

    /// A context has left, and its own clock says how long it ran: until that is heard of, time passes that was not its.
    pub(super) fn correct(&mut self, run: Run, engine: Engine, clock: u32, now: Nanos) {
        let counted = now.0.saturating_sub(run.since.0);
        // One that has gone round says nothing; one that stood still is not believed altogether.
        if counted >= ring::timestamp_nanos(u32::MAX) {
            return;
        }
        let ran = ring::timestamp_nanos(clock.wrapping_sub(run.clock)).max(LEAST);
        let idle = counted.saturating_sub(ran);
        let Some(vgpu) = self.vgpu_mut(run.vgpu) else { return };
        let busy = &mut vgpu.stats.engine_mut(engine).busy.0;
        *busy = busy.saturating_sub(idle);
        let (weight, others) = self.weights(run.vgpu, engine);
        let fair = &mut self.gpu.engines.get_mut(engine).virtual_time;
        *fair = fair.saturating_sub(idle.saturating_mul(SCALE) / (weight + others));
        if let Some(vgpu) = self.vgpu_mut(run.vgpu) {
            let had = &mut vgpu.engines.get_mut(engine).virtual_time;
            *had = had.saturating_sub(idle.saturating_mul(SCALE) / weight);
        }
    }

    /// Moves virtual times on: a vGPU has had an engine for `used` nanoseconds.
    fn use_up(&mut self, index: usize, engine: Engine, used: u64) {
        let used = used.saturating_mul(SCALE);
        let (weight, others) = self.weights(index, engine);
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let virt = vgpu.engines.get_mut(engine);
        virt.virtual_time = virt.virtual_time.saturating_add(used / weight);
        let fair = &mut self.gpu.engines.get_mut(engine).virtual_time;
        *fair = fair.saturating_add(used / (weight + others));
    }

    /// The weight of a vGPU, and those of all others that have work for an engine.
    fn weights(&self, index: usize, engine: Engine) -> (u64, u64) {
        let all = self.vgpus.iter().enumerate().filter_map(|(other, vgpu)| Some((other, vgpu.as_deref()?)));
        let rivals = all.filter(|(other, vgpu)| *other != index && vgpu.engines.get(engine).wants());
        (self.vgpu(index).map_or(1, |vgpu| vgpu.weight), rivals.map(|(_, vgpu)| vgpu.weight).sum())
    }

    /// A vGPU that had nothing to do has work again: what it was owed when it went is still owed, if that is not long
    /// ago, and what it had had too much still counts.
    pub(super) fn come(&mut self, index: usize, engine: Engine, now: Nanos) {
        self.settle(engine, now);
        let (fair, slices, grace) = (self.fair(engine), OWED_SLICES * self.config.slice.0, self.config.grace.0);
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let virt = vgpu.engines.get_mut(engine);
        let away = now.0.saturating_sub(virt.rested.0);
        let owed = if away <= slices { virt.owed } else { 0 };
        virt.virtual_time = virt.virtual_time.max(fair.saturating_sub(owed));
        virt.prompt = away <= grace;
    }

    /// A vGPU has no more work for an engine. One that is owed much, and was quick to come again last time, has the engine
    /// kept for it for a moment.
    pub(super) fn rest(&mut self, index: usize, engine: Engine, now: Nanos) {
        self.settle(engine, now);
        let (fair, slice) = (self.fair(engine), self.config.slice.0.saturating_mul(SCALE));
        let wanted = self.others_wait(index, engine);
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let slice = slice / vgpu.weight;
        let virt = vgpu.engines.get_mut(engine);
        virt.owed = fair.saturating_sub(virt.virtual_time).min(OWED_SLICES * slice);
        virt.rested = now;
        if wanted && virt.prompt && virt.owed > slice {
            self.gpu.engines.get_mut(engine).kept = Some(Kept { vgpu: index, since: now });
        }
    }

    /// Whether an engine is kept for a vGPU that has no work. The time counts as its own.
    pub(super) fn is_kept(&mut self, engine: Engine, now: Nanos) -> bool {
        let Some(kept) = self.gpu.engines.get(engine).kept else { return false };
        let over = now.0 >= self.kept_until(kept).0;
        if !over && !self.waits(kept.vgpu, engine) {
            return true;
        }
        self.gpu.engines.get_mut(engine).kept = None;
        self.use_up(kept.vgpu, engine, now.0.saturating_sub(kept.since.0));
        false
    }

    pub(super) fn kept_until(&self, kept: Kept) -> Nanos {
        Nanos(kept.since.0.saturating_add(self.config.grace.0))
    }

    fn fair(&self, engine: Engine) -> u64 {
        self.gpu.engines.get(engine).virtual_time
    }

    fn had(&self, index: usize, engine: Engine) -> u64 {
        self.vgpu(index).map_or(u64::MAX, |vgpu| vgpu.engines.get(engine).virtual_time)
    }

    /// The vGPU that gets a free engine: the one whose slice is not over, else the one that had least.
    pub(super) fn pick(&self, engine: Engine, now: Nanos) -> Option<usize> {
        if let Some((last, _)) = self.gpu.engines.get(engine).slice
            && self.waits(last, engine)
            && !self.slice_over(engine, now)
        {
            return Some(last);
        }
        (0..VGPUS).filter(|index| self.waits(*index, engine)).min_by_key(|index| self.had(*index, engine))
    }

    /// The slice of the vGPU on an engine is over: whether another one is to have the engine. If none has had less, the
    /// next slice is its own.
    pub(super) fn gives_up(&mut self, index: usize, engine: Engine, now: Nanos) -> bool {
        self.settle(engine, now);
        let had = self.had(index, engine);
        let less = |other: usize| other != index && self.waits(other, engine) && self.had(other, engine) < had;
        let over = (0..VGPUS).any(less);
        if !over {
            self.gpu.engines.get_mut(engine).slice = Some((index, now));
        }
        over
    }

    /// Whether a vGPU other than `index` has work for the engine.
    pub(super) fn others_wait(&self, index: usize, engine: Engine) -> bool {
        (0..VGPUS).any(|other| other != index && self.waits(other, engine))
    }

    pub(super) fn waits(&self, index: usize, engine: Engine) -> bool {
        self.vgpu(index).is_some_and(|vgpu| vgpu.engines.get(engine).waiting())
    }

    pub(super) fn slice_over(&self, engine: Engine, now: Nanos) -> bool {
        let since = self.gpu.engines.get(engine).slice.map_or(Nanos(0), |(_, since)| since);
        now.0.saturating_sub(since.0) >= self.config.slice.0
    }
}
