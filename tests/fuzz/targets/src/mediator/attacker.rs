//! The guest that does what the bytes say: its memory, its registers, its submissions, from two virtual CPUs.

use super::ENGINES;
use super::commands;
use super::places::{CONTROL, DATA, OPENED, Places, SHARED, Whose};
use crate::bytes::Bytes;
use gvt::testing::driver::{Context, Driver, RING};
use gvt::testing::machine::Machine;
use gvt::{Action, Cause, Progress, ResetKind, Store};
use gvt_defs::context::{DWORDS, layout, value};
use gvt_defs::execlist::Descriptor;
use gvt_defs::{Engine, EngineMask, GgttAddr, Gpa, PAGE_SIZE, masked, mi, pvinfo, reg, ring};

/// Bytes of its RAM.
const RAM: u64 = 16 << 20;

/// A context, and what the guest has done with it.
struct Slot {
    c: Context,
    /// Tables of its address space, from the root down.
    tables: [Gpa; 4],
    /// Where its ring waits, as far as is known.
    waits: u32,
    pages: [Gpa; 3],
}

/// The guest.
pub struct Attacker {
    d: Driver,
    slots: Vec<Slot>,
    places: Places,
    flag: Gpa,
    /// A store that the first virtual CPU is in the middle of.
    store: Option<Store>,
    /// Page-table entries that it spoiled, with what they held: of processes, and by offset in BAR0.
    spoiled: Vec<(Gpa, u64)>,
    spoiled_global: Vec<(u32, [u8; 8])>,
}

impl Attacker {
    /// A guest with a context on each engine, next to one whose things are known.
    pub fn new(m: &mut Machine, mut d: Driver, secret: GgttAddr, victim: &[Context]) -> Self {
        let flag = d.pages(1)[0];
        let flag_at = d.pin(m, &[flag]);
        let data = d.pages(2);
        let data_at = d.pin(m, &data);
        let batch = d.pages(1)[0];
        let batch_at = d.pin(m, &[batch]);
        let slots: Vec<Slot> =
            ENGINES.into_iter().map(|engine| slot(m, &mut d, engine, [batch, flag, data[0], data[1]])).collect();
        let places = places(m, &mut d, &slots, victim, [secret, flag_at, data_at, batch_at]);
        Self { d, slots, places, flag, store: None, spoiled: Vec::new(), spoiled_global: Vec::new() }
    }

    /// One action; false if it cannot go on.
    pub fn act(&mut self, m: &mut Machine, b: &mut Bytes<'_>) -> bool {
        match b.below(32) {
            0..=7 => self.append(m, b),
            8..=11 => self.rewrite_waiting(m, b),
            12 | 13 => self.write_batch(m, b),
            14 => self.forge_image(m, b),
            15 => self.page_table(m, b),
            16 => self.global_table(m, b),
            17 | 18 => self.fence(m, b),
            19 | 20 => self.aperture(m, b),
            21 | 22 => self.register(m, b),
            23 => self.open(m, b),
            24 => self.pvinfo(m, b),
            25 => self.config(m, b),
            26 => self.other_cpu(m, b),
            27 => m.host.guest_write32(self.d.vm, self.flag, b.below(2)),
            28 => self.reset(m, b),
            29 => self.raw_submission(m, b),
            30 => self.submit(m, b),
            _ => {}
        }
        let steps = if b.rarely(8) { 100 } else { b.below(12) };
        for _ in 0..steps {
            m.step();
        }
        m.host.take_msis(self.d.vm);
        self.recover(m, b)
    }

    /// Commands behind what the ring has, and a submission.
    fn append(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let index = b.below(4) as usize;
        let engine = self.slots[index].c.engine;
        let mut commands = commands::ring(b, &self.places, engine);
        if b.rarely(3) {
            m.host.guest_write32(self.d.vm, self.flag, 0);
            self.slots[index].waits = self.slots[index].c.tail + 8;
            commands.splice(0..0, commands::wait(b, &self.places));
        }
        let slot = &mut self.slots[index];
        self.d.emit(m, &mut slot.c, &commands);
        let second = b.rarely(6).then(|| b.below(4) as usize).filter(|other| self.slots[*other].c.engine == engine);
        self.submit_slot(m, index, second, b);
    }

    /// The ring changes where it waits, and is submitted with a tail that may lie anywhere near.
    fn rewrite_waiting(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let index = b.below(4) as usize;
        let slot = &self.slots[index];
        let engine = slot.c.engine;
        let commands = commands::ring(b, &self.places, engine);
        let from = if b.rarely(4) { 4 * b.below(RING / 4) } else { slot.waits.wrapping_sub(4 * b.below(8)) } % RING;
        if b.below(2) == 0 {
            // All of it is no-ops but this.
            self.poke(m, index, 0, &[0; RING as usize / 4]);
        }
        self.poke(m, index, from, &commands);
        let end = (from + 4 * commands.len() as u32 + 7) & !7;
        let tail = match b.below(6) {
            0 => self.slots[index].c.tail,
            1 => end,
            2 => self.slots[index].c.tail.wrapping_add(8 * b.below(16)),
            3 | 4 => self.slots[index].c.tail.wrapping_sub(8 * b.below(8)),
            _ => 8 * b.below(RING / 8),
        };
        self.slots[index].c.tail = (tail % RING) & !7;
        self.submit_slot(m, index, None, b);
        for _ in 0..b.below(20) {
            m.step();
        }
        if b.below(3) != 0 {
            m.host.guest_write32(self.d.vm, self.flag, 1);
        }
    }

    fn poke(&mut self, m: &mut Machine, index: usize, at: u32, dwords: &[u32]) {
        let pages = &self.slots[index].c.ring_pages;
        let mut at = at % RING;
        let mut rest = dwords;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(((4096 - at % 4096) / 4) as usize));
            let bytes: Vec<u8> = now.iter().flat_map(|dword| dword.to_le_bytes()).collect();
            m.host.guest_write(self.d.vm, Gpa(pages[(at / 4096) as usize].0 + u64::from(at % 4096)), &bytes);
            at = (at + bytes.len() as u32) % RING;
            rest = later;
        }
    }

    /// Commands into a batch, which may be running.
    fn write_batch(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let slot = &self.slots[b.below(4) as usize];
        let mut commands = commands::batch(b, &self.places, slot.c.engine);
        commands.push(mi::header(mi::BATCH_BUFFER_END));
        let page = b.pick(&slot.pages);
        let at = if b.rarely(6) { 4 * u64::from(b.below(32)) } else { 0 };
        let bytes: Vec<u8> = commands.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        let room = bytes.len().min((PAGE_SIZE - at) as usize);
        m.host.guest_write(self.d.vm, Gpa(page.0 + at), &bytes[..room]);
    }

    /// A dword of a context image.
    fn forge_image(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let slot = &self.slots[b.below(4) as usize];
        let engine = slot.c.engine;
        let (at, dword) = match b.below(4) {
            0 => (b.pick(&VALUES), self.places.global(b, Whose::Anybody) | b.below(16)),
            1 => (b.pick(&VALUES), b.dword()),
            2 => {
                let group = b.pick(context_groups(engine).as_slice());
                (group.0 + 1 + b.below(group.1.max(1)) as usize, self.places.register(b, engine))
            }
            _ => (b.below(DWORDS as u32) as usize, b.dword()),
        };
        let page = if b.rarely(8) { b.pick(&slot.c.image) } else { slot.c.image[1] };
        m.host.guest_write32(self.d.vm, Gpa(page.0 + 4 * at as u64), dword);
    }

    /// An entry of a process' page table.
    fn page_table(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let slot = &self.slots[b.below(4) as usize];
        let level = b.below(4) as usize;
        let table = slot.tables[level];
        let used = [0, DATA >> 12 & 0x1FF, 0x100, 0x1FF];
        let index = if b.rarely(3) { u64::from(b.below(512)) } else { b.pick(&used) };
        let flags = b.pick(&[3, 3, 1, 0, 0x83, 0x803, 0x1B]);
        let entry = if b.rarely(8) { b.qword() } else { self.places.frame(b) | flags };
        let at = Gpa(table.0 + 8 * index);
        let before = u64::from(m.host.guest_read32(self.d.vm, Gpa(at.0 + 4))) << 32
            | u64::from(m.host.guest_read32(self.d.vm, at));
        self.spoiled.push((at, before));
        m.host.guest_write64(self.d.vm, at, entry);
    }

    /// Page tables as they were, so that there is something to run again.
    fn mend_tables(&mut self, m: &mut Machine) {
        while let Some((at, entry)) = self.spoiled.pop() {
            m.host.guest_write64(self.d.vm, at, entry);
        }
        while let Some((offset, entry)) = self.spoiled_global.pop() {
            m.host.register_page_write(self.d.vm, offset, &entry);
        }
        self.mmio(m, reg::GFX_FLSH_CNTL, 4, 1);
    }

    /// An entry of the global page table, in or out of its partition.
    fn global_table(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let whose = if b.rarely(4) { Whose::Anybody } else { Whose::Own };
        let index = self.places.global(b, whose) >> 12;
        let entry = if b.rarely(8) { b.qword() } else { self.places.frame(b) | 1 };
        let bytes = b.pick(&[8usize, 8, 4]);
        let offset = reg::GGTT_OFFSET as u32 + 8 * index + if b.rarely(8) { b.below(8) } else { 0 };
        let data = &entry.to_le_bytes()[..bytes];
        for at in [offset & !7, (offset & !7) + 8] {
            let mut before = [0; 8];
            if m.host.register_page_read(self.d.vm, at, &mut before).is_some() {
                self.spoiled_global.push((at, before));
            }
        }
        if u64::from(offset % 4096) + bytes as u64 > PAGE_SIZE
            || m.host.register_page_write(self.d.vm, offset, data).is_none()
        {
            self.mmio(m, offset, bytes, entry);
        }
    }

    /// A fence, in the order that drivers write it or another.
    fn fence(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let at = reg::FENCE0 + 8 * if b.rarely(16) { b.below(32) } else { b.below(4) };
        let slice = m.gvt.aperture_slice(self.d.id);
        let pages = (slice.size / PAGE_SIZE) as u32;
        let edge = |b: &mut Bytes<'_>| match b.below(8) {
            0 => b.pick(&[0, pages, pages - 1]),
            1 => b.below(1 << 20),
            _ => b.below(pages),
        };
        let first = (slice.offset / PAGE_SIZE) as u32;
        let start = first + edge(b);
        let end = if b.rarely(6) { self.places.global(b, Whose::Anybody) >> 12 } else { start + edge(b) };
        let pitch = if b.rarely(3) { b.below(0x800) } else { (1 << b.below(12)) - 1 };
        let low = start << 12 | b.pick(&[1, 3, 1, 3, 0, 5]);
        let high = end << 12 | pitch;
        let order = b.pick(&[[(at, 0), (at + 4, high), (at, low)], [(at + 4, high), (at, low), (at, low)]]);
        for (offset, value) in order {
            self.mmio(m, offset, 4, value.into());
        }
    }

    /// Loads and stores through its part of BAR2.
    fn aperture(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let slice = m.gvt.aperture_slice(self.d.id);
        for _ in 0..=b.below(8) {
            let at = u64::from(b.below(slice.size as u32 - 8));
            if b.below(2) == 0 {
                m.aperture_write(self.d.vm, self.d.id, at, &[0xAA; 8]);
            } else {
                m.aperture_read(self.d.vm, self.d.id, at, &mut [0; 8]);
            }
        }
    }

    /// A register, by any width, and sometimes beside it.
    fn register(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let engine = b.pick(&ENGINES);
        let offset = match b.below(6) {
            0 => b.pick(&SHARED),
            1 => b.pick(&OPENED),
            2 => engine.base() + b.pick(&CONTROL),
            3 => engine.base() + ring::HWS_PGA,
            4 => b.below(reg::MMIO_SIZE) & !3,
            _ => self.places.register(b, engine),
        };
        let value = match b.below(4) {
            0 => u64::from(self.places.global(b, Whose::Anybody)),
            1 => b.pick(&[1, 0, 0xFFFF_FFFF, 0xFFFF_0000, 1 << 31]),
            _ => b.qword(),
        };
        let odd = if b.rarely(6) { b.below(8) } else { 0 };
        let bytes = b.pick(&[4usize, 4, 4, 8, 1, 2]);
        if b.rarely(3) {
            let now = m.now();
            m.gvt.mmio_read(&mut m.host, self.d.id, offset + odd, bytes, now);
        } else {
            self.mmio(m, offset + odd, bytes, value);
        }
    }

    /// A register is opened to batches, and a batch writes it.
    fn open(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let register = b.pick(&OPENED);
        let at = Engine::Rcs.base() + ring::FORCE_TO_NONPRIV + 4 * b.below(12);
        self.mmio(m, at, 4, u64::from(register | if b.rarely(4) { b.below(4) } else { 0 }));
        let slot = &self.slots[0];
        let value = b.pick(&[u32::MAX, 0xFFFF_A5A5]);
        for (i, dword) in (0..).zip([mi::load_register_imm(1), register, value, mi::header(mi::BATCH_BUFFER_END)]) {
            m.host.guest_write32(self.d.vm, Gpa(slot.pages[0].0 + 4 * i), dword);
        }
        self.d.emit(m, &mut self.slots[0].c, &Driver::batch_start(self.places.batches[0]));
        self.submit_slot(m, 0, None, b);
    }

    fn pvinfo(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let root = if b.rarely(3) { self.places.frame(b) } else { b.pick(&self.slots[0].tables).0 };
        let notify = b.below(9);
        for (offset, value) in [
            (pvinfo::PDP0_LO + 8 * b.pick(&[0, 0, 1, 3]), root as u32),
            (pvinfo::PDP0_LO + 4, (root >> 32) as u32),
            (pvinfo::EXECLIST_DESC_LO, self.places.global(b, Whose::Anybody)),
            (pvinfo::G2V_NOTIFY, notify),
        ] {
            self.mmio(m, pvinfo::BASE + offset, 4, value.into());
        }
        if b.rarely(4) {
            let offset = b.below(pvinfo::SIZE);
            self.mmio(m, pvinfo::BASE + offset, b.pick(&[1, 2, 4, 8]), b.qword());
        }
    }

    fn config(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let now = m.now();
        let offset = b.pick(&[0x04, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x52, 0x5C, 0xAC, 0xB0, 0xB4, 0xE8, 0xFC]);
        let offset = if b.rarely(3) { b.below(256) as u16 } else { offset };
        let bytes = b.pick(&[4, 2, 1]);
        m.gvt.config_write(&mut m.host, self.d.id, offset, bytes, b.dword(), now);
        m.gvt.config_read(self.d.id, offset, bytes);
    }

    /// The first virtual CPU begins a store, or goes on with the one that it is in; others get in between.
    fn other_cpu(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let engine = b.pick(&ENGINES);
        let fresh =
            Store::new(b.pick(&[reg::GFX_FLSH_CNTL, engine.info().tlb, pvinfo::BASE + pvinfo::G2V_NOTIFY]), 4, 1);
        let mut store = self.store.take().unwrap_or(fresh);
        let now = m.now();
        if m.gvt.mmio_store(&mut m.host, self.d.id, &mut store, now) == Progress::More {
            self.store = Some(store);
        }
    }

    fn reset(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let engine = b.pick(&ENGINES);
        let now = m.now();
        match b.below(4) {
            0 => self.reset_engine(m, engine),
            1 => self.mmio(m, reg::GDRST, 4, b.pick(&[1, 2, 4, 8, 0x10, u32::MAX]).into()),
            2 => m.gvt.reset_vgpu(&mut m.host, self.d.id, ResetKind::Engines(EngineMask::GT2), now),
            _ => {
                m.gvt.reset_vgpu(&mut m.host, self.d.id, b.pick(&[ResetKind::Gt, ResetKind::Device]), now);
                ENGINES.into_iter().for_each(|engine| self.start(m, engine));
            }
        }
    }

    /// Four dwords of ELSP, or some of them.
    fn raw_submission(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let slot = &self.slots[b.below(4) as usize];
        let engine = if b.rarely(6) { b.pick(&ENGINES) } else { slot.c.engine };
        let good = Descriptor::new(slot.c.lrca, slot.c.id).low();
        let low = match b.below(3) {
            0 => self.places.global(b, Whose::Anybody) & !0xFFF | good & 0xFFF,
            1 => good ^ 1 << b.below(32),
            _ => good,
        };
        for dword in [0, if b.rarely(3) { low } else { 0 }, slot.c.id, low].into_iter().skip(b.below(8) as usize / 6) {
            self.mmio(m, engine.base() + ring::ELSP, 4, dword.into());
        }
    }

    /// A submission of what there is.
    fn submit(&mut self, m: &mut Machine, b: &mut Bytes<'_>) {
        let index = b.below(4) as usize;
        if b.rarely(3) {
            let tail = self.slots[index].c.tail;
            self.slots[index].c.tail = (tail.wrapping_sub(8 * b.below(8)) % RING) & !7;
        }
        self.submit_slot(m, index, None, b);
    }

    fn submit_slot(&mut self, m: &mut Machine, index: usize, second: Option<usize>, b: &mut Bytes<'_>) {
        let c = &self.slots[index].c;
        let flags = match b.below(4) {
            0 => Descriptor::FORCE_RESTORE as u32,
            1 => Descriptor::FORCE_PD_RESTORE as u32,
            _ => 0,
        };
        m.host.guest_write32(self.d.vm, Gpa(c.image[1].0 + 4 * value::RING_TAIL as u64), c.tail);
        let first = Descriptor::new(c.lrca, c.id);
        let second = second.map_or(Descriptor(0), |other| Descriptor::new(self.slots[other].c.lrca, 7));
        let base = c.engine.base();
        for dword in [second.id(), second.low(), first.id(), first.low() | flags] {
            self.mmio(m, base + ring::ELSP, 4, dword.into());
        }
    }

    fn mmio(&mut self, m: &mut Machine, offset: u32, bytes: usize, value: u64) {
        let now = m.now();
        m.gvt.mmio_write(&mut m.host, self.d.id, offset, bytes, value, now);
    }

    /// Takes what the mediator reports. An engine whose submission was refused is reset, most of the time.
    fn recover(&mut self, m: &mut Machine, b: &mut Bytes<'_>) -> bool {
        while let Some(report) = m.gvt.take_report() {
            assert_eq!(report.vm, self.d.vm, "the honest guest is blamed: {report}");
            if report.action == Action::StopVm {
                let now = m.now();
                let _ = m.gvt.destroy_vgpu(&mut m.host, self.d.id, now);
                return false;
            }
            let engine = match report.cause {
                Cause::Audit { engine, .. }
                | Cause::Submission { engine, .. }
                | Cause::NoRoom { engine }
                | Cause::Hang { engine } => engine,
                Cause::ResetStorm { .. } | Cause::DeadEngine { .. } | Cause::TooLittle => continue,
            };
            if !b.rarely(8) {
                self.reset_engine(m, engine);
            }
        }
        true
    }

    /// What i915 does, without a look at what comes of it; the contexts begin anew.
    fn reset_engine(&mut self, m: &mut Machine, engine: Engine) {
        let base = engine.base();
        for (offset, value) in [
            (base + ring::MI_MODE, masked::enable(ring::MI_MODE_STOP_RING)),
            (base + ring::RESET_CTL, masked::enable(ring::RESET_CTL_REQUEST)),
            (reg::GDRST, engine.info().reset),
            (base + ring::RESET_CTL, masked::disable(ring::RESET_CTL_REQUEST)),
        ] {
            self.mmio(m, offset, 4, value.into());
        }
        self.mend_tables(m);
        self.start(m, engine);
    }

    fn start(&mut self, m: &mut Machine, engine: Engine) {
        let base = engine.base();
        for (local, value) in [
            (ring::GFX_MODE, masked::enable(ring::GFX_RUN_LIST_ENABLE)),
            (ring::MI_MODE, masked::disable(ring::MI_MODE_STOP_RING)),
            (ring::HWS_PGA, self.places.own[0]),
            (ring::IMR, 0),
        ] {
            self.mmio(m, base + local, 4, value.into());
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.c.engine == engine) {
            slot.c.tail = 0;
            self.d.rebuild(m, &slot.c);
        }
    }
}

/// Values of an image that lead somewhere.
const VALUES: [usize; 16] = [
    value::CTX_CONTROL,
    value::RING_HEAD,
    value::RING_TAIL,
    value::RING_START,
    value::RING_CTL,
    value::BB_ADDR_UDW,
    value::BB_ADDR,
    value::BB_STATE,
    value::SBB_ADDR,
    value::SBB_STATE,
    value::BB_PER_CTX_PTR,
    value::INDIRECT_CTX,
    value::INDIRECT_CTX_OFFSET,
    value::PDP0_UDW,
    value::PDP0_LDW,
    value::MI_MODE,
];

/// Headers of an image, and dwords behind each.
fn context_groups(engine: Engine) -> Vec<(usize, u32)> {
    layout(engine).iter().map(|group| (group.header, 2 * group.registers.len() as u32)).collect()
}

/// A context with batches and data in its address space.
fn slot(m: &mut Machine, d: &mut Driver, engine: Engine, [batch, flag, first, second]: [Gpa; 4]) -> Slot {
    let c = d.context(m, engine);
    let own = d.pages(2);
    let pages = [batch, own[0], own[1]];
    for (va, page) in BATCHES.into_iter().zip(pages).chain([
        (FLAG_VA, flag),
        (DATA, first),
        (DATA + 0x1000, second),
        (DATA + 0x2000, first),
    ]) {
        d.map_process(m, c.pml4, va, page);
    }
    let mut tables = [c.pml4; 4];
    for level in 1..4 {
        let shift = [39, 30, 21][level - 1];
        let entry = m.host.guest_read32(d.vm, Gpa(tables[level - 1].0 + 8 * (DATA >> shift & 0x1FF)));
        tables[level] = Gpa(u64::from(entry) & !0xFFF);
    }
    Slot { c, tables, waits: 0, pages }
}

const BATCHES: [u64; 3] = [0x10_0000, 0x10_1000, 0x10_4000];
const FLAG_VA: u64 = 0x20_0000;

fn places(m: &mut Machine, d: &mut Driver, slots: &[Slot], victim: &[Context], at: [GgttAddr; 4]) -> Places {
    let [secret, flag, data, batch] = at;
    let info = |d: &mut Driver, m: &mut Machine, offset| d.read(m, pvinfo::BASE + offset);
    let low = info(d, m, pvinfo::MAPPABLE_BASE);
    let low_end = low + info(d, m, pvinfo::MAPPABLE_SIZE);
    let high = info(d, m, pvinfo::NONMAPPABLE_BASE);
    let high_end = high + info(d, m, pvinfo::NONMAPPABLE_SIZE);
    let mut own = vec![data.0, data.0 + 0x1000, flag.0, low, low_end - 0x1000, high, high_end - 0x1000];
    own.extend(slots.iter().flat_map(|slot| [slot.c.lrca.0, slot.c.ring.0]));
    let mut others = vec![low_end, low.wrapping_sub(0x1000), high_end, high - 0x1000, 0];
    others.extend([secret.0, secret.0 + 0x1000, victim[0].ring.0, victim[0].lrca.0, victim[1].lrca.0 + 0x1000]);
    // Prism's: the first of what it handed out, and what comes next.
    others.extend([0xFC00_0000, 0xFC00_1000, 0xFC01_6000, 0xFC01_7000, 0xFC02_0000, 0xFC10_0000, 0xFFFF_F000]);
    let mut frames: Vec<Gpa> = slots.iter().flat_map(|slot| slot.tables).collect();
    frames.extend(slots.iter().flat_map(|slot| [slot.c.image[0], slot.c.image[1], slot.c.ring_pages[0]]));
    frames.extend([Gpa(0), Gpa(RAM - PAGE_SIZE)]);
    let others_ram = m.host.range(gvt::VmId(1)).0.0;
    let foreign = vec![RAM, others_ram, others_ram + 0x10_0000, 0x1000, 0x10_0000, 0x7F_FFFF_F000, 1 << 45];
    Places { own, others, flag, flag_va: FLAG_VA, batch, batches: BATCHES, frames, foreign }
}
