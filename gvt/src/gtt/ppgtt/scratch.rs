//! Where everything leads that maps nothing: one page of the VM, and a chain of tables whose entries all lead to it.

use super::entry::link;
use crate::host::{Host, NoFrame, Owner, VmId};
use gvt_defs::pte::{Level, PpgttEntry};
use gvt_defs::{Hpa, PAGE_SIZE};

/// The scratch page of a VM and its tables. The page is the VM's own, so what is stored there reaches no other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scratch {
    page: Hpa,
    /// By level: PT, PD, PDP, PML4.
    tables: [Hpa; 4],
}

impl Scratch {
    pub(super) fn new(host: &mut dyn Host, vm: VmId, page: Hpa) -> Result<Self, NoFrame> {
        let mut this = Self { page, tables: [page; 4] };
        for level in [Level::Pt, Level::Pd, Level::Pdp, Level::Pml4] {
            match host.alloc_frame(Owner::Vm(vm)) {
                Ok(frame) => this.place(host, level, frame),
                Err(NoFrame) => {
                    this.free(host, vm);
                    return Err(NoFrame);
                }
            }
        }
        Ok(this)
    }

    /// What an entry of a table of this level holds when it maps nothing.
    pub(super) fn entry(&self, level: Level) -> u64 {
        link(level.below().map_or(self.page, |below| self.table(below)), PpgttEntry::WRITABLE)
    }

    /// The root that maps nothing.
    pub(super) fn root(&self) -> Hpa {
        self.table(Level::Pml4)
    }

    pub(super) fn free(self, host: &mut dyn Host, vm: VmId) {
        for table in self.tables.into_iter().filter(|table| *table != self.page) {
            host.free_frame(Owner::Vm(vm), table);
        }
    }

    fn place(&mut self, host: &mut dyn Host, level: Level, frame: Hpa) {
        let entry = self.entry(level).to_le_bytes();
        let row = [entry; 64];
        for at in (0..PAGE_SIZE as usize).step_by(size_of_val(&row)) {
            host.write_frame(frame, at, row.as_flattened());
        }
        if let Some(table) = self.tables.get_mut(level as usize) {
            *table = frame;
        }
    }

    fn table(&self, level: Level) -> Hpa {
        self.tables.get(level as usize).copied().unwrap_or(self.page)
    }
}
