//! `Host`: all that the mediator asks of a hypervisor. Another hypervisor links `gvt` and implements this.
//!
//! Every call is synchronous, bounded and fails by value. The mediator calls it with its own lock held, so an
//! implementation must not call back into the mediator and must not wait for a CPU that could be waiting for it
//! (a CPU that is not in guest mode needs no interrupt; see `harvest`).

use gvt_defs::{Gfn, Gpa, Hpa};

/// Names a virtual machine. Chosen by the hypervisor; the mediator only hands it back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(pub u32);

/// A guest-physical range that is not RAM of that guest (or not writable RAM).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRam;

/// The quota of the VM, or of the mediator, is spent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoFrame;

/// Guest RAM behind a guest frame: where it lies and how many following frames are contiguous with it on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backing {
    /// Host-physical address of the frame.
    pub hpa: Hpa,
    /// Contiguous 4 KiB frames from here on, at least 1; a lower bound, capped at 512.
    pub frames: u32,
}

/// A page that was written since the last harvest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Dirty {
    /// A guest RAM frame on which `track` is in force.
    Guest(Gfn),
    /// A page of BAR0 that `map_register_page` mapped as `Mapping::Tracked`, by its page number in the BAR.
    Register(u32),
}

/// How a page of BAR0 appears to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// Every access exits (the default for the whole of BAR0).
    Trapped,
    /// Reads go to the frame, writes exit.
    ReadOnly(Hpa),
    /// Reads and writes go to the frame; the first write after a harvest is recorded as `Dirty::Register`.
    Tracked(Hpa),
}

/// Whose quota a frame is charged to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The mediator itself (shadow contexts, rings, batches, status pages, parking contexts).
    Mediator,
    /// Page-table shadows and other state of one VM.
    Vm(VmId),
}

/// Services of the hypervisor. Thirteen calls.
pub trait Host {
    /// Copies guest RAM into `buf`. The range may cross frames; nothing is copied on failure.
    ///
    /// # Errors
    /// `NotRam` if any byte is not RAM of `vm`.
    fn read(&mut self, vm: VmId, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam>;

    /// Copies `data` into guest RAM. A store to a tracked frame marks it dirty like the guest's own.
    ///
    /// # Errors
    /// `NotRam` if any byte is not writable RAM of `vm`.
    fn write(&mut self, vm: VmId, gpa: Gpa, data: &[u8]) -> Result<(), NotRam>;

    /// Finds the RAM behind a guest frame. The answer stays true for the life of the VM (memory is partitioned).
    fn translate(&mut self, vm: VmId, gfn: Gfn) -> Option<Backing>;

    /// Starts to watch a guest RAM frame: from now on its first write between two harvests is recorded. Idempotent.
    /// The frame is protected before this returns, so a read that follows sees every store not yet recorded.
    ///
    /// # Errors
    /// `NotRam` if the frame is not RAM of `vm`.
    fn track(&mut self, vm: VmId, gfn: Gfn) -> Result<(), NotRam>;

    /// Stops watching a frame. Idempotent.
    fn untrack(&mut self, vm: VmId, gfn: Gfn);

    /// Hands out every page of `vm` written since the last harvest, each once, and arms them again: all are
    /// write-protected, and every CPU in guest mode with this VM is flushed, before the first is handed out; a
    /// table read inside or after `each` therefore misses no store that is not recorded for the next harvest.
    fn harvest(&mut self, vm: VmId, each: &mut dyn FnMut(Dirty));

    /// Allocates a zeroed 4 KiB frame that the GPU can reach.
    ///
    /// # Errors
    /// `NoFrame` when the owner's quota is spent.
    fn alloc_frame(&mut self, owner: Owner) -> Result<Hpa, NoFrame>;

    /// Returns a frame. The caller has drained and flushed every engine that could reach it (design D10).
    fn free_frame(&mut self, owner: Owner, frame: Hpa);

    /// Copies out of a frame that `alloc_frame` gave. `offset + buf.len()` is at most 4096 (else nothing is copied).
    fn read_frame(&mut self, frame: Hpa, offset: usize, buf: &mut [u8]);

    /// Copies into a frame that `alloc_frame` gave. `offset + data.len()` is at most 4096 (else nothing is copied).
    /// Aligned 4- and 8-byte pieces are stored whole, in ascending order (a GPU may be walking the frame).
    fn write_frame(&mut self, frame: Hpa, offset: usize, data: &[u8]);

    /// Changes how page `page` (4 KiB units) of BAR0 of the vGPU of `vm` appears. Follows the BAR when it moves.
    fn map_register_page(&mut self, vm: VmId, page: u32, mapping: Mapping);

    /// Raises the vGPU's interrupt as a message: writes `data` to `address` on the interrupt bus of `vm`.
    fn raise_msi(&mut self, vm: VmId, address: u64, data: u32);

    /// Whether a VM other than `vm` has something to do on the CPU that takes the GPU's interrupts. While one has, those that
    /// the commands of `vm` cause may take that CPU for a tenth of its time.
    fn is_cpu_wanted(&mut self, vm: VmId) -> bool;
}
