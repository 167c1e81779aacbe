//! A small driver for tests: memory above 4 GiB, a GGTT, process spaces, contexts, submissions.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use gvt_defs::context::{self, REGISTER_PAGE, value};
use gvt_defs::execlist::Descriptor;
use gvt_defs::pte::{GgttPte, Level, PpgttEntry, strip};
use gvt_defs::reg::irq;
use gvt_defs::{Engine, GgttAddr, masked, mi, ring};
use gvt_model::{Finding, Gpu, Hpa, Nanos, Profile, Progress, Ram};

pub const RAM_BASE: u64 = 0x1_4000_0000;
pub const RAM_SIZE: usize = 96 << 20;
/// GGTT addresses below are mapped one to one onto memory.
pub const GGTT_SIZE: u32 = 16 << 20;

pub const RW: u64 = PpgttEntry::PRESENT | PpgttEntry::WRITABLE;

pub struct Rig {
    pub gpu: Gpu,
    pub ram: Ram,
    pub now: u64,
    next_ggtt: u32,
    next_frame: u64,
    status: BTreeMap<Engine, u32>,
    read: BTreeMap<Engine, u32>,
    next_id: u32,
}

/// A context with its ring and its process space.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub engine: Engine,
    pub lrca: u32,
    pub ring: u32,
    pub root: Hpa,
    pub id: u32,
    pub tail: u32,
}

impl Context {
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(GgttAddr(self.lrca), self.id)
    }
}

pub const NONE: Descriptor = Descriptor(0);

impl Rig {
    pub fn new() -> Self {
        Self::with(Profile { strict: gvt_model::Strict::Report, trace: 4096, ..Profile::default() })
    }

    pub fn with(profile: Profile) -> Self {
        let mut rig = Self {
            gpu: Gpu::new(profile),
            ram: Ram::new(Hpa(RAM_BASE), RAM_SIZE),
            now: 1_000_000,
            next_ggtt: 0x1_0000,
            next_frame: RAM_BASE + u64::from(GGTT_SIZE),
            status: BTreeMap::new(),
            read: BTreeMap::new(),
            next_id: 0x10,
        };
        for page in 0..GGTT_SIZE / 4096 {
            rig.gpu.ggtt_write(page, GgttPte::new(Hpa(RAM_BASE + u64::from(page) * 4096)).0);
        }
        for engine in Engine::ALL {
            if rig.gpu.profile().engines.has(engine) {
                rig.bring_up(engine);
            }
        }
        for bank in 0..irq::GT_BANKS {
            rig.write(irq::GT_BANK0 + 0x10 * bank + irq::IMR, 0);
            rig.write(irq::GT_BANK0 + 0x10 * bank + irq::IER, 0xFFFF_FFFF);
        }
        rig
    }

    /// What a driver does with an engine before its first submission.
    pub fn bring_up(&mut self, engine: Engine) {
        let page = match self.status.get(&engine) {
            Some(page) => *page,
            None => self.ggtt_alloc(1),
        };
        self.status.insert(engine, page);
        self.set(engine, ring::GFX_MODE, masked::enable(ring::GFX_RUN_LIST_ENABLE));
        self.set(engine, ring::HWS_PGA, page);
        self.set(engine, ring::IMR, 0);
        self.set(engine, ring::EMR, 0xFFFF_FFFE);
        self.set(engine, ring::CSB_PTR, 0xFFFF_0505);
        self.ram.write_u32(ggtt_hpa(page + 0x7C), 5);
        self.read.insert(engine, 5);
    }

    pub fn write(&mut self, offset: u32, value: u32) {
        self.gpu.write32(offset, value, Nanos(self.now));
    }

    pub fn read(&mut self, offset: u32) -> u32 {
        self.gpu.read32(offset, Nanos(self.now))
    }

    pub fn set(&mut self, engine: Engine, local: u32, value: u32) {
        self.write(engine.base() + local, value);
    }

    pub fn get(&mut self, engine: Engine, local: u32) -> u32 {
        self.read(engine.base() + local)
    }

    pub fn ggtt_alloc(&mut self, pages: u32) -> u32 {
        let at = self.next_ggtt;
        self.next_ggtt += pages * 4096;
        assert!(self.next_ggtt <= GGTT_SIZE);
        at
    }

    pub fn frame(&mut self) -> Hpa {
        self.frames(1)
    }

    pub fn frames(&mut self, count: u64) -> Hpa {
        let at = self.next_frame;
        self.next_frame += count * 4096;
        assert!(self.next_frame <= RAM_BASE + RAM_SIZE as u64);
        Hpa(at)
    }

    /// Maps one page of a process space; tables are made as needed.
    pub fn map(&mut self, root: Hpa, va: u64, frame: Hpa, flags: u64) -> Hpa {
        let slot = self.slot(root, va, Level::Pt);
        self.ram.write_u64(slot, frame.0 | flags);
        slot
    }

    /// Maps `pages` fresh pages and gives the address of the first frame.
    pub fn map_fresh(&mut self, root: Hpa, va: u64, pages: u64) -> Hpa {
        let first = self.frames(pages);
        for i in 0..pages {
            self.map(root, va + i * 4096, Hpa(first.0 + i * 4096), RW);
        }
        first
    }

    /// Where the entry for `va` in a table of `level` is.
    pub fn slot(&mut self, root: Hpa, va: u64, level: Level) -> Hpa {
        let mut table = root;
        let mut at = Level::Pml4;
        loop {
            let slot = Hpa(table.0 + 8 * at.index(strip(va)) as u64);
            if at == level {
                return slot;
            }
            let mut entry = PpgttEntry(self.ram.read_u64(slot));
            if !entry.present() {
                entry = PpgttEntry(self.frame().0 | RW);
                self.ram.write_u64(slot, entry.0);
            }
            table = entry.frame();
            at = at.below().unwrap();
        }
    }

    /// A fresh context with a ring of 8 KiB, as i915 writes it once there is a default state.
    pub fn context(&mut self, engine: Engine) -> Context {
        let root = self.frame();
        self.context_in(engine, root)
    }

    pub fn context_in(&mut self, engine: Engine, root: Hpa) -> Context {
        let lrca = self.ggtt_alloc(engine.info().context_pages);
        let ring = self.ggtt_alloc(2);
        self.next_id += 0x10;
        let context = Context { engine, lrca, ring, root, id: self.next_id, tail: 0 };
        self.write_image(&context);
        context
    }

    pub fn write_image(&mut self, context: &Context) {
        let page = context.lrca + REGISTER_PAGE;
        let groups = context::layout(context.engine);
        for group in groups {
            self.ram.write_u32(ggtt_hpa(page + 4 * group.header as u32), group.header_dword());
            for i in 0..group.registers.len() {
                let (position, register) = group.pair(context.engine, i).unwrap();
                self.ram.write_u32(ggtt_hpa(page + 4 * position as u32), register);
            }
        }
        let control = masked::enable(ring::CTX_INHIBIT_SYN_CTX_SWITCH)
            | masked::disable(ring::CTX_RESTORE_INHIBIT | ring::CTX_SAVE_INHIBIT);
        for (position, value) in [
            (value::CTX_CONTROL, control),
            (value::RING_HEAD, 0),
            (value::RING_TAIL, 0),
            (value::RING_START, context.ring),
            (value::RING_CTL, 0x1000 | ring::CTL_VALID),
            (value::PDP0_LDW, context.root.0 as u32),
            (value::PDP0_UDW, (context.root.0 >> 32) as u32),
        ] {
            self.image_set(context, position, value);
        }
    }

    pub fn image_set(&mut self, context: &Context, position: usize, value: u32) {
        self.ram.write_u32(ggtt_hpa(context.lrca + REGISTER_PAGE + 4 * position as u32), value);
    }

    pub fn image_get(&mut self, context: &Context, position: usize) -> u32 {
        self.ram.read_u32(ggtt_hpa(context.lrca + REGISTER_PAGE + 4 * position as u32))
    }

    /// Adds commands to a ring and tells the image.
    pub fn emit(&mut self, context: &mut Context, dwords: &[u32]) {
        for dword in dwords {
            self.ram.write_u32(ggtt_hpa(context.ring + context.tail), *dword);
            context.tail = (context.tail + 4) % 0x2000;
        }
        if !context.tail.is_multiple_of(8) {
            self.ram.write_u32(ggtt_hpa(context.ring + context.tail), 0);
            context.tail = (context.tail + 4) % 0x2000;
        }
        self.image_set(context, value::RING_TAIL, context.tail);
    }

    /// Writes commands into memory.
    pub fn put(&mut self, at: Hpa, dwords: &[u32]) {
        for (i, dword) in dwords.iter().enumerate() {
            self.ram.write_u32(Hpa(at.0 + 4 * i as u64), *dword);
        }
    }

    pub fn submit(&mut self, engine: Engine, first: Descriptor, second: Descriptor) {
        for dword in [second.id(), second.low(), first.id(), first.low()] {
            self.set(engine, ring::ELSP, dword);
        }
    }

    pub fn step(&mut self, budget: u32) -> Progress {
        self.now += 1000;
        self.gpu.step(&mut self.ram, Nanos(self.now), budget)
    }

    /// Runs until nothing is to be done; waits are waited out, a few times.
    pub fn run(&mut self) -> Progress {
        let mut waits = 0;
        for _ in 0..1_000_000 {
            match self.step(1000) {
                Progress::Busy => {}
                Progress::WaitUntil(t) if waits < 20 => {
                    waits += 1;
                    self.now = t.0;
                }
                other => return other,
            }
        }
        panic!("the GPU does not come to rest");
    }

    pub fn submit_and_run(&mut self, context: &Context) -> Progress {
        self.submit(context.engine, context.descriptor(), NONE);
        self.run()
    }

    /// Status entries since the last call: status, id. Consumed entries are poisoned, as drivers do.
    pub fn events(&mut self, engine: Engine) -> Vec<(u32, u32)> {
        let page = self.status[&engine];
        let write = self.ram.read_u32(ggtt_hpa(page + 0x7C));
        let mut read = self.read[&engine];
        let mut all = Vec::new();
        while read != write {
            read = (read + 1) % 6;
            let at = ggtt_hpa(page + 0x40 + 8 * read);
            let entry = self.ram.read_u64(at);
            assert_ne!(entry, u64::MAX, "index before entry");
            assert_eq!(entry as u32, self.get(engine, ring::CSB + 8 * read), "register copy");
            self.ram.write_u64(at, u64::MAX);
            all.push((entry as u32, (entry >> 32) as u32));
        }
        self.read.insert(engine, read);
        all
    }

    pub fn no_findings(&mut self) {
        let findings: Vec<Finding> = self.gpu.take_findings();
        assert!(findings.is_empty(), "{findings:?}");
    }
}

/// Time that this thread has spent on a CPU: unlike wall time it does not depend on what else the machine does.
pub fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

pub fn ggtt_hpa(address: u32) -> Hpa {
    Hpa(RAM_BASE + u64::from(address))
}

/// A dword store into the process space.
pub fn store(va: u64, value: u32) -> [u32; 4] {
    [mi::with_length(mi::STORE_DATA_IMM, 4), va as u32, (va >> 32) as u32, value]
}

/// A dword store into the global space.
pub fn store_global(address: u32, value: u32) -> [u32; 4] {
    [mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT, address, 0, value]
}

/// A batch in the process space.
pub fn start(va: u64) -> [u32; 3] {
    [mi::with_length(mi::BATCH_BUFFER_START, 3) | mi::BB_PPGTT, va as u32, (va >> 32) as u32]
}

/// A wait in the global space until memory equals `value`.
pub fn wait_global(address: u32, value: u32) -> [u32; 4] {
    let compare = 4 << mi::SEMAPHORE_COMPARE_SHIFT;
    let header = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::GLOBAL_GTT | mi::SEMAPHORE_POLL | compare;
    [header, value, address, 0]
}

pub const BATCH_END: u32 = mi::header(mi::BATCH_BUFFER_END);
pub const ARB_CHECK: u32 = mi::header(mi::ARB_CHECK);
pub const ARB_OFF: u32 = mi::header(mi::ARB_ON_OFF);
pub const ARB_ON: u32 = mi::header(mi::ARB_ON_OFF) | mi::ARB_ENABLE;
