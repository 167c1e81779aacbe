//! The software Gen9 (`gvt_model`) as a device of the server.

use serde_json::Value;

use super::options::Options;
use super::session::{Bus, Device, Next};
use crate::{Error, Result};

/// The GPU.
pub struct Gpu;

impl Gpu {
    /// Makes the GPU that the options name.
    ///
    /// # Errors
    /// A profile that the model does not have.
    pub fn new(_options: &Options) -> Result<Self> {
        Err(Error::new("gpu-model: the model is not linked in yet"))
    }
}

impl Device for Gpu {
    fn region_size(&self, _region: u32) -> u64 {
        0
    }
    fn config_read(&mut self, _offset: u16, _buf: &mut [u8]) {}
    fn config_write(&mut self, _offset: u16, _data: &[u8], _bus: &mut Bus) {}
    fn bar_read(&mut self, _bar: u32, _offset: u64, _buf: &mut [u8], _bus: &mut Bus) {}
    fn bar_write(&mut self, _bar: u32, _offset: u64, _data: &[u8], _bus: &mut Bus) {}
    fn reset(&mut self, _bus: &mut Bus) {}
    fn run(&mut self, _bus: &mut Bus) -> Next {
        Next::Idle
    }
    fn stats(&self) -> Value {
        Value::Null
    }
}
