//! Command dispatch: length first, then by type.

use gvt_defs::command::{find, length};
use gvt_defs::operand::Memory;
use gvt_defs::{Engine, blt, gfx, mi, ring};

use crate::engine::{Exec, Flow};
use crate::findings::Finding;
use crate::profile::Strict;
use crate::translate::Space;

/// The first dwords of a command; what it does not have is 0.
pub(crate) type Head = [u32; 5];

impl Exec<'_> {
    /// Executes the command at the cursor.
    pub fn execute(&mut self, header: u32) -> Flow {
        let engine = self.state.engine;
        self.state.last_header = header;
        let Some(dwords) = length(engine, header) else {
            return self.unknown(header);
        };
        if self.overruns(dwords) {
            self.device.findings.add(Finding::PartialCommand(engine, header));
            return Flow::Stuck;
        }
        if self.state.skipping && !survives_predicate(header) {
            return Flow::Next(dwords);
        }
        self.device.recorder.command(Some((engine, header)));
        let flow = match header >> 29 {
            0 => self.mi(header, dwords),
            2 => self.blit_command(header, dwords),
            _ => self.render(header, dwords),
        };
        self.device.recorder.command(None);
        flow
    }

    /// In the ring, the parser waits for the tail when a command is not all there.
    #[inline]
    fn overruns(&self, dwords: u32) -> bool {
        self.state.level == crate::engine::Level::Ring && dwords > 1 && dwords * 4 > self.state.ring.pending()
    }

    fn unknown(&mut self, header: u32) -> Flow {
        let engine = self.state.engine;
        let (_, address) = self.cursor();
        self.device.findings.add(Finding::UnknownCommand(engine, header, address));
        self.state.halted = true;
        self.device.raise_error(engine, ring::ERROR_INSTRUCTION);
        Flow::Stuck
    }

    /// Render and media commands: only PIPE_CONTROL does anything here; some are arbitration points.
    fn render(&mut self, header: u32, dwords: u32) -> Flow {
        if self.state.engine != Engine::Rcs {
            return Flow::Next(dwords);
        }
        if gfx::key(header) != gfx::PIPE_CONTROL {
            self.leave_residue();
        }
        match gfx::key(header) {
            gfx::PIPE_CONTROL => match find(header) {
                Some(command) => self.pipe_control(command, header, dwords),
                None => Flow::Next(dwords),
            },
            gfx::PRIMITIVE | gfx::GPGPU_WALKER | gfx::MEDIA_STATE_FLUSH => {
                self.effect();
                Flow::Arbitrate(dwords)
            }
            _ => Flow::Next(dwords),
        }
    }

    /// The first dwords of the command at the cursor: all in which flags, addresses and single registers stand.
    pub fn head(&mut self, dwords: u32) -> Head {
        core::array::from_fn(|at| if (at as u32) < dwords { self.operand(at as u32) } else { 0 })
    }

    /// Where memory that a command names lies; `None` if it touches none, or if an unprivileged batch may not. An index
    /// is not cut off at the end of its page: silicon need not do so.
    pub fn place(&mut self, head: &Head, memory: &Memory) -> Option<(Space, u64)> {
        if memory.unused.of(head) {
            return None;
        }
        let space = self.space(head[0], memory.global.of(head))?;
        let address = memory.address(head);
        if !memory.index.of(head) {
            return Some((space, address));
        }
        let page = match space {
            Space::Global => self.engine_status_page(),
            Space::Process => self.status_page(),
        };
        Some((Space::Global, page.wrapping_add(address)))
    }

    /// The space that a "use global GTT" bit asks for; `None` where an unprivileged batch may not.
    pub fn space(&mut self, header: u32, global: bool) -> Option<Space> {
        if !global {
            return Some(Space::Process);
        }
        if self.privileged() {
            return Some(Space::Global);
        }
        self.violation(header, 0);
        None
    }

    /// An unprivileged batch tried something: it becomes a no-op.
    pub fn violation(&mut self, header: u32, register: u32) {
        let engine = self.state.engine;
        self.device.findings.add(Finding::Privilege(engine, header, register));
        self.device.raise_error(engine, ring::ERROR_PRIVILEGE);
    }

    /// A known command without a model here: skipped.
    pub fn unmodelled(&mut self, header: u32, dwords: u32) -> Flow {
        if self.device.profile.strict == Strict::Report {
            self.device.findings.add(Finding::Unmodelled(self.state.engine, header));
        }
        Flow::Next(dwords)
    }

    fn blit_command(&mut self, header: u32, dwords: u32) -> Flow {
        self.effect();
        match blt::opcode(header) {
            blt::SETUP_CLIP_BLT => {
                let (top_left, bottom_right) = (self.operand(1), self.operand(2));
                self.state.clip.set(top_left, bottom_right);
                Flow::Next(dwords)
            }
            blt::SETUP_BLT => {
                let (top_left, bottom_right) = (self.operand(2), self.operand(3));
                self.state.clip.set(top_left, bottom_right);
                Flow::Next(dwords)
            }
            _ => self.blit(header, dwords),
        }
    }
}

/// Commands that MI_SET_PREDICATE does not skip.
const fn survives_predicate(header: u32) -> bool {
    header >> 29 == 0
        && matches!(
            mi::opcode(header),
            mi::SET_PREDICATE | mi::BATCH_BUFFER_END | mi::ARB_CHECK | mi::ARB_ON_OFF | mi::USER_INTERRUPT
        )
}
