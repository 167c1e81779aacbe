//! The bundle: one cpio archive (newc, `man 5 cpio`) that holds `prism.toml` and the files it names.

use super::{OutOfRange, Source};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Files in a bundle at most.
const MAX_FILES: usize = 256;
/// Longest file name, in bytes.
const MAX_NAME: u64 = 255;
/// Bytes of a newc header: the magic and 13 fields of 8 hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Why a module is not a bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BundleError {
    /// No cpio magic at the start of an entry.
    NotCpio {
        /// Byte offset of the entry.
        offset: u64,
    },
    /// An entry reaches past the end of the module.
    Truncated {
        /// Byte offset of the entry.
        offset: u64,
    },
    /// A name is not text, or too long.
    Name {
        /// Byte offset of the entry.
        offset: u64,
    },
    /// More files than a bundle may hold.
    TooMany,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCpio { offset: 0 } => {
                write!(f, "not a cpio archive; make it with `cpio -o -H newc`")
            }
            Self::NotCpio { offset } => write!(f, "damaged: no newc header at byte {offset}"),
            Self::Truncated { offset } => write!(f, "cut short: the entry at byte {offset} reaches past the end"),
            Self::Name { offset } => write!(f, "the entry at byte {offset} has no usable name"),
            Self::TooMany => write!(f, "more than {MAX_FILES} files"),
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    offset: u64,
    len: u64,
}

/// An opened bundle.
#[derive(Clone, Debug)]
pub struct Bundle<S> {
    source: S,
    entries: Vec<Entry>,
}

/// One file of a bundle.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a, S> {
    source: &'a S,
    offset: u64,
    len: u64,
}

impl<S: Source> Source for Part<'_, S> {
    fn len(&self) -> u64 {
        self.len
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let end = offset.checked_add(buf.len() as u64).ok_or(OutOfRange)?;
        if end > self.len {
            return Err(OutOfRange);
        }
        self.source.read(self.offset + offset, buf)
    }
}

impl<S: Source> Bundle<S> {
    /// Reads the archive's table of contents.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn open(source: S) -> Result<Self, BundleError> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let (entry, next) = read_entry(&source, at)?;
            if entry.name == TRAILER {
                return Ok(Self { source, entries });
            }
            if entries.len() == MAX_FILES {
                return Err(BundleError::TooMany);
            }
            entries.push(entry);
            at = next;
        }
    }

    /// Finds a file by name; a leading `./` in the archive does not count.
    pub fn file(&self, name: &str) -> Option<Part<'_, S>> {
        let wanted = plain(name);
        let entry = self.entries.iter().find(|entry| plain(&entry.name) == wanted)?;
        Some(Part { source: &self.source, offset: entry.offset, len: entry.len })
    }

    /// Names of all files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }
}

fn plain(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

/// Reads the entry at `at`: it and the offset of the next.
fn read_entry<S: Source>(source: &S, at: u64) -> Result<(Entry, u64), BundleError> {
    let truncated = BundleError::Truncated { offset: at };
    let mut header = [0; HEADER];
    source
        .read(at, &mut header)
        .map_err(|_| if at == 0 { BundleError::NotCpio { offset: 0 } } else { truncated.clone() })?;
    let not_cpio = BundleError::NotCpio { offset: at };
    if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
        return Err(not_cpio);
    }
    let field = |n: usize| -> Option<u64> {
        let digits = header.get(6 + 8 * n..14 + 8 * n)?;
        u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (Some(len), Some(name_len)) = (field(6), field(11)) else {
        return Err(not_cpio);
    };
    if name_len == 0 || name_len > MAX_NAME + 1 {
        return Err(BundleError::Name { offset: at });
    }
    let mut name = alloc::vec![0; name_len as usize];
    source.read(at + HEADER as u64, &mut name).map_err(|_| truncated.clone())?;
    name.pop(); // the terminating NUL
    let name = String::from_utf8(name).map_err(|_| BundleError::Name { offset: at })?;
    let offset = (at + HEADER as u64 + name_len).next_multiple_of(4);
    let end = offset + len;
    if end > source.len() {
        return Err(truncated);
    }
    Ok((Entry { name, offset, len }, end.next_multiple_of(4)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::archive;
    use super::*;

    #[test]
    fn damage_is_found() {
        let good = archive(&[("a", b"hello"), ("b", b"")]);
        assert_eq!(Bundle::open(&good[..]).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(Bundle::open(&b"\x7fELF"[..]).unwrap_err(), BundleError::NotCpio { offset: 0 });
        assert!(matches!(Bundle::open(&good[..200]).unwrap_err(), BundleError::Truncated { .. }));
        let mut bad = good.clone();
        bad[6 + 6 * 8..14 + 6 * 8].copy_from_slice(b"ffffffff");
        assert_eq!(Bundle::open(&bad[..]).unwrap_err(), BundleError::Truncated { offset: 0 });
        bad[6 + 11 * 8..14 + 11 * 8].copy_from_slice(b"00000000");
        assert_eq!(Bundle::open(&bad[..]).unwrap_err(), BundleError::Name { offset: 0 });
    }

    #[test]
    fn every_prefix_is_refused_without_a_panic() {
        let good = archive(&[("a", b"hello"), ("b", b"world")]);
        let shortest = good.len() - 3; // padding after the trailer is not needed
        for len in 0..shortest {
            assert!(Bundle::open(&good[..len]).is_err() || len >= shortest - 1, "{len}");
        }
    }
}
