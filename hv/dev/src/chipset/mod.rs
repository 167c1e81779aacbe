//! The chipset of one VM: routes ports and MMIO to its devices, and their interrupts to both controllers.

mod bridges;
mod clock;
mod i8042;
mod ioapic;
mod pic;
mod pit;
pub(crate) mod pm;
mod rtc;
#[cfg(test)]
pub(crate) mod tests;
mod uart;

use core::ops::Range;

use hv_defs::{Gpa, Nanos, Width};

use self::bridges::Bridges;
pub use self::clock::DateTime;
use self::i8042::I8042;
use self::ioapic::Ioapic;
use self::pic::{Chip, PicPair, Port};
use self::pit::Pit;
use self::pm::Pm;
use self::rtc::Rtc;
pub use self::uart::Full;
use self::uart::Uart;
use crate::e820::Layout;
use crate::wires::{Level, PowerEvent, Wires};

/// ISA interrupt of the PIT.
const IRQ_TIMER: u8 = 0;
/// ISA interrupt of COM1.
const IRQ_COM1: u8 = 4;
/// ISA interrupt of the RTC.
const IRQ_RTC: u8 = 8;
/// The system control interrupt.
pub(crate) const IRQ_SCI: u8 = 9;

/// I/O APIC pin that the 8259 pair's output is wired to.
const PIN_INTR: u8 = 0;
/// I/O APIC pin of ISA interrupt 0, whose own number INTR takes; the MADT says so.
pub(crate) const PIN_TIMER: u8 = 2;

/// First port of COM1.
pub(crate) const COM1: u16 = 0x3F8;

const RESET_CPU: u8 = 1 << 2;
const RESET_BITS: u8 = 0x0E;
const FAST_RESET: u8 = 1 << 0;
const FAST_A20: u8 = 1 << 1;

/// What a chipset must be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The VM's RAM, for the sizes in CMOS.
    pub layout: Layout,
    /// Wall-clock time at host time 0, in seconds since 1970 UTC.
    pub wall_clock: i64,
}

/// Everything of the board but CPUs, RAM and external PCI functions.
#[derive(Clone)]
pub struct Chipset {
    pics: PicPair,
    ioapic: Ioapic,
    pit: Pit,
    rtc: Rtc,
    pm: Pm,
    uart: Uart,
    i8042: I8042,
    bridges: Bridges,
    /// Port 0xCF9.
    reset_control: u8,
    /// Port 0x92.
    system_control: u8,
    /// Interrupt lines as the controllers last saw them, by GSI; ISA interrupt 0 is bit 0.
    lines: u32,
    intr: Level,
}

// ---- What the run loop calls ---------------------------------------------------------------------------------------

impl Chipset {
    /// A chipset after power-on.
    pub fn new(config: &Config) -> Self {
        Self {
            pics: PicPair::new(),
            ioapic: Ioapic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(config.wall_clock, &config.layout),
            pm: Pm::new(),
            uart: Uart::new(),
            i8042: I8042::new(),
            bridges: Bridges::new(),
            reset_control: 0,
            system_control: FAST_A20,
            lines: 0,
            intr: Level::Low,
        }
    }

    /// The machine's reset. The clock, the CMOS RAM and the lines driven from outside stay.
    pub fn reset(&mut self, now: Nanos, wires: &mut dyn Wires) {
        let external = self.lines & !0xFFFF;
        self.rtc.reset();
        self.pm.reset();
        (self.pit, self.uart, self.i8042, self.bridges) = (Pit::new(), Uart::new(), I8042::new(), Bridges::new());
        (self.pics, self.ioapic) = (PicPair::new(), Ioapic::new());
        (self.reset_control, self.system_control) = (0, FAST_A20);
        self.lines = 0;
        for gsi in (16..24).filter(|gsi| external & 1 << gsi != 0) {
            self.set_gsi(gsi, Level::High, wires);
        }
        self.settle(now, wires);
        // Whatever the line was before, the receiver must hear of it again: it has been reset too.
        wires.extint(self.intr);
    }

    /// Reads a port; `None` if nobody is there.
    pub fn port_read(&mut self, port: u16, width: Width, now: Nanos, wires: &mut dyn Wires) -> Option<u32> {
        let value = match (port, width) {
            (0xCF8, Width::B4) => Some(self.bridges.address()),
            (0xCFC..0xD00, _) => self.config_lane(port, width).map(|lane| self.bridges.data_read(lane, width, wires)),
            (pm::BASE.., _) if in_block(port, width, pm::BASE, pm::SIZE) => {
                Some(self.pm.read(port - pm::BASE, width, now))
            }
            _ => self.bytes_read(port, width, now),
        };
        self.settle(now, wires);
        value
    }

    /// Writes a port; `None` if nobody is there.
    pub fn port_write(&mut self, port: u16, width: Width, value: u32, now: Nanos, wires: &mut dyn Wires) -> Option<()> {
        let done = match (port, width) {
            (0xCF8, Width::B4) => {
                self.bridges.set_address(value);
                Some(())
            }
            (0xCFC..0xD00, _) => {
                self.config_lane(port, width).map(|lane| self.bridges.data_write(lane, width, value, wires))
            }
            (pm::BASE.., _) if in_block(port, width, pm::BASE, pm::SIZE) => {
                let event = self.pm.write(port - pm::BASE, width, value, now);
                event.into_iter().for_each(|event| wires.power(event));
                Some(())
            }
            _ => self.bytes_write(port, width, value, now, wires),
        };
        self.settle(now, wires);
        done
    }

    /// Reads MMIO; `None` if nobody is there.
    pub fn mmio_read(&mut self, gpa: Gpa, width: Width, _now: Nanos, wires: &mut dyn Wires) -> Option<u64> {
        if let Some(offset) = within(gpa, width, ioapic::BASE..ioapic::BASE + ioapic::SIZE) {
            // The window is a dword; a narrower access gets its part of it.
            let value = u64::from(self.ioapic.read(offset & !3)) >> (8 * (offset & 3));
            return Some(value & width.mask());
        }
        let offset = within(gpa, width, self.bridges.ecam()?)?;
        Some(self.bridges.ecam_read(offset, width, wires))
    }

    /// Writes MMIO; `None` if nobody is there.
    pub fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64, now: Nanos, wires: &mut dyn Wires) -> Option<()> {
        if let Some(offset) = within(gpa, width, ioapic::BASE..ioapic::BASE + ioapic::SIZE) {
            self.settle_unheard(now, wires);
            self.ioapic.write(offset, value as u32, wires);
            return Some(());
        }
        let offset = within(gpa, width, self.bridges.ecam()?)?;
        self.bridges.ecam_write(offset, width, value, wires);
        Some(())
    }

    /// When `tick` is due next. Timers that nobody hears wake nobody: what they did is found out at the next access.
    pub fn deadline(&self) -> Option<Nanos> {
        let pit = if self.hears_pit() { self.pit.deadline() } else { None };
        let rtc = if self.hears_rtc() { self.rtc.deadline() } else { None };
        [pit, rtc, self.pm.deadline()].into_iter().flatten().min()
    }

    fn hears_pit(&self) -> bool {
        self.pics.hears(IRQ_TIMER) || self.ioapic.hears(PIN_TIMER)
    }

    /// While its line is high, more causes change nothing.
    fn hears_rtc(&self) -> bool {
        let heard = self.pics.hears(IRQ_RTC) || self.ioapic.hears(IRQ_RTC) || self.pm.hears_rtc();
        heard && !self.rtc.irq().is_high()
    }

    /// Does what is due. May be called at any time.
    pub fn tick(&mut self, now: Nanos, wires: &mut dyn Wires) {
        self.rtc.record(now);
        self.pm.record(now);
        self.settle(now, wires);
    }

    /// A local APIC ended a level-triggered interrupt.
    pub fn eoi(&mut self, vector: u8, now: Nanos, wires: &mut dyn Wires) {
        self.ioapic.eoi(vector, wires);
        self.settle(now, wires);
    }

    /// The CPU acknowledges an ExtINT: yields the vector.
    pub fn acknowledge(&mut self, now: Nanos, wires: &mut dyn Wires) -> u8 {
        self.settle_unheard(now, wires);
        let vector = self.pics.acknowledge();
        // INTR drops during the cycle: whoever waits for its edge must see one for each interrupt.
        if self.intr.is_high() {
            self.intr = Level::Low;
            self.ioapic.set_line(PIN_INTR, Level::Low, wires);
            wires.extint(Level::Low);
        }
        self.settle(now, wires);
        vector
    }

    /// A byte was typed for COM1.
    ///
    /// # Errors
    /// `Full` if the guest has not read what came before.
    pub fn console_input(&mut self, byte: u8, now: Nanos, wires: &mut dyn Wires) -> Result<(), Full> {
        let result = self.uart.receive(byte);
        self.settle(now, wires);
        result
    }

    /// Presses the power button: a guest with ACPI shuts down by itself.
    pub fn press_power_button(&mut self, now: Nanos, wires: &mut dyn Wires) {
        self.pm.press_power_button();
        self.settle(now, wires);
    }

    /// Drives a level-triggered interrupt input (GSI 16 to 23) for a device outside.
    pub fn set_gsi(&mut self, gsi: u8, level: Level, wires: &mut dyn Wires) {
        if (16..ioapic::PINS as u8).contains(&gsi) {
            self.drive(gsi, level, wires);
        }
    }

    /// Where PCI Express configuration space lies now.
    pub fn ecam(&self) -> Option<Range<u64>> {
        self.bridges.ecam()
    }
}

// ---- Byte-wide ports -----------------------------------------------------------------------------------------------

impl Chipset {
    /// ISA devices are 8 bits wide: a wider access becomes one for each byte.
    fn bytes_read(&mut self, port: u16, width: Width, now: Nanos) -> Option<u32> {
        let mut answer = None;
        for index in 0..width.bytes().min(4) as u16 {
            if let Some(byte) = self.byte_read(port.wrapping_add(index), now) {
                let shift = 8 * index;
                let before = answer.unwrap_or(width.mask() as u32);
                answer = Some(before & !(0xFF << shift) | u32::from(byte) << shift);
            }
        }
        answer
    }

    fn bytes_write(&mut self, port: u16, width: Width, value: u32, now: Nanos, wires: &mut dyn Wires) -> Option<()> {
        let mut answer = None;
        for (index, byte) in (0u16..).zip(value.to_le_bytes()).take(width.bytes()) {
            answer = answer.or(self.byte_write(port.wrapping_add(index), byte, now, wires));
        }
        answer
    }

    fn byte_read(&mut self, port: u16, now: Nanos) -> Option<u8> {
        Some(match port {
            0x20 => self.pics.read(Chip::Master, Port::Command),
            0x21 => self.pics.read(Chip::Master, Port::Data),
            0xA0 => self.pics.read(Chip::Slave, Port::Command),
            0xA1 => self.pics.read(Chip::Slave, Port::Data),
            0x4D0 => self.pics.elcr(Chip::Master),
            0x4D1 => self.pics.elcr(Chip::Slave),
            0x40..=0x43 => self.pit.read((port & 3) as u8, now),
            0x60 => self.i8042.read_data(),
            0x61 => self.pit.read_61(now),
            0x64 => self.i8042.read_status(),
            // The index is write-only.
            0x70 | 0x80 | 0xED | 0xCF8 | 0xCFA | 0xCFB => 0xFF,
            0x71 => self.rtc.read(now),
            0x92 => self.system_control,
            COM1..=0x3FF => self.uart.read((port & 7) as u8),
            0xCF9 => self.reset_control,
            _ => return None,
        })
    }

    fn byte_write(&mut self, port: u16, value: u8, now: Nanos, wires: &mut dyn Wires) -> Option<()> {
        match port {
            0x20 => self.pics.write(Chip::Master, Port::Command, value),
            0x21 => self.pics.write(Chip::Master, Port::Data, value),
            0xA0 => self.pics.write(Chip::Slave, Port::Command, value),
            0xA1 => self.pics.write(Chip::Slave, Port::Data, value),
            0x4D0 => self.pics.set_elcr(Chip::Master, value),
            0x4D1 => self.pics.set_elcr(Chip::Slave, value),
            0x40..=0x43 => self.pit.write((port & 3) as u8, value, now),
            0x60 => raise(self.i8042.write_data(value), wires),
            0x61 => self.pit.write_61(value, now),
            0x64 => raise(self.i8042.write_command(value), wires),
            0x70 => self.rtc.select(value),
            0x71 => self.rtc.write(value, now),
            // POST code and delay ports; parts of the configuration address, which only takes whole dwords.
            0x80 | 0xED | 0xCF8 | 0xCFA | 0xCFB => {}
            0x92 => self.write_system_control(value, wires),
            COM1..=0x3FF => self.write_uart((port & 7) as u8, value, now, wires),
            0xCF9 => self.write_reset_control(value, wires),
            _ => return None,
        }
        Some(())
    }

    fn write_uart(&mut self, register: u8, value: u8, now: Nanos, wires: &mut dyn Wires) {
        // A byte in the transmitter takes its interrupt away until it has left: the line must be seen to fall.
        if register == 0 {
            self.uart.fill();
            self.settle(now, wires);
        }
        self.uart.write(register, value, wires);
    }

    fn write_reset_control(&mut self, value: u8, wires: &mut dyn Wires) {
        let rises = value & !self.reset_control & RESET_CPU != 0;
        self.reset_control = value & RESET_BITS;
        raise(rises.then_some(PowerEvent::Reset), wires);
    }

    fn write_system_control(&mut self, value: u8, wires: &mut dyn Wires) {
        let rises = value & !self.system_control & FAST_RESET != 0;
        self.system_control = value;
        raise(rises.then_some(PowerEvent::Reset), wires);
    }

    /// Byte lane of a data port access; one that runs past the dword is nobody's.
    fn config_lane(&self, port: u16, width: Width) -> Option<u8> {
        in_block(port, width, 0xCFC, 4).then_some((port & 3) as u8)
    }
}

// ---- Interrupt lines -----------------------------------------------------------------------------------------------

impl Chipset {
    /// Before a timer may be heard again: what it did until now was not.
    fn settle_unheard(&mut self, now: Nanos, wires: &mut dyn Wires) {
        if !self.hears_pit() {
            self.settle(now, wires);
        }
    }

    /// Brings the interrupt lines in step with the devices.
    fn settle(&mut self, now: Nanos, wires: &mut dyn Wires) {
        if self.pit.take_rise(now) {
            self.drive(IRQ_TIMER, Level::Low, wires);
            self.drive(IRQ_TIMER, Level::High, wires);
        }
        self.drive(IRQ_COM1, self.uart.irq(), wires);
        let rtc = self.rtc.irq();
        if rtc.is_high() && self.lines & 1 << IRQ_RTC == 0 {
            self.pm.rtc_alarm();
        }
        self.drive(IRQ_RTC, rtc, wires);
        self.drive(IRQ_SCI, self.pm.sci(), wires);
        self.settle_intr(wires);
    }

    /// Drives one line to both controllers, if it changes.
    fn drive(&mut self, line: u8, level: Level, wires: &mut dyn Wires) {
        let bit = 1 << line;
        if Level::of(self.lines & bit != 0) == level {
            return;
        }
        self.lines ^= bit;
        self.pics.set_line(line, level);
        self.ioapic.set_line(if line == IRQ_TIMER { PIN_TIMER } else { line }, level, wires);
    }

    fn settle_intr(&mut self, wires: &mut dyn Wires) {
        let level = self.pics.output();
        if level != self.intr {
            self.intr = level;
            self.ioapic.set_line(PIN_INTR, level, wires);
            wires.extint(level);
        }
    }
}

fn raise(event: Option<PowerEvent>, wires: &mut dyn Wires) {
    event.into_iter().for_each(|event| wires.power(event));
}

fn in_block(port: u16, width: Width, base: u16, size: u16) -> bool {
    port.checked_sub(base).is_some_and(|offset| usize::from(offset) + width.bytes() <= usize::from(size))
}

fn within(gpa: Gpa, width: Width, range: Range<u64>) -> Option<u64> {
    let offset = gpa.0.checked_sub(range.start)?;
    (offset.checked_add(width.bytes() as u64)? <= range.end - range.start).then_some(offset)
}
