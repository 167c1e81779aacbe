//! The monitor's commands, and the statistics that it prints.

use core::sync::atomic::Ordering;

use crate::console::Command;
use crate::irq::Pending;
use crate::machine::Machine;
use crate::stats::Nobody;
use crate::vm::{Request, Vm, VmId};
use crate::{percpu, say, time};

/// Carries out one command.
pub(crate) fn execute(machine: &'static Machine, command: Command) {
    match command {
        Command::Vms => print_vms(machine),
        Command::Stats => print_stats(machine),
        Command::Reset(number) => ask(machine, number, Request::Reset),
        Command::Kill(number) => ask(machine, number, Request::Kill),
        Command::Help => {
            say!("vms        what each guest is doing");
            say!("stats      exits by reason, time, unanswered accesses");
            say!("reset N    start guest N again from its kernel");
            say!("kill N     stop guest N");
            say!("help       this text; Ctrl-] N goes to the console of guest N, Ctrl-] m comes back");
        }
    }
}

fn ask(machine: &'static Machine, number: u8, request: Request) {
    match machine.vms().iter().find(|vm| vm.id() == VmId(number)) {
        Some(vm) => vm.request(request),
        None => say!("there is no guest {number}; `vms` lists them"),
    }
}

fn print_vms(machine: &'static Machine) {
    for vm in machine.vms() {
        let (status, cpus, exits) = (vm.status(), vm.cpus().len(), vm.stats().total());
        let (resets, crashes) = (vm.resets(), vm.crashes());
        say!("{vm}: {status:?}, {cpus} vCPUs, {resets} resets, {crashes} crashes, {exits} exits");
    }
}

/// A table for people, then `@stat` lines for programs.
pub(crate) fn print_stats(machine: &'static Machine) {
    for vm in machine.vms() {
        print_table(vm);
    }
    for cpu in percpu::all() {
        let kinds = [Pending::TIMER, Pending::KICK, Pending::FLUSH, Pending::DEVICE, Pending::CONSOLE, Pending::NMI];
        let [timer, kick, flush, device, console, nmi] = kinds.map(|kind| cpu.interrupts(kind));
        let (id, switches) = (cpu.id().0, cpu.switches.load(Ordering::Relaxed));
        say!(
            "cpu {id}: {switches} switches, {timer} timer, {kick} kick, {flush} flush, {device} device, {console} console, {nmi} NMI"
        );
    }
    for vm in machine.vms() {
        print_lines(machine, vm);
    }
    print_memory(machine);
}

fn print_table(vm: &Vm) {
    let stats = vm.stats();
    let hz = time::tsc_hz().max(1);
    let milliseconds = |ticks: u64| (u128::from(ticks) * 1000 / u128::from(hz)) as u64;
    let (exits, interrupts, ran) = (stats.total(), stats.interrupts(), milliseconds(stats.guest_ticks()));
    say!("{vm}: {exits} exits, {interrupts} interrupts, {ran} ms in the guest");
    say!("  {:<16} {:>10} {:>8} {:>8}", "reason", "exits", "ms", "ns each");
    for (name, count, ticks) in stats.rows() {
        let each = u128::from(ticks) * 1_000_000_000 / u128::from(hz) / u128::from(count.max(1));
        say!("  {name:<16} {count:>10} {:>8} {each:>8}", milliseconds(ticks));
    }
    for (kind, place, count) in stats.unanswered() {
        let what = match kind {
            Nobody::Port => "port",
            Nobody::Memory => "memory",
            Nobody::Msr => "MSR",
        };
        say!("  nobody answered {what} {place:#x}: {count} times");
    }
    if stats.unanswered_elsewhere() > 0 {
        say!("  and {} accesses elsewhere", stats.unanswered_elsewhere());
    }
}

/// Lines of one form for everything that is counted: `@stat vm= group= name= value=`.
fn print_lines(machine: &'static Machine, vm: &Vm) {
    let (name, stats) = (vm.name(), vm.stats());
    let line = |group: &str, what: &str, value: u64| say!("@stat vm={name} group={group} name={what} value={value}");
    let hz = u128::from(time::tsc_hz().max(1));
    let microseconds = |ticks: u64| (u128::from(ticks) * 1_000_000 / hz) as u64;
    for (reason, count, ticks) in stats.rows() {
        line("exit", reason, count);
        line("exit_us", reason, microseconds(ticks));
    }
    line("total", "exits", stats.total());
    line("total", "interrupts", stats.interrupts());
    line("time", "guest_us", microseconds(stats.guest_ticks()));
    line("total", "resets", u64::from(vm.resets()));
    line("total", "crashes", u64::from(vm.crashes()));
    let unanswered = stats.unanswered().map(|row| row.2).sum::<u64>() + stats.unanswered_elsewhere();
    line("total", "unanswered", unanswered);
    if let Some(service) = machine.service() {
        service.stats(vm.id(), &mut |group, what, value| {
            say!("@gpu vm={name} group={group} name={what} value={value}");
        });
    }
}

/// Whose memory is where: `@mem owner= base= bytes=`. A device that touches any other breaks out.
fn print_memory(machine: &'static Machine) {
    for vm in machine.vms() {
        for slot in vm.memory().slots() {
            say!("@mem owner=vm vm={} base={} bytes={}", vm.name(), slot.hpa().0, slot.bytes());
        }
    }
    if let Some(service) = machine.service() {
        service.memory(&mut |base, bytes| say!("@mem owner=mediator base={base} bytes={bytes}"));
    }
}
