//! What each physical CPU has of its own, found through its GS base.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::irq::Pending;

/// Most CPUs that are brought up; more stay parked.
pub const MAX_CPUS: usize = 64;

/// A physical CPU, counted densely from 0, which is the one that booted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CpuId(pub u32);

/// One CPU's own data. All of it is atomic: other CPUs post to it.
#[repr(C)]
#[derive(Debug)]
pub struct PerCpu {
    /// Its own address: what `this` loads through GS.
    this: AtomicPtr<PerCpu>,
    id: CpuId,
    apic_id: u32,
    pub(crate) pending: AtomicU32,
    pub(crate) devices: AtomicU64,
    pub(crate) state: AtomicU32,
    pub(crate) stack_top: AtomicU64,
    /// Interrupts taken, by the bit of `Pending` that they set.
    pub(crate) taken: [AtomicU64; 8],
    /// Times that it went over to another virtual CPU.
    pub(crate) switches: AtomicU64,
}

impl PerCpu {
    pub(crate) const fn new(id: CpuId, apic_id: u32) -> Self {
        Self {
            this: AtomicPtr::new(core::ptr::null_mut()),
            id,
            apic_id,
            pending: AtomicU32::new(0),
            devices: AtomicU64::new(0),
            state: AtomicU32::new(0),
            stack_top: AtomicU64::new(0),
            taken: [const { AtomicU64::new(0) }; 8],
            switches: AtomicU64::new(0),
        }
    }

    /// This CPU's number.
    pub const fn id(&self) -> CpuId {
        self.id
    }

    /// Its local APIC's ID.
    pub const fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// Interrupts that it has taken in root mode, those that mean `kind`.
    pub fn interrupts(&self, kind: Pending) -> u64 {
        let places = (0u32..).zip(&self.taken).filter(|(place, _)| kind.bits() & 1 << place != 0);
        places.map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }
}

static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// CPUs that run Prism.
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// A CPU's data, if there is such a CPU.
pub fn get(cpu: CpuId) -> Option<&'static PerCpu> {
    let pointer = CPUS.get(cpu.0 as usize)?.load(Ordering::Acquire);
    // SAFETY: 1. `register` stores only `&'static PerCpu`s. 2. All fields are atomics or never change.
    unsafe { pointer.as_ref() }
}

/// All CPUs that run Prism.
pub fn all() -> impl Iterator<Item = &'static PerCpu> {
    (0..count()).filter_map(|index| get(CpuId(index)))
}

/// Publishes a CPU. CPUs are registered in the order of their numbers, by the boot CPU.
pub(crate) fn register(cpu: &'static PerCpu) {
    let pointer = core::ptr::from_ref(cpu).cast_mut();
    cpu.this.store(pointer, Ordering::Relaxed);
    if let Some(slot) = CPUS.get(cpu.id.0 as usize) {
        slot.store(pointer, Ordering::Release);
        COUNT.store(cpu.id.0 + 1, Ordering::Release);
    }
}

/// Takes back the CPU registered last, which did not start.
pub(crate) fn unregister(cpu: &'static PerCpu) {
    if let Some(slot) = CPUS.get(cpu.id.0 as usize) {
        COUNT.store(cpu.id.0, Ordering::Release);
        slot.store(core::ptr::null_mut(), Ordering::Release);
    }
}

/// The number of the CPU that runs this.
pub fn current() -> CpuId {
    this().id
}

/// The data of the CPU that runs this.
#[cfg(target_os = "none")]
pub fn this() -> &'static PerCpu {
    let pointer: *const PerCpu;
    // SAFETY: 1. `attach` has set GS base to a `&'static PerCpu` whose first word is its own address; the code that
    // leaves and enters guests restores it before it comes here. 2. The instruction only reads.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) pointer, options(nostack, readonly, preserves_flags));
        &*pointer
    }
}

/// Makes `cpu` what `this` finds on this CPU.
pub(crate) fn attach(cpu: &'static PerCpu) {
    let address = core::ptr::from_ref(cpu).expose_provenance() as u64;
    x86_64::registers::model_specific::GsBase::write(x86_64::VirtAddr::new_truncate(address));
}

/// On the host (unit tests): a stand-in, one for each thread.
#[cfg(test)]
pub fn this() -> &'static PerCpu {
    std::thread_local! {
        static THIS: &'static PerCpu = Box::leak(Box::new(PerCpu::new(CpuId(0), 0)));
    }
    THIS.with(|this| *this)
}

/// On the host, outside unit tests: nothing runs here, it only has to build.
#[cfg(not(any(target_os = "none", test)))]
pub fn this() -> &'static PerCpu {
    static THIS: PerCpu = PerCpu::new(CpuId(0), 0);
    &THIS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_found_by_number() {
        let cpu: &'static PerCpu = Box::leak(Box::new(PerCpu::new(CpuId(0), 6)));
        register(cpu);
        assert_eq!(get(CpuId(0)).map(PerCpu::apic_id), Some(6));
        assert_eq!(all().count(), 1);
        assert!(get(CpuId(1)).is_none() && get(CpuId(u32::MAX)).is_none());
    }

    #[test]
    fn the_first_word_is_the_address() {
        assert_eq!(core::mem::offset_of!(PerCpu, this), 0);
    }
}
