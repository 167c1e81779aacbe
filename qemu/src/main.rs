//! `cargo run`: see `prism --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match qemu::cli::main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("prism: {error}");
            ExitCode::FAILURE
        }
    }
}
