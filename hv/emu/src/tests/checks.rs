//! What the CPU checks before it reaches memory is checked again: the code may be another by now than what made the exit.

use super::*;

const GP: Outcome = Outcome::Exception(Exception::GP);
const SS: Outcome = Outcome::Exception(Exception::SS);
const UD: Outcome = Outcome::Exception(Exception::UD);
const AC: Outcome = Outcome::Exception(Exception::AC);

fn protected() -> Registers {
    let data = Segment::FLAT_DATA;
    let segments = Registers { ds: data, es: data, ss: data, fs: data, gs: data, ..Registers::default() };
    Registers { cs: Segment::FLAT_CODE, cr0: 1, rflags: 2, rip: 0x8000, bitness: Bitness::Bits32, ..segments }
}

const fn data(attrib: u16, limit: u32) -> Segment {
    Segment { selector: 8, attrib, limit, base: DEVICE }
}

/// Runs `code`; what came of it, and how often a device was reached.
fn run(mut regs: Registers, code: &[u8]) -> (Outcome, usize) {
    let mut machine = Machine::new();
    let outcome = machine.run(&mut regs, code);
    (outcome, machine.device.len())
}

#[test]
fn operands_stay_in_their_segments() {
    const LOAD: &[u8] = &[0x8B, 0x03]; // mov eax, [ebx]
    const STORE: &[u8] = &[0x89, 0x03];
    const BYTE: &[u8] = &[0x88, 0x03];
    let (writable, read_only, down, down_16) = (0x4F3, 0x4F1, 0x4F7, 0xF7);
    let (code, readable, absent) = (0x4F9, 0x4FB, 0x473);
    let done = Outcome::Done;
    // Attributes and limit of the segment, instruction, offset, what comes of it.
    let cases: [(u16, u32, &[u8], u64, Outcome); 30] = [
        (writable, 0xFFF, STORE, 0xFFC, done),
        (writable, 0xFFF, STORE, 0xFFD, GP),
        (writable, 0xFFF, LOAD, 0xFFD, GP),
        (writable, 0xFFF, BYTE, 0xFFF, done),
        (writable, 0xFFF, BYTE, 0x1000, GP),
        (writable, 0xFFF, LOAD, 0xFFFF_FFFF, GP),
        (writable, 0, BYTE, 0, done),
        (writable, 0, STORE, 0, GP),
        (writable, u32::MAX, STORE, 0xFFFF_FFFE, done),
        (writable, 0xFFFF_FFFE, STORE, 0xFFFF_FFFC, GP),
        (read_only, 0xFFF, LOAD, 0, done),
        (read_only, 0xFFF, STORE, 0, GP),
        (read_only, 0xFFF, &[0xF0, 0xFF, 0x03], 0, GP),       // lock inc
        (read_only, 0xFFF, &[0xF0, 0x0F, 0xB1, 0x0B], 0, GP), // lock cmpxchg
        (read_only, 0xFFF, &[0x87, 0x03], 0, GP),             // xchg
        (read_only, 0xFFF, &[0x83, 0x3B, 0x05], 0, done),     // cmp
        (down, 0xFFF, STORE, 0xFFF, GP),
        (down, 0xFFF, STORE, 0x1000, done),
        (down, 0xFFF, STORE, 0xFFFF_FFFC, done),
        (down, 0xFFF, STORE, 0xFFFF_FFFD, GP),
        (down_16, 0xFFF, STORE, 0xFFFC, done),
        (down_16, 0xFFF, STORE, 0xFFFD, GP),
        (code, 0xFFF, LOAD, 0, GP),
        (readable, 0xFFF, LOAD, 0, done),
        (readable, 0xFFF, STORE, 0, GP),
        (absent, 0xFFF, LOAD, 0, GP),
        (0, 0, LOAD, 0, GP),
        (0, u32::MAX, STORE, 0, GP),
        (writable, 0xFFF, &[0x0F, 0xAB, 0x03], 0xFFC, done), // bts [ebx], eax: bit 0
        (writable, 0xFFF, &[0x0F, 0xAB, 0x0B], 0xFFC, GP),   // bts [ebx], ecx: bit 32
    ];
    for (attrib, limit, code, offset, expected) in cases {
        let segment = data(attrib, limit);
        for (prefix, fault) in [(0x3E, GP), (0x26, GP), (0x64, GP), (0x65, GP), (0x36, SS)] {
            let mut regs = protected();
            match prefix {
                0x3E => regs.ds = segment,
                0x26 => regs.es = segment,
                0x64 => regs.fs = segment,
                0x65 => regs.gs = segment,
                _ => regs.ss = segment,
            }
            (regs.gpr[3], regs.gpr[1]) = (offset, 32);
            let (outcome, reached) = run(regs, &[&[prefix], code].concat());
            let expected = if expected == GP { fault } else { expected };
            let what = format!("{attrib:#x} {limit:#x} {code:x?} at {offset:#x}, prefix {prefix:#x}");
            assert_eq!((outcome, reached > 0), (expected, expected == done), "{what}");
        }
    }
}

/// By default the segment is that of the base; code is never written; a mode without descriptors has limits only.
#[test]
fn the_right_segment_is_asked() {
    let regs = Registers { ss: data(0x4F3, 0xFFF), ds: data(0x4F3, 0xFFFF), ..protected() };
    let regs = |at: u64| Registers { gpr: [0, 0, 0, at, at, at, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ..regs };
    assert_eq!(run(regs(0x2000), &[0x89, 0x45, 0x00]).0, SS, "mov [ebp], eax");
    assert_eq!(run(regs(0x2000), &[0x3E, 0x89, 0x45, 0x00]).0, Outcome::Done, "mov ds:[ebp], eax");
    assert_eq!(run(regs(0x2000), &[0x89, 0x04, 0x24]).0, SS, "mov [esp], eax");
    assert_eq!(run(regs(0x2000), &[0x2E, 0x89, 0x03]).0, GP, "mov cs:[ebx], eax");
    // pop [ebx]; push [ebx]: the stack is at fault.
    assert_eq!(run(regs(0x2000), &[0x8F, 0x03]).0, SS);
    assert_eq!(run(regs(0x2000), &[0xFF, 0x33]).0, SS);
    // Virtual-8086 and real mode: descriptors do not count, limits do.
    for (cr0, rflags, cpl) in [(1, 0x2_0002, 3), (0, 2, 0)] {
        let old = Registers { cr0, rflags, cpl, ..real_mode() };
        let ds = Segment { attrib: 0, base: 0x2_0000, ..Segment::REAL_DATA };
        let old = |at: u64| Registers { ds, gpr: [0, 0, 0, at, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ..old };
        assert_eq!(run(old(0xFFFE), &[0x89, 0x07]).0, Outcome::Done, "mov [bx], ax");
        assert_eq!(run(old(0xFFFF), &[0x89, 0x07]).0, GP);
        assert_eq!(run(old(0xFFFC), &[0x66, 0x89, 0x07]).0, Outcome::Done);
        assert_eq!(run(old(0xFFFD), &[0x66, 0x89, 0x07]).0, GP);
        assert_eq!(run(old(0x1_0000), &[0x67, 0x89, 0x03]).0, GP, "mov [ebx], ax");
    }
}

#[test]
fn offsets_wrap_at_their_size() {
    let regs = Registers { ds: data(0x4F3, u32::MAX), ..protected() };
    let address = |regs: Registers, code: &[u8]| {
        let (mut machine, mut regs) = (Machine::new(), regs);
        assert_eq!(machine.run(&mut regs, code), Outcome::Done);
        machine.device[0].0
    };
    let at = |bx: u64, si: u64| Registers { gpr: [0, 0, 0, bx, 0, 0, si, 0, 0, 0, 0, 0, 0, 0, 0, 0], ..regs };
    assert_eq!(address(at(0xFFFF, 2), &[0x67, 0x8B, 0x00]), DEVICE + 1, "mov eax, [bx+si]");
    assert_eq!(address(at(0xFFFF_FFFF, 2), &[0x8B, 0x04, 0x33]), DEVICE + 1, "mov eax, [ebx+esi]");
    // The operand itself does not wrap at 64 KiB, nor does a bit string stay behind.
    assert_eq!(address(at(0xFFFF, 0), &[0x67, 0x8B, 0x07]), DEVICE + 0xFFFF, "mov eax, [bx]");
    let bits = Registers { gpr: [(-1i64) as u64; 16], ..at(0, 0) };
    assert_eq!(
        address(
            Registers { gpr: [bits.gpr[0], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ..bits },
            &[0x67, 0x0F, 0xA3, 0x07]
        ),
        DEVICE + 0xFFFC,
        "bt [bx], eax: bit -1"
    );
}

#[test]
fn strings_end_where_their_segment_does() {
    let regs = Registers { es: data(0x4F3, 0xFFF), ds: data(0x4F3, 0xFFF), ..protected() };
    let at = |si: u64, di: u64, rflags: u64| Registers {
        rflags,
        gpr: [0, 9, 0x60, 0, 0, 0, si, di, 0, 0, 0, 0, 0, 0, 0, 0],
        ..regs
    };
    let up = 2;
    let down = 2 | 1 << 10;
    // rep stosd, rep movsb, rep lodsw, rep insb, rep outsb; where SI and DI end, what is left of CX.
    let cases: [(&[u8], Registers, u64, u64, u64); 8] = [
        (&[0xF3, 0xAB], at(0, 0xFF5, up), 0, 0xFFD, 7),
        (&[0xF3, 0xA4], at(0, 0xFFE, up), 2, 0x1000, 7),
        (&[0xF3, 0xA4], at(0xFFD, 0, up), 0x1000, 3, 6),
        (&[0xF3, 0xA4], at(1, 0x10, down), 0xFFFF_FFFF, 0xE, 7),
        (&[0x66, 0xF3, 0xAD], at(0xFFA, 0, up), 0x1000, 0, 6),
        (&[0xF3, 0x6C], at(0, 0xFFE, up), 0, 0x1000, 7),
        (&[0xF3, 0x6E], at(0xFFE, 0, up), 0x1000, 0, 7),
        (&[0xF3, 0xA6], at(0, 0xFFE, up), 2, 0x1000, 7),
    ];
    for (code, mut regs, si, di, left) in cases {
        let mut machine = Machine::new();
        assert_eq!(machine.run(&mut regs, code), GP, "{code:x?}");
        assert_eq!((regs.gpr[6], regs.gpr[7], regs.gpr[1]), (si, di, left), "{code:x?}");
        assert!(machine.device.iter().all(|(at, ..)| (DEVICE..DEVICE + 0x1000).contains(at)));
    }
    // The source may have another segment, the target not.
    let source = Registers { ss: data(0x4F3, 0), ..at(1, 0, up) };
    assert_eq!(run(source, &[0x36, 0xA4]), (SS, 0), "movsb es:[edi], ss:[esi]");
    assert_eq!(run(Registers { es: data(0x4F1, 0xFFF), ..at(0, 0, up) }, &[0x36, 0xA4]), (GP, 0));
}

#[test]
fn code_stays_in_its_segment() {
    // mov [ebx], eax
    let with =
        |cs: Segment| Registers { cs, gpr: [0, 0, 0, DEVICE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ..protected() };
    for (limit, expected) in [(0x8001, Outcome::Done), (0x8000, GP), (0x7FFF, GP), (0, GP)] {
        assert_eq!(run(with(Segment { limit, ..Segment::FLAT_CODE }), &[0x89, 0x03]).0, expected, "{limit:#x}");
    }
    // Fifteen bytes, and sixteen.
    let long = |prefixes: usize| [&vec![0x3E; prefixes][..], &[0x89, 0x03]].concat();
    assert_eq!(run(with(Segment::FLAT_CODE), &long(13)).0, Outcome::Done);
    assert_eq!(run(with(Segment::FLAT_CODE), &long(14)).0, GP);
}

#[test]
fn the_stack_is_as_wide_as_its_segment_says() {
    // push dword [ebx], in 32-bit code, with a 16-bit stack.
    let ss = Segment { attrib: 0xF3, limit: 0xFFFF, base: 0x1_0000, ..Segment::default() };
    let mut regs = Registers { ss, gpr: [0; 16], ..protected() };
    (regs.gpr[3], regs.gpr[4]) = (DEVICE, 0xABCD_0000);
    let mut machine = Machine::new();
    assert_eq!(machine.run(&mut regs, &[0xFF, 0x33]), Outcome::Done);
    assert_eq!(regs.gpr[4], 0xABCD_FFFC);
    assert_eq!(machine.ram[0x1_FFFC..0x2_0000], [0x88, 0x77, 0x66, 0x55]);
    regs.gpr[4] = 2;
    assert_eq!(machine.run(&mut regs, &[0xFF, 0x33]), SS, "it would go round within the operand");
}

#[test]
fn tasks_of_16_bits_have_no_ports() {
    // Everything is allowed by what lies where a bitmap would.
    let task = |attrib| Segment { attrib, limit: 0x2FFF, base: 0x1_0000, ..Segment::default() };
    let ask = |attrib: u16, cpl: u8, rflags: u64, code: &[u8]| {
        let mut machine = Machine::new();
        let mut regs = Registers { cpl, rflags, tr: task(attrib), ..protected() };
        let outcome = machine.run(&mut regs, code);
        (outcome, machine.ports.len())
    };
    let (done, fault) = ((Outcome::Done, 1), (GP, 0));
    for code in [&[0xEE][..], &[0xED], &[0xE4, 0x60], &[0x6C], &[0x6E]] {
        for (attrib, expected) in [(0x8B, done), (0x89, done), (0x83, fault), (0x81, fault)] {
            assert_eq!(ask(attrib, 3, 2, code), expected, "{code:x?}, task {attrib:#x}");
            assert_eq!(ask(attrib, 3, 0x3002, code), done, "IOPL 3");
            assert_eq!(ask(attrib, 0, 2, code), done, "CPL 0");
            // Virtual-8086 mode asks the bitmap whatever IOPL is.
            assert_eq!(ask(attrib, 3, 0x2_3002, code), expected, "{code:x?}, task {attrib:#x}, VM86");
        }
    }
}

#[test]
fn processes_that_ask_hear_of_data_that_is_not_aligned() {
    let mut machine = Machine::new();
    let long = machine.long_mode();
    let user = |at: u64, cpl: u8, cr0: u64, rflags: u64| {
        let mut machine = Machine::new();
        let _ = machine.long_mode();
        machine.put(0x1000, &0x2007u64.to_le_bytes());
        machine.put(0x2000, &0x87u64.to_le_bytes());
        let gpr = [0, 0, 0, at, 0x6000, 0, 0x6001, 0x6000, 0, 0, 0, 0, 0, 0, 0, 0];
        let regs = Registers { cpl, cr0: long.cr0 | cr0, rflags: 2 | rflags, gpr, ..long };
        (machine, regs)
    };
    const ASKED: u64 = 1 << 18;
    let cases: [(&[u8], u64); 5] = [
        (&[0x66, 0x89, 0x03], 1),
        (&[0x8B, 0x03], 2),
        (&[0x48, 0x89, 0x03], 4),
        (&[0x0F, 0xC7, 0x0B], 4), // cmpxchg8b
        (&[0x0F, 0xAB, 0x03], 2), // bts [rbx], eax
    ];
    for (code, off) in cases {
        let ask = |at, cpl, cr0, rflags| {
            let (mut machine, mut regs) = user(at, cpl, cr0, rflags);
            machine.run(&mut regs, code)
        };
        assert_eq!(ask(0x5000 + off, 3, ASKED, ASKED), AC, "{code:x?}");
        assert_eq!(ask(0x5000, 3, ASKED, ASKED), Outcome::Done);
        for (cpl, cr0, rflags) in [(0, ASKED, ASKED), (3, 0, ASKED), (3, ASKED, 0)] {
            assert_eq!(ask(0x5000 + off, cpl, cr0, rflags), Outcome::Done, "{code:x?} {cpl} {cr0:#x} {rflags:#x}");
        }
    }
    // lodsw, its source; push [rbx], its stack.
    let (mut machine, mut regs) = user(0x5000, 3, ASKED, ASKED);
    assert_eq!(machine.run(&mut regs, &[0x66, 0xAD]), AC);
    regs.gpr[4] = 0x6001;
    assert_eq!(machine.run(&mut regs, &[0xFF, 0x33]), AC);
}

#[test]
fn vector_moves_are_aligned_and_enabled() {
    let (mut machine, regs) = at_device();
    let at = |at: u64, cr4: u64| {
        let mut regs = Registers { cr4, ..regs };
        regs.gpr[3] = DEVICE + at;
        regs
    };
    const BOTH: u64 = 0x4_0220;
    // movaps [rbx], xmm1; movntdq; vmovdqa [rbx], ymm1; movups; vmovdqu
    let cases: [(&[u8], u64, Outcome); 6] = [
        (&[0x0F, 0x29, 0x0B], 8, GP),
        (&[0x66, 0x0F, 0xE7, 0x0B], 8, GP),
        (&[0xC5, 0xFD, 0x7F, 0x0B], 16, GP),
        (&[0xC5, 0xF9, 0x7F, 0x0B], 16, Outcome::Done),
        (&[0x0F, 0x11, 0x0B], 1, Outcome::Done),
        (&[0xC5, 0xFE, 0x7F, 0x0B], 1, Outcome::Done),
    ];
    for (code, off, expected) in cases {
        assert_eq!(machine.run(&mut at(off, BOTH), code), expected, "{code:x?}");
        assert_eq!(machine.run(&mut at(0, BOTH), code), Outcome::Done, "{code:x?}");
        let missing = if code[0] == 0xC5 { 1 << 18 } else { 1 << 9 };
        assert_eq!(machine.run(&mut at(0, BOTH & !missing), code), UD, "{code:x?}");
        assert_eq!(machine.run(&mut at(0, 0x20 | missing), code), Outcome::Done, "{code:x?}");
    }
    // Virtual-8086 mode has no VEX.
    let old = Registers { cr0: 1, cr4: BOTH, rflags: 0x2_0002, cpl: 3, ..real_mode() };
    assert_eq!(run(old, &[0xC5, 0xFA, 0x7F, 0x07]).0, UD);
    assert_eq!(run(old, &[0xF3, 0x0F, 0x7F, 0x07]).0, Outcome::Done);
}

/// A kernel may mark pages by such bits, so that every access faults.
#[test]
fn reserved_bits_of_large_pages_fault() {
    let fault = |address: u64| Err(Exception { vector: 14, error_code: Some(9), cr2: Some(address) });
    let mut machine = Machine::new();
    let regs = machine.long_mode();
    let at = |entry: u64, slot: usize, machine: &mut Machine, regs: &Registers, address: u64| {
        machine.put(slot, &entry.to_le_bytes());
        translate(regs, machine, Gva(address), Access::Read)
    };
    assert_eq!(at(0x1083, 0x2000, &mut machine, &regs, 0x123), Ok(Gpa(0x123)), "1 GiB, with the PAT bit");
    for bit in [13, 20, 21, 29] {
        assert_eq!(at(0x83 | 1 << bit, 0x2000, &mut machine, &regs, 0x123), fault(0x123), "1 GiB, bit {bit}");
    }
    machine.put(0x2000, &0x3003u64.to_le_bytes());
    assert_eq!(at(0x20_1083, 0x3000, &mut machine, &regs, 0x123), Ok(Gpa(0x20_0123)));
    for bit in [13, 20] {
        assert_eq!(at(0x83 | 1 << bit, 0x3000, &mut machine, &regs, 0x123), fault(0x123), "2 MiB, bit {bit}");
    }
    let old = Registers { cr0: 0x8000_0011, cr3: 0x4000, cr4: 0x10, ..protected() };
    assert_eq!(at(0x40_1083, 0x4000, &mut machine, &old, 0x123), Ok(Gpa(0x40_0123)));
    assert_eq!(at(0x60_0083, 0x4000, &mut machine, &old, 0x123), fault(0x123), "4 MiB");
}

#[test]
fn addresses_that_are_not_canonical() {
    let (mut machine, mut regs) = at_device();
    (regs.gpr[3], regs.gpr[5]) = (1 << 47, 1 << 47);
    assert_eq!(machine.run(&mut regs, &[0x89, 0x03]), GP);
    assert_eq!(machine.run(&mut regs, &[0x89, 0x45, 0x00]), SS, "mov [rbp], eax");
    regs.gpr[4] = 1 << 47;
    assert_eq!(machine.run(&mut regs, &[0x8F, 0x00]), SS, "pop [rax]");
    assert!(machine.device.is_empty());
}
