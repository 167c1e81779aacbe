//! The software Gen9 linked in (feature `soft-gpu`), for machines that have no GPU: Bochs, and QEMU without vfio-user.
//!
//! Its engines run in bounded turns, on the time of whoever enters the mediator and when a deadline has passed. Of the
//! machine it sees what a PCI device behind an IOMMU would: the guests' memory and the mediator's frames.

mod aperture;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use gvt::{Aperture, ApertureAccess, Gvt, Hw};
use gvt_defs::{Hpa, Nanos};
use gvt_model::{Bar, BusError, Finding, Gpu as Model, Memory, Profile, Progress, Strict, Width};
use hv::phys::Window;
use hv::say;
use hv::vm::Vm;
use hv_defs::PAGE_SIZE;
use spin::Mutex;

use self::aperture::{Changes, Slice};
use super::host::Services;
use super::now;
use super::physical::PciGpu;

/// Units of work of each engine between two looks at the clock.
const BUDGET: u32 = 32;
/// How long a turn lasts, at least one round of `BUDGET`.
const TURN: u64 = 50_000;
/// The pause after a turn, in which guests run, is as long as the turn was, and no shorter than this.
const PAUSE: u64 = 10_000;
/// Different findings that are told.
const FINDINGS: usize = 64;
/// Entries of the global page table.
const ENTRIES: u32 = 1 << 20;

/// The GPU that is shared: a physical one if there is one.
pub enum Device {
    /// A PCI function.
    Pci(PciGpu),
    /// The model.
    Soft(SoftGpu),
}

impl Device {
    /// Takes the physical GPU, or plugs the software one in.
    pub fn choose(physical: Option<PciGpu>, host: &mut Services) -> Self {
        match physical {
            Some(gpu) => Self::Pci(gpu),
            None => {
                say!("gpu: none at 00:02.0; guests share the software GPU that is linked into this image");
                let gpu = SoftGpu::new();
                host.soft.gpu = Some(gpu);
                Self::Soft(gpu)
            }
        }
    }

    fn hw(&mut self) -> &mut dyn Hw {
        match self {
            Self::Pci(gpu) => gpu,
            Self::Soft(gpu) => gpu,
        }
    }
}

impl Hw for Device {
    fn config_read(&mut self, offset: u16) -> u32 {
        self.hw().config_read(offset)
    }
    fn config_write(&mut self, offset: u16, value: u32) {
        self.hw().config_write(offset, value);
    }
    fn read(&mut self, offset: u32) -> u32 {
        self.hw().read(offset)
    }
    fn write(&mut self, offset: u32, value: u32) {
        self.hw().write(offset, value);
    }
    fn ggtt_read(&mut self, index: u32) -> u64 {
        self.hw().ggtt_read(index)
    }
    fn ggtt_write(&mut self, index: u32, pte: u64) {
        self.hw().ggtt_write(index, pte);
    }
    fn ggtt_entries(&mut self) -> u32 {
        self.hw().ggtt_entries()
    }
    fn aperture(&mut self) -> Aperture {
        self.hw().aperture()
    }
}

/// A handle of the one model. Lock order: the mediator, then this.
#[derive(Clone, Copy)]
pub struct SoftGpu(&'static Mutex<State>);

struct State {
    model: Model,
    /// When the engines want to run on; `None` until the next write to a register.
    due: Option<Nanos>,
    changes: Changes,
    told: Vec<Finding>,
}

impl SoftGpu {
    fn new() -> Self {
        let profile = Profile { strict: Strict::Report, ..Profile::kaby_lake() };
        let state = State { model: Model::new(profile), due: None, changes: Changes::new(), told: Vec::new() };
        Self(Box::leak(Box::new(Mutex::new(state))))
    }
}

impl Hw for SoftGpu {
    fn config_read(&mut self, offset: u16) -> u32 {
        self.0.lock().model.config_read(offset, Width::Dword)
    }
    fn config_write(&mut self, offset: u16, value: u32) {
        self.0.lock().model.config_write(offset, Width::Dword, value);
    }
    fn read(&mut self, offset: u32) -> u32 {
        self.0.lock().model.read32(offset, now())
    }
    fn write(&mut self, offset: u32, value: u32) {
        let State { model, due, changes, .. } = &mut *self.0.lock();
        let now = now();
        changes.note_fence(model, offset);
        model.write32(offset, value, now);
        changes.note_fence(model, offset);
        // It may have been what an engine waited for.
        *due = Some(now);
    }
    fn ggtt_read(&mut self, index: u32) -> u64 {
        self.0.lock().model.ggtt_read(index)
    }
    fn ggtt_write(&mut self, index: u32, pte: u64) {
        let mut state = self.0.lock();
        state.model.ggtt_write(index, pte);
        state.changes.note(index);
    }
    fn ggtt_entries(&mut self) -> u32 {
        ENTRIES
    }
    fn aperture(&mut self) -> Aperture {
        Aperture { base: 0, size: self.0.lock().model.bar_size(Bar::Gmadr), access: ApertureAccess::Emulated }
    }
}

impl State {
    /// Lets the engines work for a turn if they are due; says whether the GPU has raised its interrupt.
    fn run(&mut self, memory: &mut Services) -> bool {
        let begun = now();
        if self.due.is_some_and(|due| due <= begun) {
            self.due = self.turn(memory, begun);
            self.tell();
        }
        self.model.take_interrupt()
    }

    fn turn(&mut self, memory: &mut Services, begun: Nanos) -> Option<Nanos> {
        loop {
            let progress = self.model.step(memory, now(), BUDGET);
            let spent = now().0.saturating_sub(begun.0);
            match progress {
                Progress::Idle => return None,
                Progress::WaitUntil(at) => return Some(at),
                Progress::Busy if spent < TURN => {}
                Progress::Busy => return Some(Nanos(begun.0 + spent + spent.max(PAUSE))),
            }
        }
    }

    fn tell(&mut self) {
        for finding in self.model.take_findings() {
            if self.told.len() < FINDINGS && !self.told.contains(&finding) {
                say!("gpu: {finding}");
                self.told.push(finding);
            }
        }
    }
}

/// Lets the engines work if they are due, and hands their interrupt to the mediator.
pub fn run(gvt: &mut Gvt<Device>, host: &mut Services) {
    let Some(SoftGpu(state)) = host.soft.gpu else { return };
    let interrupted = state.lock().run(host);
    if interrupted {
        gvt.interrupt(host, now());
    }
}

/// What the software GPU is plugged into.
#[derive(Default)]
pub struct Plugged {
    gpu: Option<SoftGpu>,
    /// The guests' memory.
    guests: Vec<Range<u64>>,
    slices: Vec<Slice>,
}

impl Plugged {
    /// A VM was built: its memory is within reach.
    pub fn meet(&mut self, vm: &Vm) {
        let slots = vm.memory().slots().iter();
        self.guests.extend(slots.map(|slot| slot.hpa().0..slot.hpa().0 + slot.bytes()));
    }
}

impl Services {
    /// When the device wants to be looked after.
    pub fn device_deadline(&self) -> Option<Nanos> {
        self.soft.gpu?.0.lock().due
    }

    /// The page that the GPU may reach at an address.
    fn reach(&self, hpa: Hpa) -> Result<Window, BusError> {
        let page = Hpa(hpa.0 & !(PAGE_SIZE - 1));
        if !self.ever_held(page) && !self.soft.guests.iter().any(|range| range.contains(&page.0)) {
            return Err(BusError);
        }
        // SAFETY: 1. Guest RAM, or a frame that the mediator held once: RAM in the direct map. 2. Frames that came from
        // the allocator after the heap and the stacks were made never carry references: page tables and guests' memory,
        // which they may have become since, are reached by copying too.
        Ok(unsafe { Window::new(hv_defs::Hpa(page.0), PAGE_SIZE) })
    }
}

impl Memory for Services {
    fn read(&mut self, hpa: Hpa, buf: &mut [u8]) -> Result<(), BusError> {
        let (page, offset) = (self.reach(hpa)?, hpa.0 % PAGE_SIZE);
        // Whole, where others may be writing it.
        if let Ok(dword) = <&mut [u8; 4]>::try_from(&mut *buf)
            && let Some(value) = page.read_u32(offset)
        {
            *dword = value.to_le_bytes();
            return Ok(());
        }
        page.read(offset, buf).map_err(|_| BusError)
    }

    fn write(&mut self, hpa: Hpa, data: &[u8]) -> Result<(), BusError> {
        self.reach(hpa)?.write(hpa.0 % PAGE_SIZE, data).map_err(|_| BusError)
    }
}
