//! Design D20 on the GPU: one VM writes whatever it can by every path, and another looks at all registers of the
//! engine while it runs, before and after. The model keeps what no image holds, as silicon does.

use super::{BATCH, batch};
use crate::gpu::switch;
use crate::testing::driver::{Context, Driver};
use crate::testing::machine::Machine;
use gvt_defs::context::{RING_CONTEXT_DWORDS, layout};
use gvt_defs::{Engine, Gpa, mi, reg, ring};

/// Sets every bit that it may, masked or not.
const MARK: u32 = 0xFFFF_A5A5;
/// What GVT-g lets a guest open to its batches, and more.
const OPENED: [u32; 27] = [
    0x20EC, 0x2248, 0x2340, 0x2348, 0x2350, 0x2580, 0x2690, 0x2694, 0x2698, 0x2754, 0x28A0, 0x4DE0, 0x4DE4, 0x4DF4,
    0x4DFC, 0x7010, 0x7014, 0x7300, 0x7304, 0x7700, 0x7704, 0x7708, 0x770C, 0x83A8, 0xB110, 0xB118, 0xE18C,
];

/// Registers of an engine and of what hangs on it.
fn registers(engine: Engine) -> Vec<u32> {
    let local = engine.base()..engine.base() + if engine == Engine::Rcs { 0x1000 } else { 0x800 };
    let render = [0x4000..0x5300, 0x7000..0x8500, 0xB000..0xB200, 0xC800..0xCC00, 0xE100..0xE800];
    let render = render.into_iter().filter(|_| engine == Engine::Rcs);
    let directories = engine.base() + ring::PDP0_LDW..engine.base() + ring::PDP3_UDW + 4;
    let all = core::iter::once(local).chain(render).flat_map(|r| r.step_by(4));
    // Errors that were seen and the status buffer are the engine's: nobody's commands give their values.
    let status = engine.base() + ring::CSB..engine.base() + ring::CSB_PTR + 4;
    let error = engine.base() + ring::ESR;
    all.filter(|offset| !directories.contains(offset) && !status.contains(offset) && *offset != error).collect()
}

struct Rig {
    m: Machine,
    victim: Driver,
    attacker: Driver,
    engine: Engine,
}

impl Rig {
    /// What the registers hold while a context of the victim runs a batch.
    fn look(&mut self, c: &mut Context) -> Vec<u32> {
        let flag = batch::spin_until_released(&mut self.victim, &mut self.m, c, BATCH);
        self.victim.emit(&mut self.m, c, &Driver::batch_start(BATCH));
        self.victim.submit(&mut self.m, &[c]);
        let engine = self.engine;
        assert!(self.victim.run_until(&mut self.m, 5_000_000, |d, _| d.ready(engine)));
        let seen = {
            let mut device = self.m.device.borrow_mut();
            let now = device.now;
            registers(engine).into_iter().map(|offset| device.gpu.read32(offset, now)).collect()
        };
        self.m.host.guest_write32(self.victim.vm, flag, 1);
        assert!(self.victim.run_until(&mut self.m, 20_000_000, |d, m| d.stored(m, c) == c.seqno && d.idle(engine)));
        seen
    }

    fn attack(&mut self) {
        let engine = self.engine;
        let mut c = self.attacker.context(&mut self.m, engine);
        self.forge_image(&c);
        assert!(self.attacker.execute(&mut self.m, &mut c, &[]));
        for some in registers(engine).chunks(50) {
            assert!(self.attacker.execute(&mut self.m, &mut c, &load(some)), "{:?}", self.m.gvt.take_report());
        }
        for (i, some) in OPENED.chunks(9).enumerate() {
            for (slot, target) in (0..).zip(some) {
                let slot = engine.base() + ring::FORCE_TO_NONPRIV + 4 * slot;
                self.attacker.write(&mut self.m, slot, *target);
            }
            self.run_batch(&mut c, BATCH + 0x4000 * i as u64, some);
            // A range of registers beside one that may be opened.
            self.attacker.write(&mut self.m, engine.base() + ring::FORCE_TO_NONPRIV, 0xB118 | 3);
            self.run_batch(&mut c, BATCH + 0x4000 * i as u64 + 0x2000, &[0xB104, 0xB11C, 0xB140]);
        }
        let stored = (0..reg::MMIO_SIZE).step_by(4).filter(|offset| switch::engine_of(*offset) == Some(engine));
        for offset in stored {
            self.attacker.write(&mut self.m, offset, MARK);
        }
        assert!(self.attacker.execute(&mut self.m, &mut c, &[]));
    }

    fn run_batch(&mut self, c: &mut Context, va: u64, registers: &[u32]) {
        batch::write(&mut self.attacker, &mut self.m, c, va, &load(registers));
        assert!(self.attacker.execute(&mut self.m, c, &Driver::batch_start(va)));
    }

    /// Marks in place of every value of the engine part.
    fn forge_image(&mut self, c: &Context) {
        let mut put = |at: usize, dword: u32| {
            let place = Gpa(c.image[1].0 + 4 * at as u64);
            self.m.host.guest_write32(self.attacker.vm, place, dword);
        };
        for group in layout(c.engine).iter().filter(|group| group.header >= RING_CONTEXT_DWORDS) {
            put(group.header, group.header_dword());
            for (at, offset) in (0..group.registers.len()).filter_map(|i| group.pair(c.engine, i)) {
                put(at, offset);
                put(at + 1, MARK);
            }
        }
    }
}

fn load(registers: &[u32]) -> Vec<u32> {
    let mut all = vec![mi::load_register_imm(registers.len() as u32)];
    all.extend(registers.iter().flat_map(|offset| [*offset, MARK]));
    all
}

#[test]
fn no_register_shows_what_another_vm_wrote() {
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let mut m = Machine::new();
        let (a, b) = (m.add_vm(1), m.add_vm(2));
        let victim = Driver::probe(&mut m, 1, a);
        let attacker = Driver::probe(&mut m, 2, b);
        let mut rig = Rig { m, victim, attacker, engine };
        let mut old = rig.victim.context(&mut rig.m, engine);
        rig.look(&mut old);
        let fresh = |rig: &mut Rig| {
            let mut c = rig.victim.context(&mut rig.m, engine);
            rig.look(&mut c)
        };
        let before = [rig.look(&mut old), fresh(&mut rig)];
        // What differs from run to run: pointers, clocks.
        let again = [rig.look(&mut old), fresh(&mut rig)];
        rig.attack();
        let after = [rig.look(&mut old), fresh(&mut rig)];
        for i in 0..2 {
            let names = registers(engine);
            let quiet = (0..names.len()).filter(|n| before[i][*n] == again[i][*n]);
            assert!(names.len() - quiet.clone().count() < 24);
            let differ: Vec<_> = quiet
                .filter(|n| before[i][*n] != after[i][*n])
                .map(|n| format!("{:#x}: {:#x} -> {:#x}", names[n], before[i][n], after[i][n]))
                .collect();
            assert!(differ.is_empty(), "{engine:?}, context {i}: {differ:?}");
        }
        assert_eq!(rig.m.gvt.take_report(), None);
    }
}

/// Bits that would turn preemption off do not reach the hardware from BAR0, nor from a ring.
#[test]
fn preemption_stays_the_mediators() {
    let mut m = Machine::new();
    let id = m.add_vm(1);
    let mut d = Driver::probe(&mut m, 1, id);
    let mut c = d.context(&mut m, Engine::Rcs);
    let register = Engine::Rcs.base() + ring::CSFE_CHICKEN1;
    for bits in [0xFFFF_0018, 0xFFFF_FFFF] {
        d.write(&mut m, register, bits);
        assert!(d.execute(&mut m, &mut c, &[mi::load_register_imm(1), register, bits, 0]));
        assert!(d.execute(&mut m, &mut c, &[]));
        let mut device = m.device.borrow_mut();
        let now = device.now;
        assert_eq!(device.gpu.read32(register, now), bits & 0xFFE7);
    }
    assert_eq!(d.read(&mut m, register), 0xFFFF, "the guest sees what it wrote");
}

/// A FORCE_TO_NONPRIV slot that nobody has set opens nothing, on any engine.
#[test]
fn empty_slots_open_no_register() {
    for engine in [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let mut m = Machine::new();
        let id = m.add_vm(1);
        let mut d = Driver::probe(&mut m, 1, id);
        let mut c = d.context(&mut m, engine);
        for slot in [0, 0x3000_0000] {
            d.write(&mut m, engine.base() + ring::FORCE_TO_NONPRIV, slot);
            batch::write(&mut d, &mut m, &c, BATCH, &load(&[0]));
            assert!(d.execute(&mut m, &mut c, &Driver::batch_start(BATCH)));
            let mut device = m.device.borrow_mut();
            let now = device.now;
            assert_eq!(device.gpu.read32(0, now), 0, "{engine:?}");
        }
    }
}
