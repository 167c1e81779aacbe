//! Attacks by what is reached: through fences and the aperture, by commands that read registers, by rings that are
//! rewritten while they wait, by indices into status pages, and by one CPU against the mediator's work for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gvt_defs::gfx::{PIPE_CONTROL_HEADER, pipe_control};
use gvt_defs::{Engine, GgttAddr, mi, reg, ring};

use crate::attacks::{Attack, privileged_batch};
use crate::gpu::{Context, DEVICE, Gpu, engines};
use crate::hostile::{End, pinned, sound};
use crate::sys::{PAGE, Registers};

/// As in `attacks`.
pub const SUBMISSIONS: [(&str, End, Attack); 4] = [
    ("opened-registers", End::Any, opened_registers),
    ("waiting-ring", End::Any, |gpu, c| waiting_ring(gpu, c, 16)),
    ("waiting-ring-again", End::Any, |gpu, c| waiting_ring(gpu, c, 0)),
    ("index-stores", End::Any, index_stores),
];

/// Pages at either end of the slice that are filled and read.
const EDGE: u32 = 64;
/// What the pages under the aperture hold, with their number and the dword's.
const TAG: u32 = 0xA900_0000;

/// The mappable part of the partition, page by page of memory that says where it is.
struct Slice {
    aperture: Registers,
    base: u32,
    bytes: u32,
}

impl Slice {
    fn new(gpu: &mut Gpu) -> Result<Self, String> {
        let (base, bytes) = gpu.partition[0];
        let path = format!("{DEVICE}/resource2");
        let size = std::fs::metadata(&path).map_err(|error| error.to_string())?.len();
        let aperture = Registers::map(&path, size as usize).map_err(|error| error.to_string())?;
        let pages = gpu.pages(2 * EDGE as usize);
        for (number, page) in pages.iter().enumerate() {
            (0..PAGE / 4).for_each(|index| gpu.memory.set(*page, index, TAG | (number << 10 | index) as u32));
        }
        // All of the slice, so that whatever a fence leads to is one of them.
        for page in 0..bytes / PAGE as u32 {
            let target = gpu.memory.gpa(pages[page as usize % pages.len()]).0 | 1;
            gpu.set_global(GgttAddr(base + page * PAGE as u32), target);
        }
        gpu.write(reg::GFX_FLSH_CNTL, 1);
        Ok(Self { aperture, base, bytes })
    }

    /// Reads some dwords of each page at both ends of the slice: they are this program's, wherever the fence leads.
    fn check(&self, what: &str) -> Result<(), String> {
        let pages = self.bytes / PAGE as u32;
        for page in (0..EDGE).chain(pages - EDGE..pages) {
            for inner in [0, 0x7FC, 0xFFC] {
                let at = self.base + page * PAGE as u32 + inner;
                let found = self.aperture.load(at, 4) as u32;
                if found & 0xFF00_0000 != TAG {
                    return Err(format!("{what}: the aperture reads {found:#x} at {at:#x}"));
                }
                self.aperture.store(at, 4, found.into());
            }
        }
        Ok(())
    }
}

/// Fences whose tiles reach out of the slice, and the aperture outside it.
pub fn aperture(gpu: &mut Gpu) -> Result<(), String> {
    let slice = Slice::new(gpu)?;
    let (hidden, _) = gpu.partition[1];
    let end = slice.base + slice.bytes;
    let page = PAGE as u32;
    let fences = [
        ("none", 0, 0),
        ("sound", slice.base | 1, (slice.base + 0xF000) | 7),
        ("to the hidden range", (end - page) | 1, hidden | 7),
        ("X tiles past the end", (end - 64 * page) | 1, (end - page) | 0x7FF),
        ("Y tiles past the end", (end - 64 * page) | 3, (end - page) | 0x7FF),
        ("all there is", 1, 0xFFFF_F7FF),
        ("from below", slice.base.saturating_sub(page) | 1, (end - page) | 7),
    ];
    for (number, (what, low, high)) in (0..).zip(fences) {
        let at = reg::FENCE0 + 8 * (number % 4);
        [(at, 0), (at + 4, high), (at, low)].into_iter().for_each(|(offset, value)| gpu.write(offset, value));
        slice.check(what)?;
    }
    (0..4).for_each(|number| gpu.write(reg::FENCE0 + 8 * number, 0));
    // Outside the slice nothing is, and stores go nowhere.
    let outside = (0..slice.aperture.bytes() as u32).step_by(1 << 20);
    for at in outside.filter(|at| !(slice.base..end).contains(at)) {
        slice.aperture.store(at, 4, 0xBAD);
        let found = slice.aperture.load(at, 4) as u32;
        if found != 0 && found != u32::MAX {
            return Err(format!("the aperture reads {found:#x} at {at:#x}, outside the slice"));
        }
    }
    engines().try_for_each(|engine| sound(gpu, engine))
}

/// Registers of an engine that tell of the machine or of others.
const SECRETS: [u32; 5] = [ring::HWS_PGA, ring::START, ring::ACTHD, ring::PDP0_LDW, ring::PDP0_UDW];
/// Registers that one batch stores.
const LOT: usize = 200;

/// Stores every register around the engines to memory.
pub fn reads(gpu: &mut Gpu) -> Result<(), String> {
    for engine in engines() {
        for other in engines() {
            let window: Vec<u32> = (0..0x800).step_by(4).map(|local| other.base() + local).collect();
            for lot in window.chunks(LOT) {
                let found = stored(gpu, engine, lot)?;
                for (register, value) in lot.iter().zip(found) {
                    let secret = SECRETS.contains(&(register - other.base()));
                    // Prism's part of the graphics addresses.
                    let address = (0xFC00_0000..0xFFFF_0000).contains(&value);
                    if (secret && value != 0) || address {
                        return Err(format!("{} stores {value:#x} of {register:#x}", engine.info().name));
                    }
                }
            }
        }
    }
    Ok(())
}

/// What a privileged batch stores of these registers.
fn stored(gpu: &mut Gpu, engine: Engine, registers: &[u32]) -> Result<Vec<u32>, String> {
    let (page, to) = pinned(gpu, &[0xDEAD; PAGE / 4]);
    let mut commands = Vec::new();
    for (n, register) in (0..).zip(registers) {
        let store = mi::with_length(mi::STORE_REGISTER_MEM, 4) | mi::GLOBAL_GTT;
        commands.extend([store, *register, to + 4 * n, 0]);
    }
    commands.push(mi::header(mi::BATCH_BUFFER_END));
    let (_, at) = pinned(gpu, &commands);
    let mut c = gpu.context(engine);
    if !gpu.execute(&mut c, &privileged_batch(at)) {
        return Err(format!("{} does not store registers", engine.info().name));
    }
    Ok((0..registers.len()).map(|index| gpu.memory.get(page, index)).collect())
}

/// Opens registers to process batches, and lets one write them.
fn opened_registers(gpu: &mut Gpu, c: &mut Context) {
    let base = c.engine.base();
    let opened = [base + ring::HWS_PGA, base + ring::IMR, base + ring::GFX_MODE, reg::GDRST, 0x4DF4, 0xB118, 0x7010];
    for (slot, register) in (0u32..).zip(opened) {
        gpu.write(base + ring::FORCE_TO_NONPRIV + 4 * slot, register | 3);
    }
    let commands: Vec<u32> = opened.iter().flat_map(|offset| [mi::load_register_imm(1), *offset, u32::MAX]).collect();
    const BATCH: u64 = 0x20_0000;
    gpu.batch(c, BATCH, &commands);
    gpu.submit(c, &crate::gpu::start(BATCH));
    gpu.done(c, Duration::from_millis(50));
    (0..opened.len() as u32).for_each(|slot| gpu.write(base + ring::FORCE_TO_NONPRIV + 4 * slot, base + ring::NOPID));
}

/// A ring waits; it is rewritten so that a plain command begins before its head and carries others as payload; it is
/// submitted with a tail that lies `back` bytes before the last one.
fn waiting_ring(gpu: &mut Gpu, c: &mut Context, back: usize) {
    let (flag, at) = pinned(gpu, &[0]);
    let poll = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_POLL | mi::GLOBAL_GTT;
    gpu.submit(c, &[mi::header(mi::NOOP), mi::header(mi::NOOP), poll | 5 << mi::SEMAPHORE_COMPARE_SHIFT, 0, at, 0]);
    thread::sleep(Duration::from_millis(2));
    let foreign = [mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, 0xFC00_0000, 0, 0xBAD];
    let entry = [mi::with_length(mi::UPDATE_GTT, 3), 0xFC00_0000, 0x1001];
    let payload = [&foreign[..], &entry, &[mi::load_register_imm(1), reg::GDRST, u32::MAX]].concat();
    // 3DSTATE_VERTEX_ELEMENTS: dwords without addresses.
    gpu.memory.set(c.ring_pages[0], 0, 0x7809_0000 | 62);
    for (index, dword) in payload.iter().cycle().take(63).enumerate() {
        gpu.memory.set(c.ring_pages[0], 1 + index, *dword);
    }
    gpu.resubmit(c, back);
    gpu.memory.set(flag, 0, 1);
    gpu.done(c, Duration::from_millis(50));
}

/// Stores by index, with the bit that makes the index count from the engine's own status page.
fn index_stores(gpu: &mut Gpu, c: &mut Context) {
    let mut commands = Vec::new();
    for offset in (0..0x100).step_by(8) {
        let flush = mi::with_length(mi::FLUSH_DW, 5) | 1 << mi::FLUSH_POST_SYNC_SHIFT | mi::FLUSH_STORE_INDEX;
        commands.extend([flush, offset | mi::FLUSH_DW1_GLOBAL_GTT, 0, u32::MAX, u32::MAX]);
        commands.extend([mi::with_length(mi::STORE_DATA_INDEX, 4), offset, u32::MAX, u32::MAX]);
        if c.engine == Engine::Rcs {
            let flags = pipe_control::POST_SYNC_WRITE | pipe_control::STORE_DATA_INDEX | pipe_control::GLOBAL_GTT;
            commands.extend([PIPE_CONTROL_HEADER, flags, offset, 0, u32::MAX, u32::MAX]);
        }
    }
    gpu.submit(c, &commands);
}

/// One CPU asks for syncs of a page table that another dirties without end.
pub fn sync(report: &mut crate::Report, rounds: u32) -> std::io::Result<()> {
    let mut gpu = Gpu::open()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (base, bytes) = gpu.partition[1];
    let page = gpu.pages(1)[0];
    let entry = gpu.memory.gpa(page).0 | 1;
    let storing = {
        let (stop, registers) = (stop.clone(), Gpu::registers()?);
        // The upper half, where nothing is pinned.
        let (first, count) = ((base + bytes / 2) >> 12, bytes >> 13);
        move || {
            for index in (0..count).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                registers.store(reg::GGTT_OFFSET as u32 + 8 * (first + index), 8, entry);
            }
        }
    };
    let storing = thread::spawn(storing);
    for round in 0..rounds {
        gpu.write(reg::GFX_FLSH_CNTL, 1);
        if round % 16 == 0 {
            report.case("sync", format!("round {round}"), sound(&mut gpu, Engine::Rcs));
        }
    }
    stop.store(true, Ordering::Relaxed);
    report.case("storing", "cpu", storing.join().map_err(|_| "the storing thread broke".into()));
    Ok(())
}
