//! vGPUs come, go and are reset.

use super::{Gvt, ResetKind, VGPUS, VgpuConfig, VgpuId};
use crate::gpu::engine::Health;
use crate::gpu::pool::RESERVED;
use crate::gpu::reset::Reset;
use crate::gpu::{Flushed, Gpu, PerEngine, engines};
use crate::gtt::{Gtt, Limits, Partition};
use crate::host::{Host, Mapping, NoFrame, Owner, VmId};
use crate::hw::Hw;
use crate::report::{Cause, CreateError};
use crate::stats::Stats;
use crate::trace::Note;
use crate::units::Work;
use crate::vgpu::budget::Budget;
use crate::vgpu::config_space::ConfigSpace;
use crate::vgpu::execlist::VirtEngine;
use crate::vgpu::irq::{self, Irq};
use crate::vgpu::registers::RegisterFile;
use crate::vgpu::{Fences, Storm, Vgpu, pvinfo};
use alloc::boxed::Box;
use core::ops::Range;
use gvt_defs::{Engine, EngineMask, GgttAddr, Nanos, PAGE_SIZE, reg};

/// Bytes of BAR0 whose registers a reset of the GT puts back.
const GT_REGISTERS: u32 = 0x4_0000;
/// What became of a vGPU that was to go.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destroyed {
    /// It is gone.
    Gone,
    /// It is still there: an engine may reach its memory. Ask again later.
    Stuck,
}

/// Granule of partitions: one page of global page-table entries.
const GRANULE: u32 = 2 << 20;

impl<W: Hw> Gvt<W> {
    /// Makes a vGPU for a VM that has none: its graphics addresses, fences, registers and page tables.
    ///
    /// # Errors
    /// `CreateError` says what is wrong or lacking; nothing is kept then.
    pub fn create_vgpu(&mut self, host: &mut dyn Host, vm: VmId, config: VgpuConfig) -> Result<VgpuId, CreateError> {
        check(config)?;
        if self.vgpus.iter().flatten().any(|vgpu| vgpu.vm == vm) {
            return Err(CreateError::HasOne);
        }
        let index = self.vgpus.iter().position(Option::is_none).ok_or(CreateError::NoRoom("vgpus"))?;
        let partition = self.find_partition(config)?;
        let fences = self.find_fences(config)?;
        let irq_frame = host.alloc_frame(Owner::Vm(vm)).map_err(|NoFrame| CreateError::NoFrame)?;
        let mut gtt = match Gtt::new(host, &mut self.gpu.hw, vm, partition.clone(), Limits::default()) {
            Ok(gtt) => gtt,
            Err(NoFrame) => {
                host.free_frame(Owner::Vm(vm), irq_frame);
                return Err(CreateError::NoFrame);
            }
        };
        gtt.meter(&self.gpu.hw.meter);
        let mut vgpu = Box::new(Vgpu {
            vm,
            weight: u64::from(config.weight),
            config: ConfigSpace::new(&self.gpu.config, self.gpu.aperture.size),
            file: self.fresh.clone(),
            irq: Irq::new(),
            irq_frame,
            partition,
            gtt,
            fences,
            engines: PerEngine::from_fn(|_| VirtEngine::default()),
            pool_pages: 0,
            switch_dirty: EngineMask::ALL,
            msi_due: false,
            storm: Storm::default(),
            budget: Budget::new(Nanos(0)),
            stats: Stats::new(),
        });
        pvinfo::fill(&mut vgpu.file, index as u32, &vgpu.partition, fences.count);
        vgpu.map_irq_page(host);
        clear_fences(&mut self.gpu, fences);
        if let Some(slot) = self.vgpus.get_mut(index) {
            *slot = Some(vgpu);
        }
        Ok(VgpuId(index as u8))
    }

    /// Takes a vGPU away: what it runs is stopped, engines are flushed, frames go back. Where an engine can neither be
    /// flushed nor reset, the vGPU and all its frames stay, and the VM's memory must not be given to anybody else.
    pub fn destroy_vgpu(&mut self, host: &mut dyn Host, id: VgpuId, now: Nanos) -> Destroyed {
        self.hold(host, Some(id), |gvt, host| gvt.take_away(host, id, now))
    }

    fn take_away(&mut self, host: &mut dyn Host, id: VgpuId, now: Nanos) -> Destroyed {
        let index = id.index();
        self.stop_engines(host, index, EngineMask::ALL, now);
        if self.drain(host, index, now) == Reset::Stuck {
            return Destroyed::Stuck;
        }
        for engine in Engine::ALL {
            self.gpu.engines.get_mut(engine).forget(index);
        }
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::take) else { return Destroyed::Gone };
        let Gpu { hw, pool, .. } = &mut self.gpu;
        let Vgpu { vm, mut gtt, mut engines, irq_frame, fences, .. } = *vgpu;
        for engine in Engine::ALL {
            for slot in engines.get_mut(engine).slots.iter_mut().filter_map(Option::take) {
                if let Some(window) = &slot.window {
                    gtt.ppgtt.close_window(window);
                }
                let blocks = [Some(slot.image), slot.ring, slot.arena];
                blocks.into_iter().flatten().for_each(|block| pool.free(host, hw, block));
            }
        }
        host.map_register_page(vm, irq::PAGE, Mapping::Trapped);
        host.free_frame(Owner::Vm(vm), irq_frame);
        gtt.destroy(host, hw, pool.scratch());
        clear_fences(&mut self.gpu, fences);
        Destroyed::Gone
    }

    /// Sees to it that no engine can reach anything of a vGPU that runs no more: by its TLB, or by what is still to be
    /// written from its caches to where the vGPU's page tables lead. An engine that is not sure to be flushed is reset.
    fn drain(&mut self, host: &mut dyn Host, index: usize, now: Nanos) -> Reset {
        let mut drained = Reset::Done;
        for engine in engines(self.gpu.present) {
            let phys = self.gpu.engines.get(engine);
            if phys.owner != Some(index) || (!phys.is_marked_by(index) && self.gpu.flush_tlb(engine) == Flushed::Done) {
                continue;
            }
            self.trace.push(now, Some(index), Note::EngineReset(engine));
            if self.reset_hardware(host, engine) == Reset::Stuck {
                drained = Reset::Stuck;
            }
        }
        drained
    }

    /// Resets a vGPU, or engines of it.
    pub fn reset_vgpu(&mut self, host: &mut dyn Host, id: VgpuId, kind: ResetKind, now: Nanos) {
        self.hold(host, Some(id), |gvt, host| {
            gvt.reset_index(host, id.index(), kind, now);
            gvt.finish(host, now);
        });
    }

    pub(super) fn reset_index(&mut self, host: &mut dyn Host, index: usize, kind: ResetKind, now: Nanos) {
        let engines = if let ResetKind::Engines(engines) = kind { engines } else { EngineMask::ALL };
        self.stop_engines(host, index, engines, now);
        match kind {
            ResetKind::Engines(_) => {}
            ResetKind::Gt => self.reset_gt(host, index),
            ResetKind::Device => self.reset_device(host, index),
        }
    }

    /// Stops a vGPU's engines: hardware that runs a context of it is reset, and the virtual engines are as after a
    /// reset.
    fn stop_engines(&mut self, host: &mut dyn Host, index: usize, mask: EngineMask, now: Nanos) {
        for engine in Engine::ALL.into_iter().filter(|engine| mask.has(*engine)) {
            let stop = self.runs_on(index, engine);
            let mut reset = Reset::Done;
            if stop {
                self.settle(engine, now);
                self.count_reset(index, engine, now);
                self.trace.push(now, Some(index), Note::EngineReset(engine));
                reset = self.reset_hardware(host, engine);
            }
            let phys = self.gpu.engines.get(engine);
            let lost = phys.health == Health::Dead && phys.owner == Some(index);
            if let Some(vgpu) = self.vgpu_mut(index) {
                vgpu.stats.engine_mut(engine).resets += u64::from(stop);
                if lost {
                    // The hardware may run on in what the shadow holds: that stays as it is.
                    vgpu.engines.get_mut(engine).failed = true;
                } else {
                    vgpu.reset_engine(host, engine);
                }
            }
            if stop && reset == Reset::Done {
                self.schedule(host, engine, now);
            }
        }
    }

    /// Resets an engine of the hardware. One that does not reset is told of once.
    pub(super) fn reset_hardware(&mut self, host: &mut dyn Host, engine: Engine) -> Reset {
        let before = self.gpu.engines.get(engine).health;
        let reset = self.gpu.reset_engine(host, engine);
        if let (Reset::Stuck, Some(owner)) = (reset, self.gpu.engines.get(engine).owner)
            && before != Health::Dead
        {
            self.report(owner, Cause::DeadEngine { engine });
        }
        reset
    }

    /// Registers of the GT go back to what they were at the start; interrupts and display survive.
    fn reset_gt(&mut self, host: &mut dyn Host, index: usize) {
        self.sync(host, index);
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        self.gpu.hw.meter.charge(Work::Entry, GT_REGISTERS as usize / 4);
        for offset in (0..GT_REGISTERS).step_by(4) {
            // Engine masks are set again by the driver; forcewake requests survive.
            let keeps = reg::forcewake::DOMAINS.iter().any(|(request, ack)| offset == *request || offset == *ack);
            if !keeps {
                vgpu.file.set(offset, self.fresh.get(offset));
            }
        }
        vgpu.switch_dirty = EngineMask::ALL;
    }

    fn reset_device(&mut self, host: &mut dyn Host, index: usize) {
        self.flush_owned(host, index);
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        vgpu.config = ConfigSpace::new(&self.gpu.config, self.gpu.aperture.size);
        self.gpu.hw.meter.charge(Work::Line, RegisterFile::LINES);
        vgpu.file.copy_from(&self.fresh);
        pvinfo::fill(&mut vgpu.file, index as u32, &vgpu.partition, vgpu.fences.count);
        vgpu.irq = Irq::new();
        vgpu.msi_due = false;
        vgpu.map_irq_page(host);
        vgpu.switch_dirty = EngineMask::ALL;
        vgpu.gtt.reset(host, &mut self.gpu.hw);
        let fences = vgpu.fences;
        clear_fences(&mut self.gpu, fences);
        self.flush_owned(host, index);
    }

    /// First fit, in steps of one page of page-table entries.
    fn find_partition(&mut self, config: VgpuConfig) -> Result<Partition, CreateError> {
        let aperture_end = u32::try_from(self.gpu.aperture.size).unwrap_or(1 << 31);
        let end = u64::from(self.gpu.hw.ggtt_entries()) * PAGE_SIZE;
        let hidden_end = end.saturating_sub(u64::from(RESERVED)).min(u64::from(u32::MAX - RESERVED + 1)) as u32;
        let aperture = self
            .gap(0..aperture_end, config.aperture, |partition| partition.aperture())
            .ok_or(CreateError::NoRoom("aperture"))?;
        let hidden = self
            .gap(aperture_end..hidden_end, config.hidden, |partition| partition.hidden())
            .ok_or(CreateError::NoRoom("hidden"))?;
        Partition::new(GgttAddr(aperture), config.aperture, GgttAddr(hidden), config.hidden)
            .ok_or(CreateError::BadConfig("aperture"))
    }

    fn gap(&self, range: Range<u32>, bytes: u32, of: impl Fn(&Partition) -> Range<u32>) -> Option<u32> {
        let page = PAGE_SIZE as u32;
        let mut at = range.start;
        while at.checked_add(bytes)? <= range.end {
            let (first, end) = (at / page, (at + bytes) / page);
            let clash = self
                .vgpus
                .iter()
                .flatten()
                .map(|vgpu| of(&vgpu.partition))
                .find(|taken| taken.start < end && first < taken.end);
            match clash {
                None => return Some(at),
                Some(taken) => at = taken.end.checked_mul(page)?.next_multiple_of(GRANULE),
            }
        }
        None
    }

    fn find_fences(&self, config: VgpuConfig) -> Result<Fences, CreateError> {
        let count = u32::from(config.fences);
        let taken = |fence: u32| {
            let own = |vgpu: &Vgpu| (vgpu.fences.first..vgpu.fences.first + vgpu.fences.count).contains(&fence);
            self.vgpus.iter().flatten().any(|vgpu| own(vgpu))
        };
        (0..=reg::FENCES - count)
            .find(|first| !(*first..first + count).any(taken))
            .map(|first| Fences { first, count })
            .ok_or(CreateError::NoRoom("fences"))
    }
}

fn check(config: VgpuConfig) -> Result<(), CreateError> {
    let granular = |bytes: u32| bytes != 0 && bytes.is_multiple_of(GRANULE);
    if !granular(config.aperture) {
        return Err(CreateError::BadConfig("aperture"));
    }
    if !granular(config.hidden) {
        return Err(CreateError::BadConfig("hidden"));
    }
    if u32::from(config.fences) > reg::FENCES {
        return Err(CreateError::BadConfig("fences"));
    }
    if !(1..=1024).contains(&config.weight) {
        return Err(CreateError::BadConfig("weight"));
    }
    Ok(())
}

fn clear_fences<W: Hw>(gpu: &mut Gpu<W>, fences: Fences) {
    for fence in fences.first..fences.first + fences.count {
        gpu.hw.write(reg::FENCE0 + 8 * fence, 0);
        gpu.hw.write(reg::FENCE0 + 8 * fence + 4, 0);
    }
}

const _: () = assert!(VGPUS <= 0x3F);
