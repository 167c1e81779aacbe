//! What a guest's access reaches: RAM, its local APIC, a BAR, the chipset, or nobody.

use hv_defs::{Gpa, Nanos, Width};
use hv_dev::Message;
use hv_dev::apic::{ApicBus, Lapic};
use hv_dev::pci::Space;
use hv_emu::{Bus, NotRam, Upper, Vector, pieces};

use crate::fpu;
use crate::stats::{Nobody, Reason};
use crate::vm::Vm;

/// Size of the local APIC's page.
const APIC_PAGE: u64 = 0x1000;

/// The machine as one virtual CPU reaches it.
pub(super) struct GuestBus<'a> {
    vm: &'a Vm,
    index: usize,
    lapic: &'a mut Lapic,
    now: Nanos,
    reason: Reason,
}

impl<'a> GuestBus<'a> {
    pub fn new(vm: &'a Vm, index: usize, lapic: &'a mut Lapic, now: Nanos) -> Self {
        Self { vm, index, lapic, now, reason: Reason::Other }
    }

    /// What the accesses reached, for the counters.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// IN. Nobody reads as ones.
    pub fn port_in(&mut self, port: u16, width: Width) -> u32 {
        let now = self.now;
        let chipset = self.vm.with_chipset(|chipset, wires| chipset.port_read(port, width, now, wires));
        if let Some(value) = chipset {
            return value;
        }
        if let Some(place) = self.vm.find_bar(Space::Io, u64::from(port)) {
            let value = self.vm.with_function(place, |f| f.bar_read(place.bar, place.offset, width, now));
            return value.unwrap_or(u64::MAX) as u32;
        }
        self.vm.stats().nobody(Nobody::Port, u64::from(port));
        width.mask() as u32
    }

    /// OUT.
    pub fn port_out(&mut self, port: u16, width: Width, value: u32) {
        let now = self.now;
        let chipset = self.vm.with_chipset(|chipset, wires| chipset.port_write(port, width, value, now, wires));
        if chipset.is_some() {
            return;
        }
        if let Some(place) = self.vm.find_bar(Space::Io, u64::from(port)) {
            self.vm.with_function(place, |f| f.bar_write(place.bar, place.offset, width, value.into(), now));
            return;
        }
        self.vm.stats().nobody(Nobody::Port, u64::from(port));
    }

    /// Offset in the local APIC's page, while it is there.
    fn apic_offset(&self, gpa: Gpa) -> Option<u16> {
        let offset = gpa.0.checked_sub(self.lapic.page()?.0)?;
        (offset < APIC_PAGE).then_some(offset as u16)
    }

    fn device_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        let now = self.now;
        if let Some(offset) = self.apic_offset(gpa) {
            self.reason = Reason::MmioApic;
            return apic_read(self.lapic, offset, width, now);
        }
        if let Some(place) = self.vm.find_bar(Space::Memory, gpa.0) {
            self.reason = Reason::MmioBar;
            let mut bytes = [0; 8];
            let mapped = bytes.get_mut(..width.bytes()).and_then(|buf| self.vm.read_mapped(gpa, buf));
            if mapped.is_some() {
                return u64::from_le_bytes(bytes);
            }
            let value = self.vm.with_function(place, |f| f.bar_read(place.bar, place.offset, width, now));
            return value.unwrap_or(u64::MAX);
        }
        if let Some(value) = self.vm.with_chipset(|chipset, wires| chipset.mmio_read(gpa, width, now, wires)) {
            self.reason = Reason::MmioChipset;
            return value;
        }
        self.reason = Reason::MmioUnknown;
        self.vm.stats().nobody(Nobody::Memory, gpa.0);
        u64::MAX
    }

    fn device_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        let now = self.now;
        if let Some(offset) = self.apic_offset(gpa) {
            self.reason = Reason::MmioApic;
            // Registers are written whole; what is not 32 bits wide at a register is dropped, as the SDM allows.
            if width == Width::B4 {
                let mut bus = VcpuApicBus { vm: self.vm, index: self.index, now };
                self.lapic.mmio_write(offset, value as u32, now, &mut bus);
            }
            return;
        }
        if let Some(place) = self.vm.find_bar(Space::Memory, gpa.0) {
            self.reason = Reason::MmioBar;
            let bytes = value.to_le_bytes();
            let mapped = bytes.get(..width.bytes()).and_then(|data| self.vm.write_mapped(gpa, data));
            if mapped.is_none() {
                self.vm.with_function(place, |f| f.bar_write(place.bar, place.offset, width, value, now));
            }
            return;
        }
        if self.vm.with_chipset(|chipset, wires| chipset.mmio_write(gpa, width, value, now, wires)).is_some() {
            self.reason = Reason::MmioChipset;
            return;
        }
        self.reason = Reason::MmioUnknown;
        self.vm.stats().nobody(Nobody::Memory, gpa.0);
    }
}

/// Any width and alignment, out of the 32-bit registers at 16-byte steps.
fn apic_read(lapic: &mut Lapic, offset: u16, width: Width, now: Nanos) -> u64 {
    let register = u64::from(lapic.mmio_read(offset & !0xF, now));
    let shift = u32::from(offset & 0xF) * 8;
    if shift < 32 { register >> shift & width.mask() } else { 0 }
}

impl Bus for GuestBus<'_> {
    fn read(&mut self, gpa: Gpa, buf: &mut [u8]) {
        if self.vm.read(gpa, buf).is_ok() {
            return;
        }
        let len = buf.len();
        for (at, width) in pieces(gpa, len) {
            let value = self.device_read(gpa.wrapping_add(at as u64), width).to_le_bytes();
            if let (Some(place), Some(bytes)) = (buf.get_mut(at..at + width.bytes()), value.get(..width.bytes())) {
                place.copy_from_slice(bytes);
            }
        }
    }

    fn write(&mut self, gpa: Gpa, data: &[u8]) {
        if self.vm.write(gpa, data).is_ok() {
            return;
        }
        for (at, width) in pieces(gpa, data.len()) {
            let mut value = [0; 8];
            if let (Some(place), Some(bytes)) = (value.get_mut(..width.bytes()), data.get(at..at + width.bytes())) {
                place.copy_from_slice(bytes);
            }
            self.device_write(gpa.wrapping_add(at as u64), width, u64::from_le_bytes(value));
        }
    }

    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        self.vm.read(gpa, buf).map_err(|_| NotRam)
    }

    fn write_ram(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.vm.write(gpa, data).map_err(|_| NotRam)
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.port_in(port, width)
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.port_out(port, width, value);
    }

    fn vector(&mut self, index: u8) -> Option<Vector> {
        fpu::read_vector(index)
    }

    fn set_vector(&mut self, index: u8, value: Vector, upper: Upper) -> Option<()> {
        fpu::write_vector(index, value, upper)
    }
}

/// Where a local APIC's own messages go.
pub(super) struct VcpuApicBus<'a> {
    pub vm: &'a Vm,
    pub index: usize,
    pub now: Nanos,
}

impl ApicBus for VcpuApicBus<'_> {
    fn send(&mut self, message: Message) {
        self.vm.deliver(&message, Some(self.index as u32));
    }

    fn eoi(&mut self, vector: u8) {
        let now = self.now;
        self.vm.with_chipset(|chipset, wires| chipset.eoi(vector, now, wires));
    }
}
