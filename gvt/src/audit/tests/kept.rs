//! Design D20: whatever a guest can write by any path is kept per context, or put back when the engine changes hands.

use super::super::registers::{LOCAL, OPENABLE, RENDER, privileged, unprivileged};
use super::*;
use crate::gpu::switch;
use gvt_defs::{nonpriv, reg};

/// Whether the engine's context image holds a register.
fn in_image(engine: Engine, offset: u32) -> bool {
    layout(engine)
        .iter()
        .flat_map(|group| (0..group.registers.len()).filter_map(|i| group.pair(engine, i)))
        .any(|(_, register)| register == offset)
}

fn kept(engine: Engine, offset: u32) -> bool {
    in_image(engine, offset) || switch::is_put_back(engine, offset)
}

/// Every list at once: asked for each register that there is, not for what the lists say of themselves.
#[test]
fn what_a_guest_can_write_by_any_path_is_kept_or_put_back() {
    for engine in Engine::ALL {
        let image = ContextRegisters::known(engine);
        let mut writable = 0;
        for offset in (0..reg::MMIO_SIZE).step_by(4) {
            let commands = privileged(engine, offset).is_writable() || unprivileged(engine, offset).is_writable();
            let opened = may_open(engine, offset) && offset != 0;
            if commands || opened {
                assert!(kept(engine, offset), "{engine:?} {offset:#x} by command");
                writable += 1;
            }
            if image.policy(offset).is_writable() {
                assert!(in_image(engine, offset), "{engine:?} {offset:#x} by image");
            }
            if switch::engine_of(offset) == Some(engine) {
                assert!(switch::is_switched(engine, offset), "{engine:?} {offset:#x} by BAR0");
            }
        }
        assert!(writable >= 32, "{engine:?}");
    }
}

/// A slot opens more than the register that it names.
#[test]
fn whatever_a_slot_opens_is_kept_or_put_back() {
    let engine = Engine::Rcs;
    for slot in (0..0x1_0000u32).filter(|slot| *slot != 0 && may_open(engine, *slot)) {
        for offset in (0..0x1_0000).step_by(4).filter(|offset| nonpriv::slot_opens(slot, *offset)) {
            assert!(kept(engine, offset), "{offset:#x} by {slot:#x}");
        }
    }
}

#[test]
fn the_lists_name_registers_of_their_own_engine() {
    let lists = OPENABLE.into_iter().chain(RENDER.into_iter().flat_map(|(first, last)| [first, last]));
    assert!(lists.into_iter().all(|offset| Engine::of_register(offset).is_none_or(|(e, _)| e == Engine::Rcs)));
    assert!(LOCAL.iter().all(|(_, last, _)| *last < 0x800));
}
