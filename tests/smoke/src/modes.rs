//! The modes beside the cases: load, hangs, timing, and page-table updates.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::Report;
use crate::batch::{Batch, Rect, Surface, Tiling, endless};
use crate::cases::{Outcome, expect, told};
use crate::i915::{Buffer, Class, Context, Engine, Fence, Gpu};

/// How long a hung batch may live: i915's own detection takes four heartbeats of 2.5 s, more under emulation.
const HANG_MS: i32 = 120_000;
/// The piece of work of `load`.
const PIECE: Duration = Duration::from_millis(20);
/// A tick of the engines' clocks: 12 MHz (Skylake to Comet Lake).
const TICK: Duration = Duration::from_nanos(83);
/// Units of a piece at most: a blit of 250 MiB, a batch of 62 MiB.
const MOST_UNITS: usize = 250;
/// Every character costs an emulated machine some hundred microseconds: more would take the CPU from what is measured.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// A byte of configuration space that the software GPU takes as the mark of a phase; others ignore it.
const PHASE_MARK: u64 = 0xf0;

fn open() -> Result<Gpu, String> {
    told(Gpu::open(), "open")
}

fn named(gpu: &Gpu, name: &str) -> Result<Engine, String> {
    let engines = told(gpu.engines(), "engines")?;
    engines.into_iter().find(|engine| engine.to_string() == name).ok_or_else(|| format!("no engine {name}"))
}

/// Marks a phase for whoever counts on the other side.
fn mark(gpu: &Gpu, phase: u8) {
    if let Ok(config) = gpu.config() {
        let _ = config.write_at(&[phase], PHASE_MARK);
    }
}

/// When the load begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At once.
    Now,
    /// When a line comes on standard input: the length of the pieces has been found by then, undisturbed.
    OnLine,
}

/// Keeps engines loaded.
pub fn load(report: &mut Report, seconds: u32, name: &str, begin: Begin) -> Result<(), String> {
    let gpu = open()?;
    let engines = match name {
        "all" => told(gpu.engines(), "engines")?,
        name => vec![named(&gpu, name)?],
    };
    // One by one, or they would disturb each other.
    let pieces =
        engines.into_iter().map(|engine| Ok((engine, calibrate(&gpu, engine)?))).collect::<Result<Vec<_>, String>>()?;
    drop(gpu);
    if begin == Begin::OnLine {
        println!("PAUSE calibrated");
        let mut line = String::new();
        told(std::io::stdin().read_line(&mut line), "a line")?;
    }
    let end = Instant::now() + Duration::from_secs(seconds.into());
    let start = |(engine, units)| std::thread::spawn(move || (engine, load_engine(engine, units, end)));
    let threads: Vec<_> = pieces.into_iter().map(start).collect();
    for thread in threads {
        let (engine, outcome) = thread.join().map_err(|_| "a thread of the load ended badly")?;
        report.case("load", engine, outcome);
    }
    Ok(())
}

/// How many units make a piece. The engine's own clock tells: what submitting costs is no part of a piece, and of many
/// short runs one is not disturbed by whatever else the host does.
fn calibrate(gpu: &Gpu, engine: Engine) -> Result<usize, String> {
    const SAMPLE: usize = 4;
    let work = told(Work::new(gpu, engine, SAMPLE), "work")?;
    let mut best = u32::MAX;
    for _ in 0..16 {
        told(work.submit().and_then(|fence| fence.wait()), "calibration")?;
        best = best.min(told(work.ticks(), "clock")?.max(1));
    }
    let unit = TICK * best / SAMPLE as u32;
    let units = (PIECE.as_nanos() / unit.as_nanos().max(1)).clamp(1, MOST_UNITS as u128) as usize;
    println!("LOAD {engine} unit_us={} units={units}", unit.as_micros());
    Ok(units)
}

/// Work for one engine whose length can be chosen.
struct Work<'g> {
    context: Context<'g>,
    batch: Buffer<'g>,
    /// Begins with the engine's clock before the work and behind it.
    clock: Buffer<'g>,
    data: Vec<Buffer<'g>>,
}

impl<'g> Work<'g> {
    /// One copy of `units` MiB on the blitter, or as many times 65,536 commands that do nothing elsewhere.
    fn new(gpu: &'g Gpu, engine: Engine, units: usize) -> std::io::Result<Self> {
        let (pitch, height) = (8 << 10, units * 128);
        let clock = gpu.buffer(4096)?;
        let mut data = Vec::new();
        let mut commands = Batch::default().store_timestamp(engine, clock.address);
        if engine.class == Class::Copy {
            data = vec![gpu.buffer(pitch * height)?, gpu.buffer(pitch * height)?];
            let surface =
                |buffer: &Buffer<'_>| Surface { address: buffer.address, tiling: Tiling::Linear, pitch, height };
            let rect = Rect { x1: 0, y1: 0, x2: pitch / 4, y2: height };
            commands = commands.copy(&surface(&data[0]), (0, 0), &surface(&data[1]), rect);
        } else {
            commands = commands.nothing(units << 16);
        }
        let commands = commands.store_timestamp(engine, clock.address + 4).end();
        Ok(Self { context: gpu.context(engine)?, batch: gpu.batch(&commands)?, clock, data })
    }

    fn submit(&self) -> std::io::Result<Fence> {
        self.context.submit(&self.batch, &self.data.iter().chain([&self.clock]).collect::<Vec<_>>())
    }

    /// How long the engine worked the last time.
    fn ticks(&self) -> std::io::Result<u32> {
        let clock = self.clock.map()?;
        Ok(clock.get(4).wrapping_sub(clock.get(0)))
    }
}

fn load_engine(engine: Engine, units: usize, end: Instant) -> Outcome {
    let gpu = open()?;
    let work = told(Work::new(&gpu, engine, units), "work")?;
    let (mut queue, mut done, mut next_report) = (VecDeque::new(), 0u64, Instant::now());
    while Instant::now() < end {
        // Two are queued while the third runs.
        while queue.len() < 3 {
            queue.push_back(told(work.submit(), "submit")?);
        }
        if let Some(fence) = queue.pop_front() {
            told(fence.wait(), "load")?;
            done += 1;
        }
        if Instant::now() >= next_report {
            println!("LOAD {engine} done={done} units={units}");
            next_report = Instant::now() + REPORT_EVERY;
        }
    }
    println!("LOAD {engine} done={done} units={units} end");
    for fence in queue {
        told(fence.wait(), "the last ones")?;
    }
    Ok(format!("{done} pieces of {units} units"))
}

/// Hangs an engine again and again, each time as a new client, since a client that hangs too often is banned.
pub fn hang(report: &mut Report, name: &str, count: u32) -> Result<(), String> {
    for number in 1..=count {
        let gpu = open()?;
        let engine = named(&gpu, name)?;
        report.case(&format!("hang-{number}"), engine, hang_one(&gpu, engine));
    }
    Ok(())
}

/// Hangs every engine once, with quick heartbeats where the kernel lets them be set, and stores afterwards.
pub fn hang_once(report: &mut Report) -> Result<(), String> {
    let engines = told(open()?.engines(), "engines")?;
    for engine in engines {
        for card in 0..4 {
            let folder = format!("/sys/class/drm/card{card}/engine/{engine}");
            let _ = std::fs::write(format!("{folder}/heartbeat_interval_ms"), "500");
        }
        let gpu = open()?;
        report.case("hang", engine, hang_one(&gpu, engine));
        report.case("after-hang", engine, store_one(&gpu, engine));
    }
    Ok(())
}

/// Submits a batch that never ends; passes when it has been ended by a reset.
fn hang_one(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let batch = told(gpu.buffer(4096), "buffer")?;
    told(batch.pwrite(0, &endless(&batch)), "commands")?;
    let begun = Instant::now();
    let fence = told(context.submit(&batch, &[]), "submit")?;
    if !told(fence.signals_within(HANG_MS), "fence")? {
        return Err("was not reset".into());
    }
    let after = begun.elapsed().as_millis();
    match told(context.resets(), "reset statistics")? {
        0 => Err(format!("ended after {after} ms without a reset")),
        _ => Ok(format!("reset after {after} ms")),
    }
}

/// One store in a new context.
fn store_one(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let data = told(gpu.buffer(4096), "buffer")?;
    let batch = told(gpu.batch(&Batch::default().store(data.address, 0xa11).end()), "batch")?;
    told(context.submit(&batch, &[&data]).and_then(|fence| fence.wait()), "submit")?;
    expect("the store", told(data.map(), "map")?.get(0), 0xa11)?;
    Ok(String::new())
}

/// How `bench` submits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bench {
    /// Waits for each.
    Waited,
    /// Waits for the last one only.
    Queued,
    /// Looks in memory for what each has stored, then sleeps: nobody waits for an interrupt, and the engine comes to rest
    /// in between, so that what one submission takes does not depend on how quick the host is.
    Polled,
    /// The first two, one after the other.
    Both,
}

/// Times batches that do nothing: phase 1 to 2 waits for each, phase 3 to 4 queues them.
pub fn bench(report: &mut Report, count: u32, name: &str, how: Bench) -> Result<(), String> {
    let gpu = open()?;
    let engine = named(&gpu, name)?;
    let context = told(gpu.context(engine), "context")?;
    let batch = told(gpu.batch(&Batch::default().end()), "batch")?;
    let submit = || context.submit(&batch, &[]);
    // Not counted: the first submission of a context binds its buffers.
    told(submit().and_then(|fence| fence.wait()), "first")?;
    if how == Bench::Polled {
        told(polled(&gpu, &context, count), "polled")?;
        report.case("bench", engine, Ok(String::new()));
        return Ok(());
    }
    if how != Bench::Queued {
        mark(&gpu, 1);
        let mut times = Vec::new();
        for _ in 0..count {
            let begun = Instant::now();
            told(submit().and_then(|fence| fence.wait()), "submit and wait")?;
            times.push(begun.elapsed().as_nanos());
        }
        mark(&gpu, 2);
        times.sort_unstable();
        let mean = times.iter().sum::<u128>() / u128::from(count.max(1));
        let median = times.get(times.len() / 2).copied().unwrap_or(0);
        let least = times.first().copied().unwrap_or(0);
        println!("BENCH wait {engine} n={count} mean_ns={mean} median_ns={median} min_ns={least}");
    }
    if how != Bench::Waited {
        mark(&gpu, 3);
        let begun = Instant::now();
        let mut last = None;
        for _ in 0..count {
            last = Some(told(submit(), "submit")?);
        }
        if let Some(fence) = last {
            told(fence.wait(), "the last one")?;
        }
        let mean = begun.elapsed().as_nanos() / u128::from(count.max(1));
        mark(&gpu, 4);
        println!("BENCH queued {engine} n={count} mean_ns={mean}");
    }
    report.case("bench", engine, Ok(String::new()));
    Ok(())
}

/// Submits batches that store, and sees each store before the next.
fn polled(gpu: &Gpu, context: &Context<'_>, count: u32) -> std::io::Result<()> {
    const REST: Duration = Duration::from_millis(3);
    let data = gpu.buffer(4096)?;
    let map = data.map()?;
    let batch = |value| gpu.batch(&Batch::default().store(data.address, value).end());
    let batches = [batch(1)?, batch(2)?];
    for (batch, value) in batches.iter().zip([1, 2]).cycle().take(count as usize) {
        let begun = Instant::now();
        drop(context.submit(batch, &[&data])?);
        while map.get(0) != value {
            if begun.elapsed() > Duration::from_secs(20) {
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the batch did not store"));
            }
        }
        std::thread::sleep(REST);
    }
    Ok(())
}

/// Binds two buffers of 2 MiB (512 entries of one table) at one address in turn: phase 5 to 6.
pub fn remap(report: &mut Report, count: u32) -> Result<(), String> {
    const SIZE: usize = 2 << 20;
    let gpu = open()?;
    let engine = named(&gpu, "rcs0")?;
    let context = told(gpu.context(engine), "context")?;
    let (even, mut odd) = (told(gpu.buffer(SIZE), "buffer")?, told(gpu.buffer(SIZE), "buffer")?);
    odd.address = even.address;
    let last = even.address + SIZE as u64 - 4;
    let commands = |value| Batch::default().store(even.address, value).store(last, value).end();
    mark(&gpu, 5);
    let begun = Instant::now();
    for number in 0..count {
        let target = if number % 2 == 0 { &even } else { &odd };
        let batch = told(gpu.batch(&commands(number + 1)), "batch")?;
        told(context.submit(&batch, &[target]).and_then(|fence| fence.wait()), "submit")?;
    }
    let mean = begun.elapsed().as_nanos() / u128::from(count.max(1));
    mark(&gpu, 6);
    println!("REMAP n={count} mean_ns={mean}");
    let check = |buffer: &Buffer<'_>, value| -> Outcome {
        let map = told(buffer.map(), "map")?;
        expect("the first store", map.get(0), value)?;
        expect("the last store", map.get(SIZE - 4), value)?;
        Ok(String::new())
    };
    // Of 1 to `count`, odd numbers went to one buffer and even numbers to the other.
    report.case("remap-even", engine, check(&even, count.div_ceil(2) * 2 - 1));
    report.case("remap-odd", engine, check(&odd, count / 2 * 2));
    Ok(())
}
