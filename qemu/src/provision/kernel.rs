//! Guest kernels: the distribution's own, unmodified, with the modules that the guests load.

use std::fs;
use std::path::{Path, PathBuf};

use super::module::Index;
use super::sources::{Archive, MIRROR};
use super::{Item, Store, unpack};
use crate::error::{Context, Error, Result, make_dir, remove_dir, write};
use crate::paths;

/// Which kernel a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// Debian 12's for virtual machines: small, quick to start, without i915.
    V6_1Cloud,
    /// Debian 12's.
    V6_1,
    /// Debian 13's.
    V6_12,
    /// That of Debian's development suite.
    Newest,
}

/// A kernel on disk.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Plain modules in load order: i915 and what it needs, unless the kernel has none.
    pub modules: Vec<PathBuf>,
    /// `uname -r` of it.
    pub release: String,
}

/// What guests may want to load, dependencies aside.
const MODULES: &[&str] = &["i915"];

impl KernelKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::V6_1Cloud, Self::V6_1, Self::V6_12, Self::Newest];

    /// The name on the command line and of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1Cloud => "6.1-cloud",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::V6_1Cloud => ("bookworm", "linux-image-cloud-amd64"),
            Self::V6_1 => ("bookworm", "linux-image-amd64"),
            Self::V6_12 => ("trixie", "linux-image-amd64"),
            Self::Newest => ("sid", "linux-image-amd64"),
        }
    }

    /// Finds or fetches the kernel.
    pub fn get(self) -> Result<Kernel> {
        let item = Item::new(&format!("kernels/{}", self.name()), &format!("1 {}", MODULES.join(" ")));
        let release = item.get(&format!("kernel {}", self.name()), |store| self.fetch(store, &item.dir))?;
        let list = fs::read_to_string(item.dir.join("modules.order"))
            .context(|| format!("cannot read {}/modules.order", item.dir.display()))?;
        Ok(Kernel {
            image: item.dir.join("vmlinuz"),
            modules: list.lines().map(|name| item.dir.join("modules").join(name)).collect(),
            release,
        })
    }

    fn fetch(self, store: &Store, dir: &Path) -> Result<String> {
        if store.archive.id != "debian" {
            return Err(Error::new(format!(
                "the demo's kernels are Debian's and this host is {}: set {MIRROR} to the address of a Debian mirror (apt \
                 and debian-archive-keyring must be installed), or give a configuration with kernels of your own",
                store.archive.id
            )));
        }
        let (suite, meta) = self.package();
        let suites = store.suites(&[suite])?;
        let absent = |what: &str| Error::new(format!("suite {suite} names {what} but lacks it"));
        let image = suites.dependency(meta, "linux-image-")?.ok_or_else(|| absent(meta))?;
        let release = image.trim_start_matches("linux-image-").to_string();
        // Since 7.x the image package is a shell around these two.
        let mut packages = vec![image];
        for part in ["linux-binary-", "linux-modules-"] {
            let part = suites.dependency(&packages[0], &format!("{part}{release}"))?;
            packages.extend(part);
        }
        let mut debs = Vec::new();
        for package in &packages {
            let version = suites.version(package, |_| true)?.ok_or_else(|| absent(package))?;
            debs.push(suites.fetch(package, &version)?);
        }
        let scratch = paths::prism().join("apt/unpacked");
        unpack::fresh(&scratch, &debs)?;
        take_kernel(&scratch, dir, &release)?;
        remove_dir(&scratch)?;
        Ok(release)
    }
}

/// Copies the image and the wanted modules out of an unpacked package.
fn take_kernel(from: &Path, dir: &Path, release: &str) -> Result<()> {
    remove_dir(dir)?;
    make_dir(&dir.join("modules"))?;
    let modules = [format!("usr/lib/modules/{release}"), format!("lib/modules/{release}")]
        .map(|folder| from.join(folder))
        .into_iter()
        .find(|folder| folder.is_dir())
        .ok_or_else(|| Error::new(format!("no modules in the package of {release}")))?;
    let image = [from.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| Error::new(format!("no vmlinuz in the package of {release}")))?;
    fs::copy(&image, dir.join("vmlinuz")).context(|| format!("cannot copy {}", image.display()))?;
    let index = Index::scan(&modules)?;
    let mut loaded = Vec::new();
    for name in MODULES {
        // A kernel without the module is fine: the cloud kernel has no i915.
        index.closure(name, &mut loaded)?;
    }
    let mut order = String::new();
    for (name, content) in &loaded {
        write(&dir.join("modules").join(format!("{name}.ko")), content)?;
        order.push_str(&format!("{name}.ko\n"));
    }
    write(&dir.join("modules.order"), order)
}

/// The suite for guests' user space: any will do, this one's lists are needed for the kernel anyway.
pub fn oldest_suite(archive: &Archive) -> &str {
    match archive.id.as_str() {
        "debian" => "bookworm",
        _ => &archive.codename,
    }
}
