//! A small driver that does to its vGPU what i915 does: finds PVINFO, keeps to its graphics addresses, sets up status
//! pages, contexts and rings, submits through ELSP, and answers interrupts. It checks what it is told: a status entry
//! too many or too few is a panic, as it is a reset in i915.

use super::machine::Machine;
use crate::host::VmId;
use crate::mediator::VgpuId;
use gvt_defs::context::{self, value};
use gvt_defs::execlist::{CsbEntry, Descriptor, HWSP_CSB, HWSP_CSB_WRITE, csb_next};
use gvt_defs::pte::{GgttPte, PpgttEntry};
use gvt_defs::reg::irq;
use gvt_defs::{Engine, EngineMask, GgttAddr, Gpa, Hpa, event, masked, mi, pvinfo, reg, ring};
use std::collections::BTreeMap;

const PAGE: u32 = 4096;
/// Bytes of a ring.
pub const RING: u32 = 4 * PAGE;
/// Where sequence numbers lie in a status page.
const SEQNO: u32 = 0x100;

/// A context.
pub struct Context {
    pub engine: Engine,
    pub id: u32,
    pub lrca: GgttAddr,
    pub image: Vec<Gpa>,
    pub ring: GgttAddr,
    pub ring_pages: Vec<Gpa>,
    pub pml4: Gpa,
    pub tail: u32,
    /// Sequence number of the last request.
    pub seqno: u32,
    /// Where in the status page its sequence number lies.
    slot: u32,
}

/// What the driver knows of one engine.
#[derive(Default)]
struct Port {
    status: Option<(GgttAddr, Gpa)>,
    csb_head: u32,
    /// Ids submitted and not seen to start.
    pending: Option<Vec<u32>>,
    /// Ids that run, oldest first.
    active: Vec<u32>,
    contexts: u32,
    pub events: Vec<CsbEntry>,
}

/// The driver.
pub struct Driver {
    pub vm: VmId,
    pub id: VgpuId,
    ports: BTreeMap<Engine, Port>,
    next_gpa: u64,
    next_low: u32,
    next_high: u32,
    limits: [u32; 2],
    /// Accesses that exited.
    pub exits: u64,
    /// Interrupts taken.
    pub handled: u64,
    pub user_interrupts: u64,
    pub errors: u64,
    next_id: u32,
}

impl Driver {
    /// Probes the vGPU of `vm`.
    pub fn probe(m: &mut Machine, vm: u32, id: VgpuId) -> Self {
        let mut d = Self {
            vm: VmId(vm),
            id,
            ports: BTreeMap::new(),
            next_gpa: 0x10_0000,
            next_low: 0,
            next_high: 0,
            limits: [0; 2],
            exits: 0,
            handled: 0,
            user_interrupts: 0,
            errors: 0,
            next_id: 1,
        };
        d.enable_pci(m);
        let magic = m.gvt.mmio_read(&mut m.host, id, pvinfo::BASE, 8, m.device.borrow().now);
        assert_eq!(magic, pvinfo::MAGIC_VALUE);
        d.next_low = d.read(m, pvinfo::BASE + pvinfo::MAPPABLE_BASE) + PAGE;
        d.next_high = d.read(m, pvinfo::BASE + pvinfo::NONMAPPABLE_BASE);
        d.limits = [
            d.next_low + d.read(m, pvinfo::BASE + pvinfo::MAPPABLE_SIZE) - PAGE,
            d.next_high + d.read(m, pvinfo::BASE + pvinfo::NONMAPPABLE_SIZE),
        ];
        d.reset_irq(m);
        for engine in Engine::ALL {
            if EngineMask::GT2.has(engine) {
                d.start_engine(m, engine);
            }
        }
        d.enable_irq(m);
        d.exits = 0;
        d
    }

    fn enable_pci(&mut self, m: &mut Machine) {
        let now = m.now();
        for (offset, bytes, value) in [(0x10, 4, 0xE000_0000), (0x18, 4, 0x8000_0000), (4, 2, 6)] {
            m.gvt.config_write(&mut m.host, self.id, offset, bytes, value, now);
        }
        let mut at = m.gvt.config_read(self.id, 0x34, 1) as u16;
        while m.gvt.config_read(self.id, at, 1) != 5 {
            at = m.gvt.config_read(self.id, at + 1, 1) as u16;
        }
        for (offset, bytes, value) in [(at + 4, 4, 0xFEE0_0000), (at + 8, 4, 0x50), (at + 2, 2, 1)] {
            m.gvt.config_write(&mut m.host, self.id, offset, bytes, value, now);
        }
    }

    /// A register load: from the mapped page if there is one, else an exit.
    pub fn read(&mut self, m: &mut Machine, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        if m.host.register_page_read(self.vm, offset, &mut bytes).is_some() {
            return u32::from_le_bytes(bytes);
        }
        self.exits += 1;
        let now = m.now();
        let value = m.gvt.mmio_read(&mut m.host, self.id, offset, 4, now) as u32;
        m.deliver();
        value
    }

    /// A register store.
    pub fn write(&mut self, m: &mut Machine, offset: u32, value: u32) {
        if m.host.register_page_write(self.vm, offset, &value.to_le_bytes()).is_some() {
            return;
        }
        self.exits += 1;
        let now = m.now();
        m.gvt.mmio_write(&mut m.host, self.id, offset, 4, value.into(), now);
    }

    /// Maps a guest page at a global graphics address.
    pub fn map(&mut self, m: &mut Machine, at: GgttAddr, gpa: Gpa) {
        let offset = reg::GGTT_OFFSET as u32 + 8 * at.index();
        let pte = GgttPte::new(Hpa(gpa.0)).0.to_le_bytes();
        m.host.register_page_write(self.vm, offset, &pte).expect("page-table pages of the partition are mapped");
    }

    /// Takes pages of guest memory.
    pub fn pages(&mut self, count: u32) -> Vec<Gpa> {
        (0..u64::from(count))
            .map(|_| {
                self.next_gpa += u64::from(PAGE);
                Gpa(self.next_gpa - u64::from(PAGE))
            })
            .collect()
    }

    /// Takes and maps global graphics addresses for pages.
    pub fn pin(&mut self, m: &mut Machine, pages: &[Gpa]) -> GgttAddr {
        let at = self.next_high;
        self.next_high += PAGE * pages.len() as u32;
        assert!(self.next_high <= self.limits[1]);
        for (i, gpa) in (0..).zip(pages) {
            self.map(m, GgttAddr(at + PAGE * i), *gpa);
        }
        self.write(m, reg::GFX_FLSH_CNTL, 1);
        GgttAddr(at)
    }

    fn reset_irq(&mut self, m: &mut Machine) {
        self.write(m, irq::MASTER, 0);
        for bank in 0..irq::GT_BANKS {
            let base = irq::GT_BANK0 + 0x10 * bank;
            for (register, value) in [(irq::IMR, u32::MAX), (irq::IER, 0), (irq::IIR, u32::MAX), (irq::IIR, u32::MAX)] {
                self.write(m, base + register, value);
            }
            assert_eq!(self.read(m, base + irq::IIR), 0);
        }
    }

    fn enable_irq(&mut self, m: &mut Machine) {
        for bank in 0..irq::GT_BANKS {
            let base = irq::GT_BANK0 + 0x10 * bank;
            self.write(m, base + irq::IER, u32::MAX);
            self.write(m, base + irq::IMR, 0);
        }
        self.write(m, irq::MASTER, irq::MASTER_ENABLE);
    }

    /// What i915 does at every engine resume.
    pub fn start_engine(&mut self, m: &mut Machine, engine: Engine) {
        let (address, page) = match self.ports.get(&engine).and_then(|port| port.status) {
            Some(status) => status,
            None => {
                let page = self.pages(1);
                (self.pin(m, &page), page[0])
            }
        };
        let port = self.ports.entry(engine).or_default();
        port.status = Some((address, page));
        port.csb_head = 5;
        port.pending = None;
        port.active.clear();
        m.host.guest_write32(self.vm, Gpa(page.0 + u64::from(HWSP_CSB_WRITE)), 5);
        let base = engine.base();
        let visible = event::CONTEXT_SWITCH | event::USER_INTERRUPT | event::CS_MASTER_ERROR;
        for (local, value) in [
            (ring::HWSTAM, u32::MAX),
            (ring::GFX_MODE, masked::enable(ring::GFX_RUN_LIST_ENABLE)),
            (ring::MI_MODE, masked::disable(ring::MI_MODE_STOP_RING)),
            (ring::HWS_PGA, address.0),
            (ring::CSB_PTR, 0xFFFF_0505),
            (ring::CSB_PTR, 0xFFFF_0505),
            (ring::EMR, u32::MAX),
            (ring::EIR, u32::MAX),
            (ring::EMR, !1),
            (ring::IMR, !(visible << engine.info().irq_shift)),
        ] {
            self.write(m, base + local, value);
        }
        assert_eq!(self.read(m, base + ring::ESR), 0);
        assert_eq!(self.read(m, base + ring::HWS_PGA), address.0);
    }

    /// Makes a page-table tree that maps nothing.
    pub fn address_space(&mut self, m: &mut Machine) -> Gpa {
        let pml4 = self.pages(1)[0];
        for (offset, value) in [
            (pvinfo::PDP0_LO, pml4.0 as u32),
            (pvinfo::PDP0_LO + 4, (pml4.0 >> 32) as u32),
            (pvinfo::G2V_NOTIFY, pvinfo::G2V_PPGTT_L4_CREATE),
        ] {
            self.write(m, pvinfo::BASE + offset, value);
        }
        pml4
    }

    /// Maps a page in an address space, tables included.
    pub fn map_process(&mut self, m: &mut Machine, pml4: Gpa, va: u64, page: Gpa) {
        let mut table = pml4;
        for shift in [39, 30, 21] {
            let at = Gpa(table.0 + 8 * (va >> shift & 0x1FF));
            let entry = u64::from(m.host.guest_read32(self.vm, at));
            table = if entry & PpgttEntry::PRESENT != 0 {
                Gpa(entry & !0xFFF)
            } else {
                let next = self.pages(1)[0];
                m.host.guest_write64(self.vm, at, next.0 | 3);
                next
            };
        }
        m.host.guest_write64(self.vm, Gpa(table.0 + 8 * (va >> 12 & 0x1FF)), page.0 | 3);
    }

    /// Clears the entry of a page in an address space.
    pub fn unmap_process(&mut self, m: &mut Machine, pml4: Gpa, va: u64) {
        let mut table = pml4;
        for shift in [39, 30, 21] {
            let at = Gpa(table.0 + 8 * (va >> shift & 0x1FF));
            table = Gpa(u64::from(m.host.guest_read32(self.vm, at)) & !0xFFF);
        }
        m.host.guest_write64(self.vm, Gpa(table.0 + 8 * (va >> 12 & 0x1FF)), 0);
    }

    /// A new context with an address space of its own.
    pub fn context(&mut self, m: &mut Machine, engine: Engine) -> Context {
        let image = self.pages(engine.info().context_pages);
        let lrca = self.pin(m, &image);
        let ring_pages = self.pages(RING / PAGE);
        let ring_at = self.pin(m, &ring_pages);
        let pml4 = self.address_space(m);
        let port = self.ports.get_mut(&engine).unwrap();
        port.contexts += 1;
        let slot = SEQNO + 8 * port.contexts;
        self.next_id += 1;
        let id = self.next_id << 5;
        let c = Context { engine, id, lrca, image, ring: ring_at, ring_pages, pml4, tail: 0, seqno: 0, slot };
        self.write_image(m, &c, 0x0009_0009);
        c
    }

    fn write_image(&mut self, m: &mut Machine, c: &Context, control: u32) {
        let mut page = vec![0u32; context::DWORDS];
        for group in context::layout(c.engine) {
            page[group.header] = group.header_dword();
            for i in 0..group.registers.len() {
                let (at, offset) = group.pair(c.engine, i).unwrap();
                page[at] = offset;
            }
        }
        page[context::end_position(c.engine)] = mi::header(mi::BATCH_BUFFER_END);
        for (at, v) in [
            (value::CTX_CONTROL, control),
            (value::RING_START, c.ring.0),
            (value::RING_CTL, (RING - PAGE) | 1),
            (value::RING_HEAD, c.tail),
            (value::RING_TAIL, c.tail),
            (value::PDP0_LDW, c.pml4.0 as u32),
            (value::PDP0_UDW, (c.pml4.0 >> 32) as u32),
        ] {
            page[at] = v;
        }
        for (i, dword) in (0..).zip(page) {
            m.host.guest_write32(self.vm, Gpa(c.image[1].0 + 4 * i), dword);
        }
    }

    /// A dword of a context's register page.
    pub fn image_dword(&self, m: &Machine, c: &Context, at: usize) -> u32 {
        m.host.guest_read32(self.vm, Gpa(c.image[1].0 + 4 * at as u64))
    }

    /// Appends commands to a context's ring, with a breadcrumb and an interrupt behind them; submission is separate.
    pub fn emit(&mut self, m: &mut Machine, c: &mut Context, commands: &[u32]) -> u32 {
        c.seqno += 1;
        let (status, _) = self.ports[&c.engine].status.unwrap();
        let mut all = vec![mi::header(mi::ARB_CHECK), mi::header(mi::NOOP)];
        all.extend_from_slice(commands);
        all.extend([
            mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT,
            status.0 + c.slot,
            0,
            c.seqno,
            mi::header(mi::USER_INTERRUPT),
            mi::header(mi::ARB_ON_OFF) | mi::ARB_ENABLE,
            mi::header(mi::ARB_CHECK),
            mi::header(mi::NOOP),
        ]);
        if all.len() % 2 != 0 {
            all.push(0);
        }
        for dword in all {
            let page = c.ring_pages[(c.tail / PAGE) as usize];
            m.host.guest_write32(self.vm, Gpa(page.0 + u64::from(c.tail % PAGE)), dword);
            c.tail = (c.tail + 4) % RING;
        }
        c.seqno
    }

    /// Ring commands that run a batch of the context's address space, as i915 brackets it in a vGPU.
    pub fn batch_start(va: u64) -> Vec<u32> {
        vec![
            mi::header(mi::ARB_ON_OFF) | mi::ARB_ENABLE,
            mi::with_length(mi::BATCH_BUFFER_START, 3) | mi::BB_PPGTT,
            va as u32,
            (va >> 32) as u32,
            mi::header(mi::ARB_ON_OFF),
            mi::header(mi::NOOP),
        ]
    }

    /// Writes the tails and ELSP.
    pub fn submit(&mut self, m: &mut Machine, contexts: &[&Context]) {
        self.submit_with(m, contexts, 0);
    }

    /// The same with "force restore" for the first context.
    pub fn submit_forced(&mut self, m: &mut Machine, contexts: &[&Context]) {
        self.submit_with(m, contexts, Descriptor::FORCE_RESTORE as u32);
    }

    fn submit_with(&mut self, m: &mut Machine, contexts: &[&Context], flags: u32) {
        let engine = contexts[0].engine;
        let port = self.ports.get_mut(&engine).unwrap();
        assert!(port.pending.is_none(), "a driver waits until its last submission is seen to start");
        port.pending = Some(contexts.iter().map(|c| c.id).collect());
        for c in contexts {
            m.host.guest_write32(self.vm, Gpa(c.image[1].0 + 4 * value::RING_TAIL as u64), c.tail);
        }
        let descriptor = |i: usize| contexts.get(i).map_or(Descriptor(0), |c| Descriptor::new(c.lrca, c.id));
        let (first, second) = (descriptor(0), descriptor(1));
        for dword in [second.id(), second.low(), first.id(), first.low() | flags] {
            self.write(m, engine.base() + ring::ELSP, dword);
        }
    }

    /// Whether the last submission was seen to start.
    pub fn ready(&self, engine: Engine) -> bool {
        self.ports[&engine].pending.is_none()
    }

    /// Whether nothing of this driver's runs.
    pub fn idle(&self, engine: Engine) -> bool {
        self.ready(engine) && self.ports[&engine].active.is_empty()
    }

    /// Status entries seen so far, in order.
    pub fn take_events(&mut self, engine: Engine) -> Vec<(u32, u32)> {
        let events = core::mem::take(&mut self.ports.get_mut(&engine).unwrap().events);
        events.into_iter().map(|e| (e.status, e.id)).collect()
    }

    /// The sequence number that the GPU stored for a context.
    pub fn stored(&self, m: &Machine, c: &Context) -> u32 {
        let (_, page) = self.ports[&c.engine].status.unwrap();
        m.host.guest_read32(self.vm, Gpa(page.0 + u64::from(c.slot)))
    }

    /// Takes interrupts that were raised, as i915's handler does.
    pub fn interrupts(&mut self, m: &mut Machine) {
        while m.host.take_msis(self.vm) > 0 {
            self.handled += 1;
            self.handle(m);
        }
    }

    fn handle(&mut self, m: &mut Machine) {
        self.write(m, irq::MASTER, 0);
        let master = self.read(m, irq::MASTER);
        let mut work = Vec::new();
        for bank in 0..irq::GT_BANKS {
            let engines: Vec<Engine> = Engine::ALL.into_iter().filter(|e| e.info().irq_bank == bank).collect();
            if engines.iter().all(|e| master & e.info().master == 0) {
                continue;
            }
            let at = irq::GT_BANK0 + 0x10 * bank + irq::IIR;
            let iir = self.read(m, at);
            if iir == 0 {
                continue;
            }
            for engine in engines {
                let bits = iir >> engine.info().irq_shift & 0xFFFF;
                self.user_interrupts += u64::from(bits & event::USER_INTERRUPT != 0);
                self.errors += u64::from(bits & event::CS_MASTER_ERROR != 0);
                if bits & event::CONTEXT_SWITCH != 0 {
                    work.push(engine);
                }
            }
            self.write(m, at, iir);
        }
        self.write(m, irq::MASTER, irq::MASTER_ENABLE);
        for engine in work {
            self.process_csb(m, engine);
        }
    }

    fn process_csb(&mut self, m: &mut Machine, engine: Engine) {
        let port = self.ports.get_mut(&engine).unwrap();
        let page = port.status.unwrap().1;
        let write = m.host.guest_read32(self.vm, Gpa(page.0 + u64::from(HWSP_CSB_WRITE)));
        assert!(write < 6, "{write}");
        if port.csb_head == write {
            return;
        }
        while port.csb_head != write {
            port.csb_head = csb_next(port.csb_head);
            let at = page.0 + u64::from(HWSP_CSB + 8 * port.csb_head);
            let entry = CsbEntry {
                status: m.host.guest_read32(self.vm, Gpa(at)),
                id: m.host.guest_read32(self.vm, Gpa(at + 4)),
            };
            assert_ne!(entry.status, u32::MAX, "an entry that was never written");
            m.host.guest_write64(self.vm, Gpa(at), u64::MAX);
            port.events.push(entry);
            if entry.promotes() {
                port.active = port.pending.take().expect("a promotion without a submission");
            } else {
                assert!(!port.active.is_empty(), "a completion of nothing");
                assert_eq!(port.active.remove(0), entry.id);
            }
        }
        // As i915: the register's own copy is read once.
        let pointer = self.read(m, engine.base() + ring::CSB_PTR);
        assert_eq!(pointer & 7, write);
    }

    /// Runs the machine, taking interrupts, until `done` or the time is over.
    pub fn run_until(&mut self, m: &mut Machine, nanos: u64, mut done: impl FnMut(&Self, &Machine) -> bool) -> bool {
        let end = m.now().0 + nanos;
        while m.now().0 < end {
            if done(self, m) {
                return true;
            }
            m.step();
            self.interrupts(m);
        }
        done(self, m)
    }

    /// Submits and waits for the sequence number and for the engine to be idle.
    pub fn execute(&mut self, m: &mut Machine, c: &mut Context, commands: &[u32]) -> bool {
        let seqno = self.emit(m, c, commands);
        self.submit(m, &[c]);
        self.run_until(m, 20_000_000, |d, m| d.stored(m, c) == seqno && d.idle(c.engine))
    }

    /// i915's engine reset.
    pub fn reset_engine(&mut self, m: &mut Machine, engine: Engine) {
        let base = engine.base();
        self.write(m, base + ring::MI_MODE, masked::enable(ring::MI_MODE_STOP_RING));
        assert!(self.read(m, base + ring::MI_MODE) & ring::MI_MODE_IDLE != 0);
        self.write(m, base + ring::RESET_CTL, masked::enable(ring::RESET_CTL_REQUEST));
        assert!(self.read(m, base + ring::RESET_CTL) & ring::RESET_CTL_READY != 0);
        self.write(m, reg::GDRST, engine.info().reset);
        assert_eq!(self.read(m, reg::GDRST), 0);
        self.write(m, reg::GDRST, engine.info().reset);
        self.write(m, base + ring::RESET_CTL, masked::disable(ring::RESET_CTL_REQUEST));
        self.start_engine(m, engine);
    }

    /// After a reset: the context goes on behind what it had.
    pub fn rebuild(&mut self, m: &mut Machine, c: &Context) {
        self.write_image(m, c, 0x0009_0009);
    }
}

impl Driver {
    /// Whether all that runs is one context.
    pub fn idle_but(&self, engine: Engine, id: u32) -> bool {
        self.ready(engine) && self.ports[&engine].active.iter().all(|active| *active == id)
    }

    /// The driver preempted what ran and knows it.
    pub fn forget_active(&mut self, engine: Engine) {
        self.ports.get_mut(&engine).unwrap().active.clear();
    }
}
