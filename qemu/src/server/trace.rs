//! The record of accesses: counters always, and a line each when a file is given.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};

use super::wire::REGION_CONFIG;

/// The kinds of access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A read of a region.
    Read,
    /// A write of a region.
    Write,
    /// A reset of the function.
    Reset,
}

/// Accesses kept for a look at a machine that does not go on.
const LAST: usize = 48;

/// Where the page table begins in BAR0 (GTTMMADR is registers below, table above).
const TABLE: u64 = 8 << 20;

/// How often what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub register_reads: u64,
    pub register_writes: u64,
    pub pte_reads: u64,
    pub pte_writes: u64,
    pub aperture_reads: u64,
    pub aperture_writes: u64,
    pub config_reads: u64,
    pub config_writes: u64,
    pub resets: u64,
}

/// Counts accesses and writes them down.
#[derive(Debug, Default)]
pub struct Trace {
    file: Option<BufWriter<File>>,
    counters: Counters,
    /// The newest accesses, oldest first: time, kind, region, offset, value.
    last: VecDeque<(u64, char, u32, u64, u64)>,
}

impl Trace {
    /// Writes every access to `file`: nanoseconds, kind, region, offset, value (hexadecimal).
    pub fn to(file: File) -> Self {
        Self { file: Some(BufWriter::with_capacity(1 << 20, file)), ..Self::default() }
    }

    /// The counts so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Records an access.
    pub fn access(&mut self, now: u64, access: Access, region: u32, offset: u64, value: u64) {
        self.count(access, region, offset);
        let kind = match access {
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Reset => 'z',
        };
        self.line(format_args!("{now} {kind} {region} {offset:x} {value:x}"));
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back((now, kind, region, offset, value));
    }

    /// The newest accesses as lines of the trace, oldest first.
    pub fn last(&self) -> impl Iterator<Item = String> {
        let line = |(now, kind, region, offset, value): &_| format!("{now} {kind} {region} {offset:x} {value:x}");
        self.last.iter().map(line)
    }

    /// Records anything else as a line.
    pub fn line(&mut self, line: std::fmt::Arguments<'_>) {
        if let Some(file) = &mut self.file {
            // A full disk ends the trace, not the machine.
            if writeln!(file, "{line}").is_err() {
                self.file = None;
            }
        }
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }

    fn count(&mut self, access: Access, region: u32, offset: u64) {
        let c = &mut self.counters;
        let counter = match (access, region) {
            (Access::Reset, _) => &mut c.resets,
            (Access::Read, 0) if offset < TABLE => &mut c.register_reads,
            (Access::Write, 0) if offset < TABLE => &mut c.register_writes,
            (Access::Read, 0) => &mut c.pte_reads,
            (Access::Write, 0) => &mut c.pte_writes,
            (Access::Read, REGION_CONFIG) => &mut c.config_reads,
            (Access::Write, REGION_CONFIG) => &mut c.config_writes,
            (Access::Read, _) => &mut c.aperture_reads,
            (Access::Write, _) => &mut c.aperture_writes,
        };
        *counter += 1;
    }
}
