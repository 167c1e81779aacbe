//! The emulator's command line.

use std::path::Path;
use std::process::Command;

use super::ram::Ram;
use super::{Gpu, Kind, Machine, OnReset, autopsy, watch};
use crate::provision::Qemu;

/// Names in a run's folder, which is the processes' working directory: socket paths stay short.
pub const SOCKET: &str = "gpu.sock";
pub const EMULATOR_LOG: &str = "emulator.log";
pub const MODULE: &str = "module.cpio";
pub const DISKS: [&str; 2] = ["boot.img", "files.img"];

/// The port and value range of the exit device: the process ends with 2 * value + 1.
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=4";

pub fn qemu(machine: &Machine, qemu: &Qemu, ram: &Ram, dir: &Path) -> Command {
    let mut command = match (&machine.gpu, std::thread::available_parallelism()) {
        (Gpu::Model(_), Ok(cores)) if machine.cpus as usize > cores.get() => yielding(&qemu.program),
        _ => tied(&qemu.program),
    };
    command.current_dir(dir);
    let memory = machine.memory_mib;
    let (accelerator, cpu) = cpu(machine.kind);
    command.args(["-machine", &format!("q35,accel={accelerator},memory-backend=ram"), "-cpu", cpu]);
    command.args(["-smp", &machine.cpus.to_string(), "-m", &format!("{memory}M")]);
    // Shared, or the GPU process could not reach it.
    let file = ram.path();
    command.args(["-object", &format!("memory-backend-file,id=ram,size={memory}M,share=on,mem-path={file}")]);
    command.args(["-nodefaults", "-display", "none", "-device", EXIT_DEVICE]);
    command.args(["-chardev", "stdio,id=com,signal=off", "-serial", "chardev:com"]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", autopsy::MONITOR)]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", watch::SOCKET)]);
    if machine.on_reset == OnReset::End {
        command.arg("-no-reboot");
    }
    if let Gpu::Model(_) = machine.gpu {
        command.args(["-device", &gpu_device()]);
    }
    command.args(boot(machine));
    command.args(&machine.emulator);
    command
}

fn boot(machine: &Machine) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    if machine.disks.is_some() {
        for name in DISKS {
            arguments.extend(["-drive".into(), format!("file={name},format=raw,if=ide")]);
        }
        return arguments;
    }
    let kernel = machine.kernel.display().to_string();
    arguments.extend(["-kernel".into(), kernel, "-append".into(), machine.arguments.clone()]);
    if machine.module.is_some() {
        arguments.extend(["-initrd".into(), MODULE.into()]);
    }
    arguments
}

/// The device is the other end of the GPU process's socket; it has no option ROM. QEMU gives up a message after five
/// seconds, and the device is lost then: on a host that is busy, or was stopped for a while, that says nothing.
fn gpu_device() -> String {
    serde_json::json!({
        "driver": "vfio-user-pci", "id": "gpu", "addr": "02.0", "rombar": 0,
        "x-msg-timeout": 120_000,
        "socket": { "type": "unix", "path": SOCKET },
    })
    .to_string()
}

/// What executes instructions, and what they find.
fn cpu(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::SvmTcg => ("tcg", "EPYC,+svm,+npt"),
        Kind::VmxKvm => ("kvm", "host,+vmx"),
        Kind::Native | Kind::VmxBochs => ("tcg", "max"),
    }
}

/// The same for an emulator with more CPUs than the host has: the GPU's process goes before them. Where it starved, one
/// blit of 8 MiB took the half of a second after which an engine counts as hung.
fn yielding(program: &Path) -> Command {
    let nice = Path::new("/usr/bin/nice");
    if !nice.exists() {
        return tied(program);
    }
    let mut command = tied(nice);
    command.args(["-n", "5", "--"]).arg(program);
    command
}

/// A command that the kernel kills when the thread that starts it ends: no emulator outlives its runner.
pub fn tied(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
