//! Command streams: from the tables that the audit and the model have too, with fields that are often wrong.

use super::places::{Places, Whose};
use crate::bytes::Bytes;
use gvt_defs::command::{self, Command, Length};
use gvt_defs::operand::{Given, Memory};
use gvt_defs::{Engine, blt, gfx, mi};

/// Dwords of a stream at most.
const MOST: usize = 600;
/// 3DSTATE_VERTEX_ELEMENTS: dwords without addresses, as many as its length says.
const PLAIN: u32 = 0x7809_0000;

/// A stream of a few commands, most of which pass an audit.
pub fn ring(b: &mut Bytes<'_>, places: &Places, engine: Engine) -> Vec<u32> {
    Stream { b, places, engine, odds: 24, all: Vec::new() }.some(4, 2)
}

/// A stream that nobody reads before it runs.
pub fn batch(b: &mut Bytes<'_>, places: &Places, engine: Engine) -> Vec<u32> {
    Stream { b, places, engine, odds: 4, all: Vec::new() }.some(6, 2)
}

/// Waits until a flag is set, which the guest does some time or not at all.
pub fn wait(b: &mut Bytes<'_>, places: &Places) -> [u32; 4] {
    let poll = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_POLL | 5 << mi::SEMAPHORE_COMPARE_SHIFT;
    if b.rarely(4) {
        [poll, 0, places.flag_va as u32, (places.flag_va >> 32) as u32]
    } else {
        [poll | mi::GLOBAL_GTT, 0, places.flag.0, 0]
    }
}

/// A stream that is being written.
struct Stream<'s, 'd> {
    b: &'s mut Bytes<'d>,
    places: &'s Places,
    engine: Engine,
    /// One thing in so many is what a guest has no right to.
    odds: u32,
    all: Vec<u32>,
}

impl Stream<'_, '_> {
    fn some(mut self, most: u32, depth: u32) -> Vec<u32> {
        for _ in 0..=self.b.below(most) {
            self.piece(depth);
        }
        self.all.truncate(MOST);
        self.all
    }

    /// One command, or some that belong together.
    fn piece(&mut self, depth: u32) {
        match self.b.below(20) {
            0 | 1 => self.load_registers(),
            2 | 3 => {
                let wait = wait(self.b, self.places);
                self.all.extend(wait);
            }
            4 | 5 => self.start(),
            6 | 7 if depth > 0 => self.cover(depth),
            8 => {
                let count = self.b.below(40) as usize;
                self.all.extend(vec![0; count]);
            }
            9 => self.flow(),
            10 | 11 if self.engine == Engine::Bcs => self.blit(),
            10 | 11 if self.engine == Engine::Rcs => self.pipe_control(),
            12 if self.b.rarely(8) => {
                let header = self.b.dword();
                self.all.push(header);
            }
            _ => self.known(),
        }
    }

    /// A command of the tables with addresses and registers put in.
    fn known(&mut self) {
        let mut command = &command::MI[self.b.below(command::MI.len() as u32) as usize];
        if !command.engines.has(self.engine) && !self.b.rarely(self.odds) {
            command = &command::MI[0];
        }
        let mut header = mi::header(command.opcode) | self.flags();
        let mut count = 1;
        if let Length::Field(mask) = command.length {
            count = self.usual(command.opcode);
            header = header & !mask | (count - 2) & mask;
        }
        let mut dwords: Vec<u32> = (0..count).map(|_| self.operand()).collect();
        dwords[0] = header;
        if matches!(command.opcode, mi::STORE_REGISTER_MEM | mi::LOAD_REGISTER_MEM | mi::LOAD_REGISTER_REG) {
            put(&mut dwords, 1, self.places.register(self.b, self.engine));
        }
        self.finish(dwords, command.memory);
    }

    /// How long the command usually is.
    fn usual(&mut self, opcode: u32) -> u32 {
        let usual = match opcode {
            mi::STORE_DATA_INDEX | mi::LOAD_REGISTER_REG | mi::LOAD_REGISTER_IMM | mi::BATCH_BUFFER_START => 3,
            mi::STORE_DATA_IMM | mi::FLUSH_DW => 4 + self.b.below(2),
            mi::COPY_MEM_MEM => 5,
            mi::ATOMIC => self.b.pick(&[3, 11]),
            mi::LOAD_SCAN_LINES_INCL | mi::LOAD_SCAN_LINES_EXCL | mi::SEMAPHORE_SIGNAL => 2,
            mi::DISPLAY_FLIP => 3,
            _ => 4,
        };
        if self.b.rarely(self.odds) { 2 + self.b.below(40) } else { usual }
    }

    /// Bits 8 to 22 of a header: some that are common, or any.
    fn flags(&mut self) -> u32 {
        match self.b.below(6) {
            0 => 0,
            1 | 2 => mi::GLOBAL_GTT,
            3 => self.b.pick(&[1 << 21, 3 << 21, 1 << 14, 3 << 14, 1 << 14 | 1 << 21, 1 << 15, 1 << 16, 1 << 8]),
            4 => self.b.pick(&[0, mi::GLOBAL_GTT]) | 1 << (8 + self.b.below(15)),
            _ => self.b.dword() & 0x007F_FF00,
        }
    }

    /// An operand that is no address by the tables.
    fn operand(&mut self) -> u32 {
        match self.b.below(8) {
            0..=3 => self.b.below(4),
            4 => self.places.register(self.b, self.engine),
            5 => self.places.global(self.b, Whose::Anybody),
            6 => 1 << self.b.below(32),
            _ => self.b.dword(),
        }
    }

    /// A global address: the guest's own but for one in `odds`.
    fn global(&mut self) -> u32 {
        let whose = if self.b.rarely(self.odds) { Whose::Anybody } else { Whose::Own };
        self.places.global(self.b, whose)
    }

    /// Puts addresses in, spoils something now and then, and appends it.
    fn finish(&mut self, mut dwords: Vec<u32>, addresses: &[Memory]) {
        for address in addresses {
            self.address(&mut dwords, *address);
        }
        if self.b.rarely(self.odds) {
            let at = self.b.below(dwords.len() as u32) as usize;
            dwords[at] ^= 1 << self.b.below(32);
        }
        self.all.extend(dwords);
    }

    /// An address, global or of the process; of the process, now and then one that would be somebody's as a global one.
    fn address(&mut self, dwords: &mut [u32], memory: Memory) {
        let (Given::Wide(at) | Given::Narrow(at)) = memory.given else { return };
        let at = usize::from(at);
        let flag = memory.global;
        let beside = flag.mask != 0 && usize::from(flag.dword) == at;
        let global = if beside { self.b.below(2) == 0 } else { flag.of(dwords) };
        let (low, high) = if global {
            (self.global(), if self.b.rarely(self.odds) { self.b.dword() } else { 0 })
        } else if self.b.rarely(3) {
            (self.places.global(self.b, Whose::Anybody), 0)
        } else {
            let va = self.places.process(self.b);
            (va as u32, (va >> 32) as u32)
        };
        put(dwords, at, low);
        put(dwords, at + 1, high);
        if self.b.rarely(3)
            && let Some(low) = dwords.get_mut(at)
        {
            *low |= self.b.below(64);
        }
        if beside && let Some(low) = dwords.get_mut(at) {
            *low = *low & !flag.mask | if global { flag.value } else { flag.value ^ flag.mask };
        }
    }

    /// MI_LOAD_REGISTER_IMM of some registers.
    fn load_registers(&mut self) {
        let pairs = 1 + self.b.below(4);
        self.all.push(mi::load_register_imm(pairs));
        for _ in 0..pairs {
            let register = self.places.register(self.b, self.engine);
            let value = self.b.pick(&[u32::MAX, 0xFFFF_0000, 0xFFFF_A5A5, 0, 1]);
            let value = if self.b.rarely(4) { self.b.dword() } else { value };
            self.all.extend([register, value]);
        }
    }

    /// A batch.
    fn start(&mut self) {
        let second = if self.b.rarely(3) { mi::BB_SECOND_LEVEL } else { 0 };
        let odd = [mi::BB_ADD_OFFSET, mi::BB_PREDICATION, 1 << 10, 1 << 20];
        let odd = if self.b.rarely(self.odds) { self.b.pick(&odd) } else { 0 };
        let header = mi::with_length(mi::BATCH_BUFFER_START, 3) | second | odd;
        if self.b.rarely(4) {
            let at = if self.b.rarely(4) { self.global() } else { self.places.batch.0 };
            self.all.extend([header, at, 0]);
        } else {
            let va = self.places.batch_va(self.b);
            self.all.extend([header | mi::BB_PPGTT, va as u32, (va >> 32) as u32]);
        }
    }

    /// A long command without addresses, with other commands as its payload: harmless if it is read from its start.
    fn cover(&mut self, depth: u32) {
        let (outer, odds) = (core::mem::take(&mut self.all), self.odds);
        self.odds = 2;
        for _ in 0..=self.b.below(3) {
            self.piece(depth - 1);
        }
        self.odds = odds;
        let mut payload = core::mem::replace(&mut self.all, outer);
        payload.resize((payload.len() + self.b.below(24) as usize).clamp(1, 0xF0), 0);
        let render = self.engine == Engine::Rcs && !self.b.rarely(3);
        let header = if render { PLAIN } else { mi::header(mi::MATH) };
        self.all.push(header | (payload.len() as u32 - 1));
        self.all.extend(payload);
    }

    /// Small commands that change how the stream goes on.
    fn flow(&mut self) {
        let opcodes = [
            mi::ARB_CHECK,
            mi::ARB_ON_OFF,
            mi::USER_INTERRUPT,
            mi::BATCH_BUFFER_END,
            mi::REPORT_HEAD,
            mi::SUSPEND_FLUSH,
            mi::WAIT_FOR_EVENT,
        ];
        let header = mi::header(self.b.pick(&opcodes)) | self.b.below(2);
        self.all.push(header);
    }

    fn blit(&mut self) {
        let command: &Command = &command::BLT[self.b.below(command::BLT.len() as u32) as usize];
        let count = 3 + self.b.below(12);
        let sizes = [0, 1, 16, 64, 0x0001_0001, 0x0010_0010];
        let mut dwords: Vec<u32> = (0..count).map(|_| self.b.pick(&sizes)).collect();
        dwords[0] = blt::with_length(command.opcode, count) | self.b.dword() & 0x003F_F800;
        dwords[1] = self.b.dword() & 0x03FF_FFFF;
        self.finish(dwords, command.memory);
    }

    fn pipe_control(&mut self) {
        let flags = match self.b.below(4) {
            0 => self.b.dword(),
            1 => 3 << 14,
            2 => 1 << 14 | 1 << 21,
            _ => 1 << 14,
        };
        let index = flags & 1 << 21 != 0;
        let dwords = vec![gfx::PIPE_CONTROL_HEADER, flags, 0, 0, self.b.dword(), 0];
        let start = self.all.len();
        self.finish(dwords, command::PIPE_CONTROL.memory);
        if index {
            let offset = self.b.below(0x1000) & !7;
            put(&mut self.all, start + 2, offset);
        }
    }
}

fn put(dwords: &mut [u32], at: usize, value: u32) {
    if let Some(slot) = dwords.get_mut(at) {
        *slot = value;
    }
}
