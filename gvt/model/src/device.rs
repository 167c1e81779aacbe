//! The state that is shared by CPU accesses and by all engines.

use gvt_defs::execlist::Descriptor;
use gvt_defs::trace::{By, Kind};
use gvt_defs::{ENGINES, Engine, Hpa, Nanos, event, ring};

use crate::aperture::Fences;
use crate::counters::Counters;
use crate::findings::Findings;
use crate::gtt::Gtt;
use crate::irq::Irq;
use crate::profile::Profile;
use crate::recorder::Recorder;
use crate::regs::RegFile;
use crate::residue::Residues;
use crate::trace::Trace;

/// The side of an engine that registers reach.
#[derive(Default)]
pub(crate) struct Port {
    /// Dwords written to ELSP so far.
    pub elsp: [u32; 4],
    pub elsp_count: usize,
    /// A whole submission that the engine has not taken yet.
    pub pending: Option<[Descriptor; 2]>,
    /// A context is loaded.
    pub busy: bool,
    /// CTX_TIMESTAMP at `since`.
    pub context_time: u32,
    pub since: Nanos,
    /// When the context was loaded.
    pub loaded: Nanos,
    /// Context id of an MI_SEMAPHORE_SIGNAL that arrived.
    pub signal: Option<u32>,
    /// Submissions that no status entry has promoted yet, and elements that the promoted one has left: for the check
    /// of status entries.
    pub unpromoted: u32,
    pub owed: u32,
}

pub(crate) struct Device {
    pub profile: Profile,
    pub regs: RegFile,
    pub irq: Irq,
    pub gtt: Gtt,
    pub fences: Fences,
    pub ports: [Port; ENGINES],
    pub now: Nanos,
    /// GDRST domains asked for, done as soon as the access is over.
    pub reset_request: u32,
    pub findings: Findings,
    pub trace: Trace,
    pub recorder: Recorder,
    pub counters: Counters,
    pub residues: Residues,
    /// The frame that the running engine's fetch window was read from, and whether it has been written since.
    pub fetch_frame: Option<Hpa>,
    pub fetch_stale: bool,
}

impl Device {
    pub fn new(profile: Profile) -> Self {
        Self {
            regs: RegFile::new(&profile),
            irq: Irq::new(),
            gtt: Gtt::new(),
            fences: Fences::default(),
            ports: core::array::from_fn(|_| Port::default()),
            now: Nanos(0),
            reset_request: 0,
            findings: Findings::default(),
            trace: Trace::new(profile.trace),
            recorder: Recorder::default(),
            counters: Counters::default(),
            residues: Residues::default(),
            fetch_frame: None,
            fetch_stale: false,
            profile,
        }
    }

    /// The engine's port. Every engine has one.
    pub fn port(&mut self, engine: Engine) -> &mut Port {
        match engine {
            Engine::Rcs => &mut self.ports[0],
            Engine::Bcs => &mut self.ports[1],
            Engine::Vcs0 => &mut self.ports[2],
            Engine::Vcs1 => &mut self.ports[3],
            Engine::Vecs => &mut self.ports[4],
        }
    }

    /// Whether the part has this engine.
    pub fn has(&self, engine: Engine) -> bool {
        self.profile.engines.has(engine)
    }

    /// A register of an engine.
    #[inline]
    pub fn ring(&self, engine: Engine, local: u32) -> u32 {
        self.regs.get(engine.base() + local)
    }

    /// Stores a register of an engine, without side effects.
    #[inline]
    pub fn set_ring(&mut self, engine: Engine, local: u32, value: u32) {
        self.regs.set(engine.base() + local, value);
    }

    /// An interrupt event of an engine.
    pub fn raise(&mut self, engine: Engine, bits: u32) {
        let imr = self.ring(engine, ring::IMR);
        self.irq.engine_event(engine, bits, imr);
        self.trace.add(self.now, Kind::Event, By::Engine(engine), 0, u64::from(bits));
    }

    /// An error of an engine: latched unless masked, and told once.
    pub fn raise_error(&mut self, engine: Engine, bits: u32) {
        self.set_ring(engine, ring::ESR, self.ring(engine, ring::ESR) | bits);
        self.latch_errors(engine);
    }

    /// EIR takes what ESR has and EMR lets through.
    pub fn latch_errors(&mut self, engine: Engine) {
        let eir = self.ring(engine, ring::EIR);
        let new = self.ring(engine, ring::ESR) & !self.ring(engine, ring::EMR) & !eir;
        if new != 0 {
            self.set_ring(engine, ring::EIR, eir | new);
            self.raise(engine, event::CS_MASTER_ERROR);
        }
    }

    /// 36-bit command streamer timestamp: 12 MHz.
    pub const fn timestamp(&self) -> u64 {
        ticks(self.now) & 0xF_FFFF_FFFF
    }

    /// CTX_TIMESTAMP: runs only while the context does.
    pub fn context_timestamp(&mut self, engine: Engine) -> u32 {
        let now = self.now;
        let port = self.port(engine);
        let ran = if port.busy { ticks(Nanos(now.0.saturating_sub(port.since.0))) } else { 0 };
        port.context_time.wrapping_add(ran as u32)
    }
}

/// Nanoseconds to 12 MHz ticks.
const fn ticks(time: Nanos) -> u64 {
    (time.0 as u128 * 3 / 250) as u64
}
