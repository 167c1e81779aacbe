//! The console on COM1: Prism's own lines, the guests' UARTs, and the monitor.
//!
//! While Prism sets up, lines are written out at once. Once the run loop polls, output goes through a bounded ring so
//! that no exit ever waits for the UART; what does not fit is dropped and counted. Guests have a part of the ring, each its
//! share of it: the rest is for Prism's own lines, of which one tells what was dropped of whom.

mod mux;

use alloc::collections::VecDeque;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayString;
use hv_defs::Nanos;
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

use self::mux::Mux;

pub use self::mux::{Command, Event};

/// COM1.
const PORT: u16 = 0x3F8;
/// Its line on the 8259 and, by default, on the I/O APIC.
pub(crate) const ISA_IRQ: u8 = 4;
/// Bytes that wait for the UART.
const RING_BYTES: usize = 64 * 1024;
/// Those of all guests together; the others are for Prism's own lines.
const GUEST_BYTES: usize = RING_BYTES / 2;
/// Bytes sent in one poll at most.
const POLL_BYTES: usize = 512;
/// Bytes read in one poll at most.
const POLL_INPUT: usize = 64;
/// How soon the ring is looked at again while it holds something.
const DRAIN_NANOS: u64 = 1_000_000;
/// Turns of a loop that waits for the UART before it gives up: a UART that is not there must not stop Prism.
const PATIENCE: u32 = 1_000_000;

/// One line from Prism itself, whole, wherever the console's focus is.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::say(format_args!($($arg)*)) };
}

struct Console {
    uart: Option<Uart16550<PioBackend>>,
    ring: Option<VecDeque<u8>>,
    mux: Option<Mux>,
    polled: bool,
    dropped: u64,
    /// The last poll may have left input in the UART, which then raises no further interrupt.
    more_input: bool,
    /// When the ring is looked at again.
    drain_at: Option<Nanos>,
    /// Something of a guest's was lost that was not told yet. Asked for before every entry of a guest, so it is known.
    lost: bool,
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    uart: None,
    ring: None,
    mux: None,
    polled: false,
    dropped: 0,
    more_input: false,
    drain_at: None,
    lost: false,
});

/// Set by a panic: the lock may be held for ever, so output goes around it.
static SEIZED: AtomicBool = AtomicBool::new(false);

/// Sets COM1 up.
pub(crate) fn init() {
    CONSOLE.lock().uart = open();
}

/// Makes room for the ring and the guests' buffers (after the heap).
pub(crate) fn init_buffers() {
    let mut console = CONSOLE.lock();
    console.ring = Some(VecDeque::with_capacity(RING_BYTES));
    console.mux = Some(Mux::new());
}

/// From now on the run loop polls: output waits in the ring and input raises the interrupt.
pub(crate) fn start_polling() {
    let mut console = CONSOLE.lock();
    console.polled = true;
    if let Some(uart) = &mut console.uart {
        uart.enable_interrupts(IER::DATA_READY);
    }
}

/// Tells the console of a guest: `vm` counts from 1, as in `Ctrl-] 1`.
pub fn add_vm(vm: u8, name: &str) {
    if let Some(mux) = &mut CONSOLE.lock().mux {
        mux.add(vm, name);
    }
}

/// One byte from a guest's UART. Never waits.
pub fn guest_output(vm: u8, byte: u8, now: Nanos) {
    let console = &mut *CONSOLE.lock();
    console.with_mux(|mux, out| mux.guest_byte(vm, byte, now, GUEST_BYTES, out));
    console.settle(16);
}

/// Drains output and reads input. Call when `Pending::CONSOLE` is set or `deadline` has passed; `each` may print.
pub fn poll(now: Nanos, each: &mut dyn FnMut(Event)) {
    let mut bytes = [0; POLL_INPUT];
    let count = {
        let console = &mut *CONSOLE.lock();
        console.drain_at = None;
        console.with_mux(|mux, out| mux.tick(now, GUEST_BYTES, out));
        console.receive(&mut bytes)
    };
    for byte in bytes.into_iter().take(count) {
        // The lock is free again when `each` runs: a command answers with `say!`.
        let event = CONSOLE.lock().with_mux(|mux, out| mux.input(byte, out)).flatten();
        if let Some(event) = event {
            each(event);
        }
    }
    let console = &mut *CONSOLE.lock();
    console.with_mux(Mux::prompt);
    console.settle(POLL_BYTES);
    console.tell_lost();
}

/// When `poll` wants to be called even if nothing arrives.
pub fn deadline(now: Nanos) -> Option<Nanos> {
    CONSOLE.lock().deadline(now)
}

/// Bytes lost because the ring was full.
pub fn dropped() -> u64 {
    CONSOLE.lock().dropped
}

/// Writes out what waits in the ring, if the lock is free, and until the UART proves dead; then lets its FIFO run out.
pub(crate) fn flush() {
    if let Some(mut console) = CONSOLE.try_lock() {
        console.drain_all();
    }
    if let Some(mut uart) = port() {
        (0..PATIENCE).find(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
    }
}

/// Takes the console for a last report: from now on lines go straight to the UART.
pub(crate) fn seize() {
    SEIZED.store(true, Ordering::Release);
}

/// For `say!`. A line that begins with `@` is for programs and goes out as it is.
pub fn say(text: fmt::Arguments<'_>) {
    #[cfg(test)]
    std::eprintln!("prism: {text}");
    if SEIZED.load(Ordering::Acquire) {
        // Not set up again, which would lose what its FIFO still holds.
        if let Some(mut uart) = port() {
            line(&mut Direct(&mut uart), text);
        }
        return;
    }
    let console = &mut *CONSOLE.lock();
    console.own_line(text);
    console.settle(POLL_BYTES);
}

fn line(out: &mut dyn Write, text: fmt::Arguments<'_>) {
    // These writers do not fail: what finds no room is counted or lost.
    let _ = write!(Prefixed { out, begun: false }, "{text}\r\n");
}

/// Puts `prism: ` before what does not begin with `@`.
struct Prefixed<'a> {
    out: &'a mut dyn Write,
    begun: bool,
}

impl Write for Prefixed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.is_empty() && !core::mem::replace(&mut self.begun, true) && !text.starts_with('@') {
            self.out.write_str("prism: ")?;
        }
        self.out.write_str(text)
    }
}

impl Console {
    /// Runs the multiplexer with the ring as its terminal, once both exist.
    fn with_mux<R>(&mut self, run: impl FnOnce(&mut Mux, &mut dyn FnMut(&[u8])) -> R) -> Option<R> {
        let Self { mux, ring, dropped, lost, .. } = self;
        let (mux, ring) = (mux.as_mut()?, ring.as_mut()?);
        let result = run(mux, &mut |bytes| *dropped += put(ring, bytes));
        *lost = mux.has_lost();
        Some(result)
    }

    fn own_line(&mut self, text: fmt::Arguments<'_>) {
        match (&mut self.ring, &mut self.uart) {
            (Some(ring), _) => {
                let fresh = self.mux.as_mut().is_none_or(Mux::own_line);
                let mut out = RingOut { ring, dropped: &mut self.dropped };
                if !fresh {
                    let _ = out.write_str("\r\n");
                }
                line(&mut out, text);
            }
            (None, Some(uart)) => line(&mut Direct(uart), text),
            (None, None) => {}
        }
    }

    /// Says what was lost of guests, once there is room for more.
    fn tell_lost(&mut self) {
        while let (Some(0), Some(mux)) = (self.ring.as_ref().map(VecDeque::len), &mut self.mux) {
            let Some((name, bytes)) = mux.take_lost() else { break };
            self.lost = mux.has_lost();
            self.dropped += bytes;
            self.own_line(format_args!("console: {bytes} bytes of {name} dropped"));
            self.settle(POLL_BYTES);
        }
    }

    fn deadline(&mut self, now: Nanos) -> Option<Nanos> {
        if self.more_input {
            return Some(now);
        }
        let draining = self.lost || self.ring.as_ref().is_some_and(|ring| !ring.is_empty());
        // It stays until a poll: a guest that exits all the time must not put it off each time.
        let soon = Nanos(now.0.saturating_add(DRAIN_NANOS));
        self.drain_at = draining.then(|| self.drain_at.unwrap_or(soon));
        let line = self.mux.as_ref().and_then(Mux::deadline);
        self.drain_at.into_iter().chain(line).min()
    }

    /// Reads until the UART is empty, which re-arms its edge on the interrupt line, or the buffer full.
    fn receive(&mut self, bytes: &mut [u8]) -> usize {
        let count = self.uart.as_mut().map_or(0, |uart| uart.receive_bytes(bytes));
        self.more_input = count == bytes.len();
        count
    }

    /// After output: waits for it during set-up, else sends what the UART takes at once, `most` bytes at most (a real
    /// one takes 16).
    fn settle(&mut self, most: usize) {
        if self.polled { self.drain(most) } else { self.drain_all() }
    }

    fn drain(&mut self, most: usize) {
        let (Some(ring), Some(uart)) = (&mut self.ring, &mut self.uart) else {
            return;
        };
        let mut left = most;
        while left > 0 && !ring.is_empty() {
            let (front, _) = ring.as_slices();
            let sent = uart.send_bytes(front.get(..left).unwrap_or(front));
            if sent == 0 {
                return;
            }
            ring.drain(..sent.min(ring.len()));
            left = left.saturating_sub(sent);
            if ring.is_empty()
                && let Some(mux) = &mut self.mux
            {
                mux.drained();
            }
        }
    }

    fn drain_all(&mut self) {
        let waiting =
            |console: &Self| console.ring.as_ref().filter(|_| console.uart.is_some()).map_or(0, VecDeque::len);
        let (mut left, mut patience) = (waiting(self), PATIENCE);
        while left > 0 && patience > 0 {
            self.drain(RING_BYTES);
            core::hint::spin_loop();
            // A slow UART is not dead as long as it takes bytes.
            patience = if waiting(self) < left { PATIENCE } else { patience - 1 };
            left = waiting(self);
        }
    }
}

fn open() -> Option<Uart16550<PioBackend>> {
    let mut uart = port()?;
    uart.init(Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT }).ok()?;
    Some(uart)
}

fn port() -> Option<Uart16550<PioBackend>> {
    // SAFETY: 1. COM1 of a PC lies at this port, or nothing does. 2. Only this module uses it; a panic or an exit,
    // which make a second driver for it, have stopped the first, and only send by it.
    unsafe { Uart16550::new_port(PORT) }.ok()
}

/// Writes straight to a UART, giving up on one that takes nothing.
struct Direct<'a>(&'a mut Uart16550<PioBackend>);

impl Write for Direct<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut left = text.as_bytes();
        let mut patience = PATIENCE;
        while !left.is_empty() && patience > 0 {
            let sent = self.0.send_bytes(left);
            left = left.get(sent..).unwrap_or_default();
            patience = if sent > 0 { PATIENCE } else { patience - 1 };
        }
        Ok(())
    }
}

/// As much of a text as fits.
pub(crate) fn clip<const N: usize>(text: impl Iterator<Item = char>) -> ArrayString<N> {
    let mut kept = ArrayString::new();
    for letter in text {
        if kept.try_push(letter).is_err() {
            break;
        }
    }
    kept
}

/// Appends to the ring without making it grow; gives how many bytes were lost.
fn put(ring: &mut VecDeque<u8>, bytes: &[u8]) -> u64 {
    let room = RING_BYTES.saturating_sub(ring.len());
    let kept = bytes.get(..room).unwrap_or(bytes);
    ring.extend(kept);
    (bytes.len() - kept.len()) as u64
}

/// Formats into the ring.
struct RingOut<'a> {
    ring: &'a mut VecDeque<u8>,
    dropped: &'a mut u64,
}

impl Write for RingOut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        *self.dropped += put(self.ring, text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_programs_stand_alone() {
        let mut text = String::new();
        line(&mut text, format_args!("{}", "memory: 5"));
        line(&mut text, format_args!("@stat vm={} {}", 1, "@"));
        assert_eq!(text, "prism: memory: 5\r\n@stat vm=1 @\r\n");
    }

    fn polled(ring: VecDeque<u8>, mux: Option<Mux>) -> Console {
        Console {
            uart: None,
            ring: Some(ring),
            mux,
            polled: true,
            dropped: 0,
            more_input: false,
            drain_at: None,
            lost: false,
        }
    }

    /// Two guests flood a terminal that takes nothing; Prism's lines are all there, then what was lost is told once.
    #[test]
    fn guests_that_flood_leave_room_for_prism() {
        let mut mux = Mux::new();
        mux.add(1, "loud");
        mux.add(2, "louder");
        let mut console = polled(VecDeque::with_capacity(RING_BYTES), Some(mux));
        let flood = |console: &mut Console, vm: u8| {
            for byte in (0..2 * RING_BYTES).map(|at| if at % 61 == 60 { b'\n' } else { b'x' }) {
                console.with_mux(|mux, out| mux.guest_byte(vm, byte, Nanos(0), GUEST_BYTES, out));
            }
        };
        flood(&mut console, 1);
        for number in 0..100 {
            console.own_line(format_args!("line {number} of what an operator has to know, such as why a guest ended"));
            flood(&mut console, 1 + number % 2);
        }
        console.tell_lost();
        assert_eq!(console.dropped, 0, "of Prism's own");
        let text: Vec<u8> = console.ring.as_mut().unwrap().drain(..).collect();
        let text = String::from_utf8(text).unwrap();
        let own: Vec<&str> = text.lines().filter(|line| line.starts_with("prism: line ")).collect();
        assert_eq!((own.len(), own[99].starts_with("prism: line 99 ")), (100, true));
        let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert!(of("[loud]") > 200 && of("[louder]") > 200, "{} {}", of("[loud]"), of("[louder]"));
        assert_eq!(console.deadline(Nanos(0)), Some(Nanos(DRAIN_NANOS)), "what was lost is to be told");
        for name in ["loud", "louder"] {
            console.tell_lost();
            let text: Vec<u8> = console.ring.as_mut().unwrap().drain(..).collect();
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with("prism: console: ") && text.ends_with(&format!(" bytes of {name} dropped\r\n")));
        }
        assert!(console.dropped > RING_BYTES as u64);
        console.tell_lost();
        assert!(console.ring.as_ref().unwrap().is_empty(), "told once");
    }

    #[test]
    fn exits_do_not_put_the_next_poll_off() {
        let mut console = polled(VecDeque::from([b'a']), None);
        assert_eq!(console.deadline(Nanos(0)), Some(Nanos(DRAIN_NANOS)));
        assert_eq!(console.deadline(Nanos(DRAIN_NANOS / 2)), Some(Nanos(DRAIN_NANOS)));
        console.ring.as_mut().unwrap().clear();
        assert_eq!(console.deadline(Nanos(DRAIN_NANOS)), None);
    }

    #[test]
    fn the_ring_is_bounded() {
        let mut ring = VecDeque::with_capacity(RING_BYTES);
        assert_eq!(put(&mut ring, &vec![b'a'; RING_BYTES - 1]), 0);
        assert_eq!(put(&mut ring, b"bcd"), 2);
        assert_eq!((ring.len(), ring.back()), (RING_BYTES, Some(&b'b')));
    }
}
