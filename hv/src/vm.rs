//! A virtual machine: what its virtual CPUs share. Everything here may be called from any CPU.
//!
//! Lock order: chipset, then a function (and what it locks inside), then the nested tables, which nothing waits under.

mod bits;
mod boot;
mod clean;
mod functions;
mod lifecycle;
mod lines;
mod memory;
mod restart;
mod tables;
mod timed;
mod wires;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use hv_defs::paging::Access;
use hv_defs::{Gfn, Gpa, Hpa, Nanos};
use hv_dev::apic::{Delivered, Posted, deliver};
use hv_dev::e820::Layout;
use hv_dev::pci::PciFunction;
use hv_dev::{Chipset, Message};
use spin::Mutex;

pub use self::boot::{BundleLoader, Loader};
pub use self::functions::Place;
pub use self::lifecycle::{Request, Status};
pub use self::memory::{GuestMemory, NotRam, Slot};
pub use self::restart::{MAX_RESTARTS, RestartPolicy};
pub use self::tables::{DirtyPage, Fault, PageMapping};

use self::functions::Functions;
use self::lifecycle::Lifecycle;
use self::lines::Lines;
use self::tables::{Tables, Tracking};
use self::timed::Timed;
pub(crate) use self::wires::VmWires;
use crate::cpus::{self, Generation};
use crate::frame::{OwnerId, Placement};
use crate::load::OnCrash;
use crate::nested::{NestedMap, Pool};
use crate::percpu::CpuId;
use crate::stats::VmStats;
use crate::{say, time};

pub use crate::cpus::VmId;

/// What a VM is built from.
pub struct VmSetup {
    /// Its number on the console, from 1.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Bytes of RAM.
    pub memory: u64,
    /// The physical CPU of each virtual CPU.
    pub cpus: Vec<CpuId>,
    /// PCI functions by device number on bus 0.
    pub functions: Vec<(u8, Box<dyn PciFunction>)>,
    /// Bytes of BARs that the functions may have mapped page by page.
    pub mapped_bars: u64,
    /// Which end of host memory its RAM comes from.
    pub placement: Placement,
    /// Puts the guest's software into its RAM, at each start.
    pub loader: Box<dyn Loader>,
    /// What follows a crash.
    pub on_crash: OnCrash,
    /// How often it may start again by itself.
    pub restarts: RestartPolicy,
    /// Seconds of Unix time when the host's clock was zero.
    pub wall_clock: u64,
}

/// The VM cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory {
    /// MiB that it needs.
    pub needs_mib: u64,
}

/// A virtual machine.
pub struct Vm {
    id: VmId,
    name: String,
    layout: Layout,
    memory: GuestMemory,
    tracking: Tracking,
    tables: Mutex<Tables>,
    nested_root: Hpa,
    generation: Generation,
    harvested: Mutex<Vec<DirtyPage>>,
    chipset: Timed<Chipset>,
    functions: Functions,
    posted: Vec<Posted>,
    cpus: Vec<CpuId>,
    lifecycle: Lifecycle,
    loader: Box<dyn Loader>,
    on_crash: OnCrash,
    wall_clock: u64,
    stats: VmStats,
    lines: Mutex<Lines>,
}

impl Vm {
    /// Builds a VM; `nested` makes empty nested tables (see `Extension::nested`).
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(setup: VmSetup, nested: impl FnOnce(Pool) -> Option<Box<dyn NestedMap>>) -> Result<Self, OutOfMemory> {
        let error = OutOfMemory { needs_mib: (setup.memory >> 20) + (setup.memory >> 28) + 4 };
        let owner = OwnerId(setup.id.0);
        let layout = Layout::new(setup.memory);
        let memory = GuestMemory::allocate(owner, &layout, setup.placement).ok_or(error)?;
        let frames = Pool::frames_for(setup.memory, setup.mapped_bars);
        let map = Pool::new(owner, frames).and_then(nested).ok_or(error)?;
        let tables = Tables::new(map);
        let config = hv_dev::Config { layout, wall_clock: setup.wall_clock as i64 };
        let ids = 0..setup.cpus.len() as u32;
        Ok(Self {
            id: setup.id,
            name: setup.name,
            layout,
            tracking: Tracking::new(memory.frames()),
            memory,
            nested_root: tables.root(),
            tables: Mutex::new(tables),
            generation: Generation::new(),
            harvested: Mutex::new(Vec::with_capacity(tables::LISTED)),
            chipset: Timed::new(Chipset::new(&config)),
            functions: Functions::new(setup.functions),
            posted: ids.map(Posted::new).collect(),
            lifecycle: Lifecycle::new(setup.cpus.len(), setup.restarts),
            cpus: setup.cpus,
            loader: setup.loader,
            on_crash: setup.on_crash,
            wall_clock: setup.wall_clock,
            stats: VmStats::default(),
            lines: Mutex::new(Lines::new()),
        })
    }

    /// Its number on the console.
    pub fn id(&self) -> VmId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its RAM is laid out.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its RAM. Stores go through `write`.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The physical CPU of each virtual CPU.
    pub fn cpus(&self) -> &[CpuId] {
        &self.cpus
    }

    /// Counters.
    pub fn stats(&self) -> &VmStats {
        &self.stats
    }

    /// Mailboxes of the local APICs.
    pub(crate) fn posted(&self) -> &[Posted] {
        &self.posted
    }

    pub(crate) fn nested_root(&self) -> Hpa {
        self.nested_root
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.get()
    }

    pub(crate) fn wall_clock(&self) -> u64 {
        self.wall_clock
    }

    pub(crate) fn on_crash(&self) -> OnCrash {
        self.on_crash
    }

    /// A line of Prism's that this VM's guest can cause at will: too many are held back and counted.
    pub fn say(&self, text: fmt::Arguments<'_>) {
        let held = self.lines.lock().ask(time::now());
        if let Some(held) = held {
            self.say_held(held);
            say!("{text}");
        }
    }

    /// Tells of the lines that are held back still.
    fn say_rest(&self) {
        let held = self.lines.lock().take_held();
        self.say_held(held);
    }

    /// Says how many were.
    fn say_held(&self, held: u64) {
        if held > 0 {
            say!("{self}: {held} more lines like these");
        }
    }
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vm {} ({})", self.id.0, self.name)
    }
}

// ---- Memory, as the mediator and the emulator use it -----------------------------------------------------------------

impl Vm {
    /// Copies guest RAM out.
    ///
    /// # Errors
    /// `NotRam`, and nothing is copied.
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        self.memory.read(gpa, buf)
    }

    /// Copies into guest RAM. A store to a tracked page is recorded like the guest's own.
    ///
    /// # Errors
    /// `NotRam`, and nothing is copied.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.memory.store(gpa, data)?;
        // Recorded after the store: a harvest between the two misses the store, but the next one does not.
        let last = gpa.wrapping_add((data.len() as u64).saturating_sub(1)).gfn();
        for gfn in (gpa.gfn().0..=last.0).map(Gfn) {
            let index = self.memory.index_of(gfn).filter(|index| self.tracking.is_tracked(*index));
            if let Some(index) = index {
                self.tables.lock().mark(&self.tracking, index, gfn);
            }
        }
        Ok(())
    }

    /// Host address of a frame of RAM, and how many frames from there on are contiguous and may be given to a device (at
    /// most 512). Stays true for the VM's life.
    pub fn translate(&self, gfn: Gfn) -> Option<(Hpa, u64)> {
        self.memory.translate(gfn)
    }

    /// Records writes to a frame of RAM from now on. It is protected, on all CPUs, when this returns.
    ///
    /// # Errors
    /// `NotRam`.
    pub fn track(&self, gfn: Gfn) -> Result<(), NotRam> {
        let index = self.memory.index_of(gfn).ok_or(NotRam)?;
        let flush = self.tables.lock().track(&self.tracking, &self.memory, index, gfn);
        if flush {
            self.flush();
        }
        Ok(())
    }

    /// Stops recording.
    pub fn untrack(&self, gfn: Gfn) {
        if let Some(index) = self.memory.index_of(gfn) {
            self.tables.lock().untrack(&self.tracking, index, gfn);
        }
    }

    /// Hands out the pages written since the last harvest, each once, after all of them are protected again and every
    /// CPU in guest mode with this VM has been flushed. `each` may call anything of this VM but `harvest`.
    pub fn harvest(&self, each: &mut dyn FnMut(DirtyPage)) {
        let mut pages = self.harvested.lock();
        let flush = self.tables.lock().harvest(&self.tracking, &self.memory, &mut pages);
        if flush {
            self.flush();
        }
        for page in pages.drain(..) {
            each(page);
        }
    }

    /// Changes how 4 KiB page `page` of a BAR appears to the guest. Follows the BAR when it moves.
    pub fn map_page(&self, device: u8, bar: u8, page: u32, mapping: PageMapping) {
        let flush = self.tables.lock().map_page(device, bar, page, mapping);
        if flush {
            self.flush();
        }
    }

    /// Maps a stretch (`offset`, `bytes`) of a BAR to device memory at `hpa`, for good. Follows the BAR when it moves.
    /// `None` when the BAR has four such stretches already.
    pub fn map_range(&self, device: u8, bar: u8, stretch: (u64, u64), hpa: Hpa, access: Access) -> Option<()> {
        self.tables.lock().map_range(device, bar, stretch, hpa, access)
    }

    /// Decides about a nested fault.
    pub(crate) fn fault(&self, gpa: Gpa, write: bool) -> Fault {
        self.tables.lock().fault(&self.tracking, &self.memory, gpa, write)
    }

    /// Reads a page of a BAR that is mapped to a frame; `None` if the access is the model's.
    pub(crate) fn read_mapped(&self, gpa: Gpa, buf: &mut [u8]) -> Option<()> {
        self.tables.lock().read_mapped(gpa, buf)
    }

    /// Writes to a tracked page of a BAR, and records it; `None` if the access is the model's.
    pub(crate) fn write_mapped(&self, gpa: Gpa, data: &[u8]) -> Option<()> {
        self.tables.lock().write_mapped(gpa, data)
    }

    /// Drops what any CPU has cached of this VM's nested tables, and returns emptied tables to use.
    fn flush(&self) {
        let sealed = self.tables.lock().seal();
        self.generation.advance(self.id);
        if let Some(sealed) = sealed {
            self.tables.lock().reclaim(sealed);
        }
    }
}

// ---- Interrupts ----------------------------------------------------------------------------------------------------------

impl Vm {
    /// Delivers an interrupt message. Takes no lock. `sender` is the APIC id of a local APIC that sent it.
    pub(crate) fn deliver(&self, message: &Message, sender: Option<u32>) -> Delivered {
        deliver(&self.posted, message, sender, |index| self.wake(index))
    }

    /// A message-signalled interrupt: writes `data` to `address` on the interrupt bus. Takes no lock.
    pub fn raise_msi(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.deliver(&message, None);
        }
    }

    /// Makes the CPU of a virtual CPU look at its mailbox.
    pub(crate) fn wake(&self, index: usize) {
        if let Some(cpu) = self.cpus.get(index) {
            cpus::nudge(*cpu);
        }
    }

    /// The CPU that runs this VM's timers and changes of state.
    pub(crate) fn home(&self) -> CpuId {
        self.cpus.first().copied().unwrap_or(CpuId(0))
    }
}

// ---- Chipset -------------------------------------------------------------------------------------------------------------

impl Vm {
    /// Runs `action` on the chipset, then publishes when it next wants to be called.
    pub(crate) fn with_chipset<R>(&self, action: impl FnOnce(&mut Chipset, &mut VmWires<'_>) -> R) -> R {
        let mut wires = VmWires::new(self);
        let (result, is_sooner) = self.chipset.with(|chipset| action(chipset, &mut wires), Chipset::deadline);
        if is_sooner {
            cpus::nudge(self.home());
        }
        wires.finish();
        result
    }

    /// When the chipset wants to be called, by this VM's home CPU.
    pub(crate) fn chipset_deadline(&self) -> Option<Nanos> {
        self.chipset.deadline()
    }

    /// When this VM wants its home CPU: for the chipset, or since it waits to start again.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        match self.restart_deadline() {
            None => self.chipset_deadline(),
            restart => self.chipset_deadline().into_iter().chain(restart).min(),
        }
    }

    /// Advances the chipset's timers if they are due.
    pub(crate) fn tick(&self, now: Nanos) {
        if self.chipset_deadline().is_some_and(|deadline| deadline <= now) {
            self.with_chipset(|chipset, wires| chipset.tick(now, wires));
        }
    }

    /// A byte typed on this VM's console.
    pub fn console_input(&self, byte: u8) {
        let now = time::now();
        // A full receive ring drops the byte, as a UART does.
        let _ = self.with_chipset(|chipset, wires| chipset.console_input(byte, now, wires));
    }
}
