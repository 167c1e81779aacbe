//! `prism.toml`: which guests there are and what each gets. Unknown keys are errors.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hv_defs::Nanos;
use serde::Deserialize;
use thiserror::Error;

use super::linux::MAX_CMDLINE;
use crate::vm::{MAX_RESTARTS, RestartPolicy};

/// VMs at most.
pub const MAX_VMS: usize = 8;
/// vCPUs of a VM at most.
pub const MAX_VCPUS: u32 = 16;
/// Least memory of a VM, in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Most memory of a VM, in MiB.
pub const MAX_MEMORY_MIB: u64 = 1 << 20;

/// The whole file.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How the physical GPU is shared.
    #[serde(default)]
    pub gpu: GpuConfig,
    /// The guests, in the order of their console numbers.
    #[serde(default)]
    pub vm: Vec<VmConfig>,
}

/// How the physical GPU is shared.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuConfig {
    /// Time slice of a vGPU while another waits, in microseconds.
    pub slice_us: u32,
    /// Time without an arbitration point after which an engine is reset while another vGPU waits, in milliseconds.
    pub hang_ms: u32,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self { slice_us: 5_000, hang_ms: 500 }
    }
}

/// One guest.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Name, for the console and reports.
    pub name: String,
    /// RAM, in MiB; a multiple of 2.
    pub memory_mib: u64,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Physical CPUs that vCPU 0, 1, ... live on, counted among those that may run guests (all, but for an emulator's
    /// fault); Prism chooses where none is given.
    #[serde(default)]
    pub cpus: Vec<u32>,
    /// Kernel: a file of the bundle (bzImage or ELF64).
    pub kernel: String,
    /// Initial RAM disk: a file of the bundle.
    #[serde(default)]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// The vGPU; a guest without this table has none.
    #[serde(default)]
    pub gpu: Option<VgpuConfig>,
    /// What follows a triple fault or another fatal error of the guest.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// Times that the guest may start again by itself (reset, reboot, crash) within `restart_window`; then it is ended.
    #[serde(default = "restart_limit")]
    pub restart_limit: u32,
    /// In seconds. A run that is longer resets the count, and the wait before each start, which doubles.
    #[serde(default = "restart_window")]
    pub restart_window: u32,
}

fn one() -> u32 {
    1
}

fn restart_limit() -> u32 {
    10
}

fn restart_window() -> u32 {
    60
}

/// The share of the GPU that a guest gets.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VgpuConfig {
    /// Graphics memory reachable by the CPU, in MiB.
    pub aperture_mib: u32,
    /// Further graphics memory, in MiB.
    pub hidden_mib: u32,
    /// Fence registers.
    pub fences: u8,
    /// Share of engine time relative to other vGPUs.
    pub weight: u16,
}

impl Default for VgpuConfig {
    fn default() -> Self {
        Self { aperture_mib: 128, hidden_mib: 512, fences: 4, weight: 4 }
    }
}

/// What follows a fatal error of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// The guest stays stopped; the others go on.
    #[default]
    Stop,
    /// The guest starts again from its kernel.
    Restart,
}

/// What is wrong in `prism.toml`, and where.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{place}: {what}")]
pub struct ConfigError {
    /// Line (from 1) or VM and field.
    pub place: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl Config {
    /// Parses and checks the text of `prism.toml`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            ConfigError { place: format!("line {line}"), what }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let used = |name: &str| self.vm.iter().filter(|vm| vm.name == name).count();
        let twice = self.vm.iter().find(|vm| used(&vm.name) > 1);
        first_broken([
            (!self.vm.is_empty(), "vm", "no guest; add a [[vm]] table".to_string()),
            (self.vm.len() <= MAX_VMS, "vm", format!("{} guests; at most {MAX_VMS}", self.vm.len())),
            ((500..=1_000_000).contains(&self.gpu.slice_us), "gpu.slice_us", "must be from 500 to 1000000".to_string()),
            ((10..=60_000).contains(&self.gpu.hang_ms), "gpu.hang_ms", "must be from 10 to 60000".to_string()),
        ])
        .map_err(|(field, what)| ConfigError { place: format!("field {field}"), what })?;
        for vm in &self.vm {
            let place = |field| format!("vm \"{}\", field {field}", vm.name);
            vm.check().map_err(|(field, what)| ConfigError { place: place(field), what })?;
        }
        twice.map_or(Ok(()), |vm| {
            Err(ConfigError { place: "field vm.name".to_string(), what: format!("\"{}\" is used twice", vm.name) })
        })
    }
}

/// What must hold, the field that it is about, and what would be right.
type Rule = (bool, &'static str, String);

fn first_broken<const N: usize>(rules: [Rule; N]) -> Result<(), (&'static str, String)> {
    rules.into_iter().find(|rule| !rule.0).map_or(Ok(()), |(_, field, what)| Err((field, what)))
}

impl VmConfig {
    /// How often it may start again by itself.
    pub fn restarts(&self) -> RestartPolicy {
        RestartPolicy { limit: self.restart_limit, window: Nanos(u64::from(self.restart_window) * 1_000_000_000) }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let name = (1..=32).contains(&self.name.len()) && self.name.bytes().all(plain);
        let memory = (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) && self.memory_mib.is_multiple_of(2);
        first_broken([
            (name, "name", "1 to 32 letters, digits, - _ .".to_string()),
            (memory, "memory_mib", format!("an even number from {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")),
            ((1..=MAX_VCPUS).contains(&self.vcpus), "vcpus", format!("from 1 to {MAX_VCPUS}")),
            (self.cpus.len() <= self.vcpus as usize, "cpus", "longer than the number of vcpus".to_string()),
            (!self.kernel.is_empty(), "kernel", "must name a file of the bundle".to_string()),
            (self.cmdline.len() <= MAX_CMDLINE, "cmdline", format!("longer than {MAX_CMDLINE} bytes")),
            (self.restart_limit <= MAX_RESTARTS, "restart_limit", format!("at most {MAX_RESTARTS}")),
            ((1..=3600).contains(&self.restart_window), "restart_window", "from 1 to 3600 seconds".to_string()),
        ])?;
        self.gpu.as_ref().map_or(Ok(()), VgpuConfig::check)
    }
}

impl VgpuConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        first_broken([
            ((16..=2048).contains(&self.aperture_mib), "gpu.aperture_mib", "from 16 to 2048".to_string()),
            (self.hidden_mib <= 3584, "gpu.hidden_mib", "at most 3584".to_string()),
            (self.fences <= 32, "gpu.fences", "at most 32".to_string()),
            ((1..=16).contains(&self.weight), "gpu.weight", "from 1 to 16".to_string()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = Config::parse(
            "[[vm]]\nname = \"a\"\nmemory_mib = 1024\nkernel = \"k\"\n[vm.gpu]\n[[vm]]\nname = \"b\"\nmemory_mib = 512\nkernel = \"k\"\n",
        )
        .unwrap();
        assert_eq!(config.gpu, GpuConfig { slice_us: 5_000, hang_ms: 500 });
        let gpu = VgpuConfig { aperture_mib: 128, hidden_mib: 512, fences: 4, weight: 4 };
        assert_eq!(config.vm[0].gpu, Some(gpu));
        assert_eq!(config.vm[1].gpu, None);
        assert_eq!((config.vm[0].vcpus, config.vm[0].on_crash), (1, OnCrash::Stop));
        assert_eq!(config.vm[0].restarts(), RestartPolicy { limit: 10, window: Nanos(60_000_000_000) });
    }

    #[test]
    fn errors_are_one_line_and_name_the_place() {
        let vm = "[[vm]]\nname = \"a\"\nmemory_mib = 512\nkernel = \"k\"\n";
        let cases = [
            ("", "field vm: no guest; add a [[vm]] table"),
            ("[[vm]]\nname = 3\n", "line 2: invalid type: integer `3`, expected a string"),
            ("[[vm]]\nname = \"a\"\nkernel = \"k\"\n", "line 1: missing field `memory_mib`"),
        ];
        for (text, expected) in cases {
            assert_eq!(line(text), expected);
        }
        assert!(line(&format!("{vm}colour = 1\n")).starts_with("line 5: unknown field `colour`"));
        assert!(line(&format!("{vm}restart_limit = 101\n")).ends_with("field restart_limit: at most 100"));
        assert!(line(&format!("{vm}restart_window = 0\n")).contains("field restart_window: "));
        assert_eq!(line(&format!("{vm}vcpus = 99\n")), "vm \"a\", field vcpus: from 1 to 16");
        assert_eq!(line(&format!("{vm}{vm}")), "field vm.name: \"a\" is used twice");
        assert!(line(&format!("{vm}[vm.gpu]\nweight = 0\n")).contains("field gpu.weight"));
        assert!(!line("[[vm]\n").contains('\n'));
    }
}
