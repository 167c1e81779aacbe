//! The board of a VM: chipset and a local APIC, by ports, memory, MSRs and time.

use crate::bytes::Bytes;
use hv_defs::{Gpa, Nanos, Width};
use hv_dev::apic::{ApicBus, Bootstrap, Deadline, Interrupt, Lapic, Posted, deliver};
use hv_dev::e820::Layout;
use hv_dev::{Chipset, Config, Level, Message, PowerEvent, Wires};

/// Messages that one access or tick may cause at most.
const MOST: usize = 64;
/// Hertz of the local APIC's timer.
const TIMER: u32 = 24_000_000;

/// Runs one input; gives the number of actions.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let config = Config { layout: Layout::new(64 << 20), wall_clock: i64::from(b.dword()) };
    let mut board = Board {
        chipset: Chipset::new(&config),
        lapic: Lapic::new(0, Bootstrap::Yes, TIMER),
        posted: Posted::new(0),
        now: Nanos(1),
    };
    if b.below(2) == 0 {
        board.lapic.virtual_wire();
    }
    let mut actions = 0;
    while !b.is_empty() {
        board.act(&mut b);
        board.settle();
        actions += 1;
    }
    actions
}

struct Board {
    chipset: Chipset,
    lapic: Lapic,
    posted: Posted,
    now: Nanos,
}

#[derive(Default)]
struct Out {
    messages: Vec<Message>,
    ends: Vec<u8>,
    extint: Option<Level>,
}

impl Wires for Out {
    fn interrupt(&mut self, message: Message) {
        self.messages.push(message);
        assert!(self.messages.len() <= MOST, "interrupts without end");
    }

    fn extint(&mut self, level: Level) {
        self.extint = Some(level);
    }

    fn console(&mut self, _byte: u8) {}

    fn power(&mut self, _event: PowerEvent) {}
}

impl ApicBus for Out {
    fn send(&mut self, message: Message) {
        self.messages.push(message);
        assert!(self.messages.len() <= MOST, "messages without end");
    }

    fn eoi(&mut self, vector: u8) {
        self.ends.push(vector);
    }
}

const PORTS: [u16; 28] = [
    0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3F8, 0x3F9, 0x3FA, 0x3FB,
    0x3FC, 0x3FD, 0x4D0, 0x4D1, 0xCF8, 0xCF9, 0xCFC, 0xB2, 0x600, 0x604,
];

impl Board {
    fn act(&mut self, b: &mut Bytes<'_>) {
        let mut out = Out::default();
        let now = self.now;
        let width = b.pick(&[Width::B1, Width::B1, Width::B2, Width::B4]);
        match b.below(12) {
            0..=3 => {
                let port = if b.rarely(4) { b.dword() as u16 } else { b.pick(&PORTS) };
                let value = b.dword() & width.mask() as u32;
                if b.below(3) == 0 {
                    self.chipset.port_read(port, width, now, &mut out);
                } else {
                    self.chipset.port_write(port, width, value, now, &mut out);
                }
            }
            4 => {
                let at = Gpa(b.pick(&[0xFEC0_0000, 0xFEC0_0010, 0xB000_0000, 0xFED0_0000]) + u64::from(b.below(0x100)));
                if b.below(3) == 0 {
                    self.chipset.mmio_read(at, width, now, &mut out);
                } else {
                    self.chipset.mmio_write(at, width, b.qword() & width.mask(), now, &mut out);
                }
            }
            5 | 6 => {
                let offset = b.below(0x400) as u16 & if b.rarely(4) { 0xFFF } else { 0xFF0 };
                self.lapic.mmio_read(offset, now);
                self.lapic.mmio_write(offset, b.dword(), now, &mut out);
            }
            7 => {
                let x2apic = 0x800 + b.below(0x40);
                let msr = b.pick(&[0x1B, 0x6E0, x2apic, 0x830]);
                let _ = self.lapic.msr_read(msr, now);
                let _ = self.lapic.msr_write(
                    msr,
                    if b.below(2) == 0 { b.qword() } else { b.dword().into() },
                    now,
                    &mut out,
                );
            }
            8 => {
                let _ = self.chipset.console_input(b.byte(), now, &mut out);
            }
            9 => self.chipset.set_gsi(b.below(32) as u8, Level::of(b.below(2) == 0), &mut out),
            10 => {
                self.chipset.acknowledge(now, &mut out);
            }
            _ => self.now.0 += 1 << b.below(34),
        }
        self.carry(out);
    }

    /// Time and interrupts take their course.
    fn settle(&mut self) {
        let mut out = Out::default();
        let due = |deadline: Option<Nanos>, now: Nanos| deadline.is_some_and(|at| at <= now);
        if due(self.chipset.deadline(), self.now) {
            self.chipset.tick(self.now, &mut out);
            assert!(!due(self.chipset.deadline(), self.now), "the chipset's time does not pass");
        }
        self.carry(out);
        self.lapic.expire(self.now, self.now.0);
        if let Some(Deadline::At(at)) = self.lapic.deadline() {
            assert!(at > self.now, "the timer's time does not pass");
        }
        self.lapic.sync(&self.posted);
        match self.lapic.next() {
            Some(Interrupt::Fixed(vector)) => {
                assert!(vector >= 16, "vector {vector} is an exception's");
                self.lapic.ack(vector);
            }
            Some(Interrupt::ExtInt) => {
                let mut out = Out::default();
                self.chipset.acknowledge(self.now, &mut out);
                self.lapic.ack_extint();
                self.carry(out);
            }
            None => {}
        }
    }

    fn carry(&mut self, out: Out) {
        for message in &out.messages {
            deliver(&[&self.posted], message, None, |_| {});
        }
        if let Some(level) = out.extint {
            let _ = self.posted.set_lint0(level);
        }
        for vector in out.ends {
            let mut more = Out::default();
            self.chipset.eoi(vector, self.now, &mut more);
            for message in &more.messages {
                deliver(&[&self.posted], message, None, |_| {});
            }
        }
    }
}
