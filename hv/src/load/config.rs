//! `prism.toml`: which guests there are and what each gets. Unknown keys are errors.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use serde::Deserialize;

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
    /// Physical CPUs that vCPU 0, 1, ... live on; Prism chooses where none is given.
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
}

fn one() -> u32 {
    1
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// Line (from 1) or VM and field.
    pub place: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
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
        let whole =
            |field: &str, what: &str| Err(ConfigError { place: format!("field {field}"), what: what.to_string() });
        if self.vm.is_empty() {
            return whole("vm", "no guest; add a [[vm]] table");
        }
        if self.vm.len() > MAX_VMS {
            return whole("vm", &format!("{} guests; at most {MAX_VMS}", self.vm.len()));
        }
        if !(500..=1_000_000).contains(&self.gpu.slice_us) {
            return whole("gpu.slice_us", "must be from 500 to 1000000");
        }
        if !(10..=60_000).contains(&self.gpu.hang_ms) {
            return whole("gpu.hang_ms", "must be from 10 to 60000");
        }
        for (index, vm) in self.vm.iter().enumerate() {
            if let Some(what) = vm.check() {
                return Err(ConfigError { place: format!("vm \"{}\", field {}", vm.name, what.0), what: what.1 });
            }
            if self.vm.iter().take(index).any(|other| other.name == vm.name) {
                return whole("vm.name", &format!("\"{}\" is used twice", vm.name));
            }
        }
        Ok(())
    }
}

impl VmConfig {
    /// The first field that is wrong, and what would be right.
    fn check(&self) -> Option<(&'static str, String)> {
        let name_ok = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if self.name.is_empty() || self.name.len() > 32 || !self.name.bytes().all(name_ok) {
            return Some(("name", "1 to 32 letters, digits, - _ .".to_string()));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) || !self.memory_mib.is_multiple_of(2) {
            return Some(("memory_mib", format!("an even number from {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Some(("vcpus", format!("from 1 to {MAX_VCPUS}")));
        }
        if self.cpus.len() > self.vcpus as usize {
            return Some(("cpus", "longer than the number of vcpus".to_string()));
        }
        if self.kernel.is_empty() {
            return Some(("kernel", "must name a file of the bundle".to_string()));
        }
        if self.cmdline.len() > super::linux::MAX_CMDLINE {
            return Some(("cmdline", format!("longer than {} bytes", super::linux::MAX_CMDLINE)));
        }
        self.gpu.as_ref().and_then(VgpuConfig::check)
    }
}

impl VgpuConfig {
    fn check(&self) -> Option<(&'static str, String)> {
        if !(16..=2048).contains(&self.aperture_mib) {
            return Some(("gpu.aperture_mib", "from 16 to 2048".to_string()));
        }
        if self.hidden_mib > 3584 {
            return Some(("gpu.hidden_mib", "at most 3584".to_string()));
        }
        if self.fences > 32 {
            return Some(("gpu.fences", "at most 32".to_string()));
        }
        if !(1..=16).contains(&self.weight) {
            return Some(("gpu.weight", "from 1 to 16".to_string()));
        }
        None
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
        assert_eq!(line(&format!("{vm}vcpus = 99\n")), "vm \"a\", field vcpus: from 1 to 16");
        assert_eq!(line(&format!("{vm}{vm}")), "field vm.name: \"a\" is used twice");
        assert!(line(&format!("{vm}[vm.gpu]\nweight = 0\n")).contains("field gpu.weight"));
        assert!(!line("[[vm]\n").contains('\n'));
    }
}
