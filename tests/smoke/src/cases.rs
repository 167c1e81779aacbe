//! What every engine must do.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use crate::batch::Batch;
use crate::i915::{Class, Engine, Gpu};

/// The outcome of a case: a remark, or what went wrong.
pub type Outcome = Result<String, String>;

/// Turns an error of the kernel into a sentence.
pub fn told<T>(result: io::Result<T>, doing: &str) -> Result<T, String> {
    result.map_err(|error| format!("{doing}: {error}"))
}

/// Compares, and says what was found instead.
pub fn expect(what: &str, found: u32, expected: u32) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:#x}, not {expected:#x}")) }
}

/// A case that runs on any engine.
pub type Case = fn(&Gpu, Engine) -> Outcome;

/// The cases, by name.
pub const CASES: [(&str, Case); 7] = [
    ("store", store),
    ("queued", queued),
    ("waited", waited),
    ("semaphore", semaphore),
    ("second-level", second_level),
    ("fence-order", fence_order),
    ("engine-time", engine_time),
];

/// A store lands, and nothing beside it.
fn store(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let data = told(gpu.buffer(0x3000), "buffer")?;
    let commands =
        Batch::default().store(data.address + 8, 0x1234_5678).store(data.address + 0x2ffc, 0x9abc_def0).end();
    let batch = told(gpu.batch(&commands), "batch")?;
    told(context.submit(&batch, &[&data]).and_then(|fence| fence.wait()), "submit")?;
    let map = told(data.map(), "map")?;
    for (index, found) in map.read_all().into_iter().enumerate() {
        let expected = match index * 4 {
            8 => 0x1234_5678,
            0x2ffc => 0x9abc_def0,
            _ => 0,
        };
        expect(&format!("offset {:#x}", index * 4), found, expected)?;
    }
    Ok(String::new())
}

/// A thousand batches that do nothing, queued.
fn queued(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let batch = told(gpu.batch(&Batch::default().end()), "batch")?;
    for _ in 1..1000 {
        told(context.submit(&batch, &[]), "submit")?;
    }
    told(context.submit(&batch, &[]).and_then(|fence| fence.wait()), "the last one")?;
    Ok(String::new())
}

/// Three hundred, each waited for.
fn waited(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let batch = told(gpu.batch(&Batch::default().end()), "batch")?;
    for number in 0..300 {
        told(context.submit(&batch, &[]).and_then(|fence| fence.wait()), &format!("number {number}"))?;
    }
    Ok(String::new())
}

/// A batch waits for the CPU, and for nothing else.
fn semaphore(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let data = told(gpu.buffer(4096), "buffer")?;
    let commands =
        Batch::default().store(data.address + 4, 1).await_equal(data.address, 0x600d).store(data.address + 8, 2).end();
    let batch = told(gpu.batch(&commands), "batch")?;
    let map = told(data.map(), "map")?;
    let fence = told(context.submit(&batch, &[&data]), "submit")?;
    for _ in 0..1000 {
        if map.get(4) == 1 {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    expect("the store before the wait", map.get(4), 1)?;
    if told(fence.signals_within(100), "fence")? || map.get(8) != 0 {
        return Err("the batch did not wait".into());
    }
    map.set(0, 0x600d);
    told(fence.wait(), "after the release")?;
    expect("the store after the wait", map.get(8), 2)?;
    Ok(String::new())
}

/// A batch calls another, which stores, and goes on behind the call.
fn second_level(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let data = told(gpu.buffer(4096), "buffer")?;
    let inner = told(gpu.batch(&Batch::default().store(data.address, 0x11).end()), "inner batch")?;
    let commands = Batch::default().call(inner.address).store(data.address + 4, 0x22).end();
    let outer = told(gpu.batch(&commands), "outer batch")?;
    match context.submit(&outer, &[&inner, &data]) {
        // The driver's command parser lets no blitter batch call another: EINVAL or, from 6.1 on, EACCES.
        Err(error)
            if engine.class == Class::Copy && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) =>
        {
            return Ok("the kernel refuses it".into());
        }
        result => told(result.and_then(|fence| fence.wait()), "submit")?,
    }
    let map = told(data.map(), "map")?;
    expect("the inner store", map.get(0), 0x11)?;
    expect("the outer store", map.get(4), 0x22)?;
    Ok(String::new())
}

/// The fence of a request signals while the next one of the same context is blocked.
fn fence_order(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let data = told(gpu.buffer(4096), "buffer")?;
    let map = told(data.map(), "map")?;
    let blocked = |flag: u64| {
        let commands = Batch::default().await_equal(data.address + flag, 1).store(data.address + flag + 4, 1).end();
        told(gpu.batch(&commands), "batch")
    };
    let (first, second) = (blocked(0)?, blocked(64)?);
    let first_fence = told(context.submit(&first, &[&data]), "first")?;
    let second_fence = told(context.submit(&second, &[&data]), "second")?;
    sleep(Duration::from_millis(20));
    if told(first_fence.signals_within(0), "first fence")? {
        return Err("the first batch did not wait".into());
    }
    map.set(0, 1);
    let signalled = told(first_fence.signals_within(5000), "first fence")?;
    let busy = told(first.busy(), "busy")?;
    let overtaken = told(second_fence.signals_within(0), "second fence")? || !told(second.busy(), "busy")?;
    map.set(64, 1);
    told(second_fence.wait(), "second")?;
    match (signalled, busy, overtaken) {
        (false, ..) => Err("the first fence did not signal while the second batch was blocked".into()),
        (_, true, _) => Err("the first batch is busy after its fence has signalled".into()),
        (.., true) => Err("the second batch did not wait".into()),
        _ => Ok(String::new()),
    }
}

/// The engine's timestamp moves between two batches.
fn engine_time(gpu: &Gpu, engine: Engine) -> Outcome {
    let context = told(gpu.context(engine), "context")?;
    let data = told(gpu.buffer(4096), "buffer")?;
    for offset in [0, 4] {
        let commands = Batch::default().store_timestamp(engine, data.address + offset).end();
        let batch = told(gpu.batch(&commands), "batch")?;
        told(context.submit(&batch, &[&data]).and_then(|fence| fence.wait()), "submit")?;
        sleep(Duration::from_millis(5));
    }
    let map = told(data.map(), "map")?;
    let moved = map.get(4).wrapping_sub(map.get(0));
    // Five milliseconds at 12 MHz (Gen9), less half for a clock that is read late.
    if moved > 30_000 { Ok(format!("{moved} ticks")) } else { Err(format!("moved by {moved} ticks in 5 ms")) }
}

/// The CPU reads the timestamp register through the driver, and it moves.
pub fn cpu_time(gpu: &Gpu) -> Outcome {
    let before = told(gpu.timestamp(), "read")?;
    sleep(Duration::from_millis(5));
    let moved = told(gpu.timestamp(), "read")?.wrapping_sub(before);
    if moved > 30_000 { Ok(format!("{moved} ticks")) } else { Err(format!("moved by {moved} ticks in 5 ms")) }
}

/// What is stored through the aperture is what the kernel reads from memory.
pub fn aperture(gpu: &Gpu) -> Outcome {
    const SIZE: usize = 64 << 10;
    let data = told(gpu.buffer(SIZE), "buffer")?;
    let pattern: Vec<u32> = (0..SIZE as u32 / 4).map(|index| index.wrapping_mul(0x9e37_79b9)).collect();
    let map = told(data.map_gtt(), "aperture map")?;
    map.write_all(&pattern);
    // Stores to a PCI device are posted: a load from it waits for them, as one from memory does not.
    expect("the last dword", map.get(SIZE - 4), pattern[SIZE / 4 - 1])?;
    let mut back = vec![0; pattern.len()];
    told(data.pread(0, &mut back), "pread")?;
    if back == pattern { Ok(String::new()) } else { Err("pread finds other data".into()) }
}
