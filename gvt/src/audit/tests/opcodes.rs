//! Row 14 of issue 7: where a parser and the hardware could disagree about a command, no stream gets by.

use super::*;
use gvt_defs::opcodes;

/// Commands of the batch that i915 (6.1, 6.12, 7.2) runs in a new render context of Gen9 ("null state"), in order:
/// bits 31:16 of the header, dwords.
const GOLDEN: [(u32, u32); 84] = [
    (0x7A00, 6),
    (0x6904, 1),
    (0x7814, 2),
    (0x7820, 12),
    (0x7813, 4),
    (0x781F, 6),
    (0x7851, 11),
    (0x7810, 9),
    (0x781B, 9),
    (0x7811, 10),
    (0x781E, 5),
    (0x781D, 11),
    (0x7812, 4),
    (0x7850, 5),
    (0x781C, 4),
    (0x780C, 2),
    (0x7852, 5),
    (0x7830, 2),
    (0x7831, 2),
    (0x7832, 2),
    (0x7833, 2),
    (0x7919, 4),
    (0x791A, 4),
    (0x791B, 4),
    (0x7912, 2),
    (0x7913, 2),
    (0x7914, 2),
    (0x7915, 2),
    (0x7916, 2),
    (0x7815, 11),
    (0x7819, 11),
    (0x781A, 11),
    (0x7816, 11),
    (0x7817, 11),
    (0x7849, 3),
    (0x784A, 2),
    (0x784B, 2),
    (0x7917, 259),
    (0x7918, 8),
    (0x7918, 8),
    (0x7918, 8),
    (0x7918, 8),
    (0x6101, 19),
    (0x6102, 3),
    (0x7900, 4),
    (0x7805, 8),
    (0x7904, 4),
    (0x7904, 4),
    (0x7904, 4),
    (0x7904, 4),
    (0x7908, 3),
    (0x790A, 3),
    (0x7806, 5),
    (0x7807, 5),
    (0x7804, 3),
    (0x7911, 2),
    (0x780D, 2),
    (0x7906, 2),
    (0x7907, 33),
    (0x7902, 17),
    (0x790C, 17),
    (0x780A, 5),
    (0x7808, 133),
    (0x7809, 69),
    (0x7855, 5),
    (0x680B, 1),
    (0x780E, 2),
    (0x7824, 2),
    (0x784F, 2),
    (0x784D, 2),
    (0x782B, 2),
    (0x782C, 2),
    (0x782D, 2),
    (0x782E, 2),
    (0x782F, 2),
    (0x780F, 2),
    (0x7823, 2),
    (0x7821, 2),
    (0x7826, 2),
    (0x7827, 2),
    (0x7828, 2),
    (0x7829, 2),
    (0x782A, 2),
    (0x7B00, 7),
];

fn null_state() -> Vec<u32> {
    let mut batch = Vec::new();
    for (key, dwords) in GOLDEN {
        // Single dwords have a value where others have a length.
        batch.push(key << 16 | if dwords == 1 { 1 } else { dwords - 2 });
        // What would be a store into somebody else's memory if it were taken for a command.
        batch.resize(batch.len() + dwords as usize - 1, SDI | GGTT);
    }
    batch.push(END);
    batch
}

#[test]
fn the_null_state_of_i915_passes_whole() {
    let batch = null_state();
    let mut memory = Memory::default().global(MINE, &batch);
    let (_, arena, summary) = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap();
    assert_eq!(&arena[..batch.len()], batch);
    assert_eq!((summary.blanked, summary.dropped), (0, 0));
    assert_eq!(summary.commands as usize, GOLDEN.len() + 2);
}

/// What is not in the list does not pass with a length that is only a guess: real commands could hide behind it.
#[test]
fn unknown_opcodes_refuse_the_submission() {
    for engine in Engine::ALL {
        for key in 0x6000..0x8000u32 {
            // As long as any rule for lengths may have it.
            let mut stream = vec![0; 0x110];
            stream[0] = key << 16;
            let refused = reason(engine, &stream);
            let known = opcodes::known(engine, key << 16);
            // PIPE_CONTROL has but one length.
            let length = engine == Engine::Rcs && key == 0x7A00;
            let expected = if !known { Some(Reason::Unknown) } else { length.then_some(Reason::Length) };
            assert_eq!(refused, expected, "{engine:?} {key:#x}");
        }
    }
    let hidden = [0x7956_0003, LRI, 0x2230, 7, 0];
    let mut memory = Memory::default().global(MINE, &[&hidden[..], &[END]].concat());
    let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap_err();
    let line = "unknown command: 0x79560003 at dword 0x0 of a privileged batch, 3D or media opcode 0x7956";
    assert_eq!(std::format!("{fault}"), line);
    let fault = ring(Engine::Vcs0, &[0, 0x7FFF_0000, 0]).unwrap_err();
    let line = "unknown command: 0x7fff0000 at dword 0x1 of the ring, 3D or media opcode 0x7fff";
    assert_eq!(std::format!("{fault}"), line);
}

/// The same of MI and 2D commands, of types that no engine has, and of commands that other engines have.
#[test]
fn what_an_engine_does_not_have_is_refused_in_rings_and_batches() {
    let mut refused = 0;
    for engine in Engine::ALL {
        // Types and opcodes; of 3D and media commands no opcode, above.
        for header in (0..1u32 << 10).map(|top| top << 22).filter(|header| header >> 29 != 3) {
            let known = match header >> 29 {
                0 => gvt_defs::command::mi_command(header).is_some_and(|c| c.engines.has(engine)),
                2 => engine == Engine::Bcs && gvt_defs::command::blt_command(header).is_some(),
                _ => false,
            };
            if known {
                continue;
            }
            refused += 1;
            assert_eq!(reason(engine, &[header, 0, 0, 0]), Some(Reason::Unknown), "{engine:?} {header:#x}");
            let mut memory = Memory::default().global(MINE, &[header, 0, 0, 0, END]);
            let fault = submission(engine, &[START, MINE, 0], &mut memory, 1 << 12).unwrap_err();
            assert_eq!((fault.reason, fault.part), (Reason::Unknown, Part::Batch), "{engine:?} {header:#x}");
        }
    }
    assert!(refused > 3000);
}

/// Longer than eight bits can say: the rest of it would be taken for commands, and real ones for its payload.
#[test]
fn long_constants_are_stepped_over_whole() {
    for key in [0x7839, 0x783A] {
        let mut stream = vec![SDI | GGTT; 0x102];
        stream[0] = key << 16 | 0x100;
        assert_eq!(ring(Engine::Rcs, &stream).unwrap().1.commands, 1);
        // Behind it the hardware executes, whatever stands there.
        stream.extend([SDI | GGTT, PRISM, 0, 1]);
        let fault = ring(Engine::Rcs, &stream).unwrap_err();
        assert_eq!((fault.reason, fault.offset), (Reason::Address, 0x102));
        // Had only eight bits counted, this store would have been the payload of a long state command.
        let mut hidden = vec![0; 0x102];
        (hidden[0], hidden[2]) = (key << 16 | 0x100, 0x7808_00FF);
        hidden.extend([SDI | GGTT, PRISM, 0, 1]);
        assert_eq!(reason(Engine::Rcs, &hidden), Some(Reason::Address));
    }
}
