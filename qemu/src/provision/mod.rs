//! Fetches what a run needs and the host lacks, from the host distribution's own packages, into `target/prism/`.
//!
//! Everything here is done once: a second call finds the stamp of the first and touches no network.

mod apt;
mod bochs;
mod grub;
mod kernel;
mod module;
mod qemu;
mod sources;
mod unpack;

use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result, make_dir, write};
use crate::lock::Lock;
use crate::paths;

pub use bochs::Bochs;
pub use grub::Grub;
pub use kernel::{Kernel, KernelKind};
pub use qemu::Qemu;

use apt::Suites;
use sources::Archive;

/// What is fetched, and from where.
#[derive(Debug)]
struct Store {
    archive: Archive,
    _lock: Lock,
}

impl Store {
    /// Opens the store, alone among Prism's processes.
    fn open() -> Result<Self> {
        make_dir(&paths::prism())?;
        let lock = Lock::take("provision")?;
        Ok(Self { archive: Archive::of_host()?, _lock: lock })
    }

    fn suites(&self, names: &[&str]) -> Result<Suites> {
        Suites::open(&paths::prism().join("apt"), &self.archive, names)
    }

    /// Sets of suites of this distribution in which a newer package may be, oldest first.
    fn newer_suites(&self) -> Vec<Vec<String>> {
        let host = self.archive.codename.clone();
        let mut sets = vec![vec![host.clone()], vec![host.clone(), format!("{host}-backports")]];
        let later: &[&[&str]] = match self.archive.id.as_str() {
            "debian" => &[&["trixie", "trixie-backports"], &["forky"], &["sid"]],
            "ubuntu" => &[&["devel"]],
            _ => &[],
        };
        for set in later {
            let set: Vec<String> = set.iter().map(|s| (*s).to_string()).collect();
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        sets
    }

    /// The first of the newer suites with a version of `package` that `accept`s, and that version.
    fn find(&self, package: &str, accept: impl Fn(&str) -> bool + Copy) -> Result<Option<(Suites, String)>> {
        let mut failed = None;
        for set in self.newer_suites() {
            let names: Vec<&str> = set.iter().map(String::as_str).collect();
            match self.suites(&names) {
                Ok(suites) => {
                    if let Some(version) = suites.version(package, accept)? {
                        return Ok(Some((suites, version)));
                    }
                }
                // A suite may be gone from the mirror (old backports are): the next one is tried.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

/// A folder under `target/prism` that is complete once its stamp is there.
struct Item {
    dir: PathBuf,
    recipe: String,
}

impl Item {
    /// `recipe` says how it is made: when that changes, it is made anew.
    fn new(name: &str, recipe: &str) -> Self {
        Self { dir: paths::prism().join(name), recipe: recipe.into() }
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("prism.stamp")
    }

    /// The version that is there, if it was made by this recipe.
    fn ready(&self) -> Option<String> {
        let stamp = fs::read_to_string(self.stamp()).ok()?;
        let (recipe, version) = stamp.split_once('\n')?;
        (recipe == self.recipe).then(|| version.trim().to_string())
    }

    /// Makes it with `make`, which gives its version, unless it is there; another process may be at it.
    fn get(&self, what: &str, make: impl FnOnce(&Store) -> Result<String>) -> Result<String> {
        if let Some(version) = self.ready() {
            return Ok(version);
        }
        let store = Store::open()?;
        if let Some(version) = self.ready() {
            return Ok(version);
        }
        let version = make(&store)?;
        self.done(&version)?;
        eprintln!("{what} {version} is in {}", self.dir.display());
        Ok(version)
    }

    fn done(&self, version: &str) -> Result<()> {
        write(&self.stamp(), format!("{}\n{version}\n", self.recipe))
    }
}

/// The source of the standard library for this compiler, for building `core` where the bare target is not installed.
pub fn rust_source(rust: &str) -> Result<PathBuf> {
    let item = Item::new("rust-src", &format!("1 {rust}"));
    item.get("rust-src", |store| {
        let accept = |v: &str| v == rust || v.starts_with(&format!("{rust}+"));
        let Some((suites, version)) = store.find("rust-src", accept)? else {
            return Err(Error::new(format!(
                "no package rust-src {rust} in this distribution: run `rustup target add x86_64-unknown-none`"
            )));
        };
        let deb = suites.fetch("rust-src", &version)?;
        unpack::fresh(&item.dir, &[deb])?;
        Ok(version)
    })?;
    Ok(item.dir.join(format!("usr/src/rustc-{rust}/library")))
}

/// A static busybox: the user space of the demo's guests.
pub fn busybox() -> Result<PathBuf> {
    let item = Item::new("busybox", "1");
    item.get("busybox-static", |store| {
        let suites = store.suites(&[kernel::oldest_suite(&store.archive)])?;
        let Some(version) = suites.version("busybox-static", |_| true)? else {
            return Err(Error::new("no package busybox-static in this distribution"));
        };
        let deb = suites.fetch("busybox-static", &version)?;
        unpack::fresh(&item.dir, &[deb])?;
        Ok(version)
    })?;
    let [old, new] = ["bin/busybox", "usr/bin/busybox"].map(|p| item.dir.join(p));
    Ok(if old.exists() { old } else { new })
}
