//! Real-time clock and CMOS RAM (Motorola MC146818 data sheet; ICH9 data sheet, section 13.6).

use hv_defs::Nanos;

use super::clock::DateTime;
use crate::e820::Layout;
use crate::wires::Level;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
/// Update In Progress is set this long before the second changes: 244 us of warning and 1984 us of update.
const UPDATE_NS: u64 = 2_228_000;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0A;
const REG_B: u8 = 0x0B;
const REG_C: u8 = 0x0C;
const REG_D: u8 = 0x0D;
const CENTURY: u8 = 0x32;

const A_UPDATE: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE_ENDED: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const C_IRQ: u8 = 1 << 7;
const C_CAUSES: u8 = B_PERIODIC | B_ALARM | B_UPDATE_ENDED;
const D_VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;
/// Alarm values from here on match everything.
const ANY: u8 = 0xC0;

#[derive(Clone, Debug)]
pub(super) struct Rtc {
    index: u8,
    ram: [u8; 128],
    reg_a: u8,
    reg_b: u8,
    /// The causes in register C.
    causes: u8,
    /// Wall-clock time at host time 0, in nanoseconds since 1970.
    base: i128,
    /// The fields while SET stops the clock.
    set: Option<DateTime>,
    /// Up to here the events have been recorded in `causes`.
    seen: Nanos,
}

impl Rtc {
    /// `unix_seconds` is the wall-clock time at host time 0.
    pub(super) fn new(unix_seconds: i64, layout: &Layout) -> Self {
        let mut ram = [0; 128];
        for (index, value) in memory_sizes(layout) {
            if let Some(byte) = ram.get_mut(index) {
                *byte = value;
            }
        }
        Self {
            index: 0,
            ram,
            reg_a: 0x26,
            reg_b: B_24_HOURS,
            causes: 0,
            base: i128::from(unix_seconds) * NANOS_PER_SECOND,
            set: None,
            seen: Nanos(0),
        }
    }

    /// A machine reset stops interrupts; the battery keeps the rest.
    pub(super) fn reset(&mut self) {
        self.index = 0;
        self.reg_b &= !(B_PERIODIC | B_ALARM | B_UPDATE_ENDED | B_SET);
        self.causes = 0;
        self.set = None;
    }

    /// Writes port 0x70; bit 7 (NMI mask) has no effect.
    pub(super) fn select(&mut self, value: u8) {
        self.index = value & 0x7F;
    }

    /// Reads port 0x71.
    pub(super) fn read(&mut self, now: Nanos) -> u8 {
        self.record(now);
        let date = self.date(now);
        match self.index {
            SECONDS => self.encode(date.second),
            MINUTES => self.encode(date.minute),
            HOURS => self.encode_hour(date.hour),
            WEEKDAY => self.encode(date.weekday()),
            DAY => self.encode(date.day),
            MONTH => self.encode(date.month),
            YEAR => self.encode(date.year.rem_euclid(100) as u8),
            CENTURY => self.encode((date.year.div_euclid(100)).rem_euclid(100) as u8),
            REG_A => self.reg_a | if self.is_updating(now) { A_UPDATE } else { 0 },
            REG_B => self.reg_b,
            REG_C => {
                let line = if self.irq().is_high() { C_IRQ } else { 0 };
                core::mem::take(&mut self.causes) | line
            }
            REG_D => D_VALID,
            other => self.ram(other),
        }
    }

    /// Writes port 0x71.
    pub(super) fn write(&mut self, value: u8, now: Nanos) {
        self.record(now);
        match self.index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => self.set_field(value, now),
            REG_A => self.reg_a = value & !A_UPDATE,
            REG_B => self.write_b(value, now),
            WEEKDAY | REG_C | REG_D => {}
            other => {
                if let Some(byte) = self.ram.get_mut(usize::from(other)) {
                    *byte = value;
                }
            }
        }
    }

    /// The IRQ 8 output.
    pub(super) fn irq(&self) -> Level {
        Level::of(self.causes & self.reg_b & C_CAUSES != 0)
    }

    /// When an enabled interrupt may be due next.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        let periodic =
            self.period_ns().filter(|_| self.reg_b & B_PERIODIC != 0).map(|period| (self.seen.0 / period + 1) * period);
        // The alarm is looked at each second: simple, and nobody leaves it on for long.
        let second =
            (self.reg_b & (B_ALARM | B_UPDATE_ENDED) != 0 && self.is_running()).then(|| self.next_second(self.seen));
        [periodic, second].into_iter().flatten().min().map(Nanos)
    }

    /// Records in register C what has happened until `now`.
    pub(super) fn record(&mut self, now: Nanos) {
        let since = self.seen;
        if now <= since {
            return;
        }
        self.seen = now;
        if self.period_ns().is_some_and(|period| now.0 / period != since.0 / period) {
            self.causes |= B_PERIODIC;
        }
        if !self.is_running() {
            return;
        }
        let (first, last) = (self.unix_seconds(since), self.unix_seconds(now));
        if last > first {
            self.causes |= B_UPDATE_ENDED;
            if self.alarm_in(first + 1, last) {
                self.causes |= B_ALARM;
            }
        }
    }

    /// Whether the divider chain runs and SET does not hold it.
    fn is_running(&self) -> bool {
        self.set.is_none() && self.reg_a & 0x60 != 0x60
    }

    fn is_updating(&self, now: Nanos) -> bool {
        self.is_running() && self.next_second(now) - now.0 <= UPDATE_NS
    }

    fn unix_seconds(&self, now: Nanos) -> i64 {
        (self.base + i128::from(now.0)).div_euclid(NANOS_PER_SECOND) as i64
    }

    /// Host time at which the next second begins.
    fn next_second(&self, now: Nanos) -> u64 {
        let into = (self.base + i128::from(now.0)).rem_euclid(NANOS_PER_SECOND);
        now.0.saturating_add((NANOS_PER_SECOND - into) as u64)
    }

    fn date(&self, now: Nanos) -> DateTime {
        self.set.unwrap_or_else(|| DateTime::from_unix(self.unix_seconds(now)))
    }

    /// Takes effect at once, SET or not: Windows writes the date without SET.
    fn set_field(&mut self, value: u8, now: Nanos) {
        let mut date = self.date(now);
        let number = self.decode(value);
        let year = date.year.rem_euclid(100);
        match self.index {
            SECONDS => date.second = number,
            MINUTES => date.minute = number,
            HOURS => date.hour = self.decode_hour(value),
            DAY => date.day = number,
            MONTH => date.month = number,
            YEAR => date.year += i64::from(number) - year,
            _ => date.year = i64::from(number) * 100 + year,
        }
        match &mut self.set {
            Some(set) => *set = date,
            None => self.rebase(date, now),
        }
    }

    /// Makes the clock show `date` now; the fraction of the second stays.
    fn rebase(&mut self, date: DateTime, now: Nanos) {
        let change = date.to_unix() - self.unix_seconds(now);
        self.base += i128::from(change) * NANOS_PER_SECOND;
    }

    fn write_b(&mut self, value: u8, now: Nanos) {
        if value & B_SET != 0 {
            self.set = Some(self.date(now));
        } else if let Some(date) = self.set.take() {
            // The next second begins half a second after the divider starts (MC146818, "divider control").
            let into = (self.base + i128::from(now.0)).rem_euclid(NANOS_PER_SECOND);
            self.base += NANOS_PER_SECOND / 2 - into;
            self.rebase(date, now);
        }
        self.reg_b = if value & B_SET != 0 { value & !B_UPDATE_ENDED } else { value };
    }

    fn period_ns(&self) -> Option<u64> {
        let hz = match self.reg_a & 0x0F {
            0 => return None,
            // The two slowest codes are shadows of 8 and 9 with this time base.
            rate @ 1..=2 => 0x8000 >> (rate + 6),
            rate => 0x8000_u64 >> (rate - 1),
        };
        Some(1_000_000_000 / hz)
    }

    /// Whether the alarm matches a second of `first..=last`. Looks at 60 seconds, minutes and hours at most.
    fn alarm_in(&self, first: i64, last: i64) -> bool {
        let field = |index| Some(self.ram(index)).filter(|value| *value < ANY);
        let hour = field(HOURS_ALARM).map(|value| self.decode_hour(value));
        let minute = field(MINUTES_ALARM).map(|value| self.decode(value));
        let second = field(SECONDS_ALARM).map(|value| self.decode(value));
        let wrong = |field: Option<u8>, end| field.is_some_and(|value| value >= end);
        if wrong(hour, 24) || wrong(minute, 60) || wrong(second, 60) {
            return false;
        }
        let fits = |wanted: Option<u8>, value| wanted.is_none_or(|wanted| wanted == value);
        let mut at = first;
        while at <= last {
            let time = DateTime::from_unix(at);
            at += if !fits(hour, time.hour) {
                3_600 - at.rem_euclid(3_600)
            } else if !fits(minute, time.minute) {
                60 - at.rem_euclid(60)
            } else if !fits(second, time.second) {
                1
            } else {
                return true;
            };
        }
        false
    }

    fn ram(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.reg_b & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.reg_b & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xF) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.reg_b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let half = if hour >= 12 { PM } else { 0 };
        self.encode((hour + 11) % 12 + 1) | half
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.reg_b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }
}

/// Memory sizes as a PC's firmware leaves them in CMOS; OVMF falls back on these.
fn memory_sizes(layout: &Layout) -> [(usize, u8); 11] {
    let clamp = |value: u64, max: u64| value.min(max).to_le_bytes();
    let extended = clamp((layout.low >> 10).saturating_sub(1024), 0xFFFF);
    let above_16m = clamp((layout.low >> 16).saturating_sub(256), 0xFFFF);
    let above_4g = clamp(layout.high >> 16, 0xFF_FFFF);
    [
        (0x15, 0x80),
        (0x16, 0x02),
        (0x17, extended[0]),
        (0x18, extended[1]),
        (0x30, extended[0]),
        (0x31, extended[1]),
        (0x34, above_16m[0]),
        (0x35, above_16m[1]),
        (0x5B, above_4g[0]),
        (0x5C, above_4g[1]),
        (0x5D, above_4g[2]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// 2026-11-24 08:45:25, a Tuesday.
    const BASE: i64 = 1_795_509_925;

    fn rtc() -> Rtc {
        Rtc::new(BASE, &Layout::new(5 << 30))
    }

    fn read(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
        rtc.select(index);
        rtc.read(Nanos(now))
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
        rtc.select(index);
        rtc.write(value, Nanos(now));
    }

    #[test]
    fn the_date_reads_in_bcd() {
        let mut rtc = rtc();
        let fields =
            [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY].map(|index| read(&mut rtc, index, 0));
        assert_eq!(fields, [0x25, 0x45, 0x08, 3, 0x24, 0x11, 0x26, 0x20]);
        assert_eq!(read(&mut rtc, SECONDS, 35 * SECOND), 0);
        assert_eq!(read(&mut rtc, REG_D, 0), 0x80);
    }

    #[test]
    fn update_in_progress_toggles_every_second() {
        let mut rtc = rtc();
        let mut edges = 0;
        let mut last = 0;
        for step in 0..=3_000 {
            let flag = read(&mut rtc, REG_A, step * 1_000_000) & A_UPDATE;
            edges += u32::from(flag != last);
            last = flag;
        }
        assert_eq!(edges, 6);
        // While it is clear there are at least 244 us to read the date in.
        assert_eq!(read(&mut rtc, REG_A, 4 * SECOND - 2_300_000) & A_UPDATE, 0);
        assert_eq!(read(&mut rtc, REG_A, 4 * SECOND - 1) & A_UPDATE, A_UPDATE);
        assert_eq!(read(&mut rtc, REG_A, 4 * SECOND) & A_UPDATE, 0);
    }

    #[test]
    fn the_clock_is_set_with_set() {
        let mut rtc = rtc();
        write(&mut rtc, REG_B, B_SET | B_24_HOURS, 0);
        for (index, value) in
            [(YEAR, 0x31), (MONTH, 0x02), (DAY, 0x28), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x59)]
        {
            write(&mut rtc, index, value, SECOND);
        }
        assert_eq!(read(&mut rtc, SECONDS, 10 * SECOND), 0x59, "the clock stands still");
        assert_eq!(read(&mut rtc, REG_A, 10 * SECOND - 1) & A_UPDATE, 0);
        write(&mut rtc, REG_B, B_24_HOURS, 20 * SECOND);
        let later = 20 * SECOND + SECOND / 2;
        assert_eq!(read(&mut rtc, SECONDS, later - 1), 0x59);
        assert_eq!([DAY, MONTH, YEAR, SECONDS].map(|index| read(&mut rtc, index, later)), [0x01, 0x03, 0x31, 0x00]);
    }

    #[test]
    fn the_clock_is_set_without_set() {
        let mut rtc = rtc();
        write(&mut rtc, CENTURY, 0x19, 0);
        write(&mut rtc, YEAR, 0x99, 0);
        write(&mut rtc, DAY, 0x30, 0);
        assert_eq!([CENTURY, YEAR, DAY, SECONDS].map(|index| read(&mut rtc, index, 0)), [0x19, 0x99, 0x30, 0x25]);
    }

    #[test]
    fn twelve_hours_and_binary() {
        let mut rtc = rtc();
        write(&mut rtc, HOURS, 0x00, 0);
        write(&mut rtc, REG_B, B_BINARY, 0);
        assert_eq!(read(&mut rtc, HOURS, 0), 12);
        write(&mut rtc, HOURS, PM | 12, 0);
        write(&mut rtc, REG_B, B_24_HOURS, 0);
        assert_eq!(read(&mut rtc, HOURS, 0), 0x12);
        write(&mut rtc, HOURS, 0x23, 0);
        write(&mut rtc, REG_B, 0, 0);
        assert_eq!(read(&mut rtc, HOURS, 0), PM | 0x11);
    }

    #[test]
    fn the_periodic_interrupt_has_its_rate_and_waits_for_register_c() {
        let mut rtc = rtc();
        write(&mut rtc, REG_B, B_PERIODIC | B_24_HOURS, 0);
        let mut ticks = 0;
        while let Some(at) = rtc.deadline().filter(|at| at.0 <= SECOND) {
            rtc.record(at);
            assert_eq!(rtc.irq(), Level::High);
            assert_eq!(read(&mut rtc, REG_C, at.0) & 0xC0, 0xC0);
            assert_eq!(rtc.irq(), Level::Low);
            ticks += 1;
        }
        assert_eq!(ticks, 1024);
    }

    #[test]
    fn the_alarm_matches_once_a_day() {
        let mut rtc = rtc();
        for (index, value) in [(SECONDS_ALARM, 0x00), (MINUTES_ALARM, 0x46), (HOURS_ALARM, 0x08)] {
            write(&mut rtc, index, value, 0);
        }
        write(&mut rtc, REG_B, B_ALARM | B_24_HOURS, 0);
        let mut alarms = 0;
        for _ in 0..100 {
            let at = rtc.deadline().unwrap();
            rtc.record(at);
            if rtc.irq().is_high() {
                assert_eq!(at.0, 35 * SECOND);
                read(&mut rtc, REG_C, at.0);
                alarms += 1;
            }
        }
        assert_eq!(alarms, 1);
        rtc.record(Nanos(86_400 * 3 * SECOND));
        assert_eq!(rtc.irq(), Level::High, "found after a long sleep");
        write(&mut rtc, MINUTES_ALARM, 0x99, 86_400 * 3 * SECOND);
        read(&mut rtc, REG_C, 86_400 * 3 * SECOND);
        rtc.record(Nanos(86_400 * 9 * SECOND));
        assert_eq!(rtc.irq(), Level::Low, "never matches");
    }

    #[test]
    fn memory_sizes_and_ram() {
        let mut rtc = rtc();
        assert_eq!((read(&mut rtc, 0x35, 0), read(&mut rtc, 0x5C, 0)), (0xAF, 0x90));
        write(&mut rtc, 0x0F, 0x0A, 0);
        rtc.reset();
        assert_eq!(read(&mut rtc, 0x0F, 0), 0x0A);
    }
}
