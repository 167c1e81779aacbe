//! A vGPU as a PCI function of its VM.

use gvt::{ApertureAccess, ApertureSlice, Progress, ResetKind, Store, VgpuId};
use hv::vm::{Vm, VmId};
use hv_defs::paging::Access;
use hv_defs::{Hpa, Nanos, Width};
use hv_dev::pci::{BarWindow, BarWindows, PciFunction, Space};

use super::{DEVICE, now, with};

/// BAR with registers and page table.
const GTTMMADR: u8 = 0;
/// BAR with the aperture.
pub const GMADR: u8 = 2;
/// Bytes of BAR0 that may be mapped: registers and page table.
const GTTMMADR_SIZE: u64 = 16 << 20;

/// The function.
pub struct VgpuFunction {
    vm: VmId,
    vgpu: VgpuId,
    slice: ApertureSlice,
    mapped: Mapped,
}

/// Whether pages that were mapped before the VM existed have been handed to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mapped {
    Yes,
    NotYet,
}

impl VgpuFunction {
    /// The function of an existing vGPU.
    pub fn new(vm: VmId, vgpu: VgpuId) -> Self {
        let slice = with(|gvt, _| gvt.aperture_slice(vgpu)).unwrap_or_default();
        Self { vm, vgpu, slice, mapped: Mapped::NotYet }
    }

    /// Bytes of its BARs that are mapped page by page.
    pub fn mapped_bytes(&self) -> u64 {
        GTTMMADR_SIZE + self.slice.size
    }

    /// The first access happens when the VM is built: hands over the aperture and the pages mapped so far.
    fn settle(&mut self) {
        if self.mapped == Mapped::Yes {
            return;
        }
        let Some(vm) = hv::machine::vm(self.vm) else { return };
        self.mapped = Mapped::Yes;
        let aperture = with(|gvt, host| {
            host.settle(self.vm);
            gvt.physical_aperture()
        });
        match aperture {
            Some(aperture) if aperture.access == ApertureAccess::Mappable => self.map_slice(vm, aperture.base),
            Some(_) => {
                with(|_, host| host.show_aperture(self.vm, self.slice));
            }
            None => {}
        }
    }

    fn map_slice(&self, vm: &Vm, base: u64) {
        let (offset, size) = (self.slice.offset, self.slice.size);
        if vm.map_range(DEVICE, GMADR, (offset, size), Hpa(base.wrapping_add(offset)), Access::ReadWrite).is_none() {
            vm.say(format_args!("{vm}: the aperture cannot be mapped; stores to it are lost"));
        }
    }

    /// Whether an access to the aperture lies in the guest's own slice.
    fn is_in_slice(&self, offset: u64, width: Width) -> bool {
        let end = self.slice.offset.saturating_add(self.slice.size);
        offset >= self.slice.offset && offset.checked_add(width.bytes() as u64).is_some_and(|last| last <= end)
    }
}

impl PciFunction for VgpuFunction {
    fn config_read(&mut self, offset: u16, width: Width) -> u32 {
        self.settle();
        let ones = width.mask() as u32;
        with(|gvt, _| gvt.config_read(self.vgpu, offset, width.bytes())).unwrap_or(ones)
    }

    fn config_write(&mut self, offset: u16, width: Width, value: u32) {
        self.settle();
        with(|gvt, host| gvt.config_write(host, self.vgpu, offset, width.bytes(), value, now()));
    }

    fn bars(&self) -> BarWindows {
        let bars = with(|gvt, _| gvt.bars(self.vgpu)).unwrap_or_default();
        bars.into_iter()
            .flatten()
            .map(|bar| BarWindow { bar: bar.bar, space: Space::Memory, base: bar.base, size: bar.size })
            .collect()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: Width, _: Nanos) -> u64 {
        match (bar, u32::try_from(offset)) {
            (GTTMMADR, Ok(offset)) => {
                with(|gvt, host| gvt.mmio_read(host, self.vgpu, offset, width.bytes(), now())).unwrap_or(width.mask())
            }
            // A page that is not mapped.
            (GMADR, _) if self.is_in_slice(offset, width) => {
                with(|_, host| host.aperture_read(offset, width)).unwrap_or(width.mask())
            }
            _ => width.mask(),
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, width: Width, value: u64, _: Nanos) {
        match (bar, u32::try_from(offset)) {
            (GTTMMADR, Ok(offset)) => {
                // Ends by what was to do when it began, whatever other vCPUs do meanwhile (design D19).
                let mut store = Store::new(offset, width.bytes(), value);
                let mut step = || with(|gvt, host| gvt.mmio_store(host, self.vgpu, &mut store, now()));
                while step() == Some(Progress::More) {}
            }
            (GMADR, _) if self.is_in_slice(offset, width) => {
                with(|_, host| host.aperture_write(offset, width, value));
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.settle();
        with(|gvt, host| gvt.reset_vgpu(host, self.vgpu, ResetKind::Device, now()));
    }
}
