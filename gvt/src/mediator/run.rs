//! Engines at work: what the hardware reports, who runs next, who has had enough.

use super::desk::distance;
use super::wash::Washed;
use super::{Gvt, VGPUS};
use crate::gpu::engine::{Ask, Event, Health, PhysEngine, Run, Sent, context_tag};
use crate::gpu::reset::Reset;
use crate::gpu::switch::{self, Scope};
use crate::gpu::{Flushed, engines};
use crate::host::Host;
use crate::hw::Hw;
use crate::report::{Action, Cause, Report};
use crate::trace::Note;
use crate::vgpu::execlist::{Again, Patience, Place, Work, patience};
use gvt_defs::execlist::{CsbEntry, Descriptor};
use gvt_defs::{Engine, Nanos};

/// What a look at status buffers found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Seen {
    Nothing,
    Events,
}

impl<W: Hw> Gvt<W> {
    /// Whether a vGPU's context is on an engine now.
    pub(super) fn runs_on(&self, index: usize, engine: Engine) -> bool {
        self.gpu.engines.get(engine).run.is_some_and(|run| run.vgpu == index)
    }

    /// Looks at every engine's status buffer, and lets each go on.
    pub(super) fn poll_engines(&mut self, host: &mut dyn Host, now: Nanos) -> Seen {
        let mut seen = Seen::Nothing;
        for engine in engines(self.gpu.present) {
            seen = seen.max(self.poll_engine(host, engine, now));
            if self.gpu.engines.get(engine).health == Health::Stuck {
                self.lose_engine(host, engine, now);
            }
            self.schedule(host, engine, now);
        }
        seen
    }

    /// Looks at one engine's status buffer.
    pub(super) fn poll_engine(&mut self, host: &mut dyn Host, engine: Engine, now: Nanos) -> Seen {
        let mut seen = Seen::Nothing;
        for event in self.gpu.engines.get_mut(engine).poll(host) {
            seen = Seen::Events;
            match event {
                Event::Out(tag) => self.left(host, engine, tag, now),
                Event::Broken => {
                    self.lose_engine(host, engine, now);
                    break;
                }
            }
        }
        seen
    }

    /// A guest context left the hardware.
    fn left(&mut self, host: &mut dyn Host, engine: Engine, tag: u32, now: Nanos) {
        self.settle(engine, now);
        let Some(run) = self.gpu.engines.get_mut(engine).run.take() else { return };
        self.trace.push(now, Some(run.vgpu), Note::Unload(engine, tag));
        self.learn(host, engine);
        let Some(vgpu) = self.vgpu_mut(run.vgpu) else { return };
        let virt = vgpu.engines.get_mut(engine);
        let Some(work) = &mut virt.work else { return };
        work.place = Place::Waiting;
        work.resubmit = false;
        let (slot, tail) = (work.slot, work.tail);
        let Some(shadow) = virt.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        shadow.newer = true;
        let left = shadow.left(host);
        work.head = left.head;
        let anew = work.is_to_leave();
        virt.last = Some(slot);
        let pending = virt.pending.is_some();
        self.correct(run, engine, left.clock, now);
        let all = !anew || self.guest_tail(host, run.vgpu, engine) == Some(tail);
        if left.head == tail && !left.in_batch && all {
            self.complete(host, run.vgpu, engine, now);
        } else if pending {
            self.give_way(host, run.vgpu, engine, now);
        } else if anew {
            self.take_anew(host, run.vgpu, engine);
        }
    }

    /// Once per engine: which registers the hardware itself writes into a context image.
    fn learn(&mut self, host: &mut dyn Host, engine: Engine) {
        let phys = self.gpu.engines.get_mut(engine);
        if core::mem::replace(&mut phys.learnt, true) {
            return;
        }
        let image = &mut self.scratch.image;
        image.clear();
        image.resize((engine.info().context_pages as usize - 1) * gvt_defs::context::DWORDS, 0);
        phys.parking_image(host, image);
        self.registers.get_mut(engine).learn(image);
    }

    /// The current context of a vGPU ran to its end.
    fn complete(&mut self, host: &mut dyn Host, index: usize, engine: Engine, now: Nanos) {
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        vgpu.stats.engine_mut(engine).completions += 1;
        let vm = vgpu.vm;
        let virt = vgpu.engines.get_mut(engine);
        let Some(work) = virt.work.take() else { return };
        if let Some(shadow) = virt.slot_mut(work.slot) {
            shadow.write_back_ring(host, vm);
            if let Some(Again::At(head)) = work.again {
                shadow.set_guest_head(host, vm, head);
            }
        }
        vgpu.gtt.ppgtt.release(host, work.pin);
        if matches!(work.again, Some(Again::At(_) | Again::AtHead)) {
            return self.start(host, index, engine, now);
        }
        let virt = vgpu.engines.get_mut(engine);
        let Some(active) = &mut virt.active else { return };
        let id = active.current().id();
        let (status, more) = if let Some(pending) = virt.pending.take() {
            virt.active = Some(pending);
            (CsbEntry::PREEMPTED | CsbEntry::COMPLETE, true)
        } else if active.advance().is_some() {
            (CsbEntry::ELEMENT_SWITCH | CsbEntry::COMPLETE, true)
        } else {
            virt.active = None;
            self.rest(index, engine, now);
            (CsbEntry::ACTIVE_IDLE | CsbEntry::COMPLETE, false)
        };
        self.tell(host, index, engine, CsbEntry { status, id }, now);
        if more {
            self.start(host, index, engine, now);
        }
    }

    /// The guest replaced the list of a context that is not done: the context goes back to the guest as it is.
    pub(super) fn give_way(&mut self, host: &mut dyn Host, index: usize, engine: Engine, now: Nanos) {
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        let vm = vgpu.vm;
        let virt = vgpu.engines.get_mut(engine);
        let Some(pending) = virt.pending.take() else { return };
        let id = virt.active.map_or(0, |active| active.current().id());
        if let Some(work) = virt.work.take() {
            if let Some(shadow) = virt.slot_mut(work.slot) {
                let (_, bytes) = shadow.guest_ring;
                shadow.write_back_ring(host, vm);
                if let Some(Again::At(at)) = work.again
                    && distance(at, work.head, bytes) <= distance(at, work.tail, bytes)
                {
                    // It stopped among the no-ops that are ours.
                    shadow.set_guest_head(host, vm, at);
                }
                shadow.write_back_engine(host, vm, &mut vgpu.stats);
            }
            vgpu.gtt.ppgtt.release(host, work.pin);
        }
        virt.active = Some(pending);
        self.tell(host, index, engine, CsbEntry { status: CsbEntry::PREEMPTED, id }, now);
        self.start(host, index, engine, now);
    }

    /// Queues a status entry, and hands the queue out unless it may wait.
    pub(super) fn tell(&mut self, host: &mut dyn Host, index: usize, engine: Engine, entry: CsbEntry, now: Nanos) {
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        vgpu.engines.get_mut(engine).hold(entry, now);
        if patience(entry) == Patience::Now || vgpu.engines.get(engine).held.len() >= 4 {
            self.hand_out(host, index, engine, now);
        }
    }

    fn hand_out(&mut self, host: &mut dyn Host, index: usize, engine: Engine, now: Nanos) {
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        for entry in vgpu.tell(host, engine) {
            self.trace.push(now, Some(index), Note::Csb(engine, entry.status, entry.id));
        }
    }

    /// Gives the engine something to do, if it can take it.
    pub(super) fn schedule(&mut self, host: &mut dyn Host, engine: Engine, now: Nanos) {
        let phys = self.gpu.engines.get(engine);
        if !phys.accepts() {
            return;
        }
        let run = phys.run;
        match run {
            Some(run) => self.attend(host, engine, run, now),
            None if self.is_kept(engine, now) => {}
            None => {
                if let Some(next) = self.pick(engine, now) {
                    self.load(host, next, engine, now);
                }
            }
        }
    }

    /// A guest context is on the engine: its tail may have moved, or its guest wants another one instead.
    fn attend(&mut self, host: &mut dyn Host, engine: Engine, run: Run, now: Nanos) {
        if let Some(ask) = run.asked {
            if ask.sent == Sent::No {
                self.send_ask(host, engine, now);
            }
            return;
        }
        let Some(vgpu) = self.vgpu_mut(run.vgpu) else { return };
        let virt = vgpu.engines.get_mut(engine);
        if virt.pending.is_some() || virt.work.as_ref().is_some_and(Work::is_to_leave) {
            return self.ask(host, engine, now);
        }
        if let Some(work) = &mut virt.work
            && core::mem::take(&mut work.resubmit)
        {
            let slot = work.slot;
            self.submit_slot(host, run.vgpu, engine, slot, now);
        }
    }

    /// Wants the guest context to leave the hardware.
    fn ask(&mut self, host: &mut dyn Host, engine: Engine, now: Nanos) {
        let Some(run) = &mut self.gpu.engines.get_mut(engine).run else { return };
        if run.asked.is_none() {
            run.asked = Some(Ask { since: now, sent: Sent::No });
            self.send_ask(host, engine, now);
        }
    }

    /// Tells the hardware to leave the guest context at the next arbitration point, once it can be told.
    fn send_ask(&mut self, host: &mut dyn Host, engine: Engine, now: Nanos) {
        let Some(run) = self.gpu.engines.get(engine).run else { return };
        let stay = self.stay_after(run.vgpu, engine, now);
        let phys = self.gpu.engines.get_mut(engine);
        if !phys.accepts() {
            return;
        }
        let Some(run) = &mut phys.run else { return };
        let Some(ask) = &mut run.asked else { return };
        ask.sent = Sent::Yes;
        let vgpu = run.vgpu;
        phys.park(host, &mut self.gpu.hw, stay);
        self.trace.push(now, Some(vgpu), Note::Preempt(engine));
    }

    /// Puts a vGPU's prepared context on a free engine.
    fn load(&mut self, host: &mut dyn Host, index: usize, engine: Engine, now: Nanos) {
        if self.wash(host, index, engine, now) == Washed::NotYet {
            return;
        }
        if self.gpu.engines.get(engine).owner != Some(index) {
            self.gpu.engines.get_mut(engine).changed = Some(now);
        }
        let before = self.gpu.hw.accesses();
        if self.take_ownership(host, index, engine) == Flushed::Stuck {
            return self.lose_engine(host, engine, now);
        }
        let same = self.gpu.engines.get(engine).slice.is_some_and(|(last, _)| last == index);
        let over = self.slice_over(engine, now);
        let phys = self.gpu.engines.get_mut(engine);
        if over || !same {
            phys.slice = Some((index, now));
        }
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        vgpu.stats.engine_mut(engine).loads += 1;
        let virt = vgpu.engines.get_mut(engine);
        let Some(work) = &mut virt.work else { return };
        work.place = Place::Hardware;
        work.resubmit = false;
        let slot = work.slot;
        let clock = virt.slot(slot).map_or(0, |shadow| shadow.clock(host));
        phys.run = Some(Run { vgpu: index, since: now, clock, counted: now, asked: None });
        self.trace.push(now, Some(index), Note::Load(engine, context_tag(index, slot)));
        self.submit_slot(host, index, engine, slot, now);
        self.charge(index, before);
    }

    fn submit_slot(&mut self, host: &mut dyn Host, index: usize, engine: Engine, slot: usize, now: Nanos) {
        let Some(vgpu) = self.vgpus.get(index).and_then(Option::as_deref) else { return };
        let Some(shadow) = vgpu.engines.get(engine).slot(slot) else { return };
        let descriptor = Descriptor::new(shadow.image.ggtt(), context_tag(index, slot));
        let stay = self.stay_after(index, engine, now);
        self.gpu.engines.get_mut(engine).submit(host, &mut self.gpu.hw, index, descriptor, stay);
    }

    /// Makes an engine's registers and TLB those of a vGPU. The engine runs nothing but its parking context.
    fn take_ownership(&mut self, host: &mut dyn Host, index: usize, engine: Engine) -> Flushed {
        let owner = self.gpu.engines.get(engine).owner;
        let scope = if owner == Some(index) { Scope::SameOwner } else { Scope::NewOwner };
        if scope == Scope::NewOwner && owner.is_some() {
            // What the last owner's commands signalled and no interrupt brought yet is still the last owner's.
            let bits = self.gpu.take_engine_events(engine);
            self.engine_events(host, engine, bits);
        }
        let shown = engine == Engine::Bcs && self.vgpu_mut(index).is_some_and(|vgpu| vgpu.gtt.ppgtt.take_stale());
        let flush = shown || scope == Scope::NewOwner;
        if flush && self.gpu.flush_tlb(engine) == Flushed::Stuck {
            return Flushed::Stuck;
        }
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return Flushed::Done };
        let phys = self.gpu.engines.get_mut(engine);
        if scope == Scope::NewOwner || vgpu.switch_dirty.has(engine) {
            switch::load(&mut self.gpu.hw, &mut phys.loaded, engine, &vgpu.file, scope);
            vgpu.switch_dirty.0 &= !engine.mask().0;
        }
        phys.owner = Some(index);
        vgpu.stats.tlb_flushes += u64::from(flush);
        if scope == Scope::NewOwner {
            vgpu.stats.switches += 1;
            self.follow_imr(index, engine);
        }
        Flushed::Done
    }

    /// Time-outs: held entries, slices, engines that do not let go.
    pub(super) fn expire(&mut self, host: &mut dyn Host, now: Nanos) {
        for engine in engines(self.gpu.present) {
            for index in 0..VGPUS {
                let overdue = self.vgpu(index).is_some_and(|vgpu| {
                    let virt = vgpu.engines.get(engine);
                    !virt.held.is_empty() && now.0.saturating_sub(virt.held_since.0) >= self.config.tick.0
                });
                if overdue {
                    self.hand_out(host, index, engine, now);
                }
            }
            let phys = self.gpu.engines.get(engine);
            if phys.washing.is_some_and(|since| now.0.saturating_sub(since.0) >= self.config.hang.0) {
                self.lose_wash(host, engine, now);
                continue;
            }
            let Some(run) = phys.run else { continue };
            if !self.is_waited_for(run.vgpu, engine) {
                continue;
            }
            match run.asked {
                None if self.others_wait(run.vgpu, engine)
                    && self.slice_over(engine, now)
                    && self.gives_up(run.vgpu, engine, now) =>
                {
                    if let Some(vgpu) = self.vgpu_mut(run.vgpu) {
                        vgpu.stats.engine_mut(engine).preemptions += 1;
                    }
                    self.ask(host, engine, now);
                }
                Some(ask) if now.0.saturating_sub(ask.since.0) >= self.config.hang.0 => {
                    self.report(run.vgpu, Cause::Hang { engine });
                    self.lose_engine(host, engine, now);
                }
                _ => {}
            }
        }
    }

    /// Whether somebody waits for what a vGPU runs to leave: another vGPU, or its own guest, who has changed what is
    /// copied of the running context (design D16).
    fn is_waited_for(&self, index: usize, engine: Engine) -> bool {
        self.others_wait(index, engine) || self.vgpu(index).is_some_and(|vgpu| vgpu.engines.get(engine).changed())
    }

    /// A vGPU begins to wait for an engine. Until somebody does, an engine may take as long as it likes to reach an
    /// arbitration point: the time of one that was asked before counts from now.
    pub(super) fn queue_up(&mut self, index: usize, engine: Engine, now: Nanos) {
        let Some(run) = self.gpu.engines.get(engine).run else { return };
        let first =
            (0..VGPUS).filter(|other| ![index, run.vgpu].contains(other)).all(|other| !self.waits(other, engine));
        if run.vgpu != index
            && first
            && let Some(run) = &mut self.gpu.engines.get_mut(engine).run
            && let Some(ask) = &mut run.asked
        {
            ask.since = now;
        }
    }

    /// The engine hangs or speaks nonsense: it is reset, and what the vGPU had on it never completes. The guest's
    /// own hang detection finds that and resets its virtual engine.
    pub(super) fn lose_engine(&mut self, host: &mut dyn Host, engine: Engine, now: Nanos) {
        self.settle(engine, now);
        let run = self.gpu.engines.get(engine).run;
        if let Some(vgpu) = run.and_then(|run| self.vgpu_mut(run.vgpu)) {
            vgpu.engines.get_mut(engine).failed = true;
            vgpu.stats.engine_mut(engine).resets += 1;
        }
        if let Some(run) = run {
            self.count_reset(run.vgpu, engine, now);
        }
        self.trace.push(now, run.map(|run| run.vgpu), Note::EngineReset(engine));
        // One that does not even reset takes nothing more, and its vGPU's frames stay.
        if self.reset_hardware(host, engine) == Reset::Done {
            self.schedule(host, engine, now);
        }
    }

    /// An engine has to be reset because of a vGPU. One that takes it from others with reset after reset is stopped: each
    /// reset costs them time that no share makes up for.
    pub(super) fn count_reset(&mut self, index: usize, engine: Engine, now: Nanos) {
        let limit = self.config.resets;
        if !self.others_wait(index, engine) {
            return;
        }
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        if vgpu.storm.count(now).is_multiple_of(limit.max(1)) {
            let vm = vgpu.vm;
            self.reports.push(Report { vm, action: Action::StopVm, cause: Cause::ResetStorm { engine } });
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        let mut next = self.holding;
        let mut watched = None;
        let mut at = |nanos: u64| next = Some(Nanos(next.map_or(nanos, |n| n.0.min(nanos))));
        for engine in engines(self.gpu.present) {
            for vgpu in self.vgpus.iter().flatten() {
                let virt = vgpu.engines.get(engine);
                if !virt.held.is_empty() {
                    at(virt.held_since.0.saturating_add(self.config.tick.0));
                }
            }
            let phys = self.gpu.engines.get(engine);
            watched = earlier(watched, since_when(phys));
            if let Some(kept) = phys.kept {
                at(self.kept_until(kept).0);
            }
            if phys.health == Health::Stuck {
                at(self.looked.0);
            }
            if let Some(since) = phys.washing {
                at(since.0.saturating_add(self.config.hang.0));
            }
            let Some(run) = phys.run else { continue };
            if !self.is_waited_for(run.vgpu, engine) {
                continue;
            }
            let since = phys.slice.map_or(run.since, |(_, since)| since);
            at(match run.asked {
                Some(ask) => ask.since.0.saturating_add(self.config.hang.0),
                None => since.0.saturating_add(self.config.slice.0),
            });
        }
        earlier(next, watched.map(|since| self.watch(since)))
    }

    /// When the interrupt registers are looked at although no interrupt came: some time after the last look, while an
    /// engine runs a guest's context, or its parking context, for whose end somebody may wait.
    pub(super) fn watch_deadline(&self) -> Option<Nanos> {
        let all = engines(self.gpu.present).map(|engine| since_when(self.gpu.engines.get(engine)));
        all.fold(None, earlier).map(|since| self.watch(since))
    }

    fn watch(&self, since: Nanos) -> Nanos {
        Nanos(self.looked.max(since).0.saturating_add(self.config.watch.0))
    }
}

/// Since when an engine is to be watched: while a guest's context runs on it, or its parking context does.
#[inline]
fn since_when(phys: &PhysEngine) -> Option<Nanos> {
    match phys.run {
        Some(run) => Some(run.since),
        None => phys.awake().then_some(Nanos(0)),
    }
}

/// The earlier of two times that may not be.
#[inline]
fn earlier(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
