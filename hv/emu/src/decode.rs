//! Instruction fetch and classification.

use crate::{Access, Bitness, Bus, Exception, Outcome, Registers, translate};
use hv_defs::Gva;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Register};

/// Longest instruction, in bytes.
pub const MAX_LENGTH: usize = 15;

/// A decoded guest instruction.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// Bytes fetched; the instruction is the first `len`.
    pub bytes: [u8; MAX_LENGTH],
    /// Length in bytes.
    pub len: u8,
    pub(crate) instruction: Instruction,
}

impl Decoded {
    /// For a move to a control register: its number, and that of the general register with the value, whose upper half
    /// does not count outside 64-bit code.
    pub fn moved_to_control(&self) -> Option<(u8, u8)> {
        let base = match self.instruction.code() {
            Code::Mov_cr_r32 => Register::EAX,
            Code::Mov_cr_r64 => Register::RAX,
            _ => return None,
        };
        let number = |register: Register, base: Register| (register as u32).checked_sub(base as u32);
        let from = number(self.instruction.op1_register(), base)?;
        let to = number(self.instruction.op0_register(), Register::CR0)?;
        Some((to as u8, from as u8))
    }
}

/// Builds the decoder's tables (on the heap), so that no exit path has to.
pub fn warm_up() {
    let _ = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
}

/// Fetches and decodes the instruction at CS:RIP.
///
/// # Errors
/// The exception that the fetch raises, #UD for an invalid encoding, or `Unsupported` where code is not in RAM.
pub fn fetch<B: Bus + ?Sized>(regs: &Registers, bus: &mut B) -> Result<Decoded, Outcome> {
    let mut bytes = [0; MAX_LENGTH];
    let mut have = 0;
    while have < MAX_LENGTH {
        match fetch_piece(regs, bus, &mut bytes, have) {
            Ok(take) => have += take,
            // What cannot be fetched matters only if the instruction reaches into it.
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

/// Fetches code behind the first `have` bytes, as much as one page and the code segment hold of it.
fn fetch_piece<B: Bus + ?Sized>(
    regs: &Registers,
    bus: &mut B,
    bytes: &mut [u8; MAX_LENGTH],
    have: usize,
) -> Result<usize, Outcome> {
    let offset = regs.rip.wrapping_add(have as u64);
    let (linear, most) = match regs.bitness {
        Bitness::Bits64 => (Gva(offset), MAX_LENGTH - have),
        _ => {
            let offset = offset & 0xFFFF_FFFF;
            let left = u64::from(regs.cs.limit).checked_sub(offset).ok_or(Outcome::Exception(Exception::GP))?;
            let most = (left.saturating_add(1)).min((MAX_LENGTH - have) as u64);
            (regs.wrap(regs.cs.base.wrapping_add(offset)), most as usize)
        }
    };
    let room = (0x1000 - linear.page_offset()) as usize;
    let take = room.min(most);
    let chunk = bytes.get_mut(have..have + take).ok_or(Outcome::Unsupported)?;
    let gpa = translate(regs, bus, linear, Access::Fetch).map_err(Outcome::Exception)?;
    bus.read_ram(gpa, chunk).map_err(|_| Outcome::Unsupported)?;
    Ok(take)
}

/// `Err(Again)` says that more bytes are needed.
fn decode(regs: &Registers, bytes: [u8; MAX_LENGTH], have: usize) -> Result<Decoded, Outcome> {
    let code = bytes.get(..have).ok_or(Outcome::Unsupported)?;
    let mut decoder = Decoder::with_ip(8 * regs.bitness.width().bytes() as u32, code, regs.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(match decoder.last_error() {
            iced_x86::DecoderError::NoMoreBytes => Outcome::Again,
            // Too long.
            _ if decoder.position() >= MAX_LENGTH => Outcome::Exception(Exception::GP),
            _ => Outcome::Exception(Exception::UD),
        });
    }
    Ok(Decoded { bytes, len: instruction.len() as u8, instruction })
}
