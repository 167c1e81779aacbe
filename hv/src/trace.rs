//! What each physical CPU did last: a ring for each, in memory, filled on the way and read when something went wrong. By
//! Prism, in its last words and when a guest crashes; and, when a machine is no more, by whoever has its memory: `HEADER`
//! is found by its first bytes and tells all that it takes to print the rings.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use strum::VariantNames;

use crate::percpu::{self, CpuId, MAX_CPUS};
use crate::time;
use crate::vendor::ExitKind;

/// Entries of a ring.
const KEPT: usize = 64;

macro_rules! deeds {
    ($($name:ident $text:literal,)*) => {
        /// What a CPU did: a place in `TEXTS`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the texts say it")]
        pub enum What { $($name,)* }

        const TEXTS: &[&str] = &[$($text,)*];
    };
}

// `%v` is the VM, `%n` the virtual CPU, `%c` the code, `%x` the exit with that code; `%a` and `%b` are the two words.
deeds! {
    Nothing "nothing",
    Enters "enters guest %v vCPU %n at %a",
    Leaves "leaves guest %v vCPU %n at %a: %x %b",
    Interrupt "interrupt %c in Prism at %a",
    Nmi "NMI in Prism at %a",
    Sleeps "sleeps",
    BeginsShootdown "begins a shootdown of guest %v",
    EndsShootdown "ends a shootdown of guest %v",
    WaitsForMediator "waits for the mediator",
    HasMediator "has the mediator's lock",
    FreesMediator "frees the mediator's lock",
    Vm "guest %v: 1 runs, 2 off, 3 crashed, 4 killed: %c",
    Fault "exception %c in Prism at %a, CR2 %b",
    Panic "panics",
    SelfTest "selftest: provokes a fault",
}

/// TSC; what, code, VM and virtual CPU, a byte each; two words.
type Entry = [AtomicU64; 4];

#[repr(C, align(64))]
struct Ring {
    /// How many entries were ever made.
    next: AtomicU64,
    entries: [Entry; KEPT],
}

static RINGS: [Ring; MAX_CPUS] =
    [const { Ring { next: AtomicU64::new(0), entries: [const { [const { AtomicU64::new(0) }; 4] }; KEPT] } }; MAX_CPUS];

/// For readers of raw memory; the runner is one. Whoever changes the layout changes the version. Addresses are physical
/// ones too, as the image is mapped; a slice and a text are an address and a length.
#[repr(C)]
struct Header {
    magic: [u8; 16],
    /// CPUs, bytes of a ring, entries of a ring.
    sizes: [u64; 3],
    rings: &'static [Ring; MAX_CPUS],
    texts: &'static [&'static str],
    exits: &'static [&'static str],
}

#[used]
static HEADER: Header = Header {
    magic: *b"Prism traces v1\n",
    sizes: [MAX_CPUS as u64, size_of::<Ring>() as u64, KEPT as u64],
    rings: &RINGS,
    texts: TEXTS,
    exits: ExitKind::VARIANTS,
};

/// Remembers what this CPU does: code, VM and virtual CPU, two words.
pub fn note(what: What, of: [u8; 3], words: [u64; 2]) {
    record(percpu::current(), time::tsc(), what, of, words);
}

/// What a CPU did last, as a place in `TEXTS`.
pub fn did_last(cpu: CpuId) -> Option<u8> {
    let ring = RINGS.get(cpu.0 as usize)?;
    let last = ring.next.load(Ordering::Acquire).checked_sub(1)?;
    let [_, what, ..] = ring.entries.get(last as usize % KEPT)?;
    Some(what.load(Ordering::Relaxed) as u8)
}

/// The same for who knows the time, and which CPU this is. An NMI in the middle loses one of the two entries.
#[inline]
pub(crate) fn record(cpu: CpuId, tsc: u64, what: What, [code, vm, vcpu]: [u8; 3], [a, b]: [u64; 2]) {
    let Some(ring) = RINGS.get(cpu.0 as usize) else { return };
    let next = ring.next.load(Ordering::Relaxed);
    if let Some(entry) = ring.entries.get(next as usize % KEPT) {
        let what = u64::from(u32::from_le_bytes([what as u8, code, vm, vcpu]));
        for (word, value) in entry.iter().zip([tsc, what, a, b]) {
            word.store(value, Ordering::Relaxed);
        }
    }
    ring.next.store(next.wrapping_add(1), Ordering::Release);
}

/// Prints the last `count` entries of a CPU, the oldest first, with the ticks between them.
pub(crate) fn print(cpu: CpuId, count: u64, out: &mut dyn FnMut(fmt::Arguments<'_>)) {
    // Not by its value, which is known: the header is to be in the image.
    let header = core::hint::black_box(&HEADER);
    let Some(ring) = header.rings.get(cpu.0 as usize) else { return };
    let next = ring.next.load(Ordering::Acquire);
    let mut before = None;
    for n in next.saturating_sub(count.min(KEPT as u64))..next {
        let Some(entry) = ring.entries.get(n as usize % KEPT) else { continue };
        let words = entry.each_ref().map(|word| word.load(Ordering::Relaxed));
        let gap = before.map_or(0, |tsc| words[0].wrapping_sub(tsc));
        out(format_args!("+{gap:<10} {}", Said(words)));
        before = Some(words[0]);
    }
}

/// An entry in words.
struct Said([u64; 4]);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, what, a, b] = self.0;
        let [what, code, vm, vcpu, ..] = what.to_le_bytes();
        let text = TEXTS.get(usize::from(what)).copied().unwrap_or("?");
        for (n, piece) in text.split('%').enumerate() {
            let (letter, rest) = if n == 0 { ("", piece) } else { piece.split_at_checked(1).unwrap_or_default() };
            match letter {
                "v" => write!(f, "{vm}")?,
                "n" => write!(f, "{vcpu}")?,
                "c" => write!(f, "{code:#x}")?,
                "x" => f.write_str(ExitKind::VARIANTS.get(usize::from(code)).copied().unwrap_or("?"))?,
                "a" => write!(f, "{a:#x}")?,
                "b" => write!(f, "{b:#x}")?,
                _ => {}
            }
            f.write_str(rest)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let cpu = CpuId(MAX_CPUS as u32 - 1);
        for n in 0..100 {
            record(cpu, n * 10, What::Leaves, [ExitKind::Cpuid as u8, 1, 2], [n, 0]);
        }
        let mut lines = Vec::new();
        print(cpu, 3, &mut |line| lines.push(line.to_string()));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2], "+10         leaves guest 1 vCPU 2 at 0x63: Cpuid 0x0");
        lines.clear();
        print(cpu, 1000, &mut |line| lines.push(line.to_string()));
        assert_eq!(lines.len(), KEPT);
        record(CpuId(u32::MAX), 0, What::Sleeps, [0; 3], [0; 2]);
    }
}
