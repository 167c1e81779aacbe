//! What a user can get wrong ends in one clear line that names the place, and in a status of its own.

use std::time::Duration;

use qemu::bundle::Bundle;
use qemu::console::Console;
use qemu::machine::{End, Gpu, Machine};
use qemu::provision::KernelKind;

const LIMIT: Duration = Duration::from_secs(60);
/// See `hv::power::Exit`.
const MEMORY: End = End::Verdict(0x13);
const CONFIG: End = End::Verdict(0x14);
/// A guest that cannot be loaded stays off; others would run. Nothing ran here, so this is no success.
const GUEST: End = End::Verdict(0x17);

/// One mistake: `prism.toml`, the kernel file in the bundle if there is one, how the run ends and what it says.
struct Mistake {
    config: &'static str,
    kernel: Option<&'static [u8]>,
    end: End,
    says: &'static [&'static str],
}

const MISTAKES: [Mistake; 8] = [
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = \"much\"\nkernel = \"kernel\"\n",
        kernel: Some(b""),
        end: CONFIG,
        says: &["prism.toml: line 3:", "expected u64"],
    },
    Mistake { config: "[[vm]\n", kernel: None, end: CONFIG, says: &["prism.toml: line 1:"] },
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = 64\nkernel = \"kernel\"\ncolour = 1\n",
        kernel: Some(b""),
        end: CONFIG,
        says: &["prism.toml: line 5:", "unknown field `colour`"],
    },
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = 64\nkernel = \"kernel\"\nvcpus = 99\n",
        kernel: Some(b""),
        end: CONFIG,
        says: &["prism.toml: vm \"a\", field vcpus:", "from 1 to 16"],
    },
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = 64\nkernel = \"kernel\"\n",
        kernel: None,
        end: CONFIG,
        says: &["prism.toml: vm \"a\", field kernel:", "\"kernel\""],
    },
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = 64\nkernel = \"kernel\"\n",
        kernel: Some(b"this is no kernel"),
        end: GUEST,
        says: &["field kernel: \"kernel\" is neither a Linux bzImage nor an ELF64 program"],
    },
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = 65536\nkernel = \"kernel\"\n",
        kernel: Some(b""),
        end: MEMORY,
        says: &["prism.toml: vm \"a\", field memory_mib:", "lower it"],
    },
    Mistake {
        config: "[[vm]]\nname = \"a\"\nmemory_mib = 64\nkernel = \"kernel\"\ngpu = {}\n",
        kernel: Some(b""),
        end: CONFIG,
        says: &["prism.toml: a vm has a gpu table, but there is no Intel GPU at 00:02.0"],
    },
];

#[track_caller]
fn refused(run: &str, bundle: Vec<u8>, end: End, says: &[&str]) {
    let machine = Machine::svm_tcg(run, tests::image()).gpu(Gpu::None).module(bundle).arguments("once");
    let outcome = machine.run(LIMIT).expect("the machine runs");
    let console = Console::parse(&outcome.serial);
    let lines = console.prism.iter().filter(|line| says.iter().all(|words| line.contains(words))).count();
    if outcome.end != end || lines != 1 || outcome.serial.contains("PANIC") {
        tests::fail(&outcome, &format!("should end with {end:?} and one line with {says:?}"));
    }
}

#[test]
fn mistakes_are_named() {
    for Mistake { config, kernel, end, says } in MISTAKES {
        let bundle = Bundle::new(config);
        let bundle = match kernel {
            Some(content) => bundle.file("kernel", content),
            None => bundle,
        };
        refused("bad-config", bundle.finish(), end, says);
    }
}

/// A kernel that is cut short, in too little memory for it, and without its initrd.
#[test]
fn a_kernel_that_cannot_start_is_named() {
    let kernel = std::fs::read(KernelKind::V6_1Cloud.get().unwrap().image).unwrap();
    let config =
        |memory: u32, more: &str| format!("[[vm]]\nname = \"a\"\nmemory_mib = {memory}\nkernel = \"kernel\"\n{more}");
    let cut = Bundle::new(&config(256, "")).file("kernel", &kernel[..100_000]).finish();
    refused("bad-kernel", cut, GUEST, &["field kernel: \"kernel\" is damaged"]);
    let small = Bundle::new(&config(16, "")).file("kernel", &kernel).finish();
    refused("bad-kernel", small, GUEST, &["field kernel: \"kernel\" does not fit; raise memory_mib to"]);
    let lone = Bundle::new(&config(256, "initrd = \"initrd\"\n")).file("kernel", &kernel).finish();
    refused("bad-kernel", lone, CONFIG, &["prism.toml: vm \"a\", field initrd:", "\"initrd\""]);
}
