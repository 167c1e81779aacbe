//! The heap of a test program, which counts what each thread asks it for: on an exit path of the mediator that must be
//! nothing (design D18). `gvt` itself forbids unsafe code, and an allocator is that.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static MADE: Cell<u64> = const { Cell::new(0) };
    static MODE: Cell<Mode> = const { Cell::new(Mode::Counted) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Counted,
    Uncounted,
}

struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

fn count() {
    // A thread that ends has no counter any more, and no test either.
    if MODE.try_with(Cell::get) == Ok(Mode::Counted) {
        let _ = MADE.try_with(|made| made.set(made.get() + 1));
    }
}

// SAFETY: 1. Every call goes to `System` as it is. 2. Counting neither allocates (its cells are constants without
// destructors) nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is `System`'s condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the same; `at` came from `System`.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the same.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Blocks that this thread has asked for, but for those that were not to count.
pub fn made() -> u64 {
    MADE.with(Cell::get)
}

/// Runs what stands for another part of the machine: what it allocates does not count.
pub fn uncounted<T>(run: impl FnOnce() -> T) -> T {
    with(Mode::Uncounted, run)
}

/// Runs what is called back from there: what it allocates counts again.
pub fn counted<T>(run: impl FnOnce() -> T) -> T {
    with(Mode::Counted, run)
}

fn with<T>(mode: Mode, run: impl FnOnce() -> T) -> T {
    let before = MODE.replace(mode);
    let result = run();
    MODE.set(before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_to_count_counts() {
        let before = made();
        let mut list: Vec<u8> = Vec::with_capacity(1);
        assert_eq!(made() - before, 1);
        list.resize(1000, 1);
        assert_eq!(made() - before, 2);
        let zeroes = uncounted(|| (vec![0u32; 9], counted(|| Box::new(1))));
        assert_eq!(made() - before, 3);
        drop((list, zeroes));
        assert_eq!(made() - before, 3);
    }
}
