//! What the blitter must do, compared dword for dword with the same work done by the CPU.

use crate::batch::{Batch, Rect, Surface, Tiling};
use crate::cases::{Outcome, told};
use crate::i915::{Buffer, Engine, Gpu};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Sizes: bytes, and bytes a row.
const SIZES: [(usize, usize); 4] = [(64 * KIB, KIB), (512 * KIB, 2 * KIB), (2 * MIB, 4 * KIB), (8 * MIB, 8 * KIB)];

/// Every pair of layouts that is copied between.
const COPIES: [(Tiling, Tiling); 7] = [
    (Tiling::Linear, Tiling::Linear),
    (Tiling::Linear, Tiling::X),
    (Tiling::X, Tiling::Linear),
    (Tiling::Linear, Tiling::Y),
    (Tiling::Y, Tiling::Linear),
    (Tiling::X, Tiling::Y),
    (Tiling::Y, Tiling::Y),
];

/// All cases of the blitter, with their names.
pub fn all(gpu: &Gpu, engine: Engine, mut report: impl FnMut(&str, Outcome)) {
    for (size, pitch) in SIZES {
        for tiling in [Tiling::Linear, Tiling::X, Tiling::Y] {
            report(&format!("fill-{tiling:?}-{}k", size / KIB).to_lowercase(), fill(gpu, engine, size, pitch, tiling));
        }
    }
    for (size, pitch) in SIZES {
        for (from, to) in COPIES {
            let outcome = copy(gpu, engine, size, pitch, from, to);
            report(&format!("copy-{from:?}-{to:?}-{}k", size / KIB).to_lowercase(), outcome);
        }
    }
    report("fenced", fenced(gpu, engine));
}

/// Pixels that say where they are.
fn pattern(seed: u32, dwords: usize) -> Vec<u32> {
    let mut state = seed | 1;
    (0..dwords)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        })
        .collect()
}

fn surface(buffer: &Buffer<'_>, pitch: usize, tiling: Tiling) -> Surface {
    Surface { address: buffer.address, tiling, pitch, height: buffer.size / pitch }
}

/// Fills all but a margin.
fn fill(gpu: &Gpu, engine: Engine, size: usize, pitch: usize, tiling: Tiling) -> Outcome {
    let buffer = told(gpu.buffer(size), "buffer")?;
    let target = surface(&buffer, pitch, tiling);
    let mut expected = pattern(7, size / 4);
    let map = told(buffer.map(), "map")?;
    map.write_all(&expected);
    let rect = Rect { x1: 3, y1: 1, x2: pitch / 4 - 5, y2: target.height - 2 };
    run(gpu, engine, &Batch::default().fill(&target, rect, 0xc001_d00d).end(), &[&buffer])?;
    for y in rect.y1..rect.y2 {
        for x in rect.x1..rect.x2 {
            expected[target.dword(x, y)] = 0xc001_d00d;
        }
    }
    compare(&map.read_all(), &expected)
}

/// Copies a large rectangle to another place.
fn copy(gpu: &Gpu, engine: Engine, size: usize, pitch: usize, from: Tiling, to: Tiling) -> Outcome {
    let (source_buffer, buffer) = (told(gpu.buffer(size), "source")?, told(gpu.buffer(size), "target")?);
    let (source, target) = (surface(&source_buffer, pitch, from), surface(&buffer, pitch, to));
    let pixels = pattern(11, size / 4);
    told(source_buffer.map(), "map")?.write_all(&pixels);
    let mut expected = pattern(13, size / 4);
    let map = told(buffer.map(), "map")?;
    map.write_all(&expected);
    let rect = Rect { x1: 7, y1: 2, x2: pitch / 4 - 1, y2: target.height - 3 };
    let (left, top) = (2, 5);
    run(gpu, engine, &Batch::default().copy(&source, (left, top), &target, rect).end(), &[&source_buffer, &buffer])?;
    for y in rect.y1..rect.y2 {
        for x in rect.x1..rect.x2 {
            let pixel = source.dword(x - rect.x1 + left, y - rect.y1 + top);
            expected[target.dword(x, y)] = pixels[pixel];
        }
    }
    compare(&map.read_all(), &expected)
}

/// A tiled picture made by the blitter is linear through the aperture, by a fence register.
fn fenced(gpu: &Gpu, engine: Engine) -> Outcome {
    let (size, pitch) = (64 * KIB, KIB);
    let (source_buffer, buffer) = (told(gpu.buffer(size), "source")?, told(gpu.buffer(size), "target")?);
    told(buffer.set_tiling(1, pitch as u32), "tiling")?;
    let (source, target) = (surface(&source_buffer, pitch, Tiling::Linear), surface(&buffer, pitch, Tiling::X));
    let pixels = pattern(17, size / 4);
    told(source_buffer.map(), "map")?.write_all(&pixels);
    let rect = Rect { x1: 0, y1: 0, x2: pitch / 4, y2: target.height };
    run(gpu, engine, &Batch::default().copy(&source, (0, 0), &target, rect).end(), &[&source_buffer, &buffer])?;
    let map = told(buffer.map_gtt(), "aperture map")?;
    compare(&map.read_all(), &pixels)
}

fn run(gpu: &Gpu, engine: Engine, commands: &[u32], buffers: &[&Buffer<'_>]) -> Result<(), String> {
    let context = told(gpu.context(engine), "context")?;
    let batch = told(gpu.batch(commands), "batch")?;
    told(context.submit(&batch, buffers).and_then(|fence| fence.wait()), "submit")
}

fn compare(found: &[u32], expected: &[u32]) -> Outcome {
    let wrong = found.iter().zip(expected).filter(|(found, expected)| found != expected).count();
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(String::new()),
        Some(at) => {
            let (found, expected) = (found[at], expected[at]);
            Err(format!("{wrong} dwords differ, first at {:#x}: {found:#x}, not {expected:#x}", at * 4))
        }
    }
}
