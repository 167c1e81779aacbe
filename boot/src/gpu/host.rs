//! `gvt::Host` on the hypervisor's services.

use alloc::vec::Vec;

use gvt::{Backing, Dirty, Host, Mapping, NoFrame, NotRam, Owner};
use gvt_defs::{Gfn, Gpa, Hpa};
use hv::frame::{self, OwnerId};
use hv::load::Config;
use hv::phys::Window;
use hv::vm::{DirtyPage, PageMapping, Vm, VmId};

use super::DEVICE;

/// Owner of the mediator's own frames; that of VM n's shadows is n further on. (The VMs own 1 to 31.)
const MEDIATOR: u8 = 32;
/// Frames for the mediator: 64 MiB of graphics addresses are its own, and as much again for what has none.
const MEDIATOR_QUOTA: u64 = 32_768;
/// Frames for a VM's shadows, at least: its global page table and the tables of a few small contexts.
const VM_QUOTA: u64 = 8_192;
/// A VM's shadows grow with its memory: one frame for so many of RAM.
const VM_SHARE: u64 = 128;
/// BAR with registers and page table.
const GTTMMADR: u8 = 0;
/// Frames that the ledger tells one by one: 4 GiB.
const LEDGER_FRAMES: usize = 1 << 20;

/// The hypervisor, as the mediator sees it.
pub struct Services {
    /// Pages mapped for VMs that are not built yet.
    early: Vec<(VmId, u32, Mapping)>,
    ledger: Ledger,
    #[cfg(feature = "soft-gpu")]
    pub soft: super::soft::Plugged,
}

/// Every frame that the mediator ever held: the physical GPU may have been led there, and nowhere else outside the
/// guests' memory. A bit for each of the lower frames, which are the first to be given out; the others as one run.
struct Ledger {
    low: Vec<u64>,
    high: Option<(u64, u64)>,
}

impl Ledger {
    fn new() -> Self {
        Self { low: alloc::vec![0; LEDGER_FRAMES / 64], high: None }
    }

    #[cfg(feature = "soft-gpu")]
    fn contains(&self, frame: u64) -> bool {
        match self.low.get((frame / 64) as usize) {
            Some(word) => word >> (frame % 64) & 1 == 1,
            None => self.high.is_some_and(|(first, end)| (first..end).contains(&frame)),
        }
    }

    fn enter(&mut self, frame: u64) {
        match self.low.get_mut((frame / 64) as usize) {
            Some(word) => *word |= 1 << (frame % 64),
            None => {
                let (first, end) = self.high.unwrap_or((frame, frame + 1));
                self.high = Some((first.min(frame), end.max(frame + 1)));
            }
        }
    }

    /// Gives each run: first byte, bytes.
    fn runs(&self, each: &mut dyn FnMut(u64, u64)) {
        let mut each_run = |first: u64, end: u64| each(first * hv_defs::PAGE_SIZE, (end - first) * hv_defs::PAGE_SIZE);
        let mut start = None;
        for (frame, word) in (0..).step_by(64).zip(self.low.iter().chain(&[0])) {
            // Most words hold nothing.
            let bits = if *word == 0 && start.is_none() { 0 } else { 64 };
            for frame in (frame..).take(bits) {
                if word >> (frame % 64) & 1 == 1 {
                    start = start.or(Some(frame));
                } else if let Some(first) = start.take() {
                    each_run(first, frame);
                }
            }
        }
        if let Some((first, end)) = self.high {
            each_run(first, end);
        }
    }
}

pub fn to_gvt(id: VmId) -> gvt::VmId {
    gvt::VmId(u32::from(id.0))
}

pub fn from_gvt(id: gvt::VmId) -> VmId {
    VmId(id.0 as u8)
}

fn vm(id: gvt::VmId) -> Option<&'static Vm> {
    hv::machine::vm(from_gvt(id))
}

fn account(owner: Owner) -> OwnerId {
    match owner {
        Owner::Mediator => OwnerId(MEDIATOR),
        Owner::Vm(id) => OwnerId(MEDIATOR.saturating_add(id.0 as u8)),
    }
}

impl Services {
    /// Sets the quotas of the mediator and of each VM.
    pub fn new(config: &Config) -> Self {
        frame::set_quota(account(Owner::Mediator), MEDIATOR_QUOTA);
        for (number, vm) in (1..).zip(&config.vm) {
            let frames = VM_QUOTA + vm.memory_mib * 256 / VM_SHARE;
            frame::set_quota(account(Owner::Vm(gvt::VmId(number))), frames);
        }
        Self {
            early: Vec::new(),
            ledger: Ledger::new(),
            #[cfg(feature = "soft-gpu")]
            soft: Default::default(),
        }
    }

    /// Whether the mediator ever held a frame.
    #[cfg(feature = "soft-gpu")]
    pub fn ever_held(&self, frame: Hpa) -> bool {
        self.ledger.contains(frame.0 / hv_defs::PAGE_SIZE)
    }

    /// Gives each run of frames that the mediator ever held: first byte, bytes.
    pub fn memory(&self, each: &mut dyn FnMut(u64, u64)) {
        self.ledger.runs(each);
    }

    /// Maps what was asked for before the VM was built.
    pub fn settle(&mut self, id: VmId) {
        let Some(vm) = hv::machine::vm(id) else { return };
        #[cfg(feature = "soft-gpu")]
        self.soft.meet(vm);
        self.early.retain(|&(owner, page, mapping)| {
            if owner == id {
                map(vm, page, mapping);
            }
            owner != id
        });
    }
}

/// A physical device has a clock and an aperture of its own: there is nothing to do.
#[cfg(not(feature = "soft-gpu"))]
impl Services {
    pub fn device_deadline(&self) -> Option<gvt_defs::Nanos> {
        None
    }

    pub fn show_aperture(&mut self, _: VmId, _: gvt::ApertureSlice) {}

    pub fn aperture_read(&mut self, _: u64, width: hv_defs::Width) -> u64 {
        width.mask()
    }

    pub fn aperture_write(&mut self, _: u64, _: hv_defs::Width, _: u64) {}
}

fn map(vm: &Vm, page: u32, mapping: Mapping) {
    let hpa = |hpa: Hpa| hv_defs::Hpa(hpa.0);
    let mapping = match mapping {
        Mapping::Trapped => PageMapping::Trapped,
        Mapping::ReadOnly(frame) => PageMapping::ReadOnly(hpa(frame)),
        Mapping::Tracked(frame) => PageMapping::Tracked(hpa(frame)),
    };
    vm.map_page(DEVICE, GTTMMADR, page, mapping);
}

/// A frame that the mediator has allocated.
fn window(frame: Hpa) -> Window {
    // SAFETY: 1. The mediator hands back only frames that `alloc_frame` gave it, which are RAM in the direct map.
    // 2. They belong to the mediator, which reaches them only through such windows: no reference exists.
    unsafe { Window::new(hv_defs::Hpa(frame.0), hv_defs::PAGE_SIZE) }
}

impl Host for Services {
    fn read(&mut self, id: gvt::VmId, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        vm(id).ok_or(NotRam)?.read(hv_defs::Gpa(gpa.0), buf).map_err(|_| NotRam)
    }

    fn write(&mut self, id: gvt::VmId, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        vm(id).ok_or(NotRam)?.write(hv_defs::Gpa(gpa.0), data).map_err(|_| NotRam)
    }

    fn translate(&mut self, id: gvt::VmId, gfn: Gfn) -> Option<Backing> {
        let (hpa, frames) = vm(id)?.translate(hv_defs::Gfn(gfn.0))?;
        Some(Backing { hpa: Hpa(hpa.0), frames: frames.clamp(1, 512) as u32 })
    }

    fn track(&mut self, id: gvt::VmId, gfn: Gfn) -> Result<(), NotRam> {
        vm(id).ok_or(NotRam)?.track(hv_defs::Gfn(gfn.0)).map_err(|_| NotRam)
    }

    fn untrack(&mut self, id: gvt::VmId, gfn: Gfn) {
        if let Some(vm) = vm(id) {
            vm.untrack(hv_defs::Gfn(gfn.0));
        }
    }

    fn harvest(&mut self, id: gvt::VmId, each: &mut dyn FnMut(Dirty)) {
        if let Some(vm) = vm(id) {
            vm.harvest(&mut |page| match page {
                DirtyPage::Ram(gfn) => each(Dirty::Guest(Gfn(gfn.0))),
                DirtyPage::Bar { device: DEVICE, bar: GTTMMADR, page } => each(Dirty::Register(page)),
                DirtyPage::Bar { .. } => {}
            });
        }
    }

    fn alloc_frame(&mut self, owner: Owner) -> Result<Hpa, NoFrame> {
        let frame = frame::alloc_zeroed(account(owner)).ok_or(NoFrame)?;
        self.ledger.enter(frame.0);
        Ok(Hpa(frame.hpa().0))
    }

    fn free_frame(&mut self, owner: Owner, frame: Hpa) {
        frame::free(account(owner), hv_defs::Hpa(frame.0).frame());
    }

    // Out of range: nothing is copied, as the trait says.
    fn read_frame(&mut self, frame: Hpa, offset: usize, buf: &mut [u8]) {
        let _ = window(frame).read(offset as u64, buf);
    }

    fn write_frame(&mut self, frame: Hpa, offset: usize, data: &[u8]) {
        let _ = window(frame).write(offset as u64, data);
    }

    fn map_register_page(&mut self, id: gvt::VmId, page: u32, mapping: Mapping) {
        match vm(id) {
            Some(vm) => map(vm, page, mapping),
            None => {
                let id = from_gvt(id);
                self.early.retain(|&(owner, other, _)| (owner, other) != (id, page));
                self.early.push((id, page, mapping));
            }
        }
    }

    fn raise_msi(&mut self, id: gvt::VmId, address: u64, data: u32) {
        if let Some(vm) = vm(id) {
            vm.raise_msi(address, data);
        }
    }

    fn is_cpu_wanted(&mut self, id: gvt::VmId) -> bool {
        hv::machine::is_first_cpu_wanted(from_gvt(id))
    }
}
