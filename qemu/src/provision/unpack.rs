//! Unpacks package files into a private folder with dpkg-deb, which every Debian system has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, make_dir, remove_dir};

/// Empties `dir` and unpacks the packages into it.
pub fn fresh(dir: &Path, debs: &[PathBuf]) -> Result<()> {
    remove_dir(dir)?;
    make_dir(dir)?;
    debs.iter().try_for_each(|deb| one(dir, deb))
}

fn one(dir: &Path, deb: &Path) -> Result<()> {
    let out = Command::new("dpkg-deb")
        .arg("-x")
        .args([deb, dir])
        .output()
        .context(|| "cannot run dpkg-deb (package dpkg)".into())?;
    if out.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(Error::new(format!(
        "cannot unpack {}: {}",
        deb.display(),
        why.lines().next().unwrap_or("no message")
    )))
}
