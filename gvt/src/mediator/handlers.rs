//! Registers with behaviour.

use super::access::{Piece, merge};
use super::{Gvt, ResetKind};
use crate::audit::Target;
use crate::gpu::switch;
use crate::gtt::Partition;
use crate::host::Host;
use crate::hw::Hw;
use crate::report::Cause;
use crate::trace::Note;
use crate::vgpu::registers::Handler;
use crate::vgpu::{Vgpu, pvinfo as pvinfo_page};
use gvt_defs::fence::Fence;
use gvt_defs::reg::{display, forcewake, pcode};
use gvt_defs::{Engine, EngineMask, GgttAddr, Gpa, Nanos, masked, pvinfo, reg, ring};

impl<W: Hw> Gvt<W> {
    pub(super) fn handle_read(&mut self, index: usize, handler: Handler, offset: u32) -> u32 {
        match handler {
            Handler::IrqMaster | Handler::IrqBank => self.vgpu(index).map_or(0, |vgpu| vgpu.irq.read(offset)),
            Handler::Timestamp => self.gpu.hw.read(offset),
            Handler::Ring | Handler::Live => self.read_live(index, offset),
            Handler::ExeclistStatus => self.read_execlist_status(index, offset),
            Handler::EngineTlb => self.read_tlb(index, offset),
            Handler::PowerWell => self.vgpu(index).map_or(0, |vgpu| power_well(vgpu, offset)),
            Handler::RpStat => self.vgpu(index).map_or(0, |vgpu| vgpu.file.get(reg::RPNSWREQ) & 0xFF80_0000),
            _ => self.vgpu(index).map_or(0, |vgpu| vgpu.file.get(offset)),
        }
    }

    pub(super) fn handle_write(
        &mut self,
        host: &mut dyn Host,
        index: usize,
        handler: Handler,
        piece: Piece,
        now: Nanos,
    ) {
        match handler {
            Handler::Elsp => self.write_elsp(host, index, piece, now),
            Handler::IrqMaster | Handler::IrqBank => {
                if let Some(vgpu) = self.vgpu_mut(index) {
                    vgpu.write_irq(host, piece.offset, piece.value, piece.lanes);
                }
            }
            Handler::RingImr => self.write_ring_imr(index, piece),
            Handler::HwsPga => self.write_status_page(host, index, piece),
            Handler::GgttFlush => self.sync(host, index),
            Handler::EngineTlb => self.write_tlb(host, index, piece),
            Handler::Fence => self.write_fence(host, index, piece),
            Handler::Gdrst => self.write_gdrst(host, index, piece, now),
            Handler::Pvinfo => self.write_pvinfo(host, index, piece),
            Handler::ForceNonpriv => self.write_force_nonpriv(index, piece),
            _ => {
                if let Some(vgpu) = self.vgpu_mut(index) {
                    write_local(vgpu, handler, piece);
                }
            }
        }
    }

    /// Registers that mirror what an engine does: hardware's while the vGPU is on it, else as last seen, and always
    /// in the guest's terms.
    fn read_live(&mut self, index: usize, offset: u32) -> u32 {
        let Some((engine, local)) = Engine::of_register(offset) else { return 0 };
        let on_hardware = self.runs_on(index, engine);
        let Some(vgpu) = self.vgpus.get(index).and_then(Option::as_deref) else { return 0 };
        let virt = vgpu.engines.get(engine);
        let Some(slot) = virt.work.as_ref().and_then(|work| virt.slot(work.slot)) else { return vgpu.file.get(offset) };
        let (start, bytes) = slot.guest_ring;
        let shadow = slot.ring.as_ref().map_or(GgttAddr(0), |ring| ring.ggtt());
        match local {
            ring::START => start.0,
            ring::CTL => bytes.saturating_sub(4096) | ring::CTL_VALID,
            ring::TAIL => virt.work.as_ref().map_or(0, |work| work.tail),
            _ if !on_hardware => vgpu.file.get(offset),
            ring::ACTHD | ring::ACTHD_UDW => {
                let [low, high] = [ring::ACTHD, ring::ACTHD_UDW].map(|at| self.gpu.hw.read(engine.base() + at));
                let at = u64::from(high) << 32 | u64::from(low);
                let shown = match at.wrapping_sub(u64::from(shadow.0)) {
                    inside if inside < u64::from(bytes) => u64::from(start.0) + inside,
                    _ => match slot.guest_address(at & !3) {
                        Some(Target::Global(at)) => u64::from(at.0),
                        Some(Target::Process(at)) => at.0,
                        None => at,
                    },
                };
                if local == ring::ACTHD { shown as u32 } else { (shown >> 32) as u32 }
            }
            _ => self.gpu.hw.read(offset),
        }
    }

    fn read_execlist_status(&self, index: usize, offset: u32) -> u32 {
        let Some((engine, local)) = Engine::of_register(offset) else { return 0 };
        let (low, high) = self.vgpu(index).map_or((0, 0), |vgpu| vgpu.engines.get(engine).status());
        if local == ring::EXECLIST_STATUS_LO { low } else { high }
    }

    /// Busy until the physical flush has ended; what the guest changed in its tables was followed before it began.
    fn read_tlb(&mut self, index: usize, offset: u32) -> u32 {
        match tlb_engine(offset) {
            Some(engine) if self.gpu.engines.get(engine).owner == Some(index) => {
                self.gpu.hw.read(offset) & reg::TLB_INVALIDATE
            }
            // Nothing of this vGPU is cached: it was flushed out when the engine went to another.
            _ => 0,
        }
    }

    fn write_tlb(&mut self, host: &mut dyn Host, index: usize, piece: Piece) {
        if piece.value & piece.lanes & reg::TLB_INVALIDATE == 0 {
            return;
        }
        self.sync(host, index);
        let engines = tlb_engine(piece.offset).map_or(EngineMask::ALL, Engine::mask);
        for engine in Engine::ALL {
            if engines.has(engine) && self.gpu.engines.get(engine).owner == Some(index) {
                self.gpu.hw.write(engine.info().tlb, reg::TLB_INVALIDATE);
                if let Some(vgpu) = self.vgpu_mut(index) {
                    vgpu.stats.tlb_flushes += 1;
                }
            }
        }
    }

    fn write_ring_imr(&mut self, index: usize, piece: Piece) {
        let Some((engine, _)) = Engine::of_register(piece.offset) else { return };
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let value = merge(vgpu.file.get(piece.offset), piece);
        vgpu.file.set(piece.offset, value);
        if self.gpu.engines.get(engine).owner == Some(index) {
            self.follow_imr(index, engine);
        }
    }

    fn write_status_page(&mut self, host: &mut dyn Host, index: usize, piece: Piece) {
        self.sync(host, index);
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let page = merge(vgpu.file.get(piece.offset), piece) & !0xFFF;
        if page == 0 || vgpu.partition.holds(GgttAddr(page), 4096) {
            vgpu.file.set(piece.offset, page);
        }
    }

    /// A guest's fence n is the n-th of the physical ones that are its; all that it reaches must lie in its slice of the
    /// aperture.
    fn write_fence(&mut self, host: &mut dyn Host, index: usize, piece: Piece) {
        let Some(vgpu) = self.vgpus.get_mut(index).and_then(Option::as_deref_mut) else { return };
        let number = (piece.offset - reg::FENCE0) / 8;
        if number >= vgpu.fences.count {
            return;
        }
        let value = merge(vgpu.file.get(piece.offset), piece);
        vgpu.file.set(piece.offset, value);
        let low_at = reg::FENCE0 + 8 * number;
        let (low, high) = (vgpu.file.get(low_at), vgpu.file.get(low_at + 4));
        let physical = reg::FENCE0 + 8 * (vgpu.fences.first + number);
        let own = is_confined(&vgpu.partition, low, high);
        // Off while it changes; a fence into what is not the guest's stays off.
        self.gpu.hw.write(physical, 0);
        if own {
            self.gpu.hw.write(physical + 4, high);
            self.gpu.hw.write(physical, low);
        }
        self.sync(host, index);
    }

    fn write_gdrst(&mut self, host: &mut dyn Host, index: usize, piece: Piece, now: Nanos) {
        let value = piece.value & piece.lanes;
        self.trace.push(now, Some(index), Note::GuestReset(value));
        if value & reg::GDRST_FULL != 0 {
            return self.reset_index(host, index, ResetKind::Gt, now);
        }
        let engines = Engine::ALL.into_iter().filter(|engine| value & engine.info().reset != 0);
        let mask = engines.fold(EngineMask::NONE, |mask, engine| mask.or(engine.mask()));
        self.reset_index(host, index, ResetKind::Engines(mask), now);
    }

    fn write_pvinfo(&mut self, host: &mut dyn Host, index: usize, piece: Piece) {
        let offset = piece.offset - pvinfo::BASE;
        match pvinfo_page::write(offset) {
            pvinfo_page::Write::Ignore => {}
            pvinfo_page::Write::TooLittle => self.report(index, Cause::TooLittle),
            pvinfo_page::Write::Store => {
                if let Some(vgpu) = self.vgpu_mut(index) {
                    let value = merge(vgpu.file.get(piece.offset), piece);
                    vgpu.file.set(piece.offset, value);
                }
            }
            pvinfo_page::Write::Notify => self.notify(host, index, piece.value & piece.lanes),
        }
    }

    /// A guest tells of a page table made or given up. Nothing depends on its telling the truth.
    fn notify(&mut self, host: &mut dyn Host, index: usize, code: u32) {
        self.sync(host, index);
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let pdp = pvinfo::BASE + pvinfo::PDP0_LO;
        let pml4 = Gpa(u64::from(vgpu.file.get(pdp + 4)) << 32 | u64::from(vgpu.file.get(pdp)));
        match code {
            pvinfo::G2V_PPGTT_L4_CREATE => vgpu.gtt.ppgtt.create(host, pml4),
            pvinfo::G2V_PPGTT_L4_DESTROY => vgpu.gtt.ppgtt.destroy(host, pml4),
            _ => {}
        }
        self.reclaim(host, index);
    }

    /// Slots of FORCE_TO_NONPRIV: only registers whose content cannot harm others, nor outlive its owner (design D20).
    fn write_force_nonpriv(&mut self, index: usize, piece: Piece) {
        let Some((engine, _)) = Engine::of_register(piece.offset) else { return };
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let value = merge(vgpu.file.get(piece.offset), piece);
        if crate::audit::may_open(engine, value) {
            vgpu.file.set(piece.offset, value);
            if let Some(engine) = switch::engine_of(piece.offset) {
                vgpu.switch_dirty = vgpu.switch_dirty.or(engine.mask());
            }
        }
    }
}

/// Whether a fence is on and leads nowhere but into the slice of the aperture: not its ends count, but where the tiles
/// lie whose parts it covers (design D22). It makes no difference to a driver: i915 covers whole rows of tiles.
fn is_confined(partition: &Partition, low: u32, high: u32) -> bool {
    let reach = Fence::decode(low, high).and_then(|fence| Some((fence.start, fence.reach()?)));
    Fence::is_plain(low, high) && reach.is_some_and(|(start, bytes)| partition.shows(start, bytes))
}

/// The engine whose TLB a register invalidates; none for the one that means all.
fn tlb_engine(offset: u32) -> Option<Engine> {
    Engine::ALL.into_iter().find(|engine| engine.info().tlb == offset)
}

/// Handlers that touch nothing but the vGPU's own registers.
fn write_local(vgpu: &mut Vgpu, handler: Handler, piece: Piece) {
    let old = vgpu.file.get(piece.offset);
    let masked_value = masked::apply(old, piece.value & piece.lanes);
    match handler {
        Handler::Forcewake => {
            vgpu.file.set(piece.offset, masked_value);
            let ack = forcewake::DOMAINS.iter().find(|(request, _)| *request == piece.offset);
            if let Some((_, ack)) = ack {
                vgpu.file.set(*ack, masked_value);
            }
        }
        Handler::MiMode => {
            // A virtual engine stops at once and is idle whenever anybody looks.
            vgpu.file.set(piece.offset, masked_value | ring::MI_MODE_IDLE);
        }
        Handler::ResetCtl => {
            let request = masked_value & ring::RESET_CTL_REQUEST;
            let ready = if request != 0 { ring::RESET_CTL_READY } else { 0 };
            vgpu.file.set(piece.offset, request | ready);
        }
        Handler::GfxMode => vgpu.file.set(piece.offset, masked_value),
        Handler::CsbPointer => {
            if let Some((engine, _)) = Engine::of_register(piece.offset) {
                vgpu.set_csb_pointer(engine, masked::apply(old, piece.value & piece.lanes));
            }
        }
        Handler::Pcode => {
            let value = merge(old, piece);
            vgpu.file.set(piece.offset, value);
            if value & reg::PCODE_READY != 0 {
                answer_pcode(vgpu, value & 0xFF);
            }
        }
        Handler::PowerWell => vgpu.file.set(piece.offset, merge(old, piece)),
        Handler::Granted => {
            let request = merge(old, piece) & !GRANTED;
            vgpu.file.set(piece.offset, request | (request >> 1 & GRANTED));
        }
        Handler::GucStatus
        | Handler::Ring
        | Handler::Live
        | Handler::Timestamp
        | Handler::ExeclistStatus
        | Handler::RpStat => {}
        _ => debug_assert!(false, "a handler without behaviour"),
    }
}

/// The answer to a request in bit 31.
const GRANTED: u32 = 1 << 30;
/// Request bits of the power well registers; the state of each well is one bit lower.
const WELL_REQUESTS: u32 = 0xAAAA_AAAA;

/// A power well register: its own requests, and the state that all four together make. There is no display: a driver
/// that switches wells all the same must see them obey.
fn power_well(vgpu: &Vgpu, offset: u32) -> u32 {
    let wells = (0..display::PWR_WELL_CTLS).map(|i| vgpu.file.get(display::PWR_WELL_CTL1 + 4 * i));
    let requests = wells.fold(0, |all, well| all | well & WELL_REQUESTS);
    vgpu.file.get(offset) & WELL_REQUESTS | requests >> 1
}

/// Answers a PCODE command at once (spec/gen9.md B.9). Success, whatever was asked.
fn answer_pcode(vgpu: &mut Vgpu, command: u32) {
    let data = vgpu.file.get(reg::PCODE_DATA0);
    let answer = match command {
        pcode::READ_MEM_LATENCY => {
            if data == 0 {
                0x1E1A_1100
            } else {
                0x6151_4B3D
            }
        }
        pcode::CDCLK_CONTROL => data | 1,
        pcode::READ_RC6VIDS => data | 1,
        pcode::DYNAMIC_DUTY_CYCLE => (vgpu.file.get(reg::RP_STATE_CAP) >> 8 & 0xFF) << 8,
        // A request to disable it (0) must be seen to succeed, or drivers wait and warn.
        pcode::SAGV_CONTROL => 1,
        _ => data,
    };
    vgpu.file.set(reg::PCODE_DATA0, answer);
    let mailbox = vgpu.file.get(reg::PCODE_MAILBOX);
    vgpu.file.set(reg::PCODE_MAILBOX, mailbox & !(reg::PCODE_READY | 0xFF));
}
