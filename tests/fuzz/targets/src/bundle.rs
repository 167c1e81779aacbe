//! What the user gives: the bundle, and `prism.toml` in it.

use crate::bytes::Bytes;
use hv::load::config::{Config, MAX_VCPUS, MAX_VMS};
use qemu::cpio::Archive;

/// Runs one input; gives 1 if a bundle opened.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    if b.rarely(4) {
        let mut raw = vec![0; b.below(400) as usize];
        b.fill(&mut raw);
        return u64::from(hv::load::open(&raw).is_ok());
    }
    let mut archive = Archive::new();
    for _ in 0..b.below(4) {
        let name = b.pick(&["kernel", "initrd", "prism.toml", "a/b", "", "TRAILER!!!"]);
        let content = vec![b.byte(); b.below(64) as usize];
        archive.file(name, &content);
    }
    archive.file("kernel", &[1; 16]);
    archive.file("prism.toml", text(&mut b).as_bytes());
    let mut bytes = archive.finish();
    for _ in 0..b.below(4) {
        let at = b.below(bytes.len() as u32) as usize;
        bytes[at] = if b.below(2) == 0 { b.pick(b"0fFg\xFF\0") } else { bytes[at] ^ 1 << b.below(8) };
    }
    if b.rarely(6) {
        bytes.truncate(b.below(bytes.len() as u32) as usize);
    }
    let opened = hv::load::open(&bytes);
    if let Ok((_, config)) = &opened {
        check(config);
    }
    u64::from(opened.is_ok())
}

/// Runs one input as the text of `prism.toml`; gives 1 if it was good.
pub fn run_config(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let text = text(&mut b);
    let config = Config::parse(&text);
    if let Ok(config) = &config {
        check(config);
    }
    u64::from(config.is_ok())
}

fn check(config: &Config) {
    assert!((1..=MAX_VMS).contains(&config.vm.len()));
    for vm in &config.vm {
        assert!((1..=MAX_VCPUS).contains(&vm.vcpus) && vm.memory_mib.is_multiple_of(2) && !vm.kernel.is_empty());
        let _ = vm.restarts();
    }
}

const KEYS: [&str; 18] = [
    "name",
    "memory_mib",
    "vcpus",
    "cpus",
    "kernel",
    "initrd",
    "cmdline",
    "gpu",
    "on_crash",
    "restart_limit",
    "restart_window",
    "slice_us",
    "hang_ms",
    "aperture_mib",
    "hidden_mib",
    "fences",
    "weight",
    "what",
];
const VALUES: [&str; 20] = [
    "\"a\"",
    "\"kernel\"",
    "16",
    "64",
    "1",
    "0",
    "-1",
    "4294967296",
    "18446744073709551616",
    "[0, 1]",
    "[]",
    "true",
    "\"restart\"",
    "\"stop\"",
    "{}",
    "0x10",
    "1.5",
    "\"\\u00e9\"",
    "'''\n'''",
    "{ aperture_mib = 64 }",
];

/// Lines of TOML: a guest that could be, and lines that could spoil it.
fn text(b: &mut Bytes<'_>) -> String {
    let mut text = String::new();
    for vm in 0..b.below(10).saturating_sub(6) + 1 {
        let kernel = "kernel = \"kernel\"\nmemory_mib = 64\n";
        text.push_str(&format!("[[vm]]\nname = \"vm{}\"\n{kernel}", if b.rarely(8) { 0 } else { vm }));
        for _ in 0..b.below(8).saturating_sub(5) {
            let line = format!("{} = {}\n", b.pick(&KEYS), b.pick(&VALUES));
            text.push_str(if b.rarely(6) {
                b.pick(&["[gpu]\n", "[vm.gpu]\n", "[", "\n\n", "# é\n", "=\n"])
            } else {
                &line
            });
        }
    }
    text
}
