//! The device numbers of bus 0, and which external function lives at each.

use core::ops::DerefMut;

use arrayvec::ArrayVec;
use hv_defs::Width;

use super::{BarWindow, BarWindows, PciFunction, Space};

/// Most external functions of a machine.
const MAX_FUNCTIONS: usize = 8;

/// The device number is taken (0 and 31 belong to the chipset) or there are too many functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotFree;

struct Slot<B> {
    device: u8,
    function: B,
    /// What `bars` said after the last configuration write: the look-up is on the path of every access.
    windows: BarWindows,
}

/// External functions by device number. `B` is a box or another pointer to a function.
pub struct Slots<B> {
    slots: ArrayVec<Slot<B>, MAX_FUNCTIONS>,
    /// Grows when a window has changed.
    generation: u64,
}

/// A BAR access, resolved.
pub struct Found<'a, B> {
    /// The function.
    pub function: &'a mut B,
    /// Its device number.
    pub device: u8,
    /// The BAR.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u64,
}

impl<B> Default for Slots<B> {
    fn default() -> Self {
        Self {
            slots: ArrayVec::new(),
            generation: 0,
        }
    }
}

impl<B: DerefMut<Target: PciFunction>> Slots<B> {
    /// Puts a function at a device number.
    ///
    /// # Errors
    /// `NotFree` if that number cannot be had.
    pub fn insert(&mut self, device: u8, function: B) -> Result<(), NotFree> {
        let taken = self.slots.iter().any(|slot| slot.device == device);
        if taken || !(1..31).contains(&device) {
            return Err(NotFree);
        }
        let windows = function.bars();
        self.generation += 1;
        self.slots
            .try_push(Slot {
                device,
                function,
                windows,
            })
            .map_err(|_| NotFree)
    }

    /// As [`crate::Wires::config_read`].
    pub fn config_read(&mut self, device: u8, offset: u16, width: Width) -> Option<u32> {
        Some(self.slot(device)?.function.config_read(offset, width))
    }

    /// As [`crate::Wires::config_write`].
    pub fn config_write(
        &mut self,
        device: u8,
        offset: u16,
        width: Width,
        value: u32,
    ) -> Option<()> {
        let slot = self.slot(device)?;
        slot.function.config_write(offset, width, value);
        let windows = slot.function.bars();
        if windows != slot.windows {
            slot.windows = windows;
            self.generation += 1;
        }
        Some(())
    }

    /// The function that decodes `address`. The lowest device number wins where windows overlap.
    pub fn find(&mut self, space: Space, address: u64) -> Option<Found<'_, B>> {
        self.slots.iter_mut().find_map(|slot| {
            let (bar, offset) = slot
                .windows
                .iter()
                .filter(|window| window.space == space)
                .find_map(|window| Some((window.bar, window.offset_of(address)?)))?;
            Some(Found {
                function: &mut slot.function,
                device: slot.device,
                bar,
                offset,
            })
        })
    }

    /// All windows decoded now, with the device number.
    pub fn windows(&self) -> impl Iterator<Item = (u8, BarWindow)> {
        self.slots
            .iter()
            .flat_map(|slot| slot.windows.iter().map(|window| (slot.device, *window)))
    }

    /// Changes whenever `windows` does.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The function at a device number.
    pub fn get_mut(&mut self, device: u8) -> Option<&mut B> {
        self.slot(device).map(|slot| &mut slot.function)
    }

    /// Resets all functions.
    pub fn reset(&mut self) {
        for slot in &mut self.slots {
            slot.function.reset();
            slot.windows = slot.function.bars();
        }
        self.generation += 1;
    }

    fn slot(&mut self, device: u8) -> Option<&mut Slot<B>> {
        self.slots.iter_mut().find(|slot| slot.device == device)
    }
}

#[cfg(test)]
mod tests {
    use hv_defs::Nanos;

    use super::*;
    use crate::pci::{Bar, BarIndex, Header, Identity};

    struct Device(Header);

    impl Device {
        fn new(device: u16) -> Box<Self> {
            let identity = Identity {
                vendor: 0x1234,
                device,
                revision: 0,
                class: 0x03_0000,
                subsystem_vendor: 0,
                subsystem: 0,
            };
            Box::new(Self(
                Header::new(identity).with_bar(BarIndex::new(0).unwrap(), Bar::Memory32(0x1000)),
            ))
        }
    }

    impl PciFunction for Device {
        fn config_read(&mut self, offset: u16, width: Width) -> u32 {
            self.0.read(offset, width)
        }
        fn config_write(&mut self, offset: u16, width: Width, value: u32) {
            self.0.write(offset, width, value);
        }
        fn bars(&self) -> BarWindows {
            self.0.windows()
        }
        fn bar_read(&mut self, _: u8, offset: u64, _: Width, _: Nanos) -> u64 {
            offset
        }
        fn bar_write(&mut self, _: u8, _: u64, _: Width, _: u64, _: Nanos) {}
        fn reset(&mut self) {
            self.0.write(4, Width::B2, 0);
        }
    }

    #[test]
    fn device_numbers_are_given_once() {
        let mut slots: Slots<Box<dyn PciFunction>> = Slots::default();
        assert_eq!(slots.insert(2, Device::new(1)), Ok(()));
        for taken in [0, 2, 31, 200] {
            assert_eq!(slots.insert(taken, Device::new(1)), Err(NotFree));
        }
        assert_eq!(slots.config_read(2, 2, Width::B2), Some(1));
        assert_eq!(slots.config_read(3, 2, Width::B2), None);
        assert_eq!(slots.config_write(3, 2, Width::B2, 0), None);
    }

    #[test]
    fn windows_follow_configuration_writes() {
        let mut slots: Slots<Box<dyn PciFunction>> = Slots::default();
        slots.insert(2, Device::new(1)).unwrap();
        slots.insert(3, Device::new(2)).unwrap();
        let before = slots.generation();
        slots.config_write(3, 0x10, Width::B4, 0xC000_1000);
        assert_eq!(slots.generation(), before, "decode is off");
        slots.config_write(3, 0x04, Width::B2, 2);
        assert_ne!(slots.generation(), before);
        let found = slots.find(Space::Memory, 0xC000_1234).unwrap();
        assert_eq!((found.device, found.bar, found.offset), (3, 0, 0x234));
        assert_eq!(
            found.function.bar_read(0, 0x234, Width::B4, Nanos(0)),
            0x234
        );
        found.function.config_read(0, Width::B4);
        assert!(slots.find(Space::Memory, 0xC000_2000).is_none());
        assert!(slots.find(Space::Io, 0xC000_1234).is_none());
        slots.reset();
        assert_eq!(slots.windows().count(), 0);
    }
}
