//! What a guest's CPU sees of its vGPU: configuration space, PVINFO, every register, the page table, by any width.

use crate::bytes::Bytes;
use gvt::testing::machine::Machine;
use gvt::{ResetKind, VgpuConfig};
use gvt_defs::{pvinfo, reg};

/// Runs one input; gives the number of accesses.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let mut m = Machine::new();
    let shape = VgpuConfig { aperture: 2 << 20, hidden: 4 << 20, ..VgpuConfig::default() };
    let id = m.add_vm_with(1, shape);
    let before = m.gvt.config_read(id, 0, 4);
    let mut accesses = 0;
    while !b.is_empty() {
        let now = m.now();
        accesses += 1;
        match b.below(16) {
            0..=3 => {
                let (offset, bytes) = (b.below(0x120) as u16, b.below(6) as usize);
                m.gvt.config_write(&mut m.host, id, offset, bytes, b.dword(), now);
                m.gvt.config_read(id, offset, bytes);
            }
            4..=12 => {
                let offset = match b.below(4) {
                    0 => pvinfo::BASE + b.below(pvinfo::SIZE),
                    1 => reg::GGTT_OFFSET as u32 + b.below(1 << 23),
                    2 => b.dword(),
                    _ => b.below(reg::MMIO_SIZE),
                };
                let bytes = b.pick(&[4, 8, 2, 1, 4, 4, 3, 0]);
                if b.below(2) == 0 {
                    m.gvt.mmio_read(&mut m.host, id, offset, bytes, now);
                } else {
                    m.gvt.mmio_write(&mut m.host, id, offset, bytes, b.qword(), now);
                }
            }
            13 => m.gvt.reset_vgpu(&mut m.host, id, b.pick(&[ResetKind::Gt, ResetKind::Device]), now),
            _ => {
                m.step();
            }
        }
        while m.gvt.take_report().is_some() {}
        check_config(&mut m, id, before);
    }
    accesses
}

/// It is the same device; its BARs are as aligned as they are large; its list of capabilities ends.
fn check_config(m: &mut Machine, id: gvt::VgpuId, before: u32) {
    assert_eq!(m.gvt.config_read(id, 0, 4), before);
    for bar in m.gvt.bars(id).into_iter().flatten() {
        assert!(bar.size.is_power_of_two() && bar.base % bar.size == 0, "{bar:x?}");
    }
    let mut at = m.gvt.config_read(id, 0x34, 1);
    let mut seen = 0;
    while at != 0 {
        seen += 1;
        assert!(seen < 48 && (0x40..0x100).contains(&at), "{at:#x}");
        at = m.gvt.config_read(id, at as u16 + 1, 1);
    }
}
