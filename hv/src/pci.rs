//! PCI of the host: configuration space, base address registers, message interrupts. It finds functions and drives
//! none.

mod config;

use arrayvec::ArrayVec;
use hv_defs::Hpa;
use spin::{Mutex, Once};
use x86_64::instructions::port::Port;

use crate::acpi::{Ecam, Facts};
use crate::irq::vector;
use crate::mmio::Mmio;
use crate::paging::{self, NoFrame};
use crate::percpu::{self, CpuId};

pub use self::config::{Bar, BarKind, ConfigSpace};

/// Registers of configuration mechanism 1 (PCI Local Bus Specification 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xCF8;
const CONFIG_DATA: u16 = 0xCFC;

/// Memory-mapped configuration space, if the firmware has it.
static ECAM: Once<(Ecam, Mmio)> = Once::new();
/// The port pair takes two steps.
static PORTS: Mutex<()> = Mutex::new(());

/// A function on segment 0. Anybody may make one; a function that is not there reads all ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    bus: u8,
    device: u8,
    function: u8,
}

/// Which way a function is told to decode and to act.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decode {
    /// It neither answers nor acts.
    Off,
    /// It answers in its memory BARs and may master the bus; its wired interrupt is off.
    MemoryAndMaster,
}

/// Maps the configuration space that the ACPI tables name.
pub(crate) fn init(facts: &Facts) -> Result<(), NoFrame> {
    if let Some(ecam) = facts.ecam {
        let buses = u64::from(ecam.last_bus.saturating_sub(ecam.first_bus)) + 1;
        let first = Hpa(ecam.base.0 + (u64::from(ecam.first_bus) << 20));
        let window = paging::map_device(first, buses << 20)?;
        ECAM.call_once(|| (ecam, window));
    }
    Ok(())
}

impl Function {
    /// The function at a place, if there is one.
    pub fn find(bus: u8, device: u8, function: u8) -> Option<Self> {
        let found = Self { bus, device: device & 31, function: function & 7 };
        (found.read16(0) != u16::MAX).then_some(found)
    }

    /// Tells the function to decode, or not to.
    pub fn set_decode(self, decode: Decode) {
        let command = config::command_for(self.read16(config::COMMAND), decode);
        self.write16(config::COMMAND, command);
    }

    /// The base address registers. Their sizes are found by writing to them, so do this before anybody uses them.
    pub fn bars(self) -> ArrayVec<Bar, 6> {
        config::bars(&self)
    }

    /// Sends the function's message interrupt to `cpu` as device slot `slot`; `None` if it has none, or the CPU or
    /// the slot is out of its reach.
    pub fn enable_msi(self, cpu: CpuId, slot: u8) -> Option<()> {
        let apic_id = percpu::get(cpu)?.apic_id();
        let vector = vector::DEVICE.checked_add(slot).filter(|_| slot < vector::DEVICES)?;
        config::enable_msi(&self, u8::try_from(apic_id).ok()?, vector)
    }

    fn window(self, offset: u16) -> Option<(Mmio, u64)> {
        let &(ecam, window) = ECAM.get()?;
        let bus = self.bus.checked_sub(ecam.first_bus).filter(|_| self.bus <= ecam.last_bus)?;
        let place = u64::from(bus) << 20 | u64::from(self.device) << 15 | u64::from(self.function) << 12;
        Some((window, place | u64::from(offset & 0xFFF)))
    }

    fn by_port<R>(self, offset: u16, access: impl FnOnce(&mut Port<u32>) -> R) -> Option<R> {
        if offset > 0xFF {
            return None;
        }
        let place = u32::from(self.bus) << 16 | u32::from(self.device) << 11 | u32::from(self.function) << 8;
        let _pair = PORTS.lock();
        // SAFETY: 1. These are the configuration ports of every PC; the lock keeps address and data together.
        unsafe { Port::<u32>::new(CONFIG_ADDRESS).write(1 << 31 | place | u32::from(offset & 0xFC)) };
        Some(access(&mut Port::new(CONFIG_DATA)))
    }
}

impl ConfigSpace for Function {
    fn read32(&self, offset: u16) -> u32 {
        match self.window(offset) {
            Some((window, at)) => window.read32(at),
            // SAFETY: 1. The address port has been set to a function's register under the lock.
            None => self.by_port(offset, |data| unsafe { data.read() }).unwrap_or(u32::MAX),
        }
    }

    fn write32(&self, offset: u16, value: u32) {
        match self.window(offset) {
            Some((window, at)) => window.write32(at, value),
            // SAFETY: 1. As for `read32`. 2. What the write does is the caller's affair, as with every register.
            None => self.by_port(offset, |data| unsafe { data.write(value) }).unwrap_or_default(),
        }
    }

    /// Alone by mapped access: the other half of the dword may hold bits that a written 1 clears.
    fn write16(&self, offset: u16, value: u16) {
        match self.window(offset & !1) {
            Some((window, at)) => window.write16(at, value),
            None => {
                let shift = 8 * u32::from(offset & 2);
                let others = self.read32(offset & !3) & !(0xFFFF << shift);
                self.write32(offset & !3, others | u32::from(value) << shift);
            }
        }
    }
}

impl Bar {
    /// Maps the registers, uncached, for good; `None` for an I/O BAR, one without an address, or without frames.
    pub fn map(&self) -> Option<Mmio> {
        if self.kind == BarKind::Io || self.base == Hpa(0) {
            return None;
        }
        paging::map_device(self.base, self.size).ok()
    }
}
