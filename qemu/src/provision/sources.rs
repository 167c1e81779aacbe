//! Which distribution this is and which mirror its owner chose: read from the host's own apt configuration.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// The environment variable that names a Debian mirror, on hosts that are not Debian's.
pub const MIRROR: &str = "PRISM_MIRROR";
/// Where the package debian-archive-keyring puts the keys.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The host's distribution and the archive that its packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// `ID` of os-release: `debian`, `ubuntu`.
    pub id: String,
    /// `VERSION_CODENAME` of os-release.
    pub codename: String,
    /// Where the archive is, as the host's sources say it.
    pub uri: String,
    /// The keyring named by the entry, if it names one by path; else apt's own trust applies.
    pub signed_by: Option<String>,
}

/// One archive entry of either format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    types: Vec<String>,
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    enabled: bool,
}

impl Archive {
    /// Finds the main archive of the host's distribution, or takes the Debian mirror that the user names.
    pub fn of_host() -> Result<Self> {
        if let Ok(uri) = std::env::var(MIRROR) {
            return Ok(Self::debian(uri));
        }
        let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let id = os_field(&os, "ID").unwrap_or_else(|| "unknown".into());
        let codename = os_field(&os, "VERSION_CODENAME").unwrap_or_default();
        let entries = entries_of_host(Path::new("/etc/apt"));
        pick(&entries, &id, &codename).ok_or_else(|| {
            Error::new(format!(
                "no main archive of {id} {codename} in /etc/apt/sources.list*: set {MIRROR} to the address of a Debian \
                 mirror (apt and debian-archive-keyring must be installed)"
            ))
        })
    }

    fn debian(uri: String) -> Self {
        let key = Path::new(DEBIAN_KEYS);
        Self {
            id: "debian".into(),
            codename: "bookworm".into(),
            uri,
            signed_by: key.exists().then(|| DEBIAN_KEYS.into()),
        }
    }
}

fn os_field(os: &str, key: &str) -> Option<String> {
    os.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_string())
}

/// Reads `sources.list` and both kinds of files in `sources.list.d`.
fn entries_of_host(apt: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut files = vec![apt.join("sources.list")];
    if let Ok(dir) = fs::read_dir(apt.join("sources.list.d")) {
        files.extend(dir.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => entries.extend(text.lines().filter_map(one_line)),
            Some("sources") => entries.extend(deb822(&text)),
            _ => {}
        }
    }
    entries
}

/// `deb [signed-by=... other=...] uri suite component...`
fn one_line(line: &str) -> Option<Entry> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(String::from);
    Some(Entry {
        types: vec!["deb".into()],
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(String::from),
        enabled: true,
    })
}

/// Stanzas of `Field: value` with continuation lines.
fn deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut entry = Entry { enabled: true, ..Entry::default() };
    let mut field = String::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !entry.uris.is_empty() {
                entries.push(entry);
            }
            entry = Entry { enabled: true, ..Entry::default() };
            field.clear();
            continue;
        }
        let value = if line.starts_with([' ', '\t']) {
            line
        } else if let Some((name, value)) = line.split_once(':') {
            field = name.to_ascii_lowercase();
            value
        } else {
            continue;
        };
        let mut words = value.split_whitespace().map(String::from);
        match field.as_str() {
            "types" => entry.types.extend(words),
            "uris" => entry.uris.extend(words),
            "suites" => entry.suites.extend(words),
            "components" => entry.components.extend(words),
            // A key given inline is left to apt's own trust store.
            "signed-by" if entry.signed_by.is_none() => entry.signed_by = words.next().filter(|w| w.starts_with('/')),
            "enabled" => entry.enabled = words.next().is_none_or(|w| w != "no"),
            _ => {}
        }
    }
    entries
}

/// The first enabled entry that carries the host's own suite, or the name by which it goes.
fn pick(entries: &[Entry], id: &str, codename: &str) -> Option<Archive> {
    let aliases = ["stable", "oldstable", "testing", "unstable", "sid"];
    let usable = |entry: &&Entry| {
        entry.enabled
            && entry.types.iter().any(|t| t == "deb")
            && entry.components.iter().any(|c| c == "main")
            && !entry.uris.iter().any(|u| u.contains("security"))
    };
    let carries = |names: &[&str]| {
        entries
            .iter()
            .filter(usable)
            .find(|entry| entry.suites.iter().any(|s| names.contains(&s.trim_end_matches('/'))))
    };
    let entry = carries(&[codename]).or_else(|| carries(&aliases))?;
    Some(Archive {
        id: id.into(),
        codename: codename.into(),
        uri: entry.uris.first()?.clone(),
        signed_by: entry.signed_by.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\n contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
        Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";

    #[test]
    fn both_formats_name_the_same_archive() {
        let new = deb822(DEB822);
        assert_eq!(new.len(), 2);
        assert_eq!(new[0].components, ["main", "contrib"]);
        let old: Vec<_> = "deb-src http://mirror.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main # why\n"
            .lines()
            .filter_map(one_line)
            .collect();
        assert_eq!(old.len(), 1);
        assert_eq!(pick(&old, "debian", "bookworm"), pick(&new, "debian", "bookworm"));
        assert_eq!(pick(&new, "debian", "bookworm").unwrap().uri, "http://mirror.example/debian");
    }

    #[test]
    fn foreign_security_and_disabled_entries_are_not_the_archive() {
        let text = "Types: deb\nURIs: https://other.example/node\nSuites: nodistro\nComponents: main\n\n\
            Types: deb\nEnabled: no\nURIs: http://a.example/debian\nSuites: bookworm\nComponents: main\n\n\
            Types: deb\nURIs: http://security.example/\nSuites: bookworm\nComponents: main\n\n\
            Types: deb\nURIs: http://b.example/debian\nSuites: stable\nComponents: main\n";
        assert_eq!(pick(&deb822(text), "debian", "bookworm").unwrap().uri, "http://b.example/debian");
        assert_eq!(
            pick(
                &deb822("Types: deb\nURIs: http://x.example\nSuites: nodistro\nComponents: main\n"),
                "debian",
                "bookworm"
            ),
            None
        );
    }
}
