//! Following a ring whose context was prepared before. What the hardware may fetch is append-only (design D16): the
//! copy is added to behind the last tail, and whatever else the guest does with its ring waits until the hardware has
//! left the context.

use super::copy::Copied;
use super::{Desk, Refusal};
use crate::hw::Hw;
use crate::vgpu::context::RingPart;
use crate::vgpu::execlist::{Again, Limit, Place};
use gvt_defs::GgttAddr;
use gvt_defs::context::{self, CACHELINE, RING_CONTEXT_DWORDS};

/// What a new tail means for the copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    /// The span between the last tail and the new one holds nothing that the hardware has to execute.
    Append,
    /// It goes on, but the hardware may not be past what it would overwrite.
    NoRoom,
    /// It has not moved: drivers say so of a context that goes on, but what is in the ring may be new.
    Same,
    /// It lies before: what is copied already is not what the guest means.
    Back,
}

/// Bytes from one offset of a ring forward to another.
pub(in crate::mediator) fn distance(from: u32, to: u32, bytes: u32) -> u32 {
    if to >= from { to - from } else { bytes.saturating_sub(from - to) }
}

/// What `tail` means for a ring that is copied from `head`, or earlier, to `from`.
fn change(head: u32, from: u32, tail: u32, bytes: u32) -> Change {
    let (held, added) = (distance(head, from, bytes), distance(from, tail, bytes));
    if added == 0 {
        Change::Same
    } else if held.saturating_add(added).saturating_add(CACHELINE) <= bytes {
        Change::Append
    } else if added <= bytes / 2 {
        Change::NoRoom
    } else {
        Change::Back
    }
}

impl<W: Hw> Desk<'_, W> {
    /// Follows the tail of the context that is active.
    pub(in crate::mediator) fn extend(&mut self) -> Result<(), Refusal> {
        let virt = self.vgpu.engines.get(self.engine);
        let Some(work) = &virt.work else { return Ok(()) };
        if work.again.is_some() {
            // All that the guest has added by then is taken when what runs is done, or has left.
            return Ok(());
        }
        let (slot, head, from, place) = (work.slot, work.head, work.tail, work.place);
        let part = self.same_ring(slot)?;
        let again = match (change(head, from, part.tail, part.bytes), place) {
            (Change::Append, _) => match self.copy_ring(slot, part.pml4, (from, part.tail)) {
                Ok(copied) => {
                    self.append(slot, copied);
                    return Ok(());
                }
                // No room beside what is running: from the start again, once that is done.
                Err(Refusal::NoRoom) => Again::AtHead,
                Err(refusal) => return Err(refusal),
            },
            (Change::NoRoom, _) => Again::AtHead,
            (Change::Same | Change::Back, Place::Waiting) => return self.rebuild(),
            (Change::Same, Place::Hardware) => Again::OnceOut(Limit::Others),
            (Change::Back, Place::Hardware) => Again::OnceOut(Limit::Always),
        };
        self.wait(again);
        Ok(())
    }

    /// What the guest has there now is taken later.
    fn wait(&mut self, again: Again) {
        if let Some(work) = &mut self.vgpu.engines.get_mut(self.engine).work {
            work.again = Some(again);
        }
    }

    /// Copies the ring of the context that is active again, from where the hardware left it. The context is not on the
    /// hardware. Copies of batches stay where they are, and so do workaround buffers: the hardware may have stopped
    /// inside one.
    pub(in crate::mediator) fn rebuild(&mut self) -> Result<(), Refusal> {
        let virt = self.vgpu.engines.get_mut(self.engine);
        let Some(work) = &mut virt.work else { return Ok(()) };
        if work.place != Place::Waiting {
            return Err(Refusal::Malformed("its ring changed while it ran"));
        }
        work.again = None;
        let slot = work.slot;
        let Some(shadow) = virt.slot(slot) else { return Ok(()) };
        let left = shadow.left(self.host);
        let part = self.same_ring(slot)?;
        let span = (left.head, part.tail);
        let copied = if left.in_copy {
            self.copy_ring_beside(slot, part.pml4, span)?
        } else {
            match self.copy_ring(slot, part.pml4, span) {
                // Nothing in the arena is needed but the workaround buffers: all of it anew.
                Err(Refusal::NoRoom) => return self.start_over(slot, left.head),
                copied => copied?,
            }
        };
        if let Some(work) = &mut self.vgpu.engines.get_mut(self.engine).work {
            work.head = left.head;
        }
        self.append(slot, copied);
        Ok(())
    }

    /// Prepares the context that is active from the beginning, with the head that the hardware left.
    fn start_over(&mut self, slot: usize, head: u32) -> Result<(), Refusal> {
        let vm = self.vgpu.vm;
        let virt = self.vgpu.engines.get_mut(self.engine);
        let Some(active) = virt.active else { return Ok(()) };
        if let Some(shadow) = virt.slot_mut(slot) {
            shadow.write_back_ring(self.host, vm);
            shadow.set_guest_head(self.host, vm, head);
        }
        if let Some(work) = virt.work.take() {
            self.vgpu.gtt.ppgtt.release(self.host, work.pin);
        }
        self.prepare(active.current())
    }

    /// The guest's register page of a context whose ring must be where it was.
    fn same_ring(&mut self, slot: usize) -> Result<RingPart, Refusal> {
        let shadow = self.slot_mut(slot).ok_or(Refusal::NoRoom)?;
        let (lrca, ring) = (shadow.lrca, shadow.guest_ring);
        let mut page = [0u32; RING_CONTEXT_DWORDS];
        self.read_ggtt(GgttAddr(lrca.0 + context::REGISTER_PAGE), &mut page)?;
        let part = RingPart::parse(self.engine, &page).map_err(Refusal::Malformed)?;
        if ring == (part.start, part.bytes) { Ok(part) } else { Err(Refusal::Malformed("its ring moved while it ran")) }
    }

    /// The copy goes to a new tail.
    fn append(&mut self, slot: usize, copied: Copied) {
        let virt = self.vgpu.engines.get_mut(self.engine);
        if let Some(shadow) = virt.slots.get(slot).and_then(Option::as_ref) {
            shadow.set_tail(self.host, copied.tail);
        }
        if let Some(work) = &mut virt.work {
            work.tail = copied.tail;
            work.again = copied.resume.map(Again::At);
            work.resubmit = work.place == Place::Hardware;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_ahead_and_short_of_the_head_is_appended() {
        const BYTES: u32 = 0x4000;
        for (head, from, tail, want) in [
            (0, 0x100, 0x108, Change::Append),
            (0, 0x100, 0x100, Change::Same),
            (0, 0x100, 0xF8, Change::Back),
            (0x1000, 0x1000, 0xFF8, Change::Back),
            (0, 0x100, BYTES - 0x40, Change::Append),
            (0, 0x3000, BYTES - 0x38, Change::NoRoom),
            (0x100, 0x3000, 0xC0, Change::Append),
            (0x100, 0x3000, 0xC8, Change::NoRoom),
            (0x3000, 0x100, 0x2FC0, Change::Append),
            (0x3000, 0x100, 0x3008, Change::Back),
        ] {
            assert_eq!(change(head, from, tail, BYTES), want, "{head:#x} {from:#x} {tail:#x}");
        }
    }
}
