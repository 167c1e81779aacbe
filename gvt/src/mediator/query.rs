//! What a hypervisor's glue asks about vGPUs and the physical side.

use super::{Gvt, VgpuId};
use crate::host::VmId;
use crate::hw::{Aperture, Hw};

impl<W: Hw> Gvt<W> {
    /// The physical aperture, of which each vGPU maps its slice.
    pub fn physical_aperture(&self) -> Aperture {
        self.gpu.aperture
    }

    /// Every vGPU and the VM that owns it.
    pub fn owners(&self) -> impl Iterator<Item = (VgpuId, VmId)> {
        let present = self.vgpus.iter().enumerate().filter_map(|(index, vgpu)| Some((index, vgpu.as_deref()?)));
        present.map(|(index, vgpu)| (VgpuId(index as u8), vgpu.vm))
    }
}
