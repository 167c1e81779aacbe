//! Guest page walks: no paging, 32-bit, PAE, 4-level and 5-level (SDM 3A chapter 4).

use crate::{Bus, Exception, Registers};
use hv_defs::regs::{Cr0, Cr4, Efer, Rflags};
use hv_defs::{Gpa, Gva, Width};

const PTE_P: u64 = 1 << 0;
const PTE_W: u64 = 1 << 1;
const PTE_U: u64 = 1 << 2;
const PTE_A: u64 = 1 << 5;
const PTE_D: u64 = 1 << 6;
const PTE_PS: u64 = 1 << 7;
/// Of a large page, that of its 4 KiB entry's PS.
const PTE_PAT_LARGE: u64 = 1 << 12;
/// Of a 4 MiB page of the old format: no address, for what CPUs have at most.
const PTE_RESERVED_4M: u64 = 1 << 21;
const PTE_NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

const ERR_P: u32 = 1 << 0;
const ERR_W: u32 = 1 << 1;
const ERR_U: u32 = 1 << 2;
const ERR_RSVD: u32 = 1 << 3;
const ERR_FETCH: u32 = 1 << 4;

/// What the access is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Translates a linear address as the guest's CPU would, checks rights and sets accessed and dirty bits.
///
/// # Errors
/// The #PF (or #GP for a non-canonical address) that the CPU would raise.
pub fn translate<B: Bus + ?Sized>(
    regs: &Registers,
    bus: &mut B,
    address: Gva,
    access: Access,
) -> Result<Gpa, Exception> {
    let linear = address.0 & 0xFFFF_FFFF;
    if regs.cr0 & Cr0::PG.bits() == 0 {
        return Ok(Gpa(linear));
    }
    let mut walk = Walk { regs, bus, address, access };
    if regs.efer & Efer::LMA.bits() != 0 {
        let levels = if regs.cr4 & Cr4::LA57.bits() != 0 { 5 } else { 4 };
        let spare = 64 - (12 + 9 * levels);
        if ((address.0 << spare) as i64 >> spare) as u64 != address.0 {
            return Err(Exception::GP);
        }
        walk.wide(regs.cr3 & ADDRESS, levels)
    } else if regs.cr4 & Cr4::PAE.bits() != 0 {
        let directory = walk.load((regs.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8, Width::B8)?;
        walk.wide(directory & ADDRESS, 2)
    } else {
        walk.legacy(linear)
    }
}

/// Rights gathered on the way down.
#[derive(Clone, Copy)]
struct Rights {
    write: bool,
    user: bool,
    execute: bool,
}

struct Walk<'a, B: ?Sized> {
    regs: &'a Registers,
    bus: &'a mut B,
    address: Gva,
    access: Access,
}

impl<B: Bus + ?Sized> Walk<'_, B> {
    /// 8-byte entries, 9 bits a level.
    fn wide(&mut self, root: u64, levels: u32) -> Result<Gpa, Exception> {
        let mut rights = Rights { write: true, user: true, execute: true };
        let mut table = root;
        for level in (1..=levels).rev() {
            let shift = 3 + 9 * level;
            let slot = table + ((self.address.0 >> shift) & 0x1FF) * 8;
            let entry = self.load(slot, Width::B8)?;
            let large = entry & PTE_PS != 0 && level > 1;
            let mask = (1u64 << shift) - 1;
            let beyond = large && (level > 3 || entry & mask & ADDRESS & !PTE_PAT_LARGE != 0);
            if beyond || (entry & PTE_NX != 0 && self.regs.efer & Efer::NXE.bits() == 0) {
                return Err(self.fault(ERR_P | ERR_RSVD));
            }
            rights.write &= entry & PTE_W != 0;
            rights.user &= entry & PTE_U != 0;
            rights.execute &= entry & PTE_NX == 0;
            if large || level == 1 {
                self.check(rights)?;
                self.mark(slot, entry, self.leaf_bits(), Width::B8);
                return Ok(Gpa((entry & ADDRESS & !mask) | (self.address.0 & mask)));
            }
            self.mark(slot, entry, PTE_A, Width::B8);
            table = entry & ADDRESS;
        }
        Err(self.fault(0))
    }

    /// 4-byte entries, 10 bits a level, 4 MiB pages with PSE (and PSE-36).
    fn legacy(&mut self, linear: u64) -> Result<Gpa, Exception> {
        let slot = (self.regs.cr3 & 0xFFFF_F000) + (linear >> 22) * 4;
        let entry = self.load(slot, Width::B4)?;
        let mut rights = Rights { write: entry & PTE_W != 0, user: entry & PTE_U != 0, execute: true };
        if entry & PTE_PS != 0 && self.regs.cr4 & Cr4::PSE.bits() != 0 {
            if entry & PTE_RESERVED_4M != 0 {
                return Err(self.fault(ERR_P | ERR_RSVD));
            }
            self.check(rights)?;
            self.mark(slot, entry, self.leaf_bits(), Width::B4);
            let high = (entry >> 13 & 0xFF) << 32;
            return Ok(Gpa(high | (entry & 0xFFC0_0000) | (linear & 0x3F_FFFF)));
        }
        self.mark(slot, entry, PTE_A, Width::B4);
        let slot = (entry & 0xFFFF_F000) + (linear >> 12 & 0x3FF) * 4;
        let entry = self.load(slot, Width::B4)?;
        rights.write &= entry & PTE_W != 0;
        rights.user &= entry & PTE_U != 0;
        self.check(rights)?;
        self.mark(slot, entry, self.leaf_bits(), Width::B4);
        Ok(Gpa((entry & 0xFFFF_F000) | (linear & 0xFFF)))
    }

    /// SDM 3A 4.6: access rights.
    fn check(&self, rights: Rights) -> Result<(), Exception> {
        let user_mode = self.regs.cpl == 3;
        let smap = self.regs.cr4 & Cr4::SMAP.bits() != 0 && self.regs.rflags & Rflags::AC.bits() == 0;
        let writable = rights.write || (!user_mode && self.regs.cr0 & Cr0::WP.bits() == 0);
        let allowed = match self.access {
            _ if user_mode && !rights.user => false,
            Access::Fetch => rights.execute && (user_mode || !rights.user || self.regs.cr4 & Cr4::SMEP.bits() == 0),
            _ if !user_mode && rights.user && smap => false,
            Access::Read => true,
            Access::Write => writable,
        };
        if allowed { Ok(()) } else { Err(self.fault(ERR_P)) }
    }

    fn leaf_bits(&self) -> u64 {
        if self.access == Access::Write { PTE_A | PTE_D } else { PTE_A }
    }

    fn fault(&self, bits: u32) -> Exception {
        let mut code = bits;
        if self.access == Access::Write {
            code |= ERR_W;
        }
        if self.regs.cpl == 3 {
            code |= ERR_U;
        }
        let reports_fetch = self.regs.efer & Efer::NXE.bits() != 0 || self.regs.cr4 & Cr4::SMEP.bits() != 0;
        if self.access == Access::Fetch && reports_fetch {
            code |= ERR_FETCH;
        }
        Exception { vector: 14, error_code: Some(code), cr2: Some(self.address.0) }
    }

    // A page table outside RAM reads as ones on hardware; here it is a not-present fault, which stops the walk.
    fn load(&mut self, slot: u64, width: Width) -> Result<u64, Exception> {
        let mut raw = [0; 8];
        let found = raw.get_mut(..width.bytes()).is_some_and(|bytes| self.bus.read_ram(Gpa(slot), bytes).is_ok());
        let entry = u64::from_le_bytes(raw);
        if found && entry & PTE_P != 0 { Ok(entry) } else { Err(self.fault(0)) }
    }

    // Read-only page tables keep their bits: the CPU has done the same walk and set them before this exit.
    fn mark(&mut self, slot: u64, entry: u64, bits: u64, width: Width) {
        let new = (entry | bits).to_le_bytes();
        if let Some(bytes) = new.get(..width.bytes()).filter(|_| entry & bits != bits) {
            let _ = self.bus.write_ram(Gpa(slot), bytes);
        }
    }
}
