//! The pair of 8259A interrupt controllers (Intel 8259A data sheet, order 231468) with ELCR (ICH9, section 13.7).

use crate::wires::Level;

const SLAVE_INPUT: u8 = 2;

/// Which of the pair.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Chip {
    #[default]
    Master,
    Slave,
}

/// Which of a chip's two ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Port {
    /// 0x20, 0xA0: ICW1, OCW2, OCW3; IRR and ISR.
    Command,
    /// 0x21, 0xA1: the other ICWs; the mask.
    Data,
}

/// Both controllers, the slave at input 2 of the master.
#[derive(Clone, Debug)]
pub(super) struct PicPair {
    master: Pic,
    slave: Pic,
}

impl PicPair {
    pub(super) fn new() -> Self {
        Self { master: Pic::new(Chip::Master), slave: Pic::new(Chip::Slave) }
    }

    /// Drives ISA line 0 to 15 (2 is the cascade and cannot be driven).
    pub(super) fn set_line(&mut self, irq: u8, level: Level) {
        match irq {
            0..8 if irq != SLAVE_INPUT => self.master.set_line(irq, level),
            8..16 => self.slave.set_line(irq - 8, level),
            _ => {}
        }
        self.cascade();
    }

    /// The INTR output.
    pub(super) fn output(&self) -> Level {
        Level::of(self.master.candidate().is_some())
    }

    /// Whether a rise of this input would come to anything: it is not masked, and none waits already.
    pub(super) fn hears(&self, irq: u8) -> bool {
        match irq {
            0..8 => self.master.hears(irq),
            _ => self.slave.hears(irq - 8) && self.master.mask & 1 << SLAVE_INPUT == 0,
        }
    }

    /// The CPU's interrupt acknowledge cycle: yields the vector. With nothing to deliver it is the spurious one.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.candidate() {
            Some(SLAVE_INPUT) => {
                self.master.take(SLAVE_INPUT);
                self.slave.acknowledge()
            }
            _ => self.master.acknowledge(),
        };
        self.cascade();
        vector
    }

    pub(super) fn read(&mut self, chip: Chip, port: Port) -> u8 {
        let value = self.chip(chip).read(port);
        self.cascade();
        value
    }

    pub(super) fn write(&mut self, chip: Chip, port: Port, value: u8) {
        self.chip(chip).write(port, value);
        self.cascade();
    }

    /// Edge/level control register: a set bit makes the line level-triggered.
    pub(super) fn elcr(&mut self, chip: Chip) -> u8 {
        self.chip(chip).elcr
    }

    /// Writes ELCR; lines 0, 1, 2, 8 and 13 are always edge-triggered.
    pub(super) fn set_elcr(&mut self, chip: Chip, value: u8) {
        self.chip(chip).elcr = value & if chip == Chip::Master { 0xF8 } else { 0xDE };
    }

    fn chip(&mut self, chip: Chip) -> &mut Pic {
        match chip {
            Chip::Master => &mut self.master,
            Chip::Slave => &mut self.slave,
        }
    }

    fn cascade(&mut self) {
        self.master.set_line(SLAVE_INPUT, Level::of(self.slave.candidate().is_some()));
    }
}

/// What the next write to the data port means.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Init {
    #[default]
    Done,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Default, Debug)]
struct Pic {
    chip: Chip,
    irr: u8,
    isr: u8,
    mask: u8,
    lines: u8,
    elcr: u8,
    base: u8,
    /// Input with the lowest priority; 7 unless rotated.
    lowest: u8,
    init: Init,
    wants_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Pic {
    fn new(chip: Chip) -> Self {
        Self { chip, mask: 0xFF, lowest: 7, ..Self::default() }
    }

    fn set_line(&mut self, input: u8, level: Level) {
        // The cascade is not latched: it follows the slave's output.
        let follows = self.elcr | if self.chip == Chip::Master { 1 << SLAVE_INPUT } else { 0 };
        let bit = 1 << input;
        let rises = level.is_high() && self.lines & bit == 0;
        self.lines = if level.is_high() { self.lines | bit } else { self.lines & !bit };
        if follows & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rises {
            self.irr |= bit;
        }
    }

    fn hears(&self, input: u8) -> bool {
        (self.mask | self.irr) >> (input & 7) & 1 == 0
    }

    /// The input to deliver, if its priority is above all in service.
    fn candidate(&self) -> Option<u8> {
        if self.init != Init::Done {
            return None;
        }
        let mut served = self.isr;
        if self.special_mask {
            served &= !self.mask;
        }
        if self.special_fully_nested && self.chip == Chip::Master {
            served &= !(1 << SLAVE_INPUT);
        }
        let wanted = self.rank(self.irr & !self.mask)?;
        let blocked = self.rank(served).is_some_and(|served| served <= wanted);
        (!blocked).then(|| self.at_rank(wanted))
    }

    /// Priority rank of the best input in a set: 0 is best.
    fn rank(&self, set: u8) -> Option<u8> {
        (0..8).find(|rank| set & 1 << self.at_rank(*rank) != 0)
    }

    fn at_rank(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// Takes what is to be delivered, and yields its vector.
    fn acknowledge(&mut self) -> u8 {
        let input = self.candidate();
        input.into_iter().for_each(|input| self.take(input));
        self.base | input.unwrap_or(7)
    }

    fn take(&mut self, input: u8) {
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn read(&mut self, port: Port) -> u8 {
        if core::mem::take(&mut self.poll) {
            return match self.candidate() {
                Some(input) => {
                    self.take(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match port {
            Port::Data => self.mask,
            Port::Command if self.read_isr => self.isr,
            Port::Command => self.irr,
        }
    }

    fn write(&mut self, port: Port, value: u8) {
        match port {
            Port::Command if value & 0x10 != 0 => self.icw1(value),
            Port::Command if value & 0x08 != 0 => self.ocw3(value),
            Port::Command => self.ocw2(value),
            Port::Data => self.data(value),
        }
    }

    fn icw1(&mut self, value: u8) {
        let (chip, lines, elcr) = (self.chip, self.lines, self.elcr);
        *self = Self { chip, lines, elcr, irr: lines & elcr, mask: 0, init: Init::Icw2, ..Self::new(chip) };
        self.wants_icw4 = value & 1 != 0;
        self.single = value & 2 != 0;
    }

    fn data(&mut self, value: u8) {
        self.init = match self.init {
            Init::Done => {
                self.mask = value;
                Init::Done
            }
            Init::Icw2 => {
                self.base = value & 0xF8;
                match (self.single, self.wants_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                }
            }
            // Which input the slave hangs on is fixed by the board.
            Init::Icw3 if self.wants_icw4 => Init::Icw4,
            Init::Icw3 => Init::Done,
            Init::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Init::Done
            }
        };
    }

    fn ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            1 => {
                self.end_highest();
            }
            5 => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            3 => self.isr &= !(1 << input),
            7 => {
                self.isr &= !(1 << input);
                self.lowest = input;
            }
            6 => self.lowest = input,
            _ => {}
        }
    }

    fn end_highest(&mut self) -> Option<u8> {
        let served = if self.special_mask { self.isr & !self.mask } else { self.isr };
        let input = self.at_rank(self.rank(served)?);
        self.isr &= !(1 << input);
        Some(input)
    }

    fn ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs the pair as Linux does: vectors 0x30, 0x38, normal EOI.
    fn linux() -> PicPair {
        let mut pics = PicPair::new();
        for (chip, base, wire) in [(Chip::Master, 0x30, 0x04), (Chip::Slave, 0x38, 0x02)] {
            pics.write(chip, Port::Data, 0xFF);
            pics.write(chip, Port::Command, 0x11);
            for icw in [base, wire, 0x01] {
                pics.write(chip, Port::Data, icw);
            }
        }
        pics
    }

    #[test]
    fn the_probe_of_linux_finds_a_mask_register() {
        let mut pics = linux();
        pics.write(Chip::Slave, Port::Data, 0xFF);
        pics.write(Chip::Master, Port::Data, 0xFB);
        assert_eq!(pics.read(Chip::Master, Port::Data), 0xFB);
    }

    #[test]
    fn an_edge_is_delivered_once_and_ended() {
        let mut pics = linux();
        pics.set_line(0, Level::High);
        assert_eq!(pics.output(), Level::High, "ICW1 clears the mask");
        assert_eq!(pics.acknowledge(), 0x30);
        assert_eq!(pics.output(), Level::Low);
        pics.set_line(0, Level::Low);
        pics.set_line(0, Level::High);
        assert_eq!(pics.output(), Level::Low, "in service");
        pics.write(Chip::Master, Port::Command, 0x60);
        assert_eq!(pics.acknowledge(), 0x30);
    }

    #[test]
    fn the_slave_comes_through_the_cascade() {
        let mut pics = linux();
        pics.set_line(8, Level::High);
        pics.set_line(4, Level::High);
        assert_eq!(pics.acknowledge(), 0x38, "input 2 is above input 4");
        assert_eq!(pics.output(), Level::Low);
        pics.write(Chip::Slave, Port::Command, 0x20);
        pics.write(Chip::Master, Port::Command, 0x20);
        assert_eq!(pics.acknowledge(), 0x34);
    }

    #[test]
    fn nothing_to_acknowledge_is_spurious() {
        let mut pics = linux();
        assert_eq!(pics.acknowledge(), 0x37);
        pics.write(Chip::Master, Port::Command, 0x0B);
        assert_eq!(pics.read(Chip::Master, Port::Command), 0, "a spurious one is not in service");
    }

    #[test]
    fn a_level_line_comes_again_while_it_is_high() {
        let mut pics = linux();
        pics.set_elcr(Chip::Slave, 0xFF);
        assert_eq!(pics.elcr(Chip::Slave), 0xDE);
        pics.set_line(9, Level::High);
        assert_eq!(pics.acknowledge(), 0x39);
        pics.write(Chip::Slave, Port::Command, 0x61);
        pics.write(Chip::Master, Port::Command, 0x62);
        assert_eq!(pics.acknowledge(), 0x39);
        pics.set_line(9, Level::Low);
        pics.write(Chip::Slave, Port::Command, 0x61);
        pics.write(Chip::Master, Port::Command, 0x62);
        assert_eq!(pics.output(), Level::Low);
    }

    #[test]
    fn priorities_rotate() {
        let mut pics = linux();
        pics.set_line(1, Level::High);
        pics.set_line(3, Level::High);
        assert_eq!(pics.acknowledge(), 0x31);
        pics.write(Chip::Master, Port::Command, 0xA0);
        pics.set_line(1, Level::Low);
        pics.set_line(1, Level::High);
        assert_eq!(pics.acknowledge(), 0x33, "1 is lowest now");
    }

    #[test]
    fn a_poll_acknowledges() {
        let mut pics = linux();
        pics.set_line(5, Level::High);
        pics.write(Chip::Master, Port::Command, 0x0C);
        assert_eq!(pics.read(Chip::Master, Port::Command), 0x85);
        pics.write(Chip::Master, Port::Command, 0x0B);
        assert_eq!(pics.read(Chip::Master, Port::Command), 0x20);
    }
}
