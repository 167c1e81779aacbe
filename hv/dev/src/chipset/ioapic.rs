//! The I/O APIC (Intel 82093AA data sheet, order 290566; ICH9 data sheet, section 13.5, for version and EOI register).

use crate::message::{Delivery, Destination, Message, Trigger};
use crate::wires::{Level, Wires};

/// Inputs.
pub(super) const PINS: usize = 24;
/// First address of the register page.
pub(super) const BASE: u64 = 0xFEC0_0000;
/// Bytes in which it answers.
pub(super) const SIZE: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// 24 entries, version 0x20 (it has an EOI register).
const VERSION: u32 = 0x0017_0020;
const FIRST_ENTRY: u8 = 0x10;

const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

#[derive(Clone, Debug)]
pub(super) struct Ioapic {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    lines: u32,
}

impl Ioapic {
    pub(super) fn new() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; PINS], lines: 0 }
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => self.register(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32, wires: &mut dyn Wires) {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => self.set_register(value, wires),
            EOI => self.eoi(value as u8, wires),
            _ => {}
        }
    }

    /// Whether a rise of this input is sent to a CPU.
    pub(super) fn hears(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_some_and(|entry| *entry & MASKED == 0)
    }

    /// Drives an input. Polarity is not looked at: the tables and the devices agree on what is active.
    pub(super) fn set_line(&mut self, pin: u8, level: Level, wires: &mut dyn Wires) {
        let bit = 1u32.checked_shl(pin.into()).unwrap_or(0);
        let rises = level.is_high() && self.lines & bit == 0;
        self.lines = if level.is_high() { self.lines | bit } else { self.lines & !bit };
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else {
            return;
        };
        if *entry & LEVEL != 0 {
            offer_level(entry, level, wires);
        } else if rises && *entry & MASKED == 0 {
            // An edge on a masked pin is lost.
            wires.interrupt(message(*entry));
        }
    }

    /// The EOI of a level-triggered vector: those that still want service send again.
    pub(super) fn eoi(&mut self, vector: u8, wires: &mut dyn Wires) {
        for (pin, entry) in self.entries.iter_mut().enumerate() {
            if *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                offer_level(entry, Level::of(self.lines & 1 << pin != 0), wires);
            }
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            _ => self
                .selected()
                .and_then(|index| self.entries.get(index))
                .map_or(0, |entry| (*entry >> self.shift()) as u32),
        }
    }

    fn set_register(&mut self, value: u32, wires: &mut dyn Wires) {
        if self.select == 0 {
            self.id = (value >> 24 & 0xF) as u8;
            return;
        }
        let Some(index) = self.selected() else { return };
        let half = u64::from(u32::MAX) << self.shift();
        let line = Level::of(self.lines & 1 << index != 0);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let writable = WRITABLE & half;
        let value = (u64::from(value) << 32 | u64::from(value)) & writable;
        *entry = *entry & !writable | value;
        if *entry & LEVEL == 0 {
            // Linux clears a stuck Remote IRR by a detour through edge mode.
            *entry &= !REMOTE_IRR;
        } else {
            offer_level(entry, line, wires);
        }
    }

    fn selected(&self) -> Option<usize> {
        self.select.checked_sub(FIRST_ENTRY).map(|register| usize::from(register / 2)).filter(|index| *index < PINS)
    }

    fn shift(&self) -> u32 {
        if self.select & 1 == 0 { 0 } else { 32 }
    }
}

fn offer_level(entry: &mut u64, line: Level, wires: &mut dyn Wires) {
    if *entry & LEVEL == 0 || *entry & (MASKED | REMOTE_IRR) != 0 || !line.is_high() {
        return;
    }
    let message = message(*entry);
    if matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority) {
        *entry |= REMOTE_IRR;
    }
    wires.interrupt(message);
}

fn message(entry: u64) -> Message {
    let delivery = Delivery::from_bits((entry >> 8) as u32);
    let level = entry & LEVEL != 0 && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
    Message {
        to: Destination::from_byte((entry >> 56) as u8, entry & LOGICAL != 0),
        delivery,
        vector: entry as u8,
        trigger: if level { Trigger::Level } else { Trigger::Edge },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::tests::Board;

    fn program(ioapic: &mut Ioapic, pin: u8, entry: u64, board: &mut Board) {
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            ioapic.write(SELECT, u32::from(FIRST_ENTRY + 2 * pin + half), board);
            ioapic.write(WINDOW, value, board);
        }
    }

    fn read(ioapic: &mut Ioapic, register: u8, board: &mut Board) -> u32 {
        ioapic.write(SELECT, register.into(), board);
        ioapic.read(WINDOW)
    }

    #[test]
    fn it_identifies_itself_and_starts_masked() {
        let (mut ioapic, mut board) = (Ioapic::new(), Board::default());
        assert_eq!(read(&mut ioapic, 1, &mut board), 0x0017_0020);
        for pin in 0..24 {
            assert_eq!(read(&mut ioapic, 0x10 + 2 * pin, &mut board), 0x1_0000);
        }
        assert_eq!(read(&mut ioapic, 0x40, &mut board), 0);
        assert_eq!(read(&mut ioapic, 0xFF, &mut board), 0);
        ioapic.write(SELECT, 0, &mut board);
        ioapic.write(WINDOW, u32::MAX, &mut board);
        assert_eq!(ioapic.read(WINDOW), 0x0F00_0000);
    }

    #[test]
    fn an_edge_sends_once() {
        let (mut ioapic, mut board) = (Ioapic::new(), Board::default());
        program(&mut ioapic, 4, 0x0200_0000_0000_0034, &mut board);
        ioapic.set_line(4, Level::High, &mut board);
        ioapic.set_line(4, Level::High, &mut board);
        let message =
            Message { to: Destination::Physical(2), delivery: Delivery::Fixed, vector: 0x34, trigger: Trigger::Edge };
        assert_eq!(board.messages(), [message]);
        ioapic.set_line(4, Level::Low, &mut board);
        ioapic.set_line(4, Level::High, &mut board);
        assert_eq!(board.messages().len(), 1);
    }

    #[test]
    fn remote_irr_holds_a_level_back_until_its_eoi() {
        let (mut ioapic, mut board) = (Ioapic::new(), Board::default());
        program(&mut ioapic, 9, LEVEL | 0x39, &mut board);
        ioapic.set_line(9, Level::High, &mut board);
        assert_eq!(board.messages().len(), 1);
        assert_eq!(read(&mut ioapic, 0x22, &mut board), 0xC039);
        ioapic.set_line(9, Level::Low, &mut board);
        ioapic.set_line(9, Level::High, &mut board);
        assert_eq!(board.messages().len(), 0);
        ioapic.eoi(0x38, &mut board);
        assert_eq!(board.messages().len(), 0, "another vector");
        ioapic.eoi(0x39, &mut board);
        assert_eq!(board.messages().len(), 1, "still high");
        ioapic.set_line(9, Level::Low, &mut board);
        ioapic.write(EOI, 0x39, &mut board);
        assert_eq!(board.messages().len(), 0);
        assert_eq!(read(&mut ioapic, 0x22, &mut board), 0x8039);
    }

    #[test]
    fn remote_irr_is_read_only_and_goes_by_the_edge_detour() {
        let (mut ioapic, mut board) = (Ioapic::new(), Board::default());
        program(&mut ioapic, 9, LEVEL | 0x39 | REMOTE_IRR, &mut board);
        assert_eq!(read(&mut ioapic, 0x22, &mut board), 0x8039);
        ioapic.set_line(9, Level::High, &mut board);
        program(&mut ioapic, 9, MASKED | 0x39, &mut board);
        program(&mut ioapic, 9, MASKED | LEVEL | 0x39, &mut board);
        assert_eq!(read(&mut ioapic, 0x22, &mut board), 0x1_8039);
        board.messages();
        program(&mut ioapic, 9, LEVEL | 0x39, &mut board);
        assert_eq!(board.messages().len(), 1, "unmasking a high level line sends");
    }

    #[test]
    fn a_masked_edge_is_lost_and_a_masked_level_is_not() {
        let (mut ioapic, mut board) = (Ioapic::new(), Board::default());
        program(&mut ioapic, 2, MASKED | 0x30, &mut board);
        ioapic.set_line(2, Level::High, &mut board);
        program(&mut ioapic, 2, 0x30, &mut board);
        assert_eq!(board.messages(), []);
        program(&mut ioapic, 16, MASKED | LEVEL | 0x40, &mut board);
        ioapic.set_line(16, Level::High, &mut board);
        assert_eq!(board.messages(), []);
        program(&mut ioapic, 16, LEVEL | 0x40, &mut board);
        assert_eq!(board.messages().len(), 1);
    }
}
