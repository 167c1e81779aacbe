//! The virtual execlists of one engine: what the guest submitted, what it was told, and its shadow contexts.

use super::context::ShadowContext;
use crate::gtt::Pin;
use arrayvec::ArrayVec;
use gvt_defs::Nanos;
use gvt_defs::execlist::{CsbEntry, Descriptor, status};

/// Shadow contexts kept per engine and vGPU.
pub(crate) const SLOTS: usize = 4;

/// A submission: one or two contexts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    elements: [Descriptor; 2],
    second: bool,
}

impl List {
    /// From the four dwords in the order they are written.
    pub(crate) fn from_elsp(dwords: [u32; 4]) -> Self {
        let [high1, low1, high0, low0] = dwords;
        Self { elements: [Descriptor::from_parts(low0, high0), Descriptor::from_parts(low1, high1)], second: false }
    }

    /// The first context.
    pub(crate) fn first(&self) -> Descriptor {
        let [first, _] = self.elements;
        first
    }

    /// The context that runs or waits.
    pub(crate) fn current(&self) -> Descriptor {
        let [first, second] = self.elements;
        if self.second { second } else { first }
    }

    /// Goes on to the second context, if there is one.
    pub(crate) fn advance(&mut self) -> Option<Descriptor> {
        let [_, second] = self.elements;
        if self.second || !second.valid() {
            return None;
        }
        self.second = true;
        Some(second)
    }
}

/// Where a prepared context is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Ready to be given to the hardware.
    Waiting,
    /// On the hardware, or submitted to it.
    Hardware,
}

/// The context that the guest believes to be running.
#[derive(Debug)]
pub(crate) struct Work {
    /// Its shadow.
    pub(crate) slot: usize,
    /// Holds its page-table root in the shadow page tables.
    pub(crate) pin: Pin,
    /// The last head known from an image that the hardware had left: it executes nothing before that.
    pub(crate) head: u32,
    /// The guest's ring is copied up to here.
    pub(crate) tail: u32,
    /// Where it is.
    pub(crate) place: Place,
    /// The tail moved while it was on the hardware: submit again.
    pub(crate) resubmit: bool,
    /// The guest's ring holds more than was taken: prepare again once it has run to `tail`.
    pub(crate) again: Option<Again>,
}

impl Work {
    /// Whether the hardware has to leave it so that its ring can be copied again.
    pub(crate) fn is_to_leave(&self) -> bool {
        matches!(self.again, Some(Again::OnceOut(_)))
    }
}

/// Where the guest's ring goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Again {
    /// Where the hardware stopped.
    AtHead,
    /// The same, but the hardware has to leave what it runs of it first: what the guest has there now is not what was
    /// copied (design D16).
    OnceOut(Limit),
    /// At this offset; the hardware stopped at a no-op put behind it.
    At(u32),
}

/// Whether a context that has to leave for the sake of its own guest has a deadline (design D13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// While others wait: its tail has not moved. (i915's heartbeat submits a batch that takes long like that, and lets
    /// it run for seconds.)
    Others,
    /// In any case: its tail went back.
    Always,
}

/// The state of one virtual engine.
#[derive(Debug, Default)]
pub(crate) struct VirtEngine {
    /// Dwords of the submission being written.
    pub(crate) elsp: ArrayVec<u32, 4>,
    /// The list that the guest believes active.
    pub(crate) active: Option<List>,
    /// A list that replaces it at the next arbitration point.
    pub(crate) pending: Option<List>,
    /// The current context, once prepared.
    pub(crate) work: Option<Work>,
    /// It broke a rule or hung: nothing runs until the guest resets the engine.
    pub(crate) failed: bool,
    /// Shadow contexts, in slots that keep their numbers.
    pub(crate) slots: [Option<ShadowContext>; SLOTS],
    /// The slot that ran last.
    pub(crate) last: Option<usize>,
    /// The slot that a submission is being put into.
    pub(crate) preparing: Option<usize>,
    /// Status entries not yet told; the first has waited since then.
    pub(crate) held: ArrayVec<CsbEntry, 8>,
    /// When the first held entry came up.
    pub(crate) held_since: Nanos,
    /// Counts uses of slots, to find the one unused longest.
    pub(crate) clock: u64,
    /// Engine time used, in 1024ths of nanoseconds divided by weight.
    pub(crate) virtual_time: u64,
    /// How far it was behind its fair share when its work ended.
    pub(crate) owed: u64,
    /// When that was.
    pub(crate) rested: Nanos,
    /// It came again soon, the last time.
    pub(crate) prompt: bool,
}

/// Whether a status entry may wait for the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// It tells only that a submission became active: at most one tick.
    MayWait,
    /// Everything held goes out now.
    Now,
}

/// What an entry allows.
pub(crate) fn patience(entry: CsbEntry) -> Patience {
    if entry.promotes() && entry.status & CsbEntry::COMPLETE == 0 { Patience::MayWait } else { Patience::Now }
}

impl VirtEngine {
    /// Whether it has a context for the hardware.
    pub(crate) fn waiting(&self) -> bool {
        !self.failed && self.work.as_ref().is_some_and(|work| work.place == Place::Waiting)
    }

    /// Whether its guest waits for the context that is on the hardware to leave, so that it is copied again.
    pub(crate) fn changed(&self) -> bool {
        let same = |(list, active): (&List, &List)| list.first().same_context(active.current());
        self.work.as_ref().is_some_and(|work| work.again == Some(Again::OnceOut(Limit::Always)))
            || self.pending.as_ref().zip(self.active.as_ref()).is_some_and(same)
    }

    /// Whether its guest has given it something to do.
    pub(crate) fn wants(&self) -> bool {
        self.active.is_some() && !self.failed
    }

    /// EXECLIST_STATUS, low and high.
    pub(crate) fn status(&self) -> (u32, u32) {
        let Some(active) = &self.active else { return (0, 0) };
        let element = if active.second { status::ACTIVE_ELEMENT1 } else { status::ACTIVE_ELEMENT0 };
        let queued = if self.pending.is_some() { status::QUEUE_FULL | status::LIST1_VALID } else { 0 };
        let low = element | queued | status::LIST0_VALID | status::LIST0_ACTIVE | status::ARBITRATION_ENABLE;
        (low, active.current().id())
    }

    /// Puts an entry behind those that wait.
    pub(crate) fn hold(&mut self, entry: CsbEntry, now: Nanos) {
        if self.held.is_empty() {
            self.held_since = now;
        }
        // Never more than six: every entry but promotions empties the queue.
        let _ = self.held.try_push(entry);
    }

    /// The slot that shadows the context at `lrca`, or the one to give to it.
    pub(crate) fn slot_for(&mut self, lrca: gvt_defs::GgttAddr) -> (usize, Fit) {
        self.clock += 1;
        let found = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.lrca == lrca));
        if let Some(index) = found {
            return (index, Fit::Same);
        }
        let busy = self.work.as_ref().map(|work| work.slot);
        let oldest = self
            .slots
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != busy)
            // One that is half done cannot go on elsewhere.
            .min_by_key(|(_, slot)| slot.as_ref().map_or((false, 0), |slot| (slot.half_done.is_some(), slot.used)));
        (oldest.map_or(0, |(index, _)| index), Fit::Other)
    }

    /// A slot.
    pub(crate) fn slot(&self, index: usize) -> Option<&ShadowContext> {
        self.slots.get(index)?.as_ref()
    }

    /// A slot.
    pub(crate) fn slot_mut(&mut self, index: usize) -> Option<&mut ShadowContext> {
        self.slots.get_mut(index)?.as_mut()
    }
}

/// Whether a slot holds the context asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fit {
    Same,
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use gvt_defs::GgttAddr;

    #[test]
    fn lists_take_the_order_of_the_register_and_advance_once() {
        let a = Descriptor::new(GgttAddr(0x1000), 1);
        let b = Descriptor::new(GgttAddr(0x2000), 2);
        let mut list = List::from_elsp([b.id(), b.low(), a.id(), a.low()]);
        assert_eq!((list.first(), list.current()), (a, a));
        assert_eq!(list.advance(), Some(b));
        assert_eq!((list.current(), list.advance()), (b, None));
        let mut single = List::from_elsp([0, 0, a.id(), a.low()]);
        assert_eq!(single.advance(), None);
    }

    #[test]
    fn promotions_wait_and_completions_do_not() {
        let entry = |status| CsbEntry { status, id: 0 };
        assert_eq!(patience(entry(1)), Patience::MayWait);
        assert_eq!(patience(entry(0x8002)), Patience::MayWait);
        for status in [0x14, 0x18, 0x12] {
            assert_eq!(patience(entry(status)), Patience::Now);
        }
    }
}
