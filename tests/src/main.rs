//! `prism-gpu`: the GPU process of machine tests. Cargo builds it beside every test, always from the same sources.

use std::process::ExitCode;

fn main() -> ExitCode {
    match qemu::server::main(std::env::args_os().skip(2)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu-model: {error}");
            ExitCode::FAILURE
        }
    }
}
