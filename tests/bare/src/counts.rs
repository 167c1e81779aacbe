//! What page-table updates cost: others count, this does the updates and proves that they took effect.

use std::io;

use gvt_defs::{Engine, GgttAddr, mi, reg};

use crate::Report;
use crate::gpu::{Gpu, start, store};
use crate::sys::PAGE;

const BATCH: u64 = 0x10_0000;
const DATA: u64 = 0x4000_0000;

/// Waits for a line of input.
fn pause(at: &str) {
    println!("PAUSE {at}");
    let mut line = String::new();
    let _ = io::stdin().read_line(&mut line);
}

fn expect(what: &str, found: u32, wanted: u32) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found:#x} instead of {wanted:#x}")) }
}

/// Points every entry of the partition at a page, as i915 does with its scratch page under a hypervisor, and submits.
pub fn clear(report: &mut Report) -> io::Result<()> {
    let mut gpu = Gpu::open()?;
    let mut c = gpu.context(Engine::Rcs);
    // Status pages, the image and the ring stay: they lie at the bottom of the upper part.
    let kept = gpu.pin(&[]).0;
    let scratch = gpu.pages(1)[0];
    let entry = gpu.memory.gpa(scratch).0 | 1;
    report.case("before", "rcs0", if gpu.execute(&mut c, &[]) { Ok(()) } else { Err("does not end".into()) });
    pause("whole");
    let mut cleared = 0;
    for (base, bytes) in gpu.partition {
        for at in (base..base + bytes).step_by(PAGE).filter(|at| !(gpu.partition[1].0..kept).contains(at)) {
            gpu.set_global(GgttAddr(at), entry);
            cleared += 1;
        }
    }
    gpu.write(reg::GFX_FLSH_CNTL, 1);
    // One store through an entry of every table page: all end in the same page, at places of their own.
    let tables = gpu.partition.into_iter().flat_map(|(base, bytes)| (base..base + bytes).step_by(512 * PAGE));
    let stores: Vec<u32> = tables
        .enumerate()
        .flat_map(|(n, at)| {
            [mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, at + (511 * PAGE + 4 * n) as u32, 0, 77]
        })
        .collect();
    let ended = gpu.execute(&mut c, &stores);
    pause("cleared");
    println!("CLEAR entries={cleared} tables={}", stores.len() / 4);
    report.case("after", "rcs0", if ended { Ok(()) } else { Err("does not end".into()) });
    let wrong = (0..stores.len() / 4).find(|n| gpu.memory.get(scratch, *n) != 77);
    report.case("stores", "rcs0", wrong.map_or(Ok(()), |n| Err(format!("entries of table {n} did not count"))));
    Ok(())
}

/// Changes 512 entries of one table and submits a batch that stores through the first and the last of them.
pub fn update(report: &mut Report, count: u32) -> io::Result<()> {
    let mut gpu = Gpu::open()?;
    let mut c = gpu.context(Engine::Rcs);
    let sets = [gpu.pages(512), gpu.pages(512)];
    let batch = gpu.batch(&mut c, BATCH, &[]);
    let mut outcome = Ok(());
    let mut round = |gpu: &mut Gpu, number: u32| {
        let set = &sets[number as usize % 2];
        for (address, page) in (DATA..).step_by(PAGE).zip(set) {
            gpu.map(&mut c, address, gpu.memory.gpa(*page));
        }
        let stores = [store(DATA, number), store(DATA + 511 * PAGE as u64, number)].concat();
        for (index, dword) in stores.iter().chain(&[mi::header(mi::BATCH_BUFFER_END)]).enumerate() {
            gpu.memory.set(batch, index, *dword);
        }
        if !gpu.execute(&mut c, &start(BATCH)) {
            return Err(format!("submission {number} does not end"));
        }
        expect("the first store", gpu.memory.get(set[0], 0), number)?;
        expect("the last store", gpu.memory.get(set[511], 0), number)
    };
    for number in 1..=4 {
        outcome = outcome.and_then(|()| round(&mut gpu, number));
    }
    pause("whole");
    for number in 5..5 + count {
        outcome = outcome.and_then(|()| round(&mut gpu, number));
    }
    pause("updated");
    report.case("update", "rcs0", outcome);
    Ok(())
}
