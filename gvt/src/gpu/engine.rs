//! One physical engine: what was submitted to it and what its status buffer says since. Every submission is one
//! guest context followed by the parking context, or the parking context alone.

use crate::gpu::parking::{self, Parking, Stay};
use crate::gpu::pool::Block;
use crate::gpu::switch::Loaded;
use crate::host::Host;
use crate::hw::Hw;
use arrayvec::ArrayVec;
use gvt_defs::execlist::{CSB_ENTRIES, CsbEntry, Descriptor, HWSP_CSB, HWSP_CSB_WRITE, csb_next};
use gvt_defs::{Engine, GgttAddr, Nanos, ring};

/// A submitted list: a guest context, if any, then parking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct List {
    guest: Option<u32>,
    stay: Stay,
}

/// How far the active list is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Active {
    /// Its guest context is on the hardware.
    Guest(u32, Stay),
    /// Parking is.
    Parked(Stay),
    /// Nothing is.
    Idle,
}

/// Whether the engine does as it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    Well,
    /// A flush of its TLB did not end: it has to be reset.
    Stuck,
    /// Nor did a reset. Who was on it last is on it for ever, and nobody else is.
    Dead,
}

/// What the engine may hold that no image does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Traces {
    Nothing,
    /// What a vGPU's work has left; one that is gone, or the firmware, has no number.
    Of(Option<usize>),
}

/// What the status buffer told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A guest context left the hardware for another context; its image is final.
    Out(u32),
    /// The status buffer makes no sense: the engine must be reset.
    Broken,
}

/// A vGPU's stay on the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Index of the vGPU.
    pub(crate) vgpu: usize,
    /// When its context was loaded.
    pub(crate) since: Nanos,
    /// The context's own clock then.
    pub(crate) clock: u32,
    /// Up to when its time is counted.
    pub(crate) counted: Nanos,
    /// It has to go.
    pub(crate) asked: Option<Ask>,
}

/// An idle engine that is kept for a vGPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Index of the vGPU.
    pub(crate) vgpu: usize,
    /// Since when.
    pub(crate) since: Nanos,
}

/// A wish that the guest context leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// Since when somebody waits for that.
    pub(crate) since: Nanos,
    /// Whether the hardware was told.
    pub(crate) sent: Sent,
}

/// Whether the hardware was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    No,
    Yes,
}

/// The engine.
pub(crate) struct PhysEngine {
    engine: Engine,
    /// Its hardware status page.
    status: Block,
    parking: Parking,
    active: Active,
    pending: Option<List>,
    csb_read: u32,
    traces: Traces,
    pub(crate) health: Health,
    /// Since when somebody waits for them to be taken away.
    pub(crate) washing: Option<Nanos>,
    /// Its switch registers.
    pub(crate) loaded: Loaded,
    /// The vGPU whose registers are loaded.
    pub(crate) owner: Option<usize>,
    /// When another one became its owner.
    pub(crate) changed: Option<Nanos>,
    /// Who is on it.
    pub(crate) run: Option<Run>,
    /// Who used it last, since when without a break.
    pub(crate) slice: Option<(usize, Nanos)>,
    /// For whom it is kept although others wait.
    pub(crate) kept: Option<Kept>,
    /// What the virtual time of a vGPU with a fair share of it would be.
    pub(crate) virtual_time: u64,
    /// Whether the registers of an image that the hardware saved are known.
    pub(crate) learnt: bool,
    /// RING_IMR as written.
    imr: u32,
}

impl PhysEngine {
    pub(crate) fn new(engine: Engine, status: Block, parking: Parking) -> Self {
        Self {
            engine,
            status,
            parking,
            active: Active::Idle,
            pending: None,
            csb_read: CSB_ENTRIES - 1,
            traces: Traces::Of(None),
            health: Health::Well,
            washing: None,
            loaded: Loaded::unknown(),
            owner: None,
            changed: None,
            run: None,
            slice: None,
            kept: None,
            virtual_time: 0,
            learnt: false,
            imr: u32::MAX,
        }
    }

    /// The status page's graphics address.
    pub(crate) fn status_page(&self) -> GgttAddr {
        self.status.ggtt()
    }

    /// Makes the software side agree with an engine that was just reset.
    pub(crate) fn restart(&mut self, host: &mut dyn Host) {
        self.health = Health::Well;
        self.active = Active::Idle;
        self.pending = None;
        self.washing = None;
        self.csb_read = CSB_ENTRIES - 1;
        self.loaded.forget();
        self.owner = None;
        self.run = None;
        self.imr = u32::MAX;
        self.status.write(host, HWSP_CSB_WRITE, &[self.csb_read]);
        self.parking.restart(host);
    }

    /// It did not even reset: its owner stays, and nothing is submitted to it any more.
    pub(crate) fn give_up(&mut self) {
        self.health = Health::Dead;
        self.pending = None;
        self.washing = None;
        self.run = None;
        self.kept = None;
    }

    /// Copies the parking context's image, page 0 left out. It is the hardware's own writing once a guest context has
    /// been loaded after it.
    pub(crate) fn parking_image(&self, host: &mut dyn Host, dwords: &mut [u32]) {
        self.parking.read_image(host, dwords);
    }

    #[cfg(test)]
    pub(crate) fn parking(&mut self) -> &mut Parking {
        &mut self.parking
    }

    /// Whether a submission may be made: the last one has been seen to start.
    pub(crate) fn accepts(&self) -> bool {
        self.pending.is_none() && self.health != Health::Dead
    }

    /// Whether it has anything to do: it may interrupt.
    pub(crate) fn awake(&self) -> bool {
        (self.active != Active::Idle || self.pending.is_some()) && self.health != Health::Dead
    }

    /// Whether a vGPU may run on it: nothing is left in it of what others did.
    pub(crate) fn is_clean_for(&self, vgpu: usize) -> bool {
        self.engine != Engine::Rcs || self.traces == Traces::Nothing || self.is_marked_by(vgpu)
    }

    /// Whether something may be left in it of a vGPU.
    pub(crate) fn is_marked_by(&self, vgpu: usize) -> bool {
        self.marked_by() == Some(vgpu)
    }

    /// The vGPU of which something may be left in it.
    pub(crate) fn marked_by(&self) -> Option<usize> {
        let Traces::Of(vgpu) = self.traces else { return None };
        vgpu.filter(|_| self.engine == Engine::Rcs)
    }

    /// Whether a stay that takes it away is under way.
    pub(crate) fn is_washing(&self) -> bool {
        self.active == Active::Parked(Stay::Wash)
    }

    /// A vGPU's number may be given to another one from now on.
    pub(crate) fn forget(&mut self, vgpu: usize) {
        if self.is_marked_by(vgpu) {
            self.traces = Traces::Of(None);
        }
        self.owner = self.owner.filter(|owner| *owner != vgpu);
        self.slice = self.slice.filter(|(last, _)| *last != vgpu);
        self.kept = self.kept.filter(|kept| kept.vgpu != vgpu);
    }

    /// Gives the hardware a guest context of a vGPU, for which it `is_clean`. `accepts` must hold.
    pub(crate) fn submit<W: Hw>(
        &mut self,
        host: &mut dyn Host,
        hw: &mut W,
        vgpu: usize,
        context: Descriptor,
        stay: Stay,
    ) {
        let parking = self.parking.next(host, stay);
        self.traces = Traces::Of(Some(vgpu));
        self.washing = None;
        self.pending = Some(List { guest: Some(context.id()), stay });
        self.write_elsp(hw, context, parking);
    }

    /// Makes the hardware give up the guest context at its next arbitration point. `accepts` must hold.
    pub(crate) fn park<W: Hw>(&mut self, host: &mut dyn Host, hw: &mut W, stay: Stay) {
        let parking = self.parking.next(host, stay);
        self.pending = Some(List { guest: None, stay });
        self.write_elsp(hw, parking, Descriptor(0));
    }

    fn write_elsp<W: Hw>(&mut self, hw: &mut W, first: Descriptor, second: Descriptor) {
        let elsp = self.engine.base() + ring::ELSP;
        for dword in [second.id(), second.low(), first.id(), first.low()] {
            hw.write(elsp, dword);
        }
    }

    /// Reads what is new in the status buffer. It lies in memory: no register access.
    pub(crate) fn poll(&mut self, host: &mut dyn Host) -> ArrayVec<Event, 6> {
        let mut events = ArrayVec::new();
        let write = self.status.dword(host, HWSP_CSB_WRITE) & 7;
        if write >= CSB_ENTRIES {
            return events;
        }
        while self.csb_read != write && !events.is_full() {
            self.csb_read = csb_next(self.csb_read);
            let mut entry = [0; 2];
            self.status.read(host, HWSP_CSB + 8 * self.csb_read, &mut entry);
            let [status, id] = entry;
            let washing = self.is_washing();
            if let Some(event) = self.step(CsbEntry { status, id }) {
                events.push(event);
            }
            // The parking context came to its end: it has executed all that it was given, the wash last. (A guest context
            // that was submitted meanwhile is of the vGPU whose traces these were, and leaves new ones.)
            if washing && self.active == Active::Idle && self.pending.is_none() && self.parking.is_washed(host) {
                self.traces = Traces::Nothing;
                self.washing = None;
            }
        }
        events
    }

    fn step(&mut self, entry: CsbEntry) -> Option<Event> {
        if entry.promotes() {
            let Some(list) = self.pending.take() else { return Some(Event::Broken) };
            let before = core::mem::replace(&mut self.active, Active::of(list));
            return match (before, list.guest) {
                (Active::Guest(old, _), Some(new)) if old == new => None,
                (Active::Guest(old, _), _) => Some(Event::Out(old)),
                _ => None,
            };
        }
        match self.active {
            Active::Guest(tag, stay) => {
                self.active = Active::Parked(stay);
                // The same context is submitted again already: it has not left.
                (self.pending.and_then(|list| list.guest) != Some(tag)).then_some(Event::Out(tag))
            }
            Active::Parked(_) => {
                self.active = Active::Idle;
                None
            }
            Active::Idle => Some(Event::Broken),
        }
    }

    /// Writes RING_IMR if it changes; `mask` is in bank positions.
    pub(crate) fn set_imr<W: Hw>(&mut self, hw: &mut W, mask: u32) {
        if self.imr != mask {
            self.imr = mask;
            hw.write(self.engine.base() + ring::IMR, mask);
        }
    }
}

impl Active {
    const fn of(list: List) -> Self {
        match list.guest {
            Some(tag) => Self::Guest(tag, list.stay),
            None => Self::Parked(list.stay),
        }
    }
}

/// What the status buffer calls slot `slot` of vGPU `vgpu`. Never equal to a parking context's.
pub(crate) const fn context_tag(vgpu: usize, slot: usize) -> u32 {
    ((vgpu as u32 & 0x3F) << 4 | slot as u32 & 0xF) + 1
}

const _: () = assert!(context_tag(0x3F, 0xF) < parking::tag(Engine::Rcs));
