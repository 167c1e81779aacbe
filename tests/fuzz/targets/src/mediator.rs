//! The mediator with everything under it: two guests on the software GPU, one honest, one that does what the bytes say.
//! The model's record of who touched what decides (`gvt::testing::oracle`); the honest guest's work is done in time.

mod attacker;
pub mod commands;
pub mod places;

use crate::bytes::Bytes;
use attacker::Attacker;
use gvt::testing::driver::{Context, Driver};
use gvt::testing::machine::Machine;
use gvt::{Config, VgpuConfig};
use gvt_defs::{Engine, Gpa, Nanos};
use gvt_model::{Blitter, Finding, Profile, Save};

/// Engines of the part.
pub const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];
/// What the honest guest's memory holds.
const PATTERN: u32 = 0x5EC2_E700;
/// How long the honest guest waits for a piece of work at most: the other one's hung engine, and its slices.
const PATIENCE: u64 = 60_000_000;
/// Actions of an input at most.
const ACTIONS: usize = 400;

/// Runs one input; gives the number of submissions that reached the GPU.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let mut world = World::new(&mut b);
    for _ in 0..ACTIONS {
        if b.is_empty() || !world.act(&mut b) {
            break;
        }
    }
    world.end()
}

/// Two guests.
struct World {
    m: Machine,
    attacker: Attacker,
    victim: Driver,
    secret: Vec<Gpa>,
    contexts: Vec<Context>,
}

impl World {
    fn new(b: &mut Bytes<'_>) -> Self {
        let profile = Profile {
            save: b.pick(&[Save::Prompt, Save::Late]),
            blitter: b.pick(&[Blitter::Polices, Blitter::ObeysLri]),
            ..Profile::kaby_lake()
        };
        let config =
            Config { hang: Nanos(5_000_000), slice: Nanos(200_000), grace: Nanos(50_000), ..Config::default() };
        let mut m = Machine::with_config(profile, config);
        let shape = VgpuConfig { aperture: 2 << 20, hidden: 4 << 20, ..VgpuConfig::default() };
        // The honest one lies in the middle of the aperture or before the other.
        let order = b.pick(&[[1, 2], [2, 1]]);
        let ids = order.map(|vm| (vm, m.add_vm_with(vm, shape)));
        let [first, second] = if ids[0].0 == 1 { ids } else { [ids[1], ids[0]] };
        let mut victim = Driver::probe(&mut m, 1, first.1);
        let secret = victim.pages(2);
        for page in &secret {
            let text: Vec<u8> = (0..1024).flat_map(|i| (PATTERN | i).to_le_bytes()).collect();
            m.host.guest_write(victim.vm, *page, &text);
        }
        let secret_at = victim.pin(&mut m, &secret);
        let contexts: Vec<Context> = ENGINES.map(|engine| victim.context(&mut m, engine)).into();
        let driver = Driver::probe(&mut m, 2, second.1);
        let attacker = Attacker::new(&mut m, driver, secret_at, &contexts);
        m.device.borrow_mut().gpu.take_findings();
        Self { m, attacker, victim, secret, contexts }
    }

    /// One thing happens; false if the attacker is no more.
    fn act(&mut self, b: &mut Bytes<'_>) -> bool {
        if b.rarely(12) {
            self.honest_work(b.below(4) as usize);
        }
        self.attacker.act(&mut self.m, b)
    }

    /// The honest guest has work done on an engine, and is not kept waiting.
    fn honest_work(&mut self, engine: usize) {
        let (m, d, c) = (&mut self.m, &mut self.victim, &mut self.contexts[engine]);
        let seqno = d.emit(m, c, &[]);
        d.submit(m, &[c]);
        let done = d.run_until(m, PATIENCE, |d, m| d.stored(m, c) == seqno && d.idle(c.engine));
        assert!(done, "the honest guest's work on {:?} is not done in time", c.engine);
    }

    /// What must hold in the end.
    fn end(mut self) -> u64 {
        for engine in 0..ENGINES.len() {
            self.honest_work(engine);
        }
        for page in &self.secret {
            for i in 0..1024u32 {
                let found = self.m.host.guest_read32(self.victim.vm, Gpa(page.0 + 4 * u64::from(i)));
                assert_eq!(found, PATTERN | i, "the honest guest's memory");
            }
        }
        let mut device = self.m.device.borrow_mut();
        for finding in device.gpu.take_findings() {
            assert!(!is_broken(finding), "{finding}");
        }
        let counters = device.gpu.counters();
        ENGINES.into_iter().map(|engine| counters.engine(engine).submissions).sum()
    }
}

/// Whether a finding tells of a mistake that is the mediator's, not the guest's.
fn is_broken(finding: Finding) -> bool {
    match finding {
        Finding::ElspOverrun(_)
        | Finding::ElspDisabled(_)
        | Finding::BadSubmission(_)
        | Finding::StatusSequence(..)
        | Finding::ResetWithoutReady(_)
        | Finding::GgttFault(_)
        | Finding::Residue(..)
        | Finding::BusError(_) => true,
        Finding::UnknownRead(_)
        | Finding::UnknownWrite(..)
        | Finding::Asleep(_)
        | Finding::UnknownCommand(..)
        | Finding::Unmodelled(..)
        | Finding::BadImage(..)
        | Finding::PpgttFault(..)
        | Finding::PartialCommand(..)
        | Finding::Privilege(..)
        | Finding::Dropped(_) => false,
    }
}
