//! Guest frame to host frame, remembering the last contiguous run so that neighbours cost no call.

use crate::host::{Host, VmId};
use gvt_defs::{Gfn, Hpa, PAGE_SIZE};

/// The last answer of `Host::translate`. The answer holds for the life of the VM, so it never goes stale.
#[derive(Clone, Debug)]
pub(super) struct Translator {
    vm: VmId,
    first: u64,
    frames: u64,
    hpa: u64,
}

impl Translator {
    pub(super) fn new(vm: VmId) -> Self {
        Self { vm, first: 0, frames: 0, hpa: 0 }
    }

    /// Host frame behind a guest frame; `None` if it is not RAM of the VM.
    #[inline]
    pub(super) fn frame(&mut self, host: &mut dyn Host, gfn: Gfn) -> Option<Hpa> {
        let ahead = gfn.0.wrapping_sub(self.first);
        if ahead >= self.frames {
            return self.ask(host, gfn);
        }
        Some(Hpa(self.hpa + ahead * PAGE_SIZE))
    }

    /// Host address of `frames` contiguous frames aligned to their own size; `None` if they are not.
    pub(super) fn contiguous(&mut self, host: &mut dyn Host, gfn: Gfn, frames: u64) -> Option<Hpa> {
        let hpa = self.ask(host, gfn)?;
        (self.frames >= frames && hpa.0.is_multiple_of(frames * PAGE_SIZE)).then_some(hpa)
    }

    fn ask(&mut self, host: &mut dyn Host, gfn: Gfn) -> Option<Hpa> {
        let backing = host.translate(self.vm, gfn)?;
        self.first = gfn.0;
        self.frames = u64::from(backing.frames.max(1));
        self.hpa = backing.hpa.0;
        Some(backing.hpa)
    }
}
