//! Fences: what one leads to, by the model's own addresses, lies in the slice of the guest that set it (design D22).

use crate::mediator::{ApertureSlice, VgpuConfig};
use crate::testing::driver::Driver;
use crate::testing::machine::Machine;
use gvt_defs::{PAGE_SIZE, pvinfo, reg};

/// Bytes of the physical aperture.
const APERTURE: u64 = 512 << 20;

/// Three guests, the one in the middle, and its slice.
fn start() -> (Machine, Driver, ApertureSlice) {
    let mut m = Machine::new();
    let config = VgpuConfig { aperture: 32 << 20, ..VgpuConfig::default() };
    let [_, id, _] = [1, 2, 3].map(|vm| m.add_vm_with(vm, config));
    let d = Driver::probe(&mut m, 2, id);
    let slice = m.gvt.aperture_slice(id);
    assert!(slice.offset > 0 && slice.size == 32 << 20);
    (m, d, slice)
}

/// Sets a fence as i915 does.
fn set(m: &mut Machine, d: &mut Driver, number: u32, (low, high): (u32, u32)) {
    let at = reg::FENCE0 + 8 * number;
    for (offset, value) in [(at, 0), (at + 4, high), (at, low)] {
        d.write(m, offset, value);
    }
    assert_eq!((d.read(m, at), d.read(m, at + 4)), (low, high), "reads back as written");
}

/// The halves of the physical register behind the guest's fence.
fn physical(m: &Machine, number: u32) -> (u32, u32) {
    let mut device = m.device.borrow_mut();
    let now = device.now;
    let at = reg::FENCE0 + 8 * (4 + number);
    (device.gpu.read32(at, now), device.gpu.read32(at + 4, now))
}

/// Every byte of the slice lies in the slice, and every other one where it would without the guest.
fn assert_confined(m: &Machine, slice: ApertureSlice, at: u64, what: (u32, u32)) {
    let address = m.device.borrow().gpu.aperture_address(at);
    let inside = slice.offset..slice.offset + slice.size;
    let sound = if inside.contains(&at) { inside.contains(&address) } else { address == at };
    assert!(sound, "{what:x?} leads {at:#x} to {address:#x}");
}

/// A page in each step through the aperture, and the last bytes of each row of pages.
fn assert_all_confined(m: &Machine, slice: ApertureSlice, what: (u32, u32)) {
    for page in 0..APERTURE / PAGE_SIZE / 7 {
        assert_confined(m, slice, page * 7 * PAGE_SIZE, what);
        assert_confined(m, slice, page * 7 * PAGE_SIZE + 4095, what);
    }
}

#[test]
fn a_fence_from_the_aperture_to_the_hidden_range_stays_off() {
    let (mut m, mut d, slice) = start();
    // X tiles with rows of 1 KiB, from the last page of the slice to the first one of the guest's hidden range.
    let hidden = d.read(&mut m, pvinfo::BASE + pvinfo::NONMAPPABLE_BASE);
    assert!(u64::from(hidden) > APERTURE);
    let fence = ((slice.offset + slice.size - PAGE_SIZE) as u32 | 1, hidden | 7);
    set(&mut m, &mut d, 0, fence);
    assert_all_confined(&m, slice, fence);
    assert_eq!(physical(&m, 0).0, 0);
}

#[test]
fn a_fence_that_covers_part_of_a_row_of_tiles_at_the_end_stays_off() {
    let (mut m, mut d, slice) = start();
    let last = (slice.offset + slice.size - 64 * PAGE_SIZE) as u32;
    for tiling in [1, 3] {
        let fence = (last | tiling, (last + 63 * 4096) | 0x7FF);
        set(&mut m, &mut d, 1, fence);
        assert_all_confined(&m, slice, fence);
        assert_eq!(physical(&m, 1).0, 0);
    }
}

#[test]
fn a_fence_of_no_whole_tiles_or_with_bits_of_no_meaning_stays_off() {
    let (mut m, mut d, slice) = start();
    let start = slice.offset as u32;
    for fence in [(start | 1, (start + 0xF000) | 1), (start | 5, (start + 0xF000) | 7), (start | 1, start + 0xF807)] {
        set(&mut m, &mut d, 2, fence);
        assert_eq!(physical(&m, 2).0, 0, "{fence:x?}");
    }
}

#[test]
fn random_fences_never_lead_out_of_the_slice() {
    let (mut m, mut d, slice) = start();
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let pages = slice.size / PAGE_SIZE;
    let mut on = 0;
    for _ in 0..3000 {
        // Near the slice, most of the time; sometimes anywhere.
        let page = slice.offset / PAGE_SIZE + random(pages + 64);
        let start = if random(8) == 0 { random(1 << 20) } else { page.saturating_sub(32) };
        let most = if random(8) == 0 { 20 } else { random(14) };
        let covered = random(1 << most);
        let pitch = if random(4) == 0 { random(0x800) } else { (1 << random(12)) - 1 };
        let low = (start * PAGE_SIZE) | random(4);
        let high = ((start + covered) * PAGE_SIZE) | pitch;
        let fence = (low as u32, high as u32);
        let number = random(4) as u32;
        set(&mut m, &mut d, number, fence);
        on += u32::from(physical(&m, number) == fence && fence.0 & 1 != 0);
        let (first, end) = (u64::from(fence.0 & !0xFFF), u64::from(fence.1 & !0xFFF) + PAGE_SIZE);
        let end = end.clamp(first + 1, first + (64 << 20));
        let edges = [first, end - 1, slice.offset, slice.offset + slice.size - 1, slice.offset + slice.size];
        let others: [u64; 200] = std::array::from_fn(|_| first + random(end - first));
        for at in edges.into_iter().chain(others).filter(|at| *at < APERTURE) {
            assert_confined(&m, slice, at, fence);
        }
        // Whatever page is behind it, it is this guest's.
        m.aperture_write(d.vm, d.id, random(slice.size - 8), &[1; 8]);
    }
    assert!(on > 300, "{on} were on");
}

/// What i915 sets: whole rows of tiles.
#[test]
fn fences_of_whole_rows_of_tiles_are_on() {
    let (mut m, mut d, slice) = start();
    for (tiling, width, height) in [(1, 512, 8), (3, 128, 32)] {
        for tiles in [1, 2, 3, 5, 8, 16] {
            let (pitch, rows) = (width * tiles, slice.size as u32 / (width * tiles * height));
            let first = slice.offset as u32;
            let last = first + rows * pitch * height - PAGE_SIZE as u32;
            let fence = (first | tiling, last | (pitch / 128 - 1));
            set(&mut m, &mut d, 3, fence);
            assert_eq!(physical(&m, 3), fence);
        }
    }
}
