//! `hv/src/sync.rs`, for loom.

pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// Loom's atomics are made anew for each interleaving.
macro_rules! for_each_cpu {
    (static $name:ident: $entry:ty = $initial:expr) => {
        loom::lazy_static! {
            static ref $name: [$entry; $crate::percpu::MAX_CPUS] = core::array::from_fn(|_| $initial);
        }
    };
}
pub(crate) use for_each_cpu;
