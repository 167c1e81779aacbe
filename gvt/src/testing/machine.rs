//! A whole machine in one process: the fake hypervisor, the software GPU, the mediator, and a clock.

use super::oracle;
#[cfg(test)]
use super::quiet::uncounted;
use super::{FakeHost, Ram};
use crate::host::VmId;
use crate::hw::{Aperture, ApertureAccess, Hw};
use crate::mediator::{Config, Gvt, VgpuConfig, VgpuId};
use gvt_defs::{Hpa, Nanos, PAGE_SIZE, reg};
use gvt_model::{Bar, BusError, Finding, Gpu, Memory, Profile, Progress, Width};
use std::cell::RefCell;
use std::rc::Rc;

impl Memory for Ram {
    fn read(&mut self, hpa: Hpa, buf: &mut [u8]) -> Result<(), BusError> {
        if Ram::read(self, hpa, buf) { Ok(()) } else { Err(BusError) }
    }

    fn write(&mut self, hpa: Hpa, data: &[u8]) -> Result<(), BusError> {
        if Ram::write(self, hpa, data) { Ok(()) } else { Err(BusError) }
    }
}

/// Outside this crate's own tests nobody counts.
#[cfg(not(test))]
fn uncounted<T>(run: impl FnOnce() -> T) -> T {
    run()
}

/// The software GPU and the time that it sees.
pub struct Device {
    pub gpu: Gpu,
    pub now: Nanos,
    /// Registers with bits that read as 1, whatever the GPU says: what is asked for there never ends.
    pub busy: Vec<(u32, u32)>,
    entries: u32,
}

/// `Hw` on the software GPU.
#[derive(Clone)]
pub struct ModelHw(pub Rc<RefCell<Device>>);

impl Hw for ModelHw {
    fn config_read(&mut self, offset: u16) -> u32 {
        uncounted(|| self.0.borrow().gpu.config_read(offset, Width::Dword))
    }

    fn config_write(&mut self, offset: u16, value: u32) {
        uncounted(|| self.0.borrow_mut().gpu.config_write(offset, Width::Dword, value));
    }

    fn read(&mut self, offset: u32) -> u32 {
        assert!(offset < reg::MMIO_SIZE && offset.is_multiple_of(4));
        let mut device = self.0.borrow_mut();
        let now = device.now;
        let busy = device.busy.iter().filter(|(at, _)| *at == offset).fold(0, |all, (_, bits)| all | bits);
        uncounted(|| device.gpu.read32(offset, now)) | busy
    }

    fn write(&mut self, offset: u32, value: u32) {
        assert!(offset < reg::MMIO_SIZE && offset.is_multiple_of(4));
        let mut device = self.0.borrow_mut();
        let now = device.now;
        uncounted(|| device.gpu.write32(offset, value, now));
    }

    fn ggtt_read(&mut self, index: u32) -> u64 {
        self.0.borrow().gpu.ggtt_read(index)
    }

    fn ggtt_write(&mut self, index: u32, pte: u64) {
        let mut device = self.0.borrow_mut();
        assert!(index < device.entries);
        uncounted(|| device.gpu.ggtt_write(index, pte));
    }

    fn ggtt_entries(&mut self) -> u32 {
        self.0.borrow().entries
    }

    fn aperture(&mut self) -> Aperture {
        Aperture { base: 0xC000_0000, size: 512 << 20, access: ApertureAccess::Mappable }
    }
}

/// The machine.
pub struct Machine {
    pub host: FakeHost,
    pub device: Rc<RefCell<Device>>,
    pub gvt: Gvt<ModelHw>,
    /// Interrupts that the GPU raised.
    pub interrupts: u64,
    /// Times that the deadline passed.
    pub timers: u64,
    /// Nanoseconds from an interrupt to when it is heard.
    pub latency: u64,
    /// What the GPU does in one step of the clock.
    pub budget: u32,
    heard: Option<u64>,
    idle: bool,
}

/// One step of the clock while the GPU works, and while it has nothing to do.
const STEP: u64 = 5_000;
const LEAP: u64 = 50_000;

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A machine with the default part.
    pub fn new() -> Self {
        Self::with(Profile::kaby_lake())
    }

    /// A machine with a part of choice.
    pub fn with(profile: Profile) -> Self {
        Self::with_config(profile, Config::default())
    }

    /// A machine with a part and a mediator of choice.
    pub fn with_config(profile: Profile, config: Config) -> Self {
        let mut host = FakeHost::new(160);
        let device =
            Rc::new(RefCell::new(Device { gpu: Gpu::new(profile), now: Nanos(1), busy: Vec::new(), entries: 1 << 20 }));
        enable_msi(&mut device.borrow_mut().gpu);
        device.borrow_mut().gpu.witness();
        let gvt = Gvt::new(ModelHw(device.clone()), config, &mut host, Nanos(1)).expect("the GPU starts");
        let mut machine =
            Self { host, device, gvt, interrupts: 0, timers: 0, latency: 0, budget: 100, heard: None, idle: false };
        machine.run_for(100_000);
        machine
    }

    /// Adds a VM of 16 MiB with a vGPU.
    pub fn add_vm(&mut self, vm: u32) -> VgpuId {
        self.add_vm_with(vm, VgpuConfig::default())
    }

    /// Adds a VM of 16 MiB with a vGPU of choice.
    pub fn add_vm_with(&mut self, vm: u32, config: VgpuConfig) -> VgpuId {
        self.host.add_vm(VmId(vm), 16);
        let (base, bytes) = self.host.range(VmId(vm));
        let frames = base.0 / PAGE_SIZE..(base.0 + bytes) / PAGE_SIZE;
        self.device.borrow_mut().gpu.set_owner(frames, vm);
        self.gvt.create_vgpu(&mut self.host, VmId(vm), config).expect("a vGPU")
    }

    pub fn now(&self) -> Nanos {
        self.device.borrow().now
    }

    /// Lets the GPU work for one step of the clock, then delivers what came of it. True if the GPU has more to do.
    pub fn step(&mut self) -> bool {
        let progress = {
            let mut device = self.device.borrow_mut();
            device.now.0 += if self.idle { LEAP } else { STEP };
            let now = device.now;
            let mut ram = self.host.ram.clone();
            device.gpu.step(&mut ram, now, self.budget)
        };
        self.judge(None);
        self.idle = progress == Progress::Idle;
        self.deliver();
        progress == Progress::Busy
    }

    /// A guest's CPU stores to its part of BAR2, which is mapped straight to the physical one.
    pub fn aperture_write(&mut self, vm: VmId, id: VgpuId, offset: u64, data: &[u8]) {
        let Some(at) = self.in_slice(id, offset, data.len()) else { return };
        let (mut ram, now) = (self.host.ram.clone(), self.now());
        self.device.borrow_mut().gpu.bar_write(&mut ram, Bar::Gmadr, at, data, now);
        self.judge(Some(vm));
    }

    /// A guest's CPU loads from its part of BAR2.
    pub fn aperture_read(&mut self, vm: VmId, id: VgpuId, offset: u64, buf: &mut [u8]) {
        let Some(at) = self.in_slice(id, offset, buf.len()) else { return };
        let (mut ram, now) = (self.host.ram.clone(), self.now());
        self.device.borrow_mut().gpu.bar_read(&mut ram, Bar::Gmadr, at, buf, now);
        self.judge(Some(vm));
    }

    fn in_slice(&self, id: VgpuId, offset: u64, bytes: usize) -> Option<u64> {
        let slice = self.gvt.aperture_slice(id);
        let end = offset.checked_add(bytes as u64)?;
        (end <= slice.size).then_some(slice.offset + offset)
    }

    /// What the GPU did since the last time kept guests apart.
    fn judge(&mut self, cpu: Option<VmId>) {
        let Self { host, device, .. } = self;
        device.borrow_mut().gpu.witnessed(&mut |seen| {
            if let Err(broken) = oracle::judge(host, cpu, seen) {
                panic!("{broken}");
            }
        });
    }

    /// The GPU's interrupt and the mediator's timer.
    pub fn deliver(&mut self) {
        let now = self.now();
        self.idle &= self.gvt.deadline().is_none() && self.heard.is_none();
        if self.device.borrow_mut().gpu.take_interrupt() {
            self.heard = self.heard.or(Some(now.0 + self.latency));
        }
        if self.heard.is_some_and(|heard| heard <= now.0) {
            self.heard = None;
            self.interrupts += 1;
            self.gvt.interrupt(&mut self.host, now);
        }
        if self.gvt.deadline().is_some_and(|deadline| deadline <= now) {
            self.timers += 1;
            self.gvt.timer(&mut self.host, now);
        }
    }

    /// Lets the GPU work for a time in which its messages get lost and nobody looks.
    pub fn lose_messages_for(&mut self, nanos: u64) {
        let end = self.now().0 + nanos;
        while self.now().0 < end {
            let mut device = self.device.borrow_mut();
            device.now.0 += STEP;
            let now = device.now;
            let mut ram = self.host.ram.clone();
            device.gpu.step(&mut ram, now, 100);
            device.gpu.take_interrupt();
            drop(device);
            self.judge(None);
        }
    }

    /// Runs for a time.
    pub fn run_for(&mut self, nanos: u64) {
        let end = self.now().0 + nanos;
        while self.now().0 < end {
            self.step();
        }
    }
}

/// No VM ever met what another one's work had left in the engines (design D21).
impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let findings = self.device.borrow_mut().gpu.take_findings();
            let met: Vec<_> = findings.into_iter().filter(|f| matches!(f, Finding::Residue(..))).collect();
            assert!(met.is_empty(), "{met:?}");
        }
    }
}

/// What the hypervisor does to the physical function: message-signalled interrupts on.
fn enable_msi(gpu: &mut Gpu) {
    let mut at = gpu.config_read(0x34, Width::Byte) as u16;
    while gpu.config_read(at, Width::Byte) != 5 {
        at = gpu.config_read(at + 1, Width::Byte) as u16;
        assert_ne!(at, 0);
    }
    gpu.config_write(at + 4, Width::Dword, 0xFEE0_0000);
    gpu.config_write(at + 8, Width::Dword, 0x40);
    gpu.config_write(at + 2, Width::Word, 1);
}
