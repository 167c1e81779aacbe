//! The execlist machine: taking submissions, switching contexts, telling about it.

use gvt_defs::execlist::{CsbEntry, Descriptor, HWSP_CSB, HWSP_CSB_WRITE, csb_next, status};
use gvt_defs::trace::{By, Kind};
use gvt_defs::{Engine, event, ring};

use crate::device::Device;
use crate::engine::Exec;
use crate::findings::Finding;
use crate::profile::Save;
use crate::translate::Space;
use crate::witness::Purpose;

impl Exec<'_> {
    /// Looks at the pending submission: starts it on an idle engine; if it names the running context, takes the new
    /// tail at once (lite restore); else leaves it for the next arbitration point.
    pub fn accept(&mut self) {
        let engine = self.state.engine;
        let Some(list) = self.device.port(engine).pending else {
            return;
        };
        match self.state.running {
            None => {
                self.device.port(engine).pending = None;
                self.status(CsbEntry { status: CsbEntry::IDLE_ACTIVE, id: 0 }, Some(&list));
                self.start(list);
            }
            Some(running) if list[0].same_context(running) && !list[0].force_restore() && !self.state.halted => {
                self.device.port(engine).pending = None;
                self.lite_restore(list);
                let entry = CsbEntry { status: CsbEntry::LITE_RESTORE | CsbEntry::PREEMPTED, id: running.id() };
                self.status(entry, Some(&list));
            }
            Some(_) => {}
        }
        self.device.publish_status(engine);
    }

    /// The ring of the running context is empty.
    pub fn complete(&mut self) {
        let engine = self.state.engine;
        let Some(done) = self.state.running else {
            return;
        };
        self.device.counters.change(engine, |c| c.completions += 1);
        self.leave(done);
        if let Some(list) = self.device.port(engine).pending.take() {
            let entry = CsbEntry { status: CsbEntry::PREEMPTED | CsbEntry::COMPLETE, id: done.id() };
            self.status(entry, Some(&list));
            self.start(list);
        } else {
            self.next_element(CsbEntry::COMPLETE, done);
        }
        self.device.publish_status(engine);
    }

    /// The pending submission replaces the running one, which has more to do.
    pub fn preempt(&mut self) {
        let engine = self.state.engine;
        let (Some(running), Some(list)) = (self.state.running, self.device.port(engine).pending.take()) else {
            return;
        };
        self.leave(running);
        self.status(CsbEntry { status: CsbEntry::PREEMPTED, id: running.id() }, Some(&list));
        self.start(list);
        self.device.publish_status(engine);
    }

    /// The running context waits for a semaphore and lets the engine go on without it.
    pub fn switch_away(&mut self) {
        let Some(running) = self.state.running else {
            return;
        };
        self.leave(running);
        self.next_element(CsbEntry::WAIT_SEMAPHORE, running);
        self.device.publish_status(self.state.engine);
    }

    /// After element 0 comes element 1, after that idleness.
    fn next_element(&mut self, reason: u32, done: Descriptor) {
        let next = self.state.list[1];
        if self.state.element == 0 && next.valid() {
            self.status(CsbEntry { status: CsbEntry::ELEMENT_SWITCH | reason, id: done.id() }, None);
            self.state.element = 1;
            self.load(next);
        } else {
            self.status(CsbEntry { status: CsbEntry::ACTIVE_IDLE | reason, id: done.id() }, None);
        }
    }

    fn start(&mut self, list: [Descriptor; 2]) {
        self.state.list = list;
        self.state.element = 0;
        self.load(list[0]);
    }

    /// The running context leaves the engine.
    fn leave(&mut self, descriptor: Descriptor) {
        self.publish();
        match self.device.profile.save {
            Save::Prompt => self.save(descriptor),
            Save::Late => self.defer_save(descriptor),
        }
        let engine = self.state.engine;
        let time = self.device.context_timestamp(engine);
        let now = self.device.now;
        let port = self.device.port(engine);
        let ran = now.0.saturating_sub(port.loaded.0);
        port.context_time = time;
        port.busy = false;
        self.device.counters.change(engine, |c| c.busy += ran);
        self.state.running = None;
        self.device.publish_idle(engine);
    }

    /// Appends a status entry: register copy, status page entry, status page pointer, interrupt, in this order.
    /// `promoted` is the list that the entry makes the active one.
    fn status(&mut self, entry: CsbEntry, promoted: Option<&[Descriptor; 2]>) {
        let engine = self.state.engine;
        self.device.check_sequence(engine, entry, promoted);
        let pointer = self.device.ring(engine, ring::CSB_PTR);
        let write = csb_next(pointer & 7);
        self.device.set_ring(engine, ring::CSB + 8 * write, entry.status);
        self.device.set_ring(engine, ring::CSB + 8 * write + 4, entry.id);
        self.device.set_ring(engine, ring::CSB_PTR, pointer & !7 | write);
        let page = u64::from(self.device.ring(engine, ring::HWS_PGA) & !0xFFF);
        let raw = u64::from(entry.id) << 32 | u64::from(entry.status);
        let mut view = self.view();
        let before = view.purpose(Purpose::Status);
        view.write_u64(Space::Global, page + u64::from(HWSP_CSB + 8 * write), raw);
        view.write_u32(Space::Global, page + u64::from(HWSP_CSB_WRITE), write);
        view.purpose(before);
        self.device.trace.add(self.device.now, Kind::Status, By::Engine(engine), entry.status, u64::from(entry.id));
        self.device.raise(engine, event::CONTEXT_SWITCH);
    }
}

impl Device {
    /// EXECLIST_STATUS as software reads it: the running list counts as list 0, the pending one as list 1.
    pub fn publish_status(&mut self, engine: Engine) {
        let port = self.port(engine);
        let (busy, pending) = (port.busy, port.pending.is_some());
        let mut low = 0;
        if busy {
            low |= status::LIST0_VALID | status::LIST0_ACTIVE | status::ARBITRATION_ENABLE;
        }
        if pending {
            low |= status::LIST1_VALID | status::QUEUE_FULL | status::WRITE_POINTER;
        }
        let keep = self.ring(engine, ring::EXECLIST_STATUS_LO) & (status::ACTIVE_ELEMENT0 | status::ACTIVE_ELEMENT1);
        self.set_ring(engine, ring::EXECLIST_STATUS_LO, low | if busy { keep } else { 0 });
    }

    /// Which context runs.
    pub fn publish_running(&mut self, engine: Engine, descriptor: Descriptor, element: usize) {
        let bit = if element == 0 { status::ACTIVE_ELEMENT0 } else { status::ACTIVE_ELEMENT1 };
        self.set_ring(engine, ring::EXECLIST_STATUS_LO, bit);
        self.set_ring(engine, ring::EXECLIST_STATUS_HI, descriptor.id());
        self.publish_status(engine);
    }

    /// No context runs.
    pub fn publish_idle(&mut self, engine: Engine) {
        self.set_ring(engine, ring::EXECLIST_STATUS_HI, 0);
        self.publish_status(engine);
    }

    /// The rule that drivers check: an entry that promotes needs exactly one submission not yet promoted; any other
    /// needs an active element.
    fn check_sequence(&mut self, engine: Engine, entry: CsbEntry, promoted: Option<&[Descriptor; 2]>) {
        let port = self.port(engine);
        let good = match promoted {
            Some(list) => {
                let good = entry.promotes() && port.unpromoted == 1;
                port.unpromoted = 0;
                port.owed = list.iter().filter(|d| d.valid()).count() as u32;
                good
            }
            None => {
                let good = entry.completes() && port.owed > 0;
                port.owed = port.owed.saturating_sub(1);
                good
            }
        };
        if !good {
            self.findings.add(Finding::StatusSequence(engine, entry.status));
        }
    }
}
