//! The bundle: one cpio archive (newc, `man 5 cpio`) that holds `prism.toml` and the files it names.

use alloc::vec::Vec;

use thiserror::Error;

/// Files in a bundle at most.
const MAX_FILES: usize = 256;
/// Longest file name, in bytes.
const MAX_NAME: usize = 255;
/// Bytes of a newc header: the magic and 13 fields of 8 hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Why a module is not a bundle; the numbers are byte offsets of entries.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BundleError {
    /// No cpio magic at the start of the module.
    #[error("not a cpio archive; make it with `cpio -o -H newc`")]
    NotCpio,
    /// No cpio magic at the start of an entry.
    #[error("damaged: no newc header at byte {0}")]
    Damaged(usize),
    /// An entry reaches past the end of the module.
    #[error("cut short: the entry at byte {0} reaches past the end")]
    Truncated(usize),
    /// A name is not text, or too long.
    #[error("the entry at byte {0} has no usable name")]
    Name(usize),
    /// More files than a bundle may hold.
    #[error("more than {MAX_FILES} files")]
    TooMany,
}

/// An opened bundle.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    files: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Bundle<'a> {
    /// Reads the archive's table of contents.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn open(archive: &'a [u8]) -> Result<Self, BundleError> {
        let mut files = Vec::new();
        let mut at = 0;
        loop {
            let (name, content, next) = read_entry(archive, at)?;
            if name == TRAILER {
                return Ok(Self { files });
            }
            if files.len() == MAX_FILES {
                return Err(BundleError::TooMany);
            }
            files.push((name, content));
            at = next;
        }
    }

    /// Finds a file by name; a leading `./` in the archive does not count.
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        self.files.iter().find(|file| plain(file.0) == plain(name)).map(|file| file.1)
    }
}

fn plain(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

/// Reads the entry at `at`: name, content, and the offset of the next.
fn read_entry(archive: &[u8], at: usize) -> Result<(&str, &[u8], usize), BundleError> {
    let part = |from: usize, len: usize| archive.get(from..from.checked_add(len)?);
    let no_header = if at == 0 { BundleError::NotCpio } else { BundleError::Damaged(at) };
    let cut = || BundleError::Truncated(at);
    let header = part(at, HEADER).ok_or_else(|| if at == 0 { BundleError::NotCpio } else { cut() })?;
    let field = |n: usize| -> Option<usize> {
        let digits = header.get(6 + 8 * n..14 + 8 * n)?;
        usize::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
    };
    let is_newc = header.starts_with(b"070701") || header.starts_with(b"070702");
    let Some((len, name_len)) = field(6).zip(field(11)).filter(|_| is_newc) else {
        return Err(no_header);
    };
    if name_len > MAX_NAME + 1 {
        return Err(BundleError::Name(at));
    }
    let (_terminator, name) = part(at + HEADER, name_len).ok_or_else(cut)?.split_last().ok_or(BundleError::Name(at))?;
    let name = core::str::from_utf8(name).map_err(|_| BundleError::Name(at))?;
    let start = (at + HEADER + name_len).next_multiple_of(4);
    let content = part(start, len).ok_or_else(cut)?;
    Ok((name, content, (start + len).next_multiple_of(4)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::archive;
    use super::*;

    #[test]
    fn damage_is_found() {
        let good = archive(&[("a", b"hello"), ("b", b"")]);
        assert_eq!(Bundle::open(&good[..]).unwrap().files, [("a", &b"hello"[..]), ("b", b"")]);
        assert_eq!(Bundle::open(&b"\x7fELF"[..]).unwrap_err(), BundleError::NotCpio);
        assert!(matches!(Bundle::open(&good[..200]).unwrap_err(), BundleError::Truncated(_)));
        let mut bad = good.clone();
        bad[6 + 6 * 8..14 + 6 * 8].copy_from_slice(b"ffffffff");
        assert_eq!(Bundle::open(&bad[..]).unwrap_err(), BundleError::Truncated(0));
        bad[6 + 11 * 8..14 + 11 * 8].copy_from_slice(b"00000000");
        assert_eq!(Bundle::open(&bad[..]).unwrap_err(), BundleError::Name(0));
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
