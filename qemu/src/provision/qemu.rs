//! QEMU: an installed one if it is new enough, else the newest of the distribution, run from a private root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::numbers;
use super::{Item, Store, unpack};
use crate::error::{Context, Error, Result, make_dir, write};
use crate::paths;

/// A QEMU that can run the machines of this project.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// The program to start.
    pub program: PathBuf,
    /// Its version, as its package or itself says.
    pub version: String,
}

/// vfio-user-pci came with 10.1.
const INSTALLED_AT_LEAST: [u32; 2] = [10, 1];
/// Earlier versions check nested SVM state wrongly (they return a truncated exit code for a refused entry).
const FETCHED_AT_LEAST: [u32; 2] = [11, 1];

impl Qemu {
    /// Finds or fetches it.
    pub fn get() -> Result<Self> {
        let item = Item::new("qemu", "1");
        let program = paths::prism().join("bin/qemu-system-x86_64");
        if item.ready().is_none()
            && let Some(installed) = installed()
        {
            return Ok(installed);
        }
        let version = item.get("QEMU", |store| fetch(store, &item.dir, &program))?;
        Ok(Self { program, version })
    }
}

fn fetch(store: &Store, dir: &Path, program: &Path) -> Result<String> {
    let accept = |v: &str| numbers(v) >= FETCHED_AT_LEAST.to_vec();
    let Some((suites, version)) = store.find("qemu-system-x86", accept)? else {
        return Err(Error::new(format!(
            "no QEMU {}.{} or later in this distribution: install qemu-system-x86_64 and put it into PATH",
            FETCHED_AT_LEAST[0], FETCHED_AT_LEAST[1]
        )));
    };
    let debs = suites.fetch_closure("qemu-system-x86", &version)?;
    unpack::fresh(dir, &debs)?;
    write_wrapper(program, dir)?;
    match version_of(program) {
        Some(_) => Ok(version),
        None => Err(Error::new(format!(
            "the fetched QEMU {version} does not run here: see `{} --version`",
            program.display()
        ))),
    }
}

/// A QEMU on PATH, new enough and with the device that the software GPU needs.
fn installed() -> Option<Qemu> {
    let path = std::env::var_os("PATH")?;
    let program = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64")).find(|p| p.is_file())?;
    let version = version_of(&program)?;
    if numbers(&version) < INSTALLED_AT_LEAST.to_vec() {
        return None;
    }
    let devices = Command::new(&program).args(["-M", "none", "-device", "help"]).output().ok()?;
    String::from_utf8_lossy(&devices.stdout).contains("\"vfio-user-pci\"").then_some(Qemu { program, version })
}

fn version_of(program: &Path) -> Option<String> {
    let out = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.split_once("version ")?.1.split_whitespace().next().map(String::from)
}

/// A program that starts QEMU by its own loader and libraries, whatever the host's are.
fn write_wrapper(program: &Path, root: &Path) -> Result<()> {
    let (loader, libraries) = (unpack::loader(root)?, unpack::LIBRARIES.map(|l| format!("$root/{l}")).join(":"));
    // Relative to the script, so that the workspace may be moved.
    let script = format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(readlink -f \"$0\")\")/../qemu\n\
         QEMU_MODULE_DIR=$root/usr/lib/x86_64-linux-gnu/qemu exec \"$root/{loader}\" --library-path \"{libraries}\" \
         \"$root/usr/bin/qemu-system-x86_64\" -L \"$root/usr/share/qemu\" -L \"$root/usr/share/seabios\" \
         -L \"$root/usr/lib/ipxe/qemu\" \"$@\"\n"
    );
    make_dir(program.parent().unwrap_or(root))?;
    write(program, script)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
        .context(|| format!("cannot make {} runnable", program.display()))
}
