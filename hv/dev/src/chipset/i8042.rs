//! The 8042 keyboard controller, with nothing plugged in (IBM PC AT Technical Reference, "Keyboard Controller").
//! Guests use its reset line and the A20 gate; the ACPI tables say that there is no keyboard, so that they look no further.

use crate::wires::PowerEvent;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SELF_TESTED: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUXILIARY: u8 = 1 << 5;

/// Output port: reset (active low) and A20.
const OUTPUT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;

/// What the next byte written to the data port is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// The keyboard, which is not there.
    Keyboard,
    Ram(u8),
    OutputPort,
    /// To be read back as if it came from the keyboard, or from the mouse.
    Echo {
        status: u8,
    },
    /// The mouse, which is not there.
    Mouse,
}

#[derive(Clone, Debug)]
pub(super) struct I8042 {
    status: u8,
    output: u8,
    output_port: u8,
    /// Controller RAM; byte 0 is the command byte.
    ram: [u8; 32],
    expect: Expect,
}

impl I8042 {
    pub(super) fn new() -> Self {
        let mut ram = [0; 32];
        if let Some(command) = ram.first_mut() {
            // Translation on, both ports disabled, system flag.
            *command = 0x74;
        }
        Self {
            status: STATUS_UNLOCKED | STATUS_SELF_TESTED,
            output: 0,
            output_port: OUTPUT_RESET | OUTPUT_A20,
            ram,
            expect: Expect::Keyboard,
        }
    }

    /// Port 0x64.
    pub(super) fn read_status(&self) -> u8 {
        self.status
    }

    /// Port 0x60.
    pub(super) fn read_data(&mut self) -> u8 {
        self.status &= !(STATUS_OUTPUT_FULL | STATUS_AUXILIARY);
        self.output
    }

    /// Port 0x60.
    pub(super) fn write_data(&mut self, value: u8) -> Option<PowerEvent> {
        self.status &= !STATUS_COMMAND;
        match core::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Keyboard | Expect::Mouse => {}
            Expect::Ram(index) => {
                if let Some(byte) = self.ram.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
            Expect::OutputPort => {
                self.output_port = value;
                return (value & OUTPUT_RESET == 0).then_some(PowerEvent::Reset);
            }
            Expect::Echo { status } => self.answer(value, status),
        }
        None
    }

    /// Port 0x64.
    pub(super) fn write_command(&mut self, value: u8) -> Option<PowerEvent> {
        self.status |= STATUS_COMMAND;
        self.expect = Expect::Keyboard;
        match value {
            0x20..=0x3F => {
                let byte = self.ram.get(usize::from(value & 0x1F)).copied().unwrap_or(0);
                self.answer(byte, 0);
            }
            0x60..=0x7F => self.expect = Expect::Ram(value & 0x1F),
            0xA7 => self.set_command_bit(0x20, true),
            0xA8 => self.set_command_bit(0x20, false),
            // The mouse's interface test fails: there is none.
            0xA9 => self.answer(0xFF, 0),
            0xAA => {
                self.status |= STATUS_SELF_TESTED;
                self.answer(0x55, 0);
            }
            0xAB => self.answer(0x00, 0),
            0xAD => self.set_command_bit(0x10, true),
            0xAE => self.set_command_bit(0x10, false),
            0xC0 => self.answer(0x80, 0),
            0xD0 => self.answer(self.output_port, 0),
            0xD1 => self.expect = Expect::OutputPort,
            0xD2 => self.expect = Expect::Echo { status: 0 },
            0xD3 => self.expect = Expect::Echo { status: STATUS_AUXILIARY },
            0xD4 => self.expect = Expect::Mouse,
            // Pulses the lines whose bit is clear; line 0 is reset.
            0xF0..=0xFF if value & OUTPUT_RESET == 0 => return Some(PowerEvent::Reset),
            _ => {}
        }
        None
    }

    fn answer(&mut self, value: u8, status: u8) {
        self.output = value;
        self.status = self.status & !STATUS_AUXILIARY | STATUS_OUTPUT_FULL | status;
    }

    fn set_command_bit(&mut self, bit: u8, set: bool) {
        if let Some(command) = self.ram.first_mut() {
            *command = if set { *command | bit } else { *command & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(i8042: &mut I8042, command: u8) -> Option<u8> {
        assert_eq!(i8042.write_command(command), None);
        let full = i8042.read_status() & STATUS_OUTPUT_FULL != 0;
        full.then(|| i8042.read_data())
    }

    #[test]
    fn it_passes_its_self_test_and_has_no_mouse() {
        let mut i8042 = I8042::new();
        assert_eq!(ask(&mut i8042, 0xAA), Some(0x55));
        assert_eq!(ask(&mut i8042, 0xAB), Some(0x00));
        assert_eq!(ask(&mut i8042, 0xA9), Some(0xFF));
        assert_eq!(i8042.read_status() & STATUS_OUTPUT_FULL, 0);
    }

    #[test]
    fn the_command_byte_is_kept() {
        let mut i8042 = I8042::new();
        assert_eq!(ask(&mut i8042, 0x60), None);
        i8042.write_data(0x65);
        assert_eq!(ask(&mut i8042, 0x20), Some(0x65));
        ask(&mut i8042, 0xA7);
        assert_eq!(ask(&mut i8042, 0x20), Some(0x65 | 0x20));
    }

    #[test]
    fn both_ways_to_reset() {
        let mut i8042 = I8042::new();
        assert_eq!(i8042.write_command(0xFE), Some(PowerEvent::Reset));
        assert_eq!(i8042.write_command(0xFF), None);
        i8042.write_command(0xD1);
        assert_eq!(i8042.write_data(0xDF), None);
        i8042.write_command(0xD1);
        assert_eq!(i8042.write_data(0xDE), Some(PowerEvent::Reset));
    }

    #[test]
    fn a_byte_comes_back_as_the_mouses() {
        let mut i8042 = I8042::new();
        i8042.write_command(0xD3);
        i8042.write_data(0x5A);
        assert_eq!(i8042.read_status() & 0x21, 0x21);
        assert_eq!(i8042.read_data(), 0x5A);
        assert_eq!(i8042.read_status() & 0x21, 0);
    }
}
