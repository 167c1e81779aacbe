//! Register reads and writes: the dispatch by class and the handlers that are no bigger than a few lines.

use gvt_defs::execlist::Descriptor;
use gvt_defs::reg::{self, forcewake};
use gvt_defs::trace::{By, Kind};
use gvt_defs::{Engine, masked, ring};

use crate::device::Device;
use crate::findings::Finding;
use crate::irq::Irq;
use crate::profile::{Forcewake, Strict};
use crate::recorder::{Place, Touch};
use crate::regs::Class;

impl Device {
    /// Reads the register at a dword-aligned offset.
    pub fn read_register(&mut self, offset: u32, by: By) -> u32 {
        let value = match self.regs.class(offset) {
            Class::Handler => self.read_handler(offset),
            Class::Unknown => {
                if self.profile.strict == Strict::Report {
                    self.findings.add(Finding::UnknownRead(offset));
                }
                self.regs.get(offset)
            }
            _ => self.regs.get(offset),
        };
        self.lint(offset, by);
        self.recorder.reach(Place::Register(offset), 4, Touch::Read, 0);
        self.trace.add(self.now, Kind::Read, by, offset, u64::from(value));
        value
    }

    /// Writes the register at a dword-aligned offset.
    pub fn write_register(&mut self, offset: u32, value: u32, by: By) {
        self.recorder.reach(Place::Register(offset), 4, Touch::Write, value);
        self.trace.add(self.now, Kind::Write, by, offset, u64::from(value));
        self.lint(offset, by);
        match by {
            By::Host => self.recorder.witness.put(offset),
            By::Engine(_) => self.recorder.witness.command(offset, self.regs.get(offset)),
        }
        self.store(offset, value);
    }

    /// The effect of a write, unrecorded: context restore uses it.
    pub fn store(&mut self, offset: u32, value: u32) {
        match self.regs.class(offset) {
            Class::Plain => self.regs.set(offset, value),
            Class::Masked => self.regs.set(offset, masked::apply(self.regs.get(offset), value)),
            Class::ReadOnly => {}
            Class::WriteOneToClear => self.regs.set(offset, self.regs.get(offset) & !value),
            Class::Handler => self.write_handler(offset, value),
            Class::Unknown => {
                if self.profile.strict == Strict::Report {
                    self.findings.add(Finding::UnknownWrite(offset, value));
                }
                self.regs.set(offset, value);
            }
        }
    }

    /// What the bytes that a narrow write leaves out count as.
    pub fn kept_bytes(&self, offset: u32) -> u32 {
        match self.regs.class(offset) {
            Class::Plain | Class::Unknown => self.regs.get(offset),
            _ => 0,
        }
    }

    fn lint(&mut self, offset: u32, by: By) {
        if self.profile.forcewake == Forcewake::Linted && by == By::Host && !self.awake(offset) {
            self.findings.add(Finding::Asleep(offset));
        }
    }

    /// Whether the power domain of `offset` is awake. The request registers themselves always answer, and a few
    /// registers are shadowed so that writes need no forcewake (RING_TAIL, ELSP and such).
    fn awake(&self, offset: u32) -> bool {
        let up = |ack| self.regs.get(ack) & 0xFFFF != 0;
        let shadowed = Engine::of_register(offset)
            .is_some_and(|(_, local)| matches!(local, ring::TAIL | ring::ELSP | ring::CSB_PTR));
        if shadowed || forcewake::DOMAINS.iter().any(|(request, ack)| offset == *request || offset == *ack) {
            return true;
        }
        match forcewake::domain_of(offset) {
            None => true,
            Some(forcewake::Domain::Render) => up(forcewake::RENDER_ACK),
            Some(forcewake::Domain::Gt) => up(forcewake::GT_ACK) || matches!(offset, reg::RPNSWREQ),
            Some(forcewake::Domain::Media) => up(forcewake::MEDIA_ACK),
            Some(forcewake::Domain::RenderMedia) => up(forcewake::RENDER_ACK) && up(forcewake::MEDIA_ACK),
        }
    }

    fn read_handler(&mut self, offset: u32) -> u32 {
        if let Some((index, register)) = Irq::find(offset) {
            return self.irq.read(index, register);
        }
        match offset {
            reg::irq::MASTER => self.irq.master(),
            // The ratio that was asked for is the ratio that is.
            reg::RPSTAT1 => self.regs.get(reg::RPNSWREQ) & 0xFF80_0000,
            _ => match Engine::of_register(offset) {
                Some((engine, local)) => self.read_engine(engine, local),
                None => self.regs.get(offset),
            },
        }
    }

    fn read_engine(&mut self, engine: Engine, local: u32) -> u32 {
        match local {
            ring::MI_MODE => {
                let mode = self.ring(engine, local) & !ring::MI_MODE_IDLE;
                let port = self.port(engine);
                let at_rest = !port.busy && port.pending.is_none() || mode & ring::MI_MODE_STOP_RING != 0;
                if at_rest { mode | ring::MI_MODE_IDLE } else { mode }
            }
            ring::TIMESTAMP => self.timestamp() as u32,
            ring::TIMESTAMP_UDW => (self.timestamp() >> 32) as u32,
            ring::CTX_TIMESTAMP => self.context_timestamp(engine),
            ring::ELSP => 0,
            _ => self.ring(engine, local),
        }
    }

    fn write_handler(&mut self, offset: u32, value: u32) {
        if let Some((index, register)) = Irq::find(offset) {
            return self.irq.write(index, register, value);
        }
        match offset {
            reg::irq::MASTER => self.irq.write_master(value),
            reg::GDRST => self.reset_request |= value,
            reg::GFX_FLSH_CNTL => self.gtt.flush_global(),
            reg::PCODE_MAILBOX => self.pcode(value),
            reg::GUC_TLB_INVALIDATE | reg::RPSTAT1 => {}
            forcewake::GT_REQUEST | forcewake::MEDIA_REQUEST | forcewake::RENDER_REQUEST => {
                self.forcewake(offset, value);
            }
            _ if (reg::FENCE0..reg::FENCE0 + 8 * reg::FENCES).contains(&offset) => {
                self.regs.set(offset, value);
                self.fences.update(&self.regs);
            }
            _ => self.write_other(offset, value),
        }
    }

    fn write_other(&mut self, offset: u32, value: u32) {
        if let Some(info) = gvt_defs::engine::INFO.iter().find(|info| info.tlb == offset) {
            if value & reg::TLB_INVALIDATE != 0 {
                self.gtt.flush_engine(info.engine);
            }
            return;
        }
        match Engine::of_register(offset) {
            Some((engine, local)) => self.write_engine(engine, local, value),
            None => self.write_display(offset, value),
        }
    }

    fn forcewake(&mut self, request: u32, value: u32) {
        let held = masked::apply(self.regs.get(request), value);
        self.regs.set(request, held);
        if let Some((_, ack)) = forcewake::DOMAINS.iter().find(|(r, _)| *r == request) {
            self.regs.set(*ack, held);
        }
    }

    fn write_engine(&mut self, engine: Engine, local: u32, value: u32) {
        match local {
            ring::ELSP => self.write_elsp(engine, value),
            ring::MI_MODE => {
                let mode = masked::apply(self.ring(engine, local), value);
                self.set_ring(engine, local, mode & !ring::MI_MODE_IDLE);
            }
            ring::EIR => self.set_ring(engine, local, self.ring(engine, local) & !value),
            ring::EMR => {
                self.set_ring(engine, local, value);
                self.latch_errors(engine);
            }
            ring::RESET_CTL => {
                let asked = masked::apply(self.ring(engine, local), value) & ring::RESET_CTL_REQUEST;
                let ready = if asked != 0 { ring::RESET_CTL_READY } else { 0 };
                self.set_ring(engine, local, asked | ready);
            }
            ring::CTX_TIMESTAMP => {
                let now = self.now;
                let port = self.port(engine);
                (port.context_time, port.since) = (value, now);
            }
            _ => {}
        }
    }

    /// Four dwords make a submission: element 1 high and low, element 0 high and low.
    fn write_elsp(&mut self, engine: Engine, value: u32) {
        if !self.has(engine) {
            return;
        }
        let port = self.port(engine);
        if let Some(slot) = port.elsp.get_mut(port.elsp_count) {
            *slot = value;
        }
        port.elsp_count += 1;
        if port.elsp_count < port.elsp.len() {
            return;
        }
        port.elsp_count = 0;
        let [high1, low1, high0, low0] = port.elsp;
        if self.ring(engine, ring::GFX_MODE) & ring::GFX_RUN_LIST_ENABLE == 0 {
            self.findings.add(Finding::ElspDisabled(engine));
            return;
        }
        self.submit(engine, [Descriptor::from_parts(low0, high0), Descriptor::from_parts(low1, high1)]);
    }

    fn submit(&mut self, engine: Engine, list: [Descriptor; 2]) {
        for (i, descriptor) in list.iter().enumerate() {
            self.trace.add(self.now, Kind::Submit, By::Engine(engine), i as u32, descriptor.0);
        }
        let [first, second] = list;
        if !first.valid() || second.valid() && first.lrca() == second.lrca() {
            self.findings.add(Finding::BadSubmission(engine));
            return;
        }
        self.counters.change(engine, |c| c.submissions += 1);
        self.port(engine).unpromoted = 1;
        if self.port(engine).pending.replace(list).is_some() {
            self.findings.add(Finding::ElspOverrun(engine));
        }
        self.publish_status(engine);
    }
}
