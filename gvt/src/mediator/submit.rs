//! The guest's submissions: what an ELSP write means for the virtual engine (spec/gen9.md B.14).

use super::Gvt;
use super::access::Piece;
use super::desk::{Desk, Refusal, distance, flush_owned, read_dwords};
use crate::host::Host;
use crate::hw::Hw;
use crate::report::Cause;
use crate::trace::Note;
use crate::vgpu::execlist::List;
use gvt_defs::context;
use gvt_defs::execlist::CsbEntry;
use gvt_defs::{Engine, GgttAddr, Nanos, ring};

/// Frames of shadow tables that may wait for a flush before one is made for their sake.
const RETIRED_MAX: usize = 64;

impl<W: Hw> Gvt<W> {
    /// A dword of ELSP; the fourth submits.
    pub(super) fn write_elsp(&mut self, host: &mut dyn Host, index: usize, piece: Piece, now: Nanos) {
        let Some((engine, _)) = Engine::of_register(piece.offset) else { return };
        if !self.gpu.present.has(engine) || piece.lanes != u32::MAX {
            return;
        }
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let elsp = &mut vgpu.engines.get_mut(engine).elsp;
        if elsp.try_push(piece.value).is_err() {
            elsp.clear();
        }
        let Ok(dwords) = core::mem::take(elsp).into_inner().map_err(|partial| *elsp = partial) else { return };
        vgpu.stats.engine_mut(engine).submissions += 1;
        let list = List::from_elsp(dwords);
        self.trace.push(now, Some(index), Note::Submit(engine, list.first().0));
        // What the hardware has finished by now is finished before this submission.
        self.poll_engine(host, engine, now);
        self.sync(host, index);
        self.accept(host, index, engine, list, now);
        self.schedule(host, engine, now);
    }

    fn accept(&mut self, host: &mut dyn Host, index: usize, engine: Engine, list: List, now: Nanos) {
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let virt = vgpu.engines.get_mut(engine);
        if !list.first().valid() {
            return self.refuse(index, engine, Refusal::Malformed("its first descriptor is not valid"));
        }
        let first = list.first();
        let Some(active) = virt.active else {
            self.come(index, engine, now);
            if let Some(vgpu) = self.vgpu_mut(index) {
                vgpu.engines.get_mut(engine).active = Some(list);
            }
            self.tell(host, index, engine, CsbEntry { status: CsbEntry::IDLE_ACTIVE, id: 0 }, now);
            return self.start(host, index, engine, now);
        };
        if virt.failed {
            // Like an engine that hangs: it takes the list and does nothing.
            virt.pending = Some(list);
        } else if first.same_context(active.current())
            && !(first.force_restore() && self.tail_went_back(host, index, engine))
        {
            let Some(vgpu) = self.vgpu_mut(index) else { return };
            let virt = vgpu.engines.get_mut(engine);
            virt.active = Some(list);
            let status = CsbEntry::LITE_RESTORE | CsbEntry::PREEMPTED;
            self.tell(host, index, engine, CsbEntry { status, id: first.id() }, now);
            self.follow_tail(host, index, engine);
        } else {
            let Some(vgpu) = self.vgpu_mut(index) else { return };
            let virt = vgpu.engines.get_mut(engine);
            virt.pending = Some(list);
            if virt.waiting() {
                self.give_way(host, index, engine, now);
            }
        }
    }

    /// Whether the tail of the context that is active lies before what was copied of its ring. Drivers ask for a full
    /// restore then, and what waits for that is told so. (Without that wish the copy waits as well, but the guest hears
    /// of a light one.)
    fn tail_went_back(&self, host: &mut dyn Host, index: usize, engine: Engine) -> bool {
        let Some(vgpu) = self.vgpu(index) else { return false };
        let Some(work) = &vgpu.engines.get(engine).work else { return false };
        let Some(shadow) = vgpu.engines.get(engine).slot(work.slot) else { return false };
        let (_, bytes) = shadow.guest_ring;
        let Some(tail) = self.guest_tail(host, index, engine) else { return true };
        distance(work.tail, tail, bytes) > bytes / 2
    }

    /// The tail that the guest's image says of the context that is active.
    pub(super) fn guest_tail(&self, host: &mut dyn Host, index: usize, engine: Engine) -> Option<u32> {
        let vgpu = self.vgpu(index)?;
        let virt = vgpu.engines.get(engine);
        let shadow = virt.slot(virt.work.as_ref()?.slot)?;
        let at = shadow.lrca.0.wrapping_add(context::REGISTER_PAGE + 4 * context::value::RING_TAIL as u32);
        let mut tail = [0];
        let [tail] = read_dwords(host, &vgpu.gtt, GgttAddr(at), &mut tail).then_some(tail)?;
        Some(tail & ring::TAIL_ADDR_MASK)
    }

    /// A sync point (design D6). The guest's page tables have been followed by now, in parts (`mmio_store`): what it has
    /// written since that began waits for the next one.
    pub(super) fn sync(&mut self, host: &mut dyn Host, index: usize) {
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        vgpu.stats.syncs += 1;
        self.reclaim(host, index);
    }

    /// Flushes TLBs for the sake of table frames that wait to be used again, once there are enough of them. A guest
    /// flushes for its own pages itself: none of them ever leaves it.
    pub(super) fn reclaim(&mut self, host: &mut dyn Host, index: usize) {
        let retired = self.vgpu(index).map_or(0, |vgpu| vgpu.gtt.ppgtt.retired());
        if retired >= RETIRED_MAX {
            self.flush_owned(host, index);
        }
    }

    /// Invalidates the TLBs of all engines that may hold translations of a vGPU.
    /// If one does not end, no frame leaves, and the engine is reset when engines are looked at next.
    pub(super) fn flush_owned(&mut self, host: &mut dyn Host, index: usize) {
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        flush_owned(&mut self.gpu, vgpu, index, host);
    }

    fn desk<'a>(&'a mut self, host: &'a mut dyn Host, index: usize, engine: Engine) -> Option<Desk<'a, W>> {
        let Self { gpu, vgpus, scratch, registers, .. } = self;
        let vgpu = vgpus.get_mut(index).and_then(Option::as_deref_mut)?;
        Some(Desk { gpu, vgpu, scratch, registers: registers.get(engine), host, index, engine })
    }

    /// Prepares the current context of the active list.
    pub(super) fn start(&mut self, host: &mut dyn Host, index: usize, engine: Engine, now: Nanos) {
        let Some(mut desk) = self.desk(host, index, engine) else { return };
        if desk.vgpu.engines.get(engine).failed {
            return;
        }
        let Some(descriptor) = desk.vgpu.engines.get(engine).active.map(|list| list.current()) else { return };
        match desk.prepare(descriptor) {
            Ok(()) => self.queue_up(index, engine, now),
            Err(refusal) => self.refuse(index, engine, refusal),
        }
    }

    /// The guest moved the tail of the context that is active.
    fn follow_tail(&mut self, host: &mut dyn Host, index: usize, engine: Engine) {
        let Some(mut desk) = self.desk(host, index, engine) else { return };
        if let Err(refusal) = desk.extend() {
            self.refuse(index, engine, refusal);
        }
    }

    /// The context that is active has left the hardware, and its ring is not what was copied: it is copied again from
    /// where the hardware stopped.
    pub(super) fn take_anew(&mut self, host: &mut dyn Host, index: usize, engine: Engine) {
        let Some(mut desk) = self.desk(host, index, engine) else { return };
        if let Err(refusal) = desk.rebuild() {
            self.refuse(index, engine, refusal);
        }
    }

    /// The submission never completes: the guest's own hang detection resets the virtual engine. What runs already
    /// runs on.
    fn refuse(&mut self, index: usize, engine: Engine, refusal: Refusal) {
        let cause = match refusal {
            Refusal::Malformed(what) => Cause::Submission { engine, what },
            Refusal::Audit(fault) => Cause::Audit { engine, fault },
            Refusal::NoRoom => Cause::NoRoom { engine },
        };
        if let Some(vgpu) = self.vgpu_mut(index) {
            vgpu.stats.refused += 1;
            vgpu.engines.get_mut(engine).failed = true;
        }
        self.trace.push(Nanos(0), Some(index), Note::Refused(engine));
        self.report(index, cause);
    }
}
