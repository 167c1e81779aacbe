//! Machines: an emulator, the software GPU beside it, a serial line, and how the run ended.

mod autopsy;
mod bochs;
mod command;
mod display;
pub mod kvm;
mod process;
mod ram;
mod rings;
mod symbols;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;
use crate::provision::Qemu;

pub use process::{End, Outcome, Running};

/// What the emulated computer is (design, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// QEMU without acceleration, a CPU with AMD's virtualization: Prism runs in it.
    SvmTcg,
    /// QEMU with KVM, on hosts whose KVM gives its guests VT-x.
    VmxKvm,
    /// Bochs, a CPU with VT-x, no software GPU, all CPUs in one thread.
    VmxBochs,
    /// QEMU without acceleration or hypervisor: the reference that a vGPU is compared with.
    Native,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SvmTcg, Self::VmxKvm, Self::VmxBochs, Self::Native];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SvmTcg => "svm-tcg",
            Self::VmxKvm => "vmx-kvm",
            Self::VmxBochs => "vmx-bochs",
            Self::Native => "native",
        }
    }

    /// Whether there can be a GPU in it.
    pub fn has_gpu(self) -> bool {
        self != Self::VmxBochs
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What is at 00:02.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpu {
    /// Nothing.
    None,
    /// The software Gen9 in a process of its own, started with these further arguments.
    Model(Vec<String>),
}

/// Whether a machine that resets starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// The run ends.
    End,
    /// It boots again, the software GPU told of the reset.
    Boot,
}

/// Where the serial line's output goes while it is also kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Nowhere.
    Nothing,
    /// To standard output.
    Serial,
}

/// A machine to be started: what it has and what it boots.
#[derive(Debug, Clone)]
pub struct Machine {
    kind: Kind,
    qemu: Option<Qemu>,
    name: String,
    cpus: u32,
    memory_mib: u32,
    gpu: Gpu,
    on_reset: OnReset,
    show: Show,
    kernel: PathBuf,
    module: Option<Vec<u8>>,
    disks: Option<[Vec<u8>; 2]>,
    arguments: String,
    emulator: Vec<String>,
    debugger: String,
}

impl Machine {
    /// A machine of this kind with its usual memory; what it boots is a hypervisor image, or on `native` a Linux kernel.
    /// `name` is the folder of its logs.
    pub fn of(kind: Kind, name: &str, boots: &Path) -> Self {
        match kind {
            // 5 GiB, so that a part of memory lies above 4 GiB.
            Kind::SvmTcg | Kind::VmxKvm => Self::new(kind, name, boots, 5120),
            Kind::VmxBochs => Self::new(kind, name, boots, 512).gpu(Gpu::None),
            Kind::Native => Self::new(kind, name, boots, 2048),
        }
    }

    /// The machine `svm-tcg` booting a hypervisor image.
    pub fn svm_tcg(name: &str, image: &Path) -> Self {
        Self::of(Kind::SvmTcg, name, image)
    }

    /// The machine `vmx-bochs` booting a hypervisor image through GRUB. `emulator` adds lines to Bochs' configuration.
    pub fn vmx_bochs(name: &str, image: &Path) -> Self {
        Self::of(Kind::VmxBochs, name, image)
    }

    /// The machine `native` booting a Linux kernel.
    pub fn native(name: &str, kernel: &Path) -> Self {
        Self::of(Kind::Native, name, kernel)
    }

    fn new(kind: Kind, name: &str, kernel: &Path, memory_mib: u32) -> Self {
        Self {
            kind,
            qemu: None,
            name: name.into(),
            cpus: 1,
            memory_mib,
            gpu: Gpu::Model(Vec::new()),
            on_reset: OnReset::End,
            show: Show::Nothing,
            kernel: kernel.into(),
            module: None,
            disks: None,
            arguments: String::new(),
            emulator: Vec::new(),
            debugger: "continue\n".into(),
        }
    }

    /// How many CPUs; with one, emulator and GPU share a host core, which makes accesses to the GPU quick.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How many CPUs run guests. With several, QEMU's AMD-V needs one more, the first, that runs none (`hv`,
    /// `svm/quirk.rs`).
    pub fn guest_cpus(self, cpus: u32) -> Self {
        let spare = if self.kind == Kind::SvmTcg && cpus > 1 { 1 } else { 0 };
        self.cpus(cpus + spare)
    }

    /// How much memory.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// What is at 00:02.0.
    pub fn gpu(mut self, gpu: Gpu) -> Self {
        self.gpu = gpu;
        self
    }

    /// What a reset does.
    pub fn on_reset(mut self, on_reset: OnReset) -> Self {
        self.on_reset = on_reset;
        self
    }

    /// Whether the user sees the serial line.
    pub fn show(mut self, show: Show) -> Self {
        self.show = show;
        self
    }

    /// The module handed to what boots: Prism's bundle, or the initrd of a native kernel.
    pub fn module(mut self, content: Vec<u8>) -> Self {
        self.module = Some(content);
        self
    }

    /// The command line of what boots.
    pub fn arguments(mut self, arguments: &str) -> Self {
        self.arguments = arguments.into();
        self
    }

    /// Boots by the firmware from the first of these disks, instead of the kernel handed to the emulator.
    pub fn disks(mut self, disks: [Vec<u8>; 2]) -> Self {
        self.disks = Some(disks);
        self
    }

    /// Runs in this QEMU instead of the one that is provisioned.
    pub fn qemu(mut self, qemu: &Qemu) -> Self {
        self.qemu = Some(qemu.clone());
        self
    }

    /// A further argument for the emulator itself.
    pub fn emulator(mut self, argument: &str) -> Self {
        self.emulator.push(argument.into());
        self
    }

    /// What Bochs' own debugger does, a command a line, instead of just letting the machine run.
    pub fn debugger(mut self, commands: &str) -> Self {
        self.debugger = commands.into();
        self
    }

    /// Starts it once a machine slot is free.
    pub fn start(self) -> Result<Running> {
        Running::start(self)
    }

    /// Runs it to its end, or for `limit` at most.
    pub fn run(self, limit: Duration) -> Result<Outcome> {
        self.start()?.wait(limit)
    }
}
