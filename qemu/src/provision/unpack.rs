//! Unpacks package files into a private folder with dpkg-deb, which every Debian system has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result, make_dir, remove_dir};

/// Where libraries are in a root, before and after the merge of /lib into /usr/lib.
pub const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// The dynamic loader of a root, relative to it.
pub fn loader(root: &Path) -> Result<String> {
    let file = "ld-linux-x86-64.so.2";
    LIBRARIES
        .iter()
        .chain(&["usr/lib64", "lib64"])
        .map(|folder| format!("{folder}/{file}"))
        .find(|path| root.join(path).exists())
        .ok_or_else(|| Error::new(format!("no dynamic loader in {}", root.display())))
}

/// A command that runs a root's program with that root's libraries.
pub fn command(root: &Path, program: &str) -> Result<Command> {
    let libraries = LIBRARIES.map(|folder| root.join(folder).display().to_string()).join(":");
    let mut command = Command::new(root.join(loader(root)?));
    command.args(["--library-path", &libraries]).arg(root.join(program));
    Ok(command)
}

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
    Err(Error::new(format!("cannot unpack {}: {}", deb.display(), why.lines().next().unwrap_or("no message"))))
}
