//! Test support: a hypervisor made of vectors. `FakeHost` implements `Host`; its `Ram` is shared with the software
//! GPU, so that what the GPU stores and what guests store land in the same bytes.

pub mod driver;
pub mod machine;
pub mod oracle;
#[cfg(test)]
pub mod quiet;

use crate::host::{Backing, Dirty, Host, Mapping, NoFrame, NotRam, Owner, VmId};
use gvt_defs::{Gfn, Gpa, Hpa, PAGE_SIZE};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// All physical memory of the fake machine, from host-physical 0 up. Cloning shares it.
#[derive(Clone)]
pub struct Ram(Arc<Mutex<Vec<u8>>>);

impl Ram {
    /// `bytes` of zeroes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![0; bytes])))
    }

    /// Bytes in all.
    #[allow(clippy::len_without_is_empty, reason = "there always are some")]
    pub fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    /// Copies out; false if outside.
    pub fn read(&self, at: Hpa, buf: &mut [u8]) -> bool {
        let ram = self.0.lock().unwrap();
        let Some(from) = usize::try_from(at.0).ok().and_then(|at| ram.get(at..at.checked_add(buf.len())?)) else {
            return false;
        };
        buf.copy_from_slice(from);
        true
    }

    /// Copies in; false if outside.
    pub fn write(&self, at: Hpa, data: &[u8]) -> bool {
        let mut ram = self.0.lock().unwrap();
        let Some(to) = usize::try_from(at.0).ok().and_then(|at| ram.get_mut(at..at.checked_add(data.len())?)) else {
            return false;
        };
        to.copy_from_slice(data);
        true
    }

    /// A little-endian dword (0 if outside).
    pub fn dword(&self, at: Hpa) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// One fake VM: RAM from guest-physical 0, somewhere in `Ram`.
struct Vm {
    base: u64,
    frames: u64,
    quota: usize,
    tracked: BTreeSet<Gfn>,
    dirty: BTreeSet<Dirty>,
    pages: BTreeMap<u32, Mapping>,
}

/// One message-signalled interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// The VM it was raised in.
    pub vm: VmId,
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// The fake hypervisor. Frames for `alloc_frame` come from the first `FRAMES` MiB of `Ram`; VMs lie above.
pub struct FakeHost {
    /// The machine's memory.
    pub ram: Ram,
    vms: BTreeMap<VmId, Vm>,
    free: Vec<Hpa>,
    allocated: BTreeMap<Hpa, oracle::Frame>,
    next_vm: u64,
    mediator_quota: usize,
    /// Interrupts raised and not yet taken.
    pub msis: Vec<Msi>,
    /// How often `harvest` was called.
    pub harvests: u64,
    /// First stores to tracked pages: what a hypervisor would take an exit for.
    pub track_exits: u64,
    /// A VM whose virtual CPUs keep the CPU busy that takes the GPU's interrupts.
    pub busy: Option<VmId>,
}

const FRAMES: u64 = 48 << 20;

impl FakeHost {
    /// A machine without VMs and with `ram_mib` MiB (at least 49).
    pub fn new(ram_mib: usize) -> Self {
        let ram = Ram::new(ram_mib << 20);
        Self {
            ram,
            vms: BTreeMap::new(),
            // Ascending when popped; frame 0 stays unused so that a zero address is never a valid frame.
            free: (1..FRAMES / PAGE_SIZE).rev().map(|frame| Hpa(frame * PAGE_SIZE)).collect(),
            allocated: BTreeMap::new(),
            next_vm: FRAMES,
            mediator_quota: usize::MAX,
            msis: Vec::new(),
            harvests: 0,
            track_exits: 0,
            busy: None,
        }
    }

    /// Adds a VM with `mib` MiB of RAM from guest-physical 0.
    pub fn add_vm(&mut self, vm: VmId, mib: u64) {
        let base = self.next_vm;
        self.next_vm += mib << 20;
        assert!(self.next_vm <= self.ram.len(), "the fake machine has too little RAM");
        let frames = (mib << 20) / PAGE_SIZE;
        let vm_state = Vm {
            base,
            frames,
            quota: usize::MAX,
            tracked: BTreeSet::new(),
            dirty: BTreeSet::new(),
            pages: BTreeMap::new(),
        };
        assert!(self.vms.insert(vm, vm_state).is_none());
    }

    /// Limits the frames that a VM's shadows may take from now on.
    pub fn set_quota(&mut self, vm: VmId, frames: usize) {
        self.vms.get_mut(&vm).unwrap().quota = frames;
    }

    /// Limits the frames that the mediator itself may take from now on.
    pub fn set_mediator_quota(&mut self, frames: usize) {
        self.mediator_quota = frames;
    }

    /// Host-physical address of a guest-physical one.
    pub fn hpa(&self, vm: VmId, gpa: Gpa) -> Option<Hpa> {
        let vm = self.vms.get(&vm)?;
        (gpa.0 < vm.frames * PAGE_SIZE).then(|| Hpa(vm.base + gpa.0))
    }

    /// The range of `Ram` that is a VM's: `(first byte, length)`.
    pub fn range(&self, vm: VmId) -> (Hpa, u64) {
        let vm = &self.vms[&vm];
        (Hpa(vm.base), vm.frames * PAGE_SIZE)
    }

    /// The guest's CPU stores: like `Host::write`, and counted when it hits a protected page.
    pub fn guest_write(&mut self, vm: VmId, gpa: Gpa, data: &[u8]) {
        let before = self.vms[&vm].dirty.len();
        Host::write(self, vm, gpa, data).expect("guest RAM");
        self.track_exits += (self.vms[&vm].dirty.len() - before) as u64;
    }

    /// The guest's CPU stores a dword.
    pub fn guest_write32(&mut self, vm: VmId, gpa: Gpa, value: u32) {
        self.guest_write(vm, gpa, &value.to_le_bytes());
    }

    /// The guest's CPU stores a qword.
    pub fn guest_write64(&mut self, vm: VmId, gpa: Gpa, value: u64) {
        self.guest_write(vm, gpa, &value.to_le_bytes());
    }

    /// The guest's CPU loads a dword.
    pub fn guest_read32(&self, vm: VmId, gpa: Gpa) -> u32 {
        self.ram.dword(self.hpa(vm, gpa).expect("guest RAM"))
    }

    /// How a page of BAR0 appears now.
    pub fn mapping(&self, vm: VmId, page: u32) -> Mapping {
        self.vms[&vm].pages.get(&page).copied().unwrap_or(Mapping::Trapped)
    }

    /// The guest loads from a page of BAR0 that is mapped: `None` if the access would exit.
    pub fn register_page_read(&self, vm: VmId, offset: u32, buf: &mut [u8]) -> Option<()> {
        match self.mapping(vm, offset / 4096) {
            Mapping::Trapped => None,
            Mapping::ReadOnly(frame) | Mapping::Tracked(frame) => {
                self.ram.read(Hpa(frame.0 + u64::from(offset % 4096)), buf).then_some(())
            }
        }
    }

    /// The guest stores to a page of BAR0 that is mapped writable: `None` if the access would exit.
    pub fn register_page_write(&mut self, vm: VmId, offset: u32, data: &[u8]) -> Option<()> {
        let page = offset / 4096;
        let Mapping::Tracked(frame) = self.mapping(vm, page) else { return None };
        self.ram.write(Hpa(frame.0 + u64::from(offset % 4096)), data);
        if self.vms.get_mut(&vm).unwrap().dirty.insert(Dirty::Register(page)) {
            self.track_exits += 1;
        }
        Some(())
    }

    /// Whether a frame is tracked.
    pub fn is_tracked(&self, vm: VmId, gfn: Gfn) -> bool {
        self.vms[&vm].tracked.contains(&gfn)
    }

    /// Frames allocated now to `owner`.
    pub fn frames_of(&self, owner: Owner) -> usize {
        self.allocated.values().filter(|frame| frame.owner == owner).count()
    }

    /// Whether `frame` is allocated now, and to whom.
    pub fn owner_of(&self, frame: Hpa) -> Option<Owner> {
        self.frame_at(frame).map(|frame| frame.owner)
    }

    /// Takes the interrupts raised so far in `vm`.
    pub fn take_msis(&mut self, vm: VmId) -> usize {
        let before = self.msis.len();
        self.msis.retain(|msi| msi.vm != vm);
        before - self.msis.len()
    }
}

impl Host for FakeHost {
    fn read(&mut self, vm: VmId, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let vm = self.vms.get(&vm).ok_or(NotRam)?;
        let end = gpa.0.checked_add(buf.len() as u64).ok_or(NotRam)?;
        let inside = end <= vm.frames * PAGE_SIZE && self.ram.read(Hpa(vm.base + gpa.0), buf);
        if inside { Ok(()) } else { Err(NotRam) }
    }

    fn write(&mut self, vm: VmId, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let vm = self.vms.get_mut(&vm).ok_or(NotRam)?;
        let end = gpa.0.checked_add(data.len() as u64).ok_or(NotRam)?;
        if end > vm.frames * PAGE_SIZE {
            return Err(NotRam);
        }
        for page in gpa.0 / PAGE_SIZE..end.div_ceil(PAGE_SIZE) {
            if vm.tracked.contains(&Gfn(page)) {
                vm.dirty.insert(Dirty::Guest(Gfn(page)));
            }
        }
        if self.ram.write(Hpa(vm.base + gpa.0), data) { Ok(()) } else { Err(NotRam) }
    }

    fn translate(&mut self, vm: VmId, gfn: Gfn) -> Option<Backing> {
        let vm = self.vms.get(&vm)?;
        let left = vm.frames.checked_sub(gfn.0)?;
        if left == 0 {
            return None;
        }
        Some(Backing { hpa: Hpa(vm.base + gfn.0 * PAGE_SIZE), frames: left.min(512) as u32 })
    }

    fn track(&mut self, vm: VmId, gfn: Gfn) -> Result<(), NotRam> {
        let vm = self.vms.get_mut(&vm).ok_or(NotRam)?;
        if gfn.0 >= vm.frames {
            return Err(NotRam);
        }
        vm.tracked.insert(gfn);
        Ok(())
    }

    fn untrack(&mut self, vm: VmId, gfn: Gfn) {
        if let Some(vm) = self.vms.get_mut(&vm) {
            vm.tracked.remove(&gfn);
            vm.dirty.remove(&Dirty::Guest(gfn));
        }
    }

    fn harvest(&mut self, vm: VmId, each: &mut dyn FnMut(Dirty)) {
        self.harvests += 1;
        let Some(vm) = self.vms.get_mut(&vm) else { return };
        for dirty in std::mem::take(&mut vm.dirty) {
            each(dirty);
        }
    }

    fn alloc_frame(&mut self, owner: Owner) -> Result<Hpa, NoFrame> {
        let quota = match owner {
            Owner::Mediator => self.mediator_quota,
            Owner::Vm(vm) => self.vms.get(&vm).ok_or(NoFrame)?.quota,
        };
        // Counting is only worth its time where a test has set a limit.
        if quota != usize::MAX && self.frames_of(owner) >= quota {
            return Err(NoFrame);
        }
        let frame = self.free.pop().ok_or(NoFrame)?;
        self.allocated.insert(frame, oracle::Frame::new(owner));
        self.ram.write(frame, &[0; PAGE_SIZE as usize]);
        Ok(frame)
    }

    fn free_frame(&mut self, owner: Owner, frame: Hpa) {
        assert_eq!(
            self.allocated.remove(&frame).map(|frame| frame.owner),
            Some(owner),
            "freed by another owner, or twice"
        );
        // Poison, so that a use after free shows.
        self.ram.write(frame, &[0xA5; PAGE_SIZE as usize]);
        self.free.push(frame);
    }

    fn read_frame(&mut self, frame: Hpa, offset: usize, buf: &mut [u8]) {
        assert!(self.allocated.contains_key(&frame), "read of a frame that is not allocated");
        assert!(offset + buf.len() <= PAGE_SIZE as usize);
        self.ram.read(Hpa(frame.0 + offset as u64), buf);
    }

    fn write_frame(&mut self, frame: Hpa, offset: usize, data: &[u8]) {
        assert!(self.allocated.contains_key(&frame), "write to a frame that is not allocated");
        assert!(offset + data.len() <= PAGE_SIZE as usize);
        self.ram.write(Hpa(frame.0 + offset as u64), data);
    }

    fn map_register_page(&mut self, vm: VmId, page: u32, mapping: Mapping) {
        let Some(vm) = self.vms.get_mut(&vm) else { return };
        match mapping {
            Mapping::Trapped => vm.pages.remove(&page),
            mapping => vm.pages.insert(page, mapping),
        };
    }

    fn raise_msi(&mut self, vm: VmId, address: u64, data: u32) {
        self.msis.push(Msi { vm, address, data });
    }

    fn is_cpu_wanted(&mut self, vm: VmId) -> bool {
        self.busy.is_some_and(|busy| busy != vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_to_tracked_frames_are_harvested_once() {
        let mut host = FakeHost::new(64);
        let vm = VmId(1);
        host.add_vm(vm, 4);
        host.track(vm, Gfn(3)).unwrap();
        host.guest_write32(vm, Gpa(0x3004), 7);
        host.guest_write32(vm, Gpa(0x3008), 7);
        host.guest_write32(vm, Gpa(0x4000), 7);
        assert_eq!(host.track_exits, 1);
        let mut seen = Vec::new();
        host.harvest(vm, &mut |dirty| seen.push(dirty));
        host.harvest(vm, &mut |dirty| seen.push(dirty));
        assert_eq!(seen, [Dirty::Guest(Gfn(3))]);
        assert_eq!(host.guest_read32(vm, Gpa(0x3004)), 7);
    }

    #[test]
    fn frames_keep_to_the_quota() {
        let mut host = FakeHost::new(64);
        host.add_vm(VmId(1), 4);
        host.set_quota(VmId(1), 1);
        let frame = host.alloc_frame(Owner::Vm(VmId(1))).unwrap();
        assert_eq!(host.alloc_frame(Owner::Vm(VmId(1))), Err(NoFrame));
        host.free_frame(Owner::Vm(VmId(1)), frame);
        assert!(host.alloc_frame(Owner::Vm(VmId(1))).is_ok());
    }
}
