//! The oracle of isolation: whatever the GPU touches on behalf of a context belongs to the VM that owns the context, or
//! is Prism's for that VM. It takes the word of nobody in `gvt`: who runs is the GPU model's own record, whose memory
//! is whose is the fake hypervisor's.

use super::FakeHost;
use crate::host::{Owner, VmId};
use gvt_defs::{Engine, Hpa, PAGE_SIZE, ring};
use gvt_model::{Purpose, Running, Seen};

/// What the oracle remembers of a frame that the mediator took.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// For whom it was taken.
    pub owner: Owner,
    /// The VM whose context used it first: no other one's may until it is taken anew.
    user: Option<VmId>,
    /// Whether engines walked it as a page table.
    table: bool,
    /// Whether engines fetched commands from it.
    code: bool,
}

impl Frame {
    /// A frame that nobody has used yet.
    pub const fn new(owner: Owner) -> Self {
        Self { owner, user: None, table: false, code: false }
    }

    /// Whether a context of `owner` may use it: whoever is first, it belongs to.
    fn claim(&mut self, owner: Option<VmId>) -> bool {
        if self.user.is_none() {
            self.user = owner;
        }
        self.user == owner
    }
}

/// Judges what the GPU model saw; says what is wrong with it. Where a CPU looks through the aperture, it is one of `cpu`.
///
/// # Errors
/// What broke isolation, in one line.
pub fn judge(host: &mut FakeHost, cpu: Option<VmId>, seen: Seen) -> Result<(), String> {
    let owner = |by: Running| host.guest_at(by.image);
    let sound = match seen {
        Seen::Access { purpose: Purpose::Aperture, frame, .. } => {
            cpu.is_none_or(|vm| through_aperture(host, vm, frame))
        }
        Seen::Access { by, purpose, written, frame } => {
            let owner = by.and_then(owner);
            access(host, owner, purpose, written, frame)
        }
        Seen::Register { by, register } => owner(by).is_none() || may_command(by.engine, register),
        Seen::Inherited { by, from, .. } => match (host.guest_at(from), owner(by)) {
            (Some(from), Some(to)) => from == to,
            _ => true,
        },
        Seen::Lost => false,
    };
    if sound { Ok(()) } else { Err(complaint(host, seen)) }
}

/// Whether a CPU of `vm` may get at a frame through the aperture.
fn through_aperture(host: &FakeHost, vm: VmId, frame: Hpa) -> bool {
    match host.frame_at(frame) {
        Some(taken) => taken.owner == Owner::Vm(vm) && !taken.table,
        None => host.guest_at(frame) == Some(vm),
    }
}

fn access(host: &mut FakeHost, owner: Option<VmId>, purpose: Purpose, written: bool, frame: Hpa) -> bool {
    let ram = host.guest_at(frame);
    let taken = host.frame_at_mut(frame);
    match (purpose, taken) {
        // The engine's own status page.
        (Purpose::Status, Some(taken)) => taken.owner == Owner::Mediator && taken.user.is_none(),
        (Purpose::Table, Some(taken)) => {
            taken.table = true;
            !written && owner.is_some_and(|vm| taken.owner == Owner::Vm(vm))
        }
        (Purpose::Image, Some(taken)) => taken.owner == Owner::Mediator && taken.claim(owner),
        (Purpose::Fetch, Some(taken)) if taken.owner == Owner::Mediator => {
            taken.code = true;
            !written && taken.claim(owner)
        }
        // Prism's own contexts in its own frames: the wash stores how far it came.
        (Purpose::Data, Some(taken)) if owner.is_none() => taken.owner == Owner::Mediator && taken.claim(owner),
        // Copies of its own batches show in a window of its process space.
        (Purpose::Data, Some(taken)) if taken.owner == Owner::Mediator => !written && taken.code && taken.user == owner,
        // The VM's own page for what is not mapped.
        (Purpose::Fetch | Purpose::Data, Some(taken)) => {
            owner.is_some_and(|vm| taken.owner == Owner::Vm(vm)) && !taken.table
        }
        (Purpose::Fetch | Purpose::Data, None) => owner.is_some() && ram == owner,
        _ => false,
    }
}

/// Registers of an engine that no command of a guest may write, from its base: where it runs, who is told, what is next.
const ENGINE: [(u32, u32); 10] = [
    (ring::TAIL, ring::CTL),
    (ring::HWS_PGA, ring::HWS_PGA),
    (ring::HWSTAM, ring::HWSTAM),
    (ring::IMR, ring::IMR),
    (ring::RESET_CTL, ring::RESET_CTL),
    (ring::ELSP, ring::EXECLIST_STATUS_HI),
    (ring::PDP0_LDW, ring::PDP0_LDW + 0x1C),
    (ring::GFX_MODE, ring::GFX_MODE),
    (ring::CSB, ring::CSB_PTR),
    (ring::FORCE_TO_NONPRIV, ring::FORCE_TO_NONPRIV + 4 * (ring::FORCE_TO_NONPRIV_SLOTS - 1)),
];

/// Whether a command that runs on `engine` may write a register at all: one of that engine's, or of what it renders with.
pub fn may_command(engine: Engine, register: u32) -> bool {
    match Engine::of_register(register) {
        Some((whose, local)) => whose == engine && !ENGINE.iter().any(|(from, to)| (*from..=*to).contains(&local)),
        None => match register {
            0x5200..0x5300 | 0x7000..0x8000 | 0xB000..0xB200 | 0xE000..0xE800 => engine == Engine::Rcs,
            0x2800..0x3000 => engine == Engine::Rcs,
            _ => false,
        },
    }
}

fn complaint(host: &FakeHost, seen: Seen) -> String {
    match seen {
        Seen::Access { by, purpose, written, frame } => {
            let owner = by.and_then(|by| host.guest_at(by.image));
            let verb = if written { "writes" } else { "reads" };
            let (taken, ram) = (host.frame_at(frame), host.guest_at(frame));
            format!("{purpose:?}: a context of {owner:?} ({by:x?}) {verb} {frame:x?}, frame {taken:?}, RAM of {ram:?}")
        }
        Seen::Register { by, register } => {
            format!("a context of {:?} on {:?} writes register {register:#x}", host.guest_at(by.image), by.engine)
        }
        Seen::Inherited { by, from, register, before, left } => {
            let (from, to) = (host.guest_at(from), host.guest_at(by.image));
            format!("{:?}: {from:?} left {left:#x} in register {register:#x} for {to:?}, was {before:#x}", by.engine)
        }
        Seen::Lost => "the record of what the GPU did was too long".into(),
    }
}

/// The number of a frame.
const fn page(hpa: Hpa) -> Hpa {
    Hpa(hpa.0 & !(PAGE_SIZE - 1))
}

impl FakeHost {
    /// The VM whose RAM this is.
    pub fn guest_at(&self, hpa: Hpa) -> Option<VmId> {
        self.vms.iter().find(|(_, vm)| (vm.base..vm.base + vm.frames * PAGE_SIZE).contains(&hpa.0)).map(|(id, _)| *id)
    }

    /// What is known of a frame that the mediator took.
    pub fn frame_at(&self, hpa: Hpa) -> Option<Frame> {
        self.allocated.get(&page(hpa)).copied()
    }

    fn frame_at_mut(&mut self, hpa: Hpa) -> Option<&mut Frame> {
        self.allocated.get_mut(&page(hpa))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::driver::Driver;
    use crate::testing::machine::Machine;
    use gvt_defs::pte::GgttPte;
    use gvt_defs::{GgttAddr, Gpa, mi};

    /// Two guests, and an address in the first one's table that leads to a frame of the second, as if by mistake.
    fn leak() -> (Machine, Driver, GgttAddr) {
        let mut m = Machine::new();
        let ids = [m.add_vm(1), m.add_vm(2)];
        let mut d = Driver::probe(&mut m, 1, ids[0]);
        let page = d.pages(1);
        let at = d.pin(&mut m, &page);
        let frame = m.host.hpa(VmId(2), Gpa(0x5000)).unwrap();
        m.device.borrow_mut().gpu.ggtt_write(at.index(), GgttPte::new(frame).0);
        (m, d, at)
    }

    #[test]
    #[should_panic(expected = "Data: a context of Some(VmId(1))")]
    fn a_store_to_the_frame_of_another_vm_fails_the_test() {
        let (mut m, mut d, at) = leak();
        let mut c = d.context(&mut m, Engine::Rcs);
        let store = [mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, at.0, 0, 1];
        d.execute(&mut m, &mut c, &store);
    }

    #[test]
    #[should_panic(expected = "Aperture")]
    fn an_aperture_that_leads_to_the_frame_of_another_vm_fails_the_test() {
        let (mut m, d, _) = leak();
        let slice = m.gvt.aperture_slice(d.id);
        let frame = m.host.hpa(VmId(2), Gpa(0x5000)).unwrap();
        let first = (slice.offset / PAGE_SIZE) as u32;
        m.device.borrow_mut().gpu.ggtt_write(first, GgttPte::new(frame).0);
        m.aperture_read(d.vm, d.id, 16, &mut [0; 4]);
    }

    #[test]
    fn registers_of_others_and_of_the_execlists_are_not_for_commands() {
        let rcs = |register| may_command(Engine::Rcs, register);
        for register in [0x2230, 0x2080, 0x2038, 0x2274, 0x24D0, 0x2_2600, 0x941C, 0x10_0000, 0x4_4200, 0xC800] {
            assert!(!rcs(register), "{register:#x}");
        }
        assert!(rcs(0x2600) && rcs(0x7010) && rcs(0xE18C) && rcs(0x2290));
        assert!(may_command(Engine::Bcs, 0x2_2600) && !may_command(Engine::Bcs, 0x7010));
    }
}
