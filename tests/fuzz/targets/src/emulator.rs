//! The instruction emulator: any code in any mode, on a machine with a little RAM and a device everywhere else.

use crate::bytes::Bytes;
use hv_defs::{Gpa, Segment, Width};
use hv_emu::{Bitness, Bus, NotRam, Outcome, Registers, Upper, Vector, emulate, fetch};

const RAM: usize = 64 << 10;
/// Accesses of one instruction at most: a REP instruction does its share and comes again.
const MOST: u32 = 20_000;
const IOPL: u32 = 12;

/// Runs one input; gives the number of instructions that were emulated.
pub fn run(data: &[u8]) -> u64 {
    let mut b = Bytes::new(data);
    let mut machine = Machine { ram: vec![0; RAM], accesses: 0, ports: 0, answer: b.qword() };
    let mut done = 0;
    while !b.is_empty() {
        let mut regs = registers(&mut machine, &mut b);
        let mut code = [0; 16];
        opcode(&mut b, &mut code);
        let at = (regs.cs.base.wrapping_add(regs.rip)) as usize % (RAM - 16);
        machine.ram[at..at + 16].copy_from_slice(&code);
        let before = regs;
        (machine.accesses, machine.ports) = (0, 0);
        let outcome = match fetch(&regs, &mut machine) {
            Ok(decoded) => emulate(&mut regs, &mut machine, &decoded),
            Err(outcome) => outcome,
        };
        assert!(machine.accesses <= MOST, "{} accesses by {code:x?}", machine.accesses);
        let repeats = code.contains(&0xF2) || code.contains(&0xF3);
        match outcome {
            Outcome::Exception(_) | Outcome::Unsupported if !repeats => assert_eq!(regs, before, "{code:x?}"),
            Outcome::Done => done += 1,
            _ => {}
        }
        // With no room for a bitmap in the TSS, only IOPL lets through.
        let deprived = before.cr0 & 1 != 0 && u64::from(before.cpl) > before.rflags >> IOPL & 3;
        assert!(machine.ports == 0 || !deprived || before.tr.limit >= 103, "{code:x?} reached a port: {before:x?}");
    }
    done
}

/// Bytes of an instruction: an opcode that touches memory or ports, with prefixes, or anything.
fn opcode(b: &mut Bytes<'_>, code: &mut [u8; 16]) {
    b.fill(&mut code[..8]);
    const USUAL: [u8; 40] = [
        0x88, 0x89, 0x8A, 0x8B, 0xC6, 0xC7, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0x6C,
        0x6D, 0x6E, 0x6F, 0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF, 0x80, 0x81, 0x83, 0xF6, 0xF7, 0x0F, 0x84,
        0x86, 0xFF, 0xC4, 0xC5,
    ];
    if !b.rarely(4) {
        let mut at = 0;
        for _ in 0..b.below(3) {
            code[at] = b.pick(&[0x66, 0x67, 0xF2, 0xF3, 0x48, 0x41, 0x64, 0x2E, 0xF0]);
            at += 1;
        }
        code[at] = b.pick(&USUAL);
    }
}

/// A mode that exists, with a map of all memory where there is paging, and registers.
fn registers(machine: &mut Machine, b: &mut Bytes<'_>) -> Registers {
    machine.ram[0x1000..0x1008].copy_from_slice(&0x2007u64.to_le_bytes());
    for gib in 0..4u64 {
        let entry = gib << 30 | 0x87;
        machine.ram[0x2000 + gib as usize * 8..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    let segment = |b: &mut Bytes<'_>| Segment {
        base: b.pick(&[0, 0, 0x4000, 0xFFFF_F000]),
        limit: b.pick(&[u32::MAX, 0xFFFF, 0x67, 0x80]),
        attrib: b.pick(&[0xC93, 0xC93, 0x93, 0xC91, 0xC97, 0x89, 0x8B, 0]),
        selector: b.pick(&[8, 0]),
    };
    let (cr0, efer, bitness) = b.pick(&[
        (0x8001_0011, 0xD00, Bitness::Bits64),
        (0x8001_0011, 0xD00, Bitness::Bits32),
        (0x11, 0, Bitness::Bits32),
        (0x11, 0, Bitness::Bits16),
        (0x10, 0, Bitness::Bits16),
    ]);
    let cpl = if cr0 & 1 == 0 { 0 } else { b.pick(&[0, 3]) };
    let gpr = core::array::from_fn(|_| match b.below(4) {
        0 => b.qword(),
        1 => 0xF000_0000 + u64::from(b.below(0x1000)),
        _ => u64::from(b.below(RAM as u32)),
    });
    Registers {
        gpr,
        rip: 0x8000 + u64::from(b.below(0x1000)),
        rflags: 2 | u64::from(b.dword() & 0x3CD5),
        cr0,
        cr3: if b.rarely(16) { b.qword() & 0xFFFF_F000 } else { 0x1000 },
        cr4: 0x20 | u64::from(b.dword() & 0x30_0000),
        efer,
        cpl,
        bitness,
        cs: Segment::FLAT_CODE,
        ds: segment(b),
        es: segment(b),
        ss: segment(b),
        fs: segment(b),
        gs: segment(b),
        tr: segment(b),
    }
}

struct Machine {
    ram: Vec<u8>,
    accesses: u32,
    ports: u32,
    answer: u64,
}

impl Machine {
    fn place(&mut self, gpa: Gpa, len: usize) -> Option<&mut [u8]> {
        self.accesses += 1;
        let fits = (1..=16).contains(&len) && gpa.0 % 4096 + len as u64 <= 4096;
        assert!(fits, "{len} bytes at {gpa:?}");
        let at = usize::try_from(gpa.0).ok()?;
        self.ram.get_mut(at..at.checked_add(len)?)
    }
}

impl Bus for Machine {
    fn read(&mut self, gpa: Gpa, buf: &mut [u8]) {
        assert!(buf.len() <= 8);
        if self.read_ram(gpa, buf).is_err() {
            buf.copy_from_slice(&self.answer.to_le_bytes()[..buf.len()]);
        }
    }

    fn write(&mut self, gpa: Gpa, data: &[u8]) {
        assert!(data.len() <= 8);
        let _ = self.write_ram(gpa, data);
    }

    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let from = self.place(gpa, buf.len()).ok_or(NotRam)?;
        buf.copy_from_slice(from);
        Ok(())
    }

    fn write_ram(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.place(gpa, data.len()).ok_or(NotRam)?.copy_from_slice(data);
        Ok(())
    }

    fn port_read(&mut self, _port: u16, width: Width) -> u32 {
        (self.ports, self.accesses) = (self.ports + 1, self.accesses + 1);
        self.answer as u32 & width.mask() as u32
    }

    fn port_write(&mut self, _port: u16, width: Width, value: u32) {
        (self.ports, self.accesses) = (self.ports + 1, self.accesses + 1);
        assert_eq!(u64::from(value) & !width.mask(), 0);
    }

    fn vector(&mut self, _index: u8) -> Option<Vector> {
        Some([0x5A; 32])
    }

    fn set_vector(&mut self, _index: u8, _value: Vector, _upper: Upper) -> Option<()> {
        Some(())
    }
}
