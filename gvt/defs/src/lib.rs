//! Gen9 GPU data: registers, commands, page-table entries, context images, address kinds. No behaviour.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod blt;
pub mod command;
pub mod context;
pub mod engine;
pub mod execlist;
pub mod fence;
pub mod gfx;
pub mod masked;
pub mod mi;
pub mod nonpriv;
pub mod opcodes;
pub mod operand;
pub mod pci;
pub mod pte;
pub mod pvinfo;
pub mod reg;
pub mod reset;
pub mod residue;
pub mod ring;
pub mod trace;

pub use addr::{Gfn, GgttAddr, Gpa, Hpa, Nanos, PAGE_SIZE, PpgttAddr};
pub use engine::{ENGINES, Engine, EngineInfo, EngineMask, event};
