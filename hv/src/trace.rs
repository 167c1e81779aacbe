//! The last exits of a virtual CPU, printed when it crashes.

use core::fmt;

use crate::vendor::Exit;

/// Exits that are remembered.
const KEPT: usize = 32;

#[derive(Clone, Copy)]
struct Entry {
    /// Host TSC at the exit.
    tsc: u64,
    rip: u64,
    exit: Exit,
}

/// A ring of exits.
#[derive(Default)]
pub struct Trace {
    entries: [Option<Entry>; KEPT],
    next: usize,
}

impl Trace {
    /// Remembers one exit.
    pub fn push(&mut self, tsc: u64, rip: u64, exit: Exit) {
        if let Some(place) = self.entries.get_mut(self.next % KEPT) {
            *place = Some(Entry { tsc, rip, exit });
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// Prints the last `count` exits, the oldest first, with the ticks between them.
    pub fn print(&self, count: usize, out: &mut dyn FnMut(fmt::Arguments<'_>)) {
        let (newer, older) = self.entries.split_at(self.next.min(KEPT));
        let known = older.iter().chain(newer).flatten();
        let skip = known.clone().count().saturating_sub(count);
        let mut before = None;
        for entry in known.skip(skip) {
            let gap = before.map_or(0, |tsc| entry.tsc.wrapping_sub(tsc));
            out(format_args!("+{gap:<10} rip={:#x} {:x?}", entry.rip, entry.exit));
            before = Some(entry.tsc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let mut trace = Trace::default();
        for n in 0..100 {
            trace.push(n * 10, n, Exit::Cpuid);
        }
        let mut lines = Vec::new();
        trace.print(3, &mut |line| lines.push(line.to_string()));
        assert_eq!(lines.len(), 3);
        assert!(lines[2].contains("rip=0x63 "), "{lines:?}");
        assert!(lines[1].starts_with("+10 "), "{lines:?}");
    }
}
