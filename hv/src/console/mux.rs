//! Several guests on one terminal: whose output is shown, and where input goes. Pure logic.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::{ArrayString, ArrayVec};
use hv_defs::Nanos;

/// The key before every command: Ctrl-].
const ESCAPE: u8 = 0x1D;
/// A line that a guest began is shown without its end after this long.
const LINE_NANOS: u64 = 1_000_000_000;
/// Bytes of each guest's latest output that are shown when it gets the focus.
const HISTORY: usize = 4096;
/// What is shown around a line at most: its end and that of the line before, brackets and a space.
const FRAME: usize = 7;
/// Most guests with a console.
const MOST_GUESTS: usize = 32;

/// What the person at the console wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A byte for a guest's UART.
    Input {
        /// The guest, from 1.
        vm: u8,
        /// The byte.
        byte: u8,
    },
    /// A command for Prism.
    Command(Command),
}

/// A command of the monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// List the guests.
    Vms,
    /// Show the counters.
    Stats,
    /// Reset a guest.
    Reset(u8),
    /// End a guest.
    Kill(u8),
    /// Explain the commands.
    Help,
}

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    /// Every guest, by whole lines with its name before them.
    All,
    /// One guest, as it is.
    Guest(u8),
    /// The monitor's prompt; guests go on unseen.
    Monitor,
}

/// Where a guest's output is inside a terminal control sequence (dropped in `View::All`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Control {
    None,
    Escape,
    Sequence,
}

struct Channel {
    vm: u8,
    name: ArrayString<32>,
    line: ArrayVec<u8, 256>,
    began: Nanos,
    control: Control,
    history: Box<ArrayVec<u8, HISTORY>>,
    /// Bytes shown since the terminal last had nothing to show, which was its `drained`th time.
    shown: usize,
    since: u64,
    /// Bytes that found no room since that was last told.
    lost: u64,
}

/// What a guest may show until the terminal has nothing left to show.
#[derive(Clone, Copy)]
struct Share {
    bytes: usize,
    drained: u64,
}

pub(super) struct Mux {
    channels: Vec<Channel>,
    view: View,
    before_monitor: View,
    target: u8,
    escaped: bool,
    command: ArrayVec<u8, 64>,
    prompt_due: bool,
    /// The terminal's cursor stands at the start of a line.
    at_start: bool,
    /// How often the terminal has shown all there was.
    drained: u64,
}

/// Where bytes for the terminal go.
type Out<'a> = &'a mut dyn FnMut(&[u8]);

impl Mux {
    pub(super) fn new() -> Self {
        Self {
            channels: Vec::with_capacity(MOST_GUESTS),
            view: View::All,
            before_monitor: View::All,
            target: 1,
            escaped: false,
            command: ArrayVec::new(),
            prompt_due: false,
            at_start: true,
            drained: 0,
        }
    }

    pub(super) fn add(&mut self, vm: u8, name: &str) {
        if self.channels.len() == MOST_GUESTS || self.channels.iter().any(|channel| channel.vm == vm) {
            return;
        }
        self.channels.push(Channel {
            vm,
            name: super::clip(name.chars()),
            line: ArrayVec::new(),
            began: Nanos(0),
            control: Control::None,
            history: Box::new(ArrayVec::new()),
            shown: 0,
            since: 0,
            lost: 0,
        });
    }

    /// The terminal has shown all there was: every guest has its share again.
    pub(super) fn drained(&mut self) {
        self.drained += 1;
    }

    /// A guest whose output was lost, and how many bytes since this was last asked.
    pub(super) fn take_lost(&mut self) -> Option<(ArrayString<32>, u64)> {
        let channel = self.channels.iter_mut().find(|channel| channel.lost > 0)?;
        Some((channel.name, core::mem::take(&mut channel.lost)))
    }

    pub(super) fn has_lost(&self) -> bool {
        self.channels.iter().any(|channel| channel.lost > 0)
    }

    /// Prism is about to print a line of its own. Whether the cursor is at the start of a line already.
    pub(super) fn own_line(&mut self) -> bool {
        core::mem::replace(&mut self.at_start, true)
    }

    /// A byte of a guest. `room` is what the terminal keeps for all guests together: none has more than its part of it.
    pub(super) fn guest_byte(&mut self, vm: u8, byte: u8, now: Nanos, room: usize, out: Out<'_>) {
        let (view, share) = (self.view, self.share(room));
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.vm == vm) else {
            return;
        };
        channel.remember(byte);
        match view {
            View::Guest(shown) if shown == vm && channel.takes(1, share) => {
                out(&[byte]);
                self.at_start = byte == b'\n';
            }
            View::All if channel.collect(byte, now) => channel.show_line(&mut self.at_start, share, out),
            _ => {}
        }
    }

    /// Shows lines that have waited for their end too long.
    pub(super) fn tick(&mut self, now: Nanos, room: usize, out: Out<'_>) {
        let share = self.share(room);
        if self.view != View::All {
            return;
        }
        for channel in &mut self.channels {
            if !channel.line.is_empty() && now.0 >= channel.began.0.saturating_add(LINE_NANOS) {
                channel.show_line(&mut self.at_start, share, out);
            }
        }
    }

    fn share(&self, room: usize) -> Share {
        Share { bytes: room / self.channels.len().max(1), drained: self.drained }
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        let waiting = self.channels.iter().filter(|channel| self.view == View::All && !channel.line.is_empty());
        waiting.map(|channel| Nanos(channel.began.0.saturating_add(LINE_NANOS))).min()
    }

    pub(super) fn input(&mut self, byte: u8, out: Out<'_>) -> Option<Event> {
        if core::mem::take(&mut self.escaped) {
            return self.escape(byte, out);
        }
        if byte == ESCAPE {
            self.escaped = true;
            return None;
        }
        match self.view {
            View::Monitor => self.edit(byte, out),
            View::Guest(vm) => Some(Event::Input { vm, byte }),
            View::All => Some(Event::Input { vm: self.target, byte }),
        }
    }

    /// Prints the monitor's prompt, if one is due.
    pub(super) fn prompt(&mut self, out: Out<'_>) {
        if core::mem::take(&mut self.prompt_due) && self.view == View::Monitor {
            out(b"prism> ");
            self.at_start = false;
        }
    }

    fn escape(&mut self, byte: u8, out: Out<'_>) -> Option<Event> {
        match byte {
            b'1'..=b'9' => self.focus(byte - b'0', out),
            b'a' => {
                self.view = View::All;
                self.note("all guests", out);
            }
            b'm' => {
                if self.view != View::Monitor {
                    self.before_monitor = self.view;
                }
                self.view = View::Monitor;
                self.command.clear();
                self.note("monitor: vms, stats, reset N, kill N, help; an empty line returns", out);
                self.prompt_due = true;
            }
            ESCAPE => {
                return Some(Event::Input { vm: self.target, byte });
            }
            _ => self.note("Ctrl-] then: 1-9 a guest, a all guests, m monitor, Ctrl-] sends Ctrl-]", out),
        }
        None
    }

    fn focus(&mut self, vm: u8, out: Out<'_>) {
        let Some(index) = self.channels.iter().position(|channel| channel.vm == vm) else {
            self.note("no such guest", out);
            return;
        };
        self.view = View::Guest(vm);
        self.target = vm;
        let name = self.channels.get(index).map_or_else(ArrayString::new, |channel| channel.name);
        self.note(&name, out);
        if let Some(channel) = self.channels.get_mut(index) {
            channel.line.clear();
            out(&channel.history);
            self.at_start = channel.history.last().is_none_or(|&byte| byte == b'\n');
        }
    }

    /// A line about the console itself.
    fn note(&mut self, text: &str, out: Out<'_>) {
        if !core::mem::replace(&mut self.at_start, true) {
            out(b"\r\n");
        }
        out(b"-- ");
        out(text.as_bytes());
        out(b" --\r\n");
    }

    /// One key at the monitor's prompt.
    fn edit(&mut self, byte: u8, out: Out<'_>) -> Option<Event> {
        match byte {
            b'\r' | b'\n' => {
                out(b"\r\n");
                self.at_start = true;
                let event = self.run(out);
                self.command.clear();
                self.prompt_due = self.view == View::Monitor;
                event
            }
            0x08 | 0x7F => {
                if self.command.pop().is_some() {
                    out(b"\x08 \x08");
                }
                None
            }
            b' '..=b'~' => {
                if self.command.try_push(byte).is_ok() {
                    out(&[byte]);
                }
                None
            }
            _ => None,
        }
    }

    fn run(&mut self, out: Out<'_>) -> Option<Event> {
        let text = core::str::from_utf8(&self.command).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let first = words.next();
        let number = words.next().and_then(|word| word.parse::<u8>().ok());
        let command = match (first, number) {
            (None, _) => {
                self.view = self.before_monitor;
                self.note("back", out);
                return None;
            }
            (Some("vms"), _) => Command::Vms,
            (Some("stats"), _) => Command::Stats,
            (Some("reset"), Some(vm)) => Command::Reset(vm),
            (Some("kill"), Some(vm)) => Command::Kill(vm),
            (Some("help"), _) => Command::Help,
            _ => {
                self.note("unknown; try help", out);
                return None;
            }
        };
        Some(Event::Command(command))
    }
}

impl Channel {
    /// Keeps the latest output; drops the older half when full, so that this costs little a byte.
    fn remember(&mut self, byte: u8) {
        if self.history.is_full() {
            self.history.drain(..HISTORY / 2);
        }
        self.history.push(byte);
    }

    /// Adds to the line; whether it is to be shown now.
    fn collect(&mut self, byte: u8, now: Nanos) -> bool {
        match (self.control, byte) {
            (_, b'\n') => {
                self.control = Control::None;
                return true;
            }
            (Control::None, 0x1B) => self.control = Control::Escape,
            (Control::None, b'\t' | b' '..=b'~' | 0x80..) => {
                if self.line.is_empty() {
                    self.began = now;
                }
                self.line.push(byte);
                return self.line.is_full();
            }
            (Control::None, _) => {}
            (Control::Escape, b'[') => self.control = Control::Sequence,
            (Control::Sequence, b'@'..=b'~') | (Control::Escape, _) => self.control = Control::None,
            (Control::Sequence, _) => {}
        }
        false
    }

    /// Whether so many bytes fit its share; else they are lost.
    fn takes(&mut self, bytes: usize, share: Share) -> bool {
        if core::mem::replace(&mut self.since, share.drained) != share.drained {
            self.shown = 0;
        }
        let taken = self.shown + bytes <= share.bytes;
        if taken {
            self.shown += bytes;
        } else {
            self.lost += bytes as u64;
        }
        taken
    }

    /// Shows the line, whole or not at all.
    fn show_line(&mut self, at_start: &mut bool, share: Share, out: Out<'_>) {
        if self.takes(self.line.len() + self.name.len() + FRAME, share) {
            if !core::mem::replace(at_start, true) {
                out(b"\r\n");
            }
            out(b"[");
            out(self.name.as_bytes());
            out(b"] ");
            out(&self.line);
            out(b"\r\n");
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests;
