//! Work that makes one CPU interrupt the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::{Progress, Random, pin};

/// `membarrier` (linux/membarrier.h).
const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
const PRIVATE_EXPEDITED: i32 = 1 << 3;

/// Barriers on all CPUs that run a thread of this process: an interrupt for each other one, and an answer awaited.
pub fn barriers(progress: &Progress, cpu: usize, seed: u64) {
    pin(cpu);
    let mut random = Random::new(seed);
    // SAFETY: 1. The call takes no pointers.
    let barrier = |command: i32| unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if barrier(REGISTER_PRIVATE_EXPEDITED) != 0 {
        return progress.wrong("the kernel has no membarrier".into());
    }
    while progress.turn() {
        for _ in 0..random.below(64) {
            barrier(PRIVATE_EXPEDITED);
        }
        std::thread::sleep(Duration::from_micros(random.below(2000)));
    }
}

/// Maps, fills and unmaps pages: every other CPU that runs this process drops translations and answers.
pub fn unmapping(progress: &Progress, cpu: usize, seed: u64) {
    pin(cpu);
    let mut random = Random::new(seed);
    while progress.turn() {
        let pages = 1 + random.below(64) as usize;
        // SAFETY: 1. A fresh private mapping, used within its length and unmapped once.
        unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let map = libc::mmap(std::ptr::null_mut(), pages * 4096, access, kind, -1, 0);
            if map == libc::MAP_FAILED {
                progress.wrong("no memory to map".into());
                return;
            }
            for page in 0..pages {
                map.cast::<u64>().add(page * 512).write_volatile(seed ^ page as u64);
            }
            for page in 0..pages {
                let read = map.cast::<u64>().add(page * 512).read_volatile();
                if read != seed ^ page as u64 {
                    progress.wrong(format!("page {page} reads {read:#x}"));
                }
            }
            libc::munmap(map, pages * 4096);
        }
        std::thread::sleep(Duration::from_micros(random.below(1500)));
    }
}

/// Two threads wake each other by turns, on two CPUs where there are as many.
pub fn wake_ups(progress: &Progress, cpus: usize) {
    let turn = Arc::new((Mutex::new(false), Condvar::new()));
    let over = Arc::new(AtomicBool::new(false));
    let (other, ended) = (turn.clone(), over.clone());
    std::thread::spawn(move || {
        pin(1 % cpus);
        while !ended.load(Ordering::Relaxed) {
            hand_over(&other, true);
        }
    });
    pin(0);
    while progress.turn() {
        hand_over(&turn, false);
    }
    over.store(true, Ordering::Relaxed);
}

/// Waits until the turn is `mine`, and gives it to the other.
fn hand_over((turn, changed): &(Mutex<bool>, Condvar), mine: bool) {
    let held = turn.lock().expect("no worker panics");
    let mut held = changed.wait_while(held, |now| *now != mine).expect("no worker panics");
    *held = !mine;
    changed.notify_one();
}
