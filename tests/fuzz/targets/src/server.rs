//! The vfio-user server of the GPU process, against a client that says anything. No descriptors are passed.

use crate::bytes::Bytes;
use qemu::server::link::Link;
use qemu::server::session::{Bus, Device, Next, Session};
use qemu::server::trace::Trace;
use qemu::server::wire::{FLAG_NO_REPLY, HEADER, Header, REGION_CONFIG};
use rustix::event::{EventfdFlags, eventfd};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Runs one input; gives the number of messages.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let mut stream = Vec::new();
    let mut messages = 0;
    while !b.is_empty() {
        message(&mut b, &mut stream);
        messages += 1;
    }
    let (Ok((mut ours, theirs)), Ok(control)) = (UnixStream::pair(), eventfd(0, EventfdFlags::CLOEXEC)) else {
        return 0;
    };
    let Ok(mut replies) = ours.try_clone() else { return 0 };
    std::thread::scope(|scope| {
        // Whoever writes without reading would stop the server, and be stopped by it.
        scope.spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while replies.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        scope.spawn(move || {
            let _ = ours.write_all(&stream);
            let _ = ours.shutdown(Shutdown::Write);
        });
        let mut session = Session::new(Registers([0; 4096]), Link::new(theirs), Trace::default());
        // A stream that cannot be framed ends it, which is an answer too.
        let _ = session.run(control.as_fd());
        session.report();
        session.describe();
    });
    messages
}

/// A message: framed, most of the time, with fields that mean something.
fn message(b: &mut Bytes<'_>, stream: &mut Vec<u8>) {
    let command = if b.rarely(8) { b.dword() as u16 } else { b.pick(&[1, 2, 3, 4, 5, 7, 8, 9, 10, 13]) };
    let payload: Vec<u8> = match command {
        1 => {
            let text = b.pick(&["{}\0", "{\"capabilities\":{\"max_msg_fds\":8}}\0", "{\"capabilities\":", "\0", "[]"]);
            [&[0, 0, 1, 0], text.as_bytes()].concat()
        }
        9 | 10 => {
            let count = b.pick(&[1, 2, 4, 8, 3, 0, 64, 0x1_0000, u32::MAX]);
            let offset = if b.rarely(4) { b.qword() } else { b.below(0x1010).into() };
            let region = b.pick(&[0, REGION_CONFIG, 2, 8, 9, u32::MAX]);
            let data = if command == 10 { vec![b.byte(); count.min(64) as usize] } else { Vec::new() };
            [&offset.to_le_bytes()[..], &region.to_le_bytes(), &count.to_le_bytes(), &data].concat()
        }
        _ => (0..b.below(11)).flat_map(|_| b.pick(&[0, 1, 2, 3, 8, 32, 0x1000, u32::MAX]).to_le_bytes()).collect(),
    };
    let size = (HEADER + payload.len()) as u32;
    let size = if b.rarely(40) { b.pick(&[0, 15, 16, 17, 1 << 20, u32::MAX]) } else { size };
    let flags = b.pick(&[0, 0, 0, FLAG_NO_REPLY, 1, 0x20, u32::MAX]);
    Header { id: b.byte().into(), command, size, flags, error: 0 }.encode(stream);
    stream.extend(payload);
}

/// A device with a page of registers.
#[derive(Debug)]
struct Registers([u8; 4096]);

impl Device for Registers {
    fn region_size(&self, region: u32) -> u64 {
        match region {
            0 => 4096,
            REGION_CONFIG => 256,
            _ => 0,
        }
    }

    fn config_read(&mut self, offset: u16, buf: &mut [u8]) {
        buf.copy_from_slice(&self.0[usize::from(offset)..][..buf.len()]);
    }

    fn config_write(&mut self, offset: u16, data: &[u8], _bus: &mut Bus) {
        assert!(usize::from(offset) + data.len() <= 256);
        self.0[usize::from(offset)..][..data.len()].copy_from_slice(data);
    }

    fn bar_read(&mut self, _bar: u32, offset: u64, buf: &mut [u8], _bus: &mut Bus) {
        assert!(matches!(buf.len(), 1 | 2 | 4 | 8) && offset.is_multiple_of(buf.len() as u64));
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
    }

    fn bar_write(&mut self, _bar: u32, offset: u64, data: &[u8], bus: &mut Bus) {
        assert!(matches!(data.len(), 1 | 2 | 4 | 8) && offset.is_multiple_of(data.len() as u64));
        self.0[offset as usize..][..data.len()].copy_from_slice(data);
        let _ = bus.dma.write(offset, data);
        bus.irqs.message();
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.0.fill(0);
    }

    fn run(&mut self, _bus: &mut Bus) -> Next {
        Next::Idle
    }

    fn state(&mut self, now: u64) -> String {
        format!("registers at {now}\n")
    }

    fn stats(&mut self) -> serde_json::Value {
        serde_json::json!({})
    }
}
