//! The shadow tables of one vGPU: a bounded slab, found by guest frame and by shadow frame, and the list of frames
//! that a GPU's TLB may still reach.

use super::entry::Kind;
use crate::host::{Host, NoFrame, Owner, VmId};
use alloc::vec;
use alloc::vec::Vec;
use gvt_defs::{Gfn, Hpa, PAGE_SIZE};

/// No node.
const NONE: u32 = u32::MAX;

/// Names a shadow table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NodeId(u32);

impl NodeId {
    /// Below the limit of the store that it is of; used again when its table is gone.
    pub(super) const fn number(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
impl From<u32> for NodeId {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

/// State of a shadow of the address spaces: it moves when a live entry changed or a table became unreachable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Generation(pub(super) u64);

/// One shadow table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) gfn: Gfn,
    pub(super) kind: Kind,
    /// What the GPU walks.
    pub(super) shadow: Hpa,
    /// The guest's entries as last translated (unused when split).
    pub(super) seen: Hpa,
    /// Entries that lead here, the root list, and pins.
    pub(super) refs: u32,
    /// Malformed entries in `seen`.
    pub(super) malformed: u16,
    /// Written since the last sync.
    pub(super) dirty: bool,
    /// Did not parse: leads to scratch throughout, and is not watched.
    pub(super) garbage: bool,
    /// Some entries lead to scratch for want of frames.
    pub(super) incomplete: bool,
    /// In the root list (which holds one reference).
    pub(super) rooted: bool,
    /// When it was last asked for as a root.
    pub(super) used: u64,
    live: bool,
    next_by_gfn: u32,
    next_by_shadow: u32,
}

/// Slab, indices and retired frames.
#[derive(Debug)]
pub(super) struct Store {
    vm: VmId,
    nodes: Vec<Node>,
    free: Vec<u32>,
    limit: usize,
    by_gfn: Vec<u32>,
    by_shadow: Vec<u32>,
    /// With the tables in use never more than twice the limit.
    retired: Vec<(Generation, Hpa)>,
    /// Frames of tables that are not the guest's.
    own: usize,
    generation: Generation,
    flushed: Generation,
    touched: bool,
    /// The host had no frame to give; cleared when frames come back.
    pub(super) dry: bool,
}

impl Store {
    pub(super) fn new(vm: VmId, limit: u32) -> Self {
        let limit = limit.max(4) as usize;
        let buckets = limit.next_power_of_two();
        Self {
            vm,
            nodes: Vec::with_capacity(limit),
            free: Vec::with_capacity(limit),
            limit,
            by_gfn: vec![NONE; buckets],
            by_shadow: vec![NONE; buckets],
            retired: Vec::with_capacity(2 * limit),
            own: 0,
            generation: Generation(0),
            flushed: Generation(0),
            touched: false,
            dry: false,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize).filter(|node| node.live)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize).filter(|node| node.live)
    }

    /// Tables at most.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// Names of every table that there is or was.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// Every live table.
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0..).map(NodeId).zip(&self.nodes).filter(|(_, node)| node.live)
    }

    /// Tables in use.
    pub(super) fn used(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether a table could be added as far as is known.
    pub(super) fn has_room(&self) -> bool {
        !self.dry && !self.is_full()
    }

    /// What waits for a flush counts: a guest that never lets one come must not make the list of it grow.
    fn is_full(&self) -> bool {
        self.used() >= self.limit || self.frames_in_use() >= 2 * self.limit
    }

    fn frames_in_use(&self) -> usize {
        self.used() + self.own + self.retired.len()
    }

    /// Takes a frame for a table that is not the guest's.
    pub(super) fn take_frame(&mut self, host: &mut dyn Host) -> Result<Hpa, NoFrame> {
        if self.frames_in_use() >= 2 * self.limit {
            return Err(NoFrame);
        }
        let frame = host.alloc_frame(Owner::Vm(self.vm))?;
        self.own += 1;
        Ok(frame)
    }

    /// Retires such a frame.
    pub(super) fn retire_frame(&mut self, frame: Hpa) {
        self.own = self.own.saturating_sub(1);
        self.retired.push((Generation(self.generation.0 + 1), frame));
        self.touched = true;
    }

    /// Tables made of a guest frame, in any way.
    pub(super) fn of_frame(&self, gfn: Gfn) -> impl Iterator<Item = NodeId> + '_ {
        let first = self.by_gfn.get(self.bucket(gfn.0)).and_then(|head| self.chained(*head, gfn));
        core::iter::successors(first, |id| self.next_of_frame(*id))
    }

    /// The next table made of the same guest frame.
    pub(super) fn next_of_frame(&self, id: NodeId) -> Option<NodeId> {
        let node = self.get(id)?;
        self.chained(node.next_by_gfn, node.gfn)
    }

    /// The first table of a frame in a chain from `at` on.
    fn chained(&self, mut at: u32, gfn: Gfn) -> Option<NodeId> {
        loop {
            let node = self.nodes.get(at as usize)?;
            if node.gfn == gfn {
                return Some(NodeId(at));
            }
            at = node.next_by_gfn;
        }
    }

    pub(super) fn find(&self, gfn: Gfn, kind: Kind) -> Option<NodeId> {
        self.of_frame(gfn).find(|id| self.get(*id).is_some_and(|node| node.kind == kind))
    }

    /// The table whose shadow lies in this frame.
    pub(super) fn by_shadow(&self, shadow: Hpa) -> Option<NodeId> {
        let mut at = *self.by_shadow.get(self.bucket(shadow.0 / PAGE_SIZE))?;
        loop {
            let node = self.nodes.get(at as usize)?;
            if node.shadow == shadow {
                return Some(NodeId(at));
            }
            at = node.next_by_shadow;
        }
    }

    /// Adds a table with one reference and frames of its own.
    pub(super) fn add(&mut self, host: &mut dyn Host, gfn: Gfn, kind: Kind) -> Result<NodeId, NoFrame> {
        if self.is_full() {
            return Err(NoFrame);
        }
        let (shadow, seen) = self.frames(host, kind).inspect_err(|NoFrame| self.dry = true)?;
        let node = Node {
            gfn,
            kind,
            shadow,
            seen,
            refs: 1,
            malformed: 0,
            dirty: false,
            garbage: false,
            incomplete: false,
            rooted: false,
            used: 0,
            live: true,
            next_by_gfn: NONE,
            next_by_shadow: NONE,
        };
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        if let Some(slot) = self.nodes.get_mut(id as usize) {
            *slot = node;
        }
        self.chain(id, gfn, shadow);
        Ok(NodeId(id))
    }

    /// Takes a table off; its shadow frame is retired, not freed.
    pub(super) fn remove(&mut self, host: &mut dyn Host, id: NodeId) {
        let Some(node) = self.get(id).copied() else {
            return;
        };
        self.unchain(id, &node);
        if let Some(slot) = self.get_mut(id) {
            slot.live = false;
            slot.dirty = false;
            slot.gfn = Gfn(u64::MAX);
            slot.shadow = Hpa(u64::MAX);
        }
        self.free.push(id.0);
        if node.kind.is_guest_table() {
            host.free_frame(Owner::Vm(self.vm), node.seen);
        }
        self.retired.push((Generation(self.generation.0 + 1), node.shadow));
        self.touched = true;
    }

    /// Notes that an entry which the GPU may have cached is no more.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// Closes an operation: everything touched in it belongs to the next generation.
    pub(super) fn settle(&mut self) {
        if core::mem::take(&mut self.touched) {
            self.generation.0 += 1;
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn needs_flush(&self) -> bool {
        self.generation > self.flushed
    }

    pub(super) fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Frees what was retired up to `generation`: the TLBs were flushed after it.
    pub(super) fn flushed(&mut self, host: &mut dyn Host, generation: Generation) {
        self.flushed = self.flushed.max(generation.min(self.generation));
        let (vm, flushed) = (self.vm, self.flushed);
        let before = self.retired.len();
        self.retired.retain(|(tag, frame)| {
            if *tag <= flushed {
                host.free_frame(Owner::Vm(vm), *frame);
            }
            *tag > flushed
        });
        self.dry &= before == self.retired.len();
    }

    fn frames(&self, host: &mut dyn Host, kind: Kind) -> Result<(Hpa, Hpa), NoFrame> {
        let owner = Owner::Vm(self.vm);
        let shadow = host.alloc_frame(owner)?;
        if !kind.is_guest_table() {
            return Ok((shadow, shadow));
        }
        match host.alloc_frame(owner) {
            Ok(seen) => Ok((shadow, seen)),
            Err(NoFrame) => {
                host.free_frame(owner, shadow);
                Err(NoFrame)
            }
        }
    }

    fn bucket(&self, frame: u64) -> usize {
        // The number of buckets is a power of two; the multiplier spreads frames that lie close together.
        (frame.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & (self.by_gfn.len() - 1)
    }

    fn chain(&mut self, id: u32, gfn: Gfn, shadow: Hpa) {
        let (a, b) = (self.bucket(gfn.0), self.bucket(shadow.0 / PAGE_SIZE));
        let Some(node) = self.nodes.get_mut(id as usize) else {
            return;
        };
        if let Some(head) = self.by_gfn.get_mut(a) {
            node.next_by_gfn = core::mem::replace(head, id);
        }
        if let Some(head) = self.by_shadow.get_mut(b) {
            node.next_by_shadow = core::mem::replace(head, id);
        }
    }

    fn unchain(&mut self, id: NodeId, node: &Node) {
        let (a, b) = (self.bucket(node.gfn.0), self.bucket(node.shadow.0 / PAGE_SIZE));
        unlink(&mut self.by_gfn, a, &mut self.nodes, id.0, |node| &mut node.next_by_gfn);
        unlink(&mut self.by_shadow, b, &mut self.nodes, id.0, |node| &mut node.next_by_shadow);
    }
}

/// Takes `id` out of the chain that begins in `heads[bucket]`.
fn unlink(heads: &mut [u32], bucket: usize, nodes: &mut [Node], id: u32, next: fn(&mut Node) -> &mut u32) {
    let Some(after) = nodes.get_mut(id as usize).map(|node| core::mem::replace(next(node), NONE)) else {
        return;
    };
    let Some(head) = heads.get_mut(bucket) else {
        return;
    };
    if *head == id {
        *head = after;
        return;
    }
    let mut at = *head;
    while let Some(node) = nodes.get_mut(at as usize) {
        let link = next(node);
        if *link == id {
            *link = after;
            return;
        }
        at = *link;
    }
}
