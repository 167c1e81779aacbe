//! Copying what a context runs: its ring, the batches that the ring leads to, the buffers that run at every restore.

use super::{ARENA_PAGES, ARENA_PAGES_MAX, Desk, RING_DWORDS, Refusal, read_chunks, read_dwords};
use crate::audit::{Audit, AuditFault, Bases, Part, Reason, Source};
use crate::gpu::Flushed;
use crate::gtt::Gtt;
use crate::host::Host;
use crate::hw::Hw;
use crate::mediator::access::Mirror;
use crate::vgpu::Vgpu;
use crate::vgpu::context::RingPart;
use crate::vgpu::execlist::Place;
use alloc::vec::Vec;
use gvt_defs::context::{self, DWORDS};
use gvt_defs::{GgttAddr, Gpa, PpgttAddr};

/// What became of a span of a ring.
pub(super) struct Copied {
    /// The shadow ring's tail.
    pub(super) tail: u32,
    /// Where the guest's ring goes on, if not all of it was taken.
    pub(super) resume: Option<u32>,
}

/// The pieces of a ring between head and tail: first and one-past-last byte offset.
type Pieces = [(u32, u32); 2];

/// What a workaround buffer turned into.
#[derive(Clone, Copy, Default)]
pub(super) struct Buffers {
    pub(super) per_context: u32,
    pub(super) indirect: u32,
}

impl<W: Hw> Desk<'_, W> {
    /// Copies a span of the ring, audits the copy with the batches it leads to, and writes it to the shadow ring. A
    /// span that leads to more batches than are copied at a time is cut before the first that is too many.
    pub(super) fn copy_ring(&mut self, slot: usize, pml4: Gpa, span: (u32, u32)) -> Result<Copied, Refusal> {
        let mut ring = core::mem::take(&mut self.scratch.ring);
        let mut mirror = Mirror::of(self.vgpu);
        let mut pages = ARENA_PAGES;
        let mut limit = usize::MAX;
        let done = loop {
            let done = self.fetch_ring(slot, span, &mut ring).and_then(|pieces| {
                let cut = ring.len() > limit;
                ring.truncate(limit);
                self.audit_ring(slot, pml4, &mut ring, pages, &mut mirror)?;
                self.place_ring(slot, pieces, &ring)?;
                if !cut {
                    return Ok(Copied { tail: span.1, resume: None });
                }
                let (tail, resume) = self.end_early(slot, span.0, ring.len())?;
                Ok(Copied { tail, resume: Some(resume) })
            });
            // From the start, with more room or with less of the ring: only what is audited last runs.
            match done {
                Err(Refusal::Audit(AuditFault { reason: Reason::TooLong, .. })) if pages < ARENA_PAGES_MAX => {
                    pages *= 4
                }
                Err(Refusal::Audit(AuditFault {
                    reason: Reason::TooManyBatches, part: Part::Ring, offset, ..
                })) if offset > 0 && (offset as usize) < limit => {
                    limit = offset as usize;
                }
                Err(Refusal::Audit(AuditFault { reason: Reason::NoWindow, .. })) => {
                    break Err(Refusal::Malformed("its process space has no free place for copies of batches"));
                }
                done => break done,
            }
        };
        mirror.put_back(self.host, self.vgpu);
        self.scratch.ring = ring;
        done
    }

    /// The same for a context that is inside a copy and not on the hardware. Where there is no room beside what lies in
    /// the arena, that goes on first, and what of the ring follows it is taken when it is done.
    pub(super) fn copy_ring_beside(&mut self, slot: usize, pml4: Gpa, span: (u32, u32)) -> Result<Copied, Refusal> {
        let copied = self.copy_ring(slot, pml4, span);
        if !matches!(copied, Err(Refusal::NoRoom)) {
            return copied;
        }
        let (head, _) = span;
        let (_, bytes) = self.slot_mut(slot).ok_or(Refusal::NoRoom)?.guest_ring;
        // Some no-ops: hardware might not go on with a batch that has no ring behind it.
        let first = bytes.saturating_sub(head).min(8);
        self.place_ring(slot, [(head, head + first), (0, 8 - first)], &[gvt_defs::mi::header(gvt_defs::mi::NOOP); 2])?;
        let (tail, _) = self.end_early(slot, head, 2)?;
        Ok(Copied { tail, resume: Some(head) })
    }

    /// Ends the shadow ring behind `dwords` dwords from `head` on. Gives the tail, which is aligned to two dwords, and
    /// where the guest's ring goes on.
    pub(super) fn end_early(&mut self, slot: usize, head: u32, dwords: usize) -> Result<(u32, u32), Refusal> {
        let shadow = self.vgpu.engines.get(self.engine).slot(slot).ok_or(Refusal::NoRoom)?;
        let (_, bytes) = shadow.guest_ring;
        let wrap = |at: u32| if at >= bytes { at - bytes } else { at };
        let resume = wrap(head + 4 * dwords as u32);
        if resume.is_multiple_of(8) {
            return Ok((resume, resume));
        }
        let block = shadow.ring.as_ref().ok_or(Refusal::NoRoom)?;
        block.write(self.host, resume, &[gvt_defs::mi::header(gvt_defs::mi::NOOP)]);
        Ok((wrap(resume + 4), resume))
    }

    /// Copies a span of the guest's ring, in one piece. Gives the one or two pieces that it consists of.
    fn fetch_ring(&mut self, slot: usize, (head, tail): (u32, u32), ring: &mut Vec<u32>) -> Result<Pieces, Refusal> {
        let (start, bytes) = self.slot_mut(slot).map(|shadow| shadow.guest_ring).ok_or(Refusal::NoRoom)?;
        let pieces = if head <= tail { [(head, tail), (0, 0)] } else { [(head, bytes), (0, tail)] };
        let dwords = pieces.iter().map(|(from, to)| (to - from) as usize / 4).sum::<usize>();
        if dwords > RING_DWORDS {
            return Err(Refusal::Malformed("its ring holds more than 512 KiB of commands"));
        }
        ring.clear();
        ring.resize(dwords, 0);
        let mut at = 0;
        for (from, to) in pieces {
            let end = at + (to - from) as usize / 4;
            let part = ring.get_mut(at..end).unwrap_or_default();
            self.read_ggtt(GgttAddr(start.0.wrapping_add(from)), part)?;
            at = end;
        }
        Ok(pieces)
    }

    /// Audits a copy of the ring. Batches that may not run where they are get copied into the slot's arena.
    fn audit_ring(
        &mut self,
        slot: usize,
        pml4: Gpa,
        ring: &mut [u32],
        pages: u32,
        mirror: &mut Mirror,
    ) -> Result<(), Refusal> {
        let partition = self.vgpu.partition.clone();
        let page = mirror.status_page(self.engine);
        let mut sink = |offset, value| mirror.write(offset, value);
        let mut audit = Audit::new(self.engine, &partition).with_status_page(page).telling(&mut sink);
        let done = self.audit_with(&mut audit, slot, pml4, ring, pages);
        self.settle(audit.summary());
        done
    }

    fn audit_with(
        &mut self,
        audit: &mut Audit<'_>,
        slot: usize,
        pml4: Gpa,
        ring: &mut [u32],
        pages: u32,
    ) -> Result<(), Refusal> {
        audit.ring(ring)?;
        if audit.pending() > 0 {
            let (global, room) = self.arena(slot, pages)?;
            let bases = Bases { global, process: self.slot_mut(slot).and_then(|slot| slot.in_window(global)) };
            let mut source = Batches { host: self.host, gtt: &self.vgpu.gtt, pml4 };
            audit.copy_batches(&mut source, bases, &mut self.scratch.arena, room as usize / 4)?;
            audit.patch(ring);
            let shadow = self.vgpu.engines.get_mut(self.engine).slot_mut(slot).ok_or(Refusal::NoRoom)?;
            shadow.copies.add(shadow.arena_used, audit.copies())?;
            self.keep_arena(slot)?;
        }
        Ok(())
    }

    fn place_ring(&mut self, slot: usize, pieces: Pieces, ring: &[u32]) -> Result<(), Refusal> {
        let shadow = self.vgpu.engines.get(self.engine).slot(slot).ok_or(Refusal::NoRoom)?;
        let block = shadow.ring.as_ref().ok_or(Refusal::NoRoom)?;
        let mut rest = ring;
        for (from, to) in pieces {
            let (now, later) = rest.split_at(rest.len().min((to - from) as usize / 4));
            block.write(self.host, from, now);
            rest = later;
        }
        Ok(())
    }

    /// Free room in a slot's arena: its address and bytes. It grows only while nothing in it is in use.
    fn arena(&mut self, index: usize, pages: u32) -> Result<(GgttAddr, u32), Refusal> {
        let slot = self.slot_mut(index).ok_or(Refusal::NoRoom)?;
        let used = slot.arena_used;
        if slot.arena.as_ref().is_none_or(|arena| arena.bytes().saturating_sub(used) < pages * 4096) {
            let shows = slot.window.is_some();
            // What a window shows changes only while its context is off the engine.
            if used != 0 || (shows && self.is_loaded(index)) {
                return Err(Refusal::NoRoom);
            }
            if shows && self.hide_arena(index) == Flushed::Stuck {
                return Err(Refusal::NoRoom);
            }
            if let Some(old) = self.slot_mut(index).and_then(|slot| slot.arena.take()) {
                self.free(old);
            }
            let arena = self.alloc(pages)?;
            let Vgpu { engines, gtt, .. } = &mut *self.vgpu;
            let slot = engines.get_mut(self.engine).slot_mut(index).ok_or(Refusal::NoRoom)?;
            if let Some(window) = &slot.window {
                gtt.ppgtt.show(self.host, window, arena.frames());
            }
            slot.arena = Some(arena);
            slot.arena_high = 0;
        }
        let slot = self.slot_mut(index).ok_or(Refusal::NoRoom)?;
        let arena = slot.arena.as_ref().ok_or(Refusal::NoRoom)?;
        Ok((GgttAddr(arena.ggtt().0 + used), arena.bytes() - used))
    }

    /// Takes an arena out of its window, so that its pages can go to others.
    fn hide_arena(&mut self, index: usize) -> Flushed {
        let Vgpu { engines, gtt, .. } = &mut *self.vgpu;
        match engines.get(self.engine).slot(index).map(|slot| (&slot.window, &slot.arena)) {
            Some((Some(window), Some(_))) => gtt.ppgtt.show(self.host, window, core::iter::empty()),
            _ => return Flushed::Done,
        }
        self.flush_windows()
    }

    fn is_loaded(&self, index: usize) -> bool {
        let work = &self.vgpu.engines.get(self.engine).work;
        work.as_ref().is_some_and(|work| work.slot == index && work.place == Place::Hardware)
    }

    /// Writes the copies into the arena.
    fn keep_arena(&mut self, index: usize) -> Result<(), Refusal> {
        let Some(slot) = self.vgpu.engines.get_mut(self.engine).slot_mut(index) else { return Err(Refusal::NoRoom) };
        let arena = slot.arena.as_ref().ok_or(Refusal::NoRoom)?;
        arena.write(self.host, slot.arena_used, &self.scratch.arena);
        let bytes = 4 * self.scratch.arena.len() as u32;
        slot.arena_used = (slot.arena_used + bytes).next_multiple_of(64);
        slot.arena_high = slot.arena_high.max(slot.arena_used);
        Ok(())
    }

    /// Copies and audits the buffers that run at every restore of the context.
    pub(super) fn copy_buffers(&mut self, slot: usize, part: &RingPart) -> Result<Buffers, Refusal> {
        let partition = self.vgpu.partition.clone();
        let page = self.vgpu.file.status_page(self.engine);
        let mut audit = Audit::new(self.engine, &partition).with_status_page(page);
        let mut buffers = Buffers::default();
        let lines = part.indirect & context::INDIRECT_SIZE_MASK;
        if lines != 0 {
            let mut copy = [0u32; 63 * 16];
            let copy = copy.get_mut(..lines as usize * 16).unwrap_or_default();
            self.read_ggtt(GgttAddr(part.indirect & !context::INDIRECT_SIZE_MASK), copy)?;
            audit.indirect(copy)?;
            buffers.indirect = self.stash(slot, copy)?.0 | lines;
        }
        if part.per_context & context::PER_CTX_VALID != 0 {
            let mut copy = [0u32; DWORDS];
            let room = DWORDS - (part.per_context & 0xFC0) as usize / 4;
            let copy = copy.get_mut(..room).unwrap_or_default();
            self.read_ggtt(GgttAddr(part.per_context & !0x3F), copy)?;
            let used = audit.per_context(copy)?;
            let copy = copy.get(..used).unwrap_or_default();
            buffers.per_context = self.stash(slot, copy)?.0 | context::PER_CTX_VALID;
        }
        self.settle(audit.summary());
        Ok(buffers)
    }

    /// Puts a buffer into the arena, page aligned.
    fn stash(&mut self, index: usize, dwords: &[u32]) -> Result<GgttAddr, Refusal> {
        if let Some(slot) = self.slot_mut(index) {
            slot.arena_used = slot.arena_used.next_multiple_of(4096);
        }
        let pages = (dwords.len() as u32 * 4).div_ceil(4096);
        let (at, _) = self.arena(index, if self.arena_is_empty(index) { ARENA_PAGES } else { pages })?;
        let Some(slot) = self.vgpu.engines.get_mut(self.engine).slot_mut(index) else { return Err(Refusal::NoRoom) };
        let arena = slot.arena.as_ref().ok_or(Refusal::NoRoom)?;
        arena.write(self.host, slot.arena_used, dwords);
        slot.arena_used += dwords.len() as u32 * 4;
        slot.arena_high = slot.arena_high.max(slot.arena_used);
        Ok(at)
    }

    fn arena_is_empty(&self, index: usize) -> bool {
        self.vgpu.engines.get(self.engine).slot(index).is_none_or(|slot| slot.arena_used == 0)
    }
}

/// Where batches are copied from.
struct Batches<'a> {
    host: &'a mut dyn Host,
    gtt: &'a Gtt,
    pml4: Gpa,
}

impl Source for Batches<'_> {
    fn global(&mut self, addr: GgttAddr, dwords: &mut [u32]) -> bool {
        read_dwords(self.host, self.gtt, addr, dwords)
    }

    fn process(&mut self, addr: PpgttAddr, dwords: &mut [u32]) -> bool {
        let (host, gtt, pml4) = (&mut *self.host, self.gtt, self.pml4);
        read_chunks(dwords, &mut |offset, bytes| {
            gtt.ppgtt_read(host, pml4, PpgttAddr(addr.0.wrapping_add(offset)), bytes).is_ok()
        })
    }
}
