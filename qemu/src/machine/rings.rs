//! What each CPU of Prism did last, read out of the machine's memory: `hv::trace` describes it there.

use super::ram::Ram;
use super::symbols::Symbols;

const MAGIC: &[u8; 16] = b"Prism traces v1\n";
/// The header is constant data of the image, which lies from 1 MiB on.
const SEARCHED: std::ops::Range<u64> = 0x10_0000..0x50_0000;
const ALIGNMENT: usize = 8;
/// After the magic text: six numbers of four bytes, and an address.
const HEADER_BYTES: usize = 16 + 6 * 4 + 8;
const TEXT_BYTES: usize = 56;
const EXIT_BYTES: usize = 24;
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
        places.filter(|&at| image[at..].starts_with(MAGIC)).find_map(|at| Self::parse(&image[at..]))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |index: usize| Some(u32::from_le_bytes(*bytes.get(16 + 4 * index..)?.first_chunk()?));
        let [version, cpus, ring_bytes, entries, texts, exits] = [0, 1, 2, 3, 4, 5].map(number);
        let sound = version? == 1 && (1..=1024).contains(&cpus?) && (1..=1 << 16).contains(&entries?);
        if !sound {
            return None;
        }
        let (texts, exits) = (texts? as usize, exits? as usize);
        let table = |from: usize, count: usize, len: usize| {
            let all = bytes.get(from..from + count * len)?;
            Some(all.chunks(len).map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()).collect())
        };
        Some(Self {
            cpus: cpus?.into(),
            ring_bytes: ring_bytes?.into(),
            entries: entries?.into(),
            rings: word(bytes, HEADER_BYTES - 8)?,
            texts: table(HEADER_BYTES, texts, TEXT_BYTES)?,
            exits: table(HEADER_BYTES + texts * TEXT_BYTES, exits, EXIT_BYTES)?,
        })
    }

    fn ring(&self, ram: &Ram, cpu: u64, symbols: &Symbols) -> Option<String> {
        let ring = ram.read(self.rings + cpu * self.ring_bytes, self.ring_bytes as usize)?;
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

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_filled_in() {
        let mut bytes = MAGIC.to_vec();
        [1u32, 2, 72, 2, 2, 1].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(0x2000u64.to_le_bytes());
        for (text, len) in [("", TEXT_BYTES), ("leaves %v.%n at %a: %x %b", TEXT_BYTES), ("Hlt", EXIT_BYTES)] {
            let mut text = text.as_bytes().to_vec();
            text.resize(len, 0);
            bytes.extend(text);
        }
        let header = Header::parse(&bytes).unwrap();
        let what = u64::from_le_bytes([1, 0, 3, 4, 0, 0, 0, 0]);
        assert_eq!(header.say([0, what, 0x10, 5], &Symbols::default()), "leaves 3.4 at 0x10: Hlt 0x5");
        assert_eq!((header.rings, header.entries), (0x2000, 2));
        assert!(Header::parse(&bytes[..80]).is_none());
        let ram = Ram::new(8).unwrap();
        assert_eq!(print(&ram, &Symbols::default()), "");
    }
}
