//! A page table that one CPU changes without end while another submits: no store may be missed (design D6).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use gvt_defs::pte::PpgttEntry;
use gvt_defs::{Engine, mi};

use crate::Report;
use crate::gpu::{Context, Gpu, start, store};

const BATCH: u64 = 0x10_0000;
const DATA: u64 = 0x4000_0000;
/// Submissions while the other CPU stores.
const BUSY: u32 = 6;

/// Each round ends with an entry that names one of two pages: what is submitted next must find that one.
pub fn race(report: &mut Report, rounds: u32) -> io::Result<()> {
    let mut gpu = Gpu::open()?;
    let mut c = gpu.context(Engine::Rcs);
    let pages = [gpu.pages(1)[0], gpu.pages(1)[0]];
    let batch = gpu.batch(&mut c, BATCH, &[]);
    gpu.map(&mut c, DATA, gpu.memory.gpa(pages[0]));
    let mut stores = 0;
    let outcome = (1..=rounds).try_for_each(|number| round(&mut gpu, &mut c, (batch, pages), number, &mut stores));
    println!("RACE rounds={rounds} stores={stores}");
    report.case("race", "rcs0", outcome);
    let enough = stores > u64::from(rounds) * 1_000;
    report.case("stores", "cpu", if enough { Ok(()) } else { Err(format!("{stores} stores are no race")) });
    Ok(())
}

fn round(
    gpu: &mut Gpu,
    c: &mut Context,
    (batch, pages): (usize, [usize; 2]),
    number: u32,
    stores: &mut u64,
) -> Result<(), String> {
    let (table, index) = c.entry(DATA).ok_or("the address has no table")?;
    let entries = pages.map(|page| gpu.memory.gpa(page).0 | PpgttEntry::PRESENT | PpgttEntry::WRITABLE);
    let [last, other] = [number as usize % 2, 1 - number as usize % 2];
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let storing = {
        let (memory, stop, count) = (gpu.memory.clone(), stop.clone(), count.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                entries.iter().for_each(|entry| memory.set_entry(table, index, *entry));
                count.fetch_add(2, Ordering::Relaxed);
            }
            memory.set_entry(table, index, entries[last]);
        })
    };
    let ended = (0..BUSY).all(|n| submit(gpu, c, batch, number << 8 | n));
    stop.store(true, Ordering::Relaxed);
    storing.join().map_err(|_| "the storing thread broke")?;
    *stores += count.load(Ordering::Relaxed);
    if !ended {
        return Err(format!("round {number}: a submission does not end"));
    }
    if !gpu.invalidate(c.engine) {
        return Err(format!("round {number}: the TLB invalidation does not end"));
    }
    let value = number << 8 | 0xFF;
    if !submit(gpu, c, batch, value) {
        return Err(format!("round {number}: the last submission does not end"));
    }
    let found = [last, other].map(|n| gpu.memory.get(pages[n], 0));
    if found[0] != value || found[1] == value {
        return Err(format!("round {number}: stored {value:#x}, found {found:x?}: a store to the table was missed"));
    }
    Ok(())
}

/// Runs the batch with a store of `value`.
fn submit(gpu: &mut Gpu, c: &mut Context, batch: usize, value: u32) -> bool {
    let commands = [&store(DATA, value)[..], &[mi::header(mi::BATCH_BUFFER_END)]].concat();
    for (index, dword) in commands.into_iter().enumerate() {
        gpu.memory.set(batch, index, dword);
    }
    gpu.execute(c, &start(BATCH))
}
