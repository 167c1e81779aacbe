//! Locks that hold across processes (`cargo test` starts several), freed when the holder ends.

use std::fs::File;
use std::path::Path;

use crate::error::{Context, Result, make_dir};
use crate::paths;

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of this name; says so on stderr if that takes a wait.
    pub fn take(name: &str) -> Result<Self> {
        Self::take_in(&paths::prism().join("locks"), name)
    }

    /// The same for a lock that lies in a folder of the caller's choice.
    pub fn take_in(dir: &Path, name: &str) -> Result<Self> {
        make_dir(dir)?;
        let path = dir.join(name);
        let file = File::create(&path).context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another Prism process ({name}) ...");
            file.lock().context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(Self { _file: file })
    }

    /// Takes whichever of the locks `name.N` for the numbers given is free first, and says which.
    pub fn take_any(name: &str, numbers: &[usize]) -> Result<(Self, usize)> {
        let dir = paths::prism().join("locks");
        make_dir(&dir)?;
        let mut told = false;
        loop {
            for &number in numbers {
                let path = dir.join(format!("{name}.{number}"));
                let file = File::create(&path).context(|| format!("cannot create {}", path.display()))?;
                if file.try_lock().is_ok() {
                    return Ok((Self { _file: file }, number));
                }
            }
            if !told {
                eprintln!("waiting for other machines to end ...");
                told = true;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}
