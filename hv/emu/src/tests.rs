//! Instruction tests: hand-encoded instructions run against a fake machine with RAM and one recording device.

use super::*;
use crate::alu::Op;
use hv_defs::Gva;
use std::vec::Vec;

mod checks;

const DEVICE: u64 = 0xF000_0000;

#[derive(Default)]
struct Machine {
    ram: Vec<u8>,
    device: Vec<(u64, Vec<u8>, bool)>,
    answer: u64,
    ports: Vec<(u16, Width, Option<u32>)>,
    vectors: [Vector; 16],
}

impl Machine {
    fn new() -> Self {
        Self { ram: vec![0; 1 << 20], answer: 0x1122_3344_5566_7788, ..Self::default() }
    }
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.ram[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn long_mode(&mut self) -> Registers {
        // Identity map of 4 GiB by 1 GiB pages.
        self.put(0x1000, &0x2003u64.to_le_bytes());
        for gib in 0..4u64 {
            self.put(0x2000 + gib as usize * 8, &((gib << 30) | 0x83).to_le_bytes());
        }
        Registers {
            cr0: 0x8001_0011,
            cr3: 0x1000,
            cr4: 0x4_0220,
            efer: 0xD00,
            bitness: Bitness::Bits64,
            rip: 0x8000,
            rflags: 2,
            ..Registers::default()
        }
    }
    fn run(&mut self, regs: &mut Registers, code: &[u8]) -> Outcome {
        let at = (regs.cs.base + regs.rip) as usize;
        self.put(at, code);
        match fetch(regs, self) {
            Ok(decoded) => emulate(regs, self, &decoded),
            Err(outcome) => outcome,
        }
    }
}

impl Bus for Machine {
    fn read(&mut self, gpa: Gpa, buf: &mut [u8]) {
        if self.read_ram(gpa, buf).is_err() {
            buf.copy_from_slice(&self.answer.to_le_bytes()[..buf.len()]);
            self.device.push((gpa.0, buf.to_vec(), false));
        }
    }
    fn write(&mut self, gpa: Gpa, data: &[u8]) {
        if self.write_ram(gpa, data).is_err() {
            self.device.push((gpa.0, data.to_vec(), true));
        }
    }
    fn read_ram(&mut self, gpa: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        let at = gpa.0 as usize;
        let from = self.ram.get(at..at + buf.len()).ok_or(NotRam)?;
        buf.copy_from_slice(from);
        Ok(())
    }
    fn write_ram(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let at = gpa.0 as usize;
        self.ram.get_mut(at..at + data.len()).ok_or(NotRam)?.copy_from_slice(data);
        Ok(())
    }
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.ports.push((port, width, None));
        self.answer as u32 & width.mask() as u32
    }
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.ports.push((port, width, Some(value)));
    }
    fn vector(&mut self, index: u8) -> Option<Vector> {
        self.vectors.get(usize::from(index)).copied()
    }
    fn set_vector(&mut self, index: u8, value: Vector, upper: Upper) -> Option<()> {
        let len = if upper == Upper::Kept { 16 } else { 32 };
        self.vectors.get_mut(usize::from(index))?[..len].copy_from_slice(&value[..len]);
        Some(())
    }
}

fn real_mode() -> Registers {
    let (cs, data) = (Segment::REAL_CODE, Segment::REAL_DATA);
    Registers { rflags: 2, rip: 0x100, cs, ds: data, es: data, ss: data, fs: data, gs: data, ..Registers::default() }
}

fn at_device() -> (Machine, Registers) {
    let mut machine = Machine::new();
    let mut regs = machine.long_mode();
    regs.gpr[3] = DEVICE; // rbx
    regs.gpr[0] = 0xAABB_CCDD_EEFF_0123; // rax
    (machine, regs)
}

#[test]
fn mov_stores_and_loads_in_every_width() {
    let stores: [(&[u8], usize); 4] =
        [(&[0x88, 0x03], 1), (&[0x66, 0x89, 0x03], 2), (&[0x89, 0x03], 4), (&[0x48, 0x89, 0x03], 8)];
    for (code, len) in stores {
        let (mut machine, mut regs) = at_device();
        assert_eq!(machine.run(&mut regs, code), Outcome::Done);
        let expected = regs.gpr[0].to_le_bytes()[..len].to_vec();
        assert_eq!(machine.device, [(DEVICE, expected, true)]);
        assert_eq!(regs.rip, 0x8000 + code.len() as u64);
    }
    let loads: [(&[u8], u64); 4] = [
        (&[0x8A, 0x03], 0xAABB_CCDD_EEFF_0188),
        (&[0x66, 0x8B, 0x03], 0xAABB_CCDD_EEFF_7788),
        (&[0x8B, 0x03], 0x5566_7788),
        (&[0x48, 0x8B, 0x03], 0x1122_3344_5566_7788),
    ];
    for (code, rax) in loads {
        let (mut machine, mut regs) = at_device();
        assert_eq!(machine.run(&mut regs, code), Outcome::Done);
        assert_eq!(regs.gpr[0], rax);
    }
}

#[test]
fn high_byte_registers_are_bits_15_to_8() {
    let (mut machine, mut regs) = at_device();
    assert_eq!(machine.run(&mut regs, &[0x88, 0x23]), Outcome::Done); // mov [rbx], ah
    assert_eq!(machine.device, [(DEVICE, vec![0x01], true)]);
    assert_eq!(machine.run(&mut regs, &[0x8A, 0x23]), Outcome::Done); // mov ah, [rbx]
    assert_eq!(regs.gpr[0], 0xAABB_CCDD_EEFF_8823);
}

#[test]
fn immediates_and_addressing_forms() {
    let (mut machine, mut regs) = at_device();
    // mov dword [rbx+rcx*8+0x10], 0x12345678
    regs.gpr[1] = 2;
    assert_eq!(machine.run(&mut regs, &[0xC7, 0x44, 0xCB, 0x10, 0x78, 0x56, 0x34, 0x12]), Outcome::Done);
    // mov qword [rbx], -2
    assert_eq!(machine.run(&mut regs, &[0x48, 0xC7, 0x03, 0xFE, 0xFF, 0xFF, 0xFF]), Outcome::Done);
    // mov eax, [rip + disp]
    let disp = (0x20_0040 - (regs.rip + 6)) as u32; // beyond RAM, within reach of RIP
    let mut code = vec![0x8B, 0x05];
    code.extend(disp.to_le_bytes());
    assert_eq!(machine.run(&mut regs, &code), Outcome::Done);
    // mov moffs
    let mut code = vec![0xA3];
    code.extend((DEVICE + 0x80).to_le_bytes());
    assert_eq!(machine.run(&mut regs, &code), Outcome::Done);
    // 67-prefixed address wraps at 32 bits: mov eax, [ebx]
    regs.gpr[3] = 0xFFFF_FFFF_0000_0000 | DEVICE;
    assert_eq!(machine.run(&mut regs, &[0x67, 0x8B, 0x03]), Outcome::Done);
    let addresses: Vec<u64> = machine.device.iter().map(|(gpa, ..)| *gpa).collect();
    assert_eq!(addresses, [DEVICE + 0x20, DEVICE, 0x20_0040, DEVICE + 0x80, DEVICE]);
    assert_eq!(machine.device[1].1, (-2i64).to_le_bytes());
}

#[test]
fn extensions() {
    let (mut machine, mut regs) = at_device();
    machine.answer = 0x80;
    assert_eq!(machine.run(&mut regs, &[0x0F, 0xB6, 0x03]), Outcome::Done); // movzx eax, byte
    assert_eq!(regs.gpr[0], 0x80);
    assert_eq!(machine.run(&mut regs, &[0x48, 0x0F, 0xBE, 0x03]), Outcome::Done); // movsx rax, byte
    assert_eq!(regs.gpr[0], 0xFFFF_FFFF_FFFF_FF80);
    machine.answer = 0x8000_0000;
    assert_eq!(machine.run(&mut regs, &[0x48, 0x63, 0x03]), Outcome::Done); // movsxd rax, dword
    assert_eq!(regs.gpr[0], 0xFFFF_FFFF_8000_0000);
}

#[test]
fn read_modify_write_reads_once_and_writes_once() {
    let (mut machine, mut regs) = at_device();
    machine.answer = 0xF0;
    assert_eq!(machine.run(&mut regs, &[0x83, 0x0B, 0x0F]), Outcome::Done); // or dword [rbx], 15
    assert_eq!(machine.device, [(DEVICE, vec![0xF0, 0, 0, 0], false), (DEVICE, vec![0xFF, 0, 0, 0], true)]);
    machine.device.clear();
    assert_eq!(machine.run(&mut regs, &[0xF0, 0xFF, 0x03]), Outcome::Done); // lock inc dword [rbx]
    assert_eq!(machine.device[1].1, [0xF1, 0, 0, 0]);
    machine.device.clear();
    assert_eq!(machine.run(&mut regs, &[0x87, 0x03]), Outcome::Done); // xchg [rbx], eax
    assert_eq!(machine.device[1].1, 0xEEFF_0123u32.to_le_bytes());
    assert_eq!(regs.gpr[0], 0xF0);
}

#[test]
fn compare_sets_flags_only() {
    let (mut machine, mut regs) = at_device();
    machine.answer = 5;
    assert_eq!(machine.run(&mut regs, &[0x83, 0x3B, 0x05]), Outcome::Done); // cmp dword [rbx], 5
    assert_ne!(regs.rflags & alu::ZF, 0);
    assert_eq!(machine.run(&mut regs, &[0x83, 0x3B, 0x06]), Outcome::Done);
    assert_eq!(regs.rflags & (alu::ZF | alu::CF | alu::SF), alu::CF | alu::SF);
    assert!(machine.device.iter().all(|(.., write)| !write));
}

#[test]
fn alu_flags_agree_with_wide_arithmetic() {
    for width in [Width::B1, Width::B2, Width::B4, Width::B8] {
        let samples = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, width.mask() >> 1, width.mask()];
        for a in samples {
            for b in samples {
                let (a, b) = (a & width.mask(), b & width.mask());
                let (sum, flags) = alu::binary(Op::Add, width, a, b, 0);
                assert_eq!(u128::from(sum), (u128::from(a) + u128::from(b)) & u128::from(width.mask()));
                assert_eq!(flags & alu::CF != 0, u128::from(a) + u128::from(b) > u128::from(width.mask()));
                let (difference, flags) = alu::binary(Op::Sub, width, a, b, 0);
                assert_eq!(difference, a.wrapping_sub(b) & width.mask());
                assert_eq!(flags & alu::CF != 0, a < b);
                assert_eq!(flags & alu::ZF != 0, a == b);
            }
        }
    }
}

#[test]
fn bit_tests_reach_beyond_the_operand() {
    let (mut machine, mut regs) = at_device();
    machine.answer = 0;
    regs.gpr[0] = 35;
    assert_eq!(machine.run(&mut regs, &[0x0F, 0xAB, 0x03]), Outcome::Done); // bts [rbx], eax
    assert_eq!(machine.device[1], (DEVICE + 4, vec![8, 0, 0, 0], true));
    regs.gpr[0] = -1i64 as u64;
    assert_eq!(machine.run(&mut regs, &[0x0F, 0xA3, 0x03]), Outcome::Done); // bt [rbx], eax
    assert_eq!(machine.device[2].0, DEVICE - 4);
    assert_eq!(machine.run(&mut regs, &[0x0F, 0xBA, 0x2B, 0x05]), Outcome::Done); // bts dword [rbx], 5
    assert_eq!(machine.device[4].1, [0x20, 0, 0, 0]);
}

#[test]
fn an_access_may_cross_a_page() {
    let mut machine = Machine::new();
    let mut regs = machine.long_mode();
    regs.gpr[3] = 0x5FFE;
    regs.gpr[0] = 0x1122_3344;
    assert_eq!(machine.run(&mut regs, &[0x89, 0x03]), Outcome::Done);
    assert_eq!(machine.ram[0x5FFE..0x6002], [0x44, 0x33, 0x22, 0x11]);
    // RAM on one side, device on the other.
    machine.ram.truncate(0xFF000);
    regs.gpr[3] = 0xFEFFF;
    assert_eq!(machine.run(&mut regs, &[0x8B, 0x03]), Outcome::Done);
    assert_eq!(machine.device, [(0xFF000, vec![0x88, 0x77, 0x66], false)]);
    assert_eq!(regs.gpr[0], 0x6677_8800);
}

#[test]
fn code_may_cross_a_page() {
    let (mut machine, mut regs) = at_device();
    regs.rip = 0x8FFF;
    assert_eq!(machine.run(&mut regs, &[0x89, 0x03]), Outcome::Done);
    assert_eq!(regs.rip, 0x9001);
}

#[test]
fn rep_stos_and_movs_follow_direction_and_count() {
    let (mut machine, mut regs) = at_device();
    regs.gpr[7] = DEVICE; // rdi
    regs.gpr[1] = 3;
    regs.gpr[0] = 0x55;
    assert_eq!(machine.run(&mut regs, &[0xF3, 0xAA]), Outcome::Done);
    assert_eq!((regs.gpr[7], regs.gpr[1]), (DEVICE + 3, 0));
    assert_eq!(machine.device.len(), 3);
    regs.gpr[6] = 0x4004; // rsi
    regs.gpr[7] = DEVICE + 4;
    regs.gpr[1] = 2;
    regs.rflags |= 1 << 10;
    machine.put(0x4000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    machine.device.clear();
    assert_eq!(machine.run(&mut regs, &[0xF3, 0xA5]), Outcome::Done); // rep movsd
    assert_eq!(machine.device[0], (DEVICE + 4, vec![5, 6, 7, 8], true));
    assert_eq!(machine.device[1], (DEVICE, vec![1, 2, 3, 4], true));
}

#[test]
fn a_long_rep_comes_back_for_more() {
    let (mut machine, mut regs) = at_device();
    regs.gpr[7] = 0x1_0000;
    regs.gpr[1] = 1500;
    let rip = regs.rip;
    assert_eq!(machine.run(&mut regs, &[0xF3, 0xAA]), Outcome::Again);
    assert_eq!((regs.rip, regs.gpr[1]), (rip, 476));
    assert_eq!(machine.run(&mut regs, &[0xF3, 0xAA]), Outcome::Done);
    assert_eq!(regs.gpr[1], 0);
}

#[test]
fn repe_cmps_stops_at_the_first_difference() {
    let (mut machine, mut regs) = at_device();
    machine.put(0x4000, b"abcX");
    machine.put(0x5000, b"abcY");
    (regs.gpr[6], regs.gpr[7], regs.gpr[1]) = (0x4000, 0x5000, 10);
    assert_eq!(machine.run(&mut regs, &[0xF3, 0xA6]), Outcome::Done);
    assert_eq!((regs.gpr[6], regs.gpr[1]), (0x4004, 6));
    assert_eq!(regs.rflags & alu::ZF, 0);
}

#[test]
fn ports_by_number_and_by_dx() {
    let (mut machine, mut regs) = at_device();
    regs.gpr[2] = 0x3F8;
    assert_eq!(machine.run(&mut regs, &[0xEE]), Outcome::Done); // out dx, al
    assert_eq!(machine.run(&mut regs, &[0xE4, 0x71]), Outcome::Done); // in al, 0x71
    assert_eq!(regs.gpr[0] & 0xFF, 0x88);
    regs.gpr[7] = 0x3000;
    regs.gpr[1] = 2;
    assert_eq!(machine.run(&mut regs, &[0xF3, 0x6C]), Outcome::Done); // rep insb
    assert_eq!(machine.ram[0x3000..0x3002], [0x88, 0x88]);
    assert_eq!(machine.ports[0], (0x3F8, Width::B1, Some(0x23)));
    assert_eq!(machine.ports[1], (0x71, Width::B1, None));
}

#[test]
fn vector_moves_take_sixteen_bytes() {
    let (mut machine, mut regs) = at_device();
    machine.vectors[1] = core::array::from_fn(|byte| byte as u8);
    assert_eq!(machine.run(&mut regs, &[0x0F, 0x11, 0x0B]), Outcome::Done); // movups [rbx], xmm1
    assert_eq!(machine.device.len(), 2);
    assert_eq!(machine.device[1], (DEVICE + 8, (8..16).collect(), true));
    machine.vectors[2] = [0xEE; 32];
    assert_eq!(machine.run(&mut regs, &[0x66, 0x0F, 0x6F, 0x13]), Outcome::Done); // movdqa xmm2, [rbx]
    let answer = machine.answer.to_le_bytes();
    assert_eq!(machine.vectors[2][..16], [answer, answer].concat());
    assert_eq!(machine.vectors[2][16..], [0xEE; 16]);
    assert_eq!(machine.run(&mut regs, &[0xF3, 0x0F, 0x7E, 0x13]), Outcome::Done); // movq xmm2, [rbx]
    assert_eq!(machine.vectors[2][..16], [answer, [0; 8]].concat());
    assert_eq!(machine.vectors[2][16..], [0xEE; 16]);
}

#[test]
fn vex_moves_take_up_to_thirty_two_bytes() {
    let (mut machine, mut regs) = at_device();
    machine.vectors[9] = core::array::from_fn(|byte| byte as u8);
    assert_eq!(machine.run(&mut regs, &[0xC5, 0x7E, 0x7F, 0x0B]), Outcome::Done); // vmovdqu [rbx], ymm9
    let stored: Vec<u8> = machine.device.iter().flat_map(|(_, bytes, _)| bytes.clone()).collect();
    assert_eq!(stored, (0..32).collect::<Vec<u8>>());
    assert_eq!(machine.device[3].0, DEVICE + 24);
    let answer = machine.answer.to_le_bytes();
    machine.vectors[2] = [0xEE; 32];
    assert_eq!(machine.run(&mut regs, &[0xC5, 0xFA, 0x6F, 0x13]), Outcome::Done); // vmovdqu xmm2, [rbx]
    assert_eq!(machine.vectors[2].to_vec(), [answer, answer, [0; 8], [0; 8]].concat());
    assert_eq!(machine.run(&mut regs, &[0xC5, 0xFC, 0x28, 0x13]), Outcome::Done); // vmovaps ymm2, [rbx]
    assert_eq!(machine.vectors[2].to_vec(), [answer; 4].concat());
}

#[test]
fn compare_exchange() {
    let (mut machine, mut regs) = at_device();
    machine.answer = 7;
    regs.gpr[0] = 7;
    regs.gpr[1] = 9;
    assert_eq!(machine.run(&mut regs, &[0xF0, 0x0F, 0xB1, 0x0B]), Outcome::Done); // lock cmpxchg [rbx], ecx
    assert_eq!(machine.device[1].1, [9, 0, 0, 0]);
    assert_ne!(regs.rflags & alu::ZF, 0);
    regs.gpr[0] = 8;
    assert_eq!(machine.run(&mut regs, &[0xF0, 0x0F, 0xB1, 0x0B]), Outcome::Done);
    assert_eq!(regs.gpr[0], 7);
    assert_eq!(regs.rflags & alu::ZF, 0);
}

#[test]
fn faults_are_the_architectural_ones() {
    let (mut machine, mut regs) = at_device();
    regs.gpr[3] = 5 << 30; // beyond the map
    let before = regs;
    assert_eq!(
        machine.run(&mut regs, &[0x89, 0x03]),
        Outcome::Exception(Exception { vector: 14, error_code: Some(2), cr2: Some(5 << 30) })
    );
    assert_eq!(regs, before);
    regs.gpr[3] = 1 << 47; // not canonical
    assert_eq!(machine.run(&mut regs, &[0x89, 0x03]), Outcome::Exception(Exception::GP));
    assert_eq!(machine.run(&mut regs, &[0x0F, 0x0B, 0, 0]), Outcome::Unsupported); // ud2
    assert_eq!(machine.run(&mut regs, &[0x06]), Outcome::Exception(Exception::UD)); // push es in 64-bit code
    regs.rip = 0x3_0000_0000; // code outside RAM, mapped nowhere
    assert!(matches!(fetch(&regs, &mut machine), Err(Outcome::Exception(Exception { vector: 14, .. }))));
}

#[test]
fn user_and_write_rights_are_checked() {
    let mut machine = Machine::new();
    let mut regs = machine.long_mode();
    regs.cpl = 3;
    let fault = translate(&regs, &mut machine, Gva(0x4000), Access::Read).unwrap_err();
    assert_eq!(fault.error_code, Some(5));
    regs.cpl = 0;
    machine.put(0x2000, &0x81u64.to_le_bytes()); // read-only 1 GiB page
    let fault = translate(&regs, &mut machine, Gva(0x4000), Access::Write).unwrap_err();
    assert_eq!(fault.error_code, Some(3));
    regs.cr0 &= !(1 << 16); // WP off: supervisor may write
    assert_eq!(translate(&regs, &mut machine, Gva(0x4000), Access::Write), Ok(Gpa(0x4000)));
    assert_eq!(machine.ram[0x2000] & 0x60, 0x60); // accessed and dirty
}

#[test]
fn legacy_and_pae_walks() {
    let mut machine = Machine::new();
    let mut regs = Registers {
        cr0: 0x8000_0011,
        cr3: 0x1000,
        cr4: 0x10,
        bitness: Bitness::Bits32,
        rflags: 2,
        ..Registers::default()
    };
    machine.put(0x1000, &0x2003u32.to_le_bytes());
    machine.put(0x2000 + 5 * 4, &0x7003u32.to_le_bytes());
    machine.put(0x1004, &0x0080_0083u32.to_le_bytes()); // 4 MiB page
    assert_eq!(translate(&regs, &mut machine, Gva(0x5123), Access::Read), Ok(Gpa(0x7123)));
    assert_eq!(translate(&regs, &mut machine, Gva(0x41_2345), Access::Read), Ok(Gpa(0x81_2345)));
    regs.cr4 = 0x20;
    machine.put(0x1000, &0x2001u64.to_le_bytes());
    machine.put(0x2000, &0x3003u64.to_le_bytes());
    machine.put(0x2008, &0x0060_0083u64.to_le_bytes()); // 2 MiB page
    machine.put(0x3000 + 5 * 8, &0x9003u64.to_le_bytes());
    assert_eq!(translate(&regs, &mut machine, Gva(0x5123), Access::Read), Ok(Gpa(0x9123)));
    assert_eq!(translate(&regs, &mut machine, Gva(0x20_0123), Access::Read), Ok(Gpa(0x60_0123)));
}

#[test]
fn real_mode_uses_segments() {
    let mut machine = Machine::new();
    let mut regs = real_mode();
    regs.cs.base = 0x1000;
    regs.ds.base = 0x2_0000;
    regs.es.base = 0x3_0000;
    regs.gpr[3] = 0x10;
    regs.gpr[0] = 0xBEEF;
    assert_eq!(machine.run(&mut regs, &[0x89, 0x07]), Outcome::Done); // mov [bx], ax
    assert_eq!(machine.ram[0x2_0010..0x2_0012], [0xEF, 0xBE]);
    assert_eq!(machine.run(&mut regs, &[0x26, 0x89, 0x07]), Outcome::Done); // mov es:[bx], ax
    assert_eq!(machine.ram[0x3_0010..0x3_0012], [0xEF, 0xBE]);
}

#[test]
fn moves_to_control_registers_are_recognised() {
    type Case = (&'static [u8], Option<(u8, u8)>, u8);
    let cases: [Case; 6] = [
        (&[0x44, 0x0F, 0x22, 0xC1], Some((8, 1)), 4),
        (&[0x45, 0x0F, 0x22, 0xC4], Some((8, 12)), 4),
        (&[0x0F, 0x22, 0xC0], Some((0, 0)), 3), // mov cr0, rax
        (&[0x0F, 0x22, 0xE3], Some((4, 3)), 3), // mov cr4, rbx
        (&[0x41, 0x0F, 0x20, 0xDC], None, 4),   // mov r12, cr3
        (&[0x44, 0x0F, 0x20, 0xC0], None, 4),   // mov rax, cr8
    ];
    for (code, gpr, len) in cases {
        let mut machine = Machine::new();
        let regs = machine.long_mode();
        machine.put(regs.rip as usize, code);
        let decoded = fetch(&regs, &mut machine).unwrap();
        assert_eq!((decoded.moved_to_control(), decoded.len), (gpr, len));
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut machine = Machine::new();
    for round in 0..200_000 {
        let mut regs = if round % 2 == 0 { machine.long_mode() } else { real_mode() };
        regs.rip = 0x8000;
        for gpr in &mut regs.gpr {
            *gpr = next() >> (next() % 64);
        }
        let code = [next().to_le_bytes(), next().to_le_bytes()].concat();
        let _ = machine.run(&mut regs, &code[..15]);
        machine.device.clear();
        machine.ports.clear();
    }
}

#[test]
fn pieces_are_aligned_and_complete() {
    for offset in 0..16u64 {
        for len in 1..=16usize {
            let mut at = 0;
            for (from, width) in pieces(Gpa(0x1000 + offset), len) {
                assert_eq!(from, at);
                assert_eq!((offset + from as u64) % width.bytes() as u64, 0);
                at += width.bytes();
            }
            assert_eq!(at, len);
        }
    }
}

/// Code that was swapped after the exit: a process reaches the ports that the CPU would let it reach, and no others.
#[test]
fn ports_want_privilege_or_a_bit_of_the_task() {
    // out dx, al; in ax, dx; insb; rep outsd
    let forms: [&[u8]; 4] = [&[0xEE], &[0x66, 0xED], &[0x6C], &[0xF3, 0x6F]];
    let iopl = |level: u64| level << 12;
    // The task's bitmap begins at 0x68 and allows ports 0x70 and 0x71; then it ends.
    let task = Segment { attrib: 0x8B, limit: 0x68 + 0x1F, base: 0x9000, ..Segment::default() };
    let run = |code: &[u8], cpl: u8, rflags: u64, tr: Segment, port: u64| {
        let mut machine = Machine::new();
        let mut regs = machine.long_mode();
        machine.put(0x9066, &[0x68, 0]);
        machine.put(0x9068, &[0xFF; 0x20]);
        machine.put(0x9068 + 0xE, &[!3]);
        // Pages that processes may use.
        machine.put(0x1000, &0x2007u64.to_le_bytes());
        machine.put(0x2000, &0x87u64.to_le_bytes());
        (regs.cpl, regs.rflags, regs.tr) = (cpl, 2 | rflags, tr);
        (regs.gpr[2], regs.gpr[1], regs.gpr[6], regs.gpr[7]) = (port, 1, 0x3000, 0x3000);
        let outcome = machine.run(&mut regs, code);
        (outcome, machine.ports.len())
    };
    let (done, fault) = ((Outcome::Done, 1), (Outcome::Exception(Exception::GP), 0));
    for code in forms {
        assert_eq!(run(code, 0, 0, Segment::default(), 0x3F8), done, "{code:x?}: the kernel");
        assert_eq!(run(code, 3, iopl(3), Segment::default(), 0x3F8), done, "{code:x?}: it may by IOPL");
        assert_eq!(run(code, 3, iopl(2), Segment::default(), 0x3F8), fault, "{code:x?}: no bitmap");
        assert_eq!(run(code, 3, 0, task, 0x60), fault, "{code:x?}: a set bit");
        assert_eq!(run(code, 3, 0, task, 0x3F8), fault, "{code:x?}: past the end");
    }
    assert_eq!(run(forms[0], 3, 0, task, 0x70), done);
    assert_eq!(run(forms[1], 3, 0, task, 0x70), done);
    assert_eq!(run(forms[1], 3, 0, task, 0x71), fault, "its second byte is another port");
    assert_eq!(run(forms[3], 3, 0, task, 0x70), fault);
}

/// A process whose vector registers are not its own yet does not get at them.
#[test]
fn vector_moves_want_the_registers() {
    for (bit, exception) in [(2, Exception::UD), (3, Exception::NM)] {
        let mut machine = Machine::new();
        let mut regs = machine.long_mode();
        regs.cr0 |= 1 << bit;
        regs.gpr[0] = DEVICE;
        // movups xmm0, [rax]
        assert_eq!(machine.run(&mut regs, &[0x0F, 0x10, 0x00]), Outcome::Exception(exception));
        assert!(machine.device.is_empty());
    }
}
