//! What an oracle of isolation is told: who touched which frame for what, which registers commands wrote, and what one
//! context left in registers for the next. Who runs is the model's own record: the frame that it found behind page 0 of
//! the context image when it loaded it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use gvt_defs::{Engine, Hpa, PAGE_SIZE};

use crate::recorder::Touch;
use crate::regs::RegFile;

/// What is kept at most until it is taken.
const MOST: usize = 1 << 16;
/// Accesses remembered, so that most of those that repeat are told once.
const RECENT: usize = 64;

/// Why memory is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A command loads or stores.
    Data,
    /// Commands are fetched.
    Fetch,
    /// Page tables are walked.
    Table,
    /// A context image is loaded or saved.
    Image,
    /// The engine tells of a context switch.
    Status,
    /// A CPU looks through the aperture.
    Aperture,
}

/// Who runs on an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Running {
    /// The engine.
    pub engine: Engine,
    /// The frame behind page 0 of the image that was loaded last.
    pub image: Hpa,
}

/// Something that an oracle may judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A frame was accessed.
    Access {
        /// On whose behalf; nobody's if no context was ever loaded, or it was a CPU.
        by: Option<Running>,
        /// Why.
        purpose: Purpose,
        /// It was written.
        written: bool,
        /// The frame.
        frame: Hpa,
    },
    /// A command wrote a register.
    Register {
        /// Whose command.
        by: Running,
        /// Offset.
        register: u32,
    },
    /// A context was loaded and finds what another one left in a register of its engine.
    Inherited {
        /// Who was loaded.
        by: Running,
        /// The image of the context that wrote it.
        from: Hpa,
        /// Offset.
        register: u32,
        /// What it held before that context wrote it.
        before: u32,
        /// What it holds.
        left: u32,
    },
    /// There was no room for more.
    Lost,
}

/// What a context wrote into a register.
struct Left {
    by: Running,
    before: u32,
}

pub(crate) struct Witness {
    on: bool,
    running: Option<Running>,
    pub purpose: Purpose,
    recent: [Option<Seen>; RECENT],
    seen: Vec<Seen>,
    left: BTreeMap<u32, Left>,
}

impl Default for Witness {
    fn default() -> Self {
        Self {
            on: false,
            running: None,
            purpose: Purpose::Data,
            recent: [None; RECENT],
            seen: Vec::new(),
            left: BTreeMap::new(),
        }
    }
}

impl Witness {
    pub fn start(&mut self) {
        *self = Self { on: true, ..Self::default() };
    }

    /// Gives what was seen since the last call.
    pub fn take(&mut self, each: &mut dyn FnMut(Seen)) {
        if !self.seen.is_empty() {
            self.recent = [None; RECENT];
            self.seen.drain(..).for_each(each);
        }
    }

    /// From here on, accesses are those of a context.
    pub fn begin(&mut self, engine: Engine, image: Option<Hpa>) {
        self.running = image.map(|image| Running { engine, image });
    }

    #[inline]
    pub fn note(&mut self, hpa: Hpa, touch: Touch) {
        if self.on {
            self.access(Hpa(hpa.0 & !(PAGE_SIZE - 1)), touch);
        }
    }

    fn access(&mut self, frame: Hpa, touch: Touch) {
        let (by, purpose) = (self.running.filter(|_| self.purpose != Purpose::Aperture), self.purpose);
        let seen = Seen::Access { by, purpose, written: touch == Touch::Write, frame };
        let slot = (frame.0 / PAGE_SIZE) as usize % RECENT;
        if let Some(recent) = self.recent.get_mut(slot)
            && recent.replace(seen) != Some(seen)
        {
            self.push(seen);
        }
    }

    fn push(&mut self, seen: Seen) {
        match self.seen.len() {
            0..MOST => self.seen.push(seen),
            MOST => self.seen.push(Seen::Lost),
            _ => {}
        }
    }

    /// A command of the running context is about to write a register.
    pub fn command(&mut self, register: u32, before: u32) {
        if self.on
            && let Some(by) = self.running
        {
            self.push(Seen::Register { by, register });
            self.leave(register, before);
        }
    }

    /// The running context is about to change a register.
    pub fn leave(&mut self, register: u32, before: u32) {
        if self.on
            && let Some(by) = self.running
        {
            self.left.entry(register).or_insert(Left { by, before }).by = by;
        }
    }

    /// Software other than a context's sets a register.
    pub fn put(&mut self, register: u32) {
        if self.on {
            self.left.remove(&register);
        }
    }

    /// The engine was reset.
    pub fn reset(&mut self, engine: Engine) {
        self.left.retain(|_, left| left.by.engine != engine);
    }

    /// The running context has been loaded.
    pub fn loaded(&mut self, regs: &RegFile) {
        let Some(by) = self.running.filter(|_| self.on) else { return };
        let left = core::mem::take(&mut self.left);
        for (register, Left { by: writer, before }) in &left {
            let now = regs.get(*register);
            if writer.engine == by.engine && writer.image != by.image && now != *before {
                let (from, before) = (writer.image, *before);
                self.push(Seen::Inherited { by, from, register: *register, before, left: now });
            }
        }
        self.left = left;
    }
}
