//! The I/O APIC: Prism routes one ISA line (COM1) and masks the rest.

use hv_defs::Hpa;

use crate::acpi::Facts;
use crate::mmio::Mmio;
use crate::paging::{self, NoFrame};
use crate::percpu;
use crate::percpu::CpuId;

/// Registers of the 82093AA (datasheet, section 3.0): an index and a window.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const IOAPICVER: u32 = 0x01;
const IOREDTBL: u32 = 0x10;

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;

struct IoApic(Mmio);

impl IoApic {
    fn open(address: Hpa) -> Result<Self, NoFrame> {
        paging::map_device(address, 0x20).map(Self)
    }

    fn read(&self, register: u32) -> u32 {
        self.0.write32(IOREGSEL, register);
        self.0.read32(IOWIN)
    }

    fn write(&self, register: u32, value: u32) {
        self.0.write32(IOREGSEL, register);
        self.0.write32(IOWIN, value);
    }

    fn lines(&self) -> u32 {
        (self.read(IOAPICVER) >> 16 & 0xFF) + 1
    }

    fn mask_all(&self) {
        for line in 0..self.lines() {
            self.write(IOREDTBL + 2 * line, MASKED);
        }
    }
}

/// Masks every line of every I/O APIC, then sends the ISA interrupt `irq` to `cpu` as `vector`.
pub(crate) fn route_isa(facts: &Facts, irq: u8, vector: u8, cpu: CpuId) -> Result<(), NoFrame> {
    let (gsi, flags) = facts.isa_irq(irq);
    let Some(cpu) = percpu::get(cpu) else {
        return Ok(());
    };
    for described in &facts.io_apics {
        let io = IoApic::open(described.address)?;
        io.mask_all();
        let line = gsi.wrapping_sub(described.gsi_base);
        if line < io.lines() {
            io.write(IOREDTBL + 2 * line + 1, cpu.apic_id() << 24);
            io.write(IOREDTBL + 2 * line, u32::from(vector) | mode(flags));
        }
    }
    Ok(())
}

/// Polarity and trigger mode from the flags of a MADT override (ACPI 6.5, table 5.26); ISA's own are high and edge.
fn mode(flags: u16) -> u32 {
    let polarity = if flags & 0b11 == 0b11 { ACTIVE_LOW } else { 0 };
    let trigger = if flags >> 2 & 0b11 == 0b11 { LEVEL } else { 0 };
    polarity | trigger
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn override_flags_become_mode_bits() {
        assert_eq!(mode(0), 0);
        assert_eq!(mode(0b0101), 0);
        assert_eq!(mode(0b1101), LEVEL);
        assert_eq!(mode(0b1111), LEVEL | ACTIVE_LOW);
    }
}
