//! Tests of the chipset as a whole, driven as guests drive it.

use super::*;
use crate::apic::{ApicBus, Bootstrap, Interrupt, Lapic, Posted, deliver};
use crate::e820::ECAM;
use crate::message::{Delivery, Message};

/// A board that records what leaves the chipset.
#[derive(Default)]
pub(crate) struct Board {
    pub(crate) sent: Vec<Message>,
    pub(crate) console: Vec<u8>,
    pub(crate) power: Vec<PowerEvent>,
    pub(crate) extint: Level,
    /// Configuration dword 0x10 of device 2, the only external one.
    pub(crate) bar: u32,
}

impl Board {
    /// Takes the interrupt messages sent so far.
    pub(crate) fn messages(&mut self) -> Vec<Message> {
        core::mem::take(&mut self.sent)
    }
}

impl Wires for Board {
    fn interrupt(&mut self, message: Message) {
        self.sent.push(message);
    }
    fn extint(&mut self, level: Level) {
        self.extint = level;
    }
    fn console(&mut self, byte: u8) {
        self.console.push(byte);
    }
    fn power(&mut self, event: PowerEvent) {
        self.power.push(event);
    }
    fn config_read(&mut self, device: u8, offset: u16, width: Width) -> Option<u32> {
        assert!(pci::is_regular(offset, width) && device < 32);
        let shift = 8 * (offset & 3);
        (device == 2).then_some(if offset & !3 == 0x10 { self.bar >> shift } else { 0x1234_5678 >> shift })
    }
    fn config_write(&mut self, device: u8, offset: u16, width: Width, value: u32) -> Option<()> {
        assert!(pci::is_regular(offset, width) && u64::from(value) <= width.mask());
        (device == 2).then_some(())?;
        if offset & !3 == 0x10 {
            let (shift, mask) = (8 * (offset & 3), width.mask() as u32);
            self.bar = self.bar & !(mask << shift) | value << shift;
        }
        Some(())
    }
}

use crate::pci;

const T0: Nanos = Nanos(0);

fn machine() -> (Chipset, Board) {
    (Chipset::new(&Config { layout: Layout::new(1 << 30), wall_clock: 1_795_509_925 }), Board::default())
}

impl Chipset {
    fn inb(&mut self, port: u16, now: Nanos, board: &mut Board) -> u8 {
        self.port_read(port, Width::B1, now, board).unwrap() as u8
    }
    fn outb(&mut self, port: u16, value: u8, now: Nanos, board: &mut Board) {
        self.port_write(port, Width::B1, value.into(), now, board).unwrap();
    }
    fn inl(&mut self, port: u16, board: &mut Board) -> u32 {
        self.port_read(port, Width::B4, T0, board).unwrap()
    }
    fn outl(&mut self, port: u16, value: u32, board: &mut Board) {
        self.port_write(port, Width::B4, value, T0, board).unwrap();
    }
    fn config(&mut self, device: u32, offset: u32, board: &mut Board) -> u32 {
        self.outl(0xCF8, 1 << 31 | device << 11 | offset & 0xFC, board);
        self.inl(0xCFC, board)
    }
    fn redirect(&mut self, pin: u8, entry: u64, board: &mut Board) {
        for (half, value) in [(1, entry >> 32), (0, entry & 0xFFFF_FFFF)] {
            self.mmio_write(Gpa(ioapic::BASE), Width::B4, u64::from(0x10 + 2 * pin + half), T0, board).unwrap();
            self.mmio_write(Gpa(ioapic::BASE + 0x10), Width::B4, value, T0, board).unwrap();
        }
    }
}

#[test]
fn a_byte_write_beside_the_address_does_not_disturb_it() {
    let (mut chipset, mut board) = machine();
    // pci_check_type1() of Linux.
    chipset.outb(0xCFB, 0x01, T0, &mut board);
    chipset.outl(0xCF8, 0x8000_0000, &mut board);
    assert_eq!(chipset.inl(0xCF8, &mut board), 0x8000_0000);
    chipset.outb(0xCFB, 0x00, T0, &mut board);
    chipset.port_write(0xCF8, Width::B2, 0x1234, T0, &mut board);
    assert_eq!(chipset.inl(0xCF8, &mut board), 0x8000_0000);
    assert_eq!(chipset.inl(0xCFC, &mut board), 0x29C0_8086);
    assert_eq!(board.power, []);
}

#[test]
fn both_views_of_configuration_space_agree() {
    let (mut chipset, mut board) = machine();
    for device in [0, 1, 2, 3, 31] {
        for offset in (0..256).step_by(4) {
            let gpa = Gpa(ECAM + u64::from(device << 15 | offset));
            let ports = chipset.config(device, offset, &mut board);
            assert_eq!(chipset.mmio_read(gpa, Width::B4, T0, &mut board), Some(u64::from(ports)));
            for lane in 0..4 {
                let byte = chipset.inb(0xCFC + lane, T0, &mut board);
                assert_eq!(u32::from(byte), ports >> (8 * lane) & 0xFF);
                assert_eq!(
                    chipset.mmio_read(Gpa(gpa.0 + u64::from(lane)), Width::B1, T0, &mut board),
                    Some(byte.into())
                );
            }
        }
    }
    assert_eq!(chipset.config(31, 0x2C, &mut board), 0x1100_1AF4);
    assert_eq!(chipset.config(3, 0, &mut board), u32::MAX);
    chipset.outl(0xCF8, 0x8001_0000, &mut board);
    assert_eq!(chipset.inl(0xCFC, &mut board), u32::MAX, "bus 1");
    chipset.outl(0xCF8, 0x0000_0000, &mut board);
    assert_eq!(chipset.inl(0xCFC, &mut board), u32::MAX, "not enabled");
}

#[test]
fn configuration_writes_reach_functions_in_every_width() {
    let (mut chipset, mut board) = machine();
    chipset.outl(0xCF8, 1 << 31 | 2 << 11 | 0x10, &mut board);
    chipset.outl(0xCFC, 0xC000_0000, &mut board);
    chipset.port_write(0xCFE, Width::B2, 0xFFFF_D000, T0, &mut board);
    assert_eq!(board.bar, 0xD000_0000);
    chipset.outb(0xCFF, 0xE0, T0, &mut board);
    let gpa = Gpa(ECAM + (2 << 15) + 0x10);
    chipset.mmio_write(gpa, Width::B1, 0x0C, T0, &mut board);
    assert_eq!(board.bar, 0xE000_000C);
    chipset.mmio_write(gpa, Width::B8, u64::MAX, T0, &mut board);
    assert_eq!(chipset.mmio_read(gpa, Width::B8, T0, &mut board), Some(0x1234_5678_FFFF_FFFF));
    assert_eq!(chipset.port_read(0xCFE, Width::B4, T0, &mut board), None, "runs past the dword");
}

#[test]
fn ecam_follows_pciexbar() {
    let (mut chipset, mut board) = machine();
    assert_eq!(chipset.ecam(), Some(0xB000_0000..0xC000_0000));
    chipset.outl(0xCF8, 1 << 31 | 0x60, &mut board);
    chipset.outl(0xCFC, 0xE000_0001, &mut board);
    assert_eq!(chipset.mmio_read(Gpa(0xB000_0000), Width::B4, T0, &mut board), None);
    assert_eq!(chipset.mmio_read(Gpa(0xE000_0000), Width::B4, T0, &mut board), Some(0x29C0_8086));
    assert_eq!(chipset.mmio_read(Gpa(0xEFFF_FFFE), Width::B4, T0, &mut board), None, "runs past the end");
    chipset.outl(0xCFC, 0xE000_0000, &mut board);
    assert_eq!(chipset.ecam(), None);
}

#[test]
fn the_timer_interrupt_reaches_both_controllers() {
    let (mut chipset, mut board) = machine();
    chipset.redirect(2, 0x30, &mut board);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)] {
        chipset.outb(port, value, T0, &mut board);
    }
    for _ in 0..3 {
        let at = chipset.deadline().unwrap();
        chipset.tick(at, &mut board);
        assert_eq!(board.messages().len(), 1);
        assert_eq!(board.extint, Level::High);
        assert_eq!(chipset.acknowledge(at, &mut board), 0x30);
        assert_eq!(board.extint, Level::Low);
        chipset.outb(0x20, 0x20, at, &mut board);
    }
}

#[test]
fn virtual_wire_through_the_ioapic_sends_extint_for_each_interrupt() {
    let (mut chipset, mut board) = machine();
    chipset.redirect(0, 0x700, &mut board);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)] {
        chipset.outb(port, value, T0, &mut board);
    }
    for _ in 0..2 {
        let at = chipset.deadline().unwrap();
        chipset.tick(at, &mut board);
        assert_eq!(board.messages().first().unwrap().delivery, Delivery::ExtInt);
        chipset.acknowledge(at, &mut board);
        chipset.outb(0x20, 0x20, at, &mut board);
    }
}

#[test]
fn the_console_interrupts_once_for_each_byte_sent() {
    let (mut chipset, mut board) = machine();
    chipset.redirect(4, 0x34, &mut board);
    for (port, value) in [(0x3FC, 0x08), (0x3FA, 0x01), (0x3F9, 0x03)] {
        chipset.outb(port, value, T0, &mut board);
    }
    assert_eq!(board.messages().len(), 1);
    for byte in *b"hello" {
        chipset.outb(0x3F8, byte, T0, &mut board);
        assert_eq!(board.messages().len(), 1, "an edge, even if nobody looked at the last one");
    }
    assert_eq!(board.console, b"hello");
    chipset.inb(0x3FA, T0, &mut board);
    (0..100).for_each(|ms| chipset.tick(Nanos(ms * 1_000_000), &mut board));
    assert_eq!(board.messages(), [], "no storm");
    chipset.console_input(b'x', T0, &mut board).unwrap();
    assert_eq!(board.messages().len(), 1);
    assert_eq!(chipset.inb(0x3F8, T0, &mut board), b'x');
}

#[test]
fn the_sci_is_level_triggered_and_ends_by_eoi() {
    let (mut chipset, mut board) = machine();
    chipset.redirect(9, 0x8039, &mut board);
    chipset.port_write(0x602, Width::B2, 0x100, T0, &mut board);
    chipset.press_power_button(T0, &mut board);
    assert_eq!(board.messages().len(), 1);
    chipset.eoi(0x39, T0, &mut board);
    assert_eq!(board.messages().len(), 1, "not served yet");
    chipset.port_write(0x600, Width::B2, 0x100, T0, &mut board);
    chipset.eoi(0x39, T0, &mut board);
    assert_eq!(board.messages(), []);
}

#[test]
fn the_rtc_interrupts_at_its_rate() {
    let (mut chipset, mut board) = machine();
    chipset.redirect(8, 0x38, &mut board);
    chipset.outb(0x70, 0x0B, T0, &mut board);
    chipset.outb(0x71, 0x42, T0, &mut board);
    let mut ticks = 0;
    while let Some(at) = chipset.deadline().filter(|at| at.0 <= 100_000_000) {
        chipset.tick(at, &mut board);
        ticks += board.messages().len();
        chipset.outb(0x70, 0x0C, at, &mut board);
        chipset.inb(0x71, at, &mut board);
    }
    assert_eq!(ticks, 102);
}

#[test]
fn every_way_to_reset_and_to_switch_off() {
    let reset = |writes: &[(u16, u8)]| {
        let (mut chipset, mut board) = machine();
        writes.iter().for_each(|(port, value)| chipset.outb(*port, *value, T0, &mut board));
        board.power
    };
    assert_eq!(reset(&[(0xCF9, 0x02)]), []);
    assert_eq!(reset(&[(0xCF9, 0x02), (0xCF9, 0x06), (0xCF9, 0x06)]), [PowerEvent::Reset]);
    assert_eq!(reset(&[(0xCF9, 0x0E)]), [PowerEvent::Reset]);
    assert_eq!(reset(&[(0x64, 0xFE)]), [PowerEvent::Reset]);
    assert_eq!(reset(&[(0x92, 0x02)]), []);
    assert_eq!(reset(&[(0x92, 0x03), (0x92, 0x03)]), [PowerEvent::Reset]);
    let (mut chipset, mut board) = machine();
    chipset.port_write(0x604, Width::B2, 0x2001, T0, &mut board).unwrap();
    assert_eq!(board.power, [PowerEvent::Off]);
}

#[test]
fn ports_without_a_device_are_nobodys() {
    let (mut chipset, mut board) = machine();
    for port in [0x2E, 0x2F8, 0x3E8, 0x3C0, 0xB2, 0x402, 0x510, 0xCD8, 0xFFFF] {
        for width in [Width::B1, Width::B2, Width::B4] {
            assert_eq!(chipset.port_read(port, width, T0, &mut board), None, "{port:#x}");
            assert_eq!(chipset.port_write(port, width, 0, T0, &mut board), None, "{port:#x}");
        }
    }
    assert_eq!(chipset.port_read(0x3F7, Width::B2, T0, &mut board), Some(0x00FF), "half of it is COM1");
}

#[test]
fn a_reset_silences_everything() {
    let (mut chipset, mut board) = machine();
    chipset.redirect(2, 0x30, &mut board);
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 1), (0x70, 0x0B), (0x71, 0x72), (0x3FC, 8), (0x3F9, 2)] {
        chipset.outb(port, value, T0, &mut board);
    }
    assert!(chipset.deadline().is_some());
    chipset.reset(Nanos(1_000_000_000), &mut board);
    board.messages();
    assert_eq!((chipset.deadline(), board.extint), (None, Level::Low));
    chipset.tick(Nanos(9_000_000_000), &mut board);
    assert_eq!(board.messages(), []);
}

#[test]
fn random_accesses_never_panic() {
    let mut random = crate::apic::Xorshift::new(0x9E37_79B9_7F4A_7C15);
    for _ in 0..20 {
        let (mut chipset, mut board) = machine();
        let mut now = 0;
        for _ in 0..20_000 {
            now += random.next() % 50_000;
            random_access(&mut chipset, &mut board, &mut random, Nanos(now));
            board.sent.truncate(8);
            board.console.truncate(8);
            board.power.clear();
        }
    }
}

const POPULAR: [u16; 26] = [
    0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3F8, 0x3FA, 0x4D0, 0x600,
    0x602, 0x604, 0x608, 0x620, 0xCF8, 0xCF9, 0xCFC, 0xCFE,
];

fn random_access(chipset: &mut Chipset, board: &mut Board, random: &mut crate::apic::Xorshift, now: Nanos) {
    let width = [Width::B1, Width::B2, Width::B4, Width::B8][random.next() as usize % 4];
    let port = match random.next() % 4 {
        0 => random.next() as u16,
        _ => POPULAR[random.next() as usize % POPULAR.len()].wrapping_add(random.next() as u16 % 4),
    };
    let gpa = match random.next() % 4 {
        0 => random.next(),
        1 => ECAM + random.next() % 0x1000_0000,
        2 => ECAM + ((random.next() % 3) << 15) + random.next() % 0x1000,
        _ => ioapic::BASE + random.next() % 0x50,
    };
    let value = random.next();
    match random.next() % 8 {
        0 | 1 => drop(chipset.port_read(port, width, now, board)),
        2 | 3 => drop(chipset.port_write(port, width, value as u32, now, board)),
        4 => drop(chipset.mmio_read(Gpa(gpa), width, now, board)),
        5 => drop(chipset.mmio_write(Gpa(gpa), width, value, now, board)),
        6 => {
            chipset.tick(now, board);
            let due = chipset.deadline().is_none_or(|at| at > now);
            assert!(due, "tick leaves nothing due: {:?} at {now:?}", chipset.deadline());
        }
        _ => match value % 5 {
            0 => chipset.eoi(value as u8, now, board),
            1 => drop(chipset.acknowledge(now, board)),
            2 => drop(chipset.console_input(value as u8, now, board)),
            3 => chipset.set_gsi((value >> 8) as u8, Level::of(value & 8 != 0), board),
            _ => chipset.press_power_button(now, board),
        },
    }
}

/// A vCPU's local APIC wired to a chipset: what `hv` does, in small.
struct Processor {
    lapic: Lapic,
    posted: Posted,
}

struct Ends(Vec<u8>);

impl ApicBus for Ends {
    fn send(&mut self, _: Message) {}
    fn eoi(&mut self, vector: u8) {
        self.0.push(vector);
    }
}

impl Processor {
    fn new() -> Self {
        let mut lapic = Lapic::new(0, Bootstrap::Yes, 1_000_000_000);
        lapic.virtual_wire();
        let posted = Posted::new(0);
        let _ = lapic.sync(&posted);
        Self { lapic, posted }
    }

    /// Takes what the board has sent, and the next interrupt.
    fn interrupt(&mut self, chipset: &mut Chipset, board: &mut Board, now: Nanos) -> Option<u8> {
        for message in board.messages() {
            let _ = deliver(&[&self.posted], &message, None, |_| {});
        }
        let _ = self.posted.set_lint0(board.extint);
        let _ = self.lapic.sync(&self.posted);
        match self.lapic.next()? {
            Interrupt::Fixed(vector) => {
                self.lapic.ack(vector);
                Some(vector)
            }
            Interrupt::ExtInt => {
                self.lapic.ack_extint();
                Some(chipset.acknowledge(now, board))
            }
        }
    }

    fn end(&mut self, chipset: &mut Chipset, board: &mut Board, now: Nanos) {
        let mut ends = Ends(vec![]);
        self.lapic.mmio_write(0xB0, 0, now, &mut ends);
        ends.0.into_iter().for_each(|vector| chipset.eoi(vector, now, board));
    }
}

#[test]
fn a_level_interrupt_goes_all_the_way_and_back() {
    let ((mut chipset, mut board), mut cpu) = (machine(), Processor::new());
    chipset.redirect(9, 0x8039, &mut board);
    chipset.port_write(0x602, Width::B2, 0x100, T0, &mut board);
    chipset.press_power_button(T0, &mut board);
    for _ in 0..3 {
        assert_eq!(cpu.interrupt(&mut chipset, &mut board, T0), Some(0x39));
        assert_eq!(cpu.interrupt(&mut chipset, &mut board, T0), None, "in service");
        cpu.end(&mut chipset, &mut board, T0);
    }
    assert_eq!(cpu.interrupt(&mut chipset, &mut board, T0), Some(0x39));
    chipset.port_write(0x600, Width::B2, 0x100, T0, &mut board);
    cpu.end(&mut chipset, &mut board, T0);
    assert_eq!(cpu.interrupt(&mut chipset, &mut board, T0), None);
}

#[test]
fn the_8259s_timer_ticks_through_virtual_wire() {
    let ((mut chipset, mut board), mut cpu) = (machine(), Processor::new());
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0x43, 0x34), (0x40, 0x9C), (0x40, 0x2E)] {
        chipset.outb(port, value, T0, &mut board);
    }
    for _ in 0..5 {
        let at = chipset.deadline().unwrap();
        chipset.tick(at, &mut board);
        assert_eq!(cpu.interrupt(&mut chipset, &mut board, at), Some(0x30));
        assert_eq!(cpu.interrupt(&mut chipset, &mut board, at), None);
        chipset.outb(0x20, 0x20, at, &mut board);
    }
    // The other way that Linux tries: LINT0 as a fixed interrupt. The pair must be acknowledged by a poll, or not at all
    // (as with AEOI), so each edge of INTR is one interrupt.
    cpu.lapic.mmio_write(0x350, 0x31, T0, &mut Ends(vec![]));
    let at = chipset.deadline().unwrap();
    chipset.tick(at, &mut board);
    assert_eq!(cpu.interrupt(&mut chipset, &mut board, at), Some(0x31));
}

/// The fastest timers, all masked, wake nobody; what was missed meanwhile comes as one edge, or none.
#[test]
fn masked_timers_wake_nobody() {
    let (mut chipset, mut board) = machine();
    let out = |chipset: &mut Chipset, board: &mut Board, port, value, now| {
        chipset.outb(port, value, Nanos(now), board);
    };
    // Channel 0 in mode 2, count 1; the RTC's periodic interrupt at 8192 Hz. Both 8259 are masked after power-on.
    for (port, value) in [(0x43, 0x14), (0x40, 1), (0x70, 0x0A), (0x71, 0x23), (0x70, 0x0B), (0x71, 0x42)] {
        out(&mut chipset, &mut board, port, value, 0);
    }
    assert_eq!(chipset.deadline(), None);
    // Unmasked, the edge that was latched meanwhile waits; until it is taken, more change nothing.
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFE)] {
        out(&mut chipset, &mut board, port, value, 1_000_000);
    }
    assert_eq!((chipset.intr, chipset.deadline()), (Level::High, None));
    assert_eq!(chipset.acknowledge(Nanos(5_000_000), &mut board), 0x20);
    let next = chipset.deadline().unwrap();
    assert!((5_000_000..5_200_000).contains(&next.0), "{next:?}");
    out(&mut chipset, &mut board, 0x20, 0x20, 5_000_001);
    assert_eq!(chipset.intr, Level::Low, "those in between were one");
    chipset.tick(next, &mut board);
    assert_eq!(chipset.intr, Level::High);
}
