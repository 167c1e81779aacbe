//! RDMSR and WRMSR by the table of `hv_defs::msr`.

use hv_defs::msr::{self, Policy};
use hv_defs::regs::{Cr0, Efer};
use hv_defs::{Gpa, Nanos};
use hv_dev::apic::GeneralProtection;

use super::bus::VcpuApicBus;
use crate::clock::{self, KvmClock, Scale};
use crate::stats::Nobody;
use crate::time;
use crate::vcpu::Vcpu;
use crate::vendor::VirtualCpu;

const FAULT: GeneralProtection = GeneralProtection;

type Answer<T> = Result<T, GeneralProtection>;

/// What RDMSR gives.
pub(super) fn read<V: VirtualCpu>(vcpu: &mut Vcpu<V>, number: u32, now: Nanos) -> Answer<u64> {
    let Some((row, slot)) = msr::find(number) else {
        vcpu.vm.stats().nobody(Nobody::Msr, u64::from(number));
        return Err(FAULT);
    };
    match row.policy {
        Policy::Constant(value) | Policy::Ignored(value) => Ok(value),
        Policy::Stored { .. } => vcpu.stored.get(slot).copied().ok_or(FAULT),
        Policy::Native => vcpu.hw.native_msr(number).ok_or(FAULT),
        Policy::Tsc => Ok(vcpu.tsc.read(time::tsc())),
        Policy::TscAdjust => Ok(vcpu.tsc.adjust),
        Policy::Apic => vcpu.lapic.msr_read(number, now),
        Policy::Efer => Ok(vcpu.hw.efer()),
        Policy::Pat => Ok(vcpu.hw.pat()),
        Policy::TscAux => Ok(vcpu.guest.tsc_aux),
        Policy::KvmWallClock => Ok(0),
        Policy::KvmSystemTime => Ok(vcpu.clock.msr),
    }
}

/// What WRMSR does.
pub(super) fn write<V: VirtualCpu>(vcpu: &mut Vcpu<V>, number: u32, value: u64, now: Nanos) -> Answer<()> {
    let Some((row, slot)) = msr::find(number) else {
        vcpu.vm.stats().nobody(Nobody::Msr, u64::from(number));
        return Err(FAULT);
    };
    match row.policy {
        Policy::Constant(_) => Err(FAULT),
        Policy::Ignored(_) => Ok(()),
        Policy::Stored { writable, .. } if value & !writable != 0 => Err(FAULT),
        Policy::Stored { .. } => vcpu.stored.get_mut(slot).map(|place| *place = value).ok_or(FAULT),
        Policy::Native => vcpu.hw.set_native_msr(number, value).ok_or(FAULT),
        Policy::Tsc => {
            vcpu.tsc.write(time::tsc(), value);
            tsc_changed(vcpu);
            Ok(())
        }
        Policy::TscAdjust => {
            vcpu.tsc.write_adjust(value);
            tsc_changed(vcpu);
            Ok(())
        }
        Policy::Apic => {
            let mut bus = VcpuApicBus { vm: vcpu.vm, index: vcpu.index, now };
            vcpu.lapic.msr_write(number, value, now, &mut bus)
        }
        Policy::Efer => write_efer(vcpu, value),
        Policy::Pat => {
            if !is_pat(value) {
                return Err(FAULT);
            }
            vcpu.hw.set_pat(value);
            Ok(())
        }
        Policy::TscAux if value >> 32 != 0 => Err(FAULT),
        Policy::TscAux => {
            vcpu.guest.set_tsc_aux(value);
            Ok(())
        }
        Policy::KvmWallClock => {
            let bytes = clock::wall_clock(wall_seconds(vcpu), wall_nanos(vcpu));
            // An address that is not RAM is the guest's own loss.
            let _ = vcpu.vm.write(Gpa(value & !3), &bytes);
            Ok(())
        }
        Policy::KvmSystemTime => {
            vcpu.clock = KvmClock { msr: value };
            publish_time(vcpu);
            Ok(())
        }
    }
}

/// EFER as software may set it; LMA belongs to the CPU.
fn write_efer<V: VirtualCpu>(vcpu: &mut Vcpu<V>, value: u64) -> Answer<()> {
    let old = vcpu.hw.efer();
    let allowed = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE | Efer::FFXSR;
    let paging = vcpu.hw.registers().cr0 & Cr0::PG.bits() != 0;
    if value & !allowed.bits() != 0 || (paging && (value ^ old) & Efer::LME.bits() != 0) {
        return Err(FAULT);
    }
    let lma = Efer::LMA.bits();
    vcpu.hw.set_efer(value & !lma | old & lma);
    Ok(())
}

/// Eight memory types: UC, WC, WT, WP, WB, UC-.
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7))
}

fn tsc_changed<V: VirtualCpu>(vcpu: &mut Vcpu<V>) {
    vcpu.hw.set_tsc_offset(vcpu.tsc.offset);
    publish_time(vcpu);
}

/// Writes the clock page, if the guest uses it.
fn publish_time<V: VirtualCpu>(vcpu: &mut Vcpu<V>) {
    if let Some(place) = vcpu.clock.place() {
        let at_zero = vcpu.tsc.read(vcpu.vm.tsc_base());
        let _ = vcpu.vm.write(place, &clock::time_info(Scale::of(time::tsc_hz()), at_zero));
    }
}

/// Nanoseconds of the host's clock at which the VM's system time is zero.
fn origin<V: VirtualCpu>(vcpu: &Vcpu<V>) -> u64 {
    time::tsc_to_nanos(vcpu.vm.tsc_base()).0
}

fn wall_seconds<V: VirtualCpu>(vcpu: &Vcpu<V>) -> u64 {
    vcpu.vm.wall_clock() + origin(vcpu) / 1_000_000_000
}

fn wall_nanos<V: VirtualCpu>(vcpu: &Vcpu<V>) -> u32 {
    (origin(vcpu) % 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_types() {
        assert!(is_pat(0x0007_0406_0007_0406));
        assert!(is_pat(0x0407_0506_0007_0106));
        assert!(!is_pat(0x0007_0406_0007_0402));
        assert!(!is_pat(0x0807_0406_0007_0406));
    }
}
