//! What the GPU touched, for tests of isolation, kept only while asked for: frames of memory as a sparse bitmap, and, one
//! by one, what each command reached of the graphics spaces and of the registers.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use gvt_defs::{Engine, Hpa, PAGE_SIZE};

use crate::witness::Witness;

/// Chunks of 64 frames that are kept at most (256 MiB of scattered frames at worst, 16 GiB at best).
const MAX_CHUNKS: usize = 65_536;

/// Accesses of commands that are kept until they are taken.
const MAX_REACHED: usize = 65_536;

/// How something was touched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Touch {
    /// It was read.
    Read,
    /// It was written.
    Write,
}

/// Where a command got to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// An address of the global space, as the command gave it.
    Global(u64),
    /// An address of the running context's own space.
    Process(u64),
    /// A register.
    Register(u32),
    /// An entry of the global page table, by its index.
    Entry(u32),
}

/// One access by a command; fetching commands is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reached {
    /// The engine that ran it.
    pub engine: Engine,
    /// Its header.
    pub header: u32,
    /// Where to.
    pub place: Place,
    /// How many bytes.
    pub bytes: u32,
    /// Which way.
    pub touch: Touch,
    /// What was written, if it is a register; else 0.
    pub value: u32,
}

#[derive(Clone, Copy, Default)]
struct Chunk {
    read: u64,
    written: u64,
}

/// Frames in a row that were touched in the same way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TouchedRange {
    /// First frame number (address divided by 4 KiB).
    pub first: u64,
    /// Number of frames.
    pub frames: u64,
    /// The GPU read from them.
    pub read: bool,
    /// The GPU wrote to them.
    pub written: bool,
}

/// What the GPU touched since recording began or was last asked for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Touched {
    /// Ascending, not adjacent unless the way of touching differs.
    pub ranges: Vec<TouchedRange>,
    /// Too many scattered frames: some are missing here.
    pub overflow: bool,
}

#[derive(Default)]
pub(crate) struct Recorder {
    on: bool,
    overflow: bool,
    /// The frame and way noted last: most accesses repeat it.
    last: Option<(u64, Touch)>,
    chunks: BTreeMap<u64, Chunk>,
    /// The command that is being executed.
    command: Option<(Engine, u32)>,
    reached: Vec<Reached>,
    pub witness: Witness,
}

impl Recorder {
    /// A command begins; with `None` it is over.
    #[inline]
    pub fn command(&mut self, command: Option<(Engine, u32)>) -> Option<(Engine, u32)> {
        core::mem::replace(&mut self.command, command)
    }

    /// The command at hand gets somewhere.
    #[inline]
    pub fn reach(&mut self, place: Place, bytes: usize, touch: Touch, value: u32) {
        if self.on
            && let Some((engine, header)) = self.command
        {
            self.keep(Reached { engine, header, place, bytes: bytes as u32, touch, value });
        }
    }

    fn keep(&mut self, reached: Reached) {
        if self.reached.len() < MAX_REACHED {
            self.reached.push(reached);
        }
    }

    /// What commands reached, in order; past some ten thousand the rest is not kept.
    pub fn take_reached(&mut self) -> Vec<Reached> {
        core::mem::take(&mut self.reached)
    }

    #[inline]
    pub fn note(&mut self, hpa: Hpa, touch: Touch) {
        self.witness.note(hpa, touch);
        if self.on {
            self.insert(hpa.0 / PAGE_SIZE, touch);
        }
    }

    fn insert(&mut self, frame: u64, touch: Touch) {
        if self.last == Some((frame, touch)) {
            return;
        }
        if self.chunks.len() >= MAX_CHUNKS && !self.chunks.contains_key(&(frame / 64)) {
            self.overflow = true;
            return;
        }
        self.last = Some((frame, touch));
        let chunk = self.chunks.entry(frame / 64).or_default();
        let bit = 1 << (frame % 64);
        match touch {
            Touch::Read => chunk.read |= bit,
            Touch::Write => chunk.written |= bit,
        }
    }

    pub fn start(&mut self) {
        let witness = core::mem::take(&mut self.witness);
        *self = Self { on: true, command: self.command, witness, ..Self::default() };
    }

    pub fn stop(&mut self) {
        self.on = false;
    }

    pub fn take(&mut self) -> Touched {
        let mut ranges: Vec<TouchedRange> = Vec::new();
        for (number, chunk) in core::mem::take(&mut self.chunks) {
            for bit in 0..64 {
                let (read, written) = (chunk.read >> bit & 1 != 0, chunk.written >> bit & 1 != 0);
                if read || written {
                    push(&mut ranges, TouchedRange { first: number * 64 + bit, frames: 1, read, written });
                }
            }
        }
        self.last = None;
        Touched { ranges, overflow: core::mem::take(&mut self.overflow) }
    }
}

fn push(ranges: &mut Vec<TouchedRange>, next: TouchedRange) {
    match ranges.last_mut() {
        Some(last)
            if last.first + last.frames == next.first && last.read == next.read && last.written == next.written =>
        {
            last.frames += 1;
        }
        _ => ranges.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_split() {
        let mut r = Recorder::default();
        r.note(Hpa(0x1000), Touch::Read);
        assert!(r.take().ranges.is_empty());
        r.start();
        for frame in 62..67 {
            r.note(Hpa(frame << 12 | 8), Touch::Write);
        }
        r.note(Hpa(64 << 12), Touch::Read);
        let t = r.take();
        let firsts: Vec<_> = t.ranges.iter().map(|r| (r.first, r.frames, r.read)).collect();
        assert_eq!(firsts, [(62, 2, false), (64, 1, true), (65, 2, false)]);
        assert!(!t.overflow && r.take().ranges.is_empty());
    }
}
