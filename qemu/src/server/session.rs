//! One client: what each message asks, what it is answered, and when the device runs.
//!
//! One thread does everything. While the device has work it runs in steps of bounded length, and the socket is
//! looked at between two steps, so that an access waits for one step at most; while it has none the thread sleeps
//! until a message, the device's own deadline, or a control signal.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::Value;

use super::dma::DmaTable;
use super::irqs::Irqs;
use super::link::{Link, Message, Received};
use super::stats::{self, Phases};
use super::trace::{Access, Trace};
use super::wire::{
    Command, DEVICE_FLAGS, DmaMap, DmaUnmap, FLAG_ERROR, FLAG_NO_REPLY, FLAG_REPLY, FLAG_TYPE, HEADER, Header, IRQS,
    MAX_FDS, MAX_TRANSFER, REGION_CONFIG, REGION_FLAGS, REGIONS, RegionAccess, SetIrqs, u32_at,
};

/// A byte of configuration space without a register of the GPU: what a guest writes there marks a phase of a test.
const PHASE_MARK: u64 = 0xf0;

/// When the device wants to run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// At once.
    Now,
    /// When the clock of `Bus::now` reads this, or after the next access.
    At(u64),
    /// After the next access.
    Idle,
}

/// What the device sees of the machine that it is plugged into.
#[derive(Debug, Default)]
pub struct Bus {
    /// Client memory.
    pub dma: DmaTable,
    /// Interrupts.
    pub irqs: Irqs,
    /// Nanoseconds since the server began.
    pub now: u64,
    /// The record of everything.
    pub trace: Trace,
}

/// A PCI function as the server needs it. Accesses are naturally aligned pieces of 1, 2, 4 or 8 bytes, inside the
/// region; none may take longer than a few microseconds.
pub trait Device {
    /// Bytes of a region; zero if the device has none of this index.
    fn region_size(&self, region: u32) -> u64;
    /// Reads configuration space.
    fn config_read(&mut self, offset: u16, buf: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&mut self, offset: u16, data: &[u8], bus: &mut Bus);
    /// Reads a BAR.
    fn bar_read(&mut self, bar: u32, offset: u64, buf: &mut [u8], bus: &mut Bus);
    /// Writes a BAR.
    fn bar_write(&mut self, bar: u32, offset: u64, data: &[u8], bus: &mut Bus);
    /// Function-level reset.
    fn reset(&mut self, bus: &mut Bus);
    /// Runs for a bounded time (tens of microseconds).
    fn run(&mut self, bus: &mut Bus) -> Next;
    /// The registers that say what it is at, as lines.
    fn state(&mut self, now: u64) -> String;
    /// Its own counters.
    fn stats(&mut self) -> Value;
    /// What it has to say at the end.
    ///
    /// # Errors
    /// The run was not as the options asked.
    fn verdict(&self) -> crate::Result<()> {
        Ok(())
    }
}

/// What made `Session::run` return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pause {
    /// The client has gone.
    Closed,
    /// The control descriptor has something.
    Control,
}

/// A device and its client.
#[derive(Debug)]
pub struct Session<D> {
    /// The device.
    pub device: D,
    /// The machine around it.
    pub bus: Bus,
    link: Link,
    started: Instant,
    phases: Phases,
}

/// The answer to a command: a payload, or an errno.
type Answer = Result<Vec<u8>, Errno>;

impl<D: Device> Session<D> {
    /// Serves `device` on `link`.
    pub fn new(device: D, link: Link, trace: Trace) -> Self {
        Self { device, bus: Bus { trace, ..Bus::default() }, link, started: Instant::now(), phases: Phases::default() }
    }

    /// Serves until the client goes or `control` is readable.
    ///
    /// # Errors
    /// The socket failed, or the client sent what cannot be framed.
    pub fn run(&mut self, control: BorrowedFd<'_>) -> io::Result<Pause> {
        loop {
            while let Some(message) = self.link.take()? {
                self.tick();
                self.handle(message)?;
            }
            self.tick();
            let next = self.device.run(&mut self.bus);
            let woken = match self.patience(next) {
                // Between two steps of a busy device: a look at the socket costs less than a poll of both.
                Some(Duration::ZERO) => None,
                limit => Some(self.link.wait(control, limit)?),
            };
            if woken.is_some_and(|woken| woken.control) {
                return Ok(Pause::Control);
            }
            if woken.is_none_or(|woken| woken.client) {
                match self.link.receive()? {
                    Received::Closed => return Ok(Pause::Closed),
                    Received::Bytes => {}
                    // A device that never rests must not keep a control signal waiting.
                    Received::Nothing if self.link.wait(control, Some(Duration::ZERO))?.control => {
                        return Ok(Pause::Control);
                    }
                    Received::Nothing => {}
                }
            }
        }
    }

    /// Everything counted so far.
    pub fn report(&mut self) -> Value {
        let gpu = self.device.stats();
        stats::report(&self.bus, gpu, &self.phases)
    }

    /// Where it is, for somebody who wonders why a machine does not go on.
    pub fn describe(&mut self) -> String {
        self.tick();
        let (now, unread) = (self.bus.now, self.link.unread());
        let mut text = format!("at {now} ns, {unread} bytes of an unfinished message; {}\n", self.bus.irqs.describe());
        text.push_str(&self.device.state(now));
        text.push_str("last accesses (ns, kind, region, offset, value):\n");
        for line in self.bus.trace.last() {
            text.push_str(&format!("  {line}\n"));
        }
        text
    }

    /// Sets the clock that the device sees.
    fn tick(&mut self) {
        self.bus.now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    }

    /// How long to sleep for the next message; `None` is for ever.
    fn patience(&self, next: Next) -> Option<Duration> {
        match next {
            Next::Now => Some(Duration::ZERO),
            Next::At(at) => Some(Duration::from_nanos(at.saturating_sub(self.bus.now))),
            Next::Idle => None,
        }
    }

    /// Carries out one message and answers it unless it wants no answer.
    fn handle(&mut self, message: Message) -> io::Result<()> {
        let Message { header, payload, files } = message;
        if header.flags & FLAG_TYPE == FLAG_REPLY {
            return Ok(());
        }
        let answer = self.answer(Command::from(header.command), &payload, files);
        if header.flags & FLAG_NO_REPLY != 0 {
            return Ok(());
        }
        let (payload, error) = match &answer {
            Ok(payload) => (payload.as_slice(), 0),
            Err(errno) => (&[][..], errno.raw_os_error().unsigned_abs()),
        };
        let mut reply = Vec::with_capacity(HEADER + payload.len());
        let flags = FLAG_REPLY | if error == 0 { 0 } else { FLAG_ERROR };
        let size = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
        Header { size, flags, error, ..header }.encode(&mut reply);
        reply.extend_from_slice(payload);
        self.link.send(&reply)
    }

    fn answer(&mut self, command: Command, payload: &[u8], mut files: Vec<OwnedFd>) -> Answer {
        match command {
            Command::Version => version(payload),
            Command::DmaMap => {
                let request = DmaMap::decode(payload).ok_or(Errno::INVAL)?;
                self.bus.dma.map(request, files.pop()).map(|()| Vec::new())
            }
            Command::DmaUnmap => {
                let request = DmaUnmap::decode(payload).ok_or(Errno::INVAL)?;
                self.bus.dma.unmap(request)?;
                Ok(payload.get(..24).unwrap_or_default().to_vec())
            }
            Command::DeviceGetInfo => Ok(words(&[16, DEVICE_FLAGS, REGIONS, IRQS])),
            Command::DeviceGetRegionInfo => self.region_info(payload),
            Command::DeviceGetIrqInfo => {
                let index = u32_at(payload, 8).filter(|index| *index < IRQS).ok_or(Errno::INVAL)?;
                let (flags, count) = Irqs::info(index);
                Ok(words(&[16, flags, index, count]))
            }
            Command::DeviceSetIrqs => {
                let request = SetIrqs::decode(payload).ok_or(Errno::INVAL)?;
                let data = payload.get(SetIrqs::SIZE..).unwrap_or_default();
                self.bus.irqs.set(request, data, files).map(|()| Vec::new())
            }
            Command::RegionRead => self.region_read(payload),
            Command::RegionWrite => self.region_write(payload),
            Command::DeviceReset => {
                self.bus.trace.access(self.bus.now, Access::Reset, 0, 0, 0);
                self.device.reset(&mut self.bus);
                Ok(Vec::new())
            }
            Command::Other(_) => Err(Errno::NOSYS),
        }
    }

    /// No region can be mapped: QEMU then posts its writes, and the device sees every one of them.
    fn region_info(&self, payload: &[u8]) -> Answer {
        let index = u32_at(payload, 8).filter(|index| *index < REGIONS).ok_or(Errno::INVAL)?;
        let size = self.device.region_size(index);
        let flags = if size == 0 { 0 } else { REGION_FLAGS };
        let mut reply = words(&[32, flags, index, 0]);
        reply.extend_from_slice(&size.to_le_bytes());
        reply.extend_from_slice(&0u64.to_le_bytes());
        Ok(reply)
    }

    fn region_read(&mut self, payload: &[u8]) -> Answer {
        let access = RegionAccess::decode(payload).ok_or(Errno::INVAL)?;
        let count = self.checked(access)?;
        let mut reply = Vec::with_capacity(RegionAccess::SIZE + count);
        access.encode(&mut reply);
        reply.resize(RegionAccess::SIZE + count, 0);
        let data = reply.get_mut(RegionAccess::SIZE..).unwrap_or_default();
        let mut offset = access.offset;
        for piece in Pieces::new(offset, count) {
            let Some(buf) = data.get_mut(piece.clone()) else {
                break;
            };
            match access.region {
                REGION_CONFIG => self.device.config_read(offset as u16, buf),
                bar => self.device.bar_read(bar, offset, buf, &mut self.bus),
            }
            self.bus.trace.access(self.bus.now, Access::Read, access.region, offset, integer(buf));
            offset += piece.len() as u64;
        }
        Ok(reply)
    }

    fn region_write(&mut self, payload: &[u8]) -> Answer {
        let access = RegionAccess::decode(payload).ok_or(Errno::INVAL)?;
        let count = self.checked(access)?;
        let data = payload.get(RegionAccess::SIZE..).and_then(|data| data.get(..count)).ok_or(Errno::INVAL)?;
        let mut offset = access.offset;
        for piece in Pieces::new(offset, count) {
            let Some(buf) = data.get(piece.clone()) else {
                break;
            };
            self.bus.trace.access(self.bus.now, Access::Write, access.region, offset, integer(buf));
            match access.region {
                REGION_CONFIG if offset == PHASE_MARK && count == 1 => self.mark(integer(buf) as u8),
                REGION_CONFIG => self.device.config_write(offset as u16, buf, &mut self.bus),
                bar => self.device.bar_write(bar, offset, buf, &mut self.bus),
            }
            offset += piece.len() as u64;
        }
        let mut reply = Vec::with_capacity(RegionAccess::SIZE);
        access.encode(&mut reply);
        Ok(reply)
    }

    /// The guest marks a phase: the counters of this moment are kept under its mark.
    fn mark(&mut self, mark: u8) {
        let gpu = self.device.stats();
        self.phases.mark(mark, &self.bus, gpu);
    }

    /// The size of an access that lies inside a region of the device.
    fn checked(&self, access: RegionAccess) -> Result<usize, Errno> {
        let count = access.count as usize;
        let end = access.offset.checked_add(u64::from(access.count)).ok_or(Errno::INVAL)?;
        if access.region >= REGIONS || count > MAX_TRANSFER || end > self.device.region_size(access.region) {
            return Err(Errno::INVAL);
        }
        Ok(count)
    }
}

/// QEMU 11.1 offers 0.0 and takes nothing else.
fn version(payload: &[u8]) -> Answer {
    let major = u32_at(payload, 0).ok_or(Errno::INVAL)? & 0xffff;
    if major != 0 {
        return Err(Errno::INVAL);
    }
    let mut reply = vec![0; 4];
    let capabilities = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{MAX_FDS},\"max_data_xfer_size\":{MAX_TRANSFER},\"pgsizes\":4096}}}}\0"
    );
    reply.extend_from_slice(capabilities.as_bytes());
    Ok(reply)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The value of up to eight little-endian bytes.
pub fn integer(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Cuts a range into naturally aligned pieces of at most eight bytes.
struct Pieces {
    offset: u64,
    done: usize,
    count: usize,
}

impl Pieces {
    fn new(offset: u64, count: usize) -> Self {
        Self { offset, done: 0, count }
    }
}

impl Iterator for Pieces {
    type Item = std::ops::Range<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.count.checked_sub(self.done).filter(|left| *left > 0)?;
        let alignment = 1 << (self.offset + self.done as u64).trailing_zeros().min(3);
        let size = [8, 4, 2, 1].into_iter().find(|size| *size <= left && *size <= alignment)?;
        self.done += size;
        Some(self.done - size..self.done)
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
