//! The host side of Prism: fetches what is missing, builds the image, starts machines, reads their verdicts.

pub mod build;
pub mod cpio;
pub mod error;
pub mod lock;
pub mod paths;
pub mod progress;
pub mod provision;
pub mod server;

pub use error::{Error, Result};
