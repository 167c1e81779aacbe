//! The emulator itself and the guests' kernels, without Prism: what fails here is not Prism's fault.

use std::time::Duration;

use qemu::guest::Initrd;
use qemu::machine::{End, Gpu, Machine};
use qemu::provision::KernelKind;

const LIMIT: Duration = Duration::from_secs(90);

/// The cloud kernel comes up, runs a script and powers off.
#[test]
fn native_kernel_reaches_its_script() {
    let kernel = KernelKind::V6_1Cloud.get().unwrap();
    let nonce = tests::nonce();
    let initrd = Initrd::new().unwrap().script(&format!("echo script {nonce}\npoweroff -f")).finish();
    let outcome = Machine::native("native-boot", &kernel.image)
        .gpu(Gpu::None)
        .module(initrd)
        .arguments("console=ttyS0 panic=-1")
        .run(LIMIT)
        .unwrap();
    if outcome.end != End::PowerOff || !outcome.serial.contains(&format!("script {nonce}")) {
        tests::fail(&outcome, "the guest's script did not run to its end");
    }
}
