//! The host side of Prism: fetches what is missing, builds the image, starts machines, reads their verdicts.

pub mod ask;
pub mod build;
pub mod bundle;
pub mod cli;
pub mod console;
pub mod cpio;
pub mod demo;
pub mod error;
pub mod guest;
pub mod lock;
pub mod machine;
pub mod paths;
pub mod progress;
pub mod provision;
pub mod report;
pub mod selftest;
pub mod server;
pub mod terminal;

pub use error::{Error, Result};
