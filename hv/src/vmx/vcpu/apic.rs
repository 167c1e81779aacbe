//! The virtual-APIC page, and the CPU's delivery of virtual interrupts out of it (SDM volume 3, chapter 30).
//!
//! It is the guest's APIC only inside the guest: filled before each entry, read back after each exit.

use hv_defs::vmx::{Field, field, secondary, virtual_apic::*};
use hv_defs::{Frame, Hpa, PAGE_SIZE};
use hv_dev::apic::{Interrupts, VectorSet};

use super::VmxVcpu;
use super::memory::msr_bitmaps;
use crate::frame::{self, OwnerId};
use crate::phys::Window;

/// The secondary controls that make the CPU carry the interrupts of an APIC in x2APIC mode. Both need the TPR shadow.
pub(in crate::vmx) const CARRYING: u32 = secondary::VIRTUALIZE_X2APIC | secondary::VIRTUAL_INTERRUPT_DELIVERY;

/// One bit a vector: its end exits.
const EOI_EXIT_BITMAPS: [Field; 4] =
    [field::EOI_EXIT_BITMAP_0, field::EOI_EXIT_BITMAP_1, field::EOI_EXIT_BITMAP_2, field::EOI_EXIT_BITMAP_3];

/// The virtual-APIC page. Unless the CPU carries interrupts, all that is used of it is the task priority, for CR8.
pub(super) struct ApicPage {
    frame: Frame,
    /// What is in the page; while the CPU carries it, as of the last entry.
    held: Interrupts,
}

impl ApicPage {
    pub fn new() -> Option<Self> {
        Some(Self { frame: frame::alloc_zeroed(OwnerId::HYPERVISOR)?, held: Interrupts::default() })
    }

    pub fn hpa(&self) -> Hpa {
        self.frame.hpa()
    }

    pub fn cr8(&self) -> u8 {
        self.tpr() >> 4
    }

    pub fn set_tpr(&self, value: u8) {
        let _ = self.window().write_u32(VTPR, u32::from(value));
    }

    fn tpr(&self) -> u8 {
        self.window().read_u32(VTPR).unwrap_or(0) as u8
    }

    fn load(&mut self, interrupts: &Interrupts) {
        self.set_tpr(interrupts.tpr);
        for (register, new, old) in
            [(VIRR, interrupts.requested, self.held.requested), (VISR, interrupts.in_service, self.held.in_service)]
        {
            if new != old {
                self.write(register, new);
            }
        }
        self.held = *interrupts;
    }

    /// The page as the guest left it.
    fn store(&self) -> Interrupts {
        let left = Interrupts { tpr: self.tpr(), ..self.held };
        // The guest's own requests exit: it can only take and end what it was entered with.
        if left.requested.count() + left.in_service.count() == 0 {
            return left;
        }
        Interrupts { requested: self.read(VIRR), in_service: self.read(VISR), ..left }
    }

    fn write(&self, register: u64, vectors: VectorSet) {
        let halves = vectors.0.into_iter().flat_map(|word| [word as u32, (word >> 32) as u32]);
        for (place, half) in (register..).step_by(STRIDE).zip(halves) {
            let _ = self.window().write_u32(place, half);
        }
    }

    fn read(&self, register: u64) -> VectorSet {
        let half = |place| u64::from(self.window().read_u32(place).unwrap_or(0));
        let step = STRIDE as u64;
        VectorSet([0, 2, 4, 6].map(|n| half(register + n * step) | half(register + (n + 1) * step) << 32))
    }

    fn window(&self) -> Window {
        // SAFETY: 1. The frame is ours until `drop`: RAM in the direct map. 2. Besides this handle only the CPU uses it,
        // inside the guest.
        unsafe { Window::new(self.frame.hpa(), PAGE_SIZE) }
    }
}

impl Drop for ApicPage {
    fn drop(&mut self) {
        frame::free(OwnerId::HYPERVISOR, self.frame);
    }
}

impl VmxVcpu {
    pub(super) fn carry_interrupts(&mut self, interrupts: Option<&Interrupts>) {
        if self.carries != interrupts.is_some() {
            self.carries = interrupts.is_some();
            let [ours, carried] = msr_bitmaps().unwrap_or_default();
            let (controls, bitmap) = if self.carries { (CARRYING, carried) } else { (0, ours) };
            self.vmcs.write(field::SECONDARY_CONTROLS, u64::from(self.secondary | controls));
            self.vmcs.write(field::MSR_BITMAPS, bitmap.0);
        }
        let (Some(interrupts), Some(page)) = (interrupts, &mut self.apic_page) else { return };
        page.load(interrupts);
        let highest = |vectors: VectorSet| u64::from(vectors.highest().unwrap_or(0));
        let status = highest(interrupts.requested) | highest(interrupts.in_service) << 8;
        self.vmcs.write(field::GUEST_INTERRUPT_STATUS, status);
        if self.ends_watched != interrupts.level {
            self.ends_watched = interrupts.level;
            for (field, word) in EOI_EXIT_BITMAPS.into_iter().zip(interrupts.level.0) {
                self.vmcs.write(field, word);
            }
        }
    }

    /// What the guest left of that.
    pub(super) fn carried_interrupts(&mut self) -> Option<Interrupts> {
        let page = self.apic_page.as_mut().filter(|_| self.carries)?;
        page.held = page.store();
        Some(page.held)
    }
}
