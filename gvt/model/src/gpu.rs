//! The GPU as its owner sees it: configuration space, BARs, time, an interrupt.

use alloc::vec::Vec;
use core::ops::Range;

use gvt_defs::reg::{GGTT_OFFSET, GTTMMADR_SIZE, MMIO_SIZE};
use gvt_defs::trace::{By, Entry, Kind};
use gvt_defs::{ENGINES, Engine, Nanos};

use crate::config::{Config, IO_SIZE, Msi, Width};
use crate::counters::Counters;
use crate::device::Device;
use crate::engine::{EngineState, Exec};
use crate::findings::Finding;
use crate::memory::Memory;
use crate::profile::Profile;
use crate::recorder::{Reached, Touched};
use crate::witness::Seen;

/// A base address register that decodes something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// BAR0: registers and the global page table, 16 MiB.
    Gttmmadr,
    /// BAR2: the aperture.
    Gmadr,
    /// BAR4: 64 bytes of I/O ports.
    Io,
}

impl Bar {
    /// The BAR with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Gttmmadr),
            2 => Some(Self::Gmadr),
            4 => Some(Self::Io),
            _ => None,
        }
    }
}

/// When `step` wants to be called again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// After the next write to a BAR.
    Idle,
    /// At once.
    Busy,
    /// At this time, or after the next write to a BAR: an engine polls memory.
    WaitUntil(Nanos),
}

impl Progress {
    const fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Busy, _) | (_, Self::Busy) => Self::Busy,
            (Self::WaitUntil(a), Self::WaitUntil(b)) => Self::WaitUntil(if a.0 < b.0 { a } else { b }),
            (Self::WaitUntil(t), Self::Idle) | (Self::Idle, Self::WaitUntil(t)) => Self::WaitUntil(t),
            (Self::Idle, Self::Idle) => Self::Idle,
        }
    }
}

/// Whether touched frames are recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recording {
    /// Forget what was recorded, begin anew.
    Start,
    /// Keep what was recorded, record no more.
    Stop,
}

/// The software GPU.
pub struct Gpu {
    config: Config,
    device: Device,
    engines: [EngineState; ENGINES],
    interrupt: bool,
}

impl Gpu {
    /// A GPU as after power-on.
    pub fn new(profile: Profile) -> Self {
        Self {
            config: Config::new(&profile),
            device: Device::new(profile),
            engines: Engine::ALL.map(EngineState::new),
            interrupt: false,
        }
    }

    /// What it is.
    pub const fn profile(&self) -> &Profile {
        &self.device.profile
    }

    /// A reset of the whole function: registers, page table, engines, configuration space.
    pub fn reset(&mut self) {
        *self = Self::new(self.device.profile.clone());
    }

    /// Reads configuration space.
    pub fn config_read(&self, offset: u16, width: Width) -> u32 {
        self.config.read(offset, width)
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, offset: u16, width: Width, value: u32) {
        self.config.write(offset, width, value);
    }

    /// Bytes of a BAR.
    pub const fn bar_size(&self, bar: Bar) -> u64 {
        match bar {
            Bar::Gttmmadr => GTTMMADR_SIZE,
            Bar::Gmadr => self.device.profile.aperture,
            Bar::Io => IO_SIZE,
        }
    }

    /// Reads from a BAR; any length and alignment. Only the aperture needs memory. Engines do not run.
    pub fn bar_read(&mut self, memory: &mut dyn Memory, bar: Bar, offset: u64, buf: &mut [u8], now: Nanos) {
        self.device.now = now;
        match bar {
            Bar::Gttmmadr => self.mmio_read(offset, buf),
            Bar::Gmadr => match self.fits(bar, offset, buf.len()) {
                true => self.device.aperture_read(memory, offset, buf),
                false => buf.fill(0xFF),
            },
            Bar::Io => buf.fill(0xFF),
        }
        self.after_access();
    }

    /// Writes to a BAR; any length and alignment. Only the aperture needs memory. Engines do not run.
    pub fn bar_write(&mut self, memory: &mut dyn Memory, bar: Bar, offset: u64, data: &[u8], now: Nanos) {
        self.device.now = now;
        match bar {
            Bar::Gttmmadr => self.mmio_write(offset, data),
            Bar::Gmadr if self.fits(bar, offset, data.len()) => self.device.aperture_write(memory, offset, data),
            Bar::Gmadr | Bar::Io => {}
        }
        self.after_access();
    }

    /// Reads a register.
    pub fn read32(&mut self, offset: u32, now: Nanos) -> u32 {
        self.device.now = now;
        let value = self.device.read_register(offset & !3, By::Host);
        self.after_access();
        value
    }

    /// Writes a register.
    pub fn write32(&mut self, offset: u32, value: u32, now: Nanos) {
        self.device.now = now;
        self.device.write_register(offset & !3, value, By::Host);
        self.after_access();
    }

    /// Reads a global page-table entry.
    pub fn ggtt_read(&self, index: u32) -> u64 {
        self.device.gtt.entry(index)
    }

    /// Writes a global page-table entry.
    pub fn ggtt_write(&mut self, index: u32, pte: u64) {
        self.device.trace.add(self.device.now, Kind::Gtt, By::Host, index, pte);
        self.device.gtt.set_entry(index, pte);
    }

    /// The global graphics address at which a byte of the aperture lies now, fences obeyed.
    pub fn aperture_address(&self, offset: u64) -> u64 {
        self.device.fences.detile(offset).0
    }

    /// Lets each engine run for at most `budget` units: a unit is a command, or 64 bytes of a blit.
    pub fn step(&mut self, memory: &mut dyn Memory, now: Nanos, budget: u32) -> Progress {
        self.device.now = now;
        let mut progress = Progress::Idle;
        for state in &mut self.engines {
            if !self.device.profile.engines.has(state.engine) {
                continue;
            }
            let mut exec = Exec { state, device: &mut self.device, memory: &mut *memory, budget, commands: 0 };
            progress = progress.merge(exec.slice());
            self.device.fetch_frame = None;
            self.device.fetch_stale = false;
        }
        self.after_access();
        progress
    }

    /// Whether the interrupt was raised since the last call: an edge to send as a message.
    pub fn take_interrupt(&mut self) -> bool {
        core::mem::take(&mut self.interrupt)
    }

    /// The INTx level.
    pub fn interrupt_level(&self) -> bool {
        self.device.irq.level() && !self.config.intx_disabled() && self.config.msi().is_none()
    }

    /// The message that software programmed, if it enabled messages.
    pub fn msi(&self) -> Option<Msi> {
        self.config.msi()
    }

    /// Says whose the frames with these numbers are: what a context of one owner leaves in the render engine is not for
    /// contexts of another.
    pub fn set_owner(&mut self, frames: Range<u64>, owner: u32) {
        self.device.residues.set_owner(frames, owner);
    }

    /// Starts or stops recording which frames are touched.
    pub fn record(&mut self, recording: Recording) {
        match recording {
            Recording::Start => self.device.recorder.start(),
            Recording::Stop => self.device.recorder.stop(),
        }
    }

    /// What was touched since recording began or since the last call.
    pub fn take_touched(&mut self) -> Touched {
        self.device.recorder.take()
    }

    /// What commands reached since recording began or since the last call, one by one and in order.
    pub fn take_reached(&mut self) -> Vec<Reached> {
        self.device.recorder.take_reached()
    }

    /// From now on, what an oracle of isolation may want to know is kept for [`witnessed`](Self::witnessed).
    pub fn witness(&mut self) {
        self.device.recorder.witness.start();
    }

    /// What was seen since the last call, in order.
    pub fn witnessed(&mut self, each: &mut dyn FnMut(Seen)) {
        self.device.recorder.witness.take(each);
    }

    /// The trace, oldest line first.
    pub fn trace(&self) -> impl Iterator<Item = &Entry> {
        self.device.trace.iter()
    }

    /// The trace since the last call, oldest line first; lines that found no room in the ring are lost.
    pub fn take_trace(&mut self) -> Vec<Entry> {
        self.device.trace.take()
    }

    /// What the engines have done since power-on or reset of the function.
    pub fn counters(&mut self) -> Counters {
        let mut counters = self.device.counters;
        for engine in Engine::ALL {
            let now = self.device.now;
            let port = self.device.port(engine);
            let running = if port.busy { now.0.saturating_sub(port.loaded.0) } else { 0 };
            counters.change(engine, |c| c.busy += running);
        }
        counters
    }

    /// Findings since the last call.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        self.device.findings.take()
    }

    fn fits(&self, bar: Bar, offset: u64, len: usize) -> bool {
        offset.checked_add(len as u64).is_some_and(|end| end <= self.bar_size(bar))
    }

    /// What an access or a slice asked for: resets, an interrupt.
    fn after_access(&mut self) {
        self.device.reset_engines(&mut self.engines);
        if self.device.irq.take_edge() {
            self.interrupt = true;
            let pending = u64::from(self.device.irq.pending());
            self.device.trace.add(self.device.now, Kind::Interrupt, By::Host, 0, pending);
        }
    }

    fn mmio_read(&mut self, offset: u64, buf: &mut [u8]) {
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let within = (at & 3) as usize;
            let (piece, tail) = rest.split_at_mut((4 - within).min(rest.len()));
            let bytes = self.mmio_dword(at & !3).to_le_bytes();
            piece.copy_from_slice(bytes.get(within..within + piece.len()).unwrap_or(&[0xFF; 4]));
            at = at.wrapping_add(piece.len() as u64);
            rest = tail;
        }
    }

    fn mmio_dword(&mut self, offset: u64) -> u32 {
        if offset < u64::from(MMIO_SIZE) {
            self.device.read_register(offset as u32, By::Host)
        } else if (GGTT_OFFSET..GTTMMADR_SIZE).contains(&offset) {
            let entry = self.device.gtt.entry(((offset - GGTT_OFFSET) / 8) as u32);
            (entry >> (8 * (offset & 4))) as u32
        } else if offset < GTTMMADR_SIZE {
            0
        } else {
            u32::MAX
        }
    }

    fn mmio_write(&mut self, offset: u64, data: &[u8]) {
        if offset >= GGTT_OFFSET {
            return self.gtt_write(offset - GGTT_OFFSET, data);
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() && at < u64::from(MMIO_SIZE) {
            let within = (at & 3) as usize;
            let (piece, tail) = rest.split_at((4 - within).min(rest.len()));
            self.register_bytes((at & !3) as u32, within, piece);
            at += piece.len() as u64;
            rest = tail;
        }
    }

    /// A write narrower than a register keeps the register's other bytes, where it has any to keep.
    fn register_bytes(&mut self, offset: u32, within: usize, piece: &[u8]) {
        let mut bytes = if piece.len() < 4 { self.device.kept_bytes(offset).to_le_bytes() } else { [0; 4] };
        if let Some(slot) = bytes.get_mut(within..within + piece.len()) {
            slot.copy_from_slice(piece);
        }
        self.device.write_register(offset, u32::from_le_bytes(bytes), By::Host);
    }

    fn gtt_write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() && at < GTTMMADR_SIZE - GGTT_OFFSET {
            let within = (at & 7) as usize;
            let (piece, tail) = rest.split_at((8 - within).min(rest.len()));
            let index = (at / 8) as u32;
            let mut bytes = self.device.gtt.entry(index).to_le_bytes();
            if let Some(slot) = bytes.get_mut(within..within + piece.len()) {
                slot.copy_from_slice(piece);
            }
            self.ggtt_write(index, u64::from_le_bytes(bytes));
            at += piece.len() as u64;
            rest = tail;
        }
    }
}
