//! What each CPU of Prism did last, read out of the machine's memory: `hv::trace` describes it there.

use super::ram::Ram;
use super::symbols::Symbols;

const MAGIC: &[u8; 16] = b"Prism traces v1\n";
/// The header is constant data of the image, which lies from 1 MiB on.
const SEARCHED: std::ops::Range<u64> = 0x10_0000..0x50_0000;
const ALIGNMENT: usize = 8;
/// The magic text, three numbers, the rings' address, and the addresses and counts of two tables of texts.
const HEADER_BYTES: usize = 16 + 8 * 8;
/// More texts, or longer ones, are none of Prism's.
const MOST: u64 = 128;
const ENTRY_BYTES: usize = 32;
/// What is shown of each CPU.
const SHOWN: u64 = 24;

/// The last entries of each CPU that has any, the newest last; nothing, if Prism did not run in this memory.
pub fn print(ram: &Ram, symbols: &Symbols) -> String {
    let Some(header) = Header::find(ram) else { return String::new() };
    let mut text = String::new();
    for cpu in 0..header.cpus {
        let Some(lines) = header.ring(ram, cpu, symbols).filter(|lines| !lines.is_empty()) else { continue };
        text.push_str(&format!("CPU {cpu} did last (ticks before its end, deed):\n{lines}"));
    }
    text
}

struct Header {
    cpus: u64,
    ring_bytes: u64,
    entries: u64,
    rings: u64,
    texts: Vec<String>,
    exits: Vec<String>,
}

impl Header {
    fn find(ram: &Ram) -> Option<Self> {
        let image = ram.read(SEARCHED.start, (SEARCHED.end - SEARCHED.start) as usize)?;
        let places = (0..image.len() - HEADER_BYTES).step_by(ALIGNMENT);
        places.filter(|&at| image[at..].starts_with(MAGIC)).find_map(|at| Self::parse(ram, &image[at..]))
    }

    fn parse(ram: &Ram, bytes: &[u8]) -> Option<Self> {
        let number = |index: usize| word(bytes, 16 + 8 * index);
        let [cpus, ring_bytes, entries] = [number(0)?, number(1)?, number(2)?];
        let needed = 8 + entries.min(1 << 16) * ENTRY_BYTES as u64;
        let sound = cpus <= 1024 && (1..=1 << 16).contains(&entries) && (needed..=1 << 22).contains(&ring_bytes);
        let (texts, exits) = (strings(ram, number(4)?, number(5)?)?, strings(ram, number(6)?, number(7)?)?);
        sound.then_some(Self { cpus, ring_bytes, entries, rings: number(3)?, texts, exits })
    }

    fn ring(&self, ram: &Ram, cpu: u64, symbols: &Symbols) -> Option<String> {
        let ring = ram.read(self.rings.checked_add(cpu * self.ring_bytes)?, self.ring_bytes as usize)?;
        let next = word(&ring, 0)?;
        let entry = |n: u64| {
            let at = 8 + (n % self.entries) as usize * ENTRY_BYTES;
            Some([word(&ring, at)?, word(&ring, at + 8)?, word(&ring, at + 16)?, word(&ring, at + 24)?])
        };
        let [end, ..] = entry(next.wrapping_sub(1))?;
        let mut lines = String::new();
        for n in next.saturating_sub(SHOWN.min(self.entries))..next {
            let words = entry(n)?;
            let (before, said) = (end.wrapping_sub(words[0]), self.say(words, symbols));
            lines.push_str(&format!("  -{before:<12} {said}\n"));
        }
        Some(lines)
    }

    /// An entry in words, as `hv::trace` says them; addresses in Prism also by name.
    fn say(&self, [_, what, a, b]: [u64; 4], symbols: &Symbols) -> String {
        let [what, code, vm, vcpu, ..] = what.to_le_bytes();
        let text = self.texts.get(usize::from(what)).map_or("?", String::as_str);
        let exit = self.exits.get(usize::from(code)).map_or("?", String::as_str);
        let place = if text.contains(" in Prism") { symbols.name(a) } else { None };
        let place = place.map_or(String::new(), |name| format!(" ({name})"));
        let mut said = text.replace("%v", &vm.to_string()).replace("%n", &vcpu.to_string());
        said = said.replace("%x", exit).replace("%c", &format!("{code:#x}"));
        said.replace("%a", &format!("{a:#x}{place}")).replace("%b", &format!("{b:#x}"))
    }
}

/// Texts, each named by address and length.
fn strings(ram: &Ram, at: u64, count: u64) -> Option<Vec<String>> {
    let table = ram.read(at, 16 * usize::try_from(count).ok().filter(|_| count <= MOST)?)?;
    let text = |name: &[u8]| {
        let len = word(name, 8).filter(|len| *len <= MOST)?;
        Some(String::from_utf8_lossy(&ram.read(word(name, 0)?, len as usize)?).into_owned())
    };
    table.chunks(16).map(text).collect()
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_filled_in() {
        let ram = Ram::new(8).unwrap();
        assert_eq!(print(&ram, &Symbols::default()), "");
        let put = |at: u64, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            ram.write(at, &bytes);
        };
        let [header, rings, tables, text, exit] = [0x20_0008, 0x60_0000, 0x61_0000, 0x62_0000, 0x63_0000];
        ram.write(header, MAGIC);
        put(header + 16, &[2, 72, 2, rings, tables, 2, tables + 32, 1]);
        ram.write(text, b"leaves %v.%n at %a: %x %b");
        ram.write(exit, b"Hlt");
        put(tables, &[text, 0, text, 25, exit, 3]);
        let what = u64::from_le_bytes([1, 0, 3, 4, 0, 0, 0, 0]);
        put(rings + 72, &[3, 107, what, 0x30, 7, 100, what, 0x10, 5]);
        let said = print(&ram, &Symbols::default());
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        let first = "-7            leaves 3.4 at 0x10: Hlt 0x5";
        assert_eq!(lines[1..], [first, "-0            leaves 3.4 at 0x30: Hlt 0x7"]);
        assert!(lines[0].starts_with("CPU 1 did last"), "{said}");
        put(header + 16, &[2, 72, 1 << 40]);
        assert_eq!(print(&ram, &Symbols::default()), "");
    }
}
