//! The parking context of an engine: the mediator's own, a ring of no-ops. It runs behind every guest context, so
//! that the guest's image is final when it is read, and what a fresh guest context inherits is never another
//! guest's state (design D10). On the render engine it also runs the wash.

use crate::gpu::pool::{Block, Pool};
use crate::gpu::wash::{START_DWORDS, Wash};
use crate::host::{Host, NoFrame};
use crate::hw::Hw;
use gvt_defs::context::{self, value};
use gvt_defs::execlist::Descriptor;
use gvt_defs::{Engine, masked, ring};

/// What the status buffer calls the parking context of an engine.
pub(crate) const fn tag(engine: Engine) -> u32 {
    0xFFFE0 | engine.index() as u32
}

/// Bytes of ring that one stay executes.
const STEP: u32 = 4 * START_DWORDS as u32;
const RING_BYTES: u32 = 4096;

/// What a stay does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stay {
    /// Nothing.
    Rest,
    /// On the render engine, it takes away what the last guest's work has left.
    Wash,
}

/// The context.
#[derive(Debug)]
pub(crate) struct Parking {
    engine: Engine,
    image: Block,
    /// Steps: no-ops, or the start of the wash.
    ring: Block,
    tail: u32,
    /// Only render work leaves anything.
    wash: Option<Wash>,
}

impl Parking {
    pub(crate) fn new<W: Hw>(
        host: &mut dyn Host,
        hw: &mut W,
        pool: &mut Pool,
        engine: Engine,
    ) -> Result<Self, NoFrame> {
        let image = pool.alloc(host, hw, engine.info().context_pages)?;
        let wash = match engine {
            Engine::Rcs => Wash::new(host, hw, pool).map(Some),
            _ => Ok(None),
        };
        let (ring, wash) = match (pool.alloc(host, hw, 1), wash) {
            (Ok(ring), Ok(wash)) => (ring, wash),
            (ring, wash) => {
                [Some(image), ring.ok()].into_iter().flatten().for_each(|block| pool.free(host, hw, block));
                wash.ok().flatten().into_iter().for_each(|wash| wash.free(host, hw, pool));
                return Err(NoFrame);
            }
        };
        let parking = Self { engine, image, ring, tail: 0, wash };
        parking.write_image(host);
        Ok(parking)
    }

    fn write_image(&self, host: &mut dyn Host) {
        let mut page = [0u32; context::DWORDS];
        template(self.engine, &mut page);
        set(&mut page, value::CTX_CONTROL, control(Restore::Inhibited));
        set(&mut page, value::RING_START, self.ring.ggtt().0);
        set(&mut page, value::RING_CTL, ring::CTL_VALID);
        set(&mut page, value::RING_HEAD, self.tail);
        set(&mut page, value::RING_TAIL, self.tail);
        self.image.write(host, context::REGISTER_PAGE, &page);
    }

    /// Gives the next stay something to execute and tells the descriptor to submit. Steps of stays that the hardware
    /// never came to are executed then, too.
    pub(crate) fn next(&mut self, host: &mut dyn Host, stay: Stay) -> Descriptor {
        if let Some(wash) = &self.wash {
            let step = if stay == Stay::Wash { wash.arm(host) } else { [0; START_DWORDS] };
            self.ring.write(host, self.tail, &step);
        }
        self.tail = (self.tail + STEP) % RING_BYTES;
        self.image.write(host, context::REGISTER_PAGE + 4 * value::RING_TAIL as u32, &[self.tail]);
        Descriptor::new(self.image.ggtt(), tag(self.engine))
    }

    /// Whether the last wash that was asked for has been done.
    pub(crate) fn is_washed(&self, host: &mut dyn Host) -> bool {
        self.wash.as_ref().is_none_or(|wash| wash.is_done(host))
    }

    #[cfg(test)]
    pub(crate) fn wash(&self) -> Option<&Wash> {
        self.wash.as_ref()
    }

    /// Copies the image, page 0 left out.
    pub(crate) fn read_image(&self, host: &mut dyn Host, dwords: &mut [u32]) {
        self.image.read(host, context::REGISTER_PAGE, dwords);
    }

    /// After a reset of the engine the image may be half written: it starts afresh.
    pub(crate) fn restart(&mut self, host: &mut dyn Host) {
        self.tail = 0;
        self.write_image(host);
    }
}

/// Whether a context's engine state is loaded from its image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restore {
    Inhibited,
    Normal,
}

/// CTX_CONTROL of a context: synchronous switches inhibited, as every driver has it.
pub(crate) const fn control(restore: Restore) -> u32 {
    let base = masked::enable(ring::CTX_INHIBIT_SYN_CTX_SWITCH) | masked::disable(ring::CTX_SAVE_INHIBIT);
    match restore {
        Restore::Inhibited => base | masked::enable(ring::CTX_RESTORE_INHIBIT),
        Restore::Normal => base | masked::disable(ring::CTX_RESTORE_INHIBIT),
    }
}

/// Fills a register page with the headers and register offsets that an engine expects; values stay.
pub(crate) fn template(engine: Engine, page: &mut [u32; context::DWORDS]) {
    for group in context::layout(engine) {
        set(page, group.header, group.header_dword());
        for index in 0..group.registers.len() {
            if let Some((at, offset)) = group.pair(engine, index) {
                set(page, at, offset);
            }
        }
    }
    set(page, context::end_position(engine), gvt_defs::mi::header(gvt_defs::mi::BATCH_BUFFER_END));
}

fn set(page: &mut [u32], at: usize, dword: u32) {
    if let Some(slot) = page.get_mut(at) {
        *slot = dword;
    }
}
