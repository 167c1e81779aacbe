//! Builds what runs inside machines: the hypervisor image and the guests' own programs.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result, read, write};
use crate::lock::Lock;
use crate::{paths, provision};

const BARE: &str = "x86_64-unknown-none";
const GUEST: &str = "x86_64-unknown-linux-gnu";

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The product.
    Product,
    /// With the software GPU linked in, for machines without any.
    SoftGpu,
}

impl Variant {
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Product => &[],
            Self::SoftGpu => &["--features", "soft-gpu"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Product => "prism-hv",
            Self::SoftGpu => "prism-hv-soft-gpu",
        }
    }
}

/// Builds the hypervisor image; gives the path of the ELF file.
pub fn image(variant: Variant) -> Result<PathBuf> {
    let (mut command, dir, how) = if bare_target_installed() {
        (cargo(), target_dir(), "installed target")
    } else {
        let (command, dir) = with_own_core()?;
        (command, dir, "core built from the distribution's rust-src")
    };
    command.args(["build", "--package", "boot", "--release", "--target", BARE]);
    command.args(variant.features());
    eprintln!("building the hypervisor image ({how}) ...");
    // Cargo gives all variants one name: the lock is held until this one's file is safe under its own.
    let _lock = Lock::take_in(&dir, "image.lock")?;
    run(command.arg("--target-dir").arg(&dir), "the hypervisor image")?;
    let built = read(&dir.join(BARE).join("release/prism-hv"))?;
    let image = dir.join(variant.name());
    if fs::read(&image).ok().as_ref() != Some(&built) {
        // Whole at once: somebody else may be starting it.
        let fresh = image.with_extension("new");
        write(&fresh, built)?;
        fs::rename(&fresh, &image).context(|| format!("cannot name {}", image.display()))?;
    }
    Ok(image)
}

/// Builds a guest program, linked statically so that it runs in any initrd; gives its path.
pub fn guest_program(package: &str) -> Result<PathBuf> {
    let dir = target_dir();
    eprintln!("building the guest program {package} ...");
    let mut command = cargo();
    command
        .args(["build", "--release", "--target", GUEST, "--package", package])
        .arg("--target-dir")
        .arg(&dir)
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    run(&mut command, package)?;
    Ok(dir.join(GUEST).join("release").join(package))
}

/// Assembles a guest of `tests/guests` into an ELF64 program at 2 MiB. It prints `nonce` when it has come to its end.
pub fn assembled_guest(name: &str, nonce: &str) -> Result<Vec<u8>> {
    let source = paths::workspace().join(format!("tests/guests/{name}.S"));
    let stem = std::env::temp_dir().join(format!("prism-{name}-{nonce}-{}", std::process::id()));
    let (object, program) = (stem.with_extension("o"), stem.with_extension("elf"));
    let mut assemble = Command::new("gcc");
    assemble.args(["-c", "-x", "assembler-with-cpp", &format!("-DNONCE=\"{nonce}\"")]);
    assemble.arg(&source).arg("-o").arg(&object);
    let mut link = Command::new("ld");
    link.args(["-N", "-Ttext=0x200000", "-o"]).arg(&program).arg(&object);
    let made = run_tool(&mut assemble).and_then(|()| run_tool(&mut link)).and_then(|()| read(&program));
    let _ = (fs::remove_file(object), fs::remove_file(program));
    made.context(|| format!("cannot assemble {}", source.display()))
}

fn run_tool(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().context(|| format!("cannot run {name} (packages gcc and binutils)"))?;
    let messages = String::from_utf8_lossy(&out.stderr);
    let first = messages.lines().find(|line| line.contains("rror")).or(messages.lines().next());
    if out.status.success() { Ok(()) } else { Err(Error::new(format!("{name}: {}", first.unwrap_or("failed")))) }
}

/// A folder of its own: the outer cargo holds the lock of the usual one while tests run.
fn target_dir() -> PathBuf {
    let outer = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    outer.unwrap_or_else(|| paths::workspace().join("target")).join("machine")
}

fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(paths::workspace());
    // What cargo tells the program that it runs is not meant for another build.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_")
            || ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "RUSTFLAGS"].contains(&&*name)
        {
            command.env_remove(&key);
        }
    }
    command
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    // Cargo's own messages go to the user as they come; its progress display only to a terminal.
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::inherit()).status().context(|| "cannot run cargo".into())?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::new(format!("cargo could not build {what} (its messages are above)")))
    }
}

/// Whether the toolchain really has `core` for the bare target: rustc prints a folder in any case.
fn bare_target_installed() -> bool {
    let Ok(out) = rustc().args(["--print", "target-libdir", "--target", BARE]).output() else {
        return false;
    };
    let dir = String::from_utf8_lossy(&out.stdout);
    let Ok(files) = fs::read_dir(Path::new(dir.trim())) else {
        return false;
    };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// A cargo that builds the standard library's crates too, from sources outside the toolchain.
fn with_own_core() -> Result<(Command, PathBuf)> {
    let library = provision::rust_source(&rust_version()?)?;
    let mut command = cargo();
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", library)
        .args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
    Ok((command, target_dir().join("own-core")))
}

/// The version of the compiler in use.
pub fn rust_version() -> Result<String> {
    let out = rustc().arg("--version").output().context(|| "cannot run rustc".into())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.split_whitespace().nth(1).map(String::from).ok_or_else(|| Error::new("rustc --version says nothing"))
}

fn rustc() -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(paths::workspace());
    command
}
