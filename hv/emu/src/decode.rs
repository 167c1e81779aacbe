//! Instruction fetch and classification.

use crate::{Access, Bitness, Bus, Exception, Outcome, Registers, translate};
use hv_defs::Gva;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Longest instruction, in bytes.
pub const MAX_LENGTH: usize = 15;

/// A decoded guest instruction.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// Bytes fetched; the instruction is the first `len`.
    pub bytes: [u8; MAX_LENGTH],
    /// Length in bytes.
    pub len: u8,
    /// What it is, for exits that come without a decode assist.
    pub kind: Kind,
    pub(crate) instruction: Instruction,
}

/// Instructions that a hypervisor intercepts; `gpr` indexes `Registers::gpr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is the instruction of that name")]
pub enum Kind {
    MovToCr {
        cr: u8,
        gpr: u8,
    },
    MovFromCr {
        cr: u8,
        gpr: u8,
    },
    MovToDr {
        dr: u8,
        gpr: u8,
    },
    MovFromDr {
        dr: u8,
        gpr: u8,
    },
    Clts,
    Lmsw,
    Smsw,
    Cpuid,
    Hlt,
    Rdmsr,
    Wrmsr,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    In,
    Out,
    Ins,
    Outs,
    Invlpg,
    Invd,
    Wbinvd,
    Xsetbv,
    Monitor,
    Mwait,
    Pause,
    Vmcall,
    Vmmcall,
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, INVLPGA.
    Svm,
    Iret,
    Other,
}

/// Builds the decoder's tables (on the heap), so that no exit path has to.
pub fn warm_up() {
    let _ = instruction_length(&[0x90], Bitness::Bits64);
}

/// Length of the instruction that `bytes` begin with, in bytes; `None` if it is invalid or incomplete.
pub fn instruction_length(bytes: &[u8], bitness: Bitness) -> Option<u8> {
    let mut decoder = Decoder::new(bits(bitness), bytes, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction.len() as u8)
}

/// Fetches and decodes the instruction at CS:RIP.
///
/// # Errors
/// The exception that the fetch raises, #UD for an invalid encoding, or `Unsupported` where code is not in RAM.
pub fn fetch<B: Bus + ?Sized>(regs: &Registers, bus: &mut B) -> Result<Decoded, Outcome> {
    let mut bytes = [0; MAX_LENGTH];
    let mut have = 0;
    while have < MAX_LENGTH {
        let linear = code_address(regs, have as u64);
        let room = (0x1000 - (linear.0 & 0xFFF)) as usize;
        let take = room.min(MAX_LENGTH - have);
        let chunk = bytes.get_mut(have..have + take).ok_or(Outcome::Unsupported)?;
        let result = translate(regs, bus, linear, Access::Fetch)
            .map_err(Outcome::Exception)
            .and_then(|gpa| bus.read_ram(gpa, chunk).map_err(|_| Outcome::Unsupported));
        match result {
            Ok(()) => have += take,
            // The second page matters only if the instruction reaches into it.
            Err(fault) if have > 0 => {
                return decode(regs, bytes, have).map_err(|outcome| match outcome {
                    Outcome::Again => fault,
                    other => other,
                });
            }
            Err(fault) => return Err(fault),
        }
    }
    decode(regs, bytes, have).map_err(|outcome| match outcome {
        Outcome::Again => Outcome::Exception(Exception::GP),
        other => other,
    })
}

fn code_address(regs: &Registers, offset: u64) -> Gva {
    match regs.bitness {
        Bitness::Bits64 => Gva(regs.rip.wrapping_add(offset)),
        _ => Gva(regs.cs.base.wrapping_add(regs.rip.wrapping_add(offset) & 0xFFFF_FFFF) & 0xFFFF_FFFF),
    }
}

/// `Err(Again)` says that more bytes are needed.
fn decode(regs: &Registers, bytes: [u8; MAX_LENGTH], have: usize) -> Result<Decoded, Outcome> {
    let code = bytes.get(..have).ok_or(Outcome::Unsupported)?;
    let mut decoder = Decoder::with_ip(bits(regs.bitness), code, regs.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(match decoder.last_error() {
            iced_x86::DecoderError::NoMoreBytes => Outcome::Again,
            _ => Outcome::Exception(Exception::UD),
        });
    }
    Ok(Decoded { bytes, len: instruction.len() as u8, kind: kind(&instruction), instruction })
}

fn bits(bitness: Bitness) -> u32 {
    match bitness {
        Bitness::Bits16 => 16,
        Bitness::Bits32 => 32,
        Bitness::Bits64 => 64,
    }
}

fn kind(instruction: &Instruction) -> Kind {
    match instruction.mnemonic() {
        Mnemonic::Mov => control_move(instruction),
        Mnemonic::Clts => Kind::Clts,
        Mnemonic::Lmsw => Kind::Lmsw,
        Mnemonic::Smsw => Kind::Smsw,
        Mnemonic::Cpuid => Kind::Cpuid,
        Mnemonic::Hlt => Kind::Hlt,
        Mnemonic::Rdmsr => Kind::Rdmsr,
        Mnemonic::Wrmsr => Kind::Wrmsr,
        Mnemonic::Rdtsc => Kind::Rdtsc,
        Mnemonic::Rdtscp => Kind::Rdtscp,
        Mnemonic::Rdpmc => Kind::Rdpmc,
        Mnemonic::In => Kind::In,
        Mnemonic::Out => Kind::Out,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Kind::Ins,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Kind::Outs,
        Mnemonic::Invlpg => Kind::Invlpg,
        Mnemonic::Invd => Kind::Invd,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Kind::Wbinvd,
        Mnemonic::Xsetbv => Kind::Xsetbv,
        Mnemonic::Monitor => Kind::Monitor,
        Mnemonic::Mwait => Kind::Mwait,
        Mnemonic::Pause => Kind::Pause,
        Mnemonic::Vmcall => Kind::Vmcall,
        Mnemonic::Vmmcall => Kind::Vmmcall,
        Mnemonic::Vmrun
        | Mnemonic::Vmload
        | Mnemonic::Vmsave
        | Mnemonic::Stgi
        | Mnemonic::Clgi
        | Mnemonic::Skinit
        | Mnemonic::Invlpga => Kind::Svm,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => Kind::Iret,
        _ => Kind::Other,
    }
}

fn control_move(instruction: &Instruction) -> Kind {
    let index = |operand: u32, base: Register| {
        (instruction.op_kind(operand) == OpKind::Register)
            .then(|| (instruction.op_register(operand) as u32).wrapping_sub(base as u32) as u8)
    };
    let gpr = |operand: u32| {
        let base = match instruction.code() {
            Code::Mov_r64_cr | Code::Mov_cr_r64 | Code::Mov_r64_dr | Code::Mov_dr_r64 => Register::RAX,
            _ => Register::EAX,
        };
        index(operand, base)
    };
    let found = match instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
            index(0, Register::CR0).zip(gpr(1)).map(|(cr, gpr)| Kind::MovToCr { cr, gpr })
        }
        Code::Mov_r32_cr | Code::Mov_r64_cr => {
            index(1, Register::CR0).zip(gpr(0)).map(|(cr, gpr)| Kind::MovFromCr { cr, gpr })
        }
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => {
            index(0, Register::DR0).zip(gpr(1)).map(|(dr, gpr)| Kind::MovToDr { dr, gpr })
        }
        Code::Mov_r32_dr | Code::Mov_r64_dr => {
            index(1, Register::DR0).zip(gpr(0)).map(|(dr, gpr)| Kind::MovFromDr { dr, gpr })
        }
        _ => None,
    };
    found.unwrap_or(Kind::Other)
}
