//! The rules of the workspace that a compiler does not know: which crate may see which, where `unsafe` may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rows of crates, lowest first: a crate depends on lower rows only.
const ROWS: [&[&str]; 4] = [&["hv-defs", "gvt-defs"], &["hv-dev", "hv-emu", "gvt-model"], &["hv", "gvt"], &["boot"]];
/// Depends on what it tests and runs; nothing depends on it but the tests.
const SIDE: [&str; 7] = ["qemu", "tests", "bare", "churn", "fuzz-targets", "protocol", "smoke"];
/// Crates with `unsafe` code in them.
const MAY_BE_UNSAFE: [&str; 6] = ["hv", "boot", "qemu", "bare", "churn", "smoke"];
/// Where in `qemu` it may be: the GPU process maps the emulator's memory.
const UNSAFE_IN_QEMU: &str = "qemu/src/server/";

#[test]
fn crates_depend_on_lower_rows_only() {
    let packages = packages();
    let row = |name: &str| ROWS.iter().position(|row| row.contains(&name));
    for (name, package) in &packages {
        for dependency in package.dependencies.iter().filter(|d| packages.contains_key(*d)) {
            let allowed = match (row(name), row(dependency)) {
                (Some(own), Some(other)) => other < own,
                (Some(_), None) => false,
                (None, _) => SIDE.contains(&name.as_str()),
            };
            assert!(allowed, "{name} must not depend on {dependency}");
        }
    }
    let known: BTreeSet<&str> = ROWS.concat().into_iter().chain(SIDE).collect();
    assert_eq!(packages.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn mediator_and_hypervisor_do_not_know_each_other() {
    for (name, package) in packages() {
        let other = if name.starts_with("hv") { "gvt" } else { "hv" };
        let mixed = |d: &&String| d.as_str() == other || d.starts_with(&format!("{other}-"));
        if name.starts_with("hv") || name.starts_with("gvt") {
            assert_eq!(package.dependencies.iter().find(mixed), None, "{name}");
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_elsewhere() {
    for (name, package) in packages() {
        let files = rust_files(&package.dir);
        if !MAY_BE_UNSAFE.contains(&name.as_str()) {
            let root = fs::read_to_string(package.dir.join("src/lib.rs")).unwrap_or_default();
            assert!(root.contains("#![forbid(unsafe_code)]"), "{name}/src/lib.rs must forbid unsafe code");
        } else if name == "qemu" {
            for file in files.iter().filter(|file| !file.display().to_string().contains(UNSAFE_IN_QEMU)) {
                assert!(!fs::read_to_string(file).unwrap().contains("unsafe {"), "{}", file.display());
            }
        }
    }
}

#[test]
fn every_folder_is_in_the_readme() {
    let root = qemu::paths::workspace();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let listed =
        Command::new("git").arg("-C").arg(&root).args(["ls-tree", "-d", "--name-only", "HEAD"]).output().unwrap();
    for folder in String::from_utf8(listed.stdout).unwrap().lines() {
        assert!(readme.contains(&format!("`{folder}/`")), "README.md does not say what {folder}/ is");
    }
}

/// Above the trait of `hv::vendor` nobody knows which virtualization extension a CPU has (design D2).
#[test]
fn vendors_stay_below_their_trait() {
    let root = qemu::paths::workspace();
    let below = ["hv/src/svm", "hv/src/vmx", "hv/src/backend.rs"].map(|path| root.join(path).display().to_string());
    let words = ["svm", "vmx", "vmcb", "vmcs", "asid", "vpid"];
    let folders = ["hv/src", "hv/dev/src", "boot/src", "gvt/src"];
    for file in folders.iter().flat_map(|folder| rust_files(&root.join(folder))) {
        let path = file.display().to_string();
        if below.iter().any(|own| path.starts_with(own)) || path.contains("test") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default().trim().to_lowercase();
            let named = words.iter().find(|word| code.contains(*word));
            assert!(named.is_none() || code == "mod svm;" || code == "mod vmx;", "{path}:{number} names {named:?}");
        }
    }
}

#[test]
fn files_are_short() {
    for (_, package) in packages() {
        for file in rust_files(&package.dir) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines < 900, "{} has {lines} lines", file.display());
        }
    }
}

struct Package {
    dir: PathBuf,
    /// Names of normal and build dependencies, optional ones included.
    dependencies: Vec<String>,
}

fn packages() -> BTreeMap<String, Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .current_dir(qemu::paths::workspace())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

fn package(json: &serde_json::Value) -> (String, Package) {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    let dependencies = json["dependencies"].as_array().unwrap().iter();
    let manifest = PathBuf::from(text(&json["manifest_path"]));
    let package = Package {
        dir: manifest.parent().unwrap().to_path_buf(),
        dependencies: dependencies.filter(|d| d["kind"] != "dev").map(|d| text(&d["name"])).collect(),
    };
    (text(&json["name"]), package)
}

/// The Rust files of a package, those of packages in folders below it left out.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                let other = path.join("Cargo.toml").exists() || path.ends_with("target");
                pending.extend((!other).then_some(path));
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files
}
