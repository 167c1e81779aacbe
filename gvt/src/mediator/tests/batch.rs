//! Batches of a process.

use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::{Gpa, mi};

fn place(d: &mut Driver, m: &mut Machine, c: &Context, va: u64, commands: &[u32]) -> Gpa {
    let page = d.pages(1)[0];
    d.map_process(m, c.pml4, va, page);
    for (i, dword) in (0..).zip(commands) {
        m.host.guest_write32(d.vm, Gpa(page.0 + 4 * i), *dword);
    }
    page
}

/// A batch that runs commands and ends.
pub fn write(d: &mut Driver, m: &mut Machine, c: &Context, va: u64, commands: &[u32]) -> Gpa {
    let mut all = commands.to_vec();
    all.push(mi::header(mi::BATCH_BUFFER_END));
    place(d, m, c, va, &all)
}

/// A command that goes on in another batch.
pub fn jump(va: u64) -> Vec<u32> {
    vec![mi::with_length(mi::BATCH_BUFFER_START, 3) | mi::BB_PPGTT, va as u32, (va >> 32) as u32]
}

/// A batch that runs commands for ever and can be preempted.
pub fn write_endless(d: &mut Driver, m: &mut Machine, c: &Context, va: u64, commands: &[u32]) -> Gpa {
    let mut all = vec![mi::header(mi::ARB_CHECK)];
    all.extend_from_slice(commands);
    all.extend(jump(va));
    place(d, m, c, va, &all)
}

/// A batch that runs for ever and never arbitrates.
pub fn write_stubborn(d: &mut Driver, m: &mut Machine, c: &Context, va: u64) -> Gpa {
    place(d, m, c, va, &jump(va))
}

/// A batch that waits on a semaphore; gives the dword that releases it when it is not 0.
pub fn spin_until_released(d: &mut Driver, m: &mut Machine, c: &Context, va: u64) -> Gpa {
    let flag = d.pages(1)[0];
    let flag_va = va + 0x1000;
    d.map_process(m, c.pml4, flag_va, flag);
    m.host.guest_write32(d.vm, flag, 0);
    // Memory not equal to 0.
    let wait = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_POLL | 5 << mi::SEMAPHORE_COMPARE_SHIFT;
    write(d, m, c, va, &[wait, 0, flag_va as u32, (flag_va >> 32) as u32]);
    flag
}

/// A batch that says that it has begun, `begun` bytes into its page, and then runs until it is ended, without arbitrating.
pub fn write_piece(d: &mut Driver, m: &mut Machine, c: &Context, va: u64, begun: u64) -> Gpa {
    let at = va + begun;
    let mut all = vec![mi::with_length(mi::STORE_DATA_IMM, 4), at as u32, (at >> 32) as u32, 0];
    all.extend(jump(va + 16));
    place(d, m, c, va, &all)
}

/// Makes a piece ready to run, and to say this when it begins.
pub fn begin_piece(m: &mut Machine, d: &Driver, page: Gpa, word: u32) {
    m.host.guest_write32(d.vm, Gpa(page.0 + 12), word);
    m.host.guest_write32(d.vm, Gpa(page.0 + 16), mi::with_length(mi::BATCH_BUFFER_START, 3) | mi::BB_PPGTT);
}

/// Ends a piece that runs.
pub fn end_piece(m: &mut Machine, d: &Driver, page: Gpa) {
    m.host.guest_write32(d.vm, Gpa(page.0 + 16), mi::header(mi::BATCH_BUFFER_END));
}
