//! The fake hypervisor with its own use of the heap left out of the count.
//! (The count is `allocation_counter`'s, which is the heap of this test program.)

use super::FakeHost;
use crate::host::{Backing, Dirty, Host, Mapping, NoFrame, NotRam, Owner, VmId};
use gvt_defs::{Gfn, Gpa, Hpa};

/// Runs what stands for another part of the machine: what it takes from the heap does not count.
pub fn uncounted<T>(run: impl FnOnce() -> T) -> T {
    let mut result = None;
    allocation_counter::opt_out(|| result = Some(run()));
    result.expect("it ran")
}

/// The same host; what the mediator does when it is called back counts.
pub struct Quiet<'a>(pub &'a mut FakeHost);

impl Host for Quiet<'_> {
    fn read(&mut self, vm: VmId, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        uncounted(|| self.0.read(vm, gpa, buf))
    }

    fn write(&mut self, vm: VmId, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        uncounted(|| self.0.write(vm, gpa, data))
    }

    fn translate(&mut self, vm: VmId, gfn: Gfn) -> Option<Backing> {
        uncounted(|| self.0.translate(vm, gfn))
    }

    fn track(&mut self, vm: VmId, gfn: Gfn) -> Result<(), NotRam> {
        uncounted(|| self.0.track(vm, gfn))
    }

    fn untrack(&mut self, vm: VmId, gfn: Gfn) {
        uncounted(|| self.0.untrack(vm, gfn));
    }

    fn harvest(&mut self, vm: VmId, each: &mut dyn FnMut(Dirty)) {
        let dirty = uncounted(|| {
            let mut dirty = Vec::new();
            self.0.harvest(vm, &mut |page| dirty.push(page));
            dirty
        });
        dirty.into_iter().for_each(each);
    }

    fn alloc_frame(&mut self, owner: Owner) -> Result<Hpa, NoFrame> {
        uncounted(|| self.0.alloc_frame(owner))
    }

    fn free_frame(&mut self, owner: Owner, frame: Hpa) {
        uncounted(|| self.0.free_frame(owner, frame));
    }

    fn read_frame(&mut self, frame: Hpa, offset: usize, buf: &mut [u8]) {
        uncounted(|| self.0.read_frame(frame, offset, buf));
    }

    fn write_frame(&mut self, frame: Hpa, offset: usize, data: &[u8]) {
        uncounted(|| self.0.write_frame(frame, offset, data));
    }

    fn map_register_page(&mut self, vm: VmId, page: u32, mapping: Mapping) {
        uncounted(|| self.0.map_register_page(vm, page, mapping));
    }

    fn raise_msi(&mut self, vm: VmId, address: u64, data: u32) {
        uncounted(|| self.0.raise_msi(vm, address, data));
    }

    fn is_cpu_wanted(&mut self, vm: VmId) -> bool {
        self.0.is_cpu_wanted(vm)
    }
}
