//! PCI functions of a VM and where their BARs are. A BAR access takes the function's own lock only.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_defs::{Gpa, Width};
use hv_dev::pci::{BarWindow, PciFunction, Space};
use spin::{Mutex, RwLock};

use super::Vm;

/// BARs of all functions of a VM.
const MAX_WINDOWS: usize = 24;

/// Where an access lands in a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index of the function.
    function: usize,
    /// The BAR.
    pub bar: u8,
    /// Offset in it.
    pub offset: u64,
}

/// One function.
struct Slot {
    device: u8,
    function: Mutex<Box<dyn PciFunction>>,
}

/// All functions of a VM.
pub(super) struct Functions {
    slots: Vec<Slot>,
    windows: RwLock<ArrayVec<(usize, BarWindow), MAX_WINDOWS>>,
}

impl Functions {
    pub fn new(functions: Vec<(u8, Box<dyn PciFunction>)>) -> Self {
        let slots = functions.into_iter().map(|(device, function)| Slot { device, function: Mutex::new(function) });
        Self { slots: slots.collect(), windows: RwLock::new(ArrayVec::new()) }
    }

    fn by_device(&self, device: u8) -> Option<(usize, &Slot)> {
        self.slots.iter().enumerate().find(|(_, slot)| slot.device == device)
    }
}

impl Vm {
    /// Runs `action` on the function at `device`, then lets its BARs appear where they are now.
    fn configure<R>(&self, device: u8, action: impl FnOnce(&mut dyn PciFunction) -> R) -> Option<R> {
        let (index, slot) = self.functions.by_device(device)?;
        let (result, windows) = {
            let mut function = slot.function.lock();
            let result = action(&mut **function);
            (result, function.bars())
        };
        self.place(index, device, &windows);
        Some(result)
    }

    /// Configuration read of a function; `None` if there is none at `device`.
    pub(super) fn function_config_read(&self, device: u8, offset: u16, width: Width) -> Option<u32> {
        let (_, slot) = self.functions.by_device(device)?;
        Some(slot.function.lock().config_read(offset, width))
    }

    /// Configuration write.
    pub(super) fn function_config_write(&self, device: u8, offset: u16, width: Width, value: u32) -> Option<()> {
        self.configure(device, |function| function.config_write(offset, width, value))
    }

    /// Resets every function.
    pub(super) fn reset_functions(&self) {
        let devices: ArrayVec<u8, 32> = self.functions.slots.iter().map(|slot| slot.device).take(32).collect();
        for device in devices {
            self.configure(device, |function| function.reset());
        }
    }

    /// Which BAR answers at `address`.
    pub(crate) fn find_bar(&self, space: Space, address: u64) -> Option<Place> {
        let windows = self.functions.windows.read();
        windows.iter().find_map(|(function, window)| {
            let offset = window.offset_of(address).filter(|_| window.space == space)?;
            Some(Place { function: *function, bar: window.bar, offset })
        })
    }

    /// Runs `action` on the function that an access landed in.
    pub(crate) fn with_function<R>(&self, place: Place, action: impl FnOnce(&mut dyn PciFunction) -> R) -> Option<R> {
        let slot = self.functions.slots.get(place.function)?;
        Some(action(&mut **slot.function.lock()))
    }

    /// Publishes the windows of one function, and moves what is mapped in them.
    fn place(&self, index: usize, device: u8, windows: &[BarWindow]) {
        if self.is_placed(index, windows) {
            return;
        }
        {
            let mut all = self.functions.windows.write();
            all.retain(|(function, _)| *function != index);
            for window in windows {
                // Six BARs of four functions fit; a guest cannot add functions.
                let _ = all.try_push((index, *window));
            }
        }
        let mut flush = false;
        let mut tables = self.tables.lock();
        for bar in 0..6 {
            let window = windows.iter().find(|window| window.bar == bar && window.space == Space::Memory);
            let window = window.map(|window| (Gpa(window.base), window.size));
            flush |= tables.place(&self.memory, device, bar, window);
        }
        drop(tables);
        if flush {
            self.flush();
        }
    }

    fn is_placed(&self, index: usize, windows: &[BarWindow]) -> bool {
        let all = self.functions.windows.read();
        all.iter().filter(|(function, _)| *function == index).map(|(_, window)| window).eq(windows)
    }
}
