//! Following a guest's own tables, for copies of what the guest's graphics addresses name.

use super::Ppgtt;
use super::entry::{Entry, Kind};
use crate::host::Host;
use gvt_defs::pte::Level;
use gvt_defs::{Gpa, PAGE_SIZE, PpgttAddr};

impl Ppgtt {
    /// Guest RAM behind a process graphics address, by the guest's tables as they are now. `None` if nothing is there.
    pub fn gpa(&self, host: &mut dyn Host, pml4: Gpa, addr: PpgttAddr) -> Option<Gpa> {
        let mut kind = Kind::Table(Level::Pml4);
        let mut table = pml4.gfn();
        // One step a level; `decode` never leads up.
        for _ in 0..4 {
            let slot = kind.level().index(addr);
            let mut raw = [0; 8];
            host.read(self.vm, Gpa(table.gpa().0 + kind.source(slot) as u64 * 8), &mut raw).ok()?;
            match kind.decode(u64::from_le_bytes(raw), slot) {
                Entry::Absent | Entry::Malformed => return None,
                Entry::Table(gfn, below, _) => (table, kind) = (gfn, below),
                Entry::Page(gfn, _) => return Some(Gpa(gfn.gpa().0 + addr.0 % PAGE_SIZE)),
                Entry::Large(gfn, _) => return Some(Gpa(gfn.gpa().0 + addr.0 % (PAGE_SIZE << 9))),
            }
        }
        None
    }
}
