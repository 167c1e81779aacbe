//! An engine: where it is in its command streams, and the slice loop that moves it on.

use gvt_defs::execlist::Descriptor;
use gvt_defs::{Engine, Hpa, Nanos, ring};

use crate::blitter::{BlitJob, Clip};
use crate::context::Deferred;
use crate::device::Device;
use crate::fetch::Fetch;
use crate::gpu::Progress;
use crate::memory::Memory;
use crate::profile::Arbitration;
use crate::translate::{Root, Space, View};
use crate::witness::Purpose;

/// How long an engine that polls memory rests between two looks: longer with every look in vain.
const POLL_FIRST: u64 = 20_000;
const POLL_MORE: u64 = 5_000;
const POLL_MOST: u64 = 100_000;

/// Rounds of a loop without effect before the engine rests.
const SPINS: u32 = 4;

/// A command stream outside the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    pub address: u64,
    pub space: Space,
}

impl Default for Batch {
    fn default() -> Self {
        Self { address: 0, space: Space::Global }
    }
}

/// Which stream commands come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Ring,
    First,
    Second,
    /// The indirect context batch: ends at an address.
    Indirect,
    /// The per-context batch: ends by command.
    PerContext,
}

/// The ring of the running context. `head` and `tail` are byte offsets.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Ring {
    pub start: u32,
    pub size: u32,
    pub head: u32,
    pub tail: u32,
    /// Wrap count, in place (bits 31:21 of RING_HEAD).
    pub wraps: u32,
}

impl Ring {
    /// Bytes between head and tail.
    pub const fn pending(&self) -> u32 {
        if self.tail >= self.head { self.tail - self.head } else { self.size - self.head + self.tail }
    }
}

/// What an engine keeps from one slice to the next.
pub(crate) struct EngineState {
    pub engine: Engine,
    pub list: [Descriptor; 2],
    pub element: usize,
    pub running: Option<Descriptor>,
    /// The frame behind page 0 of the image that was loaded last.
    pub image: Option<Hpa>,
    /// Whose it is.
    pub owner: Option<u32>,
    /// It was loaded and has executed nothing yet.
    pub fresh: bool,
    pub root: Root,
    pub ring: Ring,
    pub level: Level,
    pub first: Batch,
    pub second: Batch,
    pub workaround: Batch,
    pub workaround_end: u64,
    pub arbitration: bool,
    pub skipping: bool,
    /// An error stopped the parser until reset.
    pub halted: bool,
    /// The command at the cursor is a semaphore wait that failed at least once.
    pub waiting: bool,
    /// When the engine came to the end of its ring.
    pub ended: Option<Nanos>,
    /// Rounds without effect, and looks at memory in vain.
    pub spins: u32,
    pub polls: u32,
    pub blit: Option<BlitJob>,
    pub clip: Clip,
    pub fetch: Fetch,
    pub last_header: u32,
    pub deferred: Option<Deferred>,
}

impl EngineState {
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            list: [Descriptor::default(); 2],
            element: 0,
            running: None,
            image: None,
            owner: None,
            fresh: false,
            root: Root::default(),
            ring: Ring::default(),
            level: Level::Ring,
            first: Batch::default(),
            second: Batch::default(),
            workaround: Batch::default(),
            workaround_end: 0,
            arbitration: true,
            skipping: false,
            halted: false,
            waiting: false,
            ended: None,
            spins: 0,
            polls: 0,
            blit: None,
            clip: Clip::default(),
            fetch: Fetch::new(),
            last_header: 0,
            deferred: None,
        }
    }
}

/// What a command does to the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flow {
    /// Go on after so many dwords.
    Next(u32),
    /// The same, but a register was written: look at stop, reset and submissions before going on.
    Barrier(u32),
    /// The cursor was set already.
    Jumped,
    /// Go on after so many dwords; switch here if a submission is pending.
    Arbitrate(u32),
    /// Stay at this command and look again later; switch here if a submission is pending.
    Wait,
    /// Stay at this command, which needs more budget.
    Again,
    /// Stay at this command until something outside changes.
    Stuck,
}

/// Why the command loop stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    Budget,
    Poll,
    Until(Nanos),
    Stuck,
    Check,
    Complete,
    Preempt,
    SwitchAway,
}

/// An engine at work, with all that it can reach.
pub(crate) struct Exec<'a> {
    pub state: &'a mut EngineState,
    pub device: &'a mut Device,
    pub memory: &'a mut dyn Memory,
    pub budget: u32,
    /// Commands executed in this slice.
    pub commands: u64,
}

impl Exec<'_> {
    /// Runs the engine until it has nothing to do, waits, or has used its budget.
    pub fn slice(&mut self) -> Progress {
        self.device.recorder.witness.begin(self.state.engine, self.state.image);
        self.state.fetch.drop_window();
        let progress = loop {
            if self.stopped() {
                break Progress::Idle;
            }
            self.accept();
            if self.state.running.is_none() {
                break Progress::Idle;
            }
            match self.run() {
                Stop::Budget => break Progress::Busy,
                Stop::Poll => break Progress::WaitUntil(self.next_poll()),
                Stop::Until(time) => break Progress::WaitUntil(time),
                Stop::Stuck => break Progress::Idle,
                Stop::Check => {}
                Stop::Complete => self.complete(),
                Stop::Preempt => self.preempt(),
                Stop::SwitchAway => self.switch_away(),
            }
        };
        if self.state.running.is_some() {
            self.publish();
        }
        let commands = self.commands;
        self.device.counters.change(self.state.engine, |c| c.commands += commands);
        progress
    }

    fn next_poll(&mut self) -> Nanos {
        let rest = POLL_FIRST + POLL_MORE * u64::from(self.state.polls);
        self.state.polls = self.state.polls.saturating_add(1);
        Nanos(self.device.now.0.saturating_add(rest.min(POLL_MOST)))
    }

    fn stopped(&self) -> bool {
        let mode = self.device.ring(self.state.engine, ring::MI_MODE);
        mode & ring::MI_MODE_STOP_RING != 0 || self.device.reset_request != 0
    }

    fn run(&mut self) -> Stop {
        if self.state.halted {
            return Stop::Stuck;
        }
        let restored = core::mem::take(&mut self.state.fresh);
        if restored && self.device.profile.arbitration == Arbitration::Restore && self.may_switch() {
            return Stop::Preempt;
        }
        self.state.fresh = restored && self.budget == 0;
        loop {
            if self.budget == 0 {
                return Stop::Budget;
            }
            if self.state.level == Level::Ring && self.state.ring.head == self.state.ring.tail {
                return self.end_of_ring();
            }
            self.state.ended = None;
            if self.state.level == Level::Indirect && self.state.workaround.address >= self.state.workaround_end {
                self.leave_indirect();
                continue;
            }
            self.budget -= 1;
            self.commands += 1;
            let header = self.operand(0);
            let flow = if header == 0 { self.noops() } else { self.execute(header) };
            if let Some(stop) = self.follow(flow) {
                return stop;
            }
        }
    }

    /// Nothing is left to execute: completion is told now or when its time has come, unless more work arrives before.
    fn end_of_ring(&mut self) -> Stop {
        let now = self.device.now.0;
        let ended = self.state.ended.get_or_insert(Nanos(now)).0;
        let told = ended.saturating_add(self.device.profile.completion.0);
        if now < told {
            return Stop::Until(Nanos(told));
        }
        self.state.ended = None;
        Stop::Complete
    }

    /// A run of MI_NOOP.
    #[inline]
    fn noops(&mut self) -> Flow {
        let (_, address) = self.cursor();
        let limit = match self.state.level {
            Level::Ring => self.state.ring.pending().min(self.state.ring.size - self.state.ring.head) / 4,
            Level::Indirect => ((self.state.workaround_end - address) / 4) as u32,
            _ => u32::MAX,
        };
        let run = (self.state.fetch.zeros(address, limit as usize) as u32).max(1);
        if self.state.fetch.absent {
            // Nothing is mapped here: the engine runs through zeros until it is reset. No need to do it hot.
            self.state.spins += 1;
        }
        self.budget = self.budget.saturating_sub(run / 16);
        self.commands += u64::from(run - 1);
        if self.state.spins > SPINS {
            self.advance(run);
            self.state.spins = 0;
            return Flow::Wait;
        }
        Flow::Next(run)
    }

    #[inline]
    fn follow(&mut self, flow: Flow) -> Option<Stop> {
        match flow {
            Flow::Next(dwords) => {
                self.advance(dwords);
                None
            }
            Flow::Jumped => {
                self.state.fetch.drop_window();
                (self.state.spins > SPINS).then(|| self.rest())
            }
            Flow::Barrier(dwords) => {
                self.advance(dwords);
                Some(Stop::Check)
            }
            Flow::Arbitrate(dwords) => {
                self.advance(dwords);
                self.may_switch().then_some(Stop::Preempt)
            }
            Flow::Wait => Some(if self.may_switch() {
                Stop::Preempt
            } else if self.state.waiting && self.may_switch_away() {
                Stop::SwitchAway
            } else {
                Stop::Poll
            }),
            Flow::Again => Some(Stop::Budget),
            Flow::Stuck => Some(Stop::Stuck),
        }
    }

    /// A loop without effect: rest.
    fn rest(&mut self) -> Stop {
        self.state.spins = 0;
        Stop::Poll
    }

    /// Arbitration is on, a submission waits, and no workaround batch runs.
    fn may_switch(&mut self) -> bool {
        let engine = self.state.engine;
        self.state.arbitration && self.in_context() && self.device.port(engine).pending.is_some()
    }

    /// CTX_CONTROL lets the engine leave a context that waits for a semaphore.
    fn may_switch_away(&self) -> bool {
        let control = self.device.ring(self.state.engine, ring::CTX_CONTROL);
        self.state.arbitration && self.in_context() && control & ring::CTX_INHIBIT_SYN_CTX_SWITCH == 0
    }

    fn in_context(&self) -> bool {
        !matches!(self.state.level, Level::Indirect | Level::PerContext)
    }

    /// The space and address of the command at the cursor.
    #[inline]
    pub fn cursor(&self) -> (Space, u64) {
        let state = &self.state;
        match state.level {
            Level::Ring => (Space::Global, u64::from(state.ring.start.wrapping_add(state.ring.head))),
            Level::First => (state.first.space, state.first.address),
            Level::Second => (state.second.space, state.second.address),
            Level::Indirect | Level::PerContext => (state.workaround.space, state.workaround.address),
        }
    }

    /// Whether the current stream may do everything.
    #[inline]
    pub fn privileged(&self) -> bool {
        match self.state.level {
            Level::First => self.state.first.space == Space::Global,
            Level::Second => self.state.second.space == Space::Global,
            Level::Ring | Level::Indirect | Level::PerContext => true,
        }
    }

    /// Moves the cursor.
    #[inline]
    pub fn advance(&mut self, dwords: u32) {
        let bytes = dwords * 4;
        let state = &mut *self.state;
        match state.level {
            Level::Ring => {
                state.ring.head += bytes;
                if state.ring.head >= state.ring.size {
                    state.ring.head -= state.ring.size;
                    state.ring.wraps = state.ring.wraps.wrapping_add(1 << 21);
                }
            }
            Level::First => state.first.address = state.first.address.wrapping_add(u64::from(bytes)),
            Level::Second => state.second.address = state.second.address.wrapping_add(u64::from(bytes)),
            Level::Indirect | Level::PerContext => {
                state.workaround.address = state.workaround.address.wrapping_add(u64::from(bytes));
            }
        }
    }

    /// Dword `index` of the command at the cursor.
    #[inline]
    pub fn operand(&mut self, index: u32) -> u32 {
        let (space, address) = if self.state.level == Level::Ring {
            let mut offset = self.state.ring.head + 4 * index;
            if offset >= self.state.ring.size {
                offset %= self.state.ring.size;
            }
            (Space::Global, u64::from(self.state.ring.start.wrapping_add(offset)))
        } else {
            let (space, address) = self.cursor();
            (space, address.wrapping_add(u64::from(4 * index)))
        };
        if !self.device.fetch_stale
            && let Some(dword) = self.state.fetch.get(space, address)
        {
            return dword;
        }
        self.refill(space, address)
    }

    /// Two dwords as an address.
    pub fn operand64(&mut self, index: u32) -> u64 {
        u64::from(self.operand(index + 1)) << 32 | u64::from(self.operand(index))
    }

    #[inline(never)]
    fn refill(&mut self, space: Space, address: u64) -> u32 {
        if core::mem::take(&mut self.device.fetch_stale) {
            self.state.fetch.drop_window();
        }
        let engine = self.state.engine;
        let mut view = View { device: &mut *self.device, memory: &mut *self.memory, engine, root: &self.state.root };
        let command = view.device.recorder.command(None);
        view.device.fetch_frame = view.translate(space, address).map(|page| page.frame);
        let before = view.purpose(Purpose::Fetch);
        self.state.fetch.refill(space, address, |buf| view.read(space, address, buf));
        view.device.recorder.command(command);
        self.device.recorder.witness.purpose = before;
        self.state.fetch.get(space, address).unwrap_or(0)
    }

    /// The engine's view of memory.
    #[inline]
    pub fn view(&mut self) -> View<'_, '_> {
        View { device: &mut *self.device, memory: &mut *self.memory, engine: self.state.engine, root: &self.state.root }
    }

    /// The engine did something that shows: a loop around it is not idle.
    #[inline]
    pub fn effect(&mut self) {
        self.state.spins = 0;
        self.state.polls = 0;
    }
}
