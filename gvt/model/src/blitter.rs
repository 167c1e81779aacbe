//! 2D blits: fills and copies of rectangles, done row by row and divided over budgets.

use gvt_defs::blt::{
    self, CLIPPING, DESTINATION_TILED, FAST_DESTINATION_TILING_SHIFT, FAST_SOURCE_TILING_SHIFT, SOURCE_TILED,
    SWCTRL_DESTINATION_Y, SWCTRL_SOURCE_Y, WRITE_ALPHA, WRITE_RGB,
};
use gvt_defs::command::blt_command;
use gvt_defs::operand::Given;
use gvt_defs::ring;

use crate::engine::{Exec, Flow};
use crate::rop;
use crate::surface::Surface;
use crate::tiling::Tiling;

/// Bytes of a row handled at once.
const PIECE: usize = 4096;

/// Bytes that one unit of budget pays for.
const BYTES_A_UNIT: usize = 64;

/// A rectangle in pixels; the second corner is exclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rect {
    x1: i64,
    y1: i64,
    x2: i64,
    y2: i64,
}

impl Rect {
    /// From two dwords of `y << 16 | x`, signed.
    const fn new(top_left: u32, bottom_right: u32) -> Self {
        Self {
            x1: top_left as i16 as i64,
            y1: (top_left >> 16) as i16 as i64,
            x2: bottom_right as i16 as i64,
            y2: (bottom_right >> 16) as i16 as i64,
        }
    }

    fn clip(self, to: Self) -> Self {
        Self { x1: self.x1.max(to.x1), y1: self.y1.max(to.y1), x2: self.x2.min(to.x2), y2: self.y2.min(to.y2) }
    }

    const fn is_empty(&self) -> bool {
        self.x1 >= self.x2 || self.y1 >= self.y2
    }
}

/// The clip rectangle that set-up commands leave behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clip(Rect);

impl Default for Clip {
    fn default() -> Self {
        Self(Rect { x1: i64::MIN, y1: i64::MIN, x2: i64::MAX, y2: i64::MAX })
    }
}

impl Clip {
    pub fn set(&mut self, top_left: u32, bottom_right: u32) {
        self.0 = Rect::new(top_left, bottom_right);
    }
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// The pixel, repeated to 16 bytes.
    Colour([u8; 16]),
    Surface {
        surface: Surface,
        x: i64,
        y: i64,
    },
}

/// A blit under way. All `x` are in bytes.
#[derive(Clone, Debug)]
pub(crate) struct BlitJob {
    source: Source,
    destination: Surface,
    x: i64,
    y: i64,
    width: usize,
    height: i64,
    rop: u8,
    /// Bytes of each group of four that are not written.
    keep: [bool; 4],
    /// From the end to the beginning: the source overlaps what comes later.
    backwards: bool,
    /// Rows done, and bytes done of the row at hand.
    rows: i64,
    bytes: usize,
}

impl Exec<'_> {
    /// Executes a 2D command that draws.
    pub fn blit(&mut self, header: u32, dwords: u32) -> Flow {
        if self.state.blit.is_none() {
            let job = match blt::opcode(header) {
                blt::XY_COLOR_BLT if dwords >= 7 => self.xy_colour(header),
                blt::XY_SRC_COPY_BLT if dwords >= 10 => self.xy_copy(header),
                blt::XY_FAST_COPY_BLT if dwords >= 10 => self.fast_copy(header),
                blt::COLOR_BLT if dwords >= 6 => self.linear_colour(header),
                blt::SRC_COPY_BLT if dwords >= 8 => self.linear_copy(header),
                _ => return self.unmodelled(header, dwords),
            };
            if job.is_none() {
                return Flow::Next(dwords);
            }
            self.state.blit = job;
        }
        if self.proceed() { Flow::Next(dwords) } else { Flow::Again }
    }

    /// Works on the blit at hand; says whether it is done.
    fn proceed(&mut self) -> bool {
        let Some(mut job) = self.state.blit.take() else {
            return true;
        };
        while job.rows < job.height {
            if self.budget == 0 {
                self.state.blit = Some(job);
                return false;
            }
            let len = (job.width - job.bytes).min(PIECE);
            self.piece(&job, len);
            self.budget = self.budget.saturating_sub(1 + (len / BYTES_A_UNIT) as u32);
            job.bytes += len;
            if job.bytes == job.width {
                (job.rows, job.bytes) = (job.rows + 1, 0);
            }
        }
        true
    }

    /// Draws `len` bytes of the row at hand.
    fn piece(&mut self, job: &BlitJob, len: usize) {
        let (row, at) = if job.backwards {
            (job.height - 1 - job.rows, job.width - job.bytes - len)
        } else {
            (job.rows, job.bytes)
        };
        let (x, y) = (job.x + at as i64, job.y + row);
        let mut drawn = [0; PIECE];
        let Some(drawn) = drawn.get_mut(..len) else {
            return;
        };
        let plain = match job.source {
            Source::Colour(pixel) => {
                for (i, byte) in drawn.iter_mut().enumerate() {
                    *byte = pixel[(at + i) & 15];
                }
                job.rop == blt::ROP_PATTERN as u8
            }
            Source::Surface { surface, x, y } => {
                self.view().read_row(&surface, x + at as i64, y + row, drawn);
                job.rop == blt::ROP_COPY as u8
            }
        };
        if !plain || job.keep != [false; 4] {
            self.blend(job, at, (x, y), drawn);
        }
        self.view().write_row(&job.destination, x, y, drawn);
    }

    /// Applies the raster operation and the byte mask.
    fn blend(&mut self, job: &BlitJob, at: usize, (x, y): (i64, i64), drawn: &mut [u8]) {
        let mut old = [0; PIECE];
        let Some(old) = old.get_mut(..drawn.len()) else {
            return;
        };
        let masked = job.keep != [false; 4];
        if masked || rop::needs_destination(job.rop) {
            self.view().read_row(&job.destination, x, y, old);
        }
        let mut new = [0; PIECE];
        let Some(new) = new.get_mut(..drawn.len()) else {
            return;
        };
        new.copy_from_slice(old);
        // A colour stands for the pattern, a surface for the source; the other input is not used by sane codes.
        rop::combine(job.rop, new, drawn, drawn);
        for (i, byte) in drawn.iter_mut().enumerate() {
            let keep = masked && job.keep[(at + i) & 3];
            *byte = if keep { old[i] } else { new[i] };
        }
    }

    fn swctrl(&self) -> u32 {
        self.device.ring(self.state.engine, ring::SWCTRL)
    }

    /// The n-th address of the blit at hand.
    fn base(&mut self, header: u32, n: usize) -> u64 {
        match blt_command(header).and_then(|command| command.memory.get(n)).map(|memory| memory.given) {
            Some(Given::Wide(at)) => self.operand64(at.into()) & 0xFFFF_FFFF_FFFF,
            _ => 0,
        }
    }

    fn destination(&mut self, header: u32, format: u32) -> Surface {
        let tiled = header & DESTINATION_TILED != 0;
        let tiling = tiling(tiled, self.swctrl() & SWCTRL_DESTINATION_Y != 0);
        Surface { base: self.base(header, 0), pitch: pitch(format, tiling), tiling }
    }

    fn rect(&mut self, format: u32) -> Rect {
        let rect = Rect::new(self.operand(2), self.operand(3));
        if format & CLIPPING != 0 { rect.clip(self.state.clip.0) } else { rect }
    }

    fn xy_colour(&mut self, header: u32) -> Option<BlitJob> {
        let format = self.operand(1);
        let rect = self.rect(format);
        let destination = self.destination(header, format);
        let colour = self.operand(6);
        job(header, format, rect, destination, Source::Colour(pixel(colour, depth(format))))
    }

    fn xy_copy(&mut self, header: u32) -> Option<BlitJob> {
        let format = self.operand(1);
        let wanted = Rect::new(self.operand(2), self.operand(3));
        let rect = self.rect(format);
        let destination = self.destination(header, format);
        let corner = Rect::new(self.operand(6), 0);
        let source_tiling = tiling(header & SOURCE_TILED != 0, self.swctrl() & SWCTRL_SOURCE_Y != 0);
        let surface =
            Surface { base: self.base(header, 1), pitch: pitch(self.operand(7), source_tiling), tiling: source_tiling };
        let bytes = depth(format);
        let source = Source::Surface {
            surface,
            x: (corner.x1 + rect.x1 - wanted.x1) * bytes,
            y: corner.y1 + rect.y1 - wanted.y1,
        };
        job(header, format, rect, destination, source)
    }

    fn fast_copy(&mut self, header: u32) -> Option<BlitJob> {
        let format = self.operand(1);
        let rect = Rect::new(self.operand(2), self.operand(3));
        let fast = |code: u32| match code & 3 {
            0 => Some(Tiling::Linear),
            1 => Some(Tiling::X),
            2 => Some(Tiling::Y),
            _ => None,
        };
        let to = fast(header >> FAST_DESTINATION_TILING_SHIFT);
        let from = fast(header >> FAST_SOURCE_TILING_SHIFT);
        // Bits 31 and 30 say Yf, which is not modelled any more than Ys.
        let (Some(to), Some(from), 0) = (to, from, format >> 30) else {
            self.unmodelled(header, 10);
            return None;
        };
        let bytes: i64 = match format >> 24 & 7 {
            0 => 1,
            1 => 2,
            3 => 4,
            4 => 8,
            _ => 16,
        };
        let corner = Rect::new(self.operand(6), 0);
        let destination = Surface { base: self.base(header, 0), pitch: pitch(format, to), tiling: to };
        let surface = Surface { base: self.base(header, 1), pitch: pitch(self.operand(7), from), tiling: from };
        let source = Source::Surface { surface, x: corner.x1 * bytes, y: corner.y1 };
        (!rect.is_empty()).then(|| BlitJob::new(rect, bytes, destination, source, blt::ROP_COPY as u8))
    }

    /// COLOR_BLT and SRC_COPY_BLT count the width in bytes.
    fn linear_rect(&mut self) -> Rect {
        let size = self.operand(2);
        Rect { x1: 0, y1: 0, x2: i64::from(size & 0xFFFF), y2: i64::from(size >> 16) }
    }

    fn linear_colour(&mut self, header: u32) -> Option<BlitJob> {
        let format = self.operand(1);
        let rect = self.linear_rect();
        let destination = self.destination(header & !DESTINATION_TILED, format);
        let colour = pixel(self.operand(5), depth(format));
        linear_job(header, format, rect, destination, Source::Colour(colour))
    }

    fn linear_copy(&mut self, header: u32) -> Option<BlitJob> {
        let format = self.operand(1);
        let rect = self.linear_rect();
        let destination = self.destination(header & !DESTINATION_TILED, format);
        let surface = Surface {
            base: self.base(header, 1),
            pitch: pitch(self.operand(5), Tiling::Linear),
            tiling: Tiling::Linear,
        };
        linear_job(header, format, rect, destination, Source::Surface { surface, x: 0, y: 0 })
    }
}

impl BlitJob {
    fn new(rect: Rect, bytes: i64, destination: Surface, source: Source, rop: u8) -> Self {
        let (x, y) = (rect.x1 * bytes, rect.y1);
        let backwards = match source {
            Source::Colour(_) => false,
            Source::Surface { surface, x: from_x, y: from_y } => {
                backwards(&surface, (from_x, from_y), &destination, (x, y))
            }
        };
        Self {
            source,
            destination,
            x,
            y,
            width: ((rect.x2 - rect.x1) * bytes) as usize,
            height: rect.y2 - rect.y1,
            rop,
            keep: [false; 4],
            backwards,
            rows: 0,
            bytes: 0,
        }
    }
}

/// Whether the copy must run from its end: the destination begins later in the same memory.
fn backwards(from: &Surface, (from_x, from_y): (i64, i64), to: &Surface, (to_x, to_y): (i64, i64)) -> bool {
    if from.tiling != Tiling::Linear || to.tiling != Tiling::Linear {
        return from == to && (to_y, to_x) > (from_y, from_x);
    }
    let start =
        |surface: &Surface, x, y| surface.base.wrapping_add_signed(surface.tiling.locate(surface.pitch, x, y).0);
    let after = start(to, to_x, to_y) > start(from, from_x, from_y);
    // With a negative pitch memory runs upwards as rows go down.
    if to.pitch < 0 && to_y != from_y { !after } else { after }
}

fn job(header: u32, format: u32, rect: Rect, destination: Surface, source: Source) -> Option<BlitJob> {
    if rect.is_empty() {
        return None;
    }
    let bytes = depth(format);
    let mut job = BlitJob::new(rect, bytes, destination, source, (format >> blt::ROP_SHIFT) as u8);
    if bytes == 4 {
        let (rgb, alpha) = (header & WRITE_RGB == 0, header & WRITE_ALPHA == 0);
        job.keep = [rgb, rgb, rgb, alpha];
    }
    Some(job)
}

fn linear_job(header: u32, format: u32, rect: Rect, destination: Surface, source: Source) -> Option<BlitJob> {
    let mut made = job(header, format & !(3 << blt::DEPTH_SHIFT), rect, destination, source)?;
    if depth(format) == 4 {
        let (rgb, alpha) = (header & WRITE_RGB == 0, header & WRITE_ALPHA == 0);
        made.keep = [rgb, rgb, rgb, alpha];
    }
    Some(made)
}

const fn tiling(tiled: bool, y: bool) -> Tiling {
    match (tiled, y) {
        (false, _) => Tiling::Linear,
        (true, false) => Tiling::X,
        (true, true) => Tiling::Y,
    }
}

/// The pitch field: signed bytes of a linear surface, dwords of a tiled one.
const fn pitch(field: u32, tiling: Tiling) -> i64 {
    match tiling {
        Tiling::Linear => field as i16 as i64,
        _ => (field & 0xFFFF) as i64 * 4,
    }
}

/// Bytes of a pixel.
const fn depth(format: u32) -> i64 {
    match format >> blt::DEPTH_SHIFT & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => 4,
    }
}

fn pixel(colour: u32, bytes: i64) -> [u8; 16] {
    let colour = colour.to_le_bytes();
    core::array::from_fn(|i| colour[i % bytes as usize])
}
