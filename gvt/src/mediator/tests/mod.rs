//! The mediator on the software GPU, with a driver that does what i915 does.

mod append;
mod batch;
mod bounds;
mod copies;
mod fences;
mod heap;
mod isolation;
mod one;
mod registers;
mod residue;
mod shares;
mod status;
mod storms;
mod stuck;
mod two;
mod window;

use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::mi;

/// Where tests put a batch in a process' address space.
const BATCH: u64 = 0x10_0000;

/// A guest with a vGPU, and its driver.
fn start() -> (Machine, Driver) {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let d = Driver::probe(&mut m, 1, id);
    (m, d)
}

/// A command that stores a dword in the process' address space.
fn store(va: u64, value: u32) -> Vec<u32> {
    vec![mi::with_length(mi::STORE_DATA_IMM, 4), va as u32, (va >> 32) as u32, value]
}
