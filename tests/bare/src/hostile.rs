//! Breaks the rules one by one. Whatever an attack does, afterwards the engine can be reset, a sound context runs, and
//! memory of this program that no command named is as it was. What it does to others is for others to check.

use std::io;
use std::time::Duration;

use gvt_defs::{Engine, Gpa, mi};

use crate::Report;
use crate::attacks;
use crate::gpu::{Context, Gpu, engines, start};
use crate::reach;

const BATCH: u64 = 0x10_0000;
/// Where foreign memory is mapped to be read, and where it is copied to.
const FOREIGN: u64 = 0x80_0000_0000;
const COPY: u64 = 0x40_0000;
/// Entries to foreign frames in a table: with many more the mediator takes it for something else than a table.
const FOREIGN_ENTRIES: usize = 8;
/// How long an attack may have its way before the engine is reset.
const WHILE: Duration = Duration::from_millis(50);

/// What must come of a submission.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It ends as if nothing were wrong with it; what was forbidden is left out.
    Done,
    /// It is refused: its sequence number is never stored.
    Refused,
    /// It may end or not.
    Any,
}

/// Everything.
pub fn all(report: &mut Report, secret: &str) -> io::Result<()> {
    let mut gpu = Gpu::open()?;
    let canary = gpu.pages(4);
    let each = |page: usize, index: usize| (page * 1024 + index) as u32 ^ 0xCA1A_0000;
    for page in &canary {
        (0..1024).for_each(|index| gpu.memory.set(*page, index, each(*page, index)));
    }
    report.case("sound", "gpu", engines().try_for_each(|engine| sound(&mut gpu, engine)));
    report.case("registers", "gpu", attacks::registers(&mut gpu));
    report.case("global-table", "gpu", attacks::global_table(&mut gpu));
    report.case("notifications", "gpu", attacks::notifications(&mut gpu));
    report.case("foreign-reads", "rcs0", foreign_reads(&mut gpu, secret));
    report.case("aperture", "gpu", reach::aperture(&mut gpu));
    report.case("register-reads", "gpu", reach::reads(&mut gpu));
    for engine in engines() {
        for (name, end, attack) in attacks::SUBMISSIONS.into_iter().chain(reach::SUBMISSIONS) {
            let outcome = attempt(&mut gpu, engine, end, attack);
            report.case(name, engine.info().name, outcome);
        }
    }
    let changed =
        canary.iter().find(|page| (0..1024).any(|index| gpu.memory.get(**page, index) != each(**page, index)));
    report.case("canary", "memory", changed.map_or(Ok(()), |page| Err(format!("page {page} was changed"))));
    report.case("sound-again", "gpu", engines().try_for_each(|engine| sound(&mut gpu, engine)));
    Ok(())
}

fn attempt(gpu: &mut Gpu, engine: Engine, end: End, attack: attacks::Attack) -> Result<(), String> {
    let mut c = gpu.context(engine);
    attack(gpu, &mut c);
    let patience = if end == End::Done { crate::gpu::PATIENCE } else { WHILE };
    let done = gpu.done(&c, patience);
    let outcome = match (end, done) {
        (End::Done, false) => Err("should end, and does not".into()),
        (End::Refused, true) => Err("should be refused, and is not".into()),
        _ => Ok(()),
    };
    gpu.reset_engine(engine);
    outcome.and_then(|()| sound(gpu, engine))
}

/// A sound submission still runs.
pub fn sound(gpu: &mut Gpu, engine: Engine) -> Result<(), String> {
    let mut c = gpu.context(engine);
    if gpu.execute(&mut c, &[]) { Ok(()) } else { Err(format!("{} is out of order", engine.info().name)) }
}

/// Page-table entries to everything from the end of this guest's memory to 6 GiB, 2 MiB apart, read by the GPU.
fn foreign_reads(gpu: &mut Gpu, secret: &str) -> Result<(), String> {
    let word = secret.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let own = (0..1 << 14).map(|page| gpu.memory.gpa(page).0).max().unwrap_or(0);
    let mut c = gpu.context(Engine::Rcs);
    // A page of this program's own holds the word too, mapped in every table: what is not found there could not be found
    // elsewhere.
    let (control, _) = pinned(gpu, &[word]);
    let control = gpu.memory.gpa(control).0;
    let foreign = (1..3072u64).map(|n| n << 21).filter(|target| *target > own.next_multiple_of(1 << 29));
    let foreign: Vec<u64> = foreign.collect();
    for lot in foreign.chunks(22 * FOREIGN_ENTRIES) {
        let targets: Vec<u64> =
            lot.chunks(FOREIGN_ENTRIES).flat_map(|some| some.iter().copied().chain([control])).collect();
        let copies = gpu.pages(1)[0];
        gpu.map(&mut c, COPY, gpu.memory.gpa(copies));
        let mut commands = Vec::new();
        for (n, target) in targets.iter().enumerate() {
            let (table, entry) = (n / (FOREIGN_ENTRIES + 1), n % (FOREIGN_ENTRIES + 1));
            let (from, to) = (FOREIGN + ((table as u64) << 21) + ((entry as u64) << 12), COPY + 4 * n as u64);
            gpu.map(&mut c, from, Gpa(*target));
            commands.extend([mi::with_length(mi::COPY_MEM_MEM, 5), to as u32, (to >> 32) as u32, from as u32]);
            commands.push((from >> 32) as u32);
        }
        gpu.batch(&mut c, BATCH, &commands);
        if !gpu.execute(&mut c, &start(BATCH)) {
            return Err("a batch of copies does not end".into());
        }
        for (n, target) in targets.iter().enumerate() {
            let found = gpu.memory.get(copies, n);
            if (found == word) != (*target == control) {
                return Err(format!("a copy from {target:#x} gave {found:#x}"));
            }
        }
    }
    Ok(())
}

/// A page whose content begins with these commands, pinned in the global space.
pub fn pinned(gpu: &mut Gpu, commands: &[u32]) -> (usize, u32) {
    let page = gpu.pages(1)[0];
    for (index, dword) in commands.iter().enumerate() {
        gpu.memory.set(page, index, *dword);
    }
    (page, gpu.pin(&[page]).0)
}

/// The context's register page gets this dword.
pub fn forge(gpu: &Gpu, c: &Context, at: usize, dword: u32) {
    gpu.memory.set(c.image[1], at, dword);
}
