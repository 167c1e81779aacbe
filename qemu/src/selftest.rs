//! The test that an emulator must pass before Prism relies on it: our own image in it, with the guest `ladder` of
//! `tests/guests`, which climbs through modes, exits, injection and nested paging.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bundle::Bundle;
use crate::console::Console;
use crate::error::{Error, Result, make_dir, write};
use crate::lock::Lock;
use crate::machine::{End, Gpu, Kind, Machine, Outcome};
use crate::provision::Qemu;
use crate::{build, paths};

/// It takes some seconds; an emulator that hangs must not take for ever.
const LIMIT: Duration = Duration::from_secs(120);
/// What Prism writes to the exit device when every guest has powered off by itself.
const SUCCESS: End = End::Verdict(0x10);
const CONFIG: &str = "[[vm]]\nname = \"ladder\"\nmemory_mib = 32\nvcpus = 2\nkernel = \"ladder\"\n";

/// Verdicts of earlier tests: an emulator is judged once.
#[derive(Debug)]
pub struct Verdicts {
    dir: PathBuf,
}

impl Verdicts {
    /// Those of this workspace.
    pub fn of_workspace() -> Self {
        Self::at(paths::prism().join("verdicts"))
    }

    /// Those kept in `dir`.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Whether this QEMU runs the ladder on machines of this kind; the error says in what it failed.
    pub fn judge(&self, kind: Kind, qemu: &Qemu) -> Result<()> {
        make_dir(&self.dir)?;
        let _lock = Lock::take(&format!("verdict.{}", kind.name()))?;
        let key = key(kind, qemu)?;
        let path = self.dir.join(kind.name());
        if let Some(verdict) = fs::read_to_string(&path).ok().and_then(|text| parse(&text, &key)) {
            return verdict;
        }
        eprintln!("testing QEMU {} ({}) on machine {} ...", qemu.version, qemu.program.display(), kind.name());
        let (outcome, nonce) = climb(kind, qemu)?;
        let complaint = fs::read_to_string(outcome.dir.join("emulator.log")).unwrap_or_default();
        let verdict = verdict(&outcome, &nonce, &complaint);
        // One that took too long may have had a busy host.
        if outcome.end != End::TimedOut {
            let word = verdict.as_ref().err().map_or_else(|| PASSED.into(), ToString::to_string);
            write(&path, format!("{key}\n{word}\n"))?;
        }
        verdict
    }
}

const PASSED: &str = "passed";

/// What a verdict is good for: this program, and on KVM this kernel.
fn key(kind: Kind, qemu: &Qemu) -> Result<String> {
    let program = fs::canonicalize(&qemu.program).unwrap_or_else(|_| qemu.program.clone());
    let unreadable = |error| Error::new(format!("cannot read {}: {error}", program.display()));
    let file = fs::metadata(&program).map_err(unreadable)?;
    let changed = file.modified().map_err(unreadable)?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let kernel = match kind {
        Kind::VmxKvm => fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
        _ => String::new(),
    };
    Ok(format!("1 {} {} {} {} {}", program.display(), qemu.version, file.len(), changed.as_nanos(), kernel.trim()))
}

fn parse(text: &str, key: &str) -> Option<Result<()>> {
    let (told_of, verdict) = text.trim_end().split_once('\n')?;
    (told_of == key).then(|| if verdict == PASSED { Ok(()) } else { Err(Error::new(verdict)) })
}

/// Runs the ladder; gives its nonce too.
fn climb(kind: Kind, qemu: &Qemu) -> Result<(Outcome, String)> {
    let image = build::image(build::Variant::Product)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nonce = format!("{:08x}{:08x}", time.subsec_nanos(), std::process::id());
    let bundle = Bundle::new(CONFIG).file("ladder", &build::assembled_guest("ladder", &nonce)?).finish();
    let machine = Machine::of(kind, &format!("selftest-{}", kind.name()), &image).qemu(qemu);
    let outcome = machine.gpu(Gpu::None).memory_mib(512).module(bundle).arguments("once").run(LIMIT)?;
    Ok((outcome, nonce))
}

/// What the ladder's run tells about its emulator, which wrote `complaint` besides.
fn verdict(outcome: &Outcome, nonce: &str, complaint: &str) -> Result<()> {
    let console = Console::parse(&outcome.serial);
    let lines = console.guest("ladder");
    let bad = lines.iter().find(|line| line.starts_with("rung ") && !line.trim_end().ends_with(" ok"));
    let top = lines.iter().any(|line| line.trim_end() == format!("done {nonce}"));
    if outcome.end == SUCCESS && bad.is_none() && top {
        return Ok(());
    }
    let last = lines.iter().rev().find(|line| line.starts_with("rung "));
    let why = match (bad, complaint.lines().next(), last, console.prism.last()) {
        (Some(rung), ..) => rung.trim().to_string(),
        (_, Some(line), ..) => line.trim().to_string(),
        (.., Some(rung), _) => format!("nothing after \"{}\" ({:?})", rung.trim(), outcome.end),
        (.., Some(line)) => format!("{line} ({:?})", outcome.end),
        _ => format!("the image said nothing ({:?})", outcome.end),
    };
    Err(Error::new(format!("the self-test failed: {why}; see {}", outcome.dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(end: End, serial: &str, complaint: &str) -> String {
        let outcome =
            Outcome { end, serial: serial.into(), autopsy: String::new(), dir: "runs/x".into(), time: Duration::ZERO };
        verdict(&outcome, "17", complaint).map_or_else(|error| error.to_string(), |()| "passed".into())
    }

    #[test]
    fn only_a_whole_climb_passes() {
        let whole = "[ladder] rung cpuid ok\r\n[ladder] done 17\r\n";
        assert_eq!(judged(SUCCESS, whole, ""), "passed");
        let cases = [
            (SUCCESS, "[ladder] rung nmi bad\n[ladder] done 17\n", "", "rung nmi bad"),
            (SUCCESS, "[ladder] rung cpuid ok\n[ladder] done 18\n", "", "nothing after \"rung cpuid ok\""),
            (End::TimedOut, whole, "", "TimedOut"),
            (End::Emulator(1), "", "qemu: no such CPU\nmore\n", "qemu: no such CPU"),
            (End::Verdict(0x15), "prism: cpu: no AMD-V\n", "", "cpu: no AMD-V"),
            (End::PowerOff, "", "", "said nothing (PowerOff)"),
        ];
        for (end, serial, complaint, why) in cases {
            let text = judged(end, serial, complaint);
            assert!(text.contains(why) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_verdict_is_for_one_program_only() {
        assert!(parse("1 q 10.1\npassed\n", "1 q 10.1").unwrap().is_ok());
        assert_eq!(parse("1 q 10.1\nit failed\n", "1 q 10.1").unwrap().unwrap_err().to_string(), "it failed");
        assert!(parse("1 q 10.1\npassed\n", "1 q 10.2").is_none());
        assert!(parse("", "1 q 10.2").is_none());
    }
}
