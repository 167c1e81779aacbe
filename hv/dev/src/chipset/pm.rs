//! The ACPI power-management block (ACPI 6.5, section 4.8; ICH9 data sheet, section 13.8), fixed at port 0x600.

use hv_defs::{Nanos, Width};

use crate::wires::{Level, PowerEvent};

/// First port.
pub(crate) const BASE: u16 = 0x600;
/// Ports that the block decodes; those without a register read as zero.
pub(crate) const SIZE: u16 = 0x80;
/// Clock of the timer.
pub(super) const TIMER_HZ: u64 = 3_579_545;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

const STATUS: u16 = 0x00;
const ENABLE: u16 = 0x02;
const CONTROL: u16 = 0x04;
const TIMER: u16 = 0x08;
const GPE_STATUS: u16 = 0x20;
const GPE_ENABLE: u16 = 0x28;
const GPE_END: u16 = 0x30;

const TIMER_STATUS: u16 = 1 << 0;
const POWER_BUTTON: u16 = 1 << 8;
const RTC_STATUS: u16 = 1 << 10;
/// Status bits that exist: timer, bus master, global, power and sleep button, RTC, wake.
const STATUS_BITS: u16 = 0x8731;
const ENABLE_BITS: u16 = 0x0721;
const SCI_EN: u16 = 1 << 0;
/// BM_RLD, and SLP_TYP; SCI_EN is always set, GBL_RLS and SLP_EN read as 0.
const CONTROL_BITS: u16 = 0x1C02;
const SLP_EN: u16 = 1 << 13;
/// Value of SLP_TYP that means S5: the one that \_S5 declares.
pub(crate) const SLP_TYP_S5: u16 = 0;

#[derive(Clone, Debug)]
pub(super) struct Pm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    /// Half periods of the timer that have been recorded in `status`.
    halves: u64,
}

impl Pm {
    pub(super) fn new() -> Self {
        Self { status: 0, enable: 0, control: 0, gpe_status: [0; 8], gpe_enable: [0; 8], halves: 0 }
    }

    /// Resets the registers; the timer runs on.
    pub(super) fn reset(&mut self) {
        *self = Self { halves: self.halves, ..Self::new() };
    }

    /// Reads at `offset` of the block. The timer reads whole at one instant.
    pub(super) fn read(&mut self, offset: u16, width: Width, now: Nanos) -> u32 {
        self.record(now);
        let timer = ticks(now) as u32;
        (0..width.bytes().min(4) as u16)
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(self.byte(offset + byte, timer)))
    }

    /// Writes, byte by byte. Some bytes ask for power-off.
    pub(super) fn write(&mut self, offset: u16, width: Width, value: u32, now: Nanos) -> Option<PowerEvent> {
        self.record(now);
        let mut event = None;
        for (index, byte) in (0u16..).zip(value.to_le_bytes()).take(width.bytes()) {
            event = event.or(self.write_byte(offset + index, byte));
        }
        event
    }

    /// The system control interrupt.
    pub(super) fn sci(&self) -> Level {
        let general = self.gpe_status.iter().zip(&self.gpe_enable).any(|(status, enable)| status & enable != 0);
        Level::of(self.status & self.enable != 0 || general)
    }

    /// The user presses the power button.
    pub(super) fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// The RTC raised its interrupt.
    pub(super) fn rtc_alarm(&mut self) {
        self.status |= RTC_STATUS;
    }

    /// Whether it interrupts when the RTC does.
    pub(super) fn hears_rtc(&self) -> bool {
        self.enable & RTC_STATUS != 0
    }

    /// When the timer's top bit changes next, if that interrupts.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        (self.enable & TIMER_STATUS != 0).then(|| {
            let ticks = (u128::from(self.halves) + 1) << 31;
            let ns = (ticks * u128::from(NANOS_PER_SECOND)).div_ceil(u128::from(TIMER_HZ));
            Nanos(u64::try_from(ns).unwrap_or(u64::MAX))
        })
    }

    /// Notes the changes of the timer's top bit.
    pub(super) fn record(&mut self, now: Nanos) {
        let halves = ticks(now) >> 31;
        if halves != self.halves {
            self.halves = halves;
            self.status |= TIMER_STATUS;
        }
    }

    fn byte(&self, offset: u16, timer: u32) -> u8 {
        let part = |value: u16, base: u16| value.to_le_bytes().get(usize::from(offset - base)).copied().unwrap_or(0);
        let general = |bytes: &[u8; 8], base: u16| bytes.get(usize::from(offset - base)).copied().unwrap_or(0);
        match offset {
            STATUS..ENABLE => part(self.status, STATUS),
            ENABLE..CONTROL => part(self.enable, ENABLE),
            CONTROL..0x06 => part(self.control | SCI_EN, CONTROL),
            TIMER..0x0C => timer.to_le_bytes().get(usize::from(offset - TIMER)).copied().unwrap_or(0),
            GPE_STATUS..GPE_ENABLE => general(&self.gpe_status, GPE_STATUS),
            GPE_ENABLE..GPE_END => general(&self.gpe_enable, GPE_ENABLE),
            _ => 0,
        }
    }

    fn write_byte(&mut self, offset: u16, value: u8) -> Option<PowerEvent> {
        let shift = 8 * (offset & 1);
        let (word, mask) = (u16::from(value) << shift, 0xFF << shift);
        match offset {
            STATUS..ENABLE => self.status &= !(word & STATUS_BITS),
            ENABLE..CONTROL => self.enable = self.enable & !mask | word & ENABLE_BITS,
            CONTROL..0x06 => {
                self.control = self.control & !mask | word & CONTROL_BITS;
                let type_s5 = self.control >> 10 & 7 == SLP_TYP_S5;
                return (word & SLP_EN != 0 && type_s5).then_some(PowerEvent::Off);
            }
            GPE_STATUS..GPE_ENABLE => {
                if let Some(status) = self.gpe_status.get_mut(usize::from(offset - GPE_STATUS)) {
                    *status &= !value;
                }
            }
            GPE_ENABLE..GPE_END => {
                if let Some(enable) = self.gpe_enable.get_mut(usize::from(offset - GPE_ENABLE)) {
                    *enable = value;
                }
            }
            _ => {}
        }
        None
    }
}

fn ticks(now: Nanos) -> u64 {
    (u128::from(now.0) * u128::from(TIMER_HZ) / u128::from(NANOS_PER_SECOND)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_timer_has_32_bits_at_its_rate() {
        let mut pm = Pm::new();
        assert_eq!(pm.read(TIMER, Width::B4, Nanos(SECOND)), 3_579_545);
        assert_eq!(pm.read(TIMER, Width::B4, Nanos(2_000 * SECOND)), (2_000 * TIMER_HZ) as u32);
        assert_eq!(pm.read(TIMER + 1, Width::B1, Nanos(SECOND)), 3_579_545 >> 8 & 0xFF);
    }

    #[test]
    fn the_timer_interrupts_when_its_top_bit_changes() {
        let mut pm = Pm::new();
        assert_eq!(pm.deadline(), None);
        pm.write(ENABLE, Width::B2, 1, Nanos(0));
        for _ in 0..3 {
            let at = pm.deadline().unwrap();
            pm.record(Nanos(at.0 - 1));
            assert_eq!(pm.sci(), Level::Low);
            pm.record(at);
            assert_eq!(pm.sci(), Level::High);
            pm.write(STATUS, Width::B2, 1, at);
            assert_eq!(pm.sci(), Level::Low);
        }
    }

    #[test]
    fn sci_is_always_enabled_and_sleep_powers_off() {
        let mut pm = Pm::new();
        assert_eq!(pm.read(CONTROL, Width::B2, Nanos(0)), 1);
        assert_eq!(pm.write(CONTROL, Width::B2, 0x0001, Nanos(0)), None);
        assert_eq!(pm.write(CONTROL, Width::B2, 0x2401, Nanos(0)), None, "not the type of S5");
        assert_eq!(pm.read(CONTROL, Width::B2, Nanos(0)), 0x0401);
        assert_eq!(pm.write(CONTROL, Width::B2, 0x2001, Nanos(0)), Some(PowerEvent::Off));
    }

    #[test]
    fn the_power_button_is_a_status_bit() {
        let mut pm = Pm::new();
        pm.write(ENABLE, Width::B2, 0x100, Nanos(0));
        pm.press_power_button();
        assert_eq!(pm.sci(), Level::High);
        pm.write(STATUS + 1, Width::B1, 0x01, Nanos(0));
        assert_eq!(pm.sci(), Level::Low);
    }

    #[test]
    fn general_events_are_plain_registers() {
        let mut pm = Pm::new();
        pm.write(GPE_ENABLE, Width::B4, 0x1234_5678, Nanos(0));
        assert_eq!(pm.read(GPE_ENABLE, Width::B4, Nanos(0)), 0x1234_5678);
        assert_eq!(pm.read(GPE_STATUS, Width::B4, Nanos(0)), 0);
        assert_eq!(pm.read(0x7F, Width::B4, Nanos(0)), 0);
    }
}
