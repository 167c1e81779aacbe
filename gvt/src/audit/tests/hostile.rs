//! What a hostile guest might put into its rings and context images.

use super::*;

#[test]
fn global_addresses_stay_inside_the_partition() {
    let pipe = |flags: u32, low: u32, high: u32| vec![0x7A00_0004, flags, low, high, 1, 2];
    let atomic = mi::with_length(mi::ATOMIC, 3);
    let inline = mi::with_length(mi::ATOMIC, 11) | mi::ATOMIC_INLINE;
    let copy = mi::with_length(mi::COPY_MEM_MEM, 5);
    let qword = mi::with_length(mi::STORE_DATA_IMM, 5) | mi::STORE_QWORD;
    let report = mi::with_length(mi::REPORT_PERF_COUNT, 4);
    let wait = mi::with_length(mi::SEMAPHORE_WAIT, 4);
    let last = 0x0800_0000 + (128 << 20);
    // Engine, where the address goes, the flags that its low dword needs, and the rest of the command.
    type Form = (Engine, usize, u32, Vec<u32>);
    let with = |low: u32, high: u32, at: usize, flags: u32, command: &[u32]| {
        [&command[..at], &[low | flags, high], &command[at..]].concat()
    };
    let forms: Vec<Form> = vec![
        (Engine::Rcs, 1, 0, vec![SDI | GGTT, 1]),
        (Engine::Rcs, 1, 0, vec![qword | GGTT, 1, 2]),
        (Engine::Rcs, 2, 0, vec![SRM | GGTT, 0x2600]),
        (Engine::Rcs, 2, 0, vec![LRM | GGTT, 0x2600]),
        (Engine::Rcs, 2, 0, vec![wait | GGTT, 0]),
        (Engine::Rcs, 1, 0, vec![atomic | GGTT]),
        (Engine::Rcs, 1, 0, vec![inline | GGTT, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Engine::Rcs, 1, 0, vec![copy | mi::COPY_DESTINATION_GLOBAL_GTT, MINE, 0]),
        (Engine::Rcs, 3, 0, vec![copy | mi::COPY_SOURCE_GLOBAL_GTT, MINE, 0]),
        (Engine::Rcs, 3, 0, vec![copy | GGTT | mi::COPY_DESTINATION_GLOBAL_GTT, MINE, 0]),
        (Engine::Rcs, 2, 0, vec![0x7A00_0004, 1 << 24 | 1 << 14, 1, 2]),
        (Engine::Rcs, 2, 0, vec![0x7A00_0004, 1 << 24 | 3 << 14, 1, 2]),
        (Engine::Rcs, 1, 1, vec![report, 0]),
        (Engine::Vcs0, 1, 4, vec![FLUSH | POST_SYNC, 0]),
        (Engine::Bcs, 1, 4, vec![FLUSH_QWORD | POST_SYNC, 0, 0]),
        (Engine::Vecs, 1, 4, vec![FLUSH_QWORD | 3 << mi::FLUSH_POST_SYNC_SHIFT, 0, 0]),
        (Engine::Rcs, 1, 0, vec![START]),
    ];
    for (engine, place, flags, command) in &forms {
        for good in [MINE, HIDDEN, 0x0800_0000, last - 256] {
            let good = with(good, 0, *place, *flags, command);
            assert!(ring(*engine, &good).is_ok(), "{good:x?}");
        }
        for (low, high) in [
            (FOREIGN, 0),
            (PRISM, 0),
            (0, 0),
            (0x0800_0000 - 64, 0),
            (last, 0),
            (0xFFFF_FFC0, 0),
            (MINE, 1),
            (MINE, 0xFFFF_FFFF),
        ] {
            let bad = with(low, high, *place, *flags, command);
            assert_eq!(reason(*engine, &bad), Some(Reason::Address), "{engine:?} {bad:x?}");
        }
    }
    // The end of the access counts, not only its beginning.
    assert_eq!(reason(Engine::Rcs, &[qword | GGTT, last - 4, 0, 1, 2]), Some(Reason::Address));
    let (ran, _) = ring(Engine::Rcs, &pipe(1 << 24 | 1 << 14, last - 4, 0)).unwrap();
    assert_eq!(ran[2], last - 8);
    let mut long = vec![mi::header(mi::STORE_DATA_IMM) | GGTT | 0x3FF, last - 4096, 0];
    long.resize(0x401, 0);
    assert_eq!(reason(Engine::Rcs, &long), None);
    long[1] = last - 4084;
    assert_eq!(reason(Engine::Rcs, &long), Some(Reason::Address));
    // Process addresses are the page tables' business.
    assert_eq!(reason(Engine::Rcs, &pipe(1 << 14, PRISM, 0x7FFF)), None);
    assert_eq!(reason(Engine::Vcs0, &[FLUSH | POST_SYNC, PRISM, 0, 0]), None);
}

#[test]
fn stores_into_the_status_page_stay_in_it() {
    let index = 1 << 14 | 1 << 21;
    assert_eq!(reason(Engine::Rcs, &[0x7A00_0004, index, 0xFF8, 0, 0, 0]), None);
    assert_eq!(reason(Engine::Rcs, &[0x7A00_0004, index, 0x1000, 0, 0, 0]), Some(Reason::Index));
    assert_eq!(reason(Engine::Rcs, &[0x7A00_0004, index, 0xFFFF_FFF8, 0, 0, 0]), Some(Reason::Index));
    assert_eq!(reason(Engine::Rcs, &[0x7A00_0004, index, 0xD0, 1, 0, 0]), Some(Reason::Index));
    let flush = FLUSH_QWORD | POST_SYNC | mi::FLUSH_STORE_INDEX;
    assert_eq!(reason(Engine::Vcs0, &[flush, 0x1000, 0, 0, 0]), Some(Reason::Index));
    assert_eq!(reason(Engine::Vcs0, &[flush, 0xD0 | 4, 0, 0, 0]), None);
    // Never the engine's status page, which is the mediator's.
    for engine in [Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
        let (ran, _) = ring(engine, &[flush, 0xD0 | mi::FLUSH_DW1_GLOBAL_GTT, 0, 1, 2]).unwrap();
        assert_eq!(ran, [flush, 0xD0, 0, 1, 2], "{engine:?}");
    }
    let (ran, _) = ring(Engine::Rcs, &[0x7A00_0004, index | 1 << 24, 0xD0, 0, 1, 2]).unwrap();
    assert_eq!(ran, [0x7A00_0004, index, 0xD0, 0, 1, 2]);
    let store = mi::with_length(mi::STORE_DATA_INDEX, 3);
    let (ran, _) = ring(Engine::Rcs, &[store, 0xFFFF_F040, 9]).unwrap();
    assert_eq!(ran, [store | mi::STORE_INDEX_PPHWSP, 0x40, 9]);
    assert_eq!(reason(Engine::Rcs, &[store, 0xFFC, 9]), Some(Reason::Index));
}

/// What a guest's driver means by the engine's status page is the page that it gave to its own engine.
#[test]
fn stores_into_the_engines_status_page_go_to_the_guests_own() {
    let partition = partition();
    let audit = |engine, page, command: &[u32]| {
        let mut command = command.to_vec();
        let mut audit = Audit::new(engine, &partition).with_status_page(GgttAddr(page));
        audit.ring(&mut command).map(|()| command)
    };
    let (flush, wide) = (FLUSH | POST_SYNC, FLUSH_QWORD | 3 << mi::FLUSH_POST_SYNC_SHIFT);
    let (index, pipe) = (mi::FLUSH_STORE_INDEX, 1 << 20 | 1 << 14 | 1 << 24);
    let store = mi::with_length(mi::STORE_DATA_INDEX, 3);
    for page in [MINE, HIDDEN] {
        for engine in [Engine::Bcs, Engine::Vcs0, Engine::Vecs] {
            let ran = audit(engine, page, &[flush | index, 0x40 | 4, 0, 1]).unwrap();
            assert_eq!(ran, [flush, page | 0x40 | 4, 0, 1], "{engine:?}");
            let ran = audit(engine, page, &[wide | index, 0xFF8 | 4, 0, 1, 2]).unwrap();
            assert_eq!(ran, [wide, page | 0xFF8 | 4, 0, 1, 2], "{engine:?}");
            // Without the bit it is the context's page, as ever.
            assert_eq!(audit(engine, page, &[flush | index, 0xD0, 0, 1]).unwrap(), [flush | index, 0xD0, 0, 1]);
        }
        let ran = audit(Engine::Rcs, page, &[0x7A00_0004, pipe | 1 << 21, 0x7C & !7, 0, 1, 2]).unwrap();
        assert_eq!(ran, [0x7A00_0004, pipe, page | 0x78, 0, 1, 2]);
        let outside = [0x7A00_0004, pipe | 1 << 21, 0x1000, 0, 1, 2];
        assert_eq!(audit(Engine::Rcs, page, &outside).unwrap_err().reason, Reason::Index);
        // There is no command of three dwords with an address: the context's page.
        let ran = audit(Engine::Rcs, page, &[store, 0x40, 9]).unwrap();
        assert_eq!(ran, [store | mi::STORE_INDEX_PPHWSP, 0x40, 9]);
    }
    // A page that is not the guest's, or none.
    for page in [0, FOREIGN, PRISM, 0xFFFF_F000] {
        let ran = audit(Engine::Bcs, page, &[flush | index, 0x40 | 4, 0, 1]).unwrap();
        assert_eq!(ran, [flush | index, 0x40, 0, 1], "{page:#x}");
        let ran = audit(Engine::Rcs, page, &[0x7A00_0004, pipe | 1 << 21, 0x40, 0, 1, 2]).unwrap();
        assert_eq!(ran, [0x7A00_0004, pipe & !(1 << 24) | 1 << 21, 0x40, 0, 1, 2], "{page:#x}");
    }
}

/// An access is as wide as any reading of the command makes it, and lies where any reading puts it.
#[test]
fn what_can_be_read_in_two_ways_is_judged_by_the_worse() {
    let last = 0x0800_0000 + (128 << 20);
    // Eight and sixteen bytes by the operation, whatever the size field says.
    let atomic = mi::with_length(mi::ATOMIC, 3) | GGTT;
    for (operation, good, bad) in [(0x07, last - 4, last), (0x27, last - 8, last - 4), (0x4E, last - 16, last - 12)] {
        assert_eq!(reason(Engine::Rcs, &[atomic | operation << 8, good, 0]), None, "{operation:#x}");
        assert_eq!(reason(Engine::Rcs, &[atomic | operation << 8, bad, 0]), Some(Reason::Address), "{operation:#x}");
    }
    // Eight bytes by the flag, four by the length.
    assert_eq!(reason(Engine::Bcs, &[SDI | GGTT | mi::STORE_QWORD, last - 4, 0, 1]), Some(Reason::Address));
    assert_eq!(reason(Engine::Bcs, &[SDI | GGTT, last - 4, 0, 1]), None);
    // A register and memory at once: the offset would be an address in somebody's aperture.
    let both = 1 << 23 | 1 << 14 | 1 << 24;
    let (ran, _) = ring(Engine::Rcs, &[0x7A00_0004, both, 0x2600, 0, 7, 0]).unwrap();
    assert_eq!(ran, [0x7A00_0004, both & !(3 << 14), 0x2600, 0, 7, 0]);
    // "Core mode" moves an address.
    let report = mi::with_length(mi::REPORT_PERF_COUNT, 4);
    let (ran, _) = ring(Engine::Rcs, &[report, MINE | 0x3F, 0, 7]).unwrap();
    assert_eq!(ran, [report, MINE | 1, 0, 7]);
    let (ran, _) = ring(Engine::Rcs, &[SDI | GGTT, MINE | 3, 0, 7]).unwrap();
    assert_eq!(ran, [SDI | GGTT, MINE, 0, 7]);
    // A process cannot have its driver's submission refused by an index.
    let at_process = u64::from(PROCESS[1]) << 32 | u64::from(PROCESS[0]);
    let flush = FLUSH | POST_SYNC | mi::FLUSH_STORE_INDEX;
    let mut memory = Memory::default().process(at_process, &[flush, 0x1000, 0, 1, flush, 0x40 | 4, 0, 1, END]);
    let start = [START | mi::BB_PPGTT, PROCESS[0], PROCESS[1]];
    let (_, arena, _) = submission(Engine::Bcs, &start, &mut memory, 1 << 16).unwrap();
    assert_eq!(arena[..9], [0, 0, 0, 0, 0, 0, 0, 0, END]);
}

/// What a command reads of an engine's state, of another engine, or of what all share, is zero; the store happens.
#[test]
fn registers_that_are_not_the_guests_are_read_as_zero() {
    let store = mi::with_length(mi::STORE_REGISTER_MEM, 4);
    let zero = mi::with_length(mi::STORE_DATA_IMM, 4);
    let poll = mi::with_length(mi::SEMAPHORE_WAIT, 4) | mi::SEMAPHORE_REGISTER_POLL | mi::SEMAPHORE_POLL;
    let own = Engine::Rcs.base();
    for register in [own + ring::ACTHD, own + ring::START, own + ring::HWS_PGA, own + ring::PDP0_LDW, 0x22358, 0x44200]
    {
        let (ran, _) = ring(Engine::Rcs, &[store | GGTT, register, MINE, 0]).unwrap();
        assert_eq!(ran, [zero | GGTT, MINE, 0, 0], "{register:#x}");
        let (ran, _) = ring(Engine::Rcs, &[store, register, PRISM, 0x7FFF]).unwrap();
        assert_eq!(ran, [zero, PRISM, 0x7FFF, 0], "{register:#x}");
        assert_eq!(reason(Engine::Rcs, &[store | GGTT, register, PRISM, 0]), Some(Reason::Address));
        let (ran, _) = ring(Engine::Rcs, &[LRR, register, 0x2600]).unwrap();
        assert_eq!(ran, [mi::load_register_imm(1), 0x2600, 0], "{register:#x}");
        assert_eq!(reason(Engine::Rcs, &[poll, 0, register, 0]), Some(Reason::Forbidden));
    }
    for command in [[store | GGTT, 0x2358, MINE, 0], [store | GGTT, 0xB118, MINE, 0], [store, 0x2600, PRISM, 0x7FFF]] {
        assert_eq!(ring(Engine::Rcs, &command).unwrap().0, command);
    }
    // In the copy of a process's blitter batch, too: it runs with Prism's privilege.
    let at_process = u64::from(PROCESS[1]) << 32 | u64::from(PROCESS[0]);
    let mut memory = Memory::default().process(at_process, &[store, 0x22074, 0x1000, 0, poll, 0, 0x22074, 0, END]);
    let start = [START | mi::BB_PPGTT, PROCESS[0], PROCESS[1]];
    let (_, arena, _) = submission(Engine::Bcs, &start, &mut memory, 1 << 16).unwrap();
    assert!(arena.windows(8).any(|run| run == [zero, 0x1000, 0, 0, 0, 0, 0, 0]), "{arena:x?}");
}

/// Three-level page tables: the context would run on in the space that the image names.
#[test]
fn page_directories_by_command_refuse_the_submission() {
    for register in [0x2270, 0x2274, 0x228C] {
        let load = [mi::load_register_imm(2), 0x2600, 1, register, 0x1000];
        assert_eq!(reason(Engine::Rcs, &load), Some(Reason::Forbidden), "{register:#x}");
        assert_eq!(reason(Engine::Rcs, &[LRM | GGTT, register, MINE, 0]), Some(Reason::Forbidden));
        assert_eq!(reason(Engine::Rcs, &[LRR, 0x2600, register]), Some(Reason::Forbidden));
        let flush = [0x7A00_0004, 1 << 23 | 1 << 14, register, 0, 7, 0];
        assert_eq!(reason(Engine::Rcs, &flush), Some(Reason::Forbidden));
        let mut memory = Memory::default().global(MINE, &[&load[..], &[END]].concat());
        let fault = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap_err();
        assert_eq!(fault.reason, Reason::Forbidden);
    }
    // From a process batch the hardware drops it, and so does the copy of one.
    let at_process = u64::from(PROCESS[1]) << 32 | u64::from(PROCESS[0]);
    let mut memory = Memory::default().process(at_process, &[LRI, 0x22270, 7, END]);
    let start = [START | mi::BB_PPGTT, PROCESS[0], PROCESS[1]];
    let (_, arena, _) = submission(Engine::Bcs, &start, &mut memory, 1 << 16).unwrap();
    assert_eq!(arena[..4], [LRI, 0x22094, 0, END]);
}

#[test]
fn forbidden_registers_are_dropped_in_the_ring_and_in_privileged_batches() {
    let forbidden = [
        0x2030, 0x2034, 0x2038, 0x203C, 0x2080, 0x20A8, 0x20D0, 0x2110, 0x2140, 0x21C0, 0x21C4, 0x2230, 0x2244, 0x229C,
        0x2358, 0x23A0, 0x24D0, 0x24FC, 0x22230, 0x12080, 0x4030, 0x4260, 0x941C, 0xA188, 0xC800, 0x44200, 0x4_4304,
        0x7_8818, 0x10_0000, 0x10_1008, 0x13_8124, 0x1F_FFFC, 0x7F_FFFC,
    ];
    let partition = partition();
    for register in forbidden {
        let command = [mi::load_register_imm(2), register, 0xFFFF_FFFF, 0x2600, 1];
        let clean = [mi::load_register_imm(2), 0x2094, 0, 0x2600, 1];
        let mut dwords = command;
        let mut dropped = Vec::new();
        let mut sink = |register, value| dropped.push((register, value));
        Audit::new(Engine::Rcs, &partition).telling(&mut sink).ring(&mut dwords).unwrap();
        // TIMESTAMP is among the statistics that any batch may write on RCS only below it.
        assert_eq!(dwords, clean, "{register:#x}");
        assert_eq!(dropped, [(register, 0xFFFF_FFFF)]);
        let mut memory = Memory::default().global(MINE, &[&command[..], &[END]].concat());
        let (_, arena, summary) = submission(Engine::Rcs, &[START, MINE, 0], &mut memory, 1 << 16).unwrap();
        assert_eq!((&arena[..5], summary.dropped), (&clean[..], 1));
        // By other ways.
        assert_eq!(ring(Engine::Rcs, &[LRM | GGTT, register, MINE, 0]).unwrap().0, [0; 4], "{register:#x}");
        assert_eq!(ring(Engine::Rcs, &[LRR, 0x2600, register]).unwrap().0, [0; 3]);
        let (ran, _) = ring(Engine::Rcs, &[0x7A00_0004, 1 << 23 | 1 << 14, register, 0, 7, 0]).unwrap();
        assert_eq!(ran, [0x7A00_0004, 0, register, 0, 7, 0]);
    }
    // Header bits that later generations read as "relative to the engine".
    let (ran, _) = ring(Engine::Rcs, &[LRI | 1 << 19 | 1 << 17, 0x2600, 1]).unwrap();
    assert_eq!(ran, [LRI, 0x2600, 1]);
    let (ran, _) = ring(Engine::Rcs, &[LRR | 1 << 18, 0x2604, 0x2600]).unwrap();
    assert_eq!(ran, [LRR, 0x2604, 0x2600]);
    // Offset bits that the field does not have cannot hide a register.
    let (ran, _) = ring(Engine::Rcs, &[LRI, 0xFF80_2233, 1]).unwrap();
    assert_eq!(ran, [LRI, 0x2094, 0]);
}

#[test]
fn the_ring_cannot_be_stopped_by_a_register_write() {
    let mode = 0x2000 + ring::MI_MODE;
    let (ran, _) = ring(Engine::Rcs, &[LRI, mode, 0x4100_4100]).unwrap();
    assert_eq!(ran, [LRI, mode, 0x4000_4100]);
    assert_eq!(ring(Engine::Rcs, &[LRM, mode, 0x5000, 0]).unwrap().0, [0; 4], "a value not known yet");
}

#[test]
fn malformed_streams_are_refused() {
    let unknown = |header| reason(Engine::Rcs, &[header, 0, 0, 0]);
    assert_eq!(unknown(0xDEAD_BEEF), Some(Reason::Unknown));
    assert_eq!(unknown(0x1F80_0000), Some(Reason::Unknown));
    assert_eq!(unknown(blt::with_length(blt::XY_COLOR_BLT, 4)), Some(Reason::Unknown));
    assert_eq!(reason(Engine::Bcs, &[0x7A00_0004, 0, 0, 0, 0, 0]), Some(Reason::Unknown));
    assert_eq!(unknown(mi::with_length(mi::UPDATE_GTT, 4)), Some(Reason::Forbidden));
    // Lengths: wrong, huge, past the end.
    assert_eq!(reason(Engine::Rcs, &[mi::header(mi::STORE_DATA_IMM) | GGTT | 1, MINE, 0]), Some(Reason::Length));
    assert_eq!(reason(Engine::Rcs, &[LRI + 1, 0x2600, 1, 0x2604]), Some(Reason::Length));
    assert_eq!(reason(Engine::Rcs, &[0x7A00_0003, 1 << 24 | 1 << 14, PRISM, 0, 0]), Some(Reason::Length));
    assert_eq!(reason(Engine::Rcs, &[START + 1, PRISM, 0, 0]), Some(Reason::Length));
    let fault = ring(Engine::Rcs, &[0, 0x7000_FFFF, 0]).unwrap_err();
    assert_eq!((fault.offset, fault.reason), (1, Reason::Truncated));
    assert_eq!(reason(Engine::Rcs, &[SDI]), Some(Reason::Truncated));
    assert_eq!(reason(Engine::Rcs, &[]), None);
    // Add-offset would move a start that was checked.
    assert_eq!(reason(Engine::Rcs, &[START | mi::BB_ADD_OFFSET, MINE, 0]), Some(Reason::Forbidden));
    let text = std::format!("{fault}");
    assert_eq!(text, "command runs past the end: 0x7000ffff at dword 0x1 of the ring");
}

#[test]
fn what_has_no_meaning_here_becomes_no_ops() {
    for command in [
        &[mi::WAIT_FOR_EVENT << 23 | 0x40][..],
        &[mi::with_length(mi::DISPLAY_FLIP, 3), 0x1000, PRISM],
        &[mi::with_length(mi::LOAD_SCAN_LINES_INCL, 2), 5],
        &[mi::with_length(mi::SET_CONTEXT, 2), PRISM],
        &[mi::with_length(mi::SEMAPHORE_SIGNAL, 2), 0x1234],
        &[mi::REPORT_HEAD << 23],
        &[mi::SET_PREDICATE << 23 | 15],
        &[END],
        &[mi::with_length(mi::CLFLUSH, 3) | GGTT, PRISM, 0],
        &[mi::with_length(mi::CONDITIONAL_BATCH_BUFFER_END, 4) | GGTT, 0, PRISM, 0],
    ] {
        let (ran, summary) = ring(Engine::Rcs, command).unwrap();
        assert_eq!(ran, vec![0; command.len()], "{command:x?}");
        assert_eq!(summary.blanked, 1);
    }
    let wait = mi::with_length(mi::SEMAPHORE_WAIT, 4);
    let (ran, _) = ring(Engine::Rcs, &[wait, 1, 0x5000, 0]).unwrap();
    assert_eq!(ran[0], wait | mi::SEMAPHORE_POLL, "a signal would never come");
}

#[test]
fn forged_context_images() {
    let partition = partition();
    let registers = ContextRegisters::known(Engine::Rcs);
    let audit_image = |dwords: &[u32]| {
        let mut dwords = dwords.to_vec();
        let mut audit = Audit::new(Engine::Rcs, &partition);
        audit.context(&mut dwords, &registers).map(|()| dwords)
    };
    for register in [0x2038, 0x2080, 0x2230, 0x2244, 0x2270, 0x229C, 0x24D0, 0x2140, 0x21C0, 0x2358, 0x4_4200, 0x22600]
    {
        assert_eq!(audit_image(&[LRI, register, 7, END]).unwrap(), [LRI, 0x2094, 0, END], "{register:#x}");
    }
    let mode = 0x2000 + ring::MI_MODE;
    assert_eq!(audit_image(&[LRI, mode, 0xFFFF_0100, END]).unwrap(), [LRI, mode, 0xFEFF_0100, END]);
    for command in [
        &[SDI | GGTT, MINE, 0, 1][..],
        &[START, MINE, 0],
        &[START | mi::BB_PPGTT, 0, 0],
        &[0x7A00_0004, 1 << 14, 0, 0, 0, 0],
        &[LRM, 0x2600, 0, 0],
        &[SRM | GGTT, 0x2600, PRISM, 0],
        &[ARB_OFF],
    ] {
        assert_eq!(audit_image(command).unwrap_err().reason, Reason::Forbidden, "{command:x?}");
    }
    assert_eq!(audit_image(&[0xDEAD_BEEF]).unwrap_err().reason, Reason::Unknown);
}

#[test]
fn nothing_may_be_started_from_restore_batches() {
    let partition = partition();
    let mut audit = Audit::new(Engine::Rcs, &partition);
    for start in [START, START | mi::BB_PPGTT, START | mi::BB_SECOND_LEVEL] {
        assert_eq!(audit.indirect(&mut [start, MINE, 0]).unwrap_err().reason, Reason::Forbidden);
        assert_eq!(audit.per_context(&mut [start, MINE, 0, END]).unwrap_err().reason, Reason::Forbidden);
    }
}

/// Whatever the dwords are, the audit ends, and what it lets pass obeys the rules when audited again.
#[test]
fn random_streams_neither_panic_nor_pass_twice_differently() {
    let mut state = 0x1234_5678_9ABC_DEFFu64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u32
    };
    let partition = partition();
    let mut passed = 0;
    for round in 0..60_000 {
        let mut dwords: Vec<u32> = (0..next() % 24)
            .map(|_| match next() % 6 {
                0 => mi::header(next() % 64) | next() & 0x7F_FFFF,
                1 => mi::header(next() % 64) | (next() % 4) | (next() & 0x60_0000),
                2 => [MINE, PRISM, HIDDEN | 4, 0, 0x2600, 0x2230][next() as usize % 6],
                3 => 0x7A00_0004,
                4 => next() % 8,
                _ => next(),
            })
            .collect();
        let engine = Engine::ALL[round % 5];
        let mut audit = Audit::new(engine, &partition);
        if audit.ring(&mut dwords).is_ok() {
            passed += 1;
            let once = dwords.clone();
            let mut audit = Audit::new(engine, &partition);
            audit.ring(&mut dwords).unwrap();
            assert_eq!(dwords, once);
            let summary = audit.summary();
            assert_eq!((summary.dropped, summary.blanked), (0, 0));
        }
        let registers = ContextRegisters::known(engine);
        let _ = Audit::new(engine, &partition).context(&mut dwords, &registers);
        let _ = Audit::new(engine, &partition).indirect(&mut dwords);
        let _ = Audit::new(engine, &partition).per_context(&mut dwords);
    }
    assert!(passed > 1000, "{passed}");
}
