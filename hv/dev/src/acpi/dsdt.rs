//! The DSDT: the devices that a guest cannot find by itself, and how to sleep.

use alloc::vec::Vec;

use super::Config;
use super::aml::{Aml, Name, Resources, op};
use crate::chipset::{COM1, pm};
use crate::e820;

/// The identifier of a PCI host bridge's _OSC (PCI Firmware Specification 3.3, section 4.5.1):
/// 33DB4D5B-1FF7-401C-9657-7441C03DD766.
const HOST_BRIDGE_UUID: [u8; 16] =
    [0x5B, 0x4D, 0xDB, 0x33, 0xF7, 0x1F, 0x1C, 0x40, 0x96, 0x57, 0x74, 0x41, 0xC0, 0x3D, 0xD7, 0x66];
/// PCI Express controls that a guest may take over: all five of the first revision.
const OSC_GRANTED: u64 = 0x1F;

/// Interrupt inputs of the I/O APIC that PCI's INTA-INTD are spread over.
const INTX_FIRST_GSI: u64 = 16;
const INTX_GSIS: u64 = 8;
/// Device numbers with a routing entry.
const ROUTED_DEVICES: core::ops::Range<u64> = 1..9;

/// The body of the DSDT.
pub(super) fn body(config: &Config) -> Vec<u8> {
    let mut aml = Aml::default();
    // \_S5: what to write to SLP_TYP.
    aml.name(b"_S5_").package(4, |aml| {
        aml.integer(u64::from(pm::SLP_TYP_S5)).integer(u64::from(pm::SLP_TYP_S5)).integer(0).integer(0);
    });
    aml.scope(b"\\_SB_", |aml| {
        (0..config.vcpus).for_each(|uid| processor(aml, uid));
        host_bridge(aml, config);
        motherboard(aml, config);
    });
    aml.into_bytes()
}

fn processor(aml: &mut Aml, uid: u32) {
    let digit =
        |shift: u32| char::from_digit(uid >> shift & 0xF, 16).map_or(b'0', |digit| digit.to_ascii_uppercase() as u8);
    aml.device(&[b'C', digit(8), digit(4), digit(0)], |aml| {
        aml.name(b"_HID").string("ACPI0007");
        aml.name(b"_UID").integer(uid.into());
    });
}

fn host_bridge(aml: &mut Aml, config: &Config) {
    aml.device(b"PCI0", |aml| {
        aml.name(b"_HID").eisa_id(b"PNP0A08");
        aml.name(b"_CID").eisa_id(b"PNP0A03");
        for name in [b"_ADR", b"_UID", b"_BBN", b"_SEG"] {
            aml.name(name).integer(0);
        }
        let (low, high) = (config.low_window(), config.high_window());
        Resources::default()
            .buses(0, 0xFF)
            .ports(0xCF8, 8)
            .port_window(0, 0xCF7)
            .port_window(0xD00, 0xFFFF)
            .memory_window(low.start as u32, (low.end - 1) as u32)
            .memory_window_64(high.start, high.end - 1)
            .write(aml);
        operating_system_capabilities(aml);
        interrupt_routing(aml);
        lpc_bridge(aml);
    });
}

/// `_OSC`: grants native control of PCI Express.
fn operating_system_capabilities(aml: &mut Aml) {
    const STATUS: Name = b"CDW1";
    const CONTROL: Name = b"CDW3";
    let field = |aml: &mut Aml, offset, name: Name| {
        aml.raw(&[op::CREATE_DWORD_FIELD, op::ARG3]).integer(offset).raw(name);
    };
    let report = |aml: &mut Aml, bit| {
        aml.raw(&[op::OR]).raw(STATUS).integer(bit).raw(STATUS);
    };
    aml.method(b"_OSC", 4, |aml| {
        field(aml, 0, STATUS);
        let is_ours = |aml: &mut Aml| {
            aml.raw(&[op::EQUAL, op::ARG0]).buffer(&HOST_BRIDGE_UUID);
        };
        aml.when(is_ours, |aml| {
            field(aml, 8, CONTROL);
            aml.raw(&[op::AND]).raw(CONTROL).integer(OSC_GRANTED).raw(&[op::LOCAL0]);
            let other_revision = |aml: &mut Aml| {
                aml.raw(&[op::NOT, op::EQUAL, op::ARG1]).integer(1);
            };
            aml.when(other_revision, |aml| report(aml, 0x08));
            let masked = |aml: &mut Aml| {
                aml.raw(&[op::NOT, op::EQUAL]).raw(CONTROL).raw(&[op::LOCAL0]);
            };
            aml.when(masked, |aml| report(aml, 0x10));
            aml.raw(&[op::STORE, op::LOCAL0]).raw(CONTROL);
        });
        aml.otherwise(|aml| report(aml, 0x04));
        aml.raw(&[op::RETURN, op::ARG3]);
    });
}

/// `_PRT`: fixed wiring to the I/O APIC. With the 8259 pair there is no INTx; every device has MSI.
fn interrupt_routing(aml: &mut Aml) {
    let count = (ROUTED_DEVICES.end - ROUTED_DEVICES.start) * 4;
    aml.name(b"_PRT").package(count as u8, |aml| {
        for device in ROUTED_DEVICES {
            for pin in 0..4 {
                let gsi = INTX_FIRST_GSI + (device + pin) % INTX_GSIS;
                aml.package(4, |aml| {
                    aml.integer(device << 16 | 0xFFFF).integer(pin).integer(0).integer(gsi);
                });
            }
        }
    });
}

fn lpc_bridge(aml: &mut Aml) {
    aml.device(b"LPC_", |aml| {
        aml.name(b"_ADR").integer(0x001F_0000);
        legacy(aml, b"COM1", b"PNP0501", Resources::default().ports(COM1, 8).irq(4));
        legacy(aml, b"RTC_", b"PNP0B00", Resources::default().ports(0x70, 2).irq(8));
        legacy(aml, b"TIMR", b"PNP0100", Resources::default().ports(0x40, 4).irq(0));
        legacy(aml, b"PIC_", b"PNP0000", Resources::default().ports(0x20, 2).ports(0xA0, 2).ports(0x4D0, 2).irq(2));
    });
}

fn legacy(aml: &mut Aml, name: Name, id: &[u8; 7], resources: Resources) {
    aml.device(name, |aml| {
        aml.name(b"_HID").eisa_id(id);
        aml.name(b"_UID").integer(1);
        resources.write(aml);
    });
}

/// Ranges that nothing else claims. Linux uses ECAM only if it finds it here or in the memory map.
fn motherboard(aml: &mut Aml, config: &Config) {
    aml.device(b"MRES", |aml| {
        aml.name(b"_HID").eisa_id(b"PNP0C02");
        aml.name(b"_UID").integer(1);
        Resources::default()
            .ports(0x61, 1)
            .ports(0x80, 1)
            .ports(0x92, 1)
            .ports(pm::BASE, pm::SIZE as u8)
            .memory(config.ecam as u32, e820::ECAM_SIZE as u32)
            .memory(0xFED1_C000, 0x4000)
            .write(aml);
    });
}
