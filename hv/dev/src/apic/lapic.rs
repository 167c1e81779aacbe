//! The register file and priority logic of one local APIC.

use hv_defs::apic::*;
use hv_defs::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST};
use hv_defs::{Gpa, Nanos};

use super::GeneralProtection;
use super::posted::{Addressing, Flags, Model, Posted};
use super::timer::{Deadline, Timer, TimerMode};
use super::vectors::VectorSet;
use crate::message::{Delivery, Destination, Message, Trigger};

type Answer<T> = Result<T, GeneralProtection>;

/// Where a local APIC's own messages go.
pub trait ApicBus {
    /// An interprocessor interrupt: hand it to [`super::deliver`] with this APIC's ID as the sender.
    fn send(&mut self, message: Message);
    /// The end of a level-triggered interrupt: hand it to [`crate::Chipset::eoi`].
    fn eoi(&mut self, vector: u8);
}

/// Whether the vCPU is the one that starts the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bootstrap {
    /// The first one.
    Yes,
    /// An application processor, which waits for a start-up IPI.
    No,
}

/// Mode of the local APIC, from IA32_APIC_BASE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Globally disabled.
    Disabled,
    /// Registers in a page of memory.
    XApic,
    /// Registers in MSRs.
    X2Apic,
}

/// An interrupt ready to be injected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// Ask the 8259 pair for the vector ([`crate::Chipset::acknowledge`]), then call [`Lapic::ack_extint`].
    ExtInt,
    /// This vector; call [`Lapic::ack`] when it is injected.
    Fixed(u8),
}

/// What the priority logic works on. A CPU that has such a logic for guests can carry it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Interrupts {
    /// Task priority.
    pub tpr: u8,
    /// Vectors that wait (IRR).
    pub requested: VectorSet,
    /// Vectors in service (ISR).
    pub in_service: VectorSet,
    /// Those whose end [`ApicBus::eoi`] must be told (TMR).
    pub level: VectorSet,
}

/// Signals that do not pass through the priority logic.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Signals {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// INIT: reset the vCPU and call [`Lapic::reset_init`]. Comes before `sipi`.
    pub init: bool,
    /// Start-up at this page number; only a vCPU that waits for it heeds it.
    pub sipi: Option<u8>,
}

/// The local APIC of one vCPU, owned by it.
#[derive(Clone, Default, Debug)]
pub struct Lapic {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    errors: u32,
    errors_latched: u32,
    icr: u64,
    lvt: [u32; LVT_COUNT],
    timer: Timer,
    isr: VectorSet,
    irr: VectorSet,
    tmr: VectorSet,
    /// LINT0 as it was at the last `sync`.
    lint0: bool,
    /// An ExtINT message waits to be acknowledged.
    extint: bool,
    /// LINT0 or LINT1 was programmed to mean NMI, and it rose.
    nmi: bool,
}

// ---- What the run loop calls ---------------------------------------------------------------------------------------

impl Lapic {
    /// Makes a local APIC in its power-on state. Its timer counts at `timer_hz` before division; a guest that is told
    /// the crystal's frequency by CPUID leaf 0x15 must be told this one.
    pub fn new(id: u32, bootstrap: Bootstrap, timer_hz: u32) -> Self {
        let bsp = if bootstrap == Bootstrap::Yes { BASE_BSP } else { 0 };
        let base = BASE_DEFAULT | BASE_EN | bsp;
        let mut lapic = Self { id, base, timer: Timer::new(timer_hz), ..Self::default() };
        lapic.reset_init();
        lapic
    }

    /// What INIT does: all but the ID and IA32_APIC_BASE goes back to the power-on state (SDM Vol. 3A, 11.4.7.3).
    pub fn reset_init(&mut self) {
        self.tpr = 0;
        (self.ldr, self.dfr, self.svr) = (0, u32::MAX, 0xFF);
        (self.errors, self.errors_latched, self.icr) = (0, 0, 0);
        self.lvt = [LVT_MASKED; LVT_COUNT];
        self.timer.reset();
        (self.isr, self.irr, self.tmr) = <_>::default();
        (self.extint, self.nmi) = (false, false);
        if self.mode() == Mode::X2Apic {
            self.ldr = x2apic_ldr(self.id);
        }
    }

    /// The state in which firmware hands the first processor to an operating system: enabled, LINT0 passes the 8259
    /// pair's interrupts ("virtual wire"), LINT1 is NMI. For direct boot.
    pub fn virtual_wire(&mut self) {
        self.svr = SVR_ENABLE | 0x0F;
        self.store_lvt(LVT_LINT0, 0x700);
        self.store_lvt(LVT_LINT1, 0x400);
    }

    /// Publishes how this APIC is addressed and takes what was posted. To be called before every entry to the guest.
    pub fn sync(&mut self, posted: &Posted) -> Signals {
        let addressing = Addressing {
            ldr: self.ldr,
            model: self.model(),
            present: self.mode() != Mode::Disabled,
            enabled: self.is_enabled(),
        };
        posted.publish(addressing, self.ppr());
        let mut signals = Signals::default();
        if posted.is_pending() {
            let flags = posted.take_flags();
            signals.init = flags.contains(Flags::INIT);
            signals.nmi = flags.contains(Flags::NMI);
            signals.sipi = flags.contains(Flags::SIPI).then(|| flags.sipi_page());
            self.extint |= flags.contains(Flags::EXTINT);
            self.drive_lint0(flags);
            self.take_vectors(posted);
        } else {
            // A falling LINT0 is not announced.
            self.drive_lint0(posted.peek_flags());
        }
        signals.nmi |= core::mem::take(&mut self.nmi);
        signals
    }

    /// The interrupt to inject now, if RFLAGS.IF and the interrupt shadow allow any.
    pub fn next(&self) -> Option<Interrupt> {
        if self.mode() == Mode::Disabled {
            return self.lint0.then_some(Interrupt::ExtInt);
        }
        if self.extint || (self.lint0 && self.lint0_delivery() == Some(Delivery::ExtInt)) {
            return Some(Interrupt::ExtInt);
        }
        let vector = self.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4).then_some(Interrupt::Fixed(vector))
    }

    /// Whether `next` has something: ends HLT, and says whether to ask for an interrupt window.
    pub fn has_pending(&self) -> bool {
        self.next().is_some()
    }

    /// The CPU took `vector`.
    pub fn ack(&mut self, vector: u8) {
        self.irr.remove(vector);
        self.isr.insert(vector);
    }

    /// The CPU took an ExtINT.
    pub fn ack_extint(&mut self) {
        self.extint = false;
    }

    /// State of the priority logic, to be carried by the CPU.
    pub fn interrupts(&self) -> Interrupts {
        Interrupts { tpr: self.tpr, requested: self.irr, in_service: self.isr, level: self.tmr }
    }

    /// Takes it back. Yields how many vectors were taken by the CPU meanwhile.
    pub fn set_interrupts(&mut self, carried: &Interrupts) -> u32 {
        let before = self.irr.count();
        (self.tpr, self.irr, self.isr) = (carried.tpr, carried.requested, carried.in_service);
        before.saturating_sub(self.irr.count())
    }

    /// CR8: bits 7:4 of TPR.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes TPR as MOV to CR8 does.
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = (value & 0xF) << 4;
    }

    /// The highest TPR class that would still let a waiting vector through, plus one; 0 if TPR holds nothing back.
    /// It is what VMX calls the TPR threshold.
    pub fn tpr_threshold(&self) -> u8 {
        let waiting = self.irr.highest().map_or(0, |vector| vector >> 4);
        let served = self.isr.highest().map_or(0, |vector| vector >> 4);
        if waiting > served && waiting <= self.tpr >> 4 { waiting } else { 0 }
    }

    /// When the timer is due, if anybody hears of it: a masked one wakes no CPU.
    pub fn deadline(&self) -> Option<Deadline> {
        let is_heard = self.mode() != Mode::Disabled && self.lvt(LVT_TIMER) & LVT_MASKED == 0;
        self.timer.deadline().filter(|_| is_heard)
    }

    /// Fires the timer if it is due. To be called before every entry, with the guest's TSC as it reads it.
    pub fn expire(&mut self, now: Nanos, guest_tsc: u64) {
        if self.mode() != Mode::Disabled && self.timer.expire(now, guest_tsc) {
            self.raise_lvt(LVT_TIMER);
        }
    }

    /// Value of IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Mode that IA32_APIC_BASE selects.
    pub fn mode(&self) -> Mode {
        match (self.base & BASE_EN != 0, self.base & BASE_EXTD != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// The page that answers as registers; `None` unless in xAPIC mode.
    pub fn page(&self) -> Option<Gpa> {
        (self.mode() == Mode::XApic).then_some(Gpa(self.base & BASE_ADDRESS))
    }

    /// APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }
}

// ---- Register accesses ---------------------------------------------------------------------------------------------

impl Lapic {
    /// Reads the dword at `offset` of the register page.
    pub fn mmio_read(&mut self, offset: u16, now: Nanos) -> u32 {
        let Some(register) = register_at(offset) else {
            return 0;
        };
        match register {
            ID => self.id << 24,
            ICR_HIGH => (self.icr >> 32) as u32,
            DFR => self.dfr,
            _ => self.read(register, now).unwrap_or_else(|| {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes the dword at `offset` of the register page.
    pub fn mmio_write(&mut self, offset: u16, value: u32, now: Nanos, bus: &mut dyn ApicBus) {
        let Some(register) = register_at(offset) else {
            return;
        };
        match register {
            // The ID is fixed, as on current processors.
            ID | VERSION | PPR | TIMER_CURRENT | ISR_FIRST..=IRR_LAST => {}
            LDR => self.ldr = value & 0xFF00_0000,
            DFR => self.dfr = value | 0x0FFF_FFFF,
            EOI => self.end_of_interrupt(bus),
            ESR => (self.errors_latched, self.errors) = (self.errors, 0),
            ICR_HIGH => self.icr = self.icr & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32,
            ICR => {
                let low = value & ICR_WRITABLE;
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(low);
                let id = (self.icr >> 56) as u8;
                self.send(low, Destination::from_byte(id, low & ICR_LOGICAL != 0), bus);
            }
            _ => {
                if self.write(register, value, now).is_none() {
                    self.error(ESR_ILLEGAL_REGISTER);
                }
            }
        }
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// The guest gets #GP(0).
    pub fn msr_read(&mut self, msr: u32, now: Nanos) -> Answer<u64> {
        match msr {
            IA32_APIC_BASE => Ok(self.base),
            IA32_TSC_DEADLINE => Ok(self.timer.tsc_deadline()),
            _ => match self.x2apic_register(msr)? {
                ID => Ok(u64::from(self.id)),
                ICR => Ok(self.icr),
                EOI | SELF_IPI => Err(GeneralProtection),
                register => self.read(register, now).map(u64::from).ok_or(GeneralProtection),
            },
        }
    }

    /// Writes one of those MSRs.
    ///
    /// # Errors
    /// The guest gets #GP(0), and nothing has changed.
    pub fn msr_write(&mut self, msr: u32, value: u64, now: Nanos, bus: &mut dyn ApicBus) -> Answer<()> {
        match msr {
            IA32_APIC_BASE => return self.set_base(value),
            IA32_TSC_DEADLINE => {
                self.timer.set_tsc_deadline(value);
                return Ok(());
            }
            _ => {}
        }
        let register = self.x2apic_register(msr)?;
        if value & !x2apic_writable(register).ok_or(GeneralProtection)? != 0 {
            return Err(GeneralProtection);
        }
        let low = value as u32;
        match register {
            EOI => self.end_of_interrupt(bus),
            ESR => (self.errors_latched, self.errors) = (self.errors, 0),
            ICR => {
                self.icr = value;
                self.send(low, x2apic_destination((value >> 32) as u32, low), bus);
            }
            SELF_IPI => self.request(low as u8, Trigger::Edge),
            _ => return self.write(register, low, now).ok_or(GeneralProtection),
        }
        Ok(())
    }

    /// Registers that read the same in both modes.
    fn read(&self, register: u8, now: Nanos) -> Option<u32> {
        Some(match register {
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            PPR => self.ppr().into(),
            EOI => 0,
            LDR => self.ldr,
            SVR => self.svr,
            ISR_FIRST..=ISR_LAST => self.isr.dword(register - ISR_FIRST),
            TMR_FIRST..=TMR_LAST => self.tmr.dword(register - TMR_FIRST),
            IRR_FIRST..=IRR_LAST => self.irr.dword(register - IRR_FIRST),
            ESR => self.errors_latched,
            ICR => self.icr as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt(register),
            TIMER_INITIAL => self.timer.initial(),
            TIMER_CURRENT => self.timer.current(now),
            TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Registers that are written the same way in both modes.
    fn write(&mut self, register: u8, value: u32, now: Nanos) -> Option<()> {
        match register {
            TPR => self.tpr = value as u8,
            SVR => self.write_svr(value),
            LVT_TIMER..=LVT_ERROR => self.write_lvt(register, value, now),
            TIMER_INITIAL => self.timer.set_initial(value, now),
            TIMER_DIVIDE => self.timer.set_divide(value, now),
            _ => return None,
        }
        Some(())
    }

    fn write_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if !self.is_enabled() {
            self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
        }
    }

    fn write_lvt(&mut self, register: u8, value: u32, now: Nanos) {
        let before = self.lvt(register);
        let masked = if self.is_enabled() { 0 } else { LVT_MASKED };
        self.store_lvt(register, value | masked);
        if register == LVT_TIMER {
            if before & LVT_MASKED != 0 {
                // What came due while nobody heard of it is lost. (A TSC deadline is looked at before each entry.)
                self.timer.expire(now, 0);
            }
            self.timer.set_mode(TimerMode::of(value));
        }
    }

    fn store_lvt(&mut self, register: u8, value: u32) {
        let index = usize::from(register - LVT_TIMER);
        if let (Some(entry), Some(writable)) = (self.lvt.get_mut(index), LVT_WRITABLE.get(index)) {
            *entry = value & writable;
        }
    }

    fn lvt(&self, register: u8) -> u32 {
        self.lvt.get(usize::from(register - LVT_TIMER)).copied().unwrap_or(LVT_MASKED)
    }

    fn x2apic_register(&self, msr: u32) -> Answer<u8> {
        match msr {
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == Mode::X2Apic => Ok((msr - X2APIC_FIRST) as u8),
            _ => Err(GeneralProtection),
        }
    }

    /// Mode transitions of SDM Vol. 3A, figure 11-27.
    fn set_base(&mut self, value: u64) -> Answer<()> {
        let before = self.mode();
        let after = match (value & BASE_EN != 0, value & BASE_EXTD != 0) {
            (false, false) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
            (false, true) => return Err(GeneralProtection),
        };
        let forbidden = matches!((before, after), (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic));
        if value & !BASE_VALID != 0 || forbidden {
            return Err(GeneralProtection);
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        if after == Mode::Disabled && before != Mode::Disabled {
            self.reset_init();
        }
        if after == Mode::X2Apic {
            self.ldr = x2apic_ldr(self.id);
            self.icr &= 0xFFFF_FFFF;
        }
        Ok(())
    }
}

// ---- Priorities, delivery ------------------------------------------------------------------------------------------

impl Lapic {
    fn is_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    fn model(&self) -> Model {
        match (self.mode(), self.dfr >> 28) {
            (Mode::X2Apic, _) => Model::X2Apic,
            (_, 0xF) => Model::Flat,
            _ => Model::Cluster,
        }
    }

    /// Processor priority: the higher of TPR and the class in service (SDM Vol. 3A, 11.8.3.1).
    fn ppr(&self) -> u8 {
        let served = self.isr.highest().map_or(0, |vector| vector & 0xF0);
        if self.tpr >> 4 >= served >> 4 { self.tpr } else { served }
    }

    fn request(&mut self, vector: u8, trigger: Trigger) {
        if vector < 16 {
            return self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
        }
        self.irr.insert(vector);
        match trigger {
            Trigger::Level => self.tmr.insert(vector),
            Trigger::Edge => self.tmr.remove(vector),
        }
    }

    fn take_vectors(&mut self, posted: &Posted) {
        for (index, mut vectors, level) in posted.take_vectors() {
            if index == 0 && vectors & 0xFFFF != 0 {
                vectors &= !0xFFFF;
                self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            }
            self.irr.merge(index, vectors);
            self.tmr.merge(index, level);
            self.tmr.strip(index, vectors & !level);
        }
    }

    fn drive_lint0(&mut self, flags: Flags) {
        let level = flags.contains(Flags::LINT0);
        let rose = level && !self.lint0;
        self.lint0 = level;
        match self.lint0_delivery() {
            Some(Delivery::Fixed) if rose => self.raise_lvt(LVT_LINT0),
            Some(Delivery::Nmi) if rose => self.nmi = true,
            _ => {}
        }
    }

    fn lint0_delivery(&self) -> Option<Delivery> {
        let entry = self.lvt(LVT_LINT0);
        (entry & LVT_MASKED == 0).then(|| Delivery::from_bits(entry >> 8))
    }

    fn raise_lvt(&mut self, register: u8) {
        let entry = self.lvt(register);
        if entry & LVT_MASKED == 0 {
            self.request(entry as u8, Trigger::Edge);
        }
    }

    fn error(&mut self, error: u32) {
        let news = self.errors & error == 0;
        self.errors |= error;
        let entry = self.lvt(LVT_ERROR);
        // An error vector that is itself illegal must not raise the next error.
        if news && entry & LVT_MASKED == 0 && entry as u8 >= 16 {
            self.request(entry as u8, Trigger::Edge);
        }
    }

    fn end_of_interrupt(&mut self, bus: &mut dyn ApicBus) {
        let Some(vector) = self.isr.highest() else {
            return;
        };
        self.isr.remove(vector);
        if self.tmr.contains(vector) {
            bus.eoi(vector);
        }
    }

    /// Sends what ICR says (SDM Vol. 3A, 11.6.1).
    fn send(&mut self, icr: u32, to: Destination, bus: &mut dyn ApicBus) {
        let (vector, delivery) = (icr as u8, Delivery::from_bits(icr >> 8));
        let fixed = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        let deassert = delivery == Delivery::Init && icr & ICR_LEVEL != 0 && icr & ICR_ASSERT == 0;
        if fixed && vector < 16 {
            return self.error(ESR_SEND_ILLEGAL_VECTOR);
        }
        // ExtINT cannot be sent by ICR; the INIT level de-assert has had no effect since the Pentium 4.
        if deassert || matches!(delivery, Delivery::ExtInt | Delivery::Ignored) {
            return;
        }
        let to = match icr >> 18 & 3 {
            1 => return self.send_self(delivery, vector),
            2 => Destination::Everyone,
            3 => Destination::Others,
            _ => to,
        };
        bus.send(Message { to, delivery, vector, trigger: Trigger::Edge });
    }

    /// An IPI to oneself must be there before the next instruction (Windows counts on it), so it takes no detour.
    fn send_self(&mut self, delivery: Delivery, vector: u8) {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.request(vector, Trigger::Edge),
            Delivery::Nmi => self.nmi = true,
            _ => {}
        }
    }
}

/// Register number of an offset in the page; registers lie 16 bytes apart.
fn register_at(offset: u16) -> Option<u8> {
    (offset & 0xF == 0 && offset < 0x1000).then_some((offset >> 4) as u8)
}

/// SDM Vol. 3A, 11.12.10.2.
fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xF)
}

fn x2apic_destination(id: u32, icr: u32) -> Destination {
    match (id, icr & ICR_LOGICAL != 0) {
        (u32::MAX, _) => Destination::Everyone,
        (_, true) => Destination::Logical(id),
        (_, false) => Destination::Physical(id),
    }
}

/// Bits that WRMSR may set in an x2APIC register; `None` for those that cannot be written.
fn x2apic_writable(register: u8) -> Option<u64> {
    Some(match register {
        TPR | SELF_IPI => 0xFF,
        EOI | ESR => 0,
        SVR => SVR_WRITABLE.into(),
        ICR => u64::from(u32::MAX) << 32 | u64::from(ICR_WRITABLE),
        LVT_TIMER..=LVT_ERROR => {
            let writable = LVT_WRITABLE.get(usize::from(register - LVT_TIMER)).copied().unwrap_or(0);
            // Delivery status and Remote IRR are read-only, not reserved.
            u64::from(writable | 1 << 12 | if matches!(register, LVT_LINT0 | LVT_LINT1) { 1 << 14 } else { 0 })
        }
        TIMER_INITIAL => u32::MAX.into(),
        TIMER_DIVIDE => 0xB,
        _ => return None,
    })
}
