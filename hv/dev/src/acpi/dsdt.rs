//! The DSDT: the devices that a guest cannot find by itself, and how to sleep.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Local,
    Memory32Fixed, Method, Name, NotEqual, Or, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store, Uuid,
};
use acpi_tables::{Aml, AmlSink};

use super::Config;
use crate::chipset::{COM1, pm};
use crate::e820;

/// The identifier of a PCI host bridge's _OSC (PCI Firmware Specification 3.3, section 4.5.1).
const HOST_BRIDGE_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// PCI Express controls that a guest may take over: all five of the first revision.
const OSC_GRANTED: u8 = 0x1F;

/// Interrupt inputs of the I/O APIC that PCI's INTA-INTD are spread over.
const INTX_FIRST_GSI: u64 = 16;
const INTX_GSIS: u64 = 8;
/// Device numbers with a routing entry.
const ROUTED_DEVICES: core::ops::Range<u64> = 1..9;

/// The body of the DSDT.
pub(super) fn body(config: &Config) -> Vec<u8> {
    let processors: Vec<_> = (0..config.vcpus).map(Processor).collect();
    let (bridge, board) = (HostBridge(config), Motherboard(config));
    let mut devices: Vec<&dyn Aml> = processors.iter().map(|processor| processor as &dyn Aml).collect();
    devices.extend([&bridge as &dyn Aml, &board]);
    let mut aml = Vec::new();
    // What to write to SLP_TYP.
    name("_S5_", &package([pm::SLP_TYP_S5.into(), pm::SLP_TYP_S5.into(), 0, 0])).to_aml_bytes(&mut aml);
    Scope::new("\\_SB_".into(), devices).to_aml_bytes(&mut aml);
    aml
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

fn package(numbers: [u64; 4]) -> PackageBuilder {
    let mut package = PackageBuilder::new();
    numbers.iter().for_each(|number| package.add_element(number));
    package
}

/// Fixed ports.
fn ports(base: u16, count: u8) -> IO {
    IO::new(base, base, 1, count)
}

/// An interrupt line of ISA, edge-triggered (6.4.2.1).
struct IsaIrq(u8);

impl Aml for IsaIrq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

struct Processor(u32);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let path = format!("C{:03X}", self.0 & 0xFFF);
        let (id, uid) = (name("_HID", &"ACPI0007"), name("_UID", &self.0));
        Device::new(path.as_str().into(), vec![&id, &uid]).to_aml_bytes(sink);
    }
}

struct HostBridge<'a>(&'a Config);

impl Aml for HostBridge<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        use AddressSpaceCacheable::{NotCacheable, PreFetchable};
        let (low, high) = (self.0.low_window(), self.0.high_window());
        let resources: [&dyn Aml; 6] = [
            &AddressSpace::new_bus_number(0u16, 0xFF),
            &ports(0xCF8, 8),
            &AddressSpace::new_io(0u16, 0xCF7, None),
            &AddressSpace::new_io(0xD00u16, 0xFFFF, None),
            &AddressSpace::new_memory(NotCacheable, true, low.start as u32, (low.end - 1) as u32, None),
            &AddressSpace::new_memory(PreFetchable, true, high.start, high.end - 1, None),
        ];
        let fields: [&dyn Aml; 10] = [
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_ADR", &0u8),
            &name("_UID", &0u8),
            &name("_BBN", &0u8),
            &name("_SEG", &0u8),
            &name("_CRS", &ResourceTemplate::new(resources.to_vec())),
            &OperatingSystemCapabilities,
            &name("_PRT", &interrupt_routing()),
            &LpcBridge,
        ];
        Device::new("PCI0".into(), fields.to_vec()).to_aml_bytes(sink);
    }
}

/// `_OSC`: grants native control of PCI Express.
struct OperatingSystemCapabilities;

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let report = |bit: &'static u8| Or::new(&status, &status, bit);
        Method::new(
            "_OSC".into(),
            4,
            true,
            vec![
                &CreateDWordField::new(&status, &Arg(3), &0u8),
                &If::new(
                    &Equal::new(&Arg(0), &Uuid::new(HOST_BRIDGE_UUID)),
                    vec![
                        &CreateDWordField::new(&control, &Arg(3), &8u8),
                        &And::new(&Local(0), &control, &OSC_GRANTED),
                        // An unknown revision; capabilities masked.
                        &If::new(&NotEqual::new(&Arg(1), &1u8), vec![&report(&0x08)]),
                        &If::new(&NotEqual::new(&control, &Local(0)), vec![&report(&0x10)]),
                        &Store::new(&control, &Local(0)),
                    ],
                ),
                // An unknown identifier.
                &Else::new(vec![&report(&0x04)]),
                &Return::new(&Arg(3)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_PRT`: fixed wiring to the I/O APIC. With the 8259 pair there is no INTx; every device has MSI.
fn interrupt_routing() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for (device, pin) in ROUTED_DEVICES.flat_map(|device| (0..4).map(move |pin| (device, pin))) {
        let gsi = INTX_FIRST_GSI + (device + pin) % INTX_GSIS;
        routes.add_element(&package([device << 16 | 0xFFFF, pin, 0, gsi]));
    }
    routes
}

struct LpcBridge;

impl Aml for LpcBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let devices: [&dyn Aml; 5] = [
            &name("_ADR", &0x001F_0000u32),
            &Legacy("COM1", "PNP0501", &[&ports(COM1, 8), &IsaIrq(4)]),
            &Legacy("RTC_", "PNP0B00", &[&ports(0x70, 2), &IsaIrq(8)]),
            &Legacy("TIMR", "PNP0100", &[&ports(0x40, 4), &IsaIrq(0)]),
            &Legacy("PIC_", "PNP0000", &[&ports(0x20, 2), &ports(0xA0, 2), &ports(0x4D0, 2), &IsaIrq(2)]),
        ];
        Device::new("LPC_".into(), devices.to_vec()).to_aml_bytes(sink);
    }
}

/// A device of the old PC: path, identifier, resources.
struct Legacy<'a>(&'static str, &'static str, &'a [&'a dyn Aml]);

impl Aml for Legacy<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let Self(path, id, resources) = *self;
        let fields: [&dyn Aml; 3] = [
            &name("_HID", &EISAName::new(id)),
            &name("_UID", &1u8),
            &name("_CRS", &ResourceTemplate::new(resources.to_vec())),
        ];
        Device::new(path.into(), fields.to_vec()).to_aml_bytes(sink);
    }
}

/// Ranges that nothing else claims. Linux uses ECAM only if it finds it here or in the memory map.
struct Motherboard<'a>(&'a Config);

impl Aml for Motherboard<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let resources: [&dyn Aml; 6] = [
            &ports(0x61, 1),
            &ports(0x80, 1),
            &ports(0x92, 1),
            &ports(pm::BASE, pm::SIZE as u8),
            &Memory32Fixed::new(true, self.0.ecam as u32, e820::ECAM_SIZE as u32),
            &Memory32Fixed::new(true, 0xFED1_C000, 0x4000),
        ];
        Legacy("MRES", "PNP0C02", &resources).to_aml_bytes(sink);
    }
}
