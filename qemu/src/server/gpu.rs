//! The software Gen9 (`gvt_model`) as a device of the server.

use std::collections::BTreeMap;

use gvt_defs::reg::{self, forcewake};
use gvt_defs::reset::Display;
use gvt_defs::trace::{By, Kind};
use gvt_defs::{Engine, EngineMask, ring};
use gvt_model::{
    Bar, Blitter, BusError, Finding, Forcewake, Gpu as Model, Hpa, Memory, Nanos, Profile, Progress, Save, Strict,
    Width,
};
use serde_json::{Map, Value, json};

use super::dma::DmaTable;
use super::options::{Options, Strictness};
use super::session::{Bus, Device, Next, integer};
use super::wire::REGION_CONFIG;
use crate::{Error, Result};

/// Units of engine work between two looks at the socket: some ten microseconds.
const BUDGET: u32 = 500;
/// Bytes of configuration space.
const CONFIG_SIZE: u64 = 256;
/// Trace lines between two looks at the model: more than an access and a step can make.
const TRACE_ENTRIES: usize = 1 << 16;
/// Late for the completion of a context: all that a driver does at once is done before, no time limit of it is over.
const LATE: Nanos = Nanos(100_000_000);
/// The most different findings kept.
const MAX_FINDINGS: usize = 256;

/// The registers of an engine that say what it is at.
const SHOWN: [(&str, u32); 10] = [
    ("start", ring::START),
    ("head", ring::HEAD),
    ("tail", ring::TAIL),
    ("acthd", ring::ACTHD),
    ("status", ring::EXECLIST_STATUS_LO),
    ("context", ring::EXECLIST_STATUS_HI),
    ("csb", ring::CSB_PTR),
    ("mode", ring::MI_MODE),
    ("imr", ring::IMR),
    ("eir", ring::EIR),
];

/// The GPU, and what it complained of.
pub struct Gpu {
    model: Model,
    /// How often each finding was made, by its text.
    findings: BTreeMap<String, u64>,
    strictness: Strictness,
    /// Nanoseconds spent in steps.
    busy: u64,
    steps: u64,
    first_unknown: Option<String>,
}

impl Gpu {
    /// Makes the GPU that the options name.
    ///
    /// # Errors
    /// A profile that the model does not have.
    pub fn new(options: &Options) -> Result<Self> {
        let mut profile = profile(options.profile.as_deref().unwrap_or("kbl"))?;
        if options.trace.is_some() {
            profile.trace = TRACE_ENTRIES;
        }
        if options.strictness == Strictness::Strict {
            profile.strict = Strict::Report;
        }
        Ok(Self {
            model: Model::new(profile),
            findings: BTreeMap::new(),
            strictness: options.strictness,
            busy: 0,
            steps: 0,
            first_unknown: None,
        })
    }

    /// Hands interrupts on, and takes note of findings.
    fn settle(&mut self, bus: &mut Bus) {
        if self.model.take_interrupt() {
            bus.irqs.message();
        }
        bus.irqs.line(self.model.interrupt_level());
        self.write_down(bus);
        for finding in self.model.take_findings() {
            self.note(finding, bus);
        }
    }

    /// Adds what the engines did to the trace; what the CPU did is there already.
    fn write_down(&mut self, bus: &mut Bus) {
        if self.model.profile().trace == 0 {
            return;
        }
        for entry in self.model.take_trace() {
            if !matches!(entry.kind, Kind::Read | Kind::Write | Kind::Gtt) || entry.by != By::Host {
                bus.trace.line(format_args!("{} e {entry}", entry.time.0));
            }
        }
    }

    fn note(&mut self, finding: Finding, bus: &mut Bus) {
        let text = finding.to_string();
        bus.trace.line(format_args!("{} ! {text}", bus.now));
        let unknown =
            matches!(finding, Finding::UnknownRead(..) | Finding::UnknownWrite(..) | Finding::UnknownCommand(..));
        if unknown && self.first_unknown.is_none() {
            self.first_unknown = Some(text.clone());
        }
        if self.findings.len() < MAX_FINDINGS || self.findings.contains_key(&text) {
            *self.findings.entry(text).or_default() += 1;
        }
    }
}

impl Device for Gpu {
    fn region_size(&self, region: u32) -> u64 {
        match bar(region) {
            Some(bar) => self.model.bar_size(bar),
            None if region == REGION_CONFIG => CONFIG_SIZE,
            None => 0,
        }
    }

    fn config_read(&mut self, offset: u16, buf: &mut [u8]) {
        let mut offset = offset;
        for piece in buf.chunks_mut(4) {
            let Some(width) = Width::from_bytes(piece.len()) else {
                continue;
            };
            let value = self.model.config_read(offset, width).to_le_bytes();
            piece.iter_mut().zip(value).for_each(|(to, from)| *to = from);
            offset = offset.saturating_add(4);
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8], bus: &mut Bus) {
        let mut offset = offset;
        for piece in data.chunks(4) {
            let Some(width) = Width::from_bytes(piece.len()) else {
                continue;
            };
            self.model.config_write(offset, width, integer(piece) as u32);
            offset = offset.saturating_add(4);
        }
        self.settle(bus);
    }

    fn bar_read(&mut self, region: u32, offset: u64, buf: &mut [u8], bus: &mut Bus) {
        let Some(bar) = bar(region) else { return };
        self.model.bar_read(&mut bus.dma, bar, offset, buf, Nanos(bus.now));
        self.settle(bus);
    }

    fn bar_write(&mut self, region: u32, offset: u64, data: &[u8], bus: &mut Bus) {
        let Some(bar) = bar(region) else { return };
        self.model.bar_write(&mut bus.dma, bar, offset, data, Nanos(bus.now));
        self.settle(bus);
    }

    fn reset(&mut self, bus: &mut Bus) {
        self.model.reset();
        self.settle(bus);
    }

    fn run(&mut self, bus: &mut Bus) -> Next {
        let begun = std::time::Instant::now();
        let progress = self.model.step(&mut bus.dma, Nanos(bus.now), BUDGET);
        self.settle(bus);
        if progress != Progress::Idle {
            self.busy += u64::try_from(begun.elapsed().as_nanos()).unwrap_or(0);
            self.steps += 1;
        }
        match progress {
            Progress::Idle => Next::Idle,
            Progress::Busy => Next::Now,
            Progress::WaitUntil(at) => Next::At(at.0),
        }
    }

    fn state(&mut self, now: u64) -> String {
        let mut read = |offset| self.model.read32(offset, Nanos(now));
        let mut text = format!("master interrupt {:08x};", read(reg::irq::MASTER));
        for bank in &reg::irq::BANKS {
            let [imr, iir, ier] = [reg::irq::IMR, reg::irq::IIR, reg::irq::IER].map(|at| read(bank.base + at));
            text.push_str(&format!(" {} {iir:x} mask {imr:x} enable {ier:x};", bank.name));
        }
        text.push_str("\nforcewake");
        for (request, ack) in forcewake::DOMAINS {
            text.push_str(&format!(" {request:x}={:x}/{:x}", read(request), read(ack)));
        }
        text.push('\n');
        let present = self.model.profile().engines;
        for engine in Engine::ALL.into_iter().filter(|engine| present.has(*engine)) {
            text.push_str(engine.info().name);
            for (name, local) in SHOWN {
                text.push_str(&format!(" {name}={:x}", self.model.read32(engine.base() + local, Nanos(now))));
            }
            text.push('\n');
        }
        text
    }

    fn stats(&mut self) -> Value {
        let counters = self.model.counters();
        let engine = |engine: Engine| {
            let c = counters.engine(engine);
            let counts = json!({
                "submissions": c.submissions, "loads": c.loads, "completions": c.completions,
                "commands": c.commands, "busy_ns": c.busy,
            });
            (engine.info().name.to_owned(), counts)
        };
        let engines: Map<String, Value> = Engine::ALL.into_iter().map(engine).collect();
        json!({ "engines": engines, "step_ns": self.busy, "steps": self.steps, "findings": self.findings })
    }

    fn verdict(&self) -> Result<()> {
        match &self.first_unknown {
            Some(text) if self.strictness == Strictness::Strict => {
                Err(Error::new(format!("gpu-model: strict: {text} (the statistics list all findings)")))
            }
            _ => Ok(()),
        }
    }
}

impl Memory for DmaTable {
    fn read(&mut self, hpa: Hpa, buf: &mut [u8]) -> std::result::Result<(), BusError> {
        Self::read(self, hpa.0, buf).map_err(|_| BusError)
    }

    fn write(&mut self, hpa: Hpa, data: &[u8]) -> std::result::Result<(), BusError> {
        Self::write(self, hpa.0, data).map_err(|_| BusError)
    }
}

fn bar(region: u32) -> Option<Bar> {
    u8::try_from(region).ok().and_then(Bar::from_number)
}

/// The parts: their names, what they are, and the device id of the variant with a second video engine.
const PARTS: [(&str, Profile, u16); 3] = [
    ("kbl", Profile::kaby_lake(), 0x5926),
    ("skl", Profile::sky_lake(), 0x1926),
    ("cfl", Profile::coffee_lake(), 0x3EA5),
];

/// A part and its variations, by commas: `kbl`, `skl` or `cfl`, then any of those listed in the error below.
fn profile(text: &str) -> Result<Profile> {
    let mut words = text.split(',');
    let name = words.next().unwrap_or_default();
    let Some((_, part, gt3)) = PARTS.iter().find(|(part, ..)| *part == name) else {
        return Err(Error::new(format!("gpu-model: no profile '{text}' (there are kbl, skl, cfl)")));
    };
    let mut profile = part.clone();
    for word in words {
        match word {
            "gt3" => (profile.device, profile.engines) = (*gt3, EngineMask::ALL),
            "display" => profile.display = Display::Dark,
            "late-save" => profile.save = Save::Late,
            "late-status" => profile.completion = LATE,
            "obeys-lri" => profile.blitter = Blitter::ObeysLri,
            "linted" => profile.forcewake = Forcewake::Linted,
            _ => {
                let all = "gt3, display, late-save, late-status, obeys-lri, linted";
                return Err(Error::new(format!("gpu-model: no variation '{word}' (there are {all})")));
            }
        }
    }
    Ok(profile)
}
