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
    let core = Core::find()?;
    let (mut command, dir) = (core.build(), target_dir().join(core.folder()));
    command.args(variant.features());
    eprintln!("building the hypervisor image ({}) ...", core.name());
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

/// Where the image's `core` and `alloc` come from.
#[derive(Debug, PartialEq, Eq)]
enum Core {
    /// The toolchain has them for the bare target.
    Installed,
    /// They are built too, from this folder of sources outside the toolchain.
    Source(PathBuf),
}

impl Core {
    fn find() -> Result<Self> {
        let out = rustc().args(["--print", "target-libdir", "--target", BARE]).output();
        let folder = out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_string()).unwrap_or_default();
        if has_core(Path::new(&folder)) {
            return Ok(Self::Installed);
        }
        provision::rust_source(&rust_version()?).map(Self::Source)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Installed => "installed target",
            Self::Source(_) => "core built from the distribution's rust-src",
        }
    }

    /// Under the folder of builds: the same crates made against another `core` do not mix.
    fn folder(&self) -> &'static str {
        match self {
            Self::Installed => "",
            Self::Source(_) => "own-core",
        }
    }

    /// The command that builds the image.
    fn build(&self) -> Command {
        let mut command = cargo();
        if let Self::Source(library) = self {
            command
                .env("RUSTC_BOOTSTRAP", "1")
                .env("__CARGO_TESTS_ONLY_SRC_ROOT", library)
                .args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
        }
        command.args(["build", "--package", "boot", "--release", "--target", BARE]);
        command
    }
}

/// Whether a target's library folder really has `core`: rustc names a folder in any case.
fn has_core(folder: &Path) -> bool {
    let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.into_iter().any(|file| is_core(&file.file_name().to_string_lossy()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_target_is_no_target_yet() {
        let dir = std::env::temp_dir().join(format!("prism-core-{}", std::process::id()));
        assert!(!has_core(&dir));
        assert!(!has_core(Path::new("")));
        fs::create_dir_all(&dir).unwrap();
        for other in ["libcore-17.rmeta", "liballoc-17.rlib", "core-17.rlib"] {
            fs::write(dir.join(other), "").unwrap();
            assert!(!has_core(&dir), "{other}");
        }
        fs::write(dir.join("libcore-17.rlib"), "").unwrap();
        assert!(has_core(&dir));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn only_a_core_from_source_takes_the_unstable_way() {
        let words = |core: &Core| {
            let command = core.build();
            let environment = command.get_envs().filter(|(_, value)| value.is_some());
            let environment: Vec<_> = environment.map(|(name, _)| name.to_string_lossy().into_owned()).collect();
            let arguments = command.get_args().map(|word| word.to_string_lossy().into_owned());
            (arguments.collect::<Vec<_>>().join(" "), environment)
        };
        let plain = "build --package boot --release --target x86_64-unknown-none";
        assert_eq!(words(&Core::Installed), (plain.into(), vec![]));
        let (arguments, environment) = words(&Core::Source("/src/library".into()));
        assert!(arguments.starts_with("-Zbuild-std=core,alloc,compiler_builtins ") && arguments.ends_with(plain));
        assert_eq!(environment, ["RUSTC_BOOTSTRAP", "__CARGO_TESTS_ONLY_SRC_ROOT"]);
        assert_ne!(Core::Installed.folder(), Core::Source("/src/library".into()).folder());
    }
}
