//! Names for addresses in the hypervisor image, from its symbol table (ELF-64 Object File Format 1.5, sections 3 and 5).

use std::path::Path;

use rustc_demangle::demangle;

/// What the functions of an image are called, by address.
#[derive(Debug, Default)]
pub struct Symbols(Vec<(u64, u64, String)>);

const SYMBOL_TABLE: u32 = 2;
const FUNCTION: u8 = 2;

impl Symbols {
    /// Those of this file; none, if it is no such file.
    pub fn read(image: &Path) -> Self {
        let bytes = std::fs::read(image).unwrap_or_default();
        Self(if bytes.starts_with(b"\x7fELF\x02\x01") { functions(&bytes).unwrap_or_default() } else { Vec::new() })
    }

    /// The function that holds this address, and how far into it that is.
    pub fn name(&self, address: u64) -> Option<String> {
        let (start, _, name) =
            self.0.iter().find(|(start, len, _)| address.checked_sub(*start).is_some_and(|at| at < *len))?;
        Some(format!("{name}+{:#x}", address - start))
    }
}

fn functions(elf: &[u8]) -> Option<Vec<(u64, u64, String)>> {
    let (table, size, count) = (number(elf, 0x28, 8)? as usize, number(elf, 0x3A, 2)? as usize, number(elf, 0x3C, 2)?);
    let section = |index: usize| elf.get(table.checked_add(index.checked_mul(size)?)?..);
    let content = |header: &[u8]| {
        let (at, len) = (number(header, 0x18, 8)? as usize, number(header, 0x20, 8)? as usize);
        elf.get(at..at.checked_add(len)?)
    };
    let symbols = (0..count as usize)
        .find(|&index| section(index).and_then(|header| number(header, 4, 4)) == Some(u64::from(SYMBOL_TABLE)))?;
    let header = section(symbols)?;
    let names = content(section(number(header, 0x28, 4)? as usize)?)?;
    let all = content(header)?.chunks_exact(24).filter(|symbol| symbol[4] & 0xF == FUNCTION);
    all.map(|symbol| {
        let name = names.get(number(symbol, 0, 4)? as usize..)?.split(|&byte| byte == 0).next()?;
        Some((number(symbol, 8, 8)?, number(symbol, 16, 8)?, format!("{:#}", demangle(&String::from_utf8_lossy(name)))))
    })
    .collect()
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    Some(bytes.get(at..at + len)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_symbols() {
        let symbols = Symbols::read(&std::env::current_exe().unwrap());
        let (start, _, name) = symbols.0.iter().find(|symbol| symbol.1 > 1).unwrap();
        assert_eq!(symbols.name(start + 1).unwrap(), format!("{name}+0x1"));
        assert!(Symbols::read(Path::new("/nowhere")).name(0x10_0000).is_none());
    }
}
