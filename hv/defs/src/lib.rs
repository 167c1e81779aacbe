//! x86 architecture data: address kinds, access widths, control blocks, exit codes, CPUID and MSR policy. No behaviour.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod apic;
pub mod cpuid;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod segment;
pub mod svm;
pub mod vmx;

pub use addr::{Frame, Gfn, Gpa, Gva, Hpa, Nanos, PAGE_SIZE, Width};
pub use segment::Segment;
