//! A client in the test talks to a session in a thread, over a socket pair, as QEMU does.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;
use crate::server::trace::Counters;

/// A device with one register page that notes what it is asked.
#[derive(Debug, Default)]
struct Stub {
    registers: Vec<u8>,
    config: Vec<u8>,
    pieces: Vec<(u64, usize)>,
    resets: usize,
    /// Steps of work left, and how long each takes.
    work: u64,
    runs: usize,
    deadline: Option<u64>,
}

impl Stub {
    fn new() -> Self {
        Self { registers: vec![0; 0x1000], config: vec![0x5a; 256], ..Self::default() }
    }
}

/// A store here copies the dword at that bus address to the next one and sends the message.
const DOORBELL: u64 = 0x800;
/// A store here makes the device busy for so many steps.
const WORK: u64 = 0x808;
/// A store here makes the device send its message after so many nanoseconds.
const TIMER: u64 = 0x810;

impl Device for Stub {
    fn region_size(&self, region: u32) -> u64 {
        match region {
            0 => 0x1000,
            REGION_CONFIG => 256,
            _ => 0,
        }
    }

    fn config_read(&mut self, offset: u16, buf: &mut [u8]) {
        buf.copy_from_slice(&self.config[usize::from(offset)..][..buf.len()]);
    }

    fn config_write(&mut self, offset: u16, data: &[u8], _bus: &mut Bus) {
        self.config[usize::from(offset)..][..data.len()].copy_from_slice(data);
    }

    fn bar_read(&mut self, _bar: u32, offset: u64, buf: &mut [u8], _bus: &mut Bus) {
        self.pieces.push((offset, buf.len()));
        buf.copy_from_slice(&self.registers[offset as usize..][..buf.len()]);
    }

    fn bar_write(&mut self, _bar: u32, offset: u64, data: &[u8], bus: &mut Bus) {
        self.pieces.push((offset, data.len()));
        self.registers[offset as usize..][..data.len()].copy_from_slice(data);
        match offset {
            DOORBELL => {
                let mut dword = [0; 4];
                bus.dma.read(integer(data), &mut dword).unwrap();
                bus.dma.write(integer(data) + 4, &dword).unwrap();
                bus.irqs.message();
            }
            WORK => self.work = integer(data),
            TIMER => self.deadline = Some(bus.now + integer(data)),
            _ => {}
        }
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.resets += 1;
        self.registers.fill(0);
    }

    fn run(&mut self, bus: &mut Bus) -> Next {
        self.runs += 1;
        if let Some(at) = self.deadline {
            if bus.now < at {
                return Next::At(at);
            }
            self.deadline = None;
            bus.irqs.message();
        }
        if self.work == 0 {
            return Next::Idle;
        }
        self.work -= 1;
        Next::Now
    }

    fn state(&mut self, now: u64) -> String {
        format!("stub at {now}\n")
    }

    fn stats(&mut self) -> Value {
        serde_json::json!({ "runs": self.runs })
    }
}

/// What is left when the session has ended.
struct Ended {
    pause: io::Result<Pause>,
    device: Stub,
    counters: Counters,
    dma: (usize, u64, u64),
    written: Vec<(u64, u64)>,
    report: Value,
}

struct Client {
    socket: UnixStream,
    id: u16,
    server: JoinHandle<Ended>,
    control: OwnedFd,
}

fn start() -> Client {
    let (socket, theirs) = UnixStream::pair().unwrap();
    let control = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let watched = control.try_clone().unwrap();
    let server = std::thread::spawn(move || {
        let mut session = Session::new(Stub::new(), Link::new(theirs), Trace::default());
        let pause = session.run(watched.as_fd());
        Ended {
            pause,
            counters: session.bus.trace.counters(),
            dma: session.bus.dma.counts(),
            written: session.bus.dma.touched().written.ranges(),
            report: session.report(),
            device: session.device,
        }
    });
    Client { socket, id: 0, server, control }
}

impl Client {
    fn send(&mut self, command: u16, flags: u32, payload: &[u8], file: Option<&OwnedFd>) {
        self.id += 1;
        let mut bytes = Vec::new();
        let size = (HEADER + payload.len()) as u32;
        Header { id: self.id, command, size, flags, error: 0 }.encode(&mut bytes);
        bytes.extend_from_slice(payload);
        let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    fn reply(&mut self) -> Result<Vec<u8>, u32> {
        let mut bytes = [0; HEADER];
        self.socket.read_exact(&mut bytes).unwrap();
        let header = Header::decode(&bytes).unwrap();
        assert_eq!(header.id, self.id, "a reply belongs to the last command");
        assert_eq!(header.flags & FLAG_TYPE, FLAG_REPLY);
        let mut payload = vec![0; header.size as usize - HEADER];
        self.socket.read_exact(&mut payload).unwrap();
        if header.flags & FLAG_ERROR != 0 { Err(header.error) } else { Ok(payload) }
    }

    fn ask(&mut self, command: u16, payload: &[u8], file: Option<&OwnedFd>) -> Result<Vec<u8>, u32> {
        self.send(command, 0, payload, file);
        self.reply()
    }

    fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let mut payload = Vec::new();
        RegionAccess { offset, region, count }.encode(&mut payload);
        self.ask(9, &payload, None).map(|reply| reply[RegionAccess::SIZE..].to_vec())
    }

    fn post(&mut self, offset: u64, data: &[u8]) {
        let payload = write(0, offset, data);
        self.send(10, FLAG_NO_REPLY, &payload, None);
    }

    fn end(self) -> Ended {
        drop(self.socket);
        self.server.join().unwrap()
    }
}

fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    RegionAccess { offset, region, count: data.len() as u32 }.encode(&mut payload);
    payload.extend_from_slice(data);
    payload
}

fn dma_map(address: u64, size: u64) -> Vec<u8> {
    let mut payload = words(&[32, 3]);
    for word in [0, address, size] {
        payload.extend_from_slice(&word.to_le_bytes());
    }
    payload
}

fn arm(index: u32) -> Vec<u8> {
    words(&[20, SetIrqs::DATA_EVENTFD | SetIrqs::TRIGGER, index, 0, 1])
}

const EINVAL: u32 = 22;

#[test]
fn version_is_answered_with_zero_and_text() {
    let mut client = start();
    let reply = client.ask(1, b"\0\0\0\0{\"capabilities\":{}}\0", None).unwrap();
    assert_eq!(reply[..4], [0; 4]);
    assert_eq!(reply.last(), Some(&0));
    let text: Value = serde_json::from_slice(&reply[4..reply.len() - 1]).unwrap();
    assert_eq!(text["capabilities"]["max_data_xfer_size"], MAX_TRANSFER);
    assert_eq!(client.ask(1, b"\x01\0\0\0", None), Err(EINVAL));
}

#[test]
fn device_region_and_interrupt_information() {
    let mut client = start();
    assert_eq!(client.ask(4, &words(&[16, 0, 0, 0]), None).unwrap(), words(&[16, 3, 9, 5]));
    let bar = client.ask(5, &words(&[32, 0, 0, 0, 0, 0, 0, 0]), None).unwrap();
    assert_eq!(bar, words(&[32, 3, 0, 0, 0x1000, 0, 0, 0]));
    let rom = client.ask(5, &words(&[32, 0, 6, 0, 0, 0, 0, 0]), None).unwrap();
    assert_eq!(rom, words(&[32, 0, 6, 0, 0, 0, 0, 0]));
    assert_eq!(client.ask(5, &words(&[32, 0, 9, 0, 0, 0, 0, 0]), None), Err(EINVAL));
    assert_eq!(client.ask(7, &words(&[16, 0, 1, 0]), None).unwrap(), words(&[16, 9, 1, 1]));
    assert_eq!(client.ask(7, &words(&[16, 0, 3, 0]), None).unwrap()[12], 0);
    assert_eq!(client.ask(7, &words(&[16, 0, 5, 0]), None), Err(EINVAL));
}

#[test]
fn reads_see_the_posted_writes_before_them() {
    let mut client = start();
    for value in 0..1000u32 {
        client.post(0x10, &value.to_le_bytes());
    }
    assert_eq!(client.read(0, 0x10, 4).unwrap(), 999u32.to_le_bytes());
    assert_eq!(client.read(REGION_CONFIG, 2, 2).unwrap(), [0x5a; 2]);
    assert_eq!(client.ask(10, &write(REGION_CONFIG, 4, &[1]), None).unwrap().len(), RegionAccess::SIZE);
    assert_eq!(client.read(REGION_CONFIG, 3, 3).unwrap(), [0x5a, 1, 0x5a]);
    let ended = client.end();
    assert_eq!(ended.pause.unwrap(), Pause::Closed);
    let counters = ended.counters;
    assert_eq!((counters.register_writes, counters.register_reads), (1000, 1));
}

#[test]
fn accesses_are_cut_into_aligned_pieces() {
    let mut client = start();
    client.read(0, 0x0, 8).unwrap();
    client.read(0, 0x4, 8).unwrap();
    client.read(0, 0x11, 8).unwrap();
    let ended = client.end();
    let expected = [(0, 8), (4, 4), (8, 4), (0x11, 1), (0x12, 2), (0x14, 4), (0x18, 1)];
    assert_eq!(ended.device.pieces, expected);
}

#[test]
fn accesses_outside_a_region_are_refused() {
    let mut client = start();
    assert_eq!(client.read(0, 0xffd, 4), Err(EINVAL));
    assert_eq!(client.read(0, u64::MAX, 4), Err(EINVAL));
    assert_eq!(client.read(3, 0, 4), Err(EINVAL));
    assert_eq!(client.read(77, 0, 4), Err(EINVAL));
    assert_eq!(client.read(0, 0, u32::MAX), Err(EINVAL));
    let mut short = Vec::new();
    RegionAccess { offset: 0, region: 0, count: 8 }.encode(&mut short);
    assert_eq!(client.ask(10, &short, None), Err(EINVAL));
    assert_eq!(client.ask(9, &[1, 2, 3], None), Err(EINVAL));
    assert_eq!(client.ask(11, &[], None), Err(38));
    assert_eq!(client.read(0, 0xffc, 4).unwrap(), [0; 4]);
}

#[test]
fn a_doorbell_moves_memory_and_sends_the_message() {
    let mut client = start();
    let memory = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 0x10000).unwrap();
    rustix::io::pwrite(&memory, &[1, 2, 3, 4], 0x2000).unwrap();
    client.ask(2, &dma_map(0x10_0000, 0x10000), Some(&memory)).unwrap();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    client.ask(8, &arm(1), Some(&event)).unwrap();
    client.post(DOORBELL, &0x10_2000u64.to_le_bytes());
    let mut count = [0; 8];
    rustix::io::read(&event, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    let mut moved = [0; 4];
    rustix::io::pread(&memory, &mut moved, 0x2004).unwrap();
    assert_eq!(moved, [1, 2, 3, 4]);
    let mut unmap = words(&[24, 0]);
    unmap.extend([0x10_0000u64, 0x10000].iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(client.ask(3, &unmap, None).unwrap(), unmap);
    let ended = client.end();
    assert_eq!(ended.dma, (0, 1, 1));
    assert_eq!(ended.written, [(0x10_2000, 0x1000)]);
}

#[test]
fn a_busy_device_is_answered_between_its_steps_and_sleeps_when_done() {
    let mut client = start();
    client.post(WORK, &u64::MAX.to_le_bytes());
    for _ in 0..100 {
        client.read(0, 0, 4).unwrap();
    }
    client.post(WORK, &0u64.to_le_bytes());
    client.read(0, 0, 4).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let ended = client.end();
    assert!(ended.device.runs > 100);
    assert_eq!(ended.device.work, 0);
}

#[test]
fn the_devices_deadline_ends_the_sleep() {
    let mut client = start();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    client.ask(8, &arm(1), Some(&event)).unwrap();
    let asked = Instant::now();
    client.post(TIMER, &20_000_000u64.to_le_bytes());
    rustix::io::read(&event, &mut [0; 8]).unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(20));
    let ended = client.end();
    assert!(ended.device.runs < 20, "{} runs: the device was polled", ended.device.runs);
}

#[test]
fn reset_and_control() {
    let mut client = start();
    client.post(0, &[9]);
    client.ask(13, &[], None).unwrap();
    assert_eq!(client.read(0, 0, 1).unwrap(), [0]);
    client.post(WORK, &u64::MAX.to_le_bytes());
    rustix::io::write(&client.control, &1u64.to_ne_bytes()).unwrap();
    let ended = client.server.join().unwrap();
    assert_eq!(ended.pause.unwrap(), Pause::Control);
    assert_eq!(ended.device.resets, 1);
}

#[test]
fn marks_keep_the_counters_of_their_moment() {
    let mut client = start();
    client.ask(10, &write(REGION_CONFIG, 0xf0, &[1]), None).unwrap();
    client.post(0, &[9]);
    client.ask(10, &write(REGION_CONFIG, 0xf0, &[2]), None).unwrap();
    client.post(0, &[9]);
    let report = client.end().report;
    let writes = |phase: &Value| phase["counts"]["register_writes"].as_u64().unwrap();
    let phases = report["phases"].as_array().unwrap();
    assert_eq!(phases.iter().map(writes).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(phases[1]["mark"], 2);
    assert_eq!(writes(&report), 2);
    assert!(report["counts"]["gpu"]["runs"].as_u64().unwrap() > 0);
}

#[test]
fn a_stream_without_framing_ends_the_session() {
    let mut client = start();
    client.socket.write_all(&[0xff; 64]).unwrap();
    assert!(client.end().pause.is_err());
}
