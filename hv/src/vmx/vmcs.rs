//! A virtual-machine control structure in a frame of its own, read and written field by field.

#[cfg(not(test))]
pub(super) use self::hardware::Vmcs;
#[cfg(test)]
pub(super) use self::model::Vmcs;

#[cfg(not(test))]
mod hardware {
    use core::cell::Cell;
    use core::sync::atomic::{AtomicU64, Ordering};

    use hv_defs::vmx::Field;
    use hv_defs::{Frame, PAGE_SIZE};

    use crate::frame::{self, OwnerId};
    use crate::percpu::{self, MAX_CPUS};
    use crate::phys::Window;
    use crate::vmx::instructions as vmx;

    /// Address of each CPU's current control structure; 0 for none.
    static CURRENT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

    /// A control structure. It is used by the CPU that made it, only.
    pub(in crate::vmx) struct Vmcs {
        frame: Frame,
        /// The first field that the CPU would not read or write.
        refused: Cell<Option<Field>>,
    }

    impl Vmcs {
        /// A cleared structure. `None` without memory, or if the CPU does not take it.
        pub fn new(revision: u32) -> Option<Self> {
            let frame = frame::alloc_zeroed(OwnerId::HYPERVISOR)?;
            // SAFETY: 1. The frame was just allocated: RAM in the direct map that nobody else refers to.
            let window = unsafe { Window::new(frame.hpa(), PAGE_SIZE) };
            window.write_u32(0, revision)?;
            // SAFETY: 1. Virtual CPUs are made after VMXON. 2. The frame is ours, and on no CPU.
            unsafe { vmx::vmclear(frame.hpa()) }.ok()?;
            Some(Self { frame, refused: Cell::new(None) })
        }

        /// Makes it the current one of this CPU.
        pub fn make_current(&self) {
            let address = self.frame.hpa();
            let Some(current) = CURRENT.get(percpu::current().0 as usize) else { return };
            if current.load(Ordering::Relaxed) != address.0 {
                // SAFETY: 1. As for `new`. 2. It is only ever used by the CPU that made it. 3. `new` set the revision.
                let _ = unsafe { vmx::vmptrld(address) };
                current.store(address.0, Ordering::Relaxed);
            }
        }

        /// A field; 0 if the CPU has no such field, which `refused` tells.
        pub fn read(&self, field: Field) -> u64 {
            self.make_current();
            // SAFETY: 1. This structure is current.
            unsafe { vmx::vmread(field) }.unwrap_or_else(|_| {
                self.note(field);
                0
            })
        }

        /// Sets a field.
        pub fn write(&mut self, field: Field, value: u64) {
            self.make_current();
            // SAFETY: 1. This structure is current. 2. `vcpu` and `host`, the only callers, see to it.
            if unsafe { vmx::vmwrite(field, value & field.mask()) }.is_err() {
                self.note(field);
            }
        }

        /// The first field that the CPU refused.
        pub fn refused(&self) -> Option<Field> {
            self.refused.get()
        }

        fn note(&self, field: Field) {
            self.refused.set(self.refused.get().or(Some(field)));
        }
    }

    impl Drop for Vmcs {
        fn drop(&mut self) {
            // SAFETY: 1. and 2. as in `new`: this CPU is the only one that ever used it.
            let _ = unsafe { vmx::vmclear(self.frame.hpa()) };
            if let Some(current) = CURRENT.get(percpu::current().0 as usize) {
                let _ = current.compare_exchange(self.frame.hpa().0, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
            frame::free(OwnerId::HYPERVISOR, self.frame);
        }
    }
}

/// For unit tests: a map.
#[cfg(test)]
mod model {
    use std::collections::BTreeMap;

    use hv_defs::vmx::Field;

    pub(in crate::vmx) struct Vmcs(BTreeMap<Field, u64>);

    impl Vmcs {
        pub fn new(_: u32) -> Option<Self> {
            Some(Self(BTreeMap::new()))
        }
        pub fn make_current(&self) {}
        pub fn read(&self, field: Field) -> u64 {
            self.0.get(&field).copied().unwrap_or(0)
        }
        pub fn write(&mut self, field: Field, value: u64) {
            self.0.insert(field, value & field.mask());
        }
        pub fn refused(&self) -> Option<Field> {
            None
        }
    }
}
