//! What leaves the chipset of a VM.

use hv_defs::Width;
use hv_dev::{Level, Message, PowerEvent, Wires};

use super::{Request, Vm};
use crate::{console, cpus, time};

/// The outputs of one call on the chipset. Interrupts are posted at once (that takes no lock); a power event is kept
/// until the chipset's lock is free.
pub(crate) struct VmWires<'a> {
    vm: &'a Vm,
    power: Option<PowerEvent>,
}

impl<'a> VmWires<'a> {
    pub(super) fn new(vm: &'a Vm) -> Self {
        Self { vm, power: None }
    }

    /// Acts on what was kept.
    pub(super) fn finish(self) {
        match self.power {
            Some(PowerEvent::Off) => self.vm.request(Request::PowerOff),
            Some(PowerEvent::Reset) => self.vm.request(Request::Restart),
            None => {}
        }
    }
}

impl Wires for VmWires<'_> {
    fn interrupt(&mut self, message: Message) {
        self.vm.deliver(&message, None);
    }

    fn extint(&mut self, level: Level) {
        if self.vm.posted.first().is_some_and(|posted| posted.set_lint0(level)) {
            self.vm.wake(0);
        }
    }

    fn console(&mut self, byte: u8) {
        console::guest_output(self.vm.id.0, byte, time::now());
        cpus::console_written();
    }

    fn power(&mut self, event: PowerEvent) {
        self.power = Some(event);
    }

    fn config_read(&mut self, device: u8, offset: u16, width: Width) -> Option<u32> {
        self.vm.function_config_read(device, offset, width)
    }

    fn config_write(&mut self, device: u8, offset: u16, width: Width, value: u32) -> Option<()> {
        self.vm.function_config_write(device, offset, width, value)
    }
}
