//! Instruction decode and emulation: what a hypervisor needs to finish a guest instruction that touched a device.
//!
//! `fetch` finds the instruction at CS:RIP through the guest's own page tables, `emulate` executes it against a `Bus`.
//! References: SDM vol. 2 (instructions), SDM 3A chapter 4 (paging), APM 2 chapter 5.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod alu;
mod decode;
mod execute;
mod operand;
mod ports;
mod segment;
mod string;
mod walk;

#[cfg(test)]
mod tests;

pub use decode::{Decoded, fetch, warm_up};
pub use execute::emulate;
pub use walk::{Access, translate};

use hv_defs::{Gpa, Gva, Segment, Width};

/// Code size of a segment: the default operand and address size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Bitness {
    /// 16-bit code.
    #[default]
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

impl Bitness {
    /// Width of an address.
    pub const fn width(self) -> Width {
        match self {
            Self::Bits16 => Width::B2,
            Self::Bits32 => Width::B4,
            Self::Bits64 => Width::B8,
        }
    }
}

/// The guest's registers, in the order of the hardware encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Offset of the instruction in CS.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER, with LMA as the CPU has it.
    pub efer: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// Code size: CS.L and CS.D together with EFER.LMA.
    pub bitness: Bitness,
    /// Code segment.
    pub cs: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Extra segment.
    pub es: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// Task register.
    pub tr: Segment,
}

impl Registers {
    /// A linear address as code of this size computes it: below 4 GiB outside 64-bit code.
    pub const fn wrap(&self, address: u64) -> Gva {
        Gva(if matches!(self.bitness, Bitness::Bits64) { address } else { address & 0xFFFF_FFFF })
    }
}

/// Guest-physical memory that is not RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRam;

/// What the emulator reaches the guest's machine through.
pub trait Bus {
    /// Reads 1 to 8 bytes, within one page, from RAM or a device. What nobody answers reads as ones.
    fn read(&mut self, gpa: Gpa, buf: &mut [u8]);
    /// Writes 1 to 8 bytes, within one page, to RAM or a device.
    fn write(&mut self, gpa: Gpa, data: &[u8]);
    /// Reads RAM only (page tables, code), within one page.
    ///
    /// # Errors
    /// `NotRam` if any byte is not RAM; nothing has been read then.
    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam>;
    /// Writes RAM only (accessed and dirty bits), within one page.
    ///
    /// # Errors
    /// `NotRam` if any byte is not writable RAM; nothing has been written then.
    fn write_ram(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam>;
    /// Reads an I/O port.
    fn port_read(&mut self, port: u16, width: Width) -> u32;
    /// Writes an I/O port.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
    /// The first 32 bytes of a vector register, if the caller can reach them.
    fn vector(&mut self, _index: u8) -> Option<Vector> {
        None
    }
    /// Loads a vector register; answers whether it could.
    fn set_vector(&mut self, _index: u8, _value: Vector, _upper: Upper) -> Option<()> {
        None
    }
}

/// Contents of a YMM register; those of the XMM register come first.
pub type Vector = [u8; 32];

/// What a load does to a vector register above its first 16 bytes (SDM 1 14.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upper {
    /// Nothing, as instructions do that came with SSE.
    Kept,
    /// It takes the rest of the value and clears what is above that, as VEX instructions do.
    Loaded,
}

/// An exception to inject into the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector: 6 #UD, 7 #NM, 12 #SS, 13 #GP, 14 #PF, 17 #AC.
    pub vector: u8,
    /// Error code, for vectors that push one.
    pub error_code: Option<u32>,
    /// New CR2, for #PF.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #UD.
    pub const UD: Self = Self { vector: 6, error_code: None, cr2: None };
    /// #NM.
    pub const NM: Self = Self { vector: 7, error_code: None, cr2: None };
    /// #SS(0).
    pub const SS: Self = Self { vector: 12, error_code: Some(0), cr2: None };
    /// #GP(0).
    pub const GP: Self = Self { vector: 13, error_code: Some(0), cr2: None };
    /// #AC(0).
    pub const AC: Self = Self { vector: 17, error_code: Some(0), cr2: None };
}

/// How an emulation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// The instruction is finished; registers and RIP are updated.
    Done,
    /// A REP instruction did its share of iterations; enter the guest again at the same RIP.
    Again,
    /// The instruction faults; no register has changed except by finished REP iterations.
    Exception(Exception),
    /// Not an instruction that can be emulated: report it and stop the guest (design D9).
    Unsupported,
}

/// Splits `len` bytes at `gpa` into naturally aligned pieces of 1, 2, 4 or 8 bytes: (offset from the start, width).
pub fn pieces(gpa: Gpa, len: usize) -> impl Iterator<Item = (usize, Width)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = len.checked_sub(done).filter(|&left| left > 0)?;
        let aligned = 1usize << (gpa.0.wrapping_add(done as u64)).trailing_zeros().min(3);
        let fits = 1usize << left.ilog2().min(3);
        let width = Width::from_bytes(aligned.min(fits))?;
        let at = done;
        done += width.bytes();
        Some((at, width))
    })
}
