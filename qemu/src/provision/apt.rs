//! Packages by the host's own apt, run on private state.
//!
//! apt checks signatures and hashes, knows the host's proxies and mirror schemes, and resolves dependencies.
//! Here it gets its own source list, package lists, cache and an empty list of installed packages, so that it works
//! without root and the system's own state stays as it is.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::sources::Archive;
use crate::error::{Context, Error, Result, make_dir, write};
use crate::progress::Progress;

/// A set of suites of one archive, with package lists of its own.
#[derive(Debug)]
pub struct Suites {
    names: Vec<String>,
    dir: PathBuf,
    /// Shared by all sets: a list that one has fetched serves the next.
    lists: PathBuf,
    debs: PathBuf,
}

/// A package file that apt would fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    file: String,
    size: u64,
}

impl Suites {
    /// Opens the suites `names` (a later name is preferred), fetching their package lists if they are not there.
    pub fn open(root: &Path, archive: &Archive, names: &[&str]) -> Result<Self> {
        let suites = Self {
            names: names.iter().map(|n| (*n).to_string()).collect(),
            dir: root.join(names.join("+")),
            lists: root.join("lists"),
            debs: root.join("debs"),
        };
        make_dir(&suites.debs.join("partial"))?;
        make_dir(&suites.lists.join("partial"))?;
        for sub in ["empty", "none/partial"] {
            make_dir(&suites.dir.join(sub))?;
        }
        write(&suites.dir.join("status"), "")?;
        write(&suites.dir.join("sources.list"), suites.source_list(archive))?;
        write(&suites.dir.join("apt.conf"), suites.config())?;
        if !suites.dir.join("fresh").exists() {
            suites.update()?;
        }
        Ok(suites)
    }

    /// The newest version of `package` whose upstream version satisfies `accept`, if the suites have one.
    pub fn version(&self, package: &str, accept: impl Fn(&str) -> bool) -> Result<Option<String>> {
        let out = self.cache(&["madison", package])?;
        Ok(out
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_string())
            .find(|version| accept(upstream(version))))
    }

    /// The first dependency of `package` whose name begins with `prefix`.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let out = self.cache(&["depends", package])?;
        let mut names = out.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.find(|name| name.starts_with(prefix)).map(String::from))
    }

    /// Fetches one package, nothing that it depends on; gives the file's path.
    pub fn fetch(&self, package: &str, version: &str) -> Result<PathBuf> {
        let spec = format!("{package}={version}");
        let mut files = self.get(&["download", &spec], &spec)?;
        files.pop().ok_or_else(|| Error::new(format!("apt names no file for {spec}")))
    }

    /// Fetches a package and all that it depends on; gives the files' paths.
    pub fn fetch_closure(&self, package: &str, version: &str) -> Result<Vec<PathBuf>> {
        let spec = format!("{package}={version}");
        let target = self.names.last().map_or("", String::as_str);
        self.get(&["-t", target, "--download-only", "-y", "install", &spec], &spec)
    }

    fn source_list(&self, archive: &Archive) -> String {
        let key = archive.signed_by.as_ref().map_or(String::new(), |k| format!(" signed-by={k}"));
        let line = |suite: &String| format!("deb [target=Packages{key}] {} {suite} main\n", archive.uri);
        self.names.iter().map(line).collect()
    }

    /// The host's hooks must not run (some clean the system's cache), its proxies and transports must stay.
    fn config(&self) -> String {
        let dir = self.dir.display();
        format!(
            "#clear APT::Update;\n#clear DPkg;\n\
             Dir::State \"{dir}/\";\nDir::State::lists \"{}/\";\nDir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}/\";\nDir::Cache::archives \"{}/\";\nDir::Log \"{dir}/\";\n\
             Dir::Cache::pkgcache \"{dir}/pkgcache.bin\";\nDir::Cache::srcpkgcache \"\";\n\
             Dir::Etc::sourcelist \"{dir}/sources.list\";\nDir::Etc::sourceparts \"{dir}/empty\";\n\
             Dir::Etc::preferences \"{dir}/none\";\nDir::Etc::preferencesparts \"{dir}/empty\";\n\
             APT::Get::List-Cleanup \"false\";\nAPT::Sandbox::User \"root\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Install-Recommends \"false\";\nAPT::Keep-Downloaded-Packages \"true\";\n\
             APT::Update::Error-Mode \"any\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Retries \"3\";\n\
             Acquire::Languages \"none\";\nAcquire::GzipIndexes \"false\";\n",
            self.lists.display(),
            self.debs.display()
        )
    }

    fn update(&self) -> Result<()> {
        let what = format!("fetching the package lists of {}", self.names.join(", "));
        self.apt_get(&["update"], &self.dir, Progress::start(&what, None))?;
        write(&self.dir.join("fresh"), "")
    }

    /// Fetches what `arguments` ask for; once more with new package lists if the mirror has moved on.
    fn get(&self, arguments: &[&str], spec: &str) -> Result<Vec<PathBuf>> {
        match self.get_once(arguments, spec) {
            Ok(files) => Ok(files),
            Err(first) => {
                self.update()?;
                self.get_once(arguments, spec).map_err(|_| first)
            }
        }
    }

    fn get_once(&self, arguments: &[&str], spec: &str) -> Result<Vec<PathBuf>> {
        // Against an empty cache, since apt leaves out what it has.
        let nothing = format!("Dir::Cache::archives={}/none/", self.dir.display());
        let listing = self.run("apt-get", &[&["-o", &nothing, "--print-uris"], arguments].concat())?;
        let wanted = parse_uris(&listing);
        let missing: Vec<_> = wanted.iter().filter(|w| !self.has(w)).collect();
        if !missing.is_empty() {
            let bytes = missing.iter().map(|w| w.size).sum();
            let what = match missing.len() {
                1 => format!("fetching {spec}"),
                n => format!("fetching {spec} ({n} packages)"),
            };
            self.apt_get(arguments, &self.debs, Progress::start(&what, Some(bytes)))?;
        }
        if let Some(lost) = wanted.iter().find(|w| !self.has(w)) {
            return Err(Error::new(format!("apt did not deliver {}", lost.file)));
        }
        Ok(wanted.iter().map(|w| self.debs.join(&w.file)).collect())
    }

    fn has(&self, wanted: &Wanted) -> bool {
        fs::metadata(self.debs.join(&wanted.file)).is_ok_and(|m| m.len() == wanted.size)
    }

    /// Runs apt-get in `folder` with its progress reports turned into ours.
    fn apt_get(&self, arguments: &[&str], folder: &Path, mut progress: Progress) -> Result<()> {
        let mut child = self
            .command("apt-get")
            .args(["-o", "APT::Status-Fd=1"])
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| "cannot run apt-get".into())?;
        // stderr is short (apt's own messages); a thread keeps both pipes flowing.
        let stderr = child.stderr.take();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.map(|mut pipe| pipe.read_to_string(&mut text));
            text
        });
        for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(|l| l.ok()) {
            if let Some(permille) = parse_status(&line) {
                progress.update(permille);
            }
        }
        let status = child.wait().context(|| "apt-get".into())?;
        let messages = reader.join().unwrap_or_default();
        if status.success() {
            progress.finish();
            return Ok(());
        }
        progress.abandon();
        Err(Error::new(format!("apt-get {}: {}", arguments.last().unwrap_or(&""), first_error(&messages))))
    }

    fn cache(&self, arguments: &[&str]) -> Result<String> {
        self.run("apt-cache", arguments)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let out = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context(|| format!("cannot run {program}"))?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let messages = String::from_utf8_lossy(&out.stderr);
        Err(Error::new(format!("{program} {}: {}", arguments.join(" "), first_error(&messages))))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.dir.join("apt.conf")).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// A Debian version without epoch and revision: `1:11.1.3+ds-1~bpo13+1` is `11.1.3+ds`.
pub fn upstream(version: &str) -> &str {
    let rest = version.split_once(':').map_or(version, |(_, rest)| rest);
    rest.rsplit_once('-').map_or(rest, |(upstream, _)| upstream)
}

/// The leading numbers of a version, for comparing: `11.1.3+ds` is [11, 1, 3].
pub fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(""))
        .map_while(|digits| digits.parse().ok())
        .collect()
}

/// Lines `'uri' file size hash` of `--print-uris`.
fn parse_uris(listing: &str) -> Vec<Wanted> {
    let parse = |line: &str| {
        let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
        Some(Wanted { file: words.next()?.to_string(), size: words.next()?.parse().ok()? })
    };
    listing.lines().filter_map(parse).collect()
}

/// `dlstatus:item:percent:text` as per mille.
fn parse_status(line: &str) -> Option<u64> {
    let percent: f32 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    Some((percent * 10.0) as u64)
}

fn first_error(messages: &str) -> String {
    let lines = || messages.lines().filter(|l| !l.trim().is_empty());
    let chosen = lines().find(|l| l.starts_with("E:")).or_else(|| lines().next_back());
    chosen.unwrap_or("failed without a message").trim_start_matches("E:").trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(upstream("1:11.1.3+ds-1~bpo13+1"), "11.1.3+ds");
        assert_eq!(numbers("11.1.3+ds"), [11, 1, 3]);
        assert_eq!(numbers("1.95.0+dfsg1"), [1, 95, 0]);
        assert!(numbers("9.2") < numbers("11.1"));
    }

    #[test]
    fn apt_listings() {
        let listing = "Reading package lists...\n'http://m/x_1%3a2_amd64.deb' x_1%3a2_amd64.deb 42 SHA256:00\n";
        assert_eq!(parse_uris(listing), [Wanted { file: "x_1%3a2_amd64.deb".into(), size: 42 }]);
        assert_eq!(parse_status("dlstatus:3:12.5000:Retrieving file 3 of 9"), Some(125));
        assert_eq!(parse_status("pmstatus:x"), None);
        assert_eq!(first_error("W: hm\nE: Unable to fetch\n"), "Unable to fetch");
    }
}
