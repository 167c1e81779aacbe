//! Where things lie: everything that is fetched or made is under `target/prism/`.

use std::path::{Path, PathBuf};

/// The folder that holds the workspace's `Cargo.toml`.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// `target/prism`, whatever `CARGO_TARGET_DIR` says: what was fetched serves every build.
pub fn prism() -> PathBuf {
    workspace().join("target/prism")
}

/// Logs and files of one machine run.
pub fn run(name: &str) -> PathBuf {
    prism().join("runs").join(name)
}
