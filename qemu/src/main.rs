//! `cargo run`: see `prism --help`.

use std::process::ExitCode;

use qemu::provision::{self, KernelKind, Qemu};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prism: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> qemu::Result<()> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("build") => {
            let image = qemu::build::image(&[])?;
            println!(
                "{} ({} bytes)",
                image.display(),
                std::fs::metadata(&image).map_or(0, |m| m.len())
            );
            return Ok(());
        }
        _ => {}
    }
    for what in args {
        match what.as_str() {
            "qemu" => drop(Qemu::get()?),
            "busybox" => drop(provision::busybox()?),
            "rust-src" => drop(provision::rust_source("1.95.0")?),
            name => drop(
                KernelKind::from_name(name)
                    .map(KernelKind::get)
                    .transpose()?,
            ),
        }
    }
    Ok(())
}
