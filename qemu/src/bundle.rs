//! The bundle that Prism boots with: one cpio archive of `prism.toml` and the files that it names.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cpio::Archive;
use crate::error::{Context, Error, Result, read};

/// A bundle being put together.
#[derive(Debug)]
pub struct Bundle {
    archive: Archive,
    names: BTreeSet<String>,
}

impl Bundle {
    /// A bundle with this configuration, which the hypervisor checks.
    pub fn new(config: &str) -> Self {
        let mut archive = Archive::new();
        archive.file("prism.toml", config.as_bytes());
        Self { archive, names: BTreeSet::from(["prism.toml".into()]) }
    }

    /// A bundle of a configuration file and of what it names: in `made` by name, else a file beside it.
    pub fn of(config: &Path, mut made: impl FnMut(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let text = String::from_utf8(read(config)?).context(|| format!("{} is not text", config.display()))?;
        let mut bundle = Self::new(&text);
        let folder = config.parent().unwrap_or(Path::new("."));
        for name in named_files(&text).context(|| config.display().to_string())? {
            if bundle.names.contains(&name) {
                continue;
            }
            let content = match made(&name)? {
                Some(content) => content,
                None => read(&folder.join(&name)).context(|| format!("{} names {name}", config.display()))?,
            };
            bundle = bundle.file(&name, &content);
        }
        Ok(bundle)
    }

    /// Adds a file.
    pub fn file(mut self, name: &str, content: &[u8]) -> Self {
        if self.names.insert(name.into()) {
            self.archive.file(name, content);
        }
        self
    }

    /// The archive's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.archive.finish()
    }
}

/// The kernels, initrds and firmware that a configuration names.
pub fn named_files(config: &str) -> Result<Vec<String>> {
    let name = |vm: &toml::Value, key: &str| vm.get(key)?.as_str().map(String::from);
    Ok(vms(config)?.iter().flat_map(|vm| ["kernel", "initrd", "firmware"].map(|key| name(vm, key))).flatten().collect())
}

/// How many guests of a configuration get a vGPU.
pub fn guests_with_gpu(config: &str) -> Result<usize> {
    Ok(vms(config)?.iter().filter(|vm| vm.get("gpu").is_some()).count())
}

fn vms(config: &str) -> Result<Vec<toml::Value>> {
    let mut table: toml::Table = config.parse().map_err(|e: toml::de::Error| Error::new(one_line(&e.to_string())))?;
    match table.remove("vm") {
        Some(toml::Value::Array(vms)) => Ok(vms),
        _ => Ok(Vec::new()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_from_the_maker_or_from_beside_the_configuration() {
        let dir = std::env::temp_dir().join(format!("prism-bundle-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let config = dir.join("p.toml");
        std::fs::write(&config, "[[vm]]\nkernel = 'k'\ninitrd = 'i'\n[[vm]]\nkernel = 'k'\n").unwrap();
        std::fs::write(dir.join("i"), "from disk").unwrap();
        let made = |name: &str| Ok((name == "k").then(|| b"made".to_vec()));
        let bytes = Bundle::of(&config, made).unwrap().finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("made").count(), 1);
        assert!(text.contains("from disk"));
        let missing = Bundle::of(&config, |name| Ok((name == "i").then(Vec::new))).unwrap_err();
        assert!(missing.to_string().contains("names k"), "{missing}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
