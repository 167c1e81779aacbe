//! Blits against a naive reference, in every tiling.

mod rig;

use std::time::Duration;

use gvt_defs::{Engine, blt, masked, mi, ring};
use gvt_model::{Hpa, Nanos, Profile, Progress};
use rig::{ARB_CHECK, Context, NONE, Rig, cpu_time, ggtt_hpa, store_global};

const SOURCE: u64 = 0x10_0000_0000;
const DESTINATION: u64 = 0x20_0000_0000;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Tiling {
    Linear,
    X,
    Y,
}

const TILINGS: [Tiling; 3] = [Tiling::Linear, Tiling::X, Tiling::Y];

/// Byte offset of a pixel's byte, written for clarity.
fn offset(tiling: Tiling, pitch: usize, x: usize, y: usize) -> usize {
    let (width, height) = match tiling {
        Tiling::Linear => return y * pitch + x,
        Tiling::X => (512, 8),
        Tiling::Y => (128, 32),
    };
    let tile = (y / height) * (pitch / width) + x / width;
    let (x, y) = (x % width, y % height);
    tile * 4096 + if tiling == Tiling::X { y * 512 + x } else { x / 16 * 512 + y * 16 + x % 16 }
}

struct Bench {
    rig: Rig,
    context: Context,
    source: Hpa,
    destination: Hpa,
}

/// Two surfaces of `pages` pages, filled with noise.
fn bench(pages: u64) -> Bench {
    let mut rig = Rig::with(Profile::default());
    let context = rig.context(Engine::Bcs);
    let source = rig.map_fresh(context.root, SOURCE, pages);
    let destination = rig.map_fresh(context.root, DESTINATION, pages);
    let mut seed = 7_u32;
    for surface in [source, destination] {
        let start = (surface.0 - rig::RAM_BASE) as usize;
        for byte in &mut rig.ram.bytes_mut()[start..start + pages as usize * 4096] {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
            *byte = (seed >> 16) as u8;
        }
    }
    Bench { rig, context, source, destination }
}

impl Bench {
    fn surface(&self, at: Hpa, len: usize) -> Vec<u8> {
        let start = (at.0 - rig::RAM_BASE) as usize;
        self.rig.ram.bytes()[start..start + len].to_vec()
    }

    fn run(&mut self, commands: &[u32]) {
        self.rig.emit(&mut self.context, commands);
        assert_eq!(self.rig.submit_and_run(&self.context), Progress::Idle);
        self.rig.no_findings();
    }

    fn swctrl(source: Tiling, destination: Tiling) -> Vec<u32> {
        let y = |tiling, bit| if tiling == Tiling::Y { masked::enable(bit) } else { masked::disable(bit) };
        let value = y(source, blt::SWCTRL_SOURCE_Y) | y(destination, blt::SWCTRL_DESTINATION_Y);
        vec![mi::load_register_imm(1), Engine::Bcs.base() + ring::SWCTRL, value]
    }
}

fn pitch_field(tiling: Tiling, pitch: usize) -> u32 {
    if tiling == Tiling::Linear { pitch as u32 } else { pitch as u32 / 4 }
}

fn depth_field(bytes: usize) -> u32 {
    match bytes {
        1 => blt::DEPTH_8,
        2 => blt::DEPTH_16_565,
        _ => blt::DEPTH_32,
    }
}

const WRITE: u32 = blt::WRITE_RGB | blt::WRITE_ALPHA;

#[test]
fn copies_in_all_tilings_and_depths() {
    let (pitch, rows) = (1024, 96);
    for from in TILINGS {
        for to in TILINGS {
            for bytes in [1, 2, 4] {
                let mut b = bench(32);
                let size = pitch * rows;
                let source = b.surface(b.source, size);
                let mut want = b.surface(b.destination, size);
                let (x1, y1, x2, y2, sx, sy) = (3, 5, pitch / bytes - 8, 77, 6, 11);
                for y in y1..y2 {
                    for x in x1 * bytes..x2 * bytes {
                        let read = offset(from, pitch, x - x1 * bytes + sx * bytes, y - y1 + sy);
                        want[offset(to, pitch, x, y)] = source[read];
                    }
                }
                let mut header = blt::with_length(blt::XY_SRC_COPY_BLT, 10) | WRITE;
                if from != Tiling::Linear {
                    header |= blt::SOURCE_TILED;
                }
                if to != Tiling::Linear {
                    header |= blt::DESTINATION_TILED;
                }
                let mut commands = Bench::swctrl(from, to);
                commands.extend([
                    header,
                    depth_field(bytes) | blt::ROP_COPY << 16 | pitch_field(to, pitch),
                    (y1 << 16 | x1) as u32,
                    (y2 << 16 | x2) as u32,
                    DESTINATION as u32,
                    (DESTINATION >> 32) as u32,
                    (sy << 16 | sx) as u32,
                    pitch_field(from, pitch),
                    SOURCE as u32,
                    (SOURCE >> 32) as u32,
                ]);
                b.run(&commands);
                assert!(b.surface(b.destination, size) == want, "{from:?} to {to:?}, {bytes} bytes a pixel");
            }
        }
    }
}

#[test]
fn fast_copies() {
    let (pitch, rows) = (1024, 64);
    for from in TILINGS {
        for to in TILINGS {
            let mut b = bench(16);
            let size = pitch * rows;
            let source = b.surface(b.source, size);
            let mut want = b.surface(b.destination, size);
            for y in 0..rows {
                for x in 0..pitch {
                    want[offset(to, pitch, x, y)] = source[offset(from, pitch, x, y)];
                }
            }
            let code = |t| TILINGS.iter().position(|x| *x == t).unwrap() as u32;
            let header = blt::with_length(blt::XY_FAST_COPY_BLT, 10) | code(from) << 20 | code(to) << 13;
            b.run(&[
                header,
                3 << 24 | pitch_field(to, pitch),
                0,
                ((rows << 16) | (pitch / 4)) as u32,
                DESTINATION as u32,
                (DESTINATION >> 32) as u32,
                0,
                pitch_field(from, pitch),
                SOURCE as u32,
                (SOURCE >> 32) as u32,
            ]);
            assert!(b.surface(b.destination, size) == want, "{from:?} to {to:?}");
        }
    }
}

fn fill(to: Tiling, format: u32, flags: u32, corners: [u32; 2], colour: u32) -> Vec<u32> {
    let tiled = if to == Tiling::Linear { 0 } else { blt::DESTINATION_TILED };
    vec![
        blt::with_length(blt::XY_COLOR_BLT, 7) | flags | tiled,
        format,
        corners[0],
        corners[1],
        DESTINATION as u32,
        (DESTINATION >> 32) as u32,
        colour,
    ]
}

#[test]
fn fills_with_masks_clipping_and_raster_operations() {
    let (pitch, rows) = (512, 64);
    let size = pitch * rows;
    for to in TILINGS {
        for (flags, keep) in [
            (WRITE, [false; 4]),
            (blt::WRITE_RGB, [false, false, false, true]),
            (blt::WRITE_ALPHA, [true, true, true, false]),
        ] {
            for rop in [0xF0_u32, 0x5A, 0x00, 0x55] {
                let mut b = bench(8);
                let mut want = b.surface(b.destination, size);
                let colour = 0xA1B2_C3D4_u32.to_le_bytes();
                // The rectangle 2,3 - 100,50 clipped to 10,0 - 90,40.
                for y in 3..40 {
                    for x in 10 * 4..90 * 4 {
                        let byte = &mut want[offset(to, pitch, x, y)];
                        let new = match rop {
                            0xF0 => colour[x % 4],
                            0x5A => *byte ^ colour[x % 4],
                            0x00 => 0,
                            _ => !*byte,
                        };
                        if !keep[x % 4] {
                            *byte = new;
                        }
                    }
                }
                let format = blt::DEPTH_32 | rop << 16 | blt::CLIPPING | pitch_field(to, pitch);
                let mut commands = Bench::swctrl(Tiling::Linear, to);
                commands.extend([blt::with_length(blt::SETUP_CLIP_BLT, 3), 10, 40 << 16 | 90]);
                commands.extend(fill(to, format, flags, [3 << 16 | 2, 50 << 16 | 100], 0xA1B2_C3D4));
                b.run(&commands);
                assert!(b.surface(b.destination, size) == want, "{to:?} {rop:#x} {keep:?}");
            }
        }
    }
}

#[test]
fn overlapping_copies_run_in_the_right_direction() {
    let (pitch, rows) = (1024, 64);
    let size = pitch * rows;
    for (dx, dy) in [(5_usize, 0_usize), (0, 3), (5, 3)] {
        for up in [false, true] {
            for tiling in TILINGS {
                let mut b = bench(16);
                let before = b.surface(b.destination, size);
                let mut want = before.clone();
                let (to, from) = if up { ((0, 0), (dx, dy)) } else { ((dx, dy), (0, 0)) };
                let (width, height) = (200, 50);
                for y in 0..height {
                    for x in 0..width * 4 {
                        let read = before[offset(tiling, pitch, x + from.0 * 4, y + from.1)];
                        want[offset(tiling, pitch, x + to.0 * 4, y + to.1)] = read;
                    }
                }
                let tiled = if tiling == Tiling::Linear { 0 } else { blt::SOURCE_TILED | blt::DESTINATION_TILED };
                let mut commands = Bench::swctrl(tiling, tiling);
                commands.extend([
                    blt::with_length(blt::XY_SRC_COPY_BLT, 10) | WRITE | tiled,
                    blt::DEPTH_32 | blt::ROP_COPY << 16 | pitch_field(tiling, pitch),
                    (to.1 << 16 | to.0) as u32,
                    ((to.1 + height) << 16 | (to.0 + width)) as u32,
                    DESTINATION as u32,
                    (DESTINATION >> 32) as u32,
                    (from.1 << 16 | from.0) as u32,
                    pitch_field(tiling, pitch),
                    DESTINATION as u32,
                    (DESTINATION >> 32) as u32,
                ]);
                b.run(&commands);
                assert!(b.surface(b.destination, size) == want, "{dx} {dy} up {up} {tiling:?}");
            }
        }
    }
}

#[test]
fn linear_commands_count_bytes() {
    let mut b = bench(16);
    let pitch = 256;
    let source = b.surface(b.source, pitch * 16);
    let mut want = b.surface(b.destination, pitch * 16);
    for y in 0..10 {
        want[y * pitch..y * pitch + 37].copy_from_slice(&source[y * pitch..y * pitch + 37]);
    }
    for y in 10..12 {
        want[y * pitch..y * pitch + 8].fill(0x5C);
    }
    let line = DESTINATION + 10 * pitch as u64;
    b.run(&[
        blt::with_length(blt::SRC_COPY_BLT, 8),
        blt::ROP_COPY << 16 | pitch as u32,
        10 << 16 | 37,
        DESTINATION as u32,
        (DESTINATION >> 32) as u32,
        pitch as u32,
        SOURCE as u32,
        (SOURCE >> 32) as u32,
    ]);
    b.run(&[
        blt::with_length(blt::COLOR_BLT, 6),
        blt::ROP_PATTERN << 16 | pitch as u32,
        2 << 16 | 8,
        line as u32,
        (line >> 32) as u32,
        0x5C,
    ]);
    assert!(b.surface(b.destination, pitch * 16) == want);
}

/// A copy of 8 MiB is done in many slices; another engine's work is not held up, and a preempting one gets its turn
/// when the blit is over.
#[test]
fn a_big_blit_shares_the_gpu_and_is_quick() {
    for tiling in TILINGS {
        let mut b = bench(2048);
        let pitch = 8192;
        let tiled = if tiling == Tiling::Linear { 0 } else { blt::SOURCE_TILED | blt::DESTINATION_TILED };
        let mut commands = Bench::swctrl(tiling, tiling);
        commands.extend([
            blt::with_length(blt::XY_SRC_COPY_BLT, 10) | WRITE | tiled,
            blt::DEPTH_32 | blt::ROP_COPY << 16 | pitch_field(tiling, pitch),
            0,
            ((1024 << 16) | (pitch / 4)) as u32,
            DESTINATION as u32,
            (DESTINATION >> 32) as u32,
            0,
            pitch_field(tiling, pitch),
            SOURCE as u32,
            (SOURCE >> 32) as u32,
        ]);
        b.rig.emit(&mut b.context, &commands);
        b.rig.emit(&mut b.context, &[ARB_CHECK]);
        b.rig.submit(Engine::Bcs, b.context.descriptor(), NONE);
        let out = b.rig.ggtt_alloc(1);
        let mut other = b.rig.context(Engine::Rcs);
        b.rig.emit(&mut other, &store_global(out, 1));
        b.rig.submit(Engine::Rcs, other.descriptor(), NONE);
        assert_eq!(b.rig.step(1000), Progress::Busy);
        assert_eq!(b.rig.ram.read_u32(ggtt_hpa(out)), 1, "beside the blit");
        let begun = cpu_time();
        let mut slices = 0;
        while b.rig.gpu.step(&mut b.rig.ram, Nanos(b.rig.now), 5000) == Progress::Busy {
            slices += 1;
        }
        let took = cpu_time() - begun;
        println!("8 MiB {tiling:?}: {took:?} in {slices} slices");
        assert!(slices > 10);
        assert!(took < Duration::from_millis(100), "{took:?}");
        let size = pitch * 1024;
        assert!(b.surface(b.source, size) == b.surface(b.destination, size));
        b.rig.no_findings();
    }
}
