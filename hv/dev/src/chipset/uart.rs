//! A 16550A UART (National Semiconductor PC16550D data sheet). Bytes leave at once; bytes typed wait in a ring.

use arrayvec::ArrayVec;

use crate::wires::{Level, Wires};

/// Bytes that wait for the guest.
const RING: usize = 256;
/// Depth of the receive FIFO that a guest can find out about, in loopback.
const FIFO: usize = 16;

const IER_RECEIVE: u8 = 1 << 0;
const IER_TRANSMIT: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_BITS: u8 = 0x0F;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_FIFOS: u8 = 0xC0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_BITS: u8 = 0x1F;

const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Transmitter holding register and shift register empty: always.
const LSR_EMPTY: u8 = 0x60;

/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xB0;

/// The receive ring has no room: try again later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

#[derive(Clone, Default, Debug)]
pub(super) struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The transmitter became empty and nobody has been told.
    transmit_pending: bool,
    /// Oldest first.
    received: ArrayVec<u8, RING>,
}

impl Uart {
    pub(super) fn new() -> Self {
        Self { divisor: 12, ..Self::default() }
    }

    /// The interrupt output; OUT2 lets it onto the bus.
    pub(super) fn irq(&self) -> Level {
        Level::of(self.mcr & MCR_OUT2 != 0 && self.mcr & MCR_LOOP == 0 && self.cause() != IIR_NONE)
    }

    /// A byte arrives.
    pub(super) fn receive(&mut self, byte: u8) -> Result<(), Full> {
        self.received.try_push(byte).map_err(|_| Full)
    }

    pub(super) fn read(&mut self, register: u8) -> u8 {
        let [low, high] = self.divisor.to_le_bytes();
        match (register & 7, self.lcr & LCR_DLAB != 0) {
            (0, true) => low,
            (1, true) => high,
            (0, false) => self.received.pop_at(0).unwrap_or(0),
            (1, false) => self.ier,
            (2, _) => self.identify(),
            (3, _) => self.lcr,
            (4, _) => self.mcr,
            (5, _) => {
                let overrun = if core::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
                let ready = if self.received.is_empty() { 0 } else { LSR_DATA };
                ready | LSR_EMPTY | overrun
            }
            (6, _) => self.modem_status(),
            _ => self.scratch,
        }
    }

    /// Writes a register.
    pub(super) fn write(&mut self, register: u8, value: u8, wires: &mut dyn Wires) {
        let [low, high] = self.divisor.to_le_bytes();
        match (register & 7, self.lcr & LCR_DLAB != 0) {
            (0, true) => self.divisor = u16::from_le_bytes([value, high]),
            (1, true) => self.divisor = u16::from_le_bytes([low, value]),
            (0, false) => self.transmit(value, wires),
            (1, false) => self.enable(value & IER_BITS),
            (2, _) => {
                if value & FCR_CLEAR_RECEIVE != 0 || (value ^ self.fcr) & FCR_ENABLE != 0 {
                    self.received.clear();
                }
                self.fcr = value;
            }
            (3, _) => self.lcr = value,
            (4, _) => self.mcr = value & MCR_BITS,
            (7, _) => self.scratch = value,
            _ => {}
        }
    }

    /// A byte is about to enter the transmitter, which takes back the news that it is empty.
    pub(super) fn fill(&mut self) {
        if self.lcr & LCR_DLAB == 0 {
            self.transmit_pending = false;
        }
    }

    fn transmit(&mut self, value: u8, wires: &mut dyn Wires) {
        if self.mcr & MCR_LOOP == 0 {
            wires.console(value);
        } else if self.received.len() >= FIFO || self.received.try_push(value).is_err() {
            self.overrun = true;
        }
        // Full for no time at all, then empty again: that is a transition.
        self.transmit_pending = true;
    }

    fn enable(&mut self, ier: u8) {
        // Enabling it counts as a transition, since the transmitter is empty. Leaving it enabled does not: Windows does
        // that, and a level here would be a storm.
        if ier & IER_TRANSMIT != 0 && self.ier & IER_TRANSMIT == 0 {
            self.transmit_pending = true;
        }
        self.ier = ier;
    }

    fn identify(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_TRANSMIT {
            self.transmit_pending = false;
        }
        cause | if self.fcr & FCR_ENABLE != 0 { IIR_FIFOS } else { 0 }
    }

    /// The highest of the pending causes.
    fn cause(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            IIR_LINE
        } else if self.ier & IER_RECEIVE != 0 && !self.received.is_empty() {
            if self.received.len() >= self.trigger() { IIR_RECEIVE } else { IIR_TIMEOUT }
        } else if self.ier & IER_TRANSMIT != 0 && self.transmit_pending {
            IIR_TRANSMIT
        } else {
            IIR_NONE
        }
    }

    fn trigger(&self) -> usize {
        match (self.fcr & FCR_ENABLE, self.fcr >> 6) {
            (0, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // In loopback the outputs come back: RTS as CTS, DTR as DSR, OUT1 as RI, OUT2 as DCD.
        [(MCR_RTS, 0x10), (MCR_DTR, 0x20), (MCR_OUT1, 0x40), (MCR_OUT2, 0x80)]
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |status, (_, input)| status | input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::tests::Board;

    fn ready() -> (Uart, Board) {
        let (mut uart, mut board) = (Uart::new(), Board::default());
        for (register, value) in [(2, 0x07), (3, 0x03), (4, 0x0B)] {
            uart.write(register, value, &mut board);
        }
        (uart, board)
    }

    #[test]
    fn linux_finds_a_16550a() {
        let (mut uart, mut board) = (Uart::new(), Board::default());
        uart.write(1, 0, &mut board);
        assert_eq!(uart.read(1), 0);
        uart.write(1, 0x0F, &mut board);
        assert_eq!(uart.read(1), 0x0F);
        uart.write(1, 0, &mut board);
        uart.write(4, 0x1A, &mut board);
        assert_eq!(uart.read(6) & 0xF0, 0x90, "loopback test");
        uart.write(4, 0, &mut board);
        uart.write(2, 1, &mut board);
        assert_eq!(uart.read(2) >> 6, 3, "FIFOs work");
        uart.write(7, 0xAE, &mut board);
        assert_eq!(uart.read(7), 0xAE);
    }

    #[test]
    fn an_idle_transmitter_does_not_storm() {
        let (mut uart, mut board) = ready();
        uart.write(1, IER_TRANSMIT, &mut board);
        assert_eq!(uart.irq(), Level::High, "told once when it is enabled");
        assert_eq!(uart.read(2) & 0x0F, IIR_TRANSMIT);
        for _ in 0..10 {
            assert_eq!(uart.irq(), Level::Low);
            assert_eq!(uart.read(2) & 0x0F, IIR_NONE);
            uart.write(1, IER_TRANSMIT, &mut board);
        }
        uart.write(0, b'x', &mut board);
        assert_eq!(uart.irq(), Level::High, "told again after a byte has left");
        assert_eq!(board.console, b"x");
    }

    #[test]
    fn a_byte_typed_interrupts_until_it_is_read() {
        let (mut uart, mut board) = ready();
        uart.write(1, IER_RECEIVE | IER_TRANSMIT, &mut board);
        uart.read(2);
        uart.receive(b'a').unwrap();
        uart.receive(b'b').unwrap();
        assert_eq!(uart.read(2) & 0x0F, IIR_RECEIVE);
        assert_eq!(uart.read(5) & LSR_DATA, 1);
        assert_eq!((uart.read(0), uart.irq(), uart.read(0), uart.irq()), (b'a', Level::High, b'b', Level::Low));
        assert_eq!(uart.read(5) & LSR_DATA, 0);
    }

    #[test]
    fn below_the_trigger_level_it_is_a_timeout() {
        let (mut uart, mut board) = ready();
        uart.write(2, 0x81, &mut board);
        uart.write(1, IER_RECEIVE, &mut board);
        uart.receive(b'a').unwrap();
        assert_eq!(uart.read(2) & 0x0F, IIR_TIMEOUT);
        (0..7).for_each(|_| uart.receive(b'a').unwrap());
        assert_eq!(uart.read(2) & 0x0F, IIR_RECEIVE);
    }

    #[test]
    fn the_ring_fills_up_and_drains_in_order() {
        let (mut uart, _) = ready();
        (0..=255).for_each(|byte| uart.receive(byte).unwrap());
        assert_eq!(uart.receive(0), Err(Full));
        (0..=255).for_each(|byte| assert_eq!(uart.read(0), byte));
    }

    #[test]
    fn out2_gates_the_interrupt() {
        let (mut uart, mut board) = ready();
        uart.write(1, IER_TRANSMIT, &mut board);
        uart.write(4, 0x03, &mut board);
        assert_eq!(uart.irq(), Level::Low);
    }

    #[test]
    fn loopback_overruns_after_16() {
        let (mut uart, mut board) = ready();
        uart.write(4, MCR_LOOP, &mut board);
        (0..17).for_each(|byte| uart.write(0, byte, &mut board));
        assert_eq!(uart.read(5) & LSR_OVERRUN, LSR_OVERRUN);
        assert_eq!(uart.read(5) & LSR_OVERRUN, 0);
        assert_eq!((board.console.len(), uart.read(0)), (0, 0));
    }
}
