//! What leaves the chipset: the wires of the board.

use hv_defs::Width;

use crate::message::Message;

/// State of a signal. Always the logical one: `High` means "wants service".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Level {
    /// Quiet.
    #[default]
    Low,
    /// Active.
    High,
}

impl Level {
    /// `High` if `active`.
    pub const fn of(active: bool) -> Self {
        if active { Self::High } else { Self::Low }
    }
    /// Whether this is `High`.
    pub const fn is_high(self) -> bool {
        matches!(self, Self::High)
    }
}

/// What the guest asked of the machine as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerEvent {
    /// ACPI S5: the guest switched its machine off.
    Off,
    /// Reset through 0xCF9, the keyboard controller or port 0x92.
    Reset,
}

/// Outputs of [`crate::Chipset`], and its way to PCI functions that live outside. Implementations must not call back.
pub trait Wires {
    /// An I/O APIC message for the local APICs (see [`crate::apic::deliver`]).
    fn interrupt(&mut self, message: Message);
    /// The INTR output of the 8259 pair changed; it ends at LINT0 of the first vCPU ([`crate::apic::Posted::set_lint0`]).
    fn extint(&mut self, level: Level);
    /// A byte left COM1.
    fn console(&mut self, byte: u8);
    /// The machine is to be switched off or reset. The access that caused it still returns to the guest's vCPU.
    fn power(&mut self, event: PowerEvent);

    /// Configuration read of function 0 of `device` on bus 0; `None` if nobody lives there.
    /// `offset` is aligned to `width` and `width` is at most 4 bytes.
    fn config_read(&mut self, device: u8, offset: u16, width: Width) -> Option<u32> {
        let _ = (device, offset, width);
        None
    }
    /// Configuration write, as above.
    fn config_write(&mut self, device: u8, offset: u16, width: Width, value: u32) -> Option<()> {
        let _ = (device, offset, width, value);
        None
    }
}
