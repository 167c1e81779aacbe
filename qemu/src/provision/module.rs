//! Kernel modules: which others one needs, in load order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result, read};

/// Every module file below a kernel's module folder, by its name with `_` for `-`.
#[derive(Debug, Default)]
pub struct Index {
    files: BTreeMap<String, PathBuf>,
}

impl Index {
    /// Looks through `dir` and what is below it.
    pub fn scan(dir: &Path) -> Result<Self> {
        let mut index = Self::default();
        let mut pending = vec![dir.to_path_buf()];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(&dir).context(|| format!("cannot list {}", dir.display()))?.flatten() {
                let path = entry.path();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => pending.push(path),
                    _ => index.add(path),
                }
            }
        }
        Ok(index)
    }

    fn add(&mut self, path: PathBuf) {
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.split_once(".ko"))
            .map(|(stem, _)| stem.replace('-', "_"));
        if let Some(name) = name {
            self.files.insert(name, path);
        }
    }

    /// The contents of `wanted` and of all that they depend on, each after its dependencies; `None` for a name that
    /// this kernel has no module of.
    pub fn closure(&self, wanted: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> Result<Option<()>> {
        let Some(path) = self.files.get(wanted) else {
            return Ok(None);
        };
        if loaded.iter().any(|(name, _)| name == wanted) {
            return Ok(Some(()));
        }
        let content = decompress(path)?;
        for dependency in depends(&content) {
            if self.closure(&dependency, loaded)?.is_none() {
                return Err(Error::new(format!("module {wanted} needs {dependency}, which its package lacks")));
            }
        }
        loaded.push((wanted.to_string(), content));
        Ok(Some(()))
    }
}

/// The plain module, whatever the kernel packs its modules with.
fn decompress(path: &Path) -> Result<Vec<u8>> {
    let raw = read(path)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => {
            let mut plain = Vec::new();
            lzma_rs::xz_decompress(&mut raw.as_slice(), &mut plain)
                .map_err(|e| Error::new(format!("cannot decompress {}: {e:?}", path.display())))?;
            Ok(plain)
        }
        Some("ko") => Ok(raw),
        _ => Err(Error::new(format!("{}: unknown compression of a kernel module", path.display()))),
    }
}

/// The `depends=` entry of the module's information section: strings that end with NUL.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"depends=";
    let found = module.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(key));
    let list = String::from_utf8_lossy(found.unwrap_or_default()).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closure_puts_dependencies_first() {
        let dir = std::env::temp_dir().join(format!("prism-modules-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("deep")).unwrap();
        std::fs::write(dir.join("deep/a-one.ko"), b"\x7fELF\0license=X\0depends=b_two,c\0name=a\0").unwrap();
        std::fs::write(dir.join("b-two.ko"), b"\0depends=c\0").unwrap();
        std::fs::write(dir.join("c.ko"), b"\0depends=\0").unwrap();
        let index = Index::scan(&dir).unwrap();
        let mut loaded = Vec::new();
        assert!(index.closure("a_one", &mut loaded).unwrap().is_some());
        assert!(index.closure("missing", &mut loaded).unwrap().is_none());
        assert_eq!(loaded.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["c", "b_two", "a_one"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
