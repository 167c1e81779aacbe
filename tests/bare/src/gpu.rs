//! A small driver: PVINFO, global page table, status pages, contexts, rings, submission by polling, resets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gvt_defs::context::{self, value};
use gvt_defs::execlist::{CsbEntry, Descriptor, HWSP_CSB, HWSP_CSB_WRITE, csb_next};
use gvt_defs::pte::PpgttEntry;
use gvt_defs::{Engine, EngineMask, GgttAddr, Gpa, masked, mi, pvinfo, reg, ring};

use crate::sys::{Memory, PAGE, Registers};

/// The device in sysfs.
pub const DEVICE: &str = "/sys/bus/pci/devices/0000:00:02.0";
/// Pages that the program works with.
const PAGES: usize = 16 << 10;
/// Pages of a ring.
const RING_PAGES: usize = 2;
/// Where sequence numbers lie in a status page: dword index.
const SEQNO: usize = 0x100;
/// How long a submission may take that ought to end.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The device and what is known of it.
pub struct Gpu {
    /// BAR0.
    pub registers: Registers,
    /// Memory of this program.
    pub memory: Arc<Memory>,
    next_page: usize,
    next_address: u32,
    /// The two parts of the graphics address space that are the guest's: base and bytes.
    pub partition: [(u32, u32); 2],
    ports: BTreeMap<Engine, Port>,
    next_id: u32,
}

/// An engine: its status page, and how far its status entries were read.
struct Port {
    address: GgttAddr,
    page: usize,
    csb: u32,
    contexts: usize,
}

/// A context with an address space of its own.
pub struct Context {
    pub engine: Engine,
    pub lrca: GgttAddr,
    pub id: u32,
    /// Page numbers of the image.
    pub image: Vec<usize>,
    pub ring: GgttAddr,
    pub ring_pages: Vec<usize>,
    /// Page number of the root of its address space.
    pub root: usize,
    tables: BTreeMap<(u32, u64), usize>,
    tail: usize,
    seqno: u32,
    slot: usize,
}

impl Context {
    /// Where the entry for an address is: page number of its table, and index.
    pub fn entry(&self, address: u64) -> Option<(usize, usize)> {
        let table = *self.tables.get(&(1, address >> 21))?;
        Some((table, (address >> 12) as usize & 0x1FF))
    }
}

/// The engines of a GT2.
pub fn engines() -> impl Iterator<Item = Engine> {
    Engine::ALL.into_iter().filter(|engine| EngineMask::GT2.has(*engine))
}

impl Gpu {
    /// Switches the device on and sets its engines up.
    pub fn open() -> io::Result<Self> {
        std::fs::write(format!("{DEVICE}/enable"), "1")?;
        let config = File::options().read(true).write(true).open(format!("{DEVICE}/config"))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, 4)?;
        // Memory decoding and bus mastering.
        config.write_all_at(&(u16::from_le_bytes(command) | 6).to_le_bytes(), 4)?;
        let registers = Self::registers()?;
        let field = |offset: u32| registers.load(pvinfo::BASE + offset, 4) as u32;
        if registers.load(pvinfo::BASE + pvinfo::MAGIC, 8) != pvinfo::MAGIC_VALUE {
            return Err(io::Error::other("no vGPU: PVINFO has no magic number"));
        }
        let partition = [
            (field(pvinfo::MAPPABLE_BASE), field(pvinfo::MAPPABLE_SIZE)),
            (field(pvinfo::NONMAPPABLE_BASE), field(pvinfo::NONMAPPABLE_SIZE)),
        ];
        let memory = Arc::new(Memory::new(PAGES)?);
        let (ports, next_address) = (BTreeMap::new(), partition[1].0);
        let mut gpu = Self { registers, memory, next_page: 0, next_address, partition, ports, next_id: 1 };
        engines().for_each(|engine| gpu.start_engine(engine));
        Ok(gpu)
    }

    /// BAR0, mapped once more.
    pub fn registers() -> io::Result<Registers> {
        Registers::map(&format!("{DEVICE}/resource0"), reg::GTTMMADR_SIZE as usize)
    }

    /// Writes a register.
    pub fn write(&self, offset: u32, value: u32) {
        self.registers.store(offset, 4, value.into());
    }

    /// Takes pages of zeros; they are not given back, and used again when all have been taken.
    pub fn pages(&mut self, count: usize) -> Vec<usize> {
        if self.next_page + count > PAGES {
            self.next_page = PAGES / 2;
        }
        let pages: Vec<usize> = (self.next_page..self.next_page + count).collect();
        self.next_page += count;
        for page in &pages {
            (0..PAGE / 4).for_each(|index| self.memory.set(*page, index, 0));
        }
        pages
    }

    /// Writes a global page-table entry.
    pub fn set_global(&self, at: GgttAddr, entry: u64) {
        self.registers.store(reg::GGTT_OFFSET as u32 + 8 * at.index(), 8, entry);
    }

    /// Maps pages one behind the other in the upper part of the partition.
    pub fn pin(&mut self, pages: &[usize]) -> GgttAddr {
        let (base, bytes) = self.partition[1];
        if self.next_address + (pages.len() * PAGE) as u32 > base + bytes / 2 {
            self.next_address = base;
        }
        let first = self.next_address;
        for page in pages {
            self.set_global(GgttAddr(self.next_address), self.memory.gpa(*page).0 | 1);
            self.next_address += PAGE as u32;
        }
        self.write(reg::GFX_FLSH_CNTL, 1);
        GgttAddr(first)
    }

    /// Maps the status pages again.
    pub fn restore_entries(&mut self) {
        for port in self.ports.values() {
            self.set_global(port.address, self.memory.gpa(port.page).0 | 1);
        }
        self.write(reg::GFX_FLSH_CNTL, 1);
        let engines: Vec<Engine> = self.ports.keys().copied().collect();
        engines.into_iter().for_each(|engine| self.start_engine(engine));
    }

    /// What a driver does at start and after each reset of an engine.
    pub fn start_engine(&mut self, engine: Engine) {
        if !self.ports.contains_key(&engine) {
            let pages = self.pages(1);
            let port = Port { address: self.pin(&pages), page: pages[0], csb: 5, contexts: 0 };
            self.ports.insert(engine, port);
        }
        let Some(port) = self.ports.get_mut(&engine) else { return };
        port.csb = 5;
        let (address, page) = (port.address, port.page);
        self.memory.set(page, HWSP_CSB_WRITE as usize / 4, 5);
        let base = engine.base();
        for (local, value) in [
            (ring::HWSTAM, u32::MAX),
            (ring::GFX_MODE, masked::enable(ring::GFX_RUN_LIST_ENABLE)),
            (ring::MI_MODE, masked::disable(ring::MI_MODE_STOP_RING)),
            (ring::HWS_PGA, address.0),
            (ring::CSB_PTR, 0xFFFF_0505),
            (ring::IMR, u32::MAX),
        ] {
            self.write(base + local, value);
        }
    }

    /// Resets an engine as a driver does that found it hung.
    pub fn reset_engine(&mut self, engine: Engine) {
        let base = engine.base();
        self.write(base + ring::MI_MODE, masked::enable(ring::MI_MODE_STOP_RING));
        self.write(base + ring::RESET_CTL, masked::enable(ring::RESET_CTL_REQUEST));
        self.write(reg::GDRST, engine.info().reset);
        self.write(base + ring::RESET_CTL, masked::disable(ring::RESET_CTL_REQUEST));
        self.start_engine(engine);
    }

    /// A new context.
    pub fn context(&mut self, engine: Engine) -> Context {
        let image = self.pages(engine.info().context_pages as usize);
        let ring_pages = self.pages(RING_PAGES);
        let root = self.pages(1)[0];
        let (lrca, ring) = (self.pin(&image), self.pin(&ring_pages));
        self.announce(root, pvinfo::G2V_PPGTT_L4_CREATE);
        self.next_id += 1;
        let id = self.next_id << 5;
        let contexts = self.ports.get_mut(&engine).map_or(0, |port| {
            port.contexts = (port.contexts + 1) % 256;
            port.contexts
        });
        let slot = SEQNO + 2 * contexts;
        self.memory.set(self.status(engine), slot, 0);
        let tables = BTreeMap::new();
        let c = Context { engine, lrca, id, image, ring, ring_pages, root, tables, tail: 0, seqno: 0, slot };
        self.write_image(&c);
        c
    }

    /// Tells the mediator of a root.
    pub fn announce(&self, root: usize, what: u32) {
        let root = self.memory.gpa(root).0;
        self.write(pvinfo::BASE + pvinfo::PDP0_LO, root as u32);
        self.write(pvinfo::BASE + pvinfo::PDP0_LO + 4, (root >> 32) as u32);
        self.write(pvinfo::BASE + pvinfo::G2V_NOTIFY, what);
    }

    fn write_image(&self, c: &Context) {
        let set = |at: usize, dword: u32| self.memory.set(c.image[1], at, dword);
        for group in context::layout(c.engine) {
            set(group.header, group.header_dword());
            for (at, offset) in (0..group.registers.len()).filter_map(|i| group.pair(c.engine, i)) {
                set(at, offset);
            }
        }
        set(context::end_position(c.engine), mi::header(mi::BATCH_BUFFER_END));
        let root = self.memory.gpa(c.root).0;
        for (at, dword) in [
            // The engine context is not to be restored: nothing was ever saved.
            (value::CTX_CONTROL, 0x0009_0009),
            (value::RING_START, c.ring.0),
            (value::RING_CTL, ((RING_PAGES - 1) * PAGE) as u32 | 1),
            (value::PDP0_LDW, root as u32),
            (value::PDP0_UDW, (root >> 32) as u32),
        ] {
            set(at, dword);
        }
    }

    /// Maps a guest address, whatever it is, in a context's address space.
    pub fn map(&mut self, c: &mut Context, address: u64, target: Gpa) {
        let mut table = c.root;
        for level in [3, 2, 1] {
            let key = (level, address >> (12 + 9 * level));
            let next = match c.tables.get(&key) {
                Some(next) => *next,
                None => {
                    let next = self.pages(1)[0];
                    self.memory.set_entry(table, key.1 as usize & 0x1FF, self.memory.gpa(next).0 | 3);
                    c.tables.insert(key, next);
                    next
                }
            };
            table = next;
        }
        let entry = target.0 | PpgttEntry::PRESENT | PpgttEntry::WRITABLE;
        self.memory.set_entry(table, (address >> 12) as usize & 0x1FF, entry);
    }

    /// Makes an engine forget what it knows of page tables; false if it does not say that it has.
    pub fn invalidate(&self, engine: Engine) -> bool {
        let register = engine.info().tlb;
        self.write(register, 1);
        let end = Instant::now() + PATIENCE;
        while self.registers.load(register, 4) & 1 != 0 {
            if Instant::now() > end {
                return false;
            }
        }
        true
    }

    /// Puts a batch at an address of a context's space; gives its page.
    pub fn batch(&mut self, c: &mut Context, address: u64, commands: &[u32]) -> usize {
        let page = self.pages(1)[0];
        self.map(c, address, self.memory.gpa(page));
        let end = [mi::header(mi::BATCH_BUFFER_END)];
        for (index, dword) in commands.iter().chain(&end).enumerate() {
            self.memory.set(page, index, *dword);
        }
        page
    }

    fn status(&self, engine: Engine) -> usize {
        self.ports.get(&engine).map_or(0, |port| port.page)
    }

    /// Appends commands to the ring, a sequence number behind them, and submits.
    pub fn submit(&mut self, c: &mut Context, commands: &[u32]) {
        c.seqno += 1;
        let status = self.ports.get(&c.engine).map_or(GgttAddr(0), |port| port.address);
        let mut all = commands.to_vec();
        let store = mi::with_length(mi::STORE_DATA_IMM, 4) | mi::GLOBAL_GTT;
        all.extend([store, status.0 + 4 * c.slot as u32, 0, c.seqno]);
        all.extend([mi::header(mi::USER_INTERRUPT), mi::header(mi::ARB_CHECK)]);
        all.resize(all.len().next_multiple_of(2), mi::header(mi::NOOP));
        for dword in all {
            self.memory.set(c.ring_pages[c.tail / PAGE], c.tail % PAGE / 4, dword);
            c.tail = (c.tail + 4) % (RING_PAGES * PAGE);
        }
        self.resubmit(c, 0);
    }

    /// Submits a context with a tail that lies `back` bytes before what was put there.
    pub fn resubmit(&mut self, c: &Context, back: usize) {
        self.memory.set(c.image[1], value::RING_TAIL, (c.tail - back) as u32);
        self.elsp(c.engine, Descriptor::new(c.lrca, c.id).0);
    }

    /// Submits a descriptor alone.
    pub fn elsp(&self, engine: Engine, descriptor: u64) {
        for dword in [0, 0, (descriptor >> 32) as u32, descriptor as u32] {
            self.write(engine.base() + ring::ELSP, dword);
        }
    }

    /// Whether all that was submitted of a context has been done, and its engine is idle.
    pub fn done(&mut self, c: &Context, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut idle = false;
        loop {
            idle |= self.went_idle(c.engine);
            let stored = self.memory.get(self.status(c.engine), c.slot) == c.seqno;
            if (idle && stored) || Instant::now() > end {
                return idle && stored;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether a status entry since the last call says that the engine went idle.
    fn went_idle(&mut self, engine: Engine) -> bool {
        let Some(port) = self.ports.get_mut(&engine) else { return false };
        let write = self.memory.get(port.page, HWSP_CSB_WRITE as usize / 4) & 7;
        let mut idle = false;
        while port.csb != write && write < 6 {
            port.csb = csb_next(port.csb);
            let status = self.memory.get(port.page, (HWSP_CSB + 8 * port.csb) as usize / 4);
            idle |= status & CsbEntry::ACTIVE_IDLE != 0;
        }
        idle
    }

    /// Submits and waits.
    pub fn execute(&mut self, c: &mut Context, commands: &[u32]) -> bool {
        self.submit(c, commands);
        self.done(c, PATIENCE)
    }
}

/// A store to an address of the context's space.
pub fn store(address: u64, value: u32) -> [u32; 4] {
    [mi::with_length(mi::STORE_DATA_IMM, 4), address as u32, (address >> 32) as u32, value]
}

/// Ring commands that run a batch of the context's space.
pub fn start(address: u64) -> [u32; 4] {
    let header = mi::with_length(mi::BATCH_BUFFER_START, 3) | mi::BB_PPGTT;
    [header, address as u32, (address >> 32) as u32, mi::header(mi::NOOP)]
}
