//! Preparing a context: what the guest refers to is copied once, the copy is audited, and the copy is what runs
//! (design D7).

mod copy;
mod follow;

pub(super) use follow::distance;

use super::{POOL_SHARE, Scratch};
use crate::audit::{Audit, AuditFault, ContextRegisters, Summary};
use crate::gpu::pool::{Block, Pool};
use crate::gpu::{Counted, Flushed, Gpu};
use crate::gtt::{Gtt, Pin, WINDOW_PAGES};
use crate::host::{Host, NoFrame, VmId};
use crate::hw::Hw;
use crate::units::Work as Priced;
use crate::vgpu::Vgpu;
use crate::vgpu::context::{
    IMAGE_PAGES, Redirect, Resume, RingPart, ShadowContext, build_ring_part, resume_ring_part, ring_head,
};
use crate::vgpu::copies::Copies;
use crate::vgpu::execlist::{Again, Fit, Place, SLOTS, Work};
use arrayvec::ArrayVec;
use copy::Copied;
use gvt_defs::context::{self, DWORDS, RING_CONTEXT_DWORDS};
use gvt_defs::execlist::{Addressing, Descriptor};
use gvt_defs::{Engine, GgttAddr, Gpa, Hpa};

/// Dwords of the largest context image, page 0 left out.
pub(super) const IMAGE_DWORDS: usize = (IMAGE_PAGES - 1) * DWORDS;
/// Dwords of ring that one submission may bring: more than any driver's ring holds.
pub(super) const RING_DWORDS: usize = 512 * 1024 / 4;
/// Pages of an arena: first size, and the largest.
const ARENA_PAGES: u32 = 16;
const ARENA_PAGES_MAX: u32 = WINDOW_PAGES as u32;
/// Dwords of batches that one context may have copied: the largest arena.
pub(super) const ARENA_DWORDS: usize = ARENA_PAGES_MAX as usize * DWORDS;
/// Calls of `acquire` before the work left is taken as it is (parts then lead to scratch until the next sync).
const ACQUIRES: u32 = 8;

/// Why a submission is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    Malformed(&'static str),
    Audit(AuditFault),
    NoRoom,
}

impl From<NoFrame> for Refusal {
    fn from(NoFrame: NoFrame) -> Self {
        Self::NoRoom
    }
}

impl From<AuditFault> for Refusal {
    fn from(fault: AuditFault) -> Self {
        Self::Audit(fault)
    }
}

/// Invalidates the TLBs of the engines that a vGPU owns; others were flushed when they went to somebody else.
pub(super) fn flush_owned<W: Hw>(gpu: &mut Gpu<W>, vgpu: &mut Vgpu, index: usize, host: &mut dyn Host) {
    let generation = vgpu.gtt.ppgtt.generation();
    for engine in Engine::ALL {
        if gpu.engines.get(engine).owner == Some(index) {
            vgpu.stats.tlb_flushes += 1;
            if gpu.flush_tlb(engine) == Flushed::Stuck {
                return;
            }
        }
    }
    vgpu.gtt.ppgtt.flushed(host, generation);
}

/// The ring part of an image as the hardware left it.
type OwnRingPart = [u32; RING_CONTEXT_DWORDS];

/// All that preparing a context needs.
pub(super) struct Desk<'a, W> {
    pub(super) gpu: &'a mut Gpu<W>,
    pub(super) vgpu: &'a mut Vgpu,
    pub(super) scratch: &'a mut Scratch,
    pub(super) registers: &'a ContextRegisters,
    pub(super) host: &'a mut dyn Host,
    pub(super) index: usize,
    pub(super) engine: Engine,
}

/// Which contexts are kept when room is wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Keep {
    /// Those that run, wait, or ran last.
    Busy,
    /// And those that left inside a copy, which only there can go on.
    HalfDone,
    /// And the others.
    All,
}

impl<W: Hw> Desk<'_, W> {
    /// Copies, audits and redirects a context; it waits for the hardware then.
    pub(super) fn prepare(&mut self, descriptor: Descriptor) -> Result<(), Refusal> {
        if descriptor.addressing() != Addressing::Legacy64 {
            return Err(Refusal::Malformed("its context does not use four-level page tables"));
        }
        let lrca = descriptor.lrca();
        let pages = self.engine.info().context_pages;
        if !self.vgpu.partition.holds(lrca, pages * 4096) {
            return Err(Refusal::Malformed("its context image lies outside the vGPU's graphics memory"));
        }
        let mut page = [0u32; DWORDS];
        let (ring_part, _) = page.split_at_mut(RING_CONTEXT_DWORDS);
        self.read_ggtt(GgttAddr(lrca.0 + context::REGISTER_PAGE), ring_part)?;
        let part = RingPart::parse(self.engine, ring_part).map_err(Refusal::Malformed)?;
        if !self.vgpu.partition.holds(part.start, part.bytes) {
            return Err(Refusal::Malformed("its ring lies outside the vGPU's graphics memory"));
        }
        let own = self.half_done(lrca, &part)?;
        let slot = self.take_slot(lrca, &mut page)?;
        self.fit_ring(slot, &part)?;
        let (pin, copied) = self.build(slot, &part, own.as_ref())?;
        self.vgpu.engines.get_mut(self.engine).preparing = None;
        let again = copied.resume.map(Again::At);
        let (head, tail) = (own.map_or(part.head, |own| ring_head(&own)), copied.tail);
        let work = Work { slot, pin, head, tail, place: Place::Waiting, resubmit: false, again };
        self.vgpu.engines.get_mut(self.engine).work = Some(work);
        Ok(())
    }

    /// The ring part, as the hardware left it, of a context that goes on inside a copy. None of the guest's is used of
    /// that, and all must be as it was shown.
    fn half_done(&mut self, lrca: GgttAddr, part: &RingPart) -> Result<Option<OwnRingPart>, Refusal> {
        let Resume::Copy(batches) = part.resume else { return Ok(None) };
        let slots = &self.vgpu.engines.get(self.engine).slots;
        let slot = slots.iter().flatten().find(|slot| slot.lrca == lrca && slot.half_done.is_some());
        let slot = slot.ok_or(Refusal::Malformed("it resumes inside a batch of which there is no copy"))?;
        if slot.half_done != Some(batches) || slot.guest_ring != (part.start, part.bytes) {
            return Err(Refusal::Malformed("it resumes inside a copied batch elsewhere than where it left"));
        }
        if slot.copied_from != part.pml4 {
            return Err(Refusal::Malformed("it resumes inside a copied batch with other page tables"));
        }
        let mut own = [0; RING_CONTEXT_DWORDS];
        slot.image.read(self.host, context::REGISTER_PAGE, &mut own);
        Ok(Some(own))
    }

    /// The part of `prepare` that holds a page-table root: it is let go if anything fails.
    fn build(&mut self, slot: usize, part: &RingPart, own: Option<&OwnRingPart>) -> Result<(Pin, Copied), Refusal> {
        let (shared, mut pin) = self.acquire(part.pml4);
        let root = self.own_root(slot, part.pml4, own, &mut pin).unwrap_or(shared);
        let built = match own {
            Some(own) => self.go_on(slot, part, own, root),
            None => self.begin(slot, part, root),
        };
        match built {
            Ok(copied) => Ok((pin, copied)),
            Err(refusal) => {
                self.vgpu.gtt.ppgtt.release(self.host, pin);
                Err(refusal)
            }
        }
    }

    /// The root of a blitter context's own (design section 5), in which a window shows its arena. The window's place is
    /// chosen each time that the context begins, and stays while it is half done. None where there is no place, or no
    /// frame.
    fn own_root(&mut self, index: usize, pml4: Gpa, own: Option<&OwnRingPart>, pin: &mut Pin) -> Option<Hpa> {
        if self.engine != Engine::Bcs {
            return None;
        }
        let Vgpu { engines, gtt, .. } = &mut *self.vgpu;
        let slot = engines.get_mut(self.engine).slot_mut(index)?;
        if slot.window.is_none() {
            let window = gtt.ppgtt.open_window(self.host).ok()?;
            if let Some(arena) = &slot.arena {
                gtt.ppgtt.show(self.host, &window, arena.frames());
            }
            slot.window = Some(window);
        }
        let window = slot.window.as_mut()?;
        if own.is_none() || window.address().is_none() {
            gtt.ppgtt.place_window(self.host, pml4, window);
        }
        gtt.ppgtt.attach(self.host, pin, window)
    }

    /// A context as the guest's image says.
    fn begin(&mut self, slot: usize, part: &RingPart, root: Hpa) -> Result<Copied, Refusal> {
        if let Some(shadow) = self.vgpu.engines.get_mut(self.engine).slot_mut(slot) {
            shadow.empty_arena(self.host, part.pml4);
        }
        let copied = self.copy_ring(slot, part.pml4, (part.head, part.tail))?;
        let buffers = self.copy_buffers(slot, part)?;
        let shadow = self.vgpu.engines.get(self.engine).slot(slot).ok_or(Refusal::NoRoom)?;
        let ring = shadow.ring.as_ref().ok_or(Refusal::NoRoom)?.ggtt();
        let to = Redirect { ring, root, per_context: buffers.per_context, indirect: buffers.indirect };
        let mut page = [0u32; RING_CONTEXT_DWORDS];
        shadow.image.read(self.host, context::REGISTER_PAGE, &mut page);
        let part = RingPart { tail: copied.tail, ..*part };
        build_ring_part(self.engine, &part, to, &mut page);
        shadow.image.write(self.host, context::REGISTER_PAGE, &page);
        Ok(copied)
    }

    /// A context that goes on inside a copy: the arena stays, and what is new of the ring gets room behind that.
    fn go_on(&mut self, slot: usize, part: &RingPart, own: &OwnRingPart, root: Hpa) -> Result<Copied, Refusal> {
        let copied = self.copy_ring_beside(slot, part.pml4, (ring_head(own), part.tail))?;
        let shadow = self.vgpu.engines.get_mut(self.engine).slot_mut(slot).ok_or(Refusal::NoRoom)?;
        let mut page = [0u32; RING_CONTEXT_DWORDS];
        shadow.image.read(self.host, context::REGISTER_PAGE, &mut page);
        resume_ring_part(own, copied.tail, root, &mut page);
        shadow.image.write(self.host, context::REGISTER_PAGE, &page);
        // The hardware may write the image from now on.
        shadow.half_done = None;
        Ok(copied)
    }

    /// Takes pages of the mediator's space within the vGPU's share; contexts that nobody needs make room.
    fn alloc(&mut self, pages: u32) -> Result<Block, NoFrame> {
        for keep in [Keep::All, Keep::HalfDone, Keep::Busy] {
            self.drop_slots(keep);
            if self.vgpu.pool_pages + pages <= POOL_SHARE
                && let Ok(block) = self.gpu.pool.alloc(self.host, &mut self.gpu.hw, pages)
            {
                self.vgpu.pool_pages += pages;
                return Ok(block);
            }
        }
        Err(NoFrame)
    }

    fn free(&mut self, block: Block) {
        self.vgpu.pool_pages -= block.pages();
        self.gpu.pool.free(self.host, &mut self.gpu.hw, block);
    }

    /// Frees the shadows of contexts that are not to be kept.
    fn drop_slots(&mut self, keep: Keep) {
        if keep != Keep::All && self.flush_windows() == Flushed::Stuck {
            return;
        }
        for engine in Engine::ALL.into_iter().filter(|_| keep != Keep::All) {
            let virt = self.vgpu.engines.get_mut(engine);
            let busy = [virt.last, virt.work.as_ref().map(|work| work.slot), virt.preparing];
            let idle = virt.slots.iter_mut().enumerate().filter(|(index, _)| !busy.contains(&Some(*index)));
            let goes = |slot: &mut ShadowContext| keep == Keep::Busy || slot.half_done.is_none();
            let freed: ArrayVec<ShadowContext, SLOTS> = idle.filter_map(|(_, slot)| slot.take_if(goes)).collect();
            for slot in freed {
                if let Some(window) = &slot.window {
                    self.vgpu.gtt.ppgtt.close_window(window);
                }
                [Some(slot.image), slot.ring, slot.arena].into_iter().flatten().for_each(|block| self.free(block));
            }
        }
    }

    /// Makes the blitter forget what windows showed: pages of an arena go to others after that.
    pub(super) fn flush_windows(&mut self) -> Flushed {
        if self.gpu.engines.get(Engine::Bcs).owner != Some(self.index) {
            // It was flushed when it went to somebody else.
            return Flushed::Done;
        }
        self.vgpu.stats.tlb_flushes += 1;
        self.gpu.flush_tlb(Engine::Bcs)
    }

    fn slot_mut(&mut self, slot: usize) -> Option<&mut ShadowContext> {
        self.vgpu.engines.get_mut(self.engine).slot_mut(slot)
    }

    fn read_ggtt(&mut self, addr: GgttAddr, dwords: &mut [u32]) -> Result<(), Refusal> {
        read_dwords(self.host, &self.vgpu.gtt, addr, dwords)
            .then_some(())
            .ok_or(Refusal::Malformed("it refers to graphics memory that is not mapped"))
    }

    fn settle(&mut self, summary: &Summary) {
        self.gpu.hw.meter.charge(Priced::Dword, summary.dwords as usize);
        self.gpu.hw.meter.charge(Priced::Command, summary.judged as usize);
        self.vgpu.stats.audit_commands += u64::from(summary.commands);
        self.vgpu.stats.audit_bytes += 4 * u64::from(summary.dwords);
    }

    /// The slot for a context image, its engine state copied and audited unless what the slot holds is still right. Of
    /// `page`, the register page, the ring part is there; the rest is read if it is needed.
    fn take_slot(&mut self, lrca: GgttAddr, page: &mut [u32; DWORDS]) -> Result<usize, Refusal> {
        let bytes = self.engine.info().context_pages * 4096;
        let Vgpu { engines, gtt, vm, stats, .. } = &mut *self.vgpu;
        let virt = engines.get_mut(self.engine);
        let (index, fit) = virt.slot_for(lrca);
        let (clock, last) = (virt.clock, virt.last);
        if last != Some(index) {
            // Another context comes: what the last one's state became goes to the guest now, if it has not yet.
            if let Some(slot) = last.and_then(|last| virt.slot_mut(last)) {
                slot.write_back_engine(self.host, *vm, stats);
            }
            virt.last = None;
        }
        let stamp = virt.slot(index).filter(|_| fit == Fit::Same).and_then(|slot| slot.stamp);
        let mapped_alike = stamp.is_some_and(|stamp| !gtt.ggtt.changed_since(lrca, bytes, stamp));
        if !(mapped_alike && last == Some(index)) {
            let (_, rest) = page.split_at_mut(RING_CONTEXT_DWORDS);
            let at = lrca.0 + context::REGISTER_PAGE + 4 * RING_CONTEXT_DWORDS as u32;
            if !read_dwords(self.host, gtt, GgttAddr(at), rest) {
                return Err(NOT_MAPPED);
            }
        }
        if mapped_alike
            && let Some(slot) = virt.slot_mut(index)
            && (last == Some(index) || slot.same_image(self.host, *vm, page))
        {
            slot.used = clock;
            return Ok(index);
        }
        virt.preparing = Some(index);
        self.make_slot(index, lrca)?;
        self.copy_image(index, lrca, page)?;
        Ok(index)
    }

    /// Makes sure that a slot has an image block, and gives it to `lrca`.
    fn make_slot(&mut self, index: usize, lrca: GgttAddr) -> Result<(), Refusal> {
        if self.slot_mut(index).is_none() {
            let image = self.alloc(self.engine.info().context_pages)?;
            if let Some(place) = self.vgpu.engines.get_mut(self.engine).slots.get_mut(index) {
                *place = Some(ShadowContext::new(lrca, image));
            }
        }
        let virt = self.vgpu.engines.get_mut(self.engine);
        let clock = virt.clock;
        let slot = virt.slot_mut(index).ok_or(Refusal::NoRoom)?;
        if slot.lrca != lrca {
            slot.lrca = lrca;
            slot.half_done = None;
        }
        slot.used = clock;
        slot.stamp = None;
        slot.newer = false;
        slot.pages.clear();
        Ok(())
    }

    /// Copies and audits the engine's part of an image: page 1 from the ring part on, and what follows.
    fn copy_image(&mut self, index: usize, lrca: GgttAddr, page: &[u32; DWORDS]) -> Result<(), Refusal> {
        let count = self.engine.info().context_pages;
        let mut pages: ArrayVec<Gpa, IMAGE_PAGES> = ArrayVec::new();
        for i in 0..count {
            let gpa = self.vgpu.gtt.ggtt.gpa(GgttAddr(lrca.0 + 4096 * i)).ok_or(NOT_MAPPED)?;
            pages.try_push(gpa).map_err(|_| Refusal::NoRoom)?;
        }
        let stamp = self.vgpu.gtt.ggtt.stamp();
        let mut image = core::mem::take(&mut self.scratch.image);
        image.clear();
        image.extend_from_slice(page);
        image.resize(DWORDS * (count as usize - 1), 0);
        let copied = self.fill_image(lrca, &mut image);
        self.scratch.image = image;
        copied?;
        let Gpu { hw, pool, .. } = &mut *self.gpu;
        let Vgpu { engines, vm, stats, .. } = &mut *self.vgpu;
        let Some(slot) = engines.get_mut(self.engine).slot_mut(index) else { return Ok(()) };
        // The ring part is never the guest's: it may be what a context that is half done goes on by.
        let (ring_part, engine_part) = self.scratch.image.split_at(RING_CONTEXT_DWORDS.min(self.scratch.image.len()));
        slot.put_engine_part(self.host, ring_part, engine_part);
        stats.image_bytes_in += 4 * self.scratch.image.len() as u64;
        slot.pages = pages;
        if let Some(status) = slot.pages.first().copied() {
            alias_status_page(self.host, hw, pool, *vm, slot, status);
        }
        slot.stamp = Some(stamp);
        Ok(())
    }

    fn fill_image(&mut self, lrca: GgttAddr, image: &mut [u32]) -> Result<(), Refusal> {
        if let Some(rest) = image.get_mut(DWORDS..)
            && !rest.is_empty()
        {
            self.read_ggtt(GgttAddr(lrca.0 + 2 * 4096), rest)?;
        }
        if let Some(engine_part) = image.get_mut(RING_CONTEXT_DWORDS..) {
            let partition = self.vgpu.partition.clone();
            let mut audit = Audit::new(self.engine, &partition);
            let done = audit.context(engine_part, self.registers);
            self.settle(audit.summary());
            done?;
        }
        Ok(())
    }

    /// A shadow ring as large as the guest's.
    fn fit_ring(&mut self, index: usize, part: &RingPart) -> Result<(), Refusal> {
        let slot = self.slot_mut(index).ok_or(Refusal::NoRoom)?;
        slot.guest_ring = (part.start, part.bytes);
        if slot.ring.as_ref().is_some_and(|ring| ring.bytes() >= part.bytes) {
            return Ok(());
        }
        if let Some(old) = slot.ring.take() {
            self.free(old);
        }
        let ring = self.alloc(part.bytes / 4096)?;
        self.slot_mut(index).ok_or(Refusal::NoRoom)?.ring = Some(ring);
        Ok(())
    }

    /// A shadow root for a guest's page tables.
    fn acquire(&mut self, pml4: Gpa) -> (Hpa, Pin) {
        let mut shadow = self.vgpu.gtt.ppgtt.acquire(self.host, pml4);
        for _ in 1..ACQUIRES {
            if !shadow.again {
                break;
            }
            flush_owned(self.gpu, self.vgpu, self.index, self.host);
            let next = self.vgpu.gtt.ppgtt.acquire(self.host, pml4);
            self.vgpu.gtt.ppgtt.release(self.host, shadow.pin);
            shadow = next;
        }
        (shadow.root, shadow.pin)
    }
}

const NOT_MAPPED: Refusal = Refusal::Malformed("its context image is not mapped");

/// The guest's status page shows through in the shadow image: it holds no registers, and commands that store by
/// index write to it.
fn alias_status_page<W: Hw>(
    host: &mut dyn Host,
    hw: &mut Counted<W>,
    pool: &Pool,
    vm: VmId,
    slot: &mut ShadowContext,
    status: Gpa,
) {
    let frame = host.translate(vm, status.gfn()).map(|backing| backing.hpa);
    if let Some(frame) = frame
        && slot.status_frame != Some(frame)
    {
        pool.alias(hw, &slot.image, 0, frame);
        slot.status_frame = Some(frame);
    }
}

pub(super) fn read_dwords(host: &mut dyn Host, gtt: &Gtt, addr: GgttAddr, dwords: &mut [u32]) -> bool {
    read_chunks(dwords, &mut |offset, bytes| {
        gtt.read(host, GgttAddr(addr.0.wrapping_add(offset as u32)), bytes).is_ok()
    })
}

/// Fills dwords through a byte buffer.
fn read_chunks(dwords: &mut [u32], read: &mut dyn FnMut(u64, &mut [u8]) -> bool) -> bool {
    let mut bytes = [0u8; 4096];
    let mut offset = 0;
    for chunk in dwords.chunks_mut(1024) {
        let Some(bytes) = bytes.get_mut(..4 * chunk.len()) else { return false };
        if !read(offset, bytes) {
            return false;
        }
        for (to, from) in chunk.iter_mut().zip(bytes.chunks_exact(4)) {
            *to = from.try_into().map_or(0, u32::from_le_bytes);
        }
        offset += bytes.len() as u64;
    }
    true
}

impl ShadowContext {
    fn new(lrca: GgttAddr, image: Block) -> Self {
        Self {
            lrca,
            image,
            status_frame: None,
            ring: None,
            arena: None,
            window: None,
            arena_used: 0,
            arena_high: 0,
            copied_from: Gpa(0),
            copies: Copies::new(),
            half_done: None,
            pages: ArrayVec::new(),
            stamp: None,
            guest_ring: (GgttAddr(0), 0),
            newer: false,
            used: 0,
        }
    }
}
