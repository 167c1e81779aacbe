//! The 8254 timer (Intel 8254 data sheet, order 231164) and port 0x61. Counters are computed from the time on demand.

use hv_defs::Nanos;

/// Input clock.
pub(super) const HZ: u64 = 1_193_182;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Channel 0 is not allowed to interrupt more often than every 120 ticks (100 us), whatever it is programmed to: each time
/// costs its CPU an exit (issue 7, row 10).
const MIN_PERIOD_TICKS: u64 = 120;
/// Half a period of the refresh signal that bit 4 of port 0x61 shows.
const REFRESH_NS: u64 = 15_085;

const SPEAKER_CHANNEL: usize = 2;

#[derive(Clone, Debug)]
pub(super) struct Pit {
    channels: [Channel; 3],
    /// Bits 3:0 of port 0x61.
    control: u8,
}

impl Pit {
    pub(super) fn new() -> Self {
        let mut channels: [Channel; 3] = Default::default();
        if let Some(speaker) = channels.get_mut(SPEAKER_CHANNEL) {
            speaker.gate = Gate::Low(0);
        }
        Self { channels, control: 0 }
    }

    /// Reads port 0x40 + `index` (3 is write-only).
    pub(super) fn read(&mut self, index: u8, now: Nanos) -> u8 {
        self.channels.get_mut(usize::from(index)).map_or(0xFF, |channel| channel.read(now))
    }

    /// Writes port 0x40 + `index`.
    pub(super) fn write(&mut self, index: u8, value: u8, now: Nanos) {
        match self.channels.get_mut(usize::from(index)) {
            Some(channel) => channel.write(value, now),
            None => self.command(value, now),
        }
    }

    /// Port 0x61: gate and output of channel 2.
    pub(super) fn read_61(&self, now: Nanos) -> u8 {
        let refresh = ((now.0 / REFRESH_NS) & 1) as u8;
        let output = self.channels.get(SPEAKER_CHANNEL).is_some_and(|channel| channel.output(now));
        self.control | refresh << 4 | u8::from(output) << 5
    }

    pub(super) fn write_61(&mut self, value: u8, now: Nanos) {
        self.control = value & 0x0F;
        if let Some(channel) = self.channels.get_mut(SPEAKER_CHANNEL) {
            channel.set_gate(value & 1 != 0, now);
        }
    }

    /// When channel 0's output rises next.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.channels.first().and_then(Channel::next_rise)
    }

    /// Whether channel 0's output has risen since the last call. Rises that were missed count as one.
    pub(super) fn take_rise(&mut self, now: Nanos) -> bool {
        let Some(channel) = self.channels.first_mut() else {
            return false;
        };
        match channel.next_rise() {
            Some(at) if at <= now => {
                channel.risen = channel.rises(now);
                true
            }
            _ => false,
        }
    }

    fn command(&mut self, value: u8, now: Nanos) {
        let select = value >> 6;
        if select == 3 {
            for (index, channel) in self.channels.iter_mut().enumerate() {
                if value & 2 << index != 0 {
                    channel.read_back(value, now);
                }
            }
        } else if let Some(channel) = self.channels.get_mut(usize::from(select)) {
            channel.control(value, now);
        }
    }
}

/// Which byte an access goes to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Access {
    Low = 1,
    High = 2,
    /// Low, then high.
    #[default]
    Both = 3,
}

/// The gate input; `Low` remembers how far a paused count had come.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Gate {
    #[default]
    High,
    Low(u64),
}

#[derive(Clone, Default, Debug)]
struct Channel {
    mode: u8,
    access: Access,
    bcd: bool,
    /// Counts per period, 1 to 65536; 0 until a count has been written.
    reload: u64,
    start: Nanos,
    gate: Gate,
    /// The low byte of a count whose high byte is still to come.
    low_written: Option<u8>,
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
    /// Rises of the output since `start` that have been reported.
    risen: u64,
}

impl Channel {
    fn control(&mut self, value: u8, now: Nanos) {
        self.access = match value >> 4 & 3 {
            0 => {
                self.latch(now);
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // 6 and 7 are 2 and 3.
        self.mode = match value >> 1 & 7 {
            mode @ 6.. => mode - 4,
            mode => mode,
        };
        self.bcd = value & 1 != 0;
        (self.reload, self.risen) = (0, 0);
        (self.low_written, self.high_next, self.latched, self.status) = (None, false, None, None);
    }

    fn write(&mut self, value: u8, now: Nanos) {
        let count = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.low_written = Some(value);
                // In mode 0 the first byte stops the count and the output stays low.
                if self.mode == 0 {
                    self.reload = 0;
                }
                return;
            }
        };
        let count = if self.bcd { from_bcd(count) } else { u64::from(count) };
        let fresh = self.reload == 0;
        let full = if self.bcd { 10_000 } else { 0x1_0000 };
        self.reload = if count == 0 { full } else { count };
        // A new count in the periodic modes should take effect at the end of the period; at once is near enough, and
        // is what a driver that has just written the mode gets anyway.
        if fresh || !matches!(self.mode, 1 | 5) {
            self.restart(now);
        }
    }

    fn restart(&mut self, now: Nanos) {
        (self.start, self.risen) = (now, 0);
        if let Gate::Low(elapsed) = &mut self.gate {
            *elapsed = 0;
        }
    }

    fn set_gate(&mut self, high: bool, now: Nanos) {
        match (self.gate, high) {
            (Gate::High, false) => self.gate = Gate::Low(self.elapsed(now)),
            (Gate::Low(elapsed), true) => {
                self.gate = Gate::High;
                if matches!(self.mode, 0 | 4) {
                    self.start = Nanos(now.0.saturating_sub(ns_of(elapsed)));
                } else {
                    self.restart(now);
                }
            }
            _ => {}
        }
    }

    fn elapsed(&self, now: Nanos) -> u64 {
        match self.gate {
            Gate::High => ticks_of(now.0.saturating_sub(self.start.0)),
            Gate::Low(elapsed) => elapsed,
        }
    }

    fn count(&self, now: Nanos) -> u16 {
        let elapsed = self.elapsed(now);
        let reload = self.reload;
        if reload == 0 {
            return 0;
        }
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = match self.mode {
            2 => reload - elapsed % reload,
            // Counts down by two, twice a period.
            3 => (reload - 2 * elapsed % reload) & !1,
            // The others go on below zero.
            _ => (reload % wrap + wrap - elapsed % wrap) % wrap,
        } % wrap;
        if self.bcd { to_bcd(count) } else { count as u16 }
    }

    fn output(&self, now: Nanos) -> bool {
        let elapsed = self.elapsed(now);
        match self.mode {
            _ if self.reload == 0 => self.mode != 0,
            0 | 1 => elapsed >= self.reload,
            2 => elapsed % self.reload != self.reload - 1,
            3 => elapsed % self.reload < self.reload.div_ceil(2),
            _ => elapsed != self.reload,
        }
    }

    /// Ticks from one rise of the output to the next; the periodic modes only.
    fn period(&self) -> u64 {
        self.reload.max(MIN_PERIOD_TICKS)
    }

    /// Rises of the output since the count was loaded, for a channel whose gate is high.
    fn rises(&self, now: Nanos) -> u64 {
        let elapsed = self.elapsed(now);
        match self.mode {
            2 | 3 => elapsed / self.period(),
            _ => u64::from(elapsed >= self.reload),
        }
    }

    fn next_rise(&self) -> Option<Nanos> {
        let ticks = match self.mode {
            _ if self.reload == 0 || self.gate != Gate::High => return None,
            2 | 3 => (self.risen + 1).checked_mul(self.period())?,
            0 | 4 if self.risen == 0 => self.reload,
            // Modes 1 and 5 wait for an edge of the gate, which channel 0 never sees.
            _ => return None,
        };
        Some(Nanos(self.start.0.saturating_add(ns_of(ticks))))
    }

    fn latch(&mut self, now: Nanos) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
            self.high_next = false;
        }
    }

    fn read_back(&mut self, value: u8, now: Nanos) {
        if value & 0x20 == 0 {
            self.latch(now);
        }
        if value & 0x10 == 0 && self.status.is_none() {
            let (output, null_count) = (u8::from(self.output(now)) << 7, u8::from(self.reload == 0) << 6);
            self.status = Some(output | null_count | (self.access as u8) << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    fn read(&mut self, now: Nanos) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now)).to_le_bytes();
        let (value, last) = match (self.access, self.high_next) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Both, false) => (low, false),
            (Access::Both, true) => (high, true),
        };
        self.high_next = !last;
        if last {
            self.latched = None;
        }
        value
    }
}

fn ticks_of(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / u128::from(NANOS_PER_SECOND)) as u64
}

/// The first nanosecond at which that many ticks have passed.
fn ns_of(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * u128::from(NANOS_PER_SECOND)).div_ceil(u128::from(HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn from_bcd(value: u16) -> u64 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u64::from(value >> (4 * digit) & 0xF))
}

fn to_bcd(value: u64) -> u16 {
    (0..4).fold(0, |sum, digit| sum | ((value / 10u64.pow(digit) % 10) as u16) << (4 * digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn linux_calibrates_the_tsc_on_channel_2() {
        // pit_calibrate_tsc(): gate on, speaker off, mode 0, 10 ms; then it polls OUT2.
        let mut pit = Pit::new();
        let latch = HZ / 100;
        let start = Nanos(123_456_789);
        pit.write_61(pit.read_61(start) & !2 | 1, start);
        pit.write(3, 0xB0, start);
        pit.write(2, latch as u8, start);
        pit.write(2, (latch >> 8) as u8, start);
        let end =
            (0..200).map(|step| Nanos(start.0 + step * MS / 10)).find(|now| pit.read_61(*now) & 0x20 != 0).unwrap();
        assert!((99 * MS / 10..=101 * MS / 10).contains(&(end.0 - start.0)), "{}", end.0 - start.0);
        assert!(pit.read_61(Nanos(end.0 + 50 * MS)) & 0x20 != 0, "the output stays high");
    }

    #[test]
    fn linux_quick_calibration_sees_the_high_byte_fall_in_step() {
        // quick_pit_calibrate(): mode 0, 0xFFFF, and reads of both bytes without a latch.
        let mut pit = Pit::new();
        pit.write_61(1, Nanos(0));
        for (port, value) in [(3, 0xB0), (2, 0xFF), (2, 0xFF)] {
            pit.write(port, value, Nanos(0));
        }
        let mut last = 0xFF;
        for step in 0..5_000 {
            let now = Nanos(step * 10_000);
            pit.read(2, now);
            let high = pit.read(2, now);
            assert!(high == last || high == last - 1, "{last:#x} then {high:#x}");
            last = high;
        }
        assert_eq!(u64::from(last), (0xFFFF - ticks_of(4_999 * 10_000)) >> 8);
    }

    #[test]
    fn channel_0_ticks_at_100_hz() {
        let mut pit = Pit::new();
        let latch = (HZ + 50) / 100;
        for (port, value) in [(3, 0x34), (0, latch as u8), (0, (latch >> 8) as u8)] {
            pit.write(port, value, Nanos(0));
        }
        let mut now = Nanos(0);
        for tick in 1..=100u64 {
            now = pit.deadline().unwrap();
            assert_eq!(now, Nanos(ns_of(tick * latch)));
            assert!(!pit.take_rise(Nanos(now.0 - 1)));
            assert!(pit.take_rise(now));
            assert!(!pit.take_rise(now));
        }
        // Ticks that were slept through come as one.
        now = Nanos(now.0 + 95 * MS);
        assert!(pit.take_rise(now));
        assert!(!pit.take_rise(now));
        assert!(pit.deadline().unwrap() > now);
    }

    #[test]
    fn a_one_shot_fires_once() {
        let mut pit = Pit::new();
        for (port, value) in [(3, 0x30), (0, 0x00), (0, 0x10)] {
            pit.write(port, value, Nanos(0));
        }
        let at = pit.deadline().unwrap();
        assert_eq!(at, Nanos(ns_of(0x1000)));
        assert!(pit.take_rise(at));
        assert_eq!(pit.deadline(), None);
        pit.write(0, 0x00, at);
        assert_eq!(pit.deadline(), None, "half a count");
        pit.write(0, 0x01, at);
        assert_eq!(pit.deadline(), Some(Nanos(at.0 + ns_of(0x100))));
    }

    #[test]
    fn a_latch_freezes_the_count_until_it_is_read() {
        let mut pit = Pit::new();
        for (port, value) in [(3, 0x34), (0, 0), (0, 0)] {
            pit.write(port, value, Nanos(0));
        }
        pit.write(3, 0x00, Nanos(MS));
        let expected = (0x1_0000 - ticks_of(MS)) as u16;
        let bytes = [pit.read(0, Nanos(20 * MS)), pit.read(0, Nanos(30 * MS))];
        assert_eq!(u16::from_le_bytes(bytes), expected);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let mut pit = Pit::new();
        pit.write(3, 0x34, Nanos(0));
        pit.write(3, 0xE2, Nanos(0));
        assert_eq!(pit.read(0, Nanos(0)), 0xF4, "null count, output high, both bytes, mode 2");
        for value in [0x34, 0x12] {
            pit.write(0, value, Nanos(0));
        }
        pit.write(3, 0xC2, Nanos(0));
        assert_eq!(pit.read(0, Nanos(MS)), 0xB4);
        assert_eq!((pit.read(0, Nanos(MS)), pit.read(0, Nanos(MS))), (0x34, 0x12));
    }

    #[test]
    fn the_gate_pauses_mode_0_and_restarts_mode_3() {
        let mut pit = Pit::new();
        pit.write_61(1, Nanos(0));
        for (port, value) in [(3, 0xB0), (2, 0), (2, 0x10)] {
            pit.write(port, value, Nanos(0));
        }
        pit.write_61(0, Nanos(MS));
        assert_eq!(pit.read_61(Nanos(100 * MS)) & 0x20, 0);
        pit.write_61(1, Nanos(100 * MS));
        let left = ns_of(0x1000) - MS;
        assert_eq!(pit.read_61(Nanos(100 * MS + left - 2_000)) & 0x20, 0);
        assert_eq!(pit.read_61(Nanos(100 * MS + left + 2_000)) & 0x20, 0x20);
    }

    #[test]
    fn a_storm_is_slowed_down() {
        let mut pit = Pit::new();
        for (port, value) in [(3, 0x14), (0, 1)] {
            pit.write(port, value, Nanos(0));
        }
        assert!(pit.deadline().unwrap() >= Nanos(100_000));
    }
}
