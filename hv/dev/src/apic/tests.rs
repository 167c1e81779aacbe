//! Tests of the local APIC and of delivery between several.

use hv_defs::{Gpa, Nanos};

use super::*;
use crate::message::{Delivery, Destination, Message, Trigger};
use crate::wires::Level;

/// A small random number generator (xorshift64*), for tests that throw accesses at a device.
pub(crate) struct Xorshift(u64);

impl Xorshift {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[derive(Default)]
struct Bus {
    sent: Vec<Message>,
    ended: Vec<u8>,
}

impl ApicBus for Bus {
    fn send(&mut self, message: Message) {
        self.sent.push(message);
    }
    fn eoi(&mut self, vector: u8) {
        self.ended.push(vector);
    }
}

const T0: Nanos = Nanos(0);
const GHZ: u32 = 1_000_000_000;

struct Cpu {
    lapic: Lapic,
    posted: Posted,
    bus: Bus,
}

impl Cpu {
    fn new(id: u32) -> Self {
        let bootstrap = if id == 0 { Bootstrap::Yes } else { Bootstrap::No };
        Self { lapic: Lapic::new(id, bootstrap, GHZ), posted: Posted::new(id), bus: Bus::default() }
    }

    /// Enabled through SVR, as every operating system does.
    fn enabled(id: u32) -> Self {
        let mut cpu = Self::new(id);
        cpu.write(0xF0, 0x1FF);
        cpu.sync();
        cpu
    }

    fn x2apic(id: u32) -> Self {
        let mut cpu = Self::enabled(id);
        let base = cpu.lapic.base();
        cpu.wrmsr(0x1B, base | 1 << 10).unwrap();
        cpu.sync();
        cpu
    }

    fn write(&mut self, offset: u16, value: u32) {
        self.lapic.mmio_write(offset, value, T0, &mut self.bus);
    }

    fn read(&mut self, offset: u16) -> u32 {
        self.lapic.mmio_read(offset, T0)
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        self.lapic.msr_write(msr, value, T0, &mut self.bus)
    }

    fn sync(&mut self) -> Signals {
        self.lapic.sync(&self.posted)
    }

    fn post(&mut self, vector: u8, trigger: Trigger) {
        let _ = self.posted.post(Delivery::Fixed, vector, trigger);
        self.sync();
    }
}

fn fixed(to: Destination, vector: u8) -> Message {
    Message { to, delivery: Delivery::Fixed, vector, trigger: Trigger::Edge }
}

#[test]
fn the_power_on_state() {
    let mut cpu = Cpu::new(3);
    assert_eq!(cpu.lapic.page(), Some(Gpa(0xFEE0_0000)));
    assert_eq!(cpu.lapic.base(), 0xFEE0_0800);
    assert_eq!(Cpu::new(0).lapic.base(), 0xFEE0_0900);
    assert_eq!((cpu.read(0x20), cpu.read(0x30)), (0x0300_0000, 0x0005_0014));
    assert_eq!((cpu.read(0xF0), cpu.read(0xE0), cpu.read(0xD0)), (0xFF, u32::MAX, 0));
    for lvt in (0x320..=0x370).step_by(0x10) {
        assert_eq!(cpu.read(lvt), 0x1_0000);
        cpu.write(lvt, 0xEF);
        assert_eq!(cpu.read(lvt), 0x1_00EF, "stays masked while the APIC is disabled");
    }
}

#[test]
fn priority_follows_tpr_in_both_directions() {
    let mut cpu = Cpu::enabled(0);
    cpu.post(0x51, Trigger::Edge);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0x51)));
    assert_eq!(cpu.lapic.tpr_threshold(), 0);
    cpu.lapic.set_cr8(5);
    assert_eq!((cpu.lapic.next(), cpu.read(0xA0), cpu.read(0x80)), (None, 0x50, 0x50));
    assert_eq!(cpu.lapic.tpr_threshold(), 5, "an exit is due when TPR falls below 5");
    cpu.write(0x80, 0x4F);
    assert_eq!((cpu.lapic.next(), cpu.lapic.cr8()), (Some(Interrupt::Fixed(0x51)), 4));
    cpu.lapic.ack(0x51);
    assert_eq!((cpu.lapic.next(), cpu.read(0xA0)), (None, 0x50));
    cpu.post(0x5F, Trigger::Edge);
    assert_eq!((cpu.lapic.next(), cpu.lapic.tpr_threshold()), (None, 0), "held back by ISR, not by TPR");
    cpu.post(0x61, Trigger::Edge);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0x61)));
    cpu.write(0xB0, 0);
    cpu.lapic.set_cr8(15);
    assert_eq!(cpu.lapic.next(), None);
    cpu.lapic.set_cr8(0);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0x61)));
}

#[test]
fn irr_and_isr_read_back() {
    let mut cpu = Cpu::enabled(0);
    cpu.post(0x21, Trigger::Level);
    assert_eq!((cpu.read(0x210), cpu.read(0x190), cpu.read(0x110)), (2, 2, 0));
    cpu.lapic.ack(0x21);
    assert_eq!((cpu.read(0x210), cpu.read(0x190), cpu.read(0x110)), (0, 2, 2));
}

#[test]
fn only_a_level_interrupt_is_ended_at_the_ioapic() {
    let mut cpu = Cpu::enabled(0);
    cpu.post(0x41, Trigger::Level);
    cpu.lapic.ack(0x41);
    cpu.post(0x61, Trigger::Edge);
    cpu.lapic.ack(0x61);
    cpu.write(0xB0, 0);
    assert_eq!(cpu.bus.ended, []);
    cpu.write(0xB0, 0);
    assert_eq!(cpu.bus.ended, [0x41]);
    cpu.write(0xB0, 0);
    assert_eq!(cpu.bus.ended, [0x41], "nothing in service");
    // The same vector, edge-triggered now.
    cpu.post(0x41, Trigger::Edge);
    cpu.lapic.ack(0x41);
    cpu.write(0xB0, 0);
    assert_eq!(cpu.bus.ended, [0x41]);
}

#[test]
fn icr_sends_every_kind() {
    let mut cpu = Cpu::enabled(0);
    cpu.write(0x310, 0x0200_0000);
    // What Linux and OVMF write.
    for icr in [0xC500, 0x8500, 0x699, 0xC4500, 0xC4687, 0x8_0031, 0x831, 0x4400, 0x0001] {
        cpu.write(0x300, icr);
    }
    let message = |to, delivery, vector| Message { to, delivery, vector, trigger: Trigger::Edge };
    assert_eq!(
        cpu.bus.sent,
        [
            message(Destination::Physical(2), Delivery::Init, 0),
            message(Destination::Physical(2), Delivery::Sipi, 0x99),
            message(Destination::Others, Delivery::Init, 0),
            message(Destination::Others, Delivery::Sipi, 0x87),
            message(Destination::Everyone, Delivery::Fixed, 0x31),
            message(Destination::Logical(2), Delivery::Fixed, 0x31),
            message(Destination::Physical(2), Delivery::Nmi, 0),
        ]
    );
    assert_eq!(cpu.read(0x310), 0x0200_0000);
    cpu.write(0x280, 0);
    assert_eq!(cpu.read(0x280), 0x20, "illegal vector sent");
    cpu.write(0x310, 0xFF00_0000);
    cpu.write(0x300, 0x31);
    assert_eq!(cpu.bus.sent.last().unwrap().to, Destination::Everyone);
}

#[test]
fn an_ipi_to_oneself_is_there_at_once() {
    let mut cpu = Cpu::enabled(0);
    cpu.write(0x300, 0x4_00F3);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0xF3)));
    let mut cpu = Cpu::x2apic(0);
    cpu.wrmsr(0x83F, 0x2F).unwrap();
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0x2F)));
    assert_eq!(cpu.bus.sent, []);
}

#[test]
fn apic_base_transitions() {
    let mut cpu = Cpu::new(5);
    let base = cpu.lapic.base();
    let (en, extd) = (1 << 11, 1 << 10);
    assert!(cpu.lapic.msr_read(0x802, T0).is_err(), "not in x2APIC mode");
    assert!(cpu.wrmsr(0x1B, base & !en | extd).is_err());
    assert!(cpu.wrmsr(0x1B, base | 1).is_err());
    cpu.wrmsr(0x1B, base | extd).unwrap();
    assert_eq!((cpu.lapic.mode(), cpu.lapic.page()), (Mode::X2Apic, None));
    assert_eq!((cpu.lapic.msr_read(0x802, T0), cpu.lapic.msr_read(0x80D, T0)), (Ok(5), Ok(0x20)));
    assert!(cpu.wrmsr(0x1B, base).is_err(), "not straight back to xAPIC");
    cpu.wrmsr(0x1B, base & !en).unwrap();
    assert_eq!(cpu.lapic.mode(), Mode::Disabled);
    assert!(cpu.wrmsr(0x1B, base | extd).is_err());
    cpu.wrmsr(0x1B, base).unwrap();
    assert_eq!(cpu.lapic.mode(), Mode::XApic);
    cpu.wrmsr(0x1B, base & 0xFFF | 0xFEC1_0000).unwrap();
    assert_eq!(cpu.lapic.page(), Some(Gpa(0xFEC1_0000)));
}

#[test]
fn x2apic_refuses_what_is_reserved() {
    let mut cpu = Cpu::x2apic(0);
    for (msr, value) in [
        (0x802, 0),
        (0x80D, 1),
        (0x80E, 0),
        (0x831, 0),
        (0x80B, 1),
        (0x828, 1),
        (0x83F, 0x100),
        (0x835, 1 << 11),
        (0x8FF, 0),
    ] {
        assert!(cpu.wrmsr(msr, value).is_err(), "{msr:#x}");
    }
    for msr in [0x800, 0x80B, 0x80E, 0x831, 0x83F, 0x8FF] {
        assert!(cpu.lapic.msr_read(msr, T0).is_err(), "{msr:#x}");
    }
    for (msr, value) in
        [(0x80F, 0x1FF), (0x832, 0x400EC), (0x837, 0xFE), (0x80B, 0), (0x828, 0), (0x808, 0x20), (0x83E, 0xB)]
    {
        cpu.wrmsr(msr, value).unwrap();
    }
    cpu.wrmsr(0x830, 7 << 32 | 0xF3).unwrap();
    cpu.wrmsr(0x830, 0xFFFF_FFFF << 32 | 0xF3).unwrap();
    cpu.wrmsr(0x830, 0x1_0003 << 32 | 0x8F3).unwrap();
    let destinations = cpu.bus.sent.iter().map(|message| message.to).collect::<Vec<_>>();
    assert_eq!(destinations, [Destination::Physical(7), Destination::Everyone, Destination::Logical(0x1_0003)]);
}

#[test]
fn destinations_match() {
    let flat: Vec<Cpu> = (0..4)
        .map(|id| {
            let mut cpu = Cpu::enabled(id);
            cpu.write(0xD0, 1 << (24 + id));
            cpu.sync();
            cpu
        })
        .collect();
    let reached = |cpus: &[Cpu], to, sender| {
        let posted = cpus.iter().map(|cpu| &cpu.posted).collect::<Vec<_>>();
        let mut woken = vec![];
        let _ = deliver(&posted, &fixed(to, 0x31), sender, |index| woken.push(index));
        posted.iter().for_each(|posted| _ = posted.take_flags());
        woken
    };
    assert_eq!(reached(&flat, Destination::Physical(2), None), [2]);
    assert_eq!(reached(&flat, Destination::Physical(9), None), []);
    assert_eq!(reached(&flat, Destination::Logical(0b0101), None), [0, 2]);
    assert_eq!(reached(&flat, Destination::Logical(0xFF), None), [0, 1, 2, 3]);
    assert_eq!(reached(&flat, Destination::Everyone, Some(1)), [0, 1, 2, 3]);
    assert_eq!(reached(&flat, Destination::Others, Some(1)), [0, 2, 3]);

    let cluster: Vec<Cpu> = (0..4)
        .map(|id| {
            let mut cpu = Cpu::enabled(id);
            cpu.write(0xE0, 0x0FFF_FFFF);
            cpu.write(0xD0, (id / 2) << 28 | 1 << (24 + id % 2));
            cpu.sync();
            cpu
        })
        .collect();
    assert_eq!(reached(&cluster, Destination::Logical(0x13), None), [2, 3]);
    assert_eq!(reached(&cluster, Destination::Logical(0x01), None), [0]);
    assert_eq!(reached(&cluster, Destination::Logical(0xF2), None), [1, 3]);

    let x2apic: Vec<Cpu> = [0, 1, 17].map(Cpu::x2apic).into();
    assert_eq!(reached(&x2apic, Destination::Logical(0x1_0002), None), [2]);
    assert_eq!(reached(&x2apic, Destination::Logical(0x0003), None), [0, 1]);
    assert_eq!(reached(&x2apic, Destination::Physical(17), None), [2]);
}

#[test]
fn lowest_priority_goes_to_the_idlest() {
    let mut cpus: Vec<Cpu> = (0..3).map(Cpu::enabled).collect();
    for (cpu, tpr) in cpus.iter_mut().zip([0x40, 0x10, 0x20]) {
        cpu.write(0x80, tpr);
        cpu.sync();
    }
    let posted = cpus.iter().map(|cpu| &cpu.posted).collect::<Vec<_>>();
    let message = Message { delivery: Delivery::LowestPriority, ..fixed(Destination::Everyone, 0x31) };
    let mut woken = vec![];
    assert_eq!(deliver(&posted, &message, None, |index| woken.push(index)), Delivered::Accepted);
    assert_eq!(woken, [1]);
}

#[test]
fn a_disabled_apic_takes_signals_only() {
    let mut cpu = Cpu::new(1);
    cpu.sync();
    let posted = [&cpu.posted];
    assert_eq!(deliver(&posted, &fixed(Destination::Physical(1), 0x31), None, |_| {}), Delivered::Nobody);
    for delivery in [Delivery::Init, Delivery::Sipi, Delivery::Nmi] {
        let message = Message { delivery, ..fixed(Destination::Physical(1), 0x99) };
        assert_eq!(deliver(&posted, &message, Some(0), |_| {}), Delivered::Accepted);
    }
    assert_eq!(cpu.sync(), Signals { nmi: true, init: true, sipi: Some(0x99) });
    assert_eq!(cpu.sync(), Signals::default());
}

#[test]
fn a_vcpu_is_woken_once_until_it_looks() {
    let mut cpu = Cpu::enabled(0);
    let mut woken = 0;
    for vector in [0x31, 0x32, 0x31] {
        let _ = deliver(&[&cpu.posted], &fixed(Destination::Physical(0), vector), None, |_| woken += 1);
    }
    assert_eq!(woken, 1);
    cpu.sync();
    assert!(!cpu.posted.is_pending());
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0x32)));
    let _ = deliver(&[&cpu.posted], &fixed(Destination::Physical(0), 0x33), None, |_| woken += 1);
    assert_eq!(woken, 2);
}

#[test]
fn the_8259s_interrupt_comes_through_lint0() {
    let mut cpu = Cpu::new(0);
    cpu.lapic.virtual_wire();
    assert!(cpu.posted.set_lint0(Level::High));
    cpu.sync();
    assert_eq!(cpu.lapic.next(), Some(Interrupt::ExtInt));
    assert!(!cpu.posted.set_lint0(Level::Low));
    cpu.sync();
    assert_eq!(cpu.lapic.next(), None);
    // Masked, as Linux does once the I/O APIC works.
    cpu.write(0x350, 0x1_0700);
    let _ = cpu.posted.set_lint0(Level::High);
    cpu.sync();
    assert_eq!(cpu.lapic.next(), None);
    // "Virtual wire" the other way: a fixed vector at the edge.
    let _ = cpu.posted.set_lint0(Level::Low);
    cpu.sync();
    cpu.write(0x350, 0x30);
    let _ = cpu.posted.set_lint0(Level::High);
    cpu.sync();
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0x30)));
    // Globally disabled, the pin is the processor's INTR.
    let base = cpu.lapic.base();
    cpu.wrmsr(0x1B, base & !(1 << 11)).unwrap();
    assert_eq!(cpu.lapic.next(), Some(Interrupt::ExtInt));
}

#[test]
fn an_extint_message_is_taken_once() {
    let mut cpu = Cpu::enabled(0);
    let message = Message { delivery: Delivery::ExtInt, ..fixed(Destination::Physical(0), 0) };
    let _ = deliver(&[&cpu.posted], &message, None, |_| {});
    cpu.sync();
    assert_eq!(cpu.lapic.next(), Some(Interrupt::ExtInt));
    cpu.lapic.ack_extint();
    assert_eq!(cpu.lapic.next(), None);
}

#[test]
fn a_posted_illegal_vector_is_an_error() {
    let mut cpu = Cpu::enabled(0);
    cpu.write(0x370, 0xFE);
    cpu.post(0x0F, Trigger::Edge);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0xFE)));
    cpu.write(0x280, 0);
    assert_eq!(cpu.read(0x280), 0x40);
}

#[test]
fn the_timer_counts_down_and_fires_once() {
    let mut cpu = Cpu::enabled(0);
    cpu.write(0x3E0, 0x3);
    cpu.write(0x320, 0xEC);
    cpu.write(0x380, 1_000_000);
    assert_eq!(cpu.lapic.deadline(), Some(Deadline::At(Nanos(16_000_000))));
    assert_eq!(cpu.lapic.mmio_read(0x390, Nanos(8_000_000)), 500_000);
    cpu.lapic.expire(Nanos(15_999_999), 0);
    assert_eq!(cpu.lapic.next(), None);
    cpu.lapic.expire(Nanos(16_000_000), 0);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0xEC)));
    assert_eq!((cpu.lapic.deadline(), cpu.lapic.mmio_read(0x390, Nanos(99_000_000))), (None, 0));
}

#[test]
fn the_timer_repeats_without_drift() {
    let mut cpu = Cpu::enabled(0);
    cpu.write(0x3E0, 0xB);
    cpu.write(0x320, 0x2_00EC);
    cpu.write(0x380, 4_000_000);
    for period in 1..=100u64 {
        assert_eq!(cpu.lapic.deadline(), Some(Deadline::At(Nanos(period * 4_000_000))));
        cpu.lapic.expire(Nanos(period * 4_000_000 + 12_345), 0);
        assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0xEC)));
        cpu.lapic.ack(0xEC);
        cpu.write(0xB0, 0);
    }
    // Masked, it runs on silently; a tiny count does not run away.
    cpu.write(0x320, 0x3_00EC);
    cpu.lapic.expire(Nanos(404_000_000), 0);
    assert_eq!(cpu.lapic.next(), None);
    cpu.write(0x380, 1);
    assert_eq!(cpu.lapic.deadline(), None);
    cpu.write(0x320, 0x2_00EC);
    assert_eq!(cpu.lapic.deadline(), Some(Deadline::At(Nanos(100_000))));
    cpu.write(0x380, 0);
    assert_eq!(cpu.lapic.deadline(), None);
}

#[test]
fn the_tsc_deadline_fires_once_and_reads_zero() {
    let mut cpu = Cpu::enabled(0);
    cpu.wrmsr(0x6E0, 1_000).unwrap();
    assert_eq!(cpu.lapic.deadline(), None, "not in that mode");
    cpu.write(0x320, 0x4_00EC);
    cpu.wrmsr(0x6E0, 1_000).unwrap();
    assert_eq!(cpu.lapic.deadline(), Some(Deadline::Tsc(1_000)));
    cpu.lapic.expire(T0, 999);
    assert_eq!(cpu.lapic.next(), None);
    cpu.lapic.expire(T0, 1_000);
    assert_eq!(cpu.lapic.next(), Some(Interrupt::Fixed(0xEC)));
    assert_eq!((cpu.lapic.msr_read(0x6E0, T0), cpu.lapic.deadline()), (Ok(0), None));
    cpu.wrmsr(0x6E0, 5).unwrap();
    cpu.write(0x320, 0xEC);
    assert_eq!((cpu.lapic.msr_read(0x6E0, T0), cpu.lapic.deadline()), (Ok(0), None), "leaving the mode disarms");
}

#[test]
fn init_resets_all_but_the_mode() {
    let mut cpu = Cpu::x2apic(3);
    cpu.post(0x41, Trigger::Edge);
    cpu.wrmsr(0x808, 0x20).unwrap();
    cpu.lapic.reset_init();
    assert_eq!((cpu.lapic.mode(), cpu.lapic.next(), cpu.lapic.cr8()), (Mode::X2Apic, None, 0));
    assert_eq!((cpu.lapic.msr_read(0x80D, T0), cpu.lapic.msr_read(0x80F, T0)), (Ok(8), Ok(0xFF)));
}

#[test]
fn random_accesses_never_panic() {
    let mut random = Xorshift::new(0xDEAD_BEEF);
    for round in 0..50 {
        let mut cpu = if round % 2 == 0 { Cpu::enabled(0) } else { Cpu::x2apic(7) };
        let mut now = 0;
        for _ in 0..5_000 {
            now += random.next() % 100_000;
            random_step(&mut cpu, &mut random, Nanos(now));
            cpu.bus.sent.clear();
            cpu.bus.ended.clear();
        }
    }
}

fn random_step(cpu: &mut Cpu, random: &mut Xorshift, now: Nanos) {
    let value = random.next() >> (random.next() % 64);
    let offset = (random.next() % 0x400) as u16 & if random.next().is_multiple_of(8) { 0xFFF } else { 0xFF0 };
    let msr = [0x1B, 0x6E0, 0x800 + (random.next() % 0x100) as u32, 0x800 + (random.next() % 0x40) as u32]
        [random.next() as usize % 4];
    match random.next() % 8 {
        0 => drop(cpu.lapic.mmio_read(offset, now)),
        1 | 2 => cpu.lapic.mmio_write(offset, value as u32, now, &mut cpu.bus),
        3 => drop(cpu.lapic.msr_read(msr, now)),
        4 => drop(cpu.lapic.msr_write(msr, value, now, &mut cpu.bus)),
        5 => {
            let message = Message::from_msi(0xFEE0_0000 | value & 0xF_F00C, (value >> 20) as u32).unwrap();
            let _ = deliver(&[&cpu.posted], &message, None, |_| {});
        }
        6 => {
            let _ = cpu.posted.set_lint0(Level::of(value & 1 != 0));
            cpu.lapic.set_cr8(value as u8);
        }
        _ => {
            cpu.lapic.expire(now, value);
            cpu.sync();
            match cpu.lapic.next() {
                Some(Interrupt::Fixed(vector)) => cpu.lapic.ack(vector),
                Some(Interrupt::ExtInt) => cpu.lapic.ack_extint(),
                None => {}
            }
        }
    }
}

#[test]
fn nothing_posted_by_other_cpus_is_lost() {
    const ROUNDS: usize = 2_000;
    let posted = Posted::new(0);
    let mut lapic = Lapic::new(0, Bootstrap::Yes, GHZ);
    lapic.virtual_wire();
    let _ = lapic.sync(&posted);
    let woken = std::sync::atomic::AtomicUsize::new(0);
    let (mut taken, mut nmis) = ([0usize; 256], 0);
    std::thread::scope(|scope| {
        let senders = [0x40, 0x80, 0xC0u8].map(|base| {
            let (posted, woken) = (&posted, &woken);
            scope.spawn(move || {
                for vector in (base..=base + 0x3F).cycle().take(ROUNDS) {
                    let wake = |_| _ = woken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let _ = deliver(&[posted], &fixed(Destination::Physical(0), vector), None, wake);
                }
                posted.post(Delivery::Nmi, 0, Trigger::Edge)
            })
        });
        let mut bus = Bus::default();
        let mut done = false;
        while !done {
            // Looks once more after all senders have ended.
            done = senders.iter().all(|sender| sender.is_finished());
            nmis += usize::from(lapic.sync(&posted).nmi);
            while let Some(Interrupt::Fixed(vector)) = lapic.next() {
                lapic.ack(vector);
                lapic.mmio_write(0xB0, 0, T0, &mut bus);
                taken[usize::from(vector)] += 1;
            }
        }
    });
    assert!((0x40..=0xFF).all(|vector| taken[vector] > 0));
    assert!((1..=3).contains(&nmis));
    assert!(woken.into_inner() > 0 && !posted.is_pending());
}

/// A masked timer wakes no CPU, and what came due meanwhile is lost; nor does that of an APIC that is off.
#[test]
fn a_masked_timer_wakes_nobody() {
    let mut cpu = Cpu::enabled(0);
    cpu.write(0x3E0, 0xB);
    cpu.write(0x320, 1 << 17 | 1 << 16 | 0x40);
    cpu.write(0x380, 1);
    assert_eq!(cpu.lapic.deadline(), None);
    cpu.lapic.mmio_write(0x320, 1 << 17 | 0x40, Nanos(1_050_000), &mut cpu.bus);
    assert_eq!(cpu.lapic.deadline(), Some(Deadline::At(Nanos(1_100_000))));
    cpu.lapic.expire(Nanos(1_060_000), 0);
    assert!(!cpu.lapic.has_pending(), "lost while it was masked");
    cpu.lapic.expire(Nanos(1_100_000), 0);
    assert!(cpu.lapic.has_pending());
}
