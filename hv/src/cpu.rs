//! What Prism asks of every CPU, and the control registers it sets on each.

use raw_cpuid::CpuId as Cpuid;
use thiserror::Error;
use x86_64::registers::control::{Cr4, Cr4Flags};

/// Something that the CPU lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("cpu: no {0}; Prism needs a 64-bit Intel or AMD CPU of 2010 or later")]
pub struct Missing(&'static str);

/// Checks what the code below the virtualization backends relies on.
pub(crate) fn check() -> Result<(), Missing> {
    let cpuid = Cpuid::new();
    let features = cpuid.get_feature_info().ok_or(Missing("feature flags"))?;
    let extended = cpuid.get_extended_processor_and_feature_identifiers().ok_or(Missing("extended feature flags"))?;
    let needed = [
        (features.has_apic(), "local APIC"),
        (features.has_tsc(), "time-stamp counter"),
        (features.has_pat(), "page attribute table"),
        (extended.has_execute_disable(), "no-execute pages"),
    ];
    needed.into_iter().find(|(has, _)| !has).map_or(Ok(()), |(_, name)| Err(Missing(name)))
}

/// Brings the control registers of this CPU to what Prism runs with. Paging and write protection are on already.
pub(crate) fn init() {
    // SAFETY: 1. Global pages and machine-check exceptions change nothing that code here can see: no page is global.
    unsafe { Cr4::update(|flags| flags.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION | Cr4Flags::PAGE_GLOBAL)) };
}
