//! One virtual CPU on VT-x.

mod apic;
mod decode;
mod memory;
mod state;

use core::fmt;

use hv_defs::regs::{self, Cr0, Cr4, Efer, Rflags};
use hv_defs::vmx::{
    EPTP_WB_4_LEVELS, Field, Segment, SegmentFields, entry_control, event, exit as reason, field, interruptibility,
    primary, rights, secondary,
};
use hv_defs::{Hpa, Nanos};
use hv_dev::apic::{Interrupts, VectorSet};
use hv_emu::{Bitness, Registers};

use self::apic::ApicPage;
pub(super) use self::apic::CARRYING;
use self::memory::msr_bitmaps;
use super::Vmx;
use super::capabilities::Capabilities;
use super::entry;
use super::vmcs::Vmcs;
use super::{host, instructions as vmx, switched};
use crate::load::linux::Entry;
use crate::switch::Gprs;
use crate::vendor::{Event, Exit, Setup, Start, VirtualCpu, Window};
use crate::{speculation, time};

/// A virtual CPU on VT-x.
pub struct VmxVcpu {
    vmcs: Vmcs,
    gprs: Gprs,
    /// Controls as they are in the control structure, without the windows asked for.
    base_controls: u32,
    /// The same with them.
    controls: u32,
    /// Secondary controls, without those that make the CPU carry interrupts.
    secondary: u32,
    /// What the next entry delivers: interruption information and error code.
    queued: Option<(u32, u32)>,
    /// Where guests that have a TPR shadow keep CR8.
    apic_page: Option<ApicPage>,
    /// Whether the CPU may carry interrupts, and whether the control structure says so.
    can_carry: bool,
    carries: bool,
    /// Vectors whose end exits.
    ends_watched: VectorSet,
    /// CR8 of the others.
    cr8: u8,
    /// Rate of the preemption timer (see `Capabilities`), if there is one.
    timer_shift: Option<u32>,
    /// Identifier of linear translations, and of the switched registers.
    tag: u16,
    /// Basic reason of the last exit.
    reason: u32,
    launched: bool,
    /// The switched registers are to be those after RESET.
    fresh: bool,
    stale: Stale,
}

/// Cached translations to drop at the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Stale {
    nested: bool,
    linear: bool,
}

/// CR0 bits that the guest sees as it set them while the CPU keeps its own: VMX operation needs NE, and caching is
/// nothing that a guest switches off for the whole CPU.
const CR0_OWNED: u64 = Cr0::NE.bits() | Cr0::CD.bits() | Cr0::NW.bits();
/// CR4 bits that guests may set; the others do not exist for them (CPUID shows none of their features).
const CR4_OFFERED: u64 = Cr4::all().bits() & !(Cr4::VMXE.bits() | Cr4::LA57.bits() | Cr4::PKE.bits());
/// CR4 bits that stay as Prism needs them: VMX operation, and machine checks that exit instead of ending everything.
const CR4_FORCED: u64 = Cr4::VMXE.bits() | Cr4::MCE.bits();
const CR4_OWNED: u64 = !CR4_OFFERED | CR4_FORCED;

impl VirtualCpu for VmxVcpu {
    type Extension = Vmx;

    fn new(setup: &Setup) -> Option<Self> {
        let capabilities = Capabilities::of_this_cpu().ok()?;
        let apic_page = if capabilities.has_tpr_shadow() { Some(ApicPage::new()?) } else { None };
        let mut vcpu = Self {
            vmcs: Vmcs::new(capabilities.revision)?,
            gprs: Gprs::default(),
            base_controls: capabilities.primary,
            controls: capabilities.primary,
            secondary: capabilities.secondary,
            queued: None,
            apic_page,
            can_carry: capabilities.can_carry,
            carries: false,
            ends_watched: VectorSet::default(),
            cr8: 0,
            timer_shift: capabilities.has_preemption_timer().then_some(capabilities.timer_shift),
            tag: setup.tag,
            reason: 0,
            launched: false,
            fresh: true,
            stale: Stale { nested: true, linear: true },
        };
        host::describe_to(&mut vcpu.vmcs);
        let [bitmap, _] = msr_bitmaps()?;
        vcpu.set_controls(&capabilities, setup.nested_root.0 | EPTP_WB_4_LEVELS, bitmap);
        Some(vcpu)
    }

    fn start(&mut self, start: Start) {
        self.reset();
        match start {
            Start::Real { vector } => {
                self.vmcs.write(field::GUEST_CS_SELECTOR, u64::from(vector) << 8);
                self.vmcs.write(field::GUEST_CS_BASE, u64::from(vector) << 12);
            }
            Start::Long(Entry { rip, rsi, rsp, cr3, gdt, gdt_limit }) => {
                self.gprs.0[6] = rsi;
                self.start_long();
                let rest = [
                    (field::GUEST_RIP, rip),
                    (field::GUEST_RSP, rsp),
                    (field::GUEST_CR3, cr3),
                    (field::GUEST_GDTR_BASE, gdt.0),
                    (field::GUEST_GDTR_LIMIT, u64::from(gdt_limit)),
                ];
                self.write_all(&rest);
            }
        }
    }

    fn run(&mut self, extension: &mut Vmx) -> Exit {
        extension.own(self.tag, self.fresh);
        self.fresh = false;
        self.drop_stale(&extension.capabilities);
        self.queue();
        self.vmcs.make_current();
        let gprs = &raw mut self.gprs;
        extension.barriers.on_entry(speculation::command);
        // SAFETY: 1. `extension` exists: VMXON has been done on this CPU; root mode runs with interrupts off (see `irq`).
        // 2. The structure was built by `new` on this CPU, with nested tables that map only what the VM owns;
        // `host::describe_to` wrote the host state. 3. `launched` is set by the first entry that was not refused.
        let refused = unsafe { entry::enter(gprs, u64::from(self.launched)) } != 0;
        extension.barriers.on_exit(speculation::command);
        if refused || self.vmcs.refused().is_some() {
            self.reason = u32::MAX;
            return Exit::EntryFailed(self.vmcs.read(field::INSTRUCTION_ERROR));
        }
        self.launched = true;
        self.decode()
    }

    fn registers(&self) -> Registers {
        let mut gpr = self.gprs.0;
        gpr[4] = self.vmcs.read(field::GUEST_RSP);
        let efer = self.efer();
        let cs_rights = self.vmcs.read(field::GUEST_CS_RIGHTS);
        let long = efer & Efer::LMA.bits() != 0 && cs_rights & rights::LONG != 0;
        // 64-bit code has no use for the rest; to read it would cost more than most exits do otherwise.
        let flat = |which: Segment| if long { hv_defs::Segment::default() } else { self.segment(which) };
        let based = |which: Segment| {
            let base = || hv_defs::Segment { base: self.vmcs.read(which.fields().base), ..Default::default() };
            if long { base() } else { self.segment(which) }
        };
        Registers {
            gpr,
            rip: self.rip(),
            rflags: self.vmcs.read(field::GUEST_RFLAGS),
            cr0: self.seen(field::GUEST_CR0, CR0_OWNED, field::CR0_READ_SHADOW),
            cr3: self.vmcs.read(field::GUEST_CR3),
            cr4: self.cr4(),
            efer,
            cpl: (self.vmcs.read(field::GUEST_SS_RIGHTS) >> rights::DPL_SHIFT & rights::DPL_MASK) as u8,
            bitness: match (long, cs_rights & rights::DEFAULT_BIG != 0) {
                (true, _) => Bitness::Bits64,
                (false, true) => Bitness::Bits32,
                (false, false) => Bitness::Bits16,
            },
            cs: flat(Segment::Cs),
            ds: flat(Segment::Ds),
            es: flat(Segment::Es),
            ss: flat(Segment::Ss),
            fs: based(Segment::Fs),
            gs: based(Segment::Gs),
            tr: self.segment(Segment::Tr),
        }
    }

    fn retire(&mut self, registers: &Registers) {
        self.gprs.0 = registers.gpr;
        self.vmcs.write(field::GUEST_RSP, registers.gpr[4]);
        self.vmcs.write(field::GUEST_RIP, registers.rip);
        self.vmcs.write(field::GUEST_RFLAGS, registers.rflags);
        self.end_shadow();
    }

    fn skip(&mut self, length: u8) {
        let next = self.rip().wrapping_add(u64::from(length));
        // Outside 64-bit code RIP never has more than 32 bits to begin with.
        let wraps = next > u64::from(u32::MAX) && self.registers().bitness != Bitness::Bits64;
        self.vmcs.write(field::GUEST_RIP, if wraps { next & 0xFFFF_FFFF } else { next });
        self.end_shadow();
        self.trap();
    }

    fn trap(&mut self) {
        if self.vmcs.read(field::GUEST_RFLAGS) & Rflags::TF.bits() != 0 && !self.event_queued() {
            // What a shadow held back comes with it.
            let held = self.vmcs.read(field::GUEST_PENDING_DEBUG_EXCEPTIONS) & 0xF;
            self.vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
            switched::set_dr6(switched::dr6() | regs::DR6_BS | held);
            self.inject(Event::Exception { vector: regs::vector::DB, error_code: None });
        }
    }

    fn instruction_length(&self) -> Option<u8> {
        // Only exits that an instruction made on purpose tell it (28.2.5).
        let told = matches!(
            self.reason,
            reason::CPUID..=reason::INVD
                | reason::RDPMC
                | reason::VMCALL..=reason::CR_ACCESS
                | reason::IO..=reason::WRMSR
                | reason::WBINVD
                | reason::XSETBV
        );
        let length = || self.vmcs.read(field::EXIT_INSTRUCTION_LENGTH);
        told.then(length).filter(|length| (1..=15).contains(length)).map(|length| length as u8)
    }

    fn gpr(&self, number: u8) -> u64 {
        match number {
            4 => self.vmcs.read(field::GUEST_RSP),
            _ => self.gprs.0.get(usize::from(number)).copied().unwrap_or(0),
        }
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        if number == 4 {
            self.vmcs.write(field::GUEST_RSP, value);
        } else if let Some(gpr) = self.gprs.0.get_mut(usize::from(number)) {
            *gpr = value;
        }
    }

    fn rip(&self) -> u64 {
        self.vmcs.read(field::GUEST_RIP)
    }

    fn set_cr2(&mut self, value: u64) {
        switched::set_cr2(value);
    }

    fn set_cr4(&mut self, value: u64) {
        self.write_all(&[
            (field::GUEST_CR4, value & !CR4_OWNED | CR4_FORCED),
            (field::CR4_READ_SHADOW, value & CR4_OWNED),
        ]);
    }

    fn cr4(&self) -> u64 {
        self.seen(field::GUEST_CR4, CR4_OWNED, field::CR4_READ_SHADOW)
    }

    fn efer(&self) -> u64 {
        self.vmcs.read(field::GUEST_IA32_EFER)
    }

    fn set_efer(&mut self, value: u64) {
        // Entries cached while NXE was clear know nothing of the bit that it gives a meaning to.
        self.stale.linear |= (value ^ self.efer()) & Efer::NXE.bits() != 0;
        self.vmcs.write(field::GUEST_IA32_EFER, value);
        let controls = self.vmcs.read(field::ENTRY_CONTROLS) & !u64::from(entry_control::IA32E_GUEST);
        let long = if value & Efer::LMA.bits() != 0 { u64::from(entry_control::IA32E_GUEST) } else { 0 };
        self.vmcs.write(field::ENTRY_CONTROLS, controls | long);
    }

    fn pat(&self) -> u64 {
        self.vmcs.read(field::GUEST_IA32_PAT)
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_IA32_PAT, value);
    }

    /// The MSR bitmaps let guests at these without an exit.
    fn native_msr(&self, _: u32) -> Option<u64> {
        None
    }

    fn set_native_msr(&mut self, _: u32, _: u64) -> Option<()> {
        None
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(field::TSC_OFFSET, offset);
    }

    fn cr8(&self) -> u8 {
        self.apic_page.as_ref().map_or(self.cr8, ApicPage::cr8)
    }

    fn set_cr8(&mut self, value: u8) {
        self.cr8 = value & 0xF;
        if let Some(page) = &self.apic_page {
            page.set_tpr(self.cr8 << 4);
        }
    }

    fn interruptible(&self) -> bool {
        let blocked = interruptibility::STI | interruptibility::MOV_SS;
        !self.event_queued()
            && self.vmcs.read(field::GUEST_RFLAGS) & Rflags::IF.bits() != 0
            && self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE) & blocked == 0
            && self.owes_no_trap()
    }

    fn nmi_allowed(&self) -> bool {
        // STI blocks NMIs on some CPUs (27.3.1.5).
        let blocked = interruptibility::STI | interruptibility::MOV_SS | interruptibility::NMI;
        !self.event_queued()
            && self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE) & blocked == 0
            && self.owes_no_trap()
    }

    fn event_queued(&self) -> bool {
        self.queued.is_some()
    }

    fn inject(&mut self, what: Event) {
        let kind = |kind: u32| event::VALID | kind << event::TYPE_SHIFT;
        self.queued = Some(match what {
            Event::Interrupt(vector) => (kind(event::EXTERNAL_INTERRUPT) | u32::from(vector), 0),
            Event::Nmi => (kind(event::NMI) | u32::from(regs::vector::NMI), 0),
            Event::Exception { vector, error_code } => {
                // In real mode nothing pushes an error code, and an entry with one is refused.
                let protected = self.vmcs.read(field::GUEST_CR0) & Cr0::PE.bits() != 0;
                let code = error_code.filter(|_| protected);
                let flag = if code.is_some() { event::ERROR_CODE } else { 0 };
                (kind(event::HARDWARE_EXCEPTION) | flag | u32::from(vector), code.unwrap_or(0))
            }
        });
    }

    fn set_window(&mut self, window: Window) {
        let bits = if window == Window::Interrupt { primary::INTERRUPT_WINDOW_EXITING } else { 0 };
        self.set_primary(self.base_controls | bits);
        if self.apic_page.is_some() {
            // An entry with a threshold above the TPR is refused; a class that waits is not above it.
            let class = if let Window::Priority { class } = window { class.min(self.cr8()) } else { 0 };
            self.vmcs.write(field::TPR_THRESHOLD, u64::from(class));
        }
    }

    fn await_nmi(&mut self) {
        self.set_primary(self.controls | primary::NMI_WINDOW_EXITING);
    }

    fn can_carry(&self) -> bool {
        self.can_carry
    }

    fn carry(&mut self, interrupts: Option<&Interrupts>) {
        self.carry_interrupts(interrupts);
    }

    fn carried(&mut self) -> Option<Interrupts> {
        self.carried_interrupts()
    }

    /// Interrupts exit whatever the guest's IF is, so the host's timer would do; but Bochs (2.7) holds them back from a
    /// guest that was entered with IF clear. It honours this timer.
    fn set_deadline(&mut self, deadline: Option<Nanos>) {
        let Some(shift) = self.timer_shift else { return };
        let ticks = deadline.map_or(u64::MAX, |deadline| time::nanos_to_tsc(deadline).saturating_sub(time::tsc()));
        let count = (ticks >> shift).saturating_add(1).min(u64::from(u32::MAX));
        self.vmcs.write(field::PREEMPTION_TIMER_VALUE, count);
    }

    fn flush_tlb(&mut self) {
        self.stale.nested = true;
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if let Some(field) = self.vmcs.refused() {
            writeln!(out, "the CPU has no field {} ({:#x})", field.name(), field.0)?;
        }
        for fields in REPORTED.chunks(3) {
            for field in fields {
                write!(out, "{}={:#x} ", field.name(), self.vmcs.read(*field))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// What explains a crash or an entry that the CPU refused.
const REPORTED: &[Field] = &[
    field::EXIT_REASON,
    field::EXIT_QUALIFICATION,
    field::INSTRUCTION_ERROR,
    field::IDT_VECTORING_INFORMATION,
    field::GUEST_PHYSICAL_ADDRESS,
    field::GUEST_LINEAR_ADDRESS,
    field::ENTRY_INTERRUPTION_INFORMATION,
    field::GUEST_INTERRUPTIBILITY_STATE,
    field::GUEST_CR0,
    field::GUEST_CR3,
    field::GUEST_CR4,
    field::GUEST_IA32_EFER,
    field::CR0_READ_SHADOW,
    field::CR4_READ_SHADOW,
    field::GUEST_RFLAGS,
    field::ENTRY_CONTROLS,
    field::GUEST_CS_SELECTOR,
    field::GUEST_CS_RIGHTS,
    field::GUEST_CS_BASE,
    field::GUEST_CS_LIMIT,
    field::GUEST_SS_SELECTOR,
    field::GUEST_SS_RIGHTS,
    field::GUEST_TR_RIGHTS,
    field::GUEST_LDTR_RIGHTS,
    field::PIN_BASED_CONTROLS,
    field::PRIMARY_CONTROLS,
    field::SECONDARY_CONTROLS,
    field::EXIT_CONTROLS,
];

impl VmxVcpu {
    fn set_controls(&mut self, capabilities: &Capabilities, eptp: u64, bitmap: Hpa) {
        let has_vpid = capabilities.secondary & secondary::ENABLE_VPID != 0;
        self.write_all(&[
            (field::PIN_BASED_CONTROLS, u64::from(capabilities.pin)),
            (field::PRIMARY_CONTROLS, u64::from(capabilities.primary)),
            (field::SECONDARY_CONTROLS, u64::from(capabilities.secondary)),
            (field::EXIT_CONTROLS, u64::from(capabilities.exit)),
            (field::ENTRY_CONTROLS, u64::from(capabilities.entry)),
            (field::EXCEPTION_BITMAP, u64::from(decode::WATCHED)),
            (field::CR0_GUEST_HOST_MASK, CR0_OWNED),
            (field::CR4_GUEST_HOST_MASK, CR4_OWNED),
            (field::EPT_POINTER, eptp),
            (field::VMCS_LINK_POINTER, hv_defs::vmx::NO_LINK),
            (field::MSR_BITMAPS, bitmap.0),
        ]);
        if has_vpid {
            self.vmcs.write(field::VIRTUAL_PROCESSOR_ID, u64::from(self.tag));
        }
        if let Some(page) = &self.apic_page {
            self.vmcs.write(field::VIRTUAL_APIC_ADDRESS, page.hpa().0);
        }
        if capabilities.secondary & secondary::ENCLS_EXITING != 0 {
            // CPUID hides SGX, so all of its leaves are undefined instructions.
            self.vmcs.write(field::ENCLS_EXITING_BITMAP, u64::MAX);
        }
    }

    fn set_primary(&mut self, controls: u32) {
        if controls != self.controls {
            self.controls = controls;
            self.vmcs.write(field::PRIMARY_CONTROLS, u64::from(controls));
        }
    }

    fn write_all(&mut self, values: &[(Field, u64)]) {
        for (field, value) in values {
            self.vmcs.write(*field, *value);
        }
    }

    /// Flushes where Prism, not the guest, changed what translations depend on.
    ///
    /// INVEPT: nested mappings of this VM changed since the last entry on this CPU (the run loop compares generations).
    /// Not after a fault on a page that may now be written: an EPT violation drops what it was about (29.4.3.1).
    /// INVVPID: a new life of this virtual CPU began with other control registers under the same identifier, or EFER.NXE
    /// changed. The guest's own moves to control registers, INVLPG and INVPCID flush by themselves.
    fn drop_stale(&mut self, capabilities: &Capabilities) {
        if self.stale.nested {
            capabilities.flush_nested(self.vmcs.read(field::EPT_POINTER));
        }
        if self.stale.linear {
            capabilities.flush_linear(self.tag);
        }
        self.stale = Stale::default();
    }

    /// Hands what waits to the next entry.
    fn queue(&mut self) {
        // The CPU clears the valid bit of an event that it delivers.
        if let Some((information, code)) = self.queued.take() {
            self.vmcs.write(field::ENTRY_INTERRUPTION_INFORMATION, u64::from(information));
            if information & event::ERROR_CODE != 0 {
                self.vmcs.write(field::ENTRY_EXCEPTION_ERROR_CODE, u64::from(code));
            }
        }
    }

    /// An instruction that Prism carried out ends the shadow of STI or MOV SS.
    fn end_shadow(&mut self) {
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        let shadow = interruptibility::STI | interruptibility::MOV_SS;
        if state & shadow != 0 {
            self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, state & !shadow);
        }
    }

    /// Whether the instruction before the exit left no debug trap behind: it comes before NMIs and interrupts, and an entry
    /// that injects one of those would lose it (27.7.3).
    fn owes_no_trap(&self) -> bool {
        self.vmcs.read(field::GUEST_PENDING_DEBUG_EXCEPTIONS) == 0
    }

    /// A control register as the guest sees it.
    fn seen(&self, real: Field, owned: u64, shadow: Field) -> u64 {
        self.vmcs.read(real) & !owned | self.vmcs.read(shadow) & owned
    }

    fn segment(&self, which: Segment) -> hv_defs::Segment {
        let SegmentFields { rights, limit, base, .. } = which.fields();
        hv_defs::Segment {
            selector: 0,
            attrib: rights::packed(self.vmcs.read(rights)),
            limit: self.vmcs.read(limit) as u32,
            base: self.vmcs.read(base),
        }
    }
}

#[cfg(test)]
mod tests;
