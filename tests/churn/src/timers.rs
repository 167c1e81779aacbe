//! Timers of every kind that a process can have.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Progress, Random, pin};

const CLOCK: &str = "/dev/rtc0";
/// Hertz of the real-time clock's periodic interrupt.
const CLOCK_HZ: libc::c_ulong = 64;

/// Sleeps for random times, and never wakes early.
pub fn sleeping(progress: &Progress, cpu: usize, seed: u64) {
    pin(cpu);
    let mut random = Random::new(seed);
    while progress.turn() {
        let time = Duration::from_micros(random.below(4000));
        let begun = Instant::now();
        std::thread::sleep(time);
        if begun.elapsed() < time {
            progress.wrong(format!("slept {:?} instead of {time:?}", begun.elapsed()));
        }
    }
}

/// A periodic timer whose expirations are read from a file; set anew now and then.
pub fn periodic(progress: &Progress, seed: u64) {
    let mut random = Random::new(seed);
    // SAFETY: 1. The call takes no pointers.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) };
    if fd < 0 {
        return progress.wrong("no timer to be had".into());
    }
    // SAFETY: 1. The descriptor was just made, and is nobody else's.
    let mut file = unsafe { File::from_raw_fd(fd) };
    loop {
        let period = libc::timespec { tv_sec: 0, tv_nsec: 50_000 + random.below(5_000_000) as i64 };
        let setting = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: 1. The structure outlives the call.
        unsafe { libc::timerfd_settime(file.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut()) };
        for _ in 0..100 {
            let mut count = [0; 8];
            if file.read_exact(&mut count).is_err() || u64::from_ne_bytes(count) == 0 {
                progress.wrong("the timer's file does not read".into());
            }
            if !progress.turn() {
                return;
            }
        }
    }
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A periodic signal; waits for each.
pub fn signals(progress: &Progress) {
    let period = libc::timeval { tv_sec: 0, tv_usec: 3_000 };
    let setting = libc::itimerval { it_interval: period, it_value: period };
    let handler: extern "C" fn(libc::c_int) = count_signal;
    // SAFETY: 1. The handler only touches an atomic. 2. The structure outlives the call.
    unsafe {
        libc::signal(libc::SIGALRM, handler as libc::sighandler_t);
        libc::setitimer(libc::ITIMER_REAL, &raw const setting, std::ptr::null_mut());
    }
    loop {
        let before = SIGNALS.load(Ordering::Relaxed);
        while SIGNALS.load(Ordering::Relaxed) == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !progress.turn() {
            return;
        }
    }
}

/// Whether there is a real-time clock.
pub fn has_clock() -> bool {
    std::path::Path::new(CLOCK).exists()
}

/// The periodic interrupt of the real-time clock.
pub fn clock(progress: &Progress) {
    let Ok(mut file) = File::open(CLOCK) else {
        return progress.wrong(format!("{CLOCK} does not open"));
    };
    // RTC_IRQP_SET and RTC_PIE_ON (linux/rtc.h).
    const IRQP_SET: libc::c_ulong = 0x4008_700C;
    const PIE_ON: libc::c_ulong = 0x7005;
    // SAFETY: 1. Neither call takes a pointer.
    let set = unsafe {
        libc::ioctl(file.as_raw_fd(), IRQP_SET as _, CLOCK_HZ) | libc::ioctl(file.as_raw_fd(), PIE_ON as _, 0)
    };
    if set != 0 {
        // A kernel whose clock has no periodic interrupt emulates it by its timers, or refuses.
        return while progress.turn() {
            std::thread::sleep(Duration::from_millis(100));
        };
    }
    loop {
        let mut count = [0; 8];
        if file.read_exact(&mut count).is_err() {
            progress.wrong(format!("{CLOCK} does not read"));
        }
        if !progress.turn() {
            return;
        }
    }
}
