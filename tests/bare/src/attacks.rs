//! The attacks.

use gvt_defs::context::value;
use gvt_defs::{GgttAddr, Gpa, PAGE_SIZE, mi, pvinfo, reg, ring};

use crate::gpu::{Context, Gpu, engines, start, store};
use crate::hostile::{End, forge, pinned, sound};

const BATCH: u64 = 0x10_0000;

/// Submits something that it should not.
pub type Attack = fn(&mut Gpu, &mut Context);

/// What each is called, what must come of it, and what it does.
pub const SUBMISSIONS: [(&str, End, Attack); 26] = [
    ("ring-start-foreign", End::Refused, |gpu, c| forged(gpu, c, value::RING_START, foreign(gpu))),
    ("ring-start-prism", End::Refused, |gpu, c| forged(gpu, c, value::RING_START, PRISM)),
    ("ring-off", End::Refused, |gpu, c| forged(gpu, c, value::RING_CTL, 0x3000)),
    ("ring-huge", End::Any, |gpu, c| forged(gpu, c, value::RING_CTL, 0x001F_F001)),
    ("ring-head-outside", End::Refused, |gpu, c| forged(gpu, c, value::RING_HEAD, 0x001F_FFFC)),
    ("indirect-foreign", End::Refused, |gpu, c| forged(gpu, c, value::INDIRECT_CTX, foreign(gpu) | 4)),
    ("indirect-huge", End::Refused, |gpu, c| forged(gpu, c, value::INDIRECT_CTX, u32::MAX)),
    ("per-context-foreign", End::Refused, |gpu, c| forged(gpu, c, value::BB_PER_CTX_PTR, foreign(gpu) | 1)),
    ("resume-foreign", End::Refused, |gpu, c| forged(gpu, c, value::BB_ADDR, foreign(gpu) | ring::BB_ADDR_VALID)),
    ("image-of-noise", End::Any, image_of_noise),
    ("descriptors", End::Refused, descriptors),
    ("registers-ring", End::Done, |gpu, c| gpu.submit(c, &forbidden(c))),
    ("registers-privileged", End::Any, registers_privileged),
    ("registers-process", End::Done, registers_process),
    ("store-foreign", End::Refused, |gpu, c| gpu.submit(c, &global_store(foreign(gpu)))),
    ("store-prism", End::Refused, |gpu, c| gpu.submit(c, &global_store(PRISM))),
    ("update-gtt", End::Any, |gpu, c| gpu.submit(c, &[mi::with_length(mi::UPDATE_GTT, 3), foreign(gpu), 0x1001])),
    ("batch-foreign", End::Refused, |gpu, c| gpu.submit(c, &privileged_batch(foreign(gpu)))),
    ("batch-prism", End::Refused, |gpu, c| gpu.submit(c, &privileged_batch(PRISM))),
    ("batch-endless", End::Any, batch_endless),
    ("batch-cycle", End::Any, batch_cycle),
    ("batch-stubborn", End::Any, batch_stubborn),
    ("lengths", End::Any, lengths),
    ("foreign-entries", End::Any, foreign_entries),
    ("tables-of-noise", End::Any, tables_of_noise),
    ("tables-in-a-circle", End::Any, tables_in_a_circle),
];

/// In the part of the graphics addresses that Prism keeps.
const PRISM: u32 = 0xFC00_0000;

/// A graphics address outside the guest's partition.
fn foreign(gpu: &Gpu) -> u32 {
    let [(low, size), _] = gpu.partition;
    if low > 0x10_0000 { 0x10_0000 } else { low + size + 0x10_0000 }
}

fn forged(gpu: &mut Gpu, c: &mut Context, at: usize, dword: u32) {
    forge(gpu, c, at, dword);
    gpu.submit(c, &[]);
}

fn noise(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn image_of_noise(gpu: &mut Gpu, c: &mut Context) {
    let mut seed = u64::from(c.id) | 0x9E37_0000_0001;
    for page in &c.image {
        (0..1024).for_each(|index| gpu.memory.set(*page, index, noise(&mut seed) as u32));
    }
    gpu.submit(c, &[]);
}

fn descriptors(gpu: &mut Gpu, c: &mut Context) {
    let outside = u64::from(foreign(gpu));
    for descriptor in [0, 1, outside | 0x129, 0xFC00_0129, 0xFFFF_F129, outside | 0x121, u64::MAX, 0x109] {
        gpu.elsp(c.engine, descriptor);
        gpu.reset_engine(c.engine);
    }
    // Never submitted: what is waited for is this.
    c.id = 0;
    forge(gpu, c, value::RING_CTL, 0);
    gpu.submit(c, &[]);
}

/// Loads of registers that no guest may touch.
fn forbidden(c: &Context) -> Vec<u32> {
    let base = c.engine.base();
    [
        base + ring::HWS_PGA,
        base + ring::GFX_MODE,
        base + ring::IMR,
        base + ring::ELSP,
        0x4_4200,
        reg::GDRST,
        0x10_0000,
        0xA188,
    ]
    .into_iter()
    .flat_map(|offset| [mi::load_register_imm(1), offset, u32::MAX])
    .collect()
}

fn registers_privileged(gpu: &mut Gpu, c: &mut Context) {
    let mut commands = forbidden(c);
    commands.push(mi::header(mi::BATCH_BUFFER_END));
    let (_, at) = pinned(gpu, &commands);
    gpu.submit(c, &privileged_batch(at));
}

fn registers_process(gpu: &mut Gpu, c: &mut Context) {
    let commands = forbidden(c);
    gpu.batch(c, BATCH, &commands);
    gpu.submit(c, &start(BATCH));
}

fn global_store(at: u32) -> [u32; 4] {
    [mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, at, 0, 0xBAD]
}

/// Ring commands that run a batch of the global space.
pub fn privileged_batch(at: u32) -> [u32; 4] {
    [mi::with_length(mi::BATCH_BUFFER_START, 3), at, 0, 0]
}

/// A privileged batch that starts itself.
fn batch_endless(gpu: &mut Gpu, c: &mut Context) {
    let (page, at) = pinned(gpu, &[]);
    for (index, dword) in privileged_batch(at).into_iter().enumerate() {
        gpu.memory.set(page, index, dword);
    }
    gpu.submit(c, &privileged_batch(at));
}

/// Two batches of a process that start each other.
fn batch_cycle(gpu: &mut Gpu, c: &mut Context) {
    let other = BATCH + PAGE_SIZE;
    gpu.batch(c, BATCH, &[&[mi::header(mi::ARB_CHECK)], &start(other)[..]].concat());
    gpu.batch(c, other, &start(BATCH));
    gpu.submit(c, &start(BATCH));
}

/// A batch that runs for ever and lets nobody in; the other guest's work must go on all the same.
fn batch_stubborn(gpu: &mut Gpu, c: &mut Context) {
    gpu.batch(c, BATCH, &start(BATCH));
    gpu.submit(c, &[&[mi::header(mi::ARB_ON_OFF)], &start(BATCH)[..]].concat());
    gpu.done(c, std::time::Duration::from_millis(1_500));
}

fn lengths(gpu: &mut Gpu, c: &mut Context) {
    for header in [mi::header(mi::LOAD_REGISTER_IMM) | 0xFF, 0x7800_00FF, 0x5000_00FF, 0x7FFF_FFFF, u32::MAX] {
        gpu.submit(c, &[header]);
        gpu.reset_engine(c.engine);
        *c = gpu.context(c.engine);
    }
    gpu.submit(c, &[mi::header(mi::STORE_DATA_IMM) | 0x3FF, 0]);
}

/// Stores through entries that lead to frames of others.
fn foreign_entries(gpu: &mut Gpu, c: &mut Context) {
    let mut commands = Vec::new();
    for n in 0..96u64 {
        // A few in each table: a table full of them is not taken for one.
        let address = 0x3000_0000 + ((n / 6) << 21) + n % 6 * PAGE_SIZE;
        gpu.map(c, address, Gpa(n << 26 | 0x2000_0000));
        commands.extend(store(address + 8 * n, 0xBAD));
    }
    gpu.batch(c, BATCH, &commands);
    gpu.submit(c, &start(BATCH));
}

fn tables_of_noise(gpu: &mut Gpu, c: &mut Context) {
    let mut seed = 0x5EED_0000_0000_0001;
    for garbage in [u64::MAX, 1, 0x83, 0xFFFF_FFFF_FFFF_F003, 0x8000_0000_0000_0001, noise(&mut seed)] {
        for index in 0..512 {
            gpu.memory.set_entry(c.root, index, garbage ^ ((noise(&mut seed) & 0xFFFF) << 12));
        }
        gpu.submit(c, &[&start(BATCH)[..], &store(0x1234_5000, 0xBAD)].concat());
        gpu.reset_engine(c.engine);
        *c = gpu.context(c.engine);
    }
    gpu.submit(c, &[]);
}

/// A root all of whose entries are the root itself, and a table that is the ring.
fn tables_in_a_circle(gpu: &mut Gpu, c: &mut Context) {
    let (root, ring_page) = (gpu.memory.gpa(c.root).0 | 3, gpu.memory.gpa(c.ring_pages[0]).0 | 3);
    for index in 0..512 {
        gpu.memory.set_entry(c.root, index, if index % 2 == 0 { root } else { ring_page });
    }
    gpu.submit(c, &store(0x80_1234_5678, 0xBAD));
}

/// Registers of every width at every kind of offset, loads and stores.
pub fn registers(gpu: &mut Gpu) -> Result<(), String> {
    let mut seed = 0xD1CE_0000_0000_0001;
    let end = reg::GTTMMADR_SIZE as u32;
    for round in 0..3_000u32 {
        let width = [1, 2, 4, 8][round as usize % 4];
        let offset = match round % 8 {
            // The page-table half, and just before its end.
            6 => reg::GGTT_OFFSET as u32 + noise(&mut seed) as u32 % (end / 2 - 8),
            7 => end - 8 - noise(&mut seed) as u32 % 64,
            _ => noise(&mut seed) as u32 % reg::MMIO_SIZE,
        };
        gpu.registers.load(offset, width);
        gpu.registers.store(offset, width, noise(&mut seed));
    }
    for (offset, width) in
        [(end - 1, 1), (end - 2, 2), (end - 4, 4), (end - 8, 8), (0xFFF, 2), (0x1FFD, 8), (0x20_0001, 4)]
    {
        gpu.registers.load(offset, width);
        gpu.registers.store(offset, width, u64::MAX);
    }
    engines().for_each(|engine| gpu.reset_engine(engine));
    gpu.write(reg::GDRST, reg::GDRST_FULL);
    engines().for_each(|engine| gpu.reset_engine(engine));
    // Some of those stores may have hit entries that are in use; they are written anew.
    gpu.restore_entries();
    engines().try_for_each(|engine| sound(gpu, engine))
}

/// Global entries outside the partition, and entries inside it that lead to frames of others.
pub fn global_table(gpu: &mut Gpu) -> Result<(), String> {
    let [low, high] = gpu.partition;
    let inside = |at: u32| [low, high].iter().any(|(base, bytes)| (*base..base + bytes).contains(&at));
    for index in (0..1 << 20).step_by(997) {
        let at = GgttAddr(index << 12);
        if !inside(at.0) {
            gpu.set_global(at, 0x1001);
            let offset = reg::GGTT_OFFSET as u32 + 8 * index;
            let found = gpu.registers.load(offset, 8);
            if found & 1 != 0 {
                return Err(format!("the entry of {:#x}, outside the partition, reads {found:#x}", at.0));
            }
        }
    }
    for n in 0..64u32 {
        gpu.set_global(GgttAddr(low.0 + (n << 12)), u64::from(n) << 26 | 0x2000_0001);
    }
    gpu.write(reg::GFX_FLSH_CNTL, 1);
    for engine in engines() {
        let mut c = gpu.context(engine);
        let stores: Vec<u32> = (0..64).flat_map(|n| global_store(low.0 + (n << 12) + 8 * n)).collect();
        gpu.submit(&mut c, &stores);
        gpu.done(&c, std::time::Duration::from_millis(500));
        gpu.reset_engine(engine);
    }
    engines().try_for_each(|engine| sound(gpu, engine))
}

/// Roots announced and given up that never were any.
pub fn notifications(gpu: &mut Gpu) -> Result<(), String> {
    let mut seed = 0xFEED_0000_0000_0001;
    for round in 0..400 {
        let root = noise(&mut seed) & if round % 2 == 0 { 0x7F_FFFF_F000 } else { u64::MAX };
        gpu.write(pvinfo::BASE + pvinfo::PDP0_LO, root as u32);
        gpu.write(pvinfo::BASE + pvinfo::PDP0_LO + 4, (root >> 32) as u32);
        gpu.write(pvinfo::BASE + pvinfo::G2V_NOTIFY, noise(&mut seed) as u32 % 9);
    }
    engines().try_for_each(|engine| sound(gpu, engine))
}
