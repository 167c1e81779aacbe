//! GDT, TSS and IDT. Each CPU has its own GDT and TSS (with stacks for NMI, #DF and #MC); the IDT is shared.

use alloc::boxed::Box;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use crate::percpu::CpuId;
use crate::trap::stub_address;

/// Selector of a segment that nobody loads: its limit is the CPU's number.
const NUMBER: u16 = 0x28;
/// A descriptor of data, present, accessed, at privilege level 0.
const DATA_SEGMENT: u64 = 1 << 47 | 1 << 44 | 1 << 40;

/// Bytes of each emergency stack.
const EMERGENCY_STACK: usize = 16 * 1024;

/// Places in the interrupt stack table of the TSS.
const IST_NMI: u16 = 0;
const IST_DOUBLE_FAULT: u16 = 1;
const IST_MACHINE_CHECK: u16 = 2;

static EARLY_IDT: Once<InterruptDescriptorTable> = Once::new();
static IDT: Once<InterruptDescriptorTable> = Once::new();

/// An IDT for the time before the boot CPU has a TSS: exceptions are reported on the stack in use.
pub(crate) fn load_early_idt() {
    EARLY_IDT.call_once(build_idt).load();
}

/// Gives CPU `cpu`, which is this one, its GDT, TSS and the IDT. From the heap, for good.
pub(crate) fn load(cpu: CpuId) {
    let tss: &'static TaskStateSegment = Box::leak(Box::new(build_tss()));
    let gdt: &'static mut GlobalDescriptorTable = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    let number = gdt.append(Descriptor::UserSegment(DATA_SEGMENT | u64::from(cpu.0)));
    assert_eq!(number.0, NUMBER);
    gdt.load();
    // SAFETY: 1. The selectors are those of the GDT just loaded, of the kind that each register takes. 2. GS is left
    // alone: its base is the CPU's own data.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(SegmentSelector(0));
        ES::set_reg(SegmentSelector(0));
        load_tss(task);
    }
    IDT.call_once(build_idt_with_stacks).load();
}

/// The number of the CPU that runs this, for handlers that may come while GS is a guest's; 0 before there are tables.
/// GDTR is Prism's own from the very exit on, whichever the vendor.
pub(crate) fn current() -> CpuId {
    let mut limit = 0u32;
    // SAFETY: 1. LSL only reads the descriptor; where there is none, it leaves the register as it is.
    unsafe {
        core::arch::asm!("lsl {limit:e}, {selector:e}", limit = inout(reg) limit, selector = in(reg) u32::from(NUMBER),
            options(nostack, readonly));
    }
    CpuId(limit)
}

fn build_tss() -> TaskStateSegment {
    let mut tss = TaskStateSegment::new();
    // The structure is packed: fill a copy.
    let mut stacks = tss.interrupt_stack_table;
    for ist in [IST_NMI, IST_DOUBLE_FAULT, IST_MACHINE_CHECK] {
        let stack: &'static mut [u8] = Box::leak(Box::new([0u8; EMERGENCY_STACK]));
        let top = stack.as_mut_ptr_range().end.expose_provenance() as u64 & !0xF;
        if let Some(slot) = stacks.get_mut(usize::from(ist)) {
            *slot = VirtAddr::new_truncate(top);
        }
    }
    tss.interrupt_stack_table = stacks;
    tss
}

fn build_idt() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    macro_rules! handle {
        ($($vector:literal $name:ident,)*) => { $(idt.$name.set_handler_addr(stub_address($vector));)* };
    }
    // SAFETY: 1. Every stub saves and restores all registers and handles (or not) the error code of its vector.
    unsafe {
        handle! {
            0 divide_error, 1 debug, 2 non_maskable_interrupt, 3 breakpoint, 4 overflow, 5 bound_range_exceeded,
            6 invalid_opcode, 7 device_not_available, 8 double_fault, 10 invalid_tss, 11 segment_not_present,
            12 stack_segment_fault, 13 general_protection_fault, 14 page_fault, 16 x87_floating_point,
            17 alignment_check, 18 machine_check, 19 simd_floating_point, 20 virtualization,
            21 cp_protection_exception, 28 hv_injection_exception, 29 vmm_communication_exception,
            30 security_exception,
        }
        for (vector, entry) in (32u8..).zip(idt.slice_mut(32..)) {
            entry.set_handler_addr(stub_address(vector));
        }
    }
    idt
}

fn build_idt_with_stacks() -> InterruptDescriptorTable {
    let mut idt = build_idt();
    // SAFETY: 1. As in `build_idt`. 2. `build_tss` gives every CPU these stacks, and `load` loads the TSS first.
    unsafe {
        idt.non_maskable_interrupt.set_handler_addr(stub_address(2)).set_stack_index(IST_NMI);
        idt.double_fault.set_handler_addr(stub_address(8)).set_stack_index(IST_DOUBLE_FAULT);
        idt.machine_check.set_handler_addr(stub_address(18)).set_stack_index(IST_MACHINE_CHECK);
    }
    idt
}
