//! What a command costs: copy out of (fake) guest memory and one walk. Run in release, alone:
//! `cargo test --release -p gvt audit_cost -- --ignored --nocapture`.

use super::*;
use gvt_defs::{GgttAddr, mi};
use std::time::Instant;
use std::vec::Vec;

/// A batch like those of a 3D driver: state packets of every size, a primitive now and then.
pub(crate) fn three_d(dwords: usize) -> Vec<u32> {
    const PACKETS: [(u32, u32); 16] = [
        (0x7808, 5),
        (0x7809, 7),
        (0x7810, 9),
        (0x7815, 11),
        (0x7820, 12),
        (0x782A, 2),
        (0x782B, 2),
        (0x7817, 11),
        (0x781F, 6),
        (0x7851, 11),
        (0x7813, 4),
        (0x784D, 2),
        (0x784F, 2),
        (0x784B, 2),
        (0x7900, 4),
        (0x7B00, 7),
    ];
    let mut batch = Vec::with_capacity(dwords + 16);
    let mut state = 12345u32;
    while batch.len() < dwords {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
        let (key, length) = PACKETS[(state >> 16) as usize % PACKETS.len()];
        batch.push(key << 16 | (length - 2));
        batch.extend((1..length).map(|i| state ^ i));
        if key == 0x7B00 {
            batch.extend([0x7A00_0004, 1 << 20 | 1 << 14, 0x1000, 0, 1, 0]);
            batch.extend([mi::load_register_imm(1), 0x7034, 0x60]);
        }
    }
    batch
}

#[test]
#[ignore = "a measurement, for release builds"]
fn audit_cost() {
    let partition = Partition::new(GgttAddr(0), 128 << 20, GgttAddr(0x4000_0000), 512 << 20).unwrap();
    let guest = three_d(64 << 10);
    let bytes: Vec<u8> = guest.iter().flat_map(|dword| dword.to_le_bytes()).collect();
    let mut copy = vec![0u32; guest.len()];
    let (mut copied, mut walked) = (f64::MAX, f64::MAX);
    let mut commands = 0;
    for _ in 0..50 {
        let start = Instant::now();
        for (dword, raw) in copy.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *dword = u32::from_le_bytes(*raw);
        }
        copied = copied.min(start.elapsed().as_secs_f64() * 1e9);
        let start = Instant::now();
        let mut audit = Audit::new(Engine::Rcs, &partition);
        audit.ring(&mut copy).unwrap();
        walked = walked.min(start.elapsed().as_secs_f64() * 1e9);
        commands = audit.summary().commands;
    }
    let best = copied + walked;
    println!("copy {:.2}, walk {:.2} ns a command", copied / f64::from(commands), walked / f64::from(commands));
    let per_command = best / f64::from(commands);
    println!("{commands} commands, {} dwords: {per_command:.2} ns a command, copy included", guest.len());
    #[cfg(not(debug_assertions))]
    assert!(per_command < 12.0, "{per_command} ns");
}
