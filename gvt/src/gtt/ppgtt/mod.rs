//! Shadows of a vGPU's process page tables. One shadow table per (guest frame, way it is read), shared by all who
//! lead to it: i915 points every unused entry at one scratch tree, which an unshared walk would copy 512^3 times.
//! Cycles end because a frame that is read at several levels has one shadow for each. Guest frames that hold tables
//! are watched through `Host::track`; only those written since the last sync are compared (design D6).

mod entry;
mod scratch;
mod set;
mod store;
mod update;
mod walk;
mod window;

#[cfg(test)]
mod tests;

pub use store::Generation;
pub(crate) use window::WINDOW_PAGES;
pub use window::Window;

use super::translate::Translator;
use crate::host::{Host, NoFrame, VmId};
use crate::units::Meter;
use alloc::vec;
use alloc::vec::Vec;
use entry::Kind;
use gvt_defs::pte::{Level, TABLE_ENTRIES};
use gvt_defs::{Gfn, Gpa, Hpa};
use scratch::Scratch;
use set::NodeSet;
use store::{NodeId, Store};
use update::Mode;
use window::Follower;

/// The root's way of being read.
const ROOT: Kind = Kind::Table(Level::Pml4);
/// Garbage tables looked at again in one call.
const GARBAGE_RETRIES: usize = 64;

/// Bounds of one vGPU's shadows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Tables at any time; each takes two frames of the VM's quota.
    pub tables: u32,
    /// New tables in one call: bounds the time that a guest can keep the mediator busy.
    pub work: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tables: 4096, work: 512 }
    }
}

/// Keeps a shadow root in place while an engine may use it. Hand it back to `release`.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a pin that is dropped keeps its root for ever"]
pub struct Pin {
    node: Option<NodeId>,
    /// A root of a context's own is kept in step with it.
    follows: bool,
}

/// A shadow root for a submission.
#[derive(PartialEq, Eq, Debug)]
pub struct Shadow {
    /// For PDP0 of the context image.
    pub root: Hpa,
    /// Keeps it.
    pub pin: Pin,
    /// The work or the frames of this call were spent: flush, release, and acquire again before submitting.
    pub again: bool,
}

/// What a sync did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Tables compared or built.
    pub tables: u32,
    /// Entries written.
    pub entries: u32,
}

/// One guest table's bytes, entry by entry.
type Table = Vec<[u8; 8]>;

/// Room for one table at each level: a table is updated while its child is built.
#[derive(Debug)]
struct Buffers {
    guest: Table,
    seen: Table,
    shadow: Table,
}

/// The shadows of one vGPU.
#[derive(Debug)]
pub struct Ppgtt {
    vm: VmId,
    limits: Limits,
    scratch: Scratch,
    store: Store,
    translator: Translator,
    buffers: [Option<Buffers>; 4],
    /// Written since the last sync.
    dirty: NodeSet,
    /// Tables that nothing leads to any more, unless something takes them up before the operation ends.
    orphans: NodeSet,
    /// Tables that did not parse, for another look.
    garbage: NodeSet,
    /// Tables that lack children.
    incomplete: NodeSet,
    /// The root that is kept in step with a guest's: of a context on the one engine that needs it, or that waits for it.
    follower: Option<Follower>,
    /// A window changed.
    stale: bool,
    clock: u64,
    /// New tables that this call may still make.
    budget: u32,
    starved: bool,
    work: Work,
    meter: Meter,
}

impl Ppgtt {
    /// No shadows yet. `page` is the VM's scratch page.
    ///
    /// # Errors
    /// `NoFrame` if there is no room for four scratch tables.
    pub fn new(host: &mut dyn Host, vm: VmId, page: Hpa, limits: Limits) -> Result<Self, NoFrame> {
        let scratch = Scratch::new(host, vm, page)?;
        let store = Store::new(vm, limits.tables);
        let limit = store.limit();
        let set = || NodeSet::new(limit);
        Ok(Self {
            vm,
            limits,
            scratch,
            store,
            translator: Translator::new(vm),
            buffers: [(); 4].map(|()| Some(Buffers::new())),
            dirty: set(),
            orphans: set(),
            garbage: set(),
            incomplete: set(),
            follower: None,
            stale: false,
            clock: 0,
            budget: 0,
            starved: false,
            work: Work::default(),
            meter: Meter::default(),
        })
    }

    /// What is done from now on is counted here.
    pub(crate) fn meter(&mut self, meter: &Meter) {
        self.meter = meter.clone();
    }

    /// Notes that a guest frame was written; false if it holds no table that is known.
    pub fn mark(&mut self, gfn: Gfn) -> bool {
        let mut known = false;
        let mut next = self.store.of_frame(gfn).next();
        while let Some(id) = next {
            if let Some(node) = self.store.get_mut(id)
                && node.kind.is_guest_table()
            {
                node.dirty = true;
                known = true;
                self.dirty.insert(id);
            }
            next = self.store.next_of_frame(id);
        }
        known
    }

    /// Brings the shadows up to date with the frames marked.
    pub fn sync(&mut self, host: &mut dyn Host) -> Work {
        self.sync_part(host, u32::MAX)
    }

    /// The same until so many tables have been compared or built; one that is compared has its new children built with
    /// it. `waiting` is 0 if that was all.
    pub fn sync_part(&mut self, host: &mut dyn Host, tables: u32) -> Work {
        self.begin();
        // From the root down: a table that is cut off above need not be compared.
        for level in [Level::Pml4, Level::Pdp, Level::Pd, Level::Pt] {
            self.reap(host);
            for place in 0..self.dirty.len() {
                let Some(id) = self.dirty.get(place) else { break };
                if self.store.get(id).is_some_and(|node| node.dirty && node.kind.level() == level) {
                    self.update(host, id, Mode::Changed);
                }
                if self.work.tables >= tables {
                    return self.end(host);
                }
            }
        }
        self.dirty.clear();
        self.end(host)
    }

    /// A guest says that it has made an address space. Nothing depends on its saying so.
    pub fn create(&mut self, host: &mut dyn Host, pml4: Gpa) {
        self.begin();
        let _ = self.open(host, pml4.gfn());
        self.end(host);
    }

    /// A guest says that it gives an address space up.
    pub fn destroy(&mut self, host: &mut dyn Host, pml4: Gpa) {
        self.begin();
        if let Some(id) = self.store.find(pml4.gfn(), ROOT) {
            self.uproot(id);
        }
        self.end(host);
    }

    /// The shadow of an address space, made if need be. Never fails: what cannot be shadowed leads to scratch.
    pub fn acquire(&mut self, host: &mut dyn Host, pml4: Gpa) -> Shadow {
        self.begin();
        self.retry_garbage(host);
        self.retry_incomplete(host);
        let root = self.open(host, pml4.gfn());
        let mut again = self.budget == 0;
        if self.starved {
            again |= self.evict(root) || self.store.retired() > 0;
        }
        let shadow = root.and_then(|id| self.store.get_mut(id)).map(|node| {
            node.refs = node.refs.saturating_add(1);
            node.shadow
        });
        self.end(host);
        Shadow { root: shadow.unwrap_or(self.scratch.root()), pin: Pin { node: root, follows: false }, again }
    }

    /// An engine has let go of a root.
    pub fn release(&mut self, host: &mut dyn Host, pin: Pin) {
        self.begin();
        if pin.follows {
            self.follower = None;
        }
        if let Some(id) = pin.node {
            self.unref(id);
        }
        self.end(host);
    }

    /// The state of the shadows now. Take it, flush the TLBs, then call [`Ppgtt::flushed`] with it.
    pub fn generation(&self) -> Generation {
        self.store.generation()
    }

    /// Whether an entry that a TLB may hold has changed since the last flush.
    pub fn needs_flush(&self) -> bool {
        self.store.needs_flush()
    }

    /// Frames that wait for a flush.
    pub fn retired(&self) -> usize {
        self.store.retired()
    }

    /// The TLBs of all engines that may run this vGPU were flushed after `generation` was taken.
    pub fn flushed(&mut self, host: &mut dyn Host, generation: Generation) {
        self.store.flushed(host, generation);
    }

    /// Gives up every root (virtual reset). Tables still pinned stay until released.
    pub fn clear(&mut self, host: &mut dyn Host) {
        self.begin();
        for id in self.store.ids() {
            self.uproot(id);
        }
        self.end(host);
    }

    /// Frees everything. The caller runs nothing of this vGPU any more and has flushed the TLBs.
    pub fn destroy_all(mut self, host: &mut dyn Host) {
        self.clear(host);
        for id in self.store.ids() {
            self.untrack(host, id);
            self.store.remove(host, id);
        }
        self.store.settle();
        self.store.flushed(host, self.store.generation());
        self.scratch.free(host, self.vm);
    }

    /// Tables in use.
    pub fn tables(&self) -> usize {
        self.store.used()
    }

    /// Tables marked that wait for `sync`: no more than there may be.
    pub fn waiting(&self) -> usize {
        self.dirty.len()
    }

    fn begin(&mut self) {
        self.budget = self.limits.work;
        self.starved = false;
        self.work = Work::default();
    }

    fn end(&mut self, host: &mut dyn Host) -> Work {
        self.reap(host);
        self.store.settle();
        self.work
    }

    /// The shadow of a root, in the root list.
    fn open(&mut self, host: &mut dyn Host, gfn: Gfn) -> Option<NodeId> {
        self.clock += 1;
        let clock = self.clock;
        let id = match self.store.find(gfn, ROOT) {
            Some(id) => id,
            None => {
                self.translator.frame(host, gfn)?;
                let id = self.build(host, gfn, ROOT)?;
                // The reference that building gives becomes the root list's.
                if let Some(node) = self.store.get_mut(id) {
                    node.rooted = true;
                }
                id
            }
        };
        let node = self.store.get_mut(id)?;
        node.used = clock;
        if !node.rooted {
            node.rooted = true;
            node.refs = node.refs.saturating_add(1);
        }
        Some(id)
    }

    fn uproot(&mut self, id: NodeId) {
        if let Some(node) = self.store.get_mut(id)
            && core::mem::take(&mut node.rooted)
        {
            self.unref(id);
        }
    }

    /// Gives up the least recently used root that nobody runs; false if there is none.
    fn evict(&mut self, keep: Option<NodeId>) -> bool {
        let idle = self
            .store
            .iter()
            .filter(|(id, node)| node.rooted && node.refs == 1 && Some(*id) != keep)
            .min_by_key(|(_, node)| node.used)
            .map(|(id, _)| id);
        if let Some(id) = idle {
            self.uproot(id);
        }
        idle.is_some()
    }

    /// Looks again at tables that did not parse.
    fn retry_garbage(&mut self, host: &mut dyn Host) {
        for _ in 0..self.garbage.len().min(GARBAGE_RETRIES) {
            if let Some(id) = self.garbage.pop()
                && self.store.get(id).is_some_and(|node| node.garbage)
            {
                self.revive(host, id);
            }
        }
    }

    /// Fills in what was left out for want of frames, if there are some now.
    fn retry_incomplete(&mut self, host: &mut dyn Host) {
        if !self.store.has_room() {
            self.starved = !self.incomplete.is_empty();
            return;
        }
        for _ in 0..self.incomplete.len() {
            if let Some(id) = self.incomplete.pop()
                && let Some(node) = self.store.get_mut(id)
                && core::mem::take(&mut node.incomplete)
            {
                self.update(host, id, Mode::Missing);
            }
        }
    }

    fn unref(&mut self, id: NodeId) {
        if let Some(node) = self.store.get_mut(id) {
            node.refs = node.refs.saturating_sub(1);
            if node.refs == 0 {
                self.orphans.insert(id);
            }
        }
    }

    /// Takes off the tables that nothing leads to.
    fn reap(&mut self, host: &mut dyn Host) {
        while let Some(id) = self.orphans.pop() {
            if self.store.get(id).is_some_and(|node| node.refs == 0) {
                self.unlink_children(host, id);
                self.untrack(host, id);
                self.store.remove(host, id);
            }
        }
    }

    /// Stops watching the frame of a table, unless another reading of it goes on.
    fn untrack(&mut self, host: &mut dyn Host, id: NodeId) {
        let Some(node) = self.store.get(id) else {
            return;
        };
        let gfn = node.gfn;
        if !node.kind.is_guest_table() {
            return;
        }
        let shared = self.store.of_frame(gfn).any(|other| {
            other != id && self.store.get(other).is_some_and(|node| node.kind.is_guest_table() && !node.garbage)
        });
        if !shared {
            host.untrack(self.vm, gfn);
        }
    }
}

impl Buffers {
    fn new() -> Self {
        let table = || vec![[0; 8]; TABLE_ENTRIES];
        Self { guest: table(), seen: table(), shadow: table() }
    }
}
