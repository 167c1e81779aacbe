//! A shadow context: the mediator's copy of a guest's context image and ring, which is what the GPU runs.

use super::copies::Copies;
use crate::audit::Target;
use crate::gpu::parking::{Restore, control, template};
use crate::gpu::pool::Block;
use crate::gtt::{Stamp, Window};
use crate::host::{Host, VmId};
use crate::stats::Stats;
use arrayvec::ArrayVec;
use gvt_defs::context::{self, DWORDS, RING_CONTEXT_DWORDS, value};
use gvt_defs::{Engine, GgttAddr, Gpa, Hpa, PpgttAddr, ring};

/// Pages of the largest context image.
pub(crate) const IMAGE_PAGES: usize = 22;

/// The shadow of one guest context.
#[derive(Debug)]
pub(crate) struct ShadowContext {
    /// The guest's address of the image.
    pub(crate) lrca: GgttAddr,
    /// The shadow image. Its page 0 is mapped to the guest's own, which holds no registers.
    pub(crate) image: Block,
    /// The frame that page 0 is mapped to.
    pub(crate) status_frame: Option<Hpa>,
    /// The shadow ring, as large as the guest's, so that offsets are the guest's.
    pub(crate) ring: Option<Block>,
    /// Copies of batches and of workaround buffers.
    pub(crate) arena: Option<Block>,
    /// Of a blitter context: a root of its own, in which the arena shows.
    pub(crate) window: Option<Window>,
    /// Bytes of the arena in use.
    pub(crate) arena_used: u32,
    /// Bytes of it that hold copies, or held some, of batches of the space of `copied_from`.
    pub(crate) arena_high: u32,
    /// The root of the guest's page tables then.
    pub(crate) copied_from: Gpa,
    /// What of the guest's lies in it.
    pub(crate) copies: Copies,
    /// It left inside a copy, and this is what the guest was shown of where that is. What lies in the arena, and the ring
    /// part of the image, are as the hardware left them.
    pub(crate) half_done: Option<Batches>,
    /// Where the guest's image lies, page by page, as of the last full copy.
    pub(crate) pages: ArrayVec<Gpa, IMAGE_PAGES>,
    /// The page tables under the image had this age then.
    pub(crate) stamp: Option<Stamp>,
    /// The guest's ring: address and bytes.
    pub(crate) guest_ring: (GgttAddr, u32),
    /// The engine state is newer here than in the guest's image.
    pub(crate) newer: bool,
    /// When it was used, on the engine's clock.
    pub(crate) used: u64,
}

/// What the guest's register page says of its ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RingPart {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) start: GgttAddr,
    pub(crate) bytes: u32,
    pub(crate) pml4: Gpa,
    pub(crate) restore: Restore,
    pub(crate) timestamp: u32,
    pub(crate) resume: Resume,
    pub(crate) per_context: u32,
    pub(crate) indirect: u32,
    pub(crate) indirect_offset: u32,
}

/// The registers of an image that say where in which batches a context is.
pub(crate) type Batches = [u32; 6];

/// Where a context goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resume {
    /// In the ring.
    Ring,
    /// In a batch that the hardware runs where the guest has it.
    Batch(Batches),
    /// In a batch that only a copy of may run.
    Copy(Batches),
}

const BATCH: [usize; 6] =
    [value::BB_ADDR_UDW, value::BB_ADDR, value::BB_STATE, value::SBB_ADDR_UDW, value::SBB_ADDR, value::SBB_STATE];

/// The first value of the engine context: R_PWR_CLK_STATE, or BCS_SWCTRL.
const FIRST_ENGINE_VALUE: usize = value::RPCS;

fn at(page: &[u32], index: usize) -> u32 {
    page.get(index).copied().unwrap_or(0)
}

fn put(page: &mut [u32], index: usize, dword: u32) {
    if let Some(slot) = page.get_mut(index) {
        *slot = dword;
    }
}

impl RingPart {
    /// Takes the values out of a copy of the guest's register page; says what is wrong with them.
    pub(crate) fn parse(engine: Engine, page: &[u32]) -> Result<Self, &'static str> {
        let ctl = at(page, value::RING_CTL);
        let bytes = ring::ctl_bytes(ctl);
        let head = at(page, value::RING_HEAD) & ring::HEAD_ADDR_MASK;
        let tail = at(page, value::RING_TAIL) & ring::TAIL_ADDR_MASK;
        let start = at(page, value::RING_START);
        if ctl & ring::CTL_VALID == 0 {
            return Err("its ring is not enabled");
        }
        if head >= bytes || tail >= bytes || !start.is_multiple_of(4096) {
            return Err("its ring pointers are outside the ring");
        }
        let pml4 = u64::from(at(page, value::PDP0_UDW)) << 32 | u64::from(at(page, value::PDP0_LDW));
        let control = at(page, value::CTX_CONTROL);
        let inhibited = control & (control >> 16) & ring::CTX_RESTORE_INHIBIT != 0;
        Ok(Self {
            head,
            tail,
            start: GgttAddr(start),
            bytes,
            pml4: Gpa(pml4 & !0xFFF),
            restore: if inhibited { Restore::Inhibited } else { Restore::Normal },
            timestamp: at(page, value::CTX_TIMESTAMP),
            resume: Resume::parse(engine, BATCH.map(|index| at(page, index))),
            per_context: at(page, value::BB_PER_CTX_PTR),
            indirect: at(page, value::INDIRECT_CTX),
            indirect_offset: at(page, value::INDIRECT_CTX_OFFSET),
        })
    }
}

impl Resume {
    fn parse(engine: Engine, batches: Batches) -> Self {
        let [upper, first, state, second_upper, second, second_state] = batches;
        // The hardware resumes unprivileged only: a state that says otherwise is forged, or of a copy of ours.
        let audited = |addr: u32, state: u32| {
            addr & ring::BB_ADDR_VALID == 0 || (state & ring::BB_STATE_PPGTT != 0 && engine != Engine::Bcs)
        };
        if !audited(first, state) || !audited(second, second_state) {
            return Self::Copy(batches);
        }
        if first & ring::BB_ADDR_VALID == 0 {
            return Self::Ring;
        }
        let [state, second_state] = [state, second_state].map(|state| state & ring::BB_STATE_PPGTT);
        Self::Batch([upper, first, state, second_upper, second, second_state])
    }
}

/// Where the shadow image points instead of where the guest's does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Redirect {
    pub(crate) ring: GgttAddr,
    pub(crate) root: Hpa,
    pub(crate) per_context: u32,
    pub(crate) indirect: u32,
}

/// Writes the ring part of a shadow's register page: headers and registers are ours, values are the guest's where
/// they are harmless. The first register of the engine context lies among them; its value stays as it is in `page`.
pub(crate) fn build_ring_part(engine: Engine, part: &RingPart, to: Redirect, page: &mut [u32]) {
    let mut fresh = [0u32; DWORDS];
    template(engine, &mut fresh);
    put(&mut fresh, FIRST_ENGINE_VALUE, at(page, FIRST_ENGINE_VALUE));
    for (slot, dword) in page.iter_mut().zip(fresh).take(RING_CONTEXT_DWORDS) {
        *slot = dword;
    }
    for (index, dword) in [
        (value::CTX_CONTROL, control(part.restore)),
        (value::RING_HEAD, part.head),
        (value::RING_TAIL, part.tail),
        (value::RING_START, to.ring.0),
        (value::RING_CTL, part.bytes.saturating_sub(4096) | ring::CTL_VALID),
        (value::BB_PER_CTX_PTR, to.per_context),
        (value::INDIRECT_CTX, to.indirect),
        (value::INDIRECT_CTX_OFFSET, part.indirect_offset),
        (value::CTX_TIMESTAMP, part.timestamp),
        (value::PDP0_UDW, (to.root.0 >> 32) as u32),
        (value::PDP0_LDW, to.root.0 as u32),
    ] {
        put(page, index, dword);
    }
    // Who goes on inside a copy does so by an image of ours.
    let batches = if let Resume::Batch(batches) = part.resume { batches } else { [0; 6] };
    for (index, dword) in BATCH.into_iter().zip(batches) {
        put(page, index, dword);
    }
}

/// Writes the ring part of a shadow's register page for a context that goes on inside a copy: as the hardware left it,
/// `own`, but for the tail and the page tables.
pub(crate) fn resume_ring_part(own: &[u32; RING_CONTEXT_DWORDS], tail: u32, root: Hpa, page: &mut [u32]) {
    for (index, (slot, dword)) in page.iter_mut().zip(own).enumerate() {
        if index != FIRST_ENGINE_VALUE {
            *slot = *dword;
        }
    }
    for (index, dword) in
        [(value::RING_TAIL, tail), (value::PDP0_UDW, (root.0 >> 32) as u32), (value::PDP0_LDW, root.0 as u32)]
    {
        put(page, index, dword);
    }
}

/// The head that a ring part says.
pub(crate) fn ring_head(page: &[u32]) -> u32 {
    at(page, value::RING_HEAD) & ring::HEAD_ADDR_MASK
}

/// How a context left the hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Left {
    pub(crate) head: u32,
    pub(crate) in_batch: bool,
    /// That batch is a copy in the arena.
    pub(crate) in_copy: bool,
    /// CTX_TIMESTAMP, which runs while the context does.
    pub(crate) clock: u32,
}

impl ShadowContext {
    /// Whether the engine part of the guest's image is what the shadow holds; `page` is its register page. Comparing
    /// costs a fraction of an audit. (Watching the pages for stores instead would cost less still, but frames change
    /// between images and page tables, which are watched too.)
    pub(crate) fn same_image(&self, host: &mut dyn Host, vm: VmId, page: &[u32; DWORDS]) -> bool {
        let mut own = [0u32; DWORDS];
        self.image.read(host, context::REGISTER_PAGE, &mut own);
        at(&own, FIRST_ENGINE_VALUE) == at(page, FIRST_ENGINE_VALUE)
            && own.get(RING_CONTEXT_DWORDS..) == page.get(RING_CONTEXT_DWORDS..)
            && self.same_pages(host, vm)
    }

    /// The same for the pages behind the register page.
    fn same_pages(&self, host: &mut dyn Host, vm: VmId) -> bool {
        let (mut own, mut guests) = ([0u8; 4096], [0u8; 4096]);
        self.pages.iter().enumerate().skip(2).all(|(page, guest)| {
            let Some(frame) = self.image.frame(page as u32) else { return false };
            host.read_frame(frame, 0, &mut own);
            host.read(vm, *guest, &mut guests).is_ok() && own == guests
        })
    }

    /// Reads where the hardware stopped. The image is final.
    pub(crate) fn left(&self, host: &mut dyn Host) -> Left {
        let mut page = [0u32; RING_CONTEXT_DWORDS];
        self.image.read(host, context::REGISTER_PAGE, &mut page);
        Left {
            head: ring_head(&page),
            in_batch: at(&page, value::BB_ADDR) & ring::BB_ADDR_VALID != 0,
            in_copy: self.is_in_copy(&page),
            clock: at(&page, value::CTX_TIMESTAMP),
        }
    }

    /// Reads the context's clock. The context is not on the hardware.
    pub(crate) fn clock(&self, host: &mut dyn Host) -> u32 {
        let mut clock = [0];
        self.image.read(host, context::REGISTER_PAGE + 4 * value::CTX_TIMESTAMP as u32, &mut clock);
        let [clock] = clock;
        clock
    }

    /// Moves the ring's tail in the shadow image.
    pub(crate) fn set_tail(&self, host: &mut dyn Host, tail: u32) {
        self.image.write(host, context::REGISTER_PAGE + 4 * value::RING_TAIL as u32, &[tail]);
    }

    /// Copies the ring part back into the guest's image, in the guest's terms. TAIL is the guest's own.
    pub(crate) fn write_back_ring(&mut self, host: &mut dyn Host, vm: VmId) {
        let mut page = [0u32; RING_CONTEXT_DWORDS];
        self.image.read(host, context::REGISTER_PAGE, &mut page);
        let shown = self.shown(&page);
        self.half_done = self.is_in_copy(&page).then_some(shown);
        let Some(guest) = self.pages.get(1) else { return };
        let mut write = |index: usize, dword: u32| {
            // A page that is no longer RAM is the guest's loss.
            let _ = host.write(vm, Gpa(guest.0 + 4 * index as u64), &dword.to_le_bytes());
        };
        for index in [value::CTX_CONTROL, value::RING_HEAD, value::CTX_TIMESTAMP] {
            write(index, at(&page, index));
        }
        for (index, dword) in BATCH.into_iter().zip(shown) {
            write(index, dword);
        }
    }

    /// Where in which batches a ring part is, in the guest's terms.
    fn shown(&self, page: &[u32]) -> Batches {
        let show = |upper: u32, low: u32, state: u32| {
            if low & ring::BB_ADDR_VALID == 0 {
                return [0; 3];
            }
            if state & ring::BB_STATE_PPGTT != 0 && self.window.is_none() {
                return [upper, low, state];
            }
            let state = state & !ring::BB_STATE_PPGTT;
            let (at, space) = match self.guest_address(u64::from(upper) << 32 | u64::from(low & !3)) {
                Some(Target::Global(at)) => (u64::from(at.0), 0),
                Some(Target::Process(at)) => (at.0, ring::BB_STATE_PPGTT),
                // Never seen: not even then is it forgotten that there is a batch to go on with.
                None => (0, 0),
            };
            [(at >> 32) as u32, at as u32 | ring::BB_ADDR_VALID, state | space]
        };
        let [upper, first, state, second_upper, second, second_state] = BATCH.map(|index| at(page, index));
        let ([a, b, c], [d, e, f]) = (show(upper, first, state), show(second_upper, second, second_state));
        [a, b, c, d, e, f]
    }

    /// Makes the arena empty for a submission in an address space. What is left there of another's is wiped: it would show
    /// in the window.
    pub(crate) fn empty_arena(&mut self, host: &mut dyn Host, space: Gpa) {
        self.half_done = None;
        self.arena_used = 0;
        self.copies.clear();
        if core::mem::replace(&mut self.copied_from, space) == space {
            return;
        }
        let high = core::mem::take(&mut self.arena_high);
        let Some(arena) = &self.arena else { return };
        let zeros = [0; 128];
        for at in (0..high).step_by(size_of_val(&zeros)) {
            arena.write(host, at, &zeros);
        }
    }

    /// Where the window shows what the arena holds at a global address.
    pub(crate) fn in_window(&self, at: GgttAddr) -> Option<PpgttAddr> {
        let (arena, window) = (self.arena.as_ref()?, self.window.as_ref()?.address()?);
        Some(PpgttAddr(window.0 + u64::from(at.0.checked_sub(arena.ggtt().0)?)))
    }

    /// What the guest has for an address inside a copy.
    pub(crate) fn guest_address(&self, at: u64) -> Option<Target> {
        let arena = self.arena.as_ref()?;
        let global = at.checked_sub(u64::from(arena.ggtt().0)).filter(|offset| *offset < u64::from(arena.bytes()));
        let offset = global.or_else(|| self.window.as_ref()?.offset(at))?;
        self.copies.guest(offset as u32)
    }

    /// Whether a ring part is of a context inside a copy: only copies run with privilege, and what has a window runs
    /// nothing else.
    fn is_in_copy(&self, page: &[u32]) -> bool {
        let privileged = at(page, value::BB_STATE) & ring::BB_STATE_PPGTT == 0;
        at(page, value::BB_ADDR) & ring::BB_ADDR_VALID != 0 && (privileged || self.window.is_some())
    }

    /// Takes the engine state of an image: the register page from the ring part on, and what follows it. Of the ring
    /// part only the one value that is engine state.
    pub(crate) fn put_engine_part(&self, host: &mut dyn Host, ring_part: &[u32], engine_part: &[u32]) {
        let place = |dword: usize| context::REGISTER_PAGE + 4 * dword as u32;
        self.image.write(host, place(FIRST_ENGINE_VALUE), &[at(ring_part, FIRST_ENGINE_VALUE)]);
        self.image.write(host, place(RING_CONTEXT_DWORDS), engine_part);
    }

    /// Sets where the guest's ring goes on.
    pub(crate) fn set_guest_head(&self, host: &mut dyn Host, vm: VmId, head: u32) {
        if let Some(guest) = self.pages.get(1) {
            let _ = host.write(vm, Gpa(guest.0 + 4 * value::RING_HEAD as u64), &head.to_le_bytes());
        }
    }

    /// Copies the engine state back into the guest's image, if it is newer here. Like hardware, which may write it
    /// until another context is loaded, this happens when the guest submits another context.
    pub(crate) fn write_back_engine(&mut self, host: &mut dyn Host, vm: VmId, stats: &mut Stats) {
        if !core::mem::take(&mut self.newer) {
            return;
        }
        let mut bytes = [0u8; 4096];
        for (page, guest) in self.pages.iter().enumerate().skip(1) {
            let skip = if page == 1 { 4 * FIRST_ENGINE_VALUE } else { 0 };
            let Some(frame) = self.image.frame(page as u32) else { return };
            host.read_frame(frame, 0, &mut bytes);
            let Some(rest) = bytes.get(skip..) else { return };
            let _ = host.write(vm, Gpa(guest.0 + skip as u64), rest);
            stats.image_bytes_out += rest.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> [u32; DWORDS] {
        let mut page = [0; DWORDS];
        page[value::RING_CTL] = 0x3000 | 1;
        page[value::RING_START] = 0x10_0000;
        page[value::RING_HEAD] = 0x20 | 3 << 21;
        page[value::RING_TAIL] = 0x40;
        page[value::PDP0_LDW] = 0x1234_5000;
        page[value::CTX_CONTROL] = 0x0009_0009;
        page
    }

    #[test]
    fn values_are_taken_and_headers_are_ours() {
        let part = RingPart::parse(Engine::Rcs, &page()).unwrap();
        assert_eq!((part.head, part.tail, part.bytes), (0x20, 0x40, 0x4000));
        assert_eq!((part.pml4, part.restore), (Gpa(0x1234_5000), Restore::Inhibited));
        let mut shadow = [0xFFFF_FFFF; DWORDS];
        let to = Redirect { ring: GgttAddr(0xFC00_0000), root: Hpa(0x1_0000_2000), per_context: 0, indirect: 0 };
        build_ring_part(Engine::Rcs, &part, to, &mut shadow);
        assert_eq!(shadow[1], 0x1100_101B);
        assert_eq!(shadow[value::RING_START], 0xFC00_0000);
        assert_eq!((shadow[value::PDP0_UDW], shadow[value::PDP0_LDW]), (1, 0x2000));
        assert_eq!(shadow[value::RING_CTL], 0x3001);
        assert_eq!(shadow[RING_CONTEXT_DWORDS], 0xFFFF_FFFF);
    }

    #[test]
    fn forged_resumption_is_known() {
        let mut forged = page();
        forged[value::BB_ADDR] = 0x1000 | ring::BB_ADDR_VALID;
        let is_copy = |engine, page: &[u32]| matches!(RingPart::parse(engine, page).unwrap().resume, Resume::Copy(_));
        assert!(is_copy(Engine::Rcs, &forged));
        forged[value::BB_STATE] = u32::MAX;
        let Resume::Batch(batches) = RingPart::parse(Engine::Rcs, &forged).unwrap().resume else { panic!() };
        assert_eq!(batches[2], ring::BB_STATE_PPGTT);
        assert!(is_copy(Engine::Bcs, &forged));
        // A second level that is privileged inside a first level that is not.
        forged[value::SBB_ADDR] = 0x1000 | ring::BB_ADDR_VALID;
        assert!(is_copy(Engine::Rcs, &forged));
        forged[value::SBB_STATE] = ring::BB_STATE_PPGTT;
        assert!(!is_copy(Engine::Rcs, &forged));
    }

    #[test]
    fn ring_pointers_must_lie_in_the_ring() {
        for (index, bad) in
            [(value::RING_HEAD, 0x4000), (value::RING_TAIL, 0x4000), (value::RING_CTL, 0x3000), (value::RING_START, 4)]
        {
            let mut page = page();
            page[index] = bad;
            assert!(RingPart::parse(Engine::Rcs, &page).is_err(), "{index:#x}");
        }
    }
}
