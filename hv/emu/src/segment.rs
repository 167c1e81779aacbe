//! Linear addresses, and what the CPU checks on the way to one (SDM volume 3, chapter 6). It has checked what made the
//! exit; but what is emulated is what lies at RIP by now, and another virtual CPU may have put it there.

use hv_defs::regs::{Cr0, Rflags};
use hv_defs::{Gva, Segment};
use iced_x86::Register;

use crate::{Access, Bitness, Exception, Registers};

/// Most that an operand must be aligned to (SDM volume 3, table 7-7).
const MOST_ALIGNED: usize = 16;

/// Linear address of `len` bytes at `offset` of a segment. 64-bit code knows bases of FS and GS, and no limits.
pub fn linear(regs: &Registers, register: Register, offset: u64, len: usize, access: Access) -> Result<Gva, Exception> {
    if regs.bitness == Bitness::Bits64 {
        let base = match register {
            Register::FS => regs.fs.base,
            Register::GS => regs.gs.base,
            _ => 0,
        };
        return Ok(Gva(base.wrapping_add(offset)));
    }
    let segment = named(regs, register);
    if allows(regs, segment, access) && holds(segment, offset, len) {
        Ok(regs.wrap(segment.base.wrapping_add(offset)))
    } else {
        Err(of_stack(register, Exception::GP))
    }
}

/// Segment and address faults of the stack segment have a vector of their own.
#[cold]
pub fn of_stack(register: Register, fault: Exception) -> Exception {
    if register == Register::SS && fault == Exception::GP { Exception::SS } else { fault }
}

/// #AC, for code of privilege level 3 that asks to be told of data that is not aligned.
#[cold]
pub fn check_alignment(regs: &Registers, address: u64, len: usize) -> Result<(), Exception> {
    let asked = regs.cr0 & Cr0::AM.bits() != 0 && regs.rflags & Rflags::AC.bits() != 0;
    let aligned = address & (len.min(MOST_ALIGNED) as u64).wrapping_sub(1) == 0;
    if asked && !aligned { Err(Exception::AC) } else { Ok(()) }
}

/// Protected mode outside virtual-8086 mode, where descriptors say what a segment is for.
pub fn has_descriptors(regs: &Registers) -> bool {
    regs.cr0 & Cr0::PE.bits() != 0 && regs.rflags & Rflags::VM.bits() == 0
}

fn named(regs: &Registers, register: Register) -> &Segment {
    match register {
        Register::ES => &regs.es,
        Register::CS => &regs.cs,
        Register::SS => &regs.ss,
        Register::FS => &regs.fs,
        Register::GS => &regs.gs,
        _ => &regs.ds,
    }
}

fn allows(regs: &Registers, segment: &Segment, access: Access) -> bool {
    let (code, read_write) = (segment.has(Segment::CODE), segment.has(Segment::READ_WRITE));
    let kind_allows = if access == Access::Write { read_write && !code } else { read_write || !code };
    !has_descriptors(regs) || (segment.has(Segment::PRESENT) && kind_allows)
}

/// Whether `len` bytes at `offset` lie in the segment. In one of 4 GiB they may go round, as they do on most CPUs.
fn holds(segment: &Segment, offset: u64, len: usize) -> bool {
    let last = offset.saturating_add(len as u64).saturating_sub(1);
    let limit = u64::from(segment.limit);
    if segment.has(Segment::EXPAND_DOWN) && !segment.has(Segment::CODE) {
        let top = if segment.has(Segment::BIG) { 0xFFFF_FFFF } else { 0xFFFF };
        return offset > limit && last <= top;
    }
    last <= limit || segment.limit == u32::MAX
}
