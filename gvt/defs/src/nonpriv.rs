//! Registers that an unprivileged (PPGTT) batch may write without a FORCE_TO_NONPRIV slot.

use crate::{Engine, ring};

/// Ranges for the render engine, absolute, both ends inclusive; sorted.
pub const RENDER: [(u32, u32); 23] = [
    (0x20C0, 0x20C0),
    (0x2158, 0x2158),
    (0x2290, 0x2294),
    (0x22C8, 0x22CC),
    (0x22D8, 0x22DC),
    (0x22F0, 0x22FC),
    (0x2300, 0x2354),
    (0x2360, 0x2364),
    (0x23BC, 0x23BC),
    (0x2400, 0x2420),
    (0x2430, 0x2440),
    (0x2448, 0x2454),
    (0x2500, 0x2508),
    (0x2600, 0x267C),
    (0x5200, 0x521C),
    (0x5240, 0x525C),
    (0x5280, 0x528C),
    (0x7000, 0x7000),
    (0x7004, 0x7004),
    (0x7008, 0x7008),
    (0x7034, 0x7034),
    (0xE400, 0xE400),
    (0xE404, 0xE404),
];

/// Bits 25:2 of a FORCE_TO_NONPRIV slot.
pub const SLOT_REGISTER_MASK: u32 = 0x03FF_FFFC;

/// How many registers a FORCE_TO_NONPRIV slot opens: 1, 4, 16 or 64, by its bits 1:0 (KBL PRM vol 2c; i915's
/// RING_FORCE_TO_NONPRIV_RANGE). A range begins at the register, or at its own alignment: both are open here. Bits
/// 29:28 may restrict a slot to loads or stores, which nothing here relies on.
pub const fn slot_range(slot: u32) -> (u32, u32) {
    let bytes = 4 << (2 * (slot & 3));
    let register = slot & SLOT_REGISTER_MASK;
    (register & !(bytes - 1), register + bytes - 4)
}

/// Whether a FORCE_TO_NONPRIV slot opens the register at `offset`.
pub const fn slot_opens(slot: u32, offset: u32) -> bool {
    let (first, last) = slot_range(slot);
    first <= offset && offset <= last
}

/// Whether an unprivileged batch on `engine` may write the register at `offset` (slots aside).
pub fn allowed(engine: Engine, offset: u32) -> bool {
    if matches!(engine, Engine::Rcs) {
        let after = RENDER.partition_point(|range| range.0 <= offset);
        return after.checked_sub(1).and_then(|i| RENDER.get(i)).is_some_and(|range| offset <= range.1);
    }
    let Some(local) = offset.checked_sub(engine.base()) else {
        return false;
    };
    (ring::GPR..ring::GPR + 8 * ring::GPRS).contains(&local) || (matches!(engine, Engine::Bcs) && local == ring::SWCTRL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted() {
        assert!(RENDER.windows(2).all(|p| p[0].0 <= p[0].1 && p[0].1 < p[1].0));
    }

    #[test]
    fn answers() {
        assert!(allowed(Engine::Rcs, 0x2678) && allowed(Engine::Bcs, 0x22604) && allowed(Engine::Bcs, 0x22200));
        assert!(!allowed(Engine::Rcs, 0x2094) && !allowed(Engine::Rcs, 0x2030) && !allowed(Engine::Vcs0, 0x12200));
        assert!(slot_opens(0x7304, 0x7304) && !slot_opens(0x7304, 0x7308) && !slot_opens(0x7304, 0x7300));
        assert!(slot_opens(0x2348 | 1, 0x2340) && slot_opens(0x2348 | 1, 0x2354) && !slot_opens(0x2348 | 1, 0x2358));
        assert!(!allowed(Engine::Bcs, 0x2600) && !allowed(Engine::Rcs, 0x7014));
    }
}
