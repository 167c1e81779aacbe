//! Whether code may reach an I/O port (SDM volume 1, 19.5). The CPU has checked what made the exit; but what is emulated
//! is what lies at RIP by now, and another virtual CPU may have put it there.

use hv_defs::regs::{Cr0, Rflags};
use hv_defs::{Gva, Segment, Width};

use crate::operand::Cpu;
use crate::{Access, Bus, Exception, Registers, translate};

/// Offset in the task-state segment of the word that says where its permission bitmap begins (SDM volume 3, 8.2.1, 8.7).
const BITMAP_BASE: u64 = 0x66;
/// A port may be reached whose bits are clear; two bytes are always read, and both must lie in the segment.
const BITMAP_BYTES: u64 = 2;

/// #GP unless the code may access `width` bytes from `port` on.
pub fn check<B: Bus + ?Sized>(cpu: &mut Cpu<'_, B>, port: u16, width: Width) -> Result<(), Exception> {
    let regs = &*cpu.regs;
    let protected = regs.cr0 & Cr0::PE.bits() != 0;
    let privileged = u64::from(regs.cpl) <= regs.rflags >> Rflags::IOPL_SHIFT & 3;
    if !protected || (privileged && regs.rflags & Rflags::VM.bits() == 0) {
        return Ok(());
    }
    // A 16-bit task has no bitmap.
    if !regs.tr.has(Segment::TASK_32) {
        return Err(Exception::GP);
    }
    let base = task_word(cpu, BITMAP_BASE)?;
    let bits = task_word(cpu, u64::from(base) + u64::from(port / 8))?;
    let wanted = ((1u16 << width.bytes()) - 1) << (port % 8);
    if bits & wanted == 0 { Ok(()) } else { Err(Exception::GP) }
}

/// A word of the task-state segment, which the CPU reads with the rights of the system.
fn task_word<B: Bus + ?Sized>(cpu: &mut Cpu<'_, B>, offset: u64) -> Result<u16, Exception> {
    let task = cpu.regs.tr;
    if offset + BITMAP_BYTES - 1 > u64::from(task.limit) {
        return Err(Exception::GP);
    }
    let system = Registers { cpl: 0, rflags: cpu.regs.rflags & !Rflags::AC.bits(), ..*cpu.regs };
    let mut word = [0; 2];
    for (at, byte) in (offset..).zip(&mut word) {
        let gpa = translate(&system, cpu.bus, Gva(task.base.wrapping_add(at)), Access::Read)?;
        cpu.bus.read_ram(gpa, core::slice::from_mut(byte)).map_err(|_| Exception::GP)?;
    }
    Ok(u16::from_le_bytes(word))
}
