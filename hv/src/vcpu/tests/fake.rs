//! A virtual CPU without hardware, and a VM for it: the vendor trait's third implementation.

use core::fmt;

use hv_defs::paging::{Level, Npt};
use hv_defs::{Gpa, Nanos, Segment};
use hv_dev::apic::Interrupts;
use hv_emu::{Bitness, Registers};

use super::super::Vcpu;
use crate::frame::Placement;
use crate::load::linux::Entry;
use crate::load::{LoadError, OnCrash};
use crate::nested::Nested;
use crate::percpu::CpuId;
use crate::phys::fake;
use crate::vendor::{Event, Exit, Setup, Start, VirtualCpu, Window};
use crate::vm::{Loader, RestartPolicy, Vm, VmId, VmSetup};

/// Where the fake guest's code lies (paging is off, so linear is physical).
pub const CODE: u64 = 0x1000;

pub struct FakeCpu {
    pub regs: Registers,
    pub event: Option<Event>,
    pub window: Window,
    pub started: Option<Start>,
    pub shadow: bool,
    pub nmi_blocked: bool,
    pub cr2: u64,
    pub cr8: u8,
    pub can_carry: bool,
    pub carries: Option<Interrupts>,
    pub tsc_offset: u64,
    pub flushes: u32,
    pub efer: u64,
    pub pat: u64,
}

impl VirtualCpu for FakeCpu {
    type Extension = ();

    fn new(_: &Setup) -> Option<Self> {
        let flat = Segment::FLAT_DATA;
        let segments = Registers { cs: Segment::FLAT_CODE, ds: flat, es: flat, ss: flat, ..Registers::default() };
        let regs = Registers { rip: CODE, bitness: Bitness::Bits32, cr0: 1, rflags: 0x202, ..segments };
        Some(Self {
            regs,
            event: None,
            window: Window::Closed,
            started: None,
            shadow: false,
            nmi_blocked: false,
            cr2: 0,
            cr8: 0,
            can_carry: false,
            carries: None,
            tsc_offset: 0,
            flushes: 0,
            efer: 0,
            pat: hv_defs::regs::PAT_RESET,
        })
    }
    fn start(&mut self, start: Start) {
        self.started = Some(start);
    }
    fn run(&mut self, (): &mut ()) -> Exit {
        Exit::HostInterrupt
    }
    fn registers(&self) -> Registers {
        self.regs
    }
    fn retire(&mut self, registers: &Registers) {
        self.regs = *registers;
        self.shadow = false;
    }
    fn skip(&mut self, length: u8) {
        self.regs.rip += u64::from(length);
        self.shadow = false;
        self.trap();
    }
    fn trap(&mut self) {
        if self.regs.rflags & 0x100 != 0 && self.event.is_none() {
            self.event = Some(Event::Exception { vector: 1, error_code: None });
        }
    }
    fn instruction_length(&self) -> Option<u8> {
        None
    }
    fn gpr(&self, number: u8) -> u64 {
        self.regs.gpr.get(usize::from(number)).copied().unwrap_or(0)
    }
    fn set_gpr(&mut self, number: u8, value: u64) {
        self.regs.gpr[usize::from(number)] = value;
    }
    fn rip(&self) -> u64 {
        self.regs.rip
    }
    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }
    fn cr4(&self) -> u64 {
        self.regs.cr4
    }
    fn set_cr4(&mut self, value: u64) {
        self.regs.cr4 = value;
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.efer = value;
    }
    fn pat(&self) -> u64 {
        self.pat
    }
    fn set_pat(&mut self, value: u64) {
        self.pat = value;
    }
    fn native_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn set_native_msr(&mut self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn cr8(&self) -> u8 {
        self.cr8
    }
    fn set_cr8(&mut self, value: u8) {
        self.cr8 = value;
    }
    fn interruptible(&self) -> bool {
        self.regs.rflags & 0x200 != 0 && !self.shadow && self.event.is_none()
    }
    fn nmi_allowed(&self) -> bool {
        !self.nmi_blocked && !self.shadow && self.event.is_none()
    }
    fn event_queued(&self) -> bool {
        self.event.is_some()
    }
    fn inject(&mut self, event: Event) {
        self.nmi_blocked |= event == Event::Nmi;
        self.event = Some(event);
    }
    fn set_window(&mut self, window: Window) {
        self.window = window;
    }
    fn await_nmi(&mut self) {}
    fn can_carry(&self) -> bool {
        self.can_carry
    }
    fn carry(&mut self, interrupts: Option<&Interrupts>) {
        self.carries = interrupts.copied();
    }
    fn carried(&mut self) -> Option<Interrupts> {
        self.carries
    }
    fn set_deadline(&mut self, _: Option<Nanos>) {}
    fn flush_tlb(&mut self) {
        self.flushes += 1;
    }
    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "fake")
    }
}

struct Nothing;

impl Loader for Nothing {
    fn load(&self, _: &Vm) -> Result<Entry, LoadError> {
        Ok(Entry { rip: CODE, rsi: 0, rsp: 0, cr3: 0, gdt: Gpa(0), gdt_limit: 0 })
    }
}

/// A VM of 8 MiB with `vcpus` virtual CPUs, not yet started.
pub fn vm(vcpus: usize, on_crash: OnCrash) -> &'static Vm {
    fake::install(32 << 20);
    let setup = VmSetup {
        id: VmId(1),
        name: "test".into(),
        memory: 8 << 20,
        cpus: vec![CpuId(0); vcpus],
        functions: Vec::new(),
        mapped_bars: 0,
        placement: Placement::Low,
        loader: Box::new(Nothing),
        on_crash,
        restarts: RestartPolicy { limit: 10, window: Nanos(60_000_000_000) },
        wall_clock: 1_700_000_000,
    };
    Box::leak(Box::new(Vm::new(setup, |pool| Nested::<Npt>::boxed(pool, Level::L3)).unwrap()))
}

/// A started VM and its virtual CPUs; the first one has `code` before it.
pub fn started(vcpus: usize, code: &[u8]) -> Vec<Vcpu<FakeCpu>> {
    started_with(OnCrash::Stop, vcpus, code)
}

/// The same, with what follows a crash.
pub fn started_with(on_crash: OnCrash, vcpus: usize, code: &[u8]) -> Vec<Vcpu<FakeCpu>> {
    let vm = vm(vcpus, on_crash);
    let mut all: Vec<_> = (0..vcpus).map(|index| Vcpu::new(vm, index, 1).unwrap()).collect();
    vm.carry_out();
    vm.write(Gpa(CODE), code).unwrap();
    for vcpu in &mut all {
        vcpu.follow();
    }
    all
}
