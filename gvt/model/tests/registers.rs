//! Registers as a driver's probe meets them.

mod rig;

use gvt_defs::reg::{self, display, forcewake, irq};
use gvt_defs::{Engine, masked, pvinfo, ring};
use gvt_model::{Bar, Finding, Forcewake, Gpu, Hpa, Nanos, Profile, Ram, Strict};
use rig::Rig;

#[test]
fn forcewake_is_acknowledged_at_once() {
    let mut rig = Rig::new();
    for (request, ack) in forcewake::DOMAINS {
        rig.write(request, 0xFFFF_0000);
        assert_eq!(rig.read(ack), 0);
        rig.write(request, masked::enable(1));
        assert_eq!(rig.read(ack), 1);
        rig.write(request, masked::enable(0x8000));
        rig.write(request, masked::disable(1));
        assert_eq!(rig.read(ack), 0x8000);
    }
}

#[test]
fn forcewake_lint_names_the_register() {
    let profile = Profile { forcewake: Forcewake::Linted, ..Profile::default() };
    let mut gpu = Gpu::new(profile);
    gpu.write32(forcewake::RENDER_REQUEST, masked::enable(1), Nanos(0));
    gpu.read32(0x2034, Nanos(0));
    gpu.read32(0x4_4200, Nanos(0));
    assert!(gpu.take_findings().is_empty());
    gpu.read32(0x2_2034, Nanos(0));
    gpu.write32(0x2_2230, 0, Nanos(0));
    assert_eq!(gpu.take_findings(), [Finding::Asleep(0x2_2034)]);
}

#[test]
fn identity_of_the_part() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(reg::FUSE2), 0x0280_0000);
    assert_eq!(rig.read(display::DFSM), 0x5020_0000);
    assert_eq!(rig.read(reg::RP_STATE_CAP), 0x0007_0717);
    assert_eq!(rig.read(reg::GUC_STATUS) & 1, 1);
    assert_ne!(rig.read(reg::RC6_CTX_INFO), 0);
    assert_eq!(rig.read(pvinfo::BASE), 0);
    rig.write(pvinfo::BASE, 0x1234);
    assert_eq!(rig.read(pvinfo::BASE), 0);
    assert_eq!(rig.read(display::FPGA_DBG), 0);
    rig.no_findings();
}

#[test]
fn pcode_completes_at_once() {
    let mut rig = Rig::new();
    rig.write(reg::PCODE_DATA0, 0);
    rig.write(reg::PCODE_MAILBOX, reg::PCODE_READY | reg::pcode::READ_MEM_LATENCY);
    assert_eq!(rig.read(reg::PCODE_MAILBOX) & (reg::PCODE_READY | 0xFF), 0);
    assert_ne!(rig.read(reg::PCODE_DATA0), 0);
}

#[test]
fn classes_of_writes() {
    let mut rig = Rig::new();
    rig.write(0x20C0, masked::enable(0x11));
    rig.write(0x20C0, 0x0010_0000);
    assert_eq!(rig.read(0x20C0), 1);
    rig.write(0x4090, 0xABCD_1234);
    assert_eq!(rig.read(0x4090), 0xABCD_1234);
    rig.write(reg::FUSE2, 0);
    assert_eq!(rig.read(reg::FUSE2), 0x0280_0000);
    rig.write(0x4260, 1);
    assert_eq!(rig.read(0x4260), 0);
    rig.write(reg::GFX_FLSH_CNTL, 1);
    assert_eq!(rig.read(reg::GFX_FLSH_CNTL), 0);
    for n in 0..32 {
        rig.write(0xC800 + 4 * n, n);
        assert_eq!(rig.read(0xC800 + 4 * n), n);
    }
    rig.no_findings();
}

#[test]
fn any_width_and_alignment() {
    let mut gpu = Gpu::new(Profile::default());
    let mut ram = Ram::new(Hpa(0), 4096);
    let now = Nanos(0);
    gpu.bar_write(&mut ram, Bar::Gttmmadr, 0x4090, &[1, 2, 3, 4, 5, 6, 7, 8], now);
    gpu.bar_write(&mut ram, Bar::Gttmmadr, 0x4091, &[0xEE], now);
    let mut buf = [0; 8];
    gpu.bar_read(&mut ram, Bar::Gttmmadr, 0x4090, &mut buf, now);
    assert_eq!(buf, [1, 0xEE, 3, 4, 5, 6, 7, 8]);
    gpu.bar_read(&mut ram, Bar::Gttmmadr, 0x408F, &mut buf[..3], now);
    assert_eq!(buf[..3], [0, 1, 0xEE]);
    // Global entries.
    gpu.bar_write(&mut ram, Bar::Gttmmadr, 0x80_0008, &0x1_2345_6001_u64.to_le_bytes(), now);
    gpu.bar_write(&mut ram, Bar::Gttmmadr, 0x80_000C, &[9], now);
    assert_eq!(gpu.ggtt_read(1), 0x9_2345_6001);
    gpu.bar_read(&mut ram, Bar::Gttmmadr, 0x80_0008, &mut buf, now);
    assert_eq!(u64::from_le_bytes(buf), 0x9_2345_6001);
    // The edges of every BAR, and far beyond.
    for bar in [Bar::Gttmmadr, Bar::Gmadr, Bar::Io] {
        for offset in [gpu.bar_size(bar) - 1, gpu.bar_size(bar), u64::MAX - 3, 0x1F_FFFE, 0x7F_FFFD] {
            gpu.bar_read(&mut ram, bar, offset, &mut buf, now);
            gpu.bar_write(&mut ram, bar, offset, &buf, now);
        }
    }
}

#[test]
fn every_register_can_be_read_and_written() {
    let mut rig = Rig::with(Profile::default());
    let mut seed = 1_u32;
    for offset in (0..0x20_0000).step_by(4) {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        rig.write(offset, seed);
        rig.read(offset);
    }
    rig.step(1000);
}

#[test]
fn display_core_follows() {
    let mut rig = Rig::with(Profile { display: gvt_defs::reset::Display::Dark, ..Profile::default() });
    assert_eq!(rig.read(display::DFSM), 0);
    rig.write(display::PWR_WELL_CTL1 + 4, 0x2000_0000);
    assert_eq!(rig.read(display::PWR_WELL_CTL1 + 4), 0x3000_0000);
    assert_eq!(rig.read(display::PWR_WELL_CTL1), 0x1000_0000, "state shows everywhere");
    rig.write(display::LCPLL1_CTL, 1 << 31);
    assert_eq!(rig.read(display::LCPLL1_CTL), 3 << 30);
    assert_eq!(rig.read(display::DPLL_STATUS), 1);
    rig.write(display::DBUF_CTL, 1 << 31);
    assert_ne!(rig.read(display::DBUF_CTL) & 1 << 30, 0);
    rig.write(display::AUX_CTL_A, 1 << 31);
    assert_eq!(rig.read(display::AUX_CTL_A) >> 28, 0b0101);
    rig.write(display::GMBUS1, 1 << 30);
    assert_ne!(rig.read(display::GMBUS2) & 1 << 10, 0);
    rig.write(display::GMBUS1, 1 << 31);
    assert_eq!(rig.read(display::GMBUS2), 0);
    rig.write(display::PSR_IIR, 0xFFFF_FFFF);
    assert_eq!(rig.read(display::PSR_IIR), 0);
    rig.write(display::DDI_BUF_CTL_A, 1 << 31);
    assert_eq!(rig.read(display::DDI_BUF_CTL_A) & 1 << 7, 0);
}

#[test]
fn unknown_registers_are_findings_in_strict_mode() {
    let mut gpu = Gpu::new(Profile { strict: Strict::Report, ..Profile::default() });
    gpu.read32(0x18_0000, Nanos(0));
    gpu.write32(0x18_0000, 7, Nanos(0));
    assert_eq!(gpu.read32(0x18_0000, Nanos(0)), 7, "storage all the same");
    let findings = gpu.take_findings();
    assert_eq!(findings, [Finding::UnknownRead(0x18_0000), Finding::UnknownWrite(0x18_0000, 7)]);
}

#[test]
fn errors_are_latched_and_told_once() {
    let mut rig = Rig::new();
    let mut c = rig.context(Engine::Rcs);
    rig.emit(&mut c, &[0xDEAD_BEEF]);
    rig.submit_and_run(&c);
    assert_eq!(rig.get(Engine::Rcs, ring::EIR), ring::ERROR_INSTRUCTION);
    assert_eq!(rig.get(Engine::Rcs, ring::IPEHR), 0xDEAD_BEEF);
    assert_ne!(rig.read(irq::GT_BANK0 + irq::IIR) & 1 << 3, 0);
    rig.set(Engine::Rcs, ring::EIR, 0xFFFF_FFFF);
    assert_eq!(rig.get(Engine::Rcs, ring::EIR), 0);
    assert_ne!(rig.get(Engine::Rcs, ring::ESR), 0, "until reset");
}

#[test]
fn frequency_follows_the_request() {
    let mut rig = Rig::new();
    rig.write(reg::RPNSWREQ, 23 << 23);
    assert_eq!(rig.read(reg::RPSTAT1) >> 23, 23);
}
