//! Guest accesses to BAR0, normalised once: whatever width and offset, handlers see dwords and byte lanes.

use super::{Gvt, VgpuId};
use crate::gtt::Waiting;
use crate::host::Host;
use crate::hw::Hw;
use crate::stats::Access;
use crate::trace::Note;
use crate::vgpu::registers::{Handler, Policy, RegisterFile, policy};
use crate::vgpu::{Vgpu, irq};
use gvt_defs::{Engine, EngineMask, GgttAddr, Nanos, masked, reg};

/// Whether more is to be done.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All is done.
    Done,
    /// The call is to be made again.
    More,
}

/// A guest's store to BAR0 that is being carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    offset: u32,
    bytes: usize,
    value: u64,
    /// Page tables that were written before it and are still to be followed, once that is known.
    left: Option<Waiting>,
}

impl Store {
    /// Of `bytes` bytes (1, 2, 4 or 8) at `offset` of BAR0; other widths are ignored.
    pub const fn new(offset: u32, bytes: usize, value: u64) -> Self {
        Self { offset, bytes, value, left: None }
    }
}

/// One dword's share of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Dword-aligned offset.
    pub(super) offset: u32,
    /// The value, in place.
    pub(super) value: u32,
    /// Bits that the access covers.
    pub(super) lanes: u32,
}

/// Cuts an access of 1 to 8 bytes into dwords. Nothing for other widths, or past the end of BAR0.
pub(super) fn pieces(offset: u32, bytes: usize, value: u64) -> impl Iterator<Item = Piece> {
    let valid = matches!(bytes, 1 | 2 | 4 | 8) && u64::from(offset) + bytes as u64 <= reg::GTTMMADR_SIZE;
    let bytes = if valid { bytes as u32 } else { 0 };
    let shift = 8 * (offset % 4);
    let mask = if bytes == 0 { 0 } else { u64::MAX >> (64 - 8 * bytes) };
    // An 8-byte access at an odd offset touches three dwords.
    let (value, lanes) = (u128::from(value & mask) << shift, u128::from(mask) << shift);
    (0..3u32).filter_map(move |i| {
        let piece = Piece {
            offset: (offset & !3).wrapping_add(4 * i),
            value: (value >> (32 * i)) as u32,
            lanes: (lanes >> (32 * i)) as u32,
        };
        (piece.lanes != 0).then_some(piece)
    })
}

impl<W: Hw> Gvt<W> {
    /// A guest's load from BAR0 of `bytes` bytes (1, 2, 4 or 8); other widths read all ones.
    pub fn mmio_read(&mut self, host: &mut dyn Host, id: VgpuId, offset: u32, bytes: usize, now: Nanos) -> u64 {
        self.hold(host, Some(id), |gvt, host| gvt.load_registers(host, id, offset, bytes, now))
    }

    fn load_registers(&mut self, host: &mut dyn Host, id: VgpuId, offset: u32, bytes: usize, now: Nanos) -> u64 {
        let index = id.index();
        let Some(vgpu) = self.vgpu_mut(index) else { return u64::MAX };
        if offset >= reg::GGTT_OFFSET as u32 {
            vgpu.stats.exits.gtt += 1;
            return vgpu.gtt.mmio_read(host, offset, bytes.min(8));
        }
        vgpu.stats.exits.count(offset, Access::Read);
        let before = self.gpu.hw.accesses();
        let mut value = 0u128;
        let mut lanes = 0u128;
        for (i, piece) in pieces(offset, bytes, 0).enumerate() {
            value |= u128::from(self.read_register(index, piece.offset)) << (32 * i);
            lanes |= u128::from(piece.lanes) << (32 * i);
        }
        let value = if lanes == 0 { u64::MAX } else { ((value & lanes) >> (8 * (offset % 4))) as u64 };
        self.charge(index, before);
        self.trace.push(now, Some(index), Note::Read(offset, value as u32));
        self.finish(host, now);
        value
    }

    /// A guest's store to BAR0, a bounded part of it in each call: the caller lets others in between. Where the store is
    /// a sync point, what the guest wrote into its page tables before is followed first. What other vCPUs write
    /// meanwhile is not: the store is done after a number of calls that is known from the first on (design D19).
    pub fn mmio_store(&mut self, host: &mut dyn Host, id: VgpuId, store: &mut Store, now: Nanos) -> Progress {
        self.hold(host, Some(id), |gvt, host| {
            let progress = gvt.follow_tables(host, id, store);
            if progress == Progress::Done {
                gvt.finish_store(host, id, *store, now);
            }
            progress
        })
    }

    /// The same in one call, for who has nobody to let in.
    pub fn mmio_write(&mut self, host: &mut dyn Host, id: VgpuId, offset: u32, bytes: usize, value: u64, now: Nanos) {
        let mut store = Store::new(offset, bytes, value);
        while self.mmio_store(host, id, &mut store, now) == Progress::More {}
    }

    fn follow_tables(&mut self, host: &mut dyn Host, id: VgpuId, store: &mut Store) -> Progress {
        let Some(vgpu) = self.vgpus.get_mut(id.index()).and_then(Option::as_deref_mut) else { return Progress::Done };
        let mut left = match store.left {
            Some(left) => left,
            None if is_sync_point(vgpu, store) => vgpu.gtt.gather(host),
            None => Waiting::NONE,
        };
        if left == Waiting::NONE {
            return Progress::Done;
        }
        let synced = vgpu.gtt.sync_part(host, &mut self.gpu.hw, &mut left);
        store.left = Some(left);
        vgpu.stats.synced_entries += u64::from(synced.ggtt_entries) + u64::from(synced.ppgtt_entries);
        vgpu.stats.ggtt_flushes += u64::from(synced.ggtt_entries != 0);
        // The store itself takes time as well.
        if left == Waiting::NONE && synced.is_short() { Progress::Done } else { Progress::More }
    }

    fn finish_store(&mut self, host: &mut dyn Host, id: VgpuId, store: Store, now: Nanos) {
        let Store { offset, bytes, value, .. } = store;
        let index = id.index();
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        if offset >= reg::GGTT_OFFSET as u32 {
            vgpu.stats.exits.gtt += 1;
            if matches!(bytes, 1 | 2 | 4 | 8) {
                vgpu.gtt.mmio_write(host, offset, bytes, value);
            }
            return;
        }
        vgpu.stats.exits.count(offset, Access::Write);
        self.trace.push(now, Some(index), Note::Write(offset, value as u32));
        let before = self.gpu.hw.accesses();
        for piece in pieces(offset, bytes, value) {
            self.write_register(host, index, piece, now);
        }
        self.charge(index, before);
        self.finish(host, now);
    }

    /// Charges register accesses made since `before` to a vGPU.
    pub(super) fn charge(&mut self, index: usize, before: u64) {
        let made = self.gpu.hw.accesses() - before;
        if let Some(vgpu) = self.vgpu_mut(index) {
            vgpu.stats.physical += made;
        }
    }

    fn read_register(&mut self, index: usize, offset: u32) -> u32 {
        match policy(offset) {
            Policy::Handled(handler) => self.handle_read(index, handler, offset),
            _ => self.vgpu(index).map_or(0, |vgpu| vgpu.file.get(offset)),
        }
    }

    fn write_register(&mut self, host: &mut dyn Host, index: usize, piece: Piece, now: Nanos) {
        let Some(vgpu) = self.vgpu_mut(index) else { return };
        let old = vgpu.file.get(piece.offset);
        match policy(piece.offset) {
            Policy::Handled(handler) => return self.handle_write(host, index, handler, piece, now),
            Policy::ReadOnly => return,
            _ if !RegisterFile::is_stored(piece.offset) => return,
            Policy::Plain => vgpu.store(host, piece.offset, merge(old, piece)),
            Policy::Masked => vgpu.store(host, piece.offset, masked::apply(old, piece.value & piece.lanes)),
            Policy::WriteOneToClear => vgpu.store(host, piece.offset, old & !(piece.value & piece.lanes)),
        }
        if let Some(engine) = crate::gpu::switch::engine_of(piece.offset) {
            vgpu.switch_dirty = vgpu.switch_dirty.or(engine.mask());
        }
    }
}

/// Register writes that privileged commands of a guest make and that the audit took out of the stream: its registers
/// take them as from its CPU, each the last one, however many there are. They count at once, before the commands run,
/// and stay if the submission is refused in the end: silicon, too, has executed what comes before a command that it
/// cannot execute, and there is nothing in them that a store to BAR0 could not do.
pub(super) struct Mirror {
    file: RegisterFile,
    engines: EngineMask,
    shows: bool,
}

impl Mirror {
    /// Takes a vGPU's registers until `put_back`.
    pub(super) fn of(vgpu: &mut Vgpu) -> Self {
        Self { file: core::mem::take(&mut vgpu.file), engines: EngineMask::NONE, shows: false }
    }

    pub(super) fn write(&mut self, offset: u32, value: u32) {
        let value = match policy(offset) {
            Policy::Plain => value,
            Policy::Masked => masked::apply(self.file.get(offset), value),
            _ => return,
        };
        self.file.set(offset, value);
        let engine = crate::gpu::switch::engine_of(offset);
        self.engines = engine.map_or(self.engines, |engine| self.engines.or(engine.mask()));
        self.shows |= offset / 4096 == irq::PAGE;
    }

    pub(super) fn status_page(&self, engine: Engine) -> GgttAddr {
        self.file.status_page(engine)
    }

    pub(super) fn put_back(self, host: &mut dyn Host, vgpu: &mut Vgpu) {
        vgpu.file = self.file;
        vgpu.switch_dirty = vgpu.switch_dirty.or(self.engines);
        if self.shows {
            vgpu.map_irq_page(host);
        }
    }
}

/// Whether a store makes the mediator follow the guest's page tables, whichever of the registers that it touches does.
fn is_sync_point(vgpu: &Vgpu, store: &Store) -> bool {
    use Handler::{Elsp, EngineTlb, Fence, Gdrst, GgttFlush, HwsPga, Pvinfo};
    let syncs = |offset| match policy(offset) {
        // The fourth dword submits.
        Policy::Handled(Elsp) => {
            Engine::of_register(offset).is_some_and(|(engine, _)| vgpu.engines.get(engine).elsp.len() == 3)
        }
        Policy::Handled(GgttFlush | EngineTlb | HwsPga | Fence | Gdrst | Pvinfo) => true,
        _ => false,
    };
    store.offset < reg::GGTT_OFFSET as u32 && pieces(store.offset, store.bytes, 0).any(|piece| syncs(piece.offset))
}

/// The old value with the covered bytes replaced.
pub(super) const fn merge(old: u32, piece: Piece) -> u32 {
    old & !piece.lanes | piece.value & piece.lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(offset: u32, bytes: usize, value: u64) -> Vec<(u32, u32, u32)> {
        pieces(offset, bytes, value).map(|p| (p.offset, p.value, p.lanes)).collect()
    }

    #[test]
    fn accesses_are_cut_into_dwords() {
        assert_eq!(cut(0x100, 4, 0x1_2345_6789), [(0x100, 0x2345_6789, u32::MAX)]);
        assert_eq!(cut(0x102, 1, 0xAB), [(0x100, 0x00AB_0000, 0x00FF_0000)]);
        assert_eq!(cut(0x103, 2, 0xABCD), [(0x100, 0xCD00_0000, 0xFF00_0000), (0x104, 0xAB, 0xFF)]);
        assert_eq!(cut(0x100, 8, 7), [(0x100, 7, u32::MAX), (0x104, 0, u32::MAX)]);
        assert_eq!(cut(0x101, 8, u64::MAX).len(), 3);
        assert_eq!(cut(0x100, 3, 1), []);
        assert_eq!(cut(0xFF_FFFE, 4, 1), []);
        assert_eq!(cut(u32::MAX, 8, 1), []);
    }
}
