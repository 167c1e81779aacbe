//! What CPUs talk to each other by. The files that use it and nothing else of the kind are compiled a second time by
//! `tests/protocol`, with stand-ins that try every interleaving and every value that a load may yield.

pub(crate) use core::hint::spin_loop;
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// A static array with one entry a CPU (the stand-ins have no constant constructors).
macro_rules! for_each_cpu {
    (static $name:ident: $entry:ty = $initial:expr) => {
        static $name: [$entry; $crate::percpu::MAX_CPUS] = [const { $initial }; $crate::percpu::MAX_CPUS];
    };
}
pub(crate) use for_each_cpu;
