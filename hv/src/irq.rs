//! Pending work of this CPU. Interrupt handlers only set bits here; the run loop reads them when it likes.
//!
//! Root mode runs with interrupts disabled. They are taken in the two windows below, or by leaving a guest.

use crate::percpu::{self, CpuId, PerCpu};
use crate::sync::Ordering;
use crate::trace::{self, What};
use crate::x86;

bitflags::bitflags! {
    /// What waits for the run loop of one CPU.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Pending: u32 {
        /// The local APIC timer fired; compare the deadlines and arm it again.
        const TIMER = 1 << 0;
        /// Another CPU wants this one to look at its posted work.
        const KICK = 1 << 1;
        /// Another CPU wants this one out of guest mode, or its translations flushed.
        const FLUSH = 1 << 2;
        /// Prism ends or crashed: this CPU halts.
        const STOP = 1 << 3;
        /// A device's message interrupt arrived: see `take_devices`.
        const DEVICE = 1 << 4;
        /// The console's UART has input or room.
        const CONSOLE = 1 << 5;
        /// A non-maskable interrupt arrived.
        const NMI = 1 << 6;
    }
}

/// The vectors of Prism's own IDT.
pub mod vector {
    /// Local APIC timer.
    pub const TIMER: u8 = 0x20;
    /// Another CPU asks this one to look at its work.
    pub const KICK: u8 = 0x21;
    /// Another CPU asks this one to flush.
    pub const FLUSH: u8 = 0x22;
    /// Halt.
    pub const STOP: u8 = 0x23;
    /// Sent by a CPU to itself, to have its guest exit at once; it means nothing else.
    pub const BOUNCE: u8 = 0x24;
    /// First of the device vectors.
    pub const DEVICE: u8 = 0x30;
    /// Slots for devices.
    pub const DEVICES: u8 = 32;
    /// COM1.
    pub const CONSOLE: u8 = 0x54;
    /// Spurious interrupt of the local APIC: no end of interrupt is due.
    pub const SPURIOUS: u8 = 0xFF;
}

/// What a vector means, and whether it ends with an EOI.
pub(crate) fn record(cpu: &PerCpu, vector: u8) {
    let bits = match vector {
        vector::TIMER => Pending::TIMER,
        vector::KICK => Pending::KICK,
        vector::FLUSH => Pending::FLUSH,
        vector::STOP => Pending::STOP,
        vector::CONSOLE => Pending::CONSOLE,
        device if (vector::DEVICE..vector::DEVICE + vector::DEVICES).contains(&device) => {
            cpu.devices.fetch_or(1 << (device - vector::DEVICE), Ordering::AcqRel);
            Pending::DEVICE
        }
        _ => Pending::empty(),
    };
    count(cpu, bits);
}

/// Makes one bit pending, and counts it.
pub(crate) fn count(cpu: &PerCpu, bits: Pending) {
    if let Some(count) = cpu.taken.get(bits.bits().trailing_zeros() as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    cpu.pending.fetch_or(bits.bits(), Ordering::AcqRel);
}

/// Reads and clears the pending bits of this CPU.
pub fn take() -> Pending {
    let pending = &percpu::this().pending;
    // Most turns find nothing: a plain load keeps the line shared.
    if pending.load(Ordering::Acquire) == 0 {
        return Pending::empty();
    }
    Pending::from_bits_truncate(pending.swap(0, Ordering::AcqRel))
}

/// Reads and clears the device slots that fired on this CPU (bit n is slot n).
pub fn take_devices() -> u64 {
    percpu::this().devices.swap(0, Ordering::AcqRel)
}

/// Sets bits of a CPU. It sees them when it next looks: follow with `apic::kick` to make it look now.
pub fn post(cpu: CpuId, bits: Pending) {
    if let Some(cpu) = percpu::get(cpu) {
        cpu.pending.fetch_or(bits.bits(), Ordering::AcqRel);
    }
}

/// Takes the interrupts that wait, then reads and clears the pending bits.
pub fn poll() -> Pending {
    x86::take_interrupts();
    take()
}

/// Sleeps until something is pending for this CPU, then reads and clears the pending bits.
///
/// No wake-up is lost: bits posted before the test are seen by it, and the interrupt that announces later ones stays
/// pending until the CPU halts, which it ends.
pub fn wait() -> Pending {
    if percpu::this().pending.load(Ordering::Acquire) == 0 {
        trace::note(What::Sleeps, [0; 3], [0; 2]);
        x86::halt_until_interrupt();
    }
    take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_once() {
        let cpu = percpu::this();
        record(cpu, vector::TIMER);
        record(cpu, vector::DEVICE + 3);
        record(cpu, vector::SPURIOUS);
        assert_eq!(take(), Pending::TIMER | Pending::DEVICE);
        assert_eq!(take(), Pending::empty());
        assert_eq!((take_devices(), take_devices()), (8, 0));
        assert_eq!((cpu.interrupts(Pending::TIMER), cpu.interrupts(Pending::all())), (1, 2));
    }

    #[test]
    fn vectors_do_not_overlap() {
        let fixed = [
            vector::TIMER,
            vector::KICK,
            vector::FLUSH,
            vector::STOP,
            vector::BOUNCE,
            vector::CONSOLE,
            vector::SPURIOUS,
        ];
        for (index, one) in fixed.iter().enumerate() {
            assert!(*one >= 0x20 && !fixed[..index].contains(one));
            assert!(!(vector::DEVICE..vector::DEVICE + vector::DEVICES).contains(one));
        }
    }
}
