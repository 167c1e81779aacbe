//! Garbage in every structure that the GPU reads: no panic, no access outside, and a reset cures it.

mod rig;

use gvt_defs::context::REGISTER_PAGE;
use gvt_defs::execlist::Descriptor;
use gvt_defs::reg::{GDRST, GDRST_FULL};
use gvt_defs::{Engine, mi, ring};
use gvt_model::{Bar, Nanos, Profile, Progress};
use rig::{NONE, Rig, ggtt_hpa, store_global};

const ENGINES: [Engine; 4] = [Engine::Rcs, Engine::Bcs, Engine::Vcs0, Engine::Vecs];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn below(&mut self, n: u32) -> u32 {
        self.next() % n
    }
}

/// After a reset and a fresh start the engine works as ever.
fn recovers(rig: &mut Rig) {
    rig.write(GDRST, GDRST_FULL);
    for engine in ENGINES {
        rig.bring_up(engine);
        let mut c = rig.context(engine);
        let out = rig.ggtt_alloc(1);
        // Pages may have been mapped elsewhere by MI_UPDATE_GTT.
        for page in 0..rig::GGTT_SIZE / 4096 {
            rig.gpu.ggtt_write(page, (rig::RAM_BASE + u64::from(page) * 4096) | 1);
        }
        rig.write(gvt_defs::reg::GFX_FLSH_CNTL, 1);
        rig.emit(&mut c, &store_global(out, 0x600D));
        assert_eq!(rig.submit_and_run(&c), Progress::Idle);
        assert_eq!(rig.ram.read_u32(ggtt_hpa(out)), 0x600D);
        assert_eq!(rig.events(engine), [(0x1, 0), (0x18, c.id)]);
    }
}

fn turn(rig: &mut Rig, steps: usize) {
    for _ in 0..steps {
        rig.now += 30_000;
        rig.gpu.step(&mut rig.ram, Nanos(rig.now), 300);
    }
}

#[test]
fn images() {
    let mut random = Random(0xABCD_EF01_2345_6789);
    for round in 0..80 {
        let mut rig = Rig::with(Profile::default());
        let engine = ENGINES[round % 4];
        let c = rig.context(engine);
        let page = c.lrca + REGISTER_PAGE;
        for _ in 0..1 + random.below(60) {
            let position = 4 * random.below(1024);
            let value = match random.below(3) {
                0 => random.next(),
                1 => mi::header(mi::LOAD_REGISTER_IMM) | random.below(0x100),
                _ => engine.base() + 4 * random.below(0x200),
            };
            rig.ram.write_u32(ggtt_hpa(page + position), value);
        }
        rig.submit(engine, c.descriptor(), Descriptor(u64::from(random.next()) << 32 | u64::from(random.next())));
        turn(&mut rig, 50);
        recovers(&mut rig);
    }
}

#[test]
fn rings_with_every_header() {
    let mut random = Random(0x1357_9BDF_0246_8ACE);
    for round in 0..80 {
        let mut rig = Rig::with(Profile { blitter: gvt_model::Blitter::ObeysLri, ..Profile::default() });
        let engine = ENGINES[round % 4];
        let mut c = rig.context(engine);
        rig.map_fresh(c.root, 0x1000, 4);
        let commands: Vec<u32> = (0..1000)
            .map(|_| match random.below(5) {
                0 => random.next(),
                1 => (random.below(0x37) << 23) | (random.next() & 0x7F_FF00) | random.below(12),
                2 => engine.base() + 4 * random.below(0x200),
                3 => 4 * random.below(0x8_0000),
                _ => random.below(0x5000),
            })
            .collect();
        rig.emit(&mut c, &commands);
        rig.submit(engine, c.descriptor(), NONE);
        turn(&mut rig, 100);
        recovers(&mut rig);
    }
}

#[test]
fn registers_while_engines_run() {
    let mut random = Random(0x0F1E_2D3C_4B5A_6978);
    for _ in 0..20 {
        let mut rig = Rig::with(Profile::default());
        for engine in ENGINES {
            let mut c = rig.context(engine);
            rig.emit(&mut c, &store_global(0x8000, 1).repeat(100));
            rig.submit(engine, c.descriptor(), NONE);
        }
        for _ in 0..2000 {
            let engine = ENGINES[random.below(4) as usize];
            let offset = match random.below(3) {
                0 => engine.base() + 4 * random.below(0x200),
                1 => [ring::ELSP, ring::MI_MODE, ring::RESET_CTL][random.below(3) as usize] + engine.base(),
                _ => random.below(0x100_0000),
            };
            let data = random.next().to_le_bytes();
            let len = 1 + random.below(4) as usize;
            rig.now += 500;
            rig.gpu.bar_write(&mut rig.ram, Bar::Gttmmadr, u64::from(offset), &data[..len], Nanos(rig.now));
            if random.below(4) == 0 {
                turn(&mut rig, 1);
            }
        }
        for engine in ENGINES {
            rig.set(engine, ring::MI_MODE, 0xFFFF_0000);
        }
        recovers(&mut rig);
    }
}
