//! Command buffers. Encodings: Kaby Lake PRM volume 2a (MI and blitter commands).

use crate::i915::{Buffer, Engine};

const MI_BATCH_BUFFER_END: u32 = 0x0a << 23;
const MI_SEMAPHORE_WAIT: u32 = 0x1c << 23 | 2;
const MI_STORE_DATA_IMM: u32 = 0x20 << 23 | 2;
const MI_LOAD_REGISTER_IMM: u32 = 0x22 << 23 | 1;
const MI_STORE_REGISTER_MEM: u32 = 0x24 << 23 | 2;
const MI_FLUSH_DW: u32 = 0x26 << 23 | 2;
const MI_BATCH_BUFFER_START: u32 = 0x31 << 23 | 1;
const XY_COLOR_BLT: u32 = 2 << 29 | 0x50 << 22 | 5;
const XY_SRC_COPY_BLT: u32 = 2 << 29 | 0x53 << 22 | 8;

const SEMAPHORE_POLL: u32 = 1 << 15;
const SEMAPHORE_EQUAL: u32 = 4 << 12;
const SECOND_LEVEL: u32 = 1 << 22;
const PPGTT: u32 = 1 << 8;
const BLT_WRITE_ALL: u32 = 3 << 20;
const BLT_SRC_TILED: u32 = 1 << 15;
const BLT_DST_TILED: u32 = 1 << 11;
const BLT_32BPP: u32 = 3 << 24;
const ROP_COLOUR: u32 = 0xf0 << 16;
const ROP_COPY: u32 = 0xcc << 16;
const BCS_SWCTRL: u32 = 0x2_2200;
const TIMESTAMP: u32 = 0x358;

/// How the pixels of a surface lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tiling {
    Linear,
    X,
    Y,
}

/// A picture of 32-bit pixels that begins a buffer.
#[derive(Clone, Copy)]
pub struct Surface {
    pub address: u64,
    pub tiling: Tiling,
    /// Bytes from a row to the next.
    pub pitch: usize,
    /// Rows.
    pub height: usize,
}

impl Surface {
    /// Which dword of memory holds a pixel (no bit-6 swizzle on these GPUs).
    pub fn dword(&self, x: usize, y: usize) -> usize {
        let byte = x * 4;
        let at = |tile_width: usize, tile_height: usize, inside: usize| {
            (y / tile_height * (self.pitch / tile_width) + byte / tile_width) * 4096 + inside
        };
        let offset = match self.tiling {
            Tiling::Linear => y * self.pitch + byte,
            // 512 bytes by 8 rows, row after row.
            Tiling::X => at(512, 8, y % 8 * 512 + byte % 512),
            // 128 bytes by 32 rows, in columns of 16 bytes.
            Tiling::Y => at(128, 32, byte % 128 / 16 * 512 + y % 32 * 16 + byte % 16),
        };
        offset / 4
    }

    /// The pitch field: dwords when tiled.
    fn pitch_field(&self) -> u32 {
        let pitch = if self.tiling == Tiling::Linear { self.pitch } else { self.pitch / 4 };
        pitch as u32 & 0xffff
    }
}

/// A rectangle: left, top, and the first column and row beyond.
#[derive(Clone, Copy)]
pub struct Rect {
    pub x1: usize,
    pub y1: usize,
    pub x2: usize,
    pub y2: usize,
}

fn corner(x: usize, y: usize) -> u32 {
    (y as u32) << 16 | x as u32 & 0xffff
}

/// Commands under construction.
#[derive(Default)]
pub struct Batch(Vec<u32>);

impl Batch {
    /// Stores a dword.
    pub fn store(self, address: u64, value: u32) -> Self {
        self.with(&[MI_STORE_DATA_IMM, address as u32, (address >> 32) as u32, value])
    }

    /// Waits until the dword at `address` is `value`.
    pub fn await_equal(self, address: u64, value: u32) -> Self {
        let header = MI_SEMAPHORE_WAIT | SEMAPHORE_POLL | SEMAPHORE_EQUAL;
        self.with(&[header, value, address as u32, (address >> 32) as u32])
    }

    /// Calls the batch at `address`, which returns here.
    pub fn call(self, address: u64) -> Self {
        self.with(&[MI_BATCH_BUFFER_START | PPGTT | SECOND_LEVEL, address as u32, (address >> 32) as u32])
    }

    /// Goes on at `address`.
    pub fn jump(self, address: u64) -> Self {
        self.with(&[MI_BATCH_BUFFER_START | PPGTT, address as u32, (address >> 32) as u32])
    }

    /// Stores the engine's timestamp, low half.
    pub fn store_timestamp(self, engine: Engine, address: u64) -> Self {
        let register = engine.base() + TIMESTAMP;
        self.with(&[MI_STORE_REGISTER_MEM, register, address as u32, (address >> 32) as u32])
    }

    /// Does nothing, often.
    pub fn nothing(mut self, times: usize) -> Self {
        self.0.resize(self.0.len() + times, 0);
        self
    }

    /// Fills a rectangle.
    pub fn fill(self, to: &Surface, rect: Rect, colour: u32) -> Self {
        let tiled = if to.tiling == Tiling::Linear { 0 } else { BLT_DST_TILED };
        self.tiling(Tiling::Linear, to.tiling).with(&[
            XY_COLOR_BLT | BLT_WRITE_ALL | tiled,
            BLT_32BPP | ROP_COLOUR | to.pitch_field(),
            corner(rect.x1, rect.y1),
            corner(rect.x2, rect.y2),
            to.address as u32,
            (to.address >> 32) as u32,
            colour,
        ])
    }

    /// Copies what begins at `x`, `y` of `from` to a rectangle of `to`.
    pub fn copy(self, from: &Surface, (x, y): (usize, usize), to: &Surface, rect: Rect) -> Self {
        let src = if from.tiling == Tiling::Linear { 0 } else { BLT_SRC_TILED };
        let dst = if to.tiling == Tiling::Linear { 0 } else { BLT_DST_TILED };
        self.tiling(from.tiling, to.tiling).with(&[
            XY_SRC_COPY_BLT | BLT_WRITE_ALL | src | dst,
            BLT_32BPP | ROP_COPY | to.pitch_field(),
            corner(rect.x1, rect.y1),
            corner(rect.x2, rect.y2),
            to.address as u32,
            (to.address >> 32) as u32,
            corner(x, y),
            from.pitch_field(),
            from.address as u32,
            (from.address >> 32) as u32,
        ])
    }

    /// Tells the blitter which tiled surfaces are Y-tiled; what runs must end before.
    fn tiling(self, from: Tiling, to: Tiling) -> Self {
        let value = 3 << 16 | u32::from(from == Tiling::Y) | u32::from(to == Tiling::Y) << 1;
        self.with(&[MI_FLUSH_DW, 0, 0, 0, MI_LOAD_REGISTER_IMM, BCS_SWCTRL, value])
    }

    /// The finished commands.
    pub fn end(self) -> Vec<u32> {
        let mut commands = self.with(&[MI_BATCH_BUFFER_END]).0;
        commands.resize(commands.len().next_multiple_of(2), 0);
        commands
    }

    fn with(mut self, dwords: &[u32]) -> Self {
        self.0.extend_from_slice(dwords);
        self
    }
}

/// Commands that never end and never let another context in.
pub fn endless(batch: &Buffer<'_>) -> Vec<u32> {
    Batch::default().nothing(8).jump(batch.address).end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_has_a_dword_of_its_own() {
        for tiling in [Tiling::Linear, Tiling::X, Tiling::Y] {
            let surface = Surface { address: 0, tiling, pitch: 1024, height: 64 };
            let mut seen: Vec<usize> = (0..64).flat_map(|y| (0..256).map(move |x| surface.dword(x, y))).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..256 * 64).collect::<Vec<_>>(), "{tiling:?}");
        }
    }

    #[test]
    fn tiles_are_those_of_the_manual() {
        let x = Surface { address: 0, tiling: Tiling::X, pitch: 1024, height: 16 };
        assert_eq!((x.dword(1, 0), x.dword(0, 1), x.dword(128, 0), x.dword(0, 8)), (1, 128, 1024, 2048));
        let y = Surface { address: 0, tiling: Tiling::Y, pitch: 256, height: 64 };
        assert_eq!((y.dword(4, 0), y.dword(0, 1), y.dword(32, 0), y.dword(0, 32)), (128, 4, 1024, 2048));
    }

    #[test]
    fn batches_end_on_a_quadword() {
        assert_eq!(Batch::default().end(), [0x0500_0000, 0]);
        let store = Batch::default().store(0x1_2345_6780, 7).end();
        assert_eq!(store, [0x1000_0002, 0x2345_6780, 1, 7, 0x0500_0000, 0]);
    }
}
