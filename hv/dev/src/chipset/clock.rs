//! The wall clock behind the RTC: seconds to calendar fields and back (proleptic Gregorian calendar, UTC).

const SECONDS_PER_DAY: i64 = 86_400;

/// A date and time in fields. Fields need not be in range: a guest writes them one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    /// Year, all its digits.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// Fields of a count of seconds since 1970.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        // Years begin in March here, so that the leap day is the last one; an era has 400 years.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted + 2) / 5 + 1) as u8,
            hour: (rest / 3_600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// The count of seconds; fields out of range carry over.
    pub fn to_unix(self) -> i64 {
        let months = i64::from(self.month) - 1;
        let (year, month) = (self.year + months.div_euclid(12), months.rem_euclid(12) + 1);
        let year = if month <= 2 { year - 1 } else { year };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let shifted = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * SECONDS_PER_DAY + i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// Day of the week, 1 (Sunday) to 7.
    pub fn weekday(self) -> u8 {
        // 1970-01-01 was a Thursday.
        ((self.to_unix().div_euclid(SECONDS_PER_DAY) + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let date = DateTime::from_unix(951_782_400);
        assert_eq!((date.year, date.month, date.day, date.hour), (2000, 2, 29, 0));
        assert_eq!(date.weekday(), 3);
        let date = DateTime::from_unix(1_795_509_925);
        assert_eq!((date.year, date.month, date.day), (2026, 11, 24));
        assert_eq!((date.hour, date.minute, date.second, date.weekday()), (8, 45, 25, 3));
    }

    #[test]
    fn there_and_back() {
        for seconds in (-4_000_000_000..8_000_000_000).step_by(98_765_431) {
            assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }

    #[test]
    fn fields_out_of_range_carry_over() {
        let odd = DateTime { year: 2023, month: 14, day: 31, hour: 25, minute: 0, second: 0 };
        let date = DateTime::from_unix(odd.to_unix());
        assert_eq!((date.year, date.month, date.day, date.hour), (2024, 3, 3, 1));
        DateTime { year: 9999, month: 0, day: 0, hour: 255, minute: 255, second: 255 }.weekday();
    }
}
