//! Physical CPUs and the interrupts between them.

use loom::sync::{Condvar, Mutex};

use crate::irq::{self, Pending, vector};
use crate::percpu::CpuId;

/// Where interrupts wait for a CPU: its local APIC's IRR, one bit for each vector from 0x20 on.
pub struct Line {
    waiting: Mutex<u64>,
    arrived: Condvar,
}

impl Line {
    fn new() -> Self {
        Self { waiting: Mutex::new(0), arrived: Condvar::new() }
    }

    fn raise(&self, vector: u8) {
        *self.waiting.lock().unwrap() |= 1 << (vector - 0x20);
        self.arrived.notify_one();
    }

    /// Returns when an interrupt waits, with all that do.
    fn wait(&self) -> u64 {
        let mut waiting = self.waiting.lock().unwrap();
        while *waiting == 0 {
            waiting = self.arrived.wait(waiting).unwrap();
        }
        *waiting
    }

    fn take(&self) {
        let taken = core::mem::take(&mut *self.waiting.lock().unwrap());
        for vector in (0..64).filter(|bit| taken & 1 << bit != 0) {
            irq::record(percpu::this(), 0x20 + vector);
        }
    }
}

fn send(cpu: CpuId, vector: u8) {
    if let Some(cpu) = percpu::get(cpu) {
        cpu.line.raise(vector);
    }
}

/// As in `hv/src/apic.rs`.
pub(crate) fn kick(cpu: CpuId) {
    irq::post(cpu, Pending::KICK);
    send(cpu, vector::KICK);
}

/// As in `hv/src/apic.rs`.
pub(crate) fn flush_ipi(cpu: CpuId) {
    irq::post(cpu, Pending::FLUSH);
    send(cpu, vector::FLUSH);
}

/// This CPU's guest computes, and makes no exit by itself.
pub fn run_guest_until_interrupt() {
    percpu::this().line.wait();
}

pub(crate) mod x86 {
    use super::percpu;

    pub fn take_interrupts() {
        percpu::this().line.take();
    }

    pub fn halt_until_interrupt() {
        percpu::this().line.wait();
        percpu::this().line.take();
    }
}

pub(crate) mod percpu {
    use core::cell::Cell;
    use core::sync::atomic::AtomicU64 as Plain;

    use super::Line;
    use crate::sync::{AtomicU32, AtomicU64, for_each_cpu};

    pub const MAX_CPUS: usize = 3;

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct CpuId(pub u32);

    pub struct PerCpu {
        pub pending: AtomicU32,
        pub devices: AtomicU64,
        /// Counters, on which nothing depends.
        pub taken: [Plain; 8],
        pub line: Line,
    }

    for_each_cpu!(
        static CPUS: PerCpu = PerCpu {
            pending: AtomicU32::new(0),
            devices: AtomicU64::new(0),
            taken: [const { Plain::new(0) }; 8],
            line: Line::new(),
        }
    );

    loom::thread_local! {
        static CURRENT: Cell<u32> = Cell::new(0);
    }

    /// The thread that calls plays this CPU from now on.
    pub fn attach(cpu: CpuId) {
        CURRENT.with(|current| current.set(cpu.0));
    }

    pub fn count() -> u32 {
        MAX_CPUS as u32
    }

    pub fn current() -> CpuId {
        CpuId(CURRENT.with(Cell::get))
    }

    pub fn get(cpu: CpuId) -> Option<&'static PerCpu> {
        CPUS.get(cpu.0 as usize)
    }

    pub fn this() -> &'static PerCpu {
        &CPUS[current().0 as usize]
    }
}
