//! QEMU: an installed one if it is new enough, else the newest of the distribution, run from a private root.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::apt::numbers;
use super::{Item, Store, unpack};
use crate::ask::ask;
use crate::error::{Context, Error, Result, make_dir, write};
use crate::machine::Kind;
use crate::paths;
use crate::selftest::Verdicts;

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

/// How long it may take to tell something about itself.
const LIMIT: Duration = Duration::from_secs(60);

impl Qemu {
    /// Finds or fetches it.
    pub fn get() -> Result<Self> {
        let item = Item::new("qemu", "1");
        let program = paths::prism().join("bin/qemu-system-x86_64");
        if item.ready().is_none() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            match Self::installed(&path, &Verdicts::of_workspace()) {
                Some(Ok(installed)) => return Ok(installed),
                Some(Err(why)) => eprintln!("{why}; another is fetched"),
                None => {}
            }
        }
        let version = item.get("QEMU", |store| fetch(store, &item.dir, &program))?;
        Ok(Self { program, version })
    }

    /// The first QEMU in the folders of `path`, if it is good enough; the error says why it is not.
    pub fn installed(path: &OsStr, verdicts: &Verdicts) -> Option<Result<Self>> {
        let program = std::env::split_paths(path).map(|dir| dir.join("qemu-system-x86_64")).find(|p| p.is_file())?;
        let program = std::path::absolute(&program).unwrap_or(program);
        let place = program.display().to_string();
        Some(Self::tried(program, verdicts).context(|| format!("{place} is not used")))
    }

    fn tried(program: PathBuf, verdicts: &Verdicts) -> Result<Self> {
        let version = version_of(&program).ok_or_else(|| Error::new("it does not tell its version"))?;
        let [major, minor] = INSTALLED_AT_LEAST;
        if numbers(&version) < INSTALLED_AT_LEAST.to_vec() {
            return Err(Error::new(format!("its version is {version}, and {major}.{minor} is needed")));
        }
        let device = told(&program, &["-M", "none", "-device", "vfio-user-pci,help"]).unwrap_or_default();
        if !device.starts_with("vfio-user-pci options") {
            return Err(Error::new("it was built without vfio-user-pci, the device that the software GPU needs"));
        }
        let qemu = Self { program, version };
        verdicts.judge(Kind::SvmTcg, &qemu)?;
        Ok(qemu)
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

fn version_of(program: &Path) -> Option<String> {
    told(program, &["--version"])?.split_once("version ")?.1.split_whitespace().next().map(String::from)
}

/// What it prints when started like this.
fn told(program: &Path, arguments: &[&str]) -> Option<String> {
    ask(Command::new(program).args(arguments), "", LIMIT).ok().map(|answer| answer.text)
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
