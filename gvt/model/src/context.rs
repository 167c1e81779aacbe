//! Context images: restore, workaround batches, save.

use alloc::boxed::Box;
use alloc::vec;

use gvt_defs::context::{self, CACHELINE, DWORDS, Group, INDIRECT_SIZE_MASK, PER_CTX_VALID, value};
use gvt_defs::execlist::Descriptor;
use gvt_defs::pte::GgttPte;
use gvt_defs::trace::{By, Kind};
use gvt_defs::{Engine, GgttAddr, PAGE_SIZE, masked, mi, ring};

use crate::device::Device;
use crate::engine::{Batch, Exec, Level, Ring};
use crate::findings::Finding;
use crate::regs::Class;
use crate::translate::{Root, Space};
use crate::witness::Purpose;

/// A context image that is written back later.
pub(crate) struct Deferred {
    descriptor: Descriptor,
    image: Box<[u32]>,
}

type Page = [u8; PAGE_SIZE as usize];

fn dword(page: &Page, position: usize) -> u32 {
    let at = position * 4;
    page.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

const fn register_page(lrca: GgttAddr) -> u64 {
    lrca.0 as u64 + context::REGISTER_PAGE as u64
}

impl Exec<'_> {
    /// Makes `descriptor` the running context.
    pub fn load(&mut self, descriptor: Descriptor) {
        self.flush_deferred();
        let engine = self.state.engine;
        self.state.image = Some(GgttPte(self.device.gtt.entry(descriptor.lrca().index())).frame());
        self.device.recorder.witness.begin(engine, self.state.image);
        self.device.trace.add(self.device.now, Kind::Load, By::Engine(engine), 0, descriptor.0);
        let now = self.device.now;
        let port = self.device.port(engine);
        (port.busy, port.since, port.loaded) = (true, now, now);
        self.device.counters.change(engine, |c| c.loads += 1);
        self.restore(descriptor);
        self.device.recorder.witness.loaded(&self.device.regs);
        self.meet_residue(descriptor.lrca());
        self.state.running = Some(descriptor);
        self.device.publish_running(engine, descriptor, self.state.element);
        self.set_root(descriptor);
        self.set_ring();
        self.state.arbitration = true;
        self.state.fresh = true;
        self.state.skipping = false;
        self.state.waiting = false;
        self.state.spins = 0;
        self.state.polls = 0;
        self.state.blit = None;
        self.state.fetch.drop_window();
        self.enter_indirect();
    }

    /// Only the tail is read again.
    pub fn lite_restore(&mut self, list: [Descriptor; 2]) {
        let engine = self.state.engine;
        let page = register_page(list[0].lrca());
        let before = self.view().purpose(Purpose::Image);
        let tail = self.view().read_u32(Space::Global, page + 4 * value::RING_TAIL as u64);
        self.view().purpose(before);
        self.device.set_ring(engine, ring::TAIL, tail);
        if self.state.ring.size != 0 {
            self.state.ring.tail = (tail & ring::TAIL_ADDR_MASK) % self.state.ring.size;
        }
        self.state.list = list;
        self.state.element = 0;
        self.state.running = Some(list[0]);
        self.device.publish_running(engine, list[0], 0);
        if list[0].0 & Descriptor::FORCE_PD_RESTORE != 0 {
            self.reload_root(list[0]);
        }
        self.device.trace.add(self.device.now, Kind::Load, By::Engine(engine), 1, list[0].0);
    }

    fn reload_root(&mut self, descriptor: Descriptor) {
        let engine = self.state.engine;
        let page = register_page(descriptor.lrca());
        let before = self.view().purpose(Purpose::Image);
        for (n, position) in
            [value::PDP0_LDW, value::PDP1_LDW, value::PDP2_LDW, value::PDP3_LDW].into_iter().enumerate()
        {
            let low = self.view().read_u32(Space::Global, page + 4 * position as u64);
            let high = self.view().read_u32(Space::Global, page + 4 * position as u64 - 8);
            self.device.set_ring(engine, ring::PDP0_LDW + 8 * n as u32, low);
            self.device.set_ring(engine, ring::PDP0_UDW + 8 * n as u32, high);
        }
        self.view().purpose(before);
        self.set_root(descriptor);
    }

    /// Runs through the register page as the command stream that it is.
    fn restore(&mut self, descriptor: Descriptor) {
        let engine = self.state.engine;
        let mut page: Page = [0; PAGE_SIZE as usize];
        let before = self.view().purpose(Purpose::Image);
        self.view().read(Space::Global, register_page(descriptor.lrca()), &mut page);
        self.view().purpose(before);
        let mut at = 0;
        while at < DWORDS {
            let inhibit = self.device.ring(engine, ring::CTX_CONTROL) & ring::CTX_RESTORE_INHIBIT != 0;
            if inhibit && at >= 0x40 {
                return;
            }
            let header = dword(&page, at);
            if header == 0 {
                at += 1;
                continue;
            }
            match (header >> 29, mi::opcode(header)) {
                (0, mi::NOOP) => at += 1,
                (0, mi::LOAD_REGISTER_IMM) => at = self.restore_group(&page, at, header),
                (0, mi::BATCH_BUFFER_END) => return,
                _ => {
                    self.device.findings.add(Finding::BadImage(engine, at as u32, header));
                    return;
                }
            }
        }
    }

    fn restore_group(&mut self, page: &Page, at: usize, header: u32) -> usize {
        let pairs = ((header & 0xFF) as usize).div_ceil(2);
        for pair in 0..pairs {
            let position = at + 1 + 2 * pair;
            if position + 1 >= DWORDS {
                break;
            }
            let register = dword(page, position) & mi::REGISTER_MASK;
            self.device.restore_register(self.state.engine, register, dword(page, position + 1));
        }
        at + 1 + 2 * pairs
    }

    /// Takes the page directory pointers; a change makes the engine forget the process space.
    fn set_root(&mut self, descriptor: Descriptor) {
        let engine = self.state.engine;
        let pdp = core::array::from_fn(|n| self.device.regs.get64(engine.base() + ring::PDP0_LDW + 8 * n as u32));
        let root = Root { pdp, addressing: descriptor.addressing() };
        if root != self.state.root || descriptor.0 & Descriptor::FORCE_PD_RESTORE != 0 {
            self.device.gtt.flush_process(engine);
        }
        self.state.root = root;
    }

    fn set_ring(&mut self) {
        let engine = self.state.engine;
        let read = |local| self.device.ring(engine, local);
        let control = read(ring::CTL);
        let size = ring::ctl_bytes(control);
        let head = read(ring::HEAD);
        let mut loaded = Ring {
            start: read(ring::START) & !0xFFF,
            size,
            head: (head & ring::HEAD_ADDR_MASK) % size,
            tail: (read(ring::TAIL) & ring::TAIL_ADDR_MASK) % size,
            wraps: head & !0x1F_FFFF,
        };
        if control & ring::CTL_VALID == 0 {
            // No ring: nothing to run.
            loaded.tail = loaded.head;
            self.device.findings.add(Finding::BadImage(engine, value::RING_CTL as u32, control));
        }
        self.state.ring = loaded;
    }

    fn enter_indirect(&mut self) {
        let engine = self.state.engine;
        let indirect = self.device.ring(engine, ring::INDIRECT_CTX);
        let lines = indirect & INDIRECT_SIZE_MASK;
        if lines == 0 {
            return self.enter_per_context();
        }
        let address = u64::from(indirect & !INDIRECT_SIZE_MASK);
        self.state.workaround = Batch { address, space: Space::Global };
        self.state.workaround_end = address + u64::from(lines * CACHELINE);
        self.state.level = Level::Indirect;
    }

    /// The indirect batch is at its end.
    pub fn leave_indirect(&mut self) {
        self.state.fetch.drop_window();
        self.enter_per_context();
    }

    fn enter_per_context(&mut self) {
        let pointer = self.device.ring(self.state.engine, ring::BB_PER_CTX_PTR);
        if pointer & PER_CTX_VALID == 0 {
            return self.resume();
        }
        self.state.workaround = Batch { address: u64::from(pointer & !0xFFF), space: Space::Global };
        self.state.level = Level::PerContext;
    }

    /// Goes on where the context was left: in a batch, or in the ring.
    pub fn resume(&mut self) {
        let engine = self.state.engine;
        self.state.fetch.drop_window();
        self.state.level = Level::Ring;
        if let Some(batch) = self.device.saved_batch(engine, ring::BB_ADDR, ring::BB_ADDR_UDW, ring::BB_STATE) {
            self.state.first = batch;
            self.state.level = Level::First;
            if let Some(second) = self.device.saved_batch(engine, ring::SBB_ADDR, ring::SBB_ADDR_UDW, ring::SBB_STATE) {
                self.state.second = second;
                self.state.level = Level::Second;
            }
        }
    }

    /// Puts where the engine is into the registers that tell it.
    pub fn publish(&mut self) {
        let engine = self.state.engine;
        let state = &*self.state;
        let device = &mut *self.device;
        device.set_ring(engine, ring::HEAD, state.ring.wraps | state.ring.head);
        let control = device.ring(engine, ring::CTL) & !ring::CTL_SEMAPHORE_WAIT;
        device.set_ring(engine, ring::CTL, if state.waiting { control | ring::CTL_SEMAPHORE_WAIT } else { control });
        device.set_ring(engine, ring::IPEHR, state.last_header);
        let first = matches!(state.level, Level::First | Level::Second).then_some(state.first);
        device.set_batch(engine, ring::BB_ADDR, ring::BB_ADDR_UDW, ring::BB_STATE, first);
        let second = (state.level == Level::Second).then_some(state.second);
        device.set_batch(engine, ring::SBB_ADDR, ring::SBB_ADDR_UDW, ring::SBB_STATE, second);
        let (_, address) = self.cursor();
        self.device.set_ring(engine, ring::ACTHD, address as u32);
        self.device.set_ring(engine, ring::ACTHD_UDW, (address >> 32) as u32);
    }

    /// Writes the image back. RING_TAIL belongs to software, which may have moved it on.
    pub fn save(&mut self, descriptor: Descriptor) {
        let image = self.device.image(self.state.engine);
        self.write_image(descriptor, &image);
    }

    /// Keeps the image for later.
    pub fn defer_save(&mut self, descriptor: Descriptor) {
        let image = self.device.image(self.state.engine);
        self.state.deferred = Some(Deferred { descriptor, image });
    }

    fn flush_deferred(&mut self) {
        if let Some(deferred) = self.state.deferred.take() {
            self.write_image(deferred.descriptor, &deferred.image);
        }
    }

    fn write_image(&mut self, descriptor: Descriptor, image: &[u32]) {
        self.device.trace.add(self.device.now, Kind::Save, By::Engine(self.state.engine), 0, descriptor.0);
        let mut page: Page = [0; PAGE_SIZE as usize];
        for (bytes, dword) in page.chunks_exact_mut(4).zip(image) {
            bytes.copy_from_slice(&dword.to_le_bytes());
        }
        let start = register_page(descriptor.lrca());
        let tail = 4 * value::RING_TAIL;
        let end = (4 * image.len()).min(page.len());
        let mut view = self.view();
        let before = view.purpose(Purpose::Image);
        view.write(Space::Global, start, page.get(..tail).unwrap_or(&[]));
        let after = tail + 4;
        view.write(Space::Global, start + after as u64, page.get(after..end).unwrap_or(&[]));
        view.purpose(before);
    }
}

impl Device {
    /// A register out of a context image. Status registers of the engine are loaded too.
    fn restore_register(&mut self, engine: Engine, register: u32, value: u32) {
        self.recorder.witness.leave(register, self.regs.get(register));
        let own = register.wrapping_sub(engine.base()) < 0x800;
        if own && self.regs.class(register) == Class::ReadOnly {
            self.regs.set(register, value);
        } else {
            self.store(register, value);
        }
    }

    fn saved_batch(&self, engine: Engine, low: u32, high: u32, state: u32) -> Option<Batch> {
        let address = self.ring(engine, low);
        let space = if self.ring(engine, state) & ring::BB_STATE_PPGTT != 0 { Space::Process } else { Space::Global };
        let address64 = u64::from(self.ring(engine, high) & 0xFFFF) << 32 | u64::from(address & !3);
        (address & ring::BB_ADDR_VALID != 0).then_some(Batch { address: address64, space })
    }

    fn set_batch(&mut self, engine: Engine, low: u32, high: u32, state: u32, batch: Option<Batch>) {
        let (address, flags) = match batch {
            Some(batch) => {
                let flags = if batch.space == Space::Process { ring::BB_STATE_PPGTT } else { 0 };
                (batch.address & !3 | u64::from(ring::BB_ADDR_VALID), flags)
            }
            None => (0, 0),
        };
        self.set_ring(engine, low, address as u32);
        self.set_ring(engine, high, (address >> 32) as u32 & 0xFFFF);
        self.set_ring(engine, state, flags);
    }

    /// The register page as hardware would write it now.
    fn image(&mut self, engine: Engine) -> Box<[u32]> {
        let only_ring = self.ring(engine, ring::CTX_CONTROL) & ring::CTX_SAVE_INHIBIT != 0;
        let end = if only_ring { context::RING_CONTEXT_DWORDS } else { context::end_position(engine) + 1 };
        let mut image = vec![0; end].into_boxed_slice();
        for group in context::layout(engine) {
            if !(group.engine_context && only_ring) {
                self.image_group(engine, group, &mut image);
            }
        }
        if !only_ring && let Some(last) = image.last_mut() {
            *last = mi::header(mi::BATCH_BUFFER_END);
        }
        image
    }

    fn image_group(&mut self, engine: Engine, group: &Group, image: &mut [u32]) {
        if let Some(header) = image.get_mut(group.header) {
            *header = group.header_dword();
        }
        for i in 0..group.registers.len() {
            let Some((position, register)) = group.pair(engine, i) else {
                continue;
            };
            let value = self.image_value(engine, register);
            if let Some(pair) = image.get_mut(position..position + 2) {
                pair.copy_from_slice(&[register, value]);
            }
        }
    }

    fn image_value(&mut self, engine: Engine, register: u32) -> u32 {
        let stored = self.regs.get(register);
        match register.wrapping_sub(engine.base()) {
            ring::CTX_CONTROL => masked::exactly(stored & !ring::CTX_RESTORE_INHIBIT),
            ring::MI_MODE => masked::exactly(stored & !(ring::MI_MODE_STOP_RING | ring::MI_MODE_IDLE)),
            ring::CTX_TIMESTAMP => self.context_timestamp(engine),
            ring::TIMESTAMP => self.timestamp() as u32,
            _ if self.regs.class(register) == Class::Masked => masked::exactly(stored),
            _ => stored,
        }
    }
}
