//! Hostile guests (issue 2, acceptance 3): every case ends in one of the three outcomes of design D9, and the GPU
//! touches nothing but the guest's own memory and the mediator's frames, by the GPU's own record.

use super::{BATCH, batch, store};
use crate::host::{Host, Owner, VmId};
use crate::report::Cause;
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::context::value;
use gvt_defs::execlist::Descriptor;
use gvt_defs::{Engine, Gpa, Hpa, PAGE_SIZE, mi, reg, ring};
use gvt_model::{Blitter, Profile, Recording, Save};

const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];
const PATTERN: u32 = 0x5EC2_E700;

/// A victim with a pattern in its memory, and an attacker.
struct Arena {
    m: Machine,
    victim: Driver,
    attacker: Driver,
    secret: Vec<Gpa>,
}

fn arena() -> Arena {
    arena_on(Profile { blitter: Blitter::ObeysLri, save: Save::Late, ..Profile::kaby_lake() })
}

fn arena_on(profile: Profile) -> Arena {
    let mut m = Machine::with(profile);
    let (a, b) = (m.add_vm(1), m.add_vm(2));
    let mut victim = Driver::probe(&mut m, 1, a);
    let attacker = Driver::probe(&mut m, 2, b);
    let secret = victim.pages(8);
    for page in &secret {
        for i in 0..1024 {
            m.host.guest_write32(victim.vm, Gpa(page.0 + 4 * i), PATTERN | i as u32);
        }
    }
    victim.pin(&mut m, &secret);
    m.device.borrow_mut().gpu.record(Recording::Start);
    Arena { m, victim, attacker, secret }
}

impl Arena {
    /// Every frame that the GPU touched is the attacker's or the mediator's.
    fn assert_confined(&mut self) {
        let touched = self.m.device.borrow_mut().gpu.take_touched();
        assert!(!touched.overflow);
        let (base, bytes) = self.m.host.range(self.attacker.vm);
        for range in touched.ranges {
            for frame in range.first..range.first + range.frames {
                let hpa = Hpa(frame * PAGE_SIZE);
                let own = (base.0..base.0 + bytes).contains(&hpa.0);
                let owner = self.m.host.owner_of(hpa);
                let ours = owner == Some(Owner::Mediator) || owner == Some(Owner::Vm(self.attacker.vm));
                assert!(own || ours, "{hpa:?} {owner:?}");
            }
        }
    }

    /// The victim's memory is as it was, and its engines work.
    fn assert_victim_well(&mut self) {
        for page in &self.secret {
            for i in 0..1024 {
                let found = self.m.host.guest_read32(self.victim.vm, Gpa(page.0 + 4 * i));
                assert_eq!(found, PATTERN | i as u32);
            }
        }
        for engine in ENGINES {
            let mut c = self.victim.context(&mut self.m, engine);
            assert!(self.victim.execute(&mut self.m, &mut c, &[]), "{engine:?}");
        }
    }

    /// The attacker submits; it need not come to an end.
    fn attack(&mut self, c: &mut Context, commands: &[u32]) {
        self.attacker.emit(&mut self.m, c, commands);
        self.attacker.submit(&mut self.m, &[c]);
        self.m.run_for(3_000_000);
        self.attacker.interrupts(&mut self.m);
        self.assert_confined();
    }

    /// The attacker picks itself up.
    fn recover(&mut self, engine: Engine) {
        self.attacker.reset_engine(&mut self.m, engine);
        self.attacker.take_events(engine);
    }

    fn refused(&mut self) -> bool {
        let mut refused = false;
        while let Some(report) = self.m.gvt.take_report() {
            assert_eq!(report.vm, self.attacker.vm);
            refused |= matches!(report.cause, Cause::Audit { .. } | Cause::Submission { .. });
        }
        refused
    }
}

#[test]
fn page_table_entries_outside_the_partition_go_nowhere() {
    let mut a = arena();
    let (share, now) = (a.m.gvt.aperture_slice(a.victim.id), a.m.now());
    let before: Vec<u64> = (0..1 << 20).step_by(997).map(|i| a.m.device.borrow().gpu.ggtt_read(i)).collect();
    let own = a.m.gvt.aperture_slice(a.attacker.id);
    for index in (0..1u32 << 20).step_by(997) {
        let at = u64::from(index) * PAGE_SIZE;
        let hidden = a.attacker.vm == VmId(2) && (0x4000_0000..0x6000_0000).contains(&at);
        if (own.offset..own.offset + own.size).contains(&at) || hidden {
            continue;
        }
        let offset = reg::GGTT_OFFSET as u32 + 8 * index;
        a.m.gvt.mmio_write(&mut a.m.host, a.attacker.id, offset, 8, 0x1001, now);
        assert_eq!(a.m.gvt.mmio_read(&mut a.m.host, a.attacker.id, offset, 8, now), 0, "{at:#x}");
    }
    a.attacker.write(&mut a.m, reg::GFX_FLSH_CNTL, 1);
    let after: Vec<u64> = (0..1 << 20).step_by(997).map(|i| a.m.device.borrow().gpu.ggtt_read(i)).collect();
    assert_eq!(before, after);
    assert_eq!(share.offset, 0);
    a.assert_victim_well();
}

#[test]
fn process_entries_to_foreign_frames_lead_to_scratch() {
    for engine in ENGINES {
        let mut a = arena();
        let mut c = a.attacker.context(&mut a.m, engine);
        let (victim, _) = a.m.host.range(a.victim.vm);
        // Guest-physical addresses past the attacker's RAM; on the host some of them are the victim's frames.
        for (i, target) in (0..).zip([16u64 << 20, victim.0, victim.0 + 0x10_0000, 0x1000_0000, 0x7F_FFFF_F000]) {
            a.attacker.map_process(&mut a.m, c.pml4, 0x30_0000 + 4096 * i, Gpa(target));
        }
        let commands: Vec<u32> = (0..5).flat_map(|i| store(0x30_0000 + 4096 * i, 0xBAD)).collect();
        batch::write(&mut a.attacker, &mut a.m, &c, BATCH, &commands);
        a.attack(&mut c, &Driver::batch_start(BATCH));
        assert_eq!(a.attacker.stored(&a.m, &c), 1, "{engine:?}");
        a.assert_victim_well();
    }
}

#[test]
fn malformed_page_tables_are_harmless() {
    let mut a = arena();
    for (i, garbage) in [u64::MAX, 1, 0x83, 0xFFFF_FFFF_FFFF_F003, 0x8000_0000_0000_0001].into_iter().enumerate() {
        let mut c = a.attacker.context(&mut a.m, Engine::Rcs);
        for j in 0..512 {
            a.m.host.guest_write64(a.attacker.vm, Gpa(c.pml4.0 + 8 * j), garbage ^ (j * 0x1000 * i as u64));
        }
        a.attack(&mut c, &[Driver::batch_start(BATCH), store(0x1234_5000, 1)].concat());
        a.recover(Engine::Rcs);
        a.refused();
    }
    a.assert_victim_well();
}

/// Writes a dword into a context's register page behind the driver's back.
fn forge(a: &mut Arena, c: &Context, at: usize, dword: u32) {
    a.m.host.guest_write32(a.attacker.vm, Gpa(c.image[1].0 + 4 * at as u64), dword);
}

#[test]
fn context_images_with_foreign_addresses_are_refused() {
    let foreign = 0x0010_0000u32;
    for (at, dword) in [
        (value::RING_START, foreign),
        (value::RING_START, 0xFC00_0000),
        (value::RING_CTL, 0x0000_3000),
        (value::RING_HEAD, 0x001F_FFFC),
        (value::INDIRECT_CTX, foreign | 4),
        (value::INDIRECT_CTX, 0xFFFF_FFFF),
        (value::BB_PER_CTX_PTR, foreign | 1),
        (value::BB_ADDR, foreign | ring::BB_ADDR_VALID),
    ] {
        let mut a = arena();
        let mut c = a.attacker.context(&mut a.m, Engine::Rcs);
        forge(&mut a, &c, at, dword);
        a.attack(&mut c, &[]);
        assert!(a.refused(), "{at:#x} {dword:#x}");
        assert_eq!(a.attacker.stored(&a.m, &c), 0);
        // The guest's own hang detection resets the engine, and a sound context runs.
        a.recover(Engine::Rcs);
        let mut sound = a.attacker.context(&mut a.m, Engine::Rcs);
        assert!(a.attacker.execute(&mut a.m, &mut sound, &[]));
        a.assert_victim_well();
    }
}

#[test]
fn images_outside_the_partition_and_odd_descriptors_are_refused() {
    for descriptor in [0u64, 1, 0x0000_1109, 0xFC00_0129, 0xFFFF_F129, 0x0010_0121, u64::MAX, 0x4000_0109] {
        let mut a = arena();
        for dword in [0, 0, (descriptor >> 32) as u32, descriptor as u32] {
            a.attacker.write(&mut a.m, 0x2230, dword);
        }
        a.m.run_for(2_000_000);
        assert!(a.refused(), "{descriptor:#x}");
        a.assert_confined();
        a.assert_victim_well();
    }
}

#[test]
fn forbidden_registers_stay_as_they_are() {
    let forbidden = |engine: Engine| {
        let base = engine.base();
        [
            base + ring::HWS_PGA,
            base + ring::GFX_MODE,
            base + ring::IMR,
            base + ring::ELSP,
            0x44200,
            0x941C,
            0x10_0000,
            0xA188,
        ]
    };
    for engine in ENGINES {
        for privilege in ["ring", "process batch"] {
            let mut a = arena();
            let mut c = a.attacker.context(&mut a.m, engine);
            assert!(a.attacker.execute(&mut a.m, &mut c, &[]));
            let look = |a: &Arena| {
                let mut device = a.m.device.borrow_mut();
                let now = device.now;
                forbidden(engine).map(|offset| device.gpu.read32(offset, now))
            };
            let before = look(&a);
            let commands: Vec<u32> = forbidden(engine)
                .into_iter()
                .flat_map(|offset| [mi::load_register_imm(1), offset, 0xFFFF_FFFF])
                .collect();
            if privilege == "ring" {
                a.attack(&mut c, &commands);
            } else {
                batch::write(&mut a.attacker, &mut a.m, &c, BATCH, &commands);
                a.attack(&mut c, &Driver::batch_start(BATCH));
            }
            assert_eq!(look(&a), before, "{engine:?} {privilege}");
            assert_eq!(a.attacker.stored(&a.m, &c), 2, "dropped, not fatal: {engine:?} {privilege}");
            a.assert_victim_well();
        }
    }
}

#[test]
fn global_stores_outside_the_partition_are_refused() {
    let mut a = arena();
    let secret = a.victim.pin(&mut a.m, &a.secret.clone());
    for engine in ENGINES {
        let mut c = a.attacker.context(&mut a.m, engine);
        let attack = [mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, secret.0, 0, 0xBAD];
        a.attack(&mut c, &attack);
        assert!(a.refused(), "{engine:?}");
        a.recover(engine);
        // The same from an unprivileged batch: the hardware, or the audit on the blitter, makes it a no-op.
        let mut c = a.attacker.context(&mut a.m, engine);
        batch::write(&mut a.attacker, &mut a.m, &c, BATCH, &attack);
        a.attack(&mut c, &Driver::batch_start(BATCH));
        a.refused();
        a.recover(engine);
    }
    a.assert_victim_well();
}

#[test]
fn batches_outside_the_partition_and_endless_chains_are_contained() {
    let mut a = arena();
    for engine in ENGINES {
        // A privileged batch in the victim's space, in Prism's, in nobody's.
        for target in [0x0010_0000u32, 0xFC00_0000, 0xFFFF_F000, 0x7000_0000] {
            let mut c = a.attacker.context(&mut a.m, engine);
            a.attack(&mut c, &[mi::with_length(mi::BATCH_BUFFER_START, 3), target, 0]);
            assert!(a.refused(), "{engine:?} {target:#x}");
            a.recover(engine);
        }
        // A privileged batch that starts itself: it runs for ever, in its copy.
        let page = a.attacker.pages(1)[0];
        let at = a.attacker.pin(&mut a.m, &[page]);
        for (i, dword) in (0..).zip([mi::with_length(mi::BATCH_BUFFER_START, 3), at.0, 0]) {
            a.m.host.guest_write32(a.attacker.vm, Gpa(page.0 + 4 * i), dword);
        }
        let mut c = a.attacker.context(&mut a.m, engine);
        a.attack(&mut c, &[mi::with_length(mi::BATCH_BUFFER_START, 3), at.0, 0]);
        a.refused();
        a.recover(engine);
        // Huge lengths, and a command cut off at the tail.
        for header in [mi::header(mi::LOAD_REGISTER_IMM) | 0xFF, 0x7800_00FF, 0x5000_00FF, 0x7FFF_FFFF, 0xFFFF_FFFF] {
            let mut c = a.attacker.context(&mut a.m, engine);
            a.attack(&mut c, &[header]);
            a.refused();
            a.recover(engine);
        }
    }
    a.assert_victim_well();
}

#[test]
fn what_a_register_held_for_one_guest_does_not_reach_the_other() {
    let mut a = arena_on(Profile::kaby_lake());
    // Registers that commands may write and no image keeps (L3SQCREG4, MI_PREDICATE_RESULT_2, NOPID).
    let registers = [0xB118u32, 0x23BC, 0x2094, 0x2600, 0x7014];
    let mut v = a.victim.context(&mut a.m, Engine::Rcs);
    let set: Vec<u32> = registers.iter().flat_map(|r| [mi::load_register_imm(1), *r, 0xFFFF_5EC2]).collect();
    assert!(a.victim.execute(&mut a.m, &mut v, &set));
    let mut c = a.attacker.context(&mut a.m, Engine::Rcs);
    let page = a.attacker.pages(1)[0];
    a.attacker.map_process(&mut a.m, c.pml4, 0x50_0000, page);
    let read: Vec<u32> = (0..)
        .zip(registers)
        .flat_map(|(i, r)| [mi::with_length(mi::STORE_REGISTER_MEM, 4), r, 0x50_0000 + 4 * i, 0])
        .collect();
    batch::write(&mut a.attacker, &mut a.m, &c, BATCH, &read);
    assert!(a.attacker.execute(&mut a.m, &mut c, &Driver::batch_start(BATCH)));
    for (i, r) in (0..).zip(registers) {
        let seen = a.m.host.guest_read32(a.attacker.vm, Gpa(page.0 + 4 * i));
        assert_ne!(seen & 0xFFFF, 0x5EC2, "{r:#x}");
    }
}

#[test]
fn workaround_registers_are_each_guests_own() {
    let mut a = arena_on(Profile::kaby_lake());
    let look = |a: &Arena, offset: u32| {
        let mut device = a.m.device.borrow_mut();
        let now = device.now;
        device.gpu.read32(offset, now)
    };
    // RCS chicken bits, MOCS of two engines, a slot of FORCE_TO_NONPRIV.
    for (offset, other, value, engine) in [
        (0xB004, 0x180, 0x80, Engine::Rcs),
        (0xC800, 0x3B, 0x39, Engine::Rcs),
        (0xCC04, 0x39, 0x3B, Engine::Bcs),
        (0x24D0, 0x2248, 0x2580, Engine::Rcs),
    ] {
        a.victim.write(&mut a.m, offset, other);
        a.attacker.write(&mut a.m, offset, value);
        assert_eq!(a.victim.read(&mut a.m, offset), other);
        let mut v = a.victim.context(&mut a.m, engine);
        let mut c = a.attacker.context(&mut a.m, engine);
        for _ in 0..2 {
            assert!(a.victim.execute(&mut a.m, &mut v, &[]));
            assert_eq!(look(&a, offset), a.victim.read(&mut a.m, offset));
            assert!(a.attacker.execute(&mut a.m, &mut c, &[]));
            assert_eq!(look(&a, offset), value);
        }
    }
    // What a guest may not open to its batches.
    a.attacker.write(&mut a.m, 0x24D4, 0x2080);
    assert_eq!(a.attacker.read(&mut a.m, 0x24D4), 0);
}

/// A guest without any plan: registers, memory and submissions at random.
#[test]
fn noise_stays_inside() {
    let mut a = arena();
    let contexts: Vec<Context> = ENGINES.into_iter().map(|engine| a.attacker.context(&mut a.m, engine)).collect();
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..4000 {
        let c = &contexts[(random() % 4) as usize];
        let base = c.engine.base();
        match random() % 8 {
            0 => {
                let page = c.image[(random() % 2) as usize];
                a.m.host.guest_write32(a.attacker.vm, Gpa(page.0 + random() % 1024 * 4), random() as u32);
            }
            1 => {
                let at = Gpa(c.ring_pages[0].0 + random() % 1024 * 4);
                a.m.host.guest_write32(a.attacker.vm, at, random() as u32);
            }
            2 => {
                let at = Gpa(c.image[1].0 + 4 * value::RING_TAIL as u64);
                a.m.host.guest_write32(a.attacker.vm, at, random() as u32 & 0x3FF8);
                let descriptor = Descriptor::new(c.lrca, c.id);
                for dword in [0, 0, descriptor.id(), descriptor.low()] {
                    a.attacker.write(&mut a.m, base + ring::ELSP, dword);
                }
            }
            3 => {
                let offset = (base + (random() % 0x400) as u32 * 4) & !3;
                a.attacker.write(&mut a.m, offset, random() as u32);
            }
            4 => {
                let offset = random() as u32 % 0x20_0000;
                let (now, width) = (a.m.now(), 1 << (random() % 4));
                a.m.gvt.mmio_write(&mut a.m.host, a.attacker.id, offset, width, random(), now);
                a.m.gvt.mmio_read(&mut a.m.host, a.attacker.id, offset, width, now);
            }
            5 => {
                let offset = reg::GGTT_OFFSET as u32 + (random() % (1 << 20)) as u32 * 8;
                let pte = ((random() % (32 << 20)) & !0xFFF) | 1;
                if a.m.host.register_page_write(a.attacker.vm, offset, &pte.to_le_bytes()).is_none() {
                    let now = a.m.now();
                    a.m.gvt.mmio_write(&mut a.m.host, a.attacker.id, offset, 8, pte, now);
                }
            }
            6 => {
                let table = Gpa(c.pml4.0 + random() % 512 * 8);
                a.m.host.guest_write64(a.attacker.vm, table, (random() % (24 << 20)) | 3);
            }
            _ if round % 50 == 0 => {
                for engine in ENGINES {
                    a.attacker.write(&mut a.m, reg::GDRST, engine.info().reset);
                    a.attacker.write(&mut a.m, engine.base() + ring::HWS_PGA, a.attacker.id.0.into());
                }
            }
            _ => a.m.run_for(20_000),
        }
        a.m.host.take_msis(a.attacker.vm);
        if round % 100 == 0 {
            a.assert_confined();
        }
    }
    while a.m.gvt.take_report().is_some() {}
    a.assert_confined();
    a.assert_victim_well();
}

/// Rings as large as the hardware allows: the space that Prism keeps for itself is shared out, not first come first
/// served.
#[test]
fn a_greedy_guest_takes_no_more_than_its_share_of_prisms_space() {
    let mut a = arena();
    let before = a.m.host.frames_of(Owner::Mediator);
    for engine in ENGINES {
        for _ in 0..6 {
            let mut c = a.attacker.context(&mut a.m, engine);
            forge(&mut a, &c, value::RING_CTL, 0x001F_F001);
            a.attack(&mut c, &[]);
            a.recover(engine);
            while a.m.gvt.take_report().is_some() {}
        }
    }
    assert!(a.m.host.frames_of(Owner::Mediator) - before <= crate::mediator::POOL_SHARE as usize);
    a.assert_victim_well();
}

#[test]
fn a_spent_quota_refuses_the_guest_and_nobody_else() {
    let mut a = arena();
    let now_used = a.m.host.frames_of(Owner::Mediator);
    a.m.host.set_mediator_quota(now_used + 4);
    let mut c = a.attacker.context(&mut a.m, Engine::Rcs);
    a.attack(&mut c, &[]);
    let report = a.m.gvt.take_report().expect("a report");
    assert_eq!(report.cause, Cause::NoRoom { engine: Engine::Rcs });
    a.m.host.set_mediator_quota(usize::MAX);
    a.recover(Engine::Rcs);
    let mut sound = a.attacker.context(&mut a.m, Engine::Rcs);
    assert!(a.attacker.execute(&mut a.m, &mut sound, &[]));
    let mut byte = [0];
    assert!(a.m.host.read(a.victim.vm, Gpa(0), &mut byte).is_ok());
    a.assert_victim_well();
}
