//! The host's real-time clock, read once at the start: what guests see as the date (MC146818A data sheet).

use hv_dev::DateTime;
use x86_64::instructions::port::Port;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
/// Register A bit 7: the time is being updated.
const UPDATING: u8 = 1 << 7;
/// Register B bit 2: binary, not BCD.
const BINARY: u8 = 1 << 2;
/// Register B bit 1: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Hours bit 7 in 12-hour form: afternoon.
const AFTERNOON: u8 = 1 << 7;
/// Tries to read the same time twice; an update takes 2 ms, a try well under that.
const TRIES: u32 = 10_000;

/// A date and time as the clock's registers give it: seconds, minutes, hours, day, month, year, century.
type Fields = [u8; 7];

/// Registers of `Fields`.
const REGISTERS: [u8; 7] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32];

/// Seconds since 1970 by the host's clock, taken as UTC; 0 if it never holds still.
pub fn wall_clock() -> u64 {
    let mut last = None;
    for _ in 0..TRIES {
        if read(0x0A) & UPDATING != 0 {
            continue;
        }
        let fields = REGISTERS.map(read);
        if last == Some(fields) {
            return decode(fields, read(0x0B));
        }
        last = Some(fields);
    }
    0
}

fn read(register: u8) -> u8 {
    let (mut index, mut data) = (Port::<u8>::new(INDEX), Port::<u8>::new(DATA));
    // SAFETY: 1. The port pair is the RTC on every PC; selecting and reading one of its registers changes nothing else.
    // 2. Bit 7 (NMI mask) stays clear. 3. Only the boot CPU does this, before any other could use the pair.
    unsafe {
        index.write(register);
        data.read()
    }
}

fn decode(fields: Fields, format: u8) -> u64 {
    let number = |value: u8| if format & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xF) };
    let [second, minute, hour, day, month, year, century] = fields;
    let hour = match number(hour & !AFTERNOON) {
        hours if format & HOURS_24 != 0 => hours,
        hours => hours % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 },
    };
    // Firmware without the century register leaves zero or ones there.
    let century = match number(century) {
        century @ 19..=29 => century,
        _ => 20,
    };
    let date = DateTime {
        year: i64::from(century) * 100 + i64::from(number(year)),
        month: number(month),
        day: number(day),
        hour,
        minute: number(minute),
        second: number(second),
    };
    u64::try_from(date.to_unix()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_agree() {
        // 2026-11-24 15:04:05
        let expected = 1_795_532_645;
        assert_eq!(decode([0x05, 0x04, 0x15, 0x24, 0x11, 0x26, 0x20], HOURS_24), expected);
        assert_eq!(decode([5, 4, 15, 24, 11, 26, 20], HOURS_24 | BINARY), expected);
        assert_eq!(decode([0x05, 0x04, 0x83, 0x24, 0x11, 0x26, 0xFF], 0), expected);
        assert_eq!(decode([0, 0, 0x12, 1, 1, 0x70, 0x19], 0), 0); // 12 at night
    }
}
