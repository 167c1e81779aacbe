//! The host side of Prism: fetches what is missing, builds the image, starts machines, reads their verdicts.

pub mod build;
pub mod bundle;
pub mod console;
pub mod cpio;
pub mod error;
pub mod guest;
pub mod lock;
pub mod machine;
pub mod paths;
pub mod progress;
pub mod provision;
pub mod server;

pub use error::{Error, Result};
