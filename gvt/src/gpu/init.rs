//! Taking over the GPU: the snapshot first, then forcewake, reset, workarounds, engines, interrupts.

use crate::gpu::engine::PhysEngine;
use crate::gpu::parking::Parking;
use crate::gpu::pool::Pool;
use crate::gpu::{Counted, Gpu, PerEngine, engines};
use crate::host::{Host, NoFrame};
use crate::hw::Hw;
use crate::report::InitError;
use crate::vgpu::registers::snapshot_offsets;
use gvt_defs::reg::{forcewake, irq};
use gvt_defs::{Engine, EngineMask, event, masked, pci, reg};

/// Device ids of GT1 and GT2 parts (no second video engine), by their high byte.
const FAMILIES: [u16; 4] = [0x19, 0x59, 0x3E, 0x9B];
/// Entries of a 1 GiB global page table, the least that leaves room for a vGPU beside the mediator's own 64 MiB.
const LEAST_ENTRIES: u32 = 1 << 18;

impl From<NoFrame> for InitError {
    fn from(NoFrame: NoFrame) -> Self {
        Self::NoFrame
    }
}

impl<W: Hw> Gpu<W> {
    /// Takes the GPU over.
    pub(crate) fn new(hw: W, host: &mut dyn Host) -> Result<Self, InitError> {
        let mut hw = Counted::new(hw);
        let config = config_snapshot(&mut hw);
        let present = identify(config)?;
        decode(&mut hw);
        if hw.read(forcewake::GT_REQUEST) == u32::MAX {
            return Err(InitError::DeadRegisters);
        }
        // Reading a sleeping domain gives zeroes: wake them, touch nothing else, then look.
        wake(&mut hw)?;
        let registers = snapshot_offsets().map(|offset| (offset, hw.read(offset))).collect();
        let entries = hw.ggtt_entries();
        if entries < LEAST_ENTRIES {
            return Err(InitError::SmallGgtt(entries));
        }
        let aperture = hw.aperture();
        quiet(&mut hw);
        let mut pool = Pool::new(host, entries)?;
        let engines = make_engines(host, &mut hw, &mut pool)?;
        let mut gpu = Self { hw, present, engines, pool, config, registers, aperture };
        gpu.reset_all(host)?;
        gpu.listen();
        Ok(gpu)
    }

    /// Unmasks what engines report.
    fn listen(&mut self) {
        let all = event::USER_INTERRUPT
            | event::CS_MASTER_ERROR
            | event::FLUSH_NOTIFY
            | event::CONTEXT_SWITCH
            | event::SEMAPHORE_WAIT;
        for bank in 0..irq::GT_BANKS {
            let base = irq::GT_BANK0 + 0x10 * bank;
            let bits = engines(self.present)
                .filter(|engine| engine.info().irq_bank == bank)
                .fold(0, |bits, engine| bits | all << engine.info().irq_shift);
            self.hw.write(base + irq::IER, bits);
            self.hw.write(base + irq::IMR, !bits);
        }
        self.rearm();
    }
}

fn config_snapshot<W: Hw>(hw: &mut W) -> [u32; 64] {
    let mut config = [0; 64];
    for (offset, slot) in (0u16..).step_by(4).zip(config.iter_mut()) {
        *slot = hw.config_read(offset);
    }
    config
}

fn identify(config: [u32; 64]) -> Result<EngineMask, InitError> {
    let [id, ..] = config;
    if id as u16 != pci::VENDOR_INTEL {
        return Err(InitError::NoGpu(id));
    }
    let device = (id >> 16) as u16;
    if !FAMILIES.contains(&(device >> 8)) {
        return Err(InitError::UnknownDevice(device));
    }
    // GT3 and GT4 parts have a second video engine; bit 5 of the device id tells them apart on these families.
    let second = matches!(device >> 8, 0x19 | 0x59) && device & 0x20 != 0 && !matches!(device, 0x1921 | 0x5921);
    Ok(if second { EngineMask::ALL } else { EngineMask::GT2 })
}

fn decode<W: Hw>(hw: &mut W) {
    let command = hw.config_read(pci::COMMAND);
    let on = u32::from(pci::COMMAND_MEMORY | pci::COMMAND_BUS_MASTER);
    // The upper half is STATUS, whose bits clear when written as 1.
    hw.config_write(pci::COMMAND, (command & 0xFFFF) | on);
}

/// Keeps all domains awake for good: RC6 is not used.
fn wake<W: Hw>(hw: &mut Counted<W>) -> Result<(), InitError> {
    for (request, _) in forcewake::DOMAINS {
        hw.write(request, 0xFFFF_0000);
    }
    for (request, ack) in forcewake::DOMAINS {
        if !hw.poll(ack, |value| value & forcewake::KERNEL == 0) {
            return Err(InitError::Forcewake(request));
        }
        hw.write(request, masked::enable(forcewake::KERNEL));
        if !hw.poll(ack, |value| value & forcewake::KERNEL != 0) {
            return Err(InitError::Forcewake(request));
        }
    }
    Ok(())
}

/// Masks and clears every interrupt.
fn quiet<W: Hw>(hw: &mut Counted<W>) {
    hw.write(irq::MASTER, 0);
    for bank in irq::BANKS {
        hw.write(bank.base + irq::IMR, u32::MAX);
        hw.write(bank.base + irq::IER, 0);
        // A second occurrence may be queued behind the first.
        hw.write(bank.base + irq::IIR, u32::MAX);
        hw.write(bank.base + irq::IIR, u32::MAX);
    }
    hw.write(reg::RC_CONTROL, 0);
}

fn make_engines<W: Hw>(host: &mut dyn Host, hw: &mut W, pool: &mut Pool) -> Result<PerEngine<PhysEngine>, NoFrame> {
    let mut make = |engine| {
        let status = pool.alloc(host, hw, 1)?;
        let parking = Parking::new(host, hw, pool, engine)?;
        Ok(PhysEngine::new(engine, status, parking))
    };
    let [rcs, bcs, vcs0, vcs1, vecs] = Engine::ALL;
    Ok(PerEngine::from_array([make(rcs)?, make(bcs)?, make(vcs0)?, make(vcs1)?, make(vecs)?]))
}
