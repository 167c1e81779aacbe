//! Gen9 GPU data: registers, commands, page-table entries, context images, address kinds. No behaviour.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;

pub use addr::{Gfn, GgttAddr, Gpa, Hpa, Nanos, PAGE_SIZE, PpgttAddr};
