//! The run loop: one on each physical CPU, for the virtual CPUs that live there.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use hv_defs::Nanos;
use spin::Once;

use crate::console::{self, Event};
use crate::irq::{self, Pending};
use crate::machine::{self, Machine};
use crate::percpu::{self, CpuId};
use crate::speculation::{self, Barriers};
use crate::stats::Reason;
use crate::trace::{self, What};
use crate::vcpu::{Followed, Vcpu};
use crate::vendor::{Exit, ExitKind, Extension, VirtualCpu};
use crate::vm::{Vm, VmId};
use crate::{apic, cpus, exits, fpu, monitor, power, say, time};

/// How long a virtual CPU runs while another waits for the same physical CPU.
const SLICE: u64 = 5_000_000;

/// The line that says how long Prism itself took to start.
static FIRST_ENTRY: Once<()> = Once::new();

/// Where every CPU starts once the machine is built.
pub(crate) fn enter<E: Extension>() -> ! {
    let Some(machine) = machine::get() else { power::halt() };
    fpu::enable();
    if !fpu::fits() {
        say!("CPU {}: its XSAVE area is larger than Prism provides for", percpu::current().0);
        power::exit(power::Exit::Machine)
    }
    let extension = match E::enable() {
        Ok(extension) => extension,
        Err(missing) => {
            say!("CPU {}: {missing}", percpu::current().0);
            power::exit(power::Exit::Machine)
        }
    };
    match Runner::new(machine, extension) {
        Some(mut runner) => runner.run(),
        None => {
            say!("CPU {}: no memory for its virtual CPUs", percpu::current().0);
            power::exit(power::Exit::Memory)
        }
    }
}

/// One physical CPU.
struct Runner<E: Extension> {
    machine: &'static Machine,
    extension: E,
    cpu: CpuId,
    vcpus: Vec<Vcpu<E::Vcpu>>,
    /// Whose FPU and debug registers are in the CPU.
    loaded: Option<usize>,
    /// VMs whose timers this CPU runs.
    home: Vec<&'static Vm>,
    /// What the timer is set to.
    armed: Option<Nanos>,
    service_deadline: Option<Nanos>,
    slice_end: Nanos,
    barriers: Barriers,
    /// The VM that this CPU ran last.
    owner: Option<VmId>,
    /// Since the last entry this CPU touched what may be another VM's.
    touched: bool,
}

/// Whether the CPU goes on with the same virtual CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Again,
    Yield,
}

impl<E: Extension> Runner<E> {
    fn new(machine: &'static Machine, extension: E) -> Option<Self> {
        let cpu = percpu::current();
        let mut vcpus = Vec::new();
        for vm in machine.vms() {
            for index in (0..vm.cpus().len()).filter(|index| vm.cpus().get(*index) == Some(&cpu)) {
                vcpus.push(Vcpu::new(vm, index, vcpus.len() as u16 + 1)?);
            }
        }
        let home = machine.vms().iter().filter(|vm| vm.home() == cpu).collect();
        Some(Self {
            machine,
            extension,
            cpu,
            vcpus,
            loaded: None,
            home,
            armed: None,
            service_deadline: None,
            slice_end: Nanos(0),
            barriers: Barriers::enable(),
            owner: None,
            touched: true,
        })
    }

    fn run(&mut self) -> ! {
        let mut next = 0;
        loop {
            self.serve(irq::take());
            let Some(chosen) = self.choose(next) else {
                self.sleep();
                continue;
            };
            next = chosen + 1;
            self.load(chosen);
            self.slice_end = Nanos(time::now().0.saturating_add(SLICE));
            while self.turn(chosen) == Turn::Again {}
        }
    }

    /// The next virtual CPU that has something to do, from `from` on in a circle.
    fn choose(&mut self, from: usize) -> Option<usize> {
        let (now, tsc) = (time::now(), time::tsc());
        let count = self.vcpus.len();
        for index in (0..count).map(|n| (from + n) % count) {
            let vcpu = self.vcpus.get_mut(index)?;
            if vcpu.is_asked() && vcpu.follow() == Followed::StartedOver && self.loaded == Some(index) {
                self.loaded = None;
            }
            let vcpu = self.vcpus.get(index)?;
            if vcpu.is_runnable(now, tsc) {
                return Some(index);
            }
        }
        None
    }

    /// Whether a virtual CPU other than `current` has something to do.
    fn others_wait(&self, current: usize, now: Nanos, tsc: u64) -> bool {
        let others = self.vcpus.iter().enumerate().filter(|(index, _)| *index != current);
        self.vcpus.len() > 1 && others.into_iter().any(|(_, vcpu)| vcpu.is_asked() || vcpu.is_runnable(now, tsc))
    }

    /// Puts a virtual CPU's FPU and debug registers into the CPU.
    fn load(&mut self, index: usize) {
        if self.loaded == Some(index) {
            return;
        }
        percpu::this().switches.fetch_add(1, Ordering::Relaxed);
        if let Some(old) = self.loaded.and_then(|old| self.vcpus.get_mut(old)) {
            old.guest.save();
        }
        if let Some(new) = self.vcpus.get(index) {
            new.guest.load();
            if self.owner.replace(new.vm.id()) != Some(new.vm.id()) {
                self.barriers.on_switch(speculation::command);
                self.touched = true;
            }
        }
        self.loaded = Some(index);
    }

    /// One entry into the guest, and what follows.
    fn turn(&mut self, index: usize) -> Turn {
        let (now, tsc) = (time::now(), time::tsc());
        for vm in &self.home {
            vm.tick(now);
        }
        let others_wait = self.others_wait(index, now, tsc);
        if others_wait && now >= self.slice_end {
            return Turn::Yield;
        }
        let Some(vcpu) = self.vcpus.get_mut(index) else {
            return Turn::Yield;
        };
        if vcpu.is_asked() || !vcpu.prepare(now, tsc) {
            return Turn::Yield;
        }
        let slice = others_wait.then_some(self.slice_end);
        self.arm(slice, now, tsc);
        let armed = self.armed;
        let Some(vcpu) = self.vcpus.get_mut(index) else {
            return Turn::Yield;
        };
        vcpu.hw.set_deadline(armed);
        if !cpus::enter(vcpu.vm.id(), || vcpu.must_look_again()) {
            self.serve(irq::take());
            return Turn::Again;
        }
        if core::mem::take(&mut self.touched) {
            self.barriers.scrub(speculation::command);
        }
        FIRST_ENTRY.call_once(|| say!("first guest instruction after {} us", time::now().0 / 1000));
        let before = time::tsc();
        let (vm, index) = (vcpu.vm.id().0, vcpu.index as u8);
        trace::record(self.cpu, before, What::Enters, [0, vm, index], [vcpu.hw.rip(), 0]);
        let exit = vcpu.hw.run(&mut self.extension);
        cpus::returned();
        let after = time::tsc();
        let kind = ExitKind::from(exit) as u8;
        trace::record(self.cpu, after, What::Leaves, [kind, vm, index], [vcpu.hw.rip(), exit.detail()]);
        vcpu.vm.stats().ran(after.wrapping_sub(before));
        let reason = exits::handle(vcpu, exit);
        // The mediator works for all.
        self.touched |= reason == Reason::MmioBar;
        let pending = if exit == Exit::HostInterrupt { irq::poll() } else { irq::take() };
        let vm = vcpu.vm;
        self.serve(pending);
        vm.stats().exit(reason, time::tsc().wrapping_sub(after));
        Turn::Again
    }

    /// Nothing to run: sleep until a deadline or an interrupt.
    fn sleep(&mut self) {
        let (now, tsc) = (time::now(), time::tsc());
        for vm in &self.home {
            vm.tick(now);
        }
        self.arm(None, now, tsc);
        let pending = cpus::sleep(|| {
            let (now, tsc) = (time::now(), time::tsc());
            self.vcpus.iter().any(|vcpu| vcpu.is_asked() || vcpu.is_runnable(now, tsc))
                || self.home.iter().any(|vm| vm.is_ready())
        });
        self.serve(pending);
    }

    /// Sets the timer to the earliest thing that this CPU waits for.
    fn arm(&mut self, slice: Option<Nanos>, now: Nanos, tsc: u64) {
        let timers = self.vcpus.iter().filter_map(|vcpu| vcpu.deadline(now, tsc));
        let vms = self.home.iter().filter_map(|vm| vm.deadline());
        let console = if self.cpu == CpuId(0) { cpus::watch_console(|| console::deadline(now)) } else { None };
        let rest = slice.into_iter().chain(self.service_deadline).chain(console);
        let earliest = timers.chain(vms).chain(rest).min();
        if earliest == self.armed {
            return;
        }
        self.armed = earliest;
        match earliest {
            Some(deadline) => apic::arm(deadline),
            None => apic::disarm(),
        }
    }

    /// What is to be done for the machine, whichever virtual CPU runs.
    fn serve(&mut self, pending: Pending) {
        cpus::attend();
        if pending.contains(Pending::STOP) {
            power::halt();
        }
        if pending.contains(Pending::TIMER) {
            self.armed = None;
        }
        for vm in &self.home {
            vm.carry_out();
        }
        if self.cpu == CpuId(0) {
            self.serve_machine(pending);
        }
    }

    /// Says who has something to do on this CPU, which is the first. Apart, so that the way of most exits stays short.
    #[inline(never)]
    fn note_wanting(&self, now: Nanos) {
        let tsc = time::tsc();
        let wanting = self.vcpus.iter().filter(|vcpu| vcpu.is_asked() || vcpu.is_runnable(now, tsc));
        self.machine.set_wanting(wanting.map(|vcpu| vcpu.vm.id()));
    }

    /// The first CPU's duties: the physical device, the console, the end of the run.
    fn serve_machine(&mut self, pending: Pending) {
        let now = time::now();
        let asked = self.machine.take_poll();
        if let Some(service) = self.machine.service() {
            let interrupted = pending.contains(Pending::DEVICE) && irq::take_devices() != 0;
            if interrupted {
                self.note_wanting(now);
                service.interrupt(now);
            }
            let due = self.service_deadline.is_some_and(|deadline| deadline <= now);
            if asked || due || interrupted {
                self.service_deadline = service.poll(now);
                self.touched = true;
            }
        }
        let machine = self.machine;
        if pending.intersects(Pending::CONSOLE | Pending::TIMER | Pending::KICK) {
            console::poll(now, &mut |event| match event {
                Event::Input { vm, byte } => {
                    if let Some(vm) = machine::vm(VmId(vm)) {
                        vm.console_input(byte);
                    }
                }
                Event::Command(command) => monitor::execute(machine, command),
            });
        }
        machine.end_if_done();
    }
}
