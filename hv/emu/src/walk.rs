//! Guest page walks: no paging, 32-bit, PAE, 4-level and 5-level (SDM 3A chapter 4).

use crate::{Bus, Exception, Registers};
use hv_defs::{Gpa, Gva};

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

const PTE_P: u64 = 1 << 0;
const PTE_W: u64 = 1 << 1;
const PTE_U: u64 = 1 << 2;
const PTE_A: u64 = 1 << 5;
const PTE_D: u64 = 1 << 6;
const PTE_PS: u64 = 1 << 7;
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
    if regs.cr0 & CR0_PG == 0 {
        return Ok(Gpa(address.0 & 0xFFFF_FFFF));
    }
    let walk = Walk { regs, address, access };
    if regs.efer & EFER_LMA != 0 {
        let levels = if regs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        let spare = 64 - (12 + 9 * levels);
        if ((address.0 << spare) as i64 >> spare) as u64 != address.0 {
            return Err(Exception::GP);
        }
        walk.long(bus, levels)
    } else if regs.cr4 & CR4_PAE != 0 {
        walk.pae(bus)
    } else {
        walk.legacy(bus)
    }
}

/// Rights gathered on the way down.
#[derive(Clone, Copy)]
struct Rights {
    write: bool,
    user: bool,
    execute: bool,
}

struct Walk<'a> {
    regs: &'a Registers,
    address: Gva,
    access: Access,
}

impl Walk<'_> {
    fn long<B: Bus + ?Sized>(&self, bus: &mut B, levels: u32) -> Result<Gpa, Exception> {
        self.wide(bus, self.regs.cr3 & ADDRESS, levels, Rights { write: true, user: true, execute: true })
    }

    fn pae<B: Bus + ?Sized>(&self, bus: &mut B) -> Result<Gpa, Exception> {
        let linear = self.address.0 & 0xFFFF_FFFF;
        let slot = (self.regs.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8;
        let entry = self.load64(bus, slot)?;
        if entry & PTE_P == 0 {
            return Err(self.fault(0));
        }
        self.wide(bus, entry & ADDRESS, 2, Rights { write: true, user: true, execute: true })
    }

    /// 8-byte entries, 9 bits a level.
    fn wide<B: Bus + ?Sized>(&self, bus: &mut B, root: u64, levels: u32, mut rights: Rights) -> Result<Gpa, Exception> {
        let mut table = root;
        for level in (1..=levels).rev() {
            let shift = 3 + 9 * level;
            let slot = table + ((self.address.0 >> shift) & 0x1FF) * 8;
            let entry = self.load64(bus, slot)?;
            if entry & PTE_P == 0 {
                return Err(self.fault(0));
            }
            if entry & PTE_NX != 0 && self.regs.efer & EFER_NXE == 0 {
                return Err(self.fault(ERR_P | ERR_RSVD));
            }
            rights.write &= entry & PTE_W != 0;
            rights.user &= entry & PTE_U != 0;
            rights.execute &= entry & PTE_NX == 0;
            let leaf = level == 1 || ((level == 2 || level == 3) && entry & PTE_PS != 0);
            if !leaf {
                if level > 3 && entry & PTE_PS != 0 {
                    return Err(self.fault(ERR_P | ERR_RSVD));
                }
                self.mark64(bus, slot, entry, PTE_A);
                table = entry & ADDRESS;
                continue;
            }
            self.check(rights)?;
            self.mark64(bus, slot, entry, self.leaf_bits());
            let mask = (1u64 << shift) - 1;
            return Ok(Gpa((entry & ADDRESS & !mask) | (self.address.0 & mask)));
        }
        Err(self.fault(0))
    }

    /// 4-byte entries, 10 bits a level, 4 MiB pages with PSE (and PSE-36).
    fn legacy<B: Bus + ?Sized>(&self, bus: &mut B) -> Result<Gpa, Exception> {
        let linear = self.address.0 & 0xFFFF_FFFF;
        let slot = (self.regs.cr3 & 0xFFFF_F000) + (linear >> 22) * 4;
        let entry = self.load32(bus, slot)?;
        if entry & PTE_P == 0 {
            return Err(self.fault(0));
        }
        let mut rights = Rights { write: entry & PTE_W != 0, user: entry & PTE_U != 0, execute: true };
        if entry & PTE_PS != 0 && self.regs.cr4 & CR4_PSE != 0 {
            self.check(rights)?;
            self.mark32(bus, slot, entry, self.leaf_bits());
            let high = (entry >> 13 & 0xFF) << 32;
            return Ok(Gpa(high | (entry & 0xFFC0_0000) | (linear & 0x3F_FFFF)));
        }
        self.mark32(bus, slot, entry, PTE_A);
        let slot = (entry & 0xFFFF_F000) + (linear >> 12 & 0x3FF) * 4;
        let entry = self.load32(bus, slot)?;
        if entry & PTE_P == 0 {
            return Err(self.fault(0));
        }
        rights.write &= entry & PTE_W != 0;
        rights.user &= entry & PTE_U != 0;
        self.check(rights)?;
        self.mark32(bus, slot, entry, self.leaf_bits());
        Ok(Gpa((entry & 0xFFFF_F000) | (linear & 0xFFF)))
    }

    /// SDM 3A 4.6: access rights.
    fn check(&self, rights: Rights) -> Result<(), Exception> {
        let user_mode = self.regs.cpl == 3;
        let allowed = match self.access {
            _ if user_mode && !rights.user => false,
            Access::Read => user_mode || !self.smap_forbids(rights),
            Access::Write => {
                (rights.write || (!user_mode && self.regs.cr0 & CR0_WP == 0))
                    && (user_mode || !self.smap_forbids(rights))
            }
            Access::Fetch => rights.execute && !(rights.user && !user_mode && self.regs.cr4 & CR4_SMEP != 0),
        };
        if allowed { Ok(()) } else { Err(self.fault(ERR_P)) }
    }

    fn smap_forbids(&self, rights: Rights) -> bool {
        rights.user && self.regs.cr4 & CR4_SMAP != 0 && self.regs.rflags & RFLAGS_AC == 0
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
        let reports_fetch = self.regs.efer & EFER_NXE != 0 || self.regs.cr4 & CR4_SMEP != 0;
        if self.access == Access::Fetch && reports_fetch {
            code |= ERR_FETCH;
        }
        Exception { vector: 14, error_code: Some(code), cr2: Some(self.address.0) }
    }

    // A page table outside RAM reads as ones on hardware; here it is a not-present fault, which stops the walk.
    fn load64<B: Bus + ?Sized>(&self, bus: &mut B, slot: u64) -> Result<u64, Exception> {
        let mut raw = [0; 8];
        bus.read_ram(Gpa(slot), &mut raw).map_err(|_| self.fault(0))?;
        Ok(u64::from_le_bytes(raw))
    }

    fn load32<B: Bus + ?Sized>(&self, bus: &mut B, slot: u64) -> Result<u64, Exception> {
        let mut raw = [0; 4];
        bus.read_ram(Gpa(slot), &mut raw).map_err(|_| self.fault(0))?;
        Ok(u64::from(u32::from_le_bytes(raw)))
    }

    // Read-only page tables keep their bits: the CPU has done the same walk and set them before this exit.
    fn mark64<B: Bus + ?Sized>(&self, bus: &mut B, slot: u64, entry: u64, bits: u64) {
        if entry & bits != bits {
            let _ = bus.write_ram(Gpa(slot), &(entry | bits).to_le_bytes());
        }
    }

    fn mark32<B: Bus + ?Sized>(&self, bus: &mut B, slot: u64, entry: u64, bits: u64) {
        if entry & bits != bits {
            let _ = bus.write_ram(Gpa(slot), &((entry | bits) as u32).to_le_bytes());
        }
    }
}
