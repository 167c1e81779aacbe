//! The one error type of the host side: a sentence for the user.

use std::fmt;
use std::path::Path;

/// What went wrong, where, and what to do, in one line.
#[derive(Debug, Clone)]
pub struct Error(String);

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Turns a foreign error into a sentence that says what was being done.
pub trait Context<T> {
    /// Puts `doing` before the cause.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error(format!("{}: {cause}", doing())))
    }
}

/// Reads a file; the error names it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).context(|| format!("cannot read {}", path.display()))
}

/// Writes a file; the error names it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, content).context(|| format!("cannot write {}", path.display()))
}

/// Makes a folder and its parents; the error names it.
pub fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).context(|| format!("cannot make the folder {}", path.display()))
}

/// Removes a folder and all in it; one that is not there is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error(format!("cannot remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}
