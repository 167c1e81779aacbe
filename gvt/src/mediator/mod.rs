//! The mediator itself: every input of the state machine (design D5), and the parts it is made of.

mod access;
mod desk;
mod events;
mod handlers;
mod lifecycle;
mod query;
mod run;
mod share;
mod submit;
mod wash;

#[cfg(test)]
mod tests;

pub use self::access::{Progress, Store};
pub use self::lifecycle::Destroyed;
use self::run::Seen;
use crate::audit::ContextRegisters;
use crate::gpu::{Gpu, PerEngine};
use crate::host::Host;
use crate::hw::Hw;
use crate::report::{Action, Cause, InitError, Report, Reports};
use crate::stats::{Stats, Totals};
use crate::trace::{Event, Note, Trace};
use crate::units::Metered;
use crate::vgpu::config_space::Bar;
use crate::vgpu::registers::RegisterFile;
use crate::vgpu::{Sent, Vgpu};
use alloc::boxed::Box;
use alloc::vec::Vec;
use gvt_defs::{EngineMask, Nanos};

/// vGPUs at most.
pub const VGPUS: usize = 8;

/// Pages of the mediator's graphics addresses that one vGPU's shadows may take: an equal share of what is left when
/// every engine has its parking context and status page.
pub(crate) const POOL_SHARE: u32 = (crate::gpu::pool::PAGES - 64) / VGPUS as u32;

/// Times by which the mediator decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// How long a vGPU keeps an engine that another one waits for.
    pub slice: Nanos,
    /// How long an engine is kept for a vGPU that is owed time and has just run out of work.
    pub grace: Nanos,
    /// How long a status entry that tells only of a start may wait for the completion.
    pub tick: Nanos,
    /// How long an engine may take to reach an arbitration point while another vGPU waits.
    pub hang: Nanos,
    /// How long an engine may run without an interrupt before it is looked at without one.
    pub watch: Nanos,
    /// Resets in a second, of engines that others wait for, by which a guest forfeits its VM.
    pub resets: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slice: Nanos(5_000_000),
            grace: Nanos(500_000),
            tick: Nanos(1_000_000),
            hang: Nanos(500_000_000),
            watch: Nanos(100_000_000),
            resets: 200,
        }
    }
}

/// Shape of a vGPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VgpuConfig {
    /// Bytes of the aperture.
    pub aperture: u32,
    /// Bytes of graphics address space outside the aperture.
    pub hidden: u32,
    /// Fence registers.
    pub fences: u8,
    /// Share of engine time relative to others, 1 to 1024.
    pub weight: u16,
}

impl Default for VgpuConfig {
    fn default() -> Self {
        Self { aperture: 128 << 20, hidden: 512 << 20, fences: 4, weight: 4 }
    }
}

/// Names a vGPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VgpuId(pub u8);

impl VgpuId {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a reset takes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetKind {
    /// Some engines.
    Engines(EngineMask),
    /// All engines and the GT registers.
    Gt,
    /// Everything, configuration space included: function-level reset, reset of the VM.
    Device,
}

/// The part of BAR2 that is a vGPU's; it lies at the same offset in the physical aperture.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ApertureSlice {
    /// Offset in BAR2.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Buffers that copies of guest structures pass through, allocated once: none may have to grow because of what a guest
/// submits, which the heap might not have room for (design D18).
struct Scratch {
    image: Vec<u32>,
    ring: Vec<u32>,
    arena: Vec<u32>,
}

/// The mediator.
pub struct Gvt<W: Hw> {
    config: Config,
    gpu: Gpu<W>,
    vgpus: [Option<Box<Vgpu>>; VGPUS],
    scratch: Scratch,
    /// What a vGPU's registers hold after a reset: made once, since a guest can reset as often as it likes.
    fresh: RegisterFile,
    /// Registers that may stand in a context image.
    registers: PerEngine<ContextRegisters>,
    reports: Reports,
    trace: Trace,
    /// When the interrupt registers were last looked at.
    looked: Nanos,
    /// When the first events that are held back are to be passed on.
    holding: Option<Nanos>,
}

impl<W: Hw> Gvt<W> {
    /// Takes the GPU over: snapshot, reset, engines ready, interrupts on.
    ///
    /// # Errors
    /// `InitError` says what is wrong with the GPU, in one line.
    pub fn new(hw: W, config: Config, host: &mut dyn Host, now: Nanos) -> Result<Self, InitError> {
        let gpu = Gpu::new(hw, host)?;
        Ok(Self {
            config,
            fresh: RegisterFile::new(&gpu.registers),
            gpu,
            vgpus: [const { None }; VGPUS],
            scratch: Scratch::new(),
            registers: PerEngine::from_fn(ContextRegisters::known),
            reports: Reports::new(),
            trace: Trace::new(),
            looked: now,
            holding: None,
        })
    }

    /// Reads configuration space of a vGPU: `bytes` is 1, 2 or 4, aligned; anything else reads all ones.
    pub fn config_read(&mut self, id: VgpuId, offset: u16, bytes: usize) -> u32 {
        let Some(vgpu) = self.vgpu_mut(id.index()) else { return u32::MAX };
        vgpu.stats.exits.config += 1;
        vgpu.config.read(offset, bytes)
    }

    /// Writes configuration space of a vGPU. The caller asks for `bars` again afterwards.
    pub fn config_write(&mut self, host: &mut dyn Host, id: VgpuId, offset: u16, bytes: usize, value: u32, now: Nanos) {
        self.hold(host, Some(id), |gvt, host| {
            if let Some(vgpu) = gvt.vgpu_mut(id.index()) {
                vgpu.stats.exits.config += 1;
                vgpu.config.write(offset, bytes, value);
                vgpu.recheck_irq();
            }
            gvt.finish(host, now);
        });
    }

    /// The BARs that decode now: registers (0) and aperture (2).
    pub fn bars(&self, id: VgpuId) -> [Option<Bar>; 2] {
        self.vgpu(id.index()).map_or([None; 2], |vgpu| vgpu.config.bars())
    }

    /// The part of BAR2 that is the vGPU's.
    pub fn aperture_slice(&self, id: VgpuId) -> ApertureSlice {
        let entries = self.vgpu(id.index()).map_or(0..0, |vgpu| vgpu.partition.aperture());
        ApertureSlice { offset: u64::from(entries.start) * 4096, size: u64::from(entries.end - entries.start) * 4096 }
    }

    /// The physical GPU's interrupt.
    pub fn interrupt(&mut self, host: &mut dyn Host, now: Nanos) {
        self.hold(host, None, |gvt, host| gvt.take_interrupt(host, now));
    }

    fn take_interrupt(&mut self, host: &mut dyn Host, now: Nanos) {
        self.looked = now;
        let before = self.gpu.hw.meter.spent();
        let (master, events) = self.gpu.take_interrupts();
        self.trace.push(now, None, Note::Interrupt(master));
        let bill = self.pass_events(host, &events, before);
        self.poll_engines(host, now);
        self.gpu.rearm();
        self.finish(host, now);
        self.settle_bill(host, &bill, now);
    }

    /// Time has passed `deadline`.
    pub fn timer(&mut self, host: &mut dyn Host, now: Nanos) {
        self.hold(host, None, |gvt, host| {
            // A message that got lost leaves its event pending, and no further message would ever come.
            let late = gvt.watch_deadline().is_some_and(|deadline| deadline <= now);
            if gvt.poll_engines(host, now) == Seen::Events || late {
                gvt.take_interrupt(host, now);
            }
            gvt.expire(host, now);
            gvt.let_go(host, now);
            gvt.finish(host, now);
        });
    }

    /// When `timer` wants to be called; ask again after every call.
    pub fn deadline(&self) -> Option<Nanos> {
        self.next_deadline()
    }

    /// Takes what there is to report; ask until `None` after every call.
    pub fn take_report(&mut self) -> Option<Report> {
        self.reports.take()
    }

    /// Counters of a vGPU.
    pub fn stats(&self, id: VgpuId) -> Option<&Stats> {
        self.vgpu(id.index()).map(|vgpu| &vgpu.stats)
    }

    /// Counters of the physical side.
    pub fn totals(&self) -> Totals {
        self.gpu.hw.totals
    }

    /// What happened lately, oldest first.
    pub fn trace(&self) -> impl Iterator<Item = &Event> {
        self.trace.iter()
    }

    /// One call: what it costs is added up, and what the longest one cost is kept (design D19).
    fn hold<T>(
        &mut self,
        host: &mut dyn Host,
        id: Option<VgpuId>,
        call: impl FnOnce(&mut Self, &mut dyn Host) -> T,
    ) -> T {
        let meter = self.gpu.hw.meter.clone();
        meter.start();
        let result = call(self, &mut Metered::new(host, &meter));
        let spent = meter.parts();
        let longest = &mut self.gpu.hw.totals.longest;
        *longest = spent.max(*longest);
        if let Some(vgpu) = id.and_then(|id| self.vgpu_mut(id.index())) {
            vgpu.stats.longest = spent.max(vgpu.stats.longest);
        }
        result
    }

    fn vgpu(&self, index: usize) -> Option<&Vgpu> {
        self.vgpus.get(index)?.as_deref()
    }

    fn vgpu_mut(&mut self, index: usize) -> Option<&mut Vgpu> {
        self.vgpus.get_mut(index)?.as_deref_mut()
    }

    /// Sends the messages that this call made due: all that is ready shares one.
    fn finish(&mut self, host: &mut dyn Host, now: Nanos) {
        for (index, vgpu) in self.vgpus.iter_mut().enumerate() {
            let Some(vgpu) = vgpu else { continue };
            if vgpu.send_msi(host) == Sent::Message {
                self.trace.push(now, Some(index), Note::Msi);
            }
        }
    }

    fn report(&mut self, index: usize, cause: Cause) {
        let Some(vgpu) = self.vgpu(index) else { return };
        let vm = vgpu.vm;
        self.reports.push(Report { vm, action: Action::Note, cause });
    }
}

impl Scratch {
    fn new() -> Self {
        Self {
            image: Vec::with_capacity(desk::IMAGE_DWORDS),
            ring: Vec::with_capacity(desk::RING_DWORDS),
            arena: Vec::with_capacity(desk::ARENA_DWORDS),
        }
    }
}
