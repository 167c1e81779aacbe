//! INIT, STARTUP, STARTUP: a CPU wakes in real mode in a page below 1 MiB and climbs to long mode.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use alloc::boxed::Box;
use hv_defs::{Hpa, PAGE_SIZE};

use crate::paging::{self, NoFrame};
use crate::percpu::{self, CpuId, MAX_CPUS, PerCpu};
use crate::phys::Window;
use crate::smp::{PARKED, STARTING};
use crate::{apic, cpu, say, tables, time};

/// How long a started CPU may take to report.
const PATIENCE_NANOS: u64 = 2_000_000_000;

// Copied to the start page for each CPU; `ebx` holds its linear address throughout. The page tables named first are
// those of the entry code, which map the page at its own address; the CPU leaves them as soon as it runs in the image.
global_asm!(
    ".pushsection .rodata.prism_ap, \"a\"",
    ".balign 16",
    ".code16",
    "prism_ap_page:",
    "cli",
    "cld",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "movzwl %ax, %ebx",
    "shll $4, %ebx",
    "addl %ebx, (prism_ap_gdtr + 2 - prism_ap_page)",
    "addl %ebx, (prism_ap_far32 - prism_ap_page)",
    "addl %ebx, (prism_ap_far64 - prism_ap_page)",
    "lgdtl (prism_ap_gdtr - prism_ap_page)",
    "movl %cr0, %eax",
    "orl $1, %eax",
    "movl %eax, %cr0",
    "ljmpl *(prism_ap_far32 - prism_ap_page)",
    ".code32",
    "prism_ap_32:",
    "movw $0x10, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    // CR4.PAE.
    "movl $0x20, %eax",
    "movl %eax, %cr4",
    "movl (prism_ap_params - prism_ap_page)(%ebx), %eax",
    "movl %eax, %cr3",
    // IA32_EFER: LME and NXE.
    "movl $0xC0000080, %ecx",
    "rdmsr",
    "orl $0x900, %eax",
    "wrmsr",
    // CR0: PG, WP, NE, ET, MP, PE; caches on.
    "movl $0x80010033, %eax",
    "movl %eax, %cr0",
    "ljmpl *(prism_ap_far64 - prism_ap_page)(%ebx)",
    ".code64",
    "prism_ap_64:",
    "movl %ebx, %ebx",
    "movq (prism_ap_params + 8 - prism_ap_page)(%rbx), %rax",
    "movq (prism_ap_params + 16 - prism_ap_page)(%rbx), %rdx",
    "movq (prism_ap_params + 24 - prism_ap_page)(%rbx), %rdi",
    "movq (prism_ap_params + 32 - prism_ap_page)(%rbx), %rcx",
    "jmpq *%rcx",
    ".balign 8",
    "prism_ap_gdt:",
    // Null, 32-bit code, data, 64-bit code; all flat, ring 0.
    ".quad 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00AF9A000000FFFF",
    "prism_ap_gdtr:",
    ".short prism_ap_gdtr - prism_ap_gdt - 1",
    ".long prism_ap_gdt - prism_ap_page",
    "prism_ap_far32:",
    ".long prism_ap_32 - prism_ap_page",
    ".short 0x08",
    "prism_ap_far64:",
    ".long prism_ap_64 - prism_ap_page",
    ".short 0x18",
    ".balign 8",
    "prism_ap_params:",
    ".fill 5, 8, 0",
    "prism_ap_page_end:",
    ".popsection",
    // In the image, which both page tables map alike: rax = CR3, rdx = stack, rdi = its `PerCpu`.
    "prism_ap_image:",
    "movq %rax, %cr3",
    "movq %rdx, %rsp",
    "xorl %ebp, %ebp",
    "call {main}",
    "ud2",
    main = sym ap_main,
    options(att_syntax)
);

unsafe extern "C" {
    static prism_ap_page: u8;
    static prism_ap_params: u8;
    static prism_ap_page_end: u8;
    static prism_ap_image: u8;
}

/// TSC of the CPU started last when it reached Rust: compared with the boot CPU's.
static ARRIVED: AtomicU64 = AtomicU64::new(0);

/// Starts every CPU of `apic_ids` but this one in `page`. Those that do not answer are named and left out.
pub(crate) fn start_others(apic_ids: &[u32], page: Hpa, first_tables: Hpa) -> Result<(), NoFrame> {
    let own = apic::id();
    for &apic_id in apic_ids.iter().filter(|&&apic_id| apic_id != own) {
        let index = percpu::count();
        if index as usize >= MAX_CPUS {
            break;
        }
        start_one(CpuId(index), apic_id, page, first_tables)?;
    }
    // The entry code's tables map everything writable and executable: nobody may load them again.
    window(first_tables).zero(0, PAGE_SIZE).map_err(|_| NoFrame)
}

fn start_one(id: CpuId, apic_id: u32, page: Hpa, first_tables: Hpa) -> Result<(), NoFrame> {
    let cpu: &'static PerCpu = Box::leak(Box::new(PerCpu::new(id, apic_id)));
    let stack = paging::map_stack(id.0)?;
    cpu.stack_top.store(stack, Ordering::Relaxed);
    let params = [
        first_tables.0,
        paging::root().0,
        stack,
        core::ptr::from_ref(cpu).expose_provenance() as u64,
        (&raw const prism_ap_image).addr() as u64,
    ];
    fill(page, &params).ok_or(NoFrame)?;
    percpu::register(cpu);
    let sent = time::tsc();
    apic::send_init(apic_id);
    time::spin(10_000_000);
    for _ in 0..2 {
        apic::send_startup(apic_id, (page.0 / PAGE_SIZE) as u8);
        if arrives(cpu, 200_000) {
            break;
        }
    }
    if !arrives(cpu, PATIENCE_NANOS) {
        // It stays registered nowhere, but its stack is kept: it may still wake up.
        percpu::unregister(cpu);
        apic::send_init(apic_id);
        say!("smp: the CPU with APIC ID {apic_id} does not start; going on without it");
        return Ok(());
    }
    let arrived = ARRIVED.load(Ordering::Acquire);
    if !(sent..=time::tsc()).contains(&arrived) {
        say!("smp: the TSC of CPU {} is not in step with that of CPU 0; guests may see time go back", id.0);
    }
    Ok(())
}

/// Writes code and parameters to the start page.
fn fill(page: Hpa, params: &[u64]) -> Option<()> {
    let (start, end) = (&raw const prism_ap_page, &raw const prism_ap_page_end);
    let len = end.addr() - start.addr();
    // SAFETY: 1. The labels enclose constant data of the image.
    let code = unsafe { core::slice::from_raw_parts(start, len) };
    let window = window(page);
    window.write(0, code).ok()?;
    let at = ((&raw const prism_ap_params).addr() - start.addr()) as u64;
    for (index, value) in (0u64..).zip(params) {
        window.write_u64(at + 8 * index, *value)?;
    }
    Some(())
}

fn window(page: Hpa) -> Window {
    // SAFETY: 1. The start page and the first tables are RAM in the direct map. 2. No reference to either exists: the
    // one is nobody's, the other is only named to the CPUs.
    unsafe { Window::new(page, PAGE_SIZE) }
}

fn arrives(cpu: &PerCpu, nanos: u64) -> bool {
    let end = time::now().0.saturating_add(nanos);
    while cpu.state.load(Ordering::Acquire) == STARTING {
        if time::now().0 >= end {
            return false;
        }
        core::hint::spin_loop();
    }
    cpu.state.load(Ordering::Acquire) >= PARKED
}

/// Where a started CPU enters Rust, on its own stack and on Prism's page tables.
extern "C" fn ap_main(this: &'static PerCpu) -> ! {
    ARRIVED.store(time::tsc(), Ordering::Release);
    percpu::attach(this);
    cpu::init();
    tables::load(this.id());
    if apic::init_cpu().is_ok() {
        apic::start_timer();
        super::park(this)
    }
    crate::power::halt()
}
