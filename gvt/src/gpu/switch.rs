//! Registers of an engine that hardware does not keep in the context image: they are loaded from the owner's virtual
//! register file when the owner changes, and only where they differ from what is loaded (no hardware reads).

use crate::hw::Hw;
use crate::vgpu::registers::RegisterFile;
use gvt_defs::{Engine, masked, nonpriv, reg, ring};

/// When a register is written at a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    /// Only the mediator writes it: what is loaded is known.
    Differs,
    /// Commands of a guest may have written it: always.
    Always,
}

/// Registers of the render engine, absolute.
const RENDER: [(u32, When); 31] = [
    (0x2088, When::Always),
    (0x2090, When::Always),
    (0x2094, When::Always),
    (0x20A0, When::Differs),
    (0x20D4, When::Differs),
    (0x20D8, When::Differs),
    (0x20E0, When::Differs),
    (0x20E4, When::Differs),
    (0x20EC, When::Always),
    (0x21F0, When::Always),
    (0x2248, When::Always),
    (0x224C, When::Differs),
    (0x23BC, When::Always),
    (0x24D0, When::Differs),
    (0x24D4, When::Differs),
    (0x24D8, When::Differs),
    (0x24DC, When::Differs),
    (0x24E0, When::Differs),
    (0x24E4, When::Differs),
    (0x24E8, When::Differs),
    (0x24EC, When::Differs),
    (0x24F0, When::Differs),
    (0x24F4, When::Differs),
    (0x24F8, When::Differs),
    (0x24FC, When::Differs),
    (0x7018, When::Always),
    (0xB004, When::Differs),
    (0xB008, When::Differs),
    (0xB110, When::Always),
    (0xB118, When::Always),
    (0xB11C, When::Differs),
];

/// The bits of a register that are the mediator's, whatever a register file says: they keep what they hold.
const fn withheld(offset: u32) -> u32 {
    match offset {
        CSFE_CHICKEN1 => ring::CSFE_PREEMPTION,
        _ => 0,
    }
}

const CSFE_CHICKEN1: u32 = Engine::Rcs.base() + ring::CSFE_CHICKEN1;

/// Registers of the other engines, from their base.
const OTHER: [(u32, When); 15] = other();

#[allow(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn other() -> [(u32, When); 15] {
    let mut rows = [(ring::NOPID, When::Always); 15];
    rows[1] = (ring::SEMA_WAIT_POLL, When::Differs);
    rows[2] = (ring::MI_PREDICATE_RESULT_2, When::Always);
    let mut slot = 0;
    while slot < ring::FORCE_TO_NONPRIV_SLOTS {
        rows[3 + slot as usize] = (ring::FORCE_TO_NONPRIV + 4 * slot, When::Differs);
        slot += 1;
    }
    rows
}

const MOCS: usize = reg::MOCS_ENTRIES as usize;
const L3: usize = reg::LNCFCMOCS_COUNT as usize;
const SLOTS: usize = RENDER.len() + MOCS + L3;

/// What an engine's switch registers hold, as far as known.
#[derive(Debug)]
pub(crate) struct Loaded {
    values: [Option<u32>; SLOTS],
}

impl Loaded {
    pub(crate) const fn unknown() -> Self {
        Self { values: [None; SLOTS] }
    }

    /// After a reset of the engine nothing is known.
    pub(crate) fn forget(&mut self) {
        self.values = [None; SLOTS];
    }
}

/// The switch registers of an engine: absolute offset, and when.
fn registers(engine: Engine) -> impl Iterator<Item = (u32, When)> {
    let render = if engine == Engine::Rcs { RENDER.as_slice() } else { &[] };
    let other = if engine == Engine::Rcs { &[] } else { OTHER.as_slice() };
    let l3 = if engine == Engine::Rcs { reg::LNCFCMOCS_COUNT } else { 0 };
    let mocs = (0..reg::MOCS_ENTRIES).map(move |i| (engine.info().mocs + 4 * i, When::Differs));
    let l3 = (0..l3).map(|i| (reg::LNCFCMOCS + 4 * i, When::Differs));
    render
        .iter()
        .copied()
        .chain(other.iter().map(move |(local, when)| (engine.base() + local, *when)))
        .chain(mocs)
        .chain(l3)
}

/// Whether a guest's write to `offset` must reach an engine it owns.
pub(crate) fn engine_of(offset: u32) -> Option<Engine> {
    match offset {
        reg::MOCS_FIRST..reg::MOCS_END => {
            Engine::ALL.into_iter().find(|e| (e.info().mocs..e.info().mocs + 4 * reg::MOCS_ENTRIES).contains(&offset))
        }
        0xB020..=0xB09C => Some(Engine::Rcs),
        _ if RENDER.iter().any(|row| row.0 == offset) => Some(Engine::Rcs),
        _ => Engine::of_register(offset)
            .filter(|(engine, local)| *engine != Engine::Rcs && OTHER.iter().any(|row| row.0 == *local))
            .map(|(engine, _)| engine),
    }
}

/// Whether a register is put back whenever its engine comes from another owner, whatever commands wrote to it.
#[cfg(test)]
pub(crate) fn is_put_back(engine: Engine, offset: u32) -> bool {
    registers(engine).any(|row| row == (offset, When::Always))
}

/// Whether a register is loaded from the owner's register file.
#[cfg(test)]
pub(crate) fn is_switched(engine: Engine, offset: u32) -> bool {
    registers(engine).any(|row| row.0 == offset)
}

/// Which registers a load must look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// The engine comes from another owner.
    NewOwner,
    /// The owner is the same and has written registers.
    SameOwner,
}

/// What a register is to hold. An empty FORCE_TO_NONPRIV slot opens the register at 0, whatever that is: NOPID instead,
/// as i915 does.
fn wanted(engine: Engine, offset: u32, file: &RegisterFile) -> u32 {
    let first = engine.base() + ring::FORCE_TO_NONPRIV;
    let is_slot = (first..first + 4 * ring::FORCE_TO_NONPRIV_SLOTS).contains(&offset);
    match file.get(offset) {
        slot if is_slot && slot & nonpriv::SLOT_REGISTER_MASK == 0 => engine.base() + ring::NOPID,
        value => value,
    }
}

/// Loads an engine's switch registers from a register file.
pub(crate) fn load<W: Hw>(hw: &mut W, loaded: &mut Loaded, engine: Engine, file: &RegisterFile, scope: Scope) {
    for ((offset, when), known) in registers(engine).zip(loaded.values.iter_mut()) {
        let want = wanted(engine, offset, file);
        let stale = scope == Scope::NewOwner && when == When::Always;
        if *known != Some(want) || stale {
            let value = if masked::is_masked(offset) { masked::exactly(want) } else { want };
            let bits = withheld(offset);
            hw.write(offset, value & !(bits << 16 | bits));
            *known = Some(want);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_fit_and_are_stored() {
        for engine in Engine::ALL {
            assert!(registers(engine).count() <= SLOTS);
            for (offset, _) in registers(engine) {
                assert!(RegisterFile::is_stored(offset), "{offset:#x}");
                assert_eq!(engine_of(offset), Some(engine), "{offset:#x}");
            }
        }
        assert!(RENDER.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(engine_of(0x229C), None);
        assert_eq!(engine_of(0x2080), None);
    }
}
