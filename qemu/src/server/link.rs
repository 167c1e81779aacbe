//! The socket: whole messages in, with the descriptors that belong to each; replies out.
//!
//! Posted writes arrive in bursts, so the socket is read into a buffer of many messages. The kernel ends a read at
//! the end of the piece that carried descriptors, so descriptors belong to the message that holds the last byte of
//! the read that brought them.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::wire::{HEADER, Header, MAX_FDS, MAX_MESSAGE};

/// The most descriptors held for messages that are not complete yet.
const MAX_HELD_FDS: usize = 4 * MAX_FDS;

/// One message of the client.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// The descriptors that came along.
    pub files: Vec<OwnedFd>,
}

/// What a receive found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Bytes; a message may be complete.
    Bytes,
    /// Nothing for now.
    Nothing,
    /// The client has closed.
    Closed,
}

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Woken {
    /// The client has something.
    pub client: bool,
    /// The control descriptor has something.
    pub control: bool,
}

/// The connection to the one client.
#[derive(Debug)]
pub struct Link {
    socket: UnixStream,
    buffer: Box<[u8]>,
    /// The part of `buffer` that is filled and not yet taken.
    start: usize,
    end: usize,
    /// Stream position of `buffer[0]`, so that descriptors can name the byte they came with.
    base: u64,
    files: Vec<(u64, OwnedFd)>,
}

impl Link {
    /// Serves `socket`.
    pub fn new(socket: UnixStream) -> Self {
        let buffer = vec![0; 2 * MAX_MESSAGE].into_boxed_slice();
        Self { socket, buffer, start: 0, end: 0, base: 0, files: Vec::new() }
    }

    /// Takes the next whole message out of the buffer.
    ///
    /// # Errors
    /// `InvalidData` for a message that is shorter than its header or larger than the bound: the stream has lost its
    /// framing and cannot go on.
    pub fn take(&mut self) -> io::Result<Option<Message>> {
        let filled = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some(header) = Header::decode(filled) else {
            return Ok(None);
        };
        let size = header.size as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&size) {
            let text = format!("the client sent a message of {size} bytes (allowed: {HEADER} to {MAX_MESSAGE})");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let Some(payload) = filled.get(HEADER..size) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.start += size;
        let taken = self.base + self.start as u64;
        let belongs = self.files.iter().take_while(|(at, _)| *at < taken).count();
        let files = self.files.drain(..belongs).map(|(_, file)| file).collect();
        Ok(Some(Message { header, payload, files }))
    }

    /// Reads what the socket has, without waiting.
    ///
    /// # Errors
    /// What the socket answers; a client that goes away is `Received::Closed`.
    pub fn receive(&mut self) -> io::Result<Received> {
        self.compact();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let read = match recvmsg(&self.socket, &mut [IoSliceMut::new(room)], &mut control, flags) {
            Ok(message) if message.bytes > 0 => message.bytes,
            Ok(_) | Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Received::Closed),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        };
        self.end += read;
        let last_byte = self.base + self.end as u64 - 1;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files.map(|file| (last_byte, file)));
            }
        }
        // A client that sends descriptors with bytes of unfinished messages only cannot make us hold many.
        self.files.truncate(MAX_HELD_FDS);
        Ok(Received::Bytes)
    }

    /// Sleeps until the client or `control` has something, or `limit` has passed.
    ///
    /// # Errors
    /// What `poll` answers.
    pub fn wait(&self, control: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<Woken> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(control, PollFlags::IN),
        ];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [client, control] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Woken { client, control })
    }

    /// Bytes received that do not make a whole message yet.
    pub fn unread(&self) -> usize {
        self.end - self.start
    }

    /// Sends a whole reply.
    ///
    /// # Errors
    /// What the socket answers.
    pub fn send(&self, reply: &[u8]) -> io::Result<()> {
        let mut rest = reply;
        while !rest.is_empty() {
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes room for a message of the largest size behind what is still unread.
    fn compact(&mut self) {
        if self.start == self.end {
            self.base += self.end as u64;
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < MAX_MESSAGE {
            self.buffer.copy_within(self.start..self.end, 0);
            self.base += self.start as u64;
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    use std::io::{IoSlice, Write};

    fn message(command: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let size = (HEADER + payload.len()) as u32;
        Header { id: command, command, size, flags: 0, error: 0 }.encode(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn send_with_file(socket: &UnixStream, bytes: &[u8]) {
        let file = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    fn all(link: &mut Link) -> Vec<(u16, usize, usize)> {
        let mut seen = Vec::new();
        loop {
            while let Some(message) = link.take().unwrap() {
                seen.push((message.header.command, message.payload.len(), message.files.len()));
            }
            if link.receive().unwrap() != Received::Bytes {
                return seen;
            }
        }
    }

    #[test]
    fn bursts_and_descriptors_keep_their_order() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut link = Link::new(server);
        assert_eq!(link.receive().unwrap(), Received::Nothing);
        client.write_all(&message(1, &[1; 20])).unwrap();
        client.write_all(&message(2, &[])).unwrap();
        send_with_file(&client, &message(3, &[3; 32]));
        client.write_all(&message(4, &[4; 32])).unwrap();
        send_with_file(&client, &message(5, &[5; 32]));
        assert_eq!(all(&mut link), [(1, 20, 0), (2, 0, 0), (3, 32, 1), (4, 32, 0), (5, 32, 1)]);
        drop(client);
        assert_eq!(link.receive().unwrap(), Received::Closed);
    }

    #[test]
    fn messages_cut_anywhere_are_put_together() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut link = Link::new(server);
        let mut stream = message(1, &[7; 100]);
        stream.extend(message(2, &[8; 3]));
        let mut seen = Vec::new();
        for byte in &stream {
            client.write_all(&[*byte]).unwrap();
            seen.extend(all(&mut link));
        }
        assert_eq!(seen, [(1, 100, 0), (2, 3, 0)]);
    }

    #[test]
    fn large_messages_wrap_round_the_buffer() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut link = Link::new(server);
        let writer = std::thread::spawn(move || {
            for command in 0..20 {
                client.write_all(&message(command, &vec![0; MAX_MESSAGE - HEADER])).unwrap();
                client.write_all(&message(100, &[0; 5])).unwrap();
            }
        });
        let nobody = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let mut count = 0;
        while count < 40 {
            assert!(link.wait(nobody.as_fd(), Some(Duration::from_secs(10))).unwrap().client);
            count += all(&mut link).len();
        }
        writer.join().unwrap();
    }

    #[test]
    fn lost_framing_is_an_error() {
        for size in [0u32, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let (mut client, server) = UnixStream::pair().unwrap();
            let mut link = Link::new(server);
            let mut bytes = Vec::new();
            Header { id: 0, command: 1, size, flags: 0, error: 0 }.encode(&mut bytes);
            client.write_all(&bytes).unwrap();
            assert_eq!(link.receive().unwrap(), Received::Bytes);
            assert!(link.take().is_err());
        }
    }
}
