//! Machine `vmx-kvm`: to be had where the host's KVM gives its guests VT-x. That /dev/kvm exists says nothing: some
//! kernels offer it without, so KVM itself is asked, through QEMU, and then the ladder of small guests must pass on it.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Kind;
use crate::ask::{Answer, ask};
use crate::error::{Context, Error, Result};
use crate::provision::Qemu;
use crate::selftest::Verdicts;

const DEVICE: &str = "/dev/kvm";
/// How long QEMU may take to say what KVM can.
const LIMIT: Duration = Duration::from_secs(60);
/// What a guest's CPU looks like under KVM (QEMU's QMP reference, query-cpu-model-expansion).
const QUESTION: &str = "{\"execute\":\"qmp_capabilities\"}\n\
    {\"execute\":\"query-cpu-model-expansion\",\"arguments\":{\"type\":\"full\",\"model\":{\"name\":\"host\"}}}\n\
    {\"execute\":\"quit\"}\n";
/// What Prism cannot do without, by QEMU's names.
const NEEDED: [(&str, &str); 3] = [
    ("vmx", "no VT-x"),
    ("vmx-ept", "VT-x without EPT"),
    ("vmx-unrestricted-guest", "VT-x without unrestricted guests"),
];

/// The QEMU that runs it; the error says in one line why it is not to be had.
pub fn available() -> Result<Qemu> {
    let why = || format!("machine {} is not to be had here", Kind::VmxKvm.name());
    File::options().read(true).write(true).open(DEVICE).map_err(|error| closed(&error)).context(why)?;
    let qemu = Qemu::get()?;
    let mut command = Command::new(&qemu.program);
    command.args(["-M", "none,accel=kvm", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
    let answer = ask(&mut command, QUESTION, LIMIT).context(why)?;
    offered(&answer, &parameters(Path::new("/sys/module/kvm_intel/parameters"))).context(why)?;
    Verdicts::of_workspace().judge(Kind::VmxKvm, &qemu).context(why)?;
    Ok(qemu)
}

/// Why the device cannot be used.
fn closed(error: &io::Error) -> Error {
    Error::new(match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {DEVICE}"),
        io::ErrorKind::PermissionDenied => format!("{DEVICE} is closed to this user: join the group kvm"),
        _ => format!("{DEVICE} cannot be opened: {error}"),
    })
}

/// The host's settings that switch off what is needed, as `name=value`.
fn parameters(folder: &Path) -> Vec<String> {
    let off = |name: &str| fs::read_to_string(folder.join(name)).is_ok_and(|value| ["N", "0"].contains(&value.trim()));
    let names = ["nested", "ept", "unrestricted_guest"].into_iter();
    names.filter(|name| off(name)).map(|name| format!("{name}=1")).collect()
}

/// Whether KVM gives its guests what is needed; `off` are the settings that would have to change.
fn offered(answer: &Answer, off: &[String]) -> Result<()> {
    let replies: Vec<Value> = answer.text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let Some(cpu) = replies.iter().find_map(|reply| reply.pointer("/return/model/props")) else {
        let refused = replies.iter().find_map(|reply| reply.pointer("/error/desc")?.as_str());
        let why = refused.or(answer.complaint.lines().next()).unwrap_or("QEMU says nothing");
        return Err(Error::new(format!("KVM does not work: {}", why.trim())));
    };
    let lacks = |(name, _): &&(&str, &str)| cpu.get(name) != Some(&Value::Bool(true));
    match NEEDED.iter().find(lacks) {
        None => Ok(()),
        Some((_, what)) if off.is_empty() => Err(Error::new(format!("KVM gives its guests {what}"))),
        Some((_, what)) => {
            Err(Error::new(format!("KVM gives its guests {what}: load kvm_intel with {}", off.join(" "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str, complaint: &str, off: &[String]) -> String {
        let answer = Answer { text: text.into(), complaint: complaint.into() };
        offered(&answer, off).map_or_else(|error| error.to_string(), |()| "offered".into())
    }

    fn cpu(properties: &str) -> String {
        format!(
            "{{\"QMP\": {{\"version\": {{}}}}}}\r\n{{\"return\": {{}}}}\r\n\
             {{\"return\": {{\"model\": {{\"name\": \"host\", \"props\": {{{properties}}}}}}}}}\r\n"
        )
    }

    #[test]
    fn only_whole_vt_x_is_enough() {
        let whole = cpu("\"vmx\": true, \"vmx-ept\": true, \"vmx-unrestricted-guest\": true");
        assert_eq!(why(&whole, "", &[]), "offered");
        let cases = [
            (cpu("\"vmx\": false, \"svm\": true"), "no VT-x"),
            (cpu("\"svm\": false"), "no VT-x"),
            (cpu("\"vmx\": true, \"vmx-ept\": false"), "without EPT"),
            (cpu("\"vmx\": true, \"vmx-ept\": true"), "without unrestricted guests"),
        ];
        for (text, words) in cases {
            let line = why(&text, "a warning", &[]);
            assert!(line.contains(words) && line.starts_with("KVM gives"), "{line}");
        }
        let line = why(&cpu("\"vmx\": false"), "", &["nested=1".into()]);
        assert!(line.ends_with("load kvm_intel with nested=1"), "{line}");
    }

    #[test]
    fn a_kvm_that_does_not_work_is_told_apart() {
        let refused = "{\"QMP\": {}}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no host model\"}}\n";
        assert_eq!(why(refused, "", &[]), "KVM does not work: no host model");
        let died = why("", "qemu: ioctl(KVM_CREATE_VM) failed: 16\nmore\n", &[]);
        assert_eq!(died, "KVM does not work: qemu: ioctl(KVM_CREATE_VM) failed: 16");
        assert_eq!(why("", "", &[]), "KVM does not work: QEMU says nothing");
    }

    #[test]
    fn a_device_that_does_not_open_is_told_apart() {
        let line = |kind: io::ErrorKind| closed(&io::Error::from(kind)).to_string();
        assert!(line(io::ErrorKind::NotFound).contains("no /dev/kvm"));
        assert!(line(io::ErrorKind::PermissionDenied).contains("join the group kvm"));
        assert!(line(io::ErrorKind::OutOfMemory).contains("cannot be opened"));
    }

    #[test]
    fn settings_that_are_off_are_named() {
        let dir = std::env::temp_dir().join(format!("prism-kvm-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("nested"), "N\n").unwrap();
        fs::write(dir.join("ept"), "Y\n").unwrap();
        assert_eq!(parameters(&dir), ["nested=1"]);
        fs::remove_dir_all(dir).unwrap();
        assert!(parameters(Path::new("/nowhere")).is_empty());
    }
}
