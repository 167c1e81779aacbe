//! The models. The thread that calls one plays the first CPU.

use hv_defs::Nanos;
use loom::cell::UnsafeCell;
use loom::thread;

use crate::apic::Posted;
use crate::cpus::{self, VmId};
use crate::irq;
use crate::machine::{percpu, run_guest_until_interrupt};
use crate::message::{Delivery, Destination, Message, Trigger};
use crate::percpu::CpuId;
use crate::stubs::Mutex;
use crate::sync::{AtomicBool, Ordering};
use crate::vcpu::{Activity, Vcpu};
use crate::vendor::{Guest, Start};
use crate::vm::{Request, Status, Timed, Vm};

const FIRST: u8 = 0x41;
const SECOND: u8 = 0x91;

loom::lazy_static! {
    static ref ONE: Vm = Vm::new(1, &[0]);
    static ref TWO: Vm = Vm::new(1, &[0, 1]);
}

/// Every interleaving with at most `preemptions` of them (all, if `None`).
fn check(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 5_000;
    builder.check(model);
}

/// A thread that plays `cpu`.
fn on(cpu: u32, run: impl FnOnce() + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        percpu::attach(CpuId(cpu));
        run();
    })
}

fn fixed(vector: u8) -> Message {
    message(Destination::Physical(0), Delivery::Fixed, vector)
}

fn message(to: Destination, delivery: Delivery, vector: u8) -> Message {
    Message { to, delivery, vector, trigger: Trigger::Edge }
}

/// The run loop of a CPU with one virtual CPU, as in `hv/src/run.rs`.
struct Runner {
    vm: &'static Vm,
    vcpu: Vcpu<Guest>,
    is_home: bool,
}

impl Runner {
    fn new(vm: &'static Vm, index: usize) -> Self {
        let vcpu = Vcpu::new(vm, index, 1).unwrap();
        Self { vm, vcpu, is_home: index == 0 }
    }

    /// One turn of the loop; `guest` is what runs in guest mode.
    fn turn(&mut self, guest: impl FnOnce(&mut Vcpu<Guest>)) {
        cpus::attend();
        if self.is_home {
            self.vm.carry_out();
        }
        let (vm, is_home, vcpu) = (self.vm, self.is_home, &mut self.vcpu);
        if vcpu.is_asked() {
            vcpu.follow();
        }
        if !vcpu.is_runnable(Nanos(0), 0) {
            let news = || vcpu.is_asked() || vcpu.is_runnable(Nanos(0), 0) || (is_home && vm.is_ready());
            cpus::sleep(news);
            return;
        }
        if vcpu.is_asked() || !vcpu.prepare(Nanos(0), 0) {
            return;
        }
        if !cpus::enter(vm.id(), || vcpu.must_look_again()) {
            irq::take();
            return;
        }
        guest(vcpu);
        cpus::returned();
        irq::poll();
    }
}

/// Whether what is posted in a model has arrived.
fn has_both(vcpu: &Vcpu<Guest>) -> bool {
    let interrupts = vcpu.lapic.interrupts();
    interrupts.requested.count() + interrupts.in_service.count() == 2
}

/// A guest that computes until it has both.
fn compute(vcpu: &Vcpu<Guest>) {
    if !has_both(vcpu) {
        run_guest_until_interrupt();
    }
}

/// A started VM whose first virtual CPU has its local APIC on and known to senders.
fn started(vm: &'static Vm) -> Runner {
    percpu::attach(CpuId(0));
    let mut runner = Runner::new(vm, 0);
    vm.carry_out();
    runner.vcpu.follow();
    assert!(runner.vcpu.prepare(Nanos(0), 0));
    runner
}

/// Two CPUs post to a third one that halts (or computes) until it has both: it never stays asleep, nor in its guest,
/// with something unseen.
pub fn posters_and_a_sleeper(activity: Sleeper) {
    check(Some(2), move || {
        let mut runner = started(&ONE);
        if activity == Sleeper::Halts {
            runner.vcpu.activity = Activity::Halted;
        }
        let posters = [(1, FIRST), (2, SECOND)].map(|(cpu, vector)| on(cpu, move || ONE.deliver(&fixed(vector), None)));
        while !has_both(&runner.vcpu) {
            runner.turn(|vcpu| compute(vcpu));
            if activity == Sleeper::Halts {
                runner.vcpu.activity = Activity::Halted;
            }
        }
        posters.into_iter().for_each(|poster| poster.join().unwrap());
    });
}

/// What the target of `posters_and_a_sleeper` does between two interrupts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sleeper {
    /// It halts.
    Halts,
    /// It computes.
    Computes,
}

/// A CPU posts twice while the other one leaves its guest by itself and comes back: the second may find the mark of the
/// first still set.
pub fn a_poster_posts_twice() {
    check(Some(3), || {
        let mut runner = started(&ONE);
        let poster = on(1, || [FIRST, SECOND].iter().for_each(|vector| ONE.deliver(&fixed(*vector), None)));
        let mut exits = 0;
        while !has_both(&runner.vcpu) {
            runner.turn(|vcpu| if exits > 0 { compute(vcpu) } else { exits += 1 });
        }
        poster.join().unwrap();
    });
}

/// The mailbox by itself: its owner takes each vector once, and is kicked once for each time that it must look.
pub fn two_posters_and_the_owner() {
    check(Some(5), || {
        let mut runner = started(&ONE);
        let kicks = [(FIRST, 1), (SECOND, 2)].map(|(vector, _)| {
            thread::spawn(move || u32::from(ONE.posted()[0].post(Delivery::Fixed, vector, Trigger::Edge)))
        });
        let look = |runner: &mut Runner| {
            let before = runner.vcpu.lapic.interrupts().requested.count();
            let looks = u32::from(ONE.posted()[0].is_pending());
            let _ = runner.vcpu.lapic.sync(&ONE.posted()[0]);
            (looks, runner.vcpu.lapic.interrupts().requested.count() - before)
        };
        let first = look(&mut runner);
        let kicks: u32 = kicks.into_iter().map(|poster| poster.join().unwrap()).sum();
        let waits = !has_both(&runner.vcpu);
        assert!(!waits || ONE.posted()[0].is_pending(), "a vector lies in the mailbox and nothing says so");
        let second = look(&mut runner);
        assert!(has_both(&runner.vcpu));
        assert_eq!(first.1 + second.1, 2);
        assert!(kicks >= 1 && kicks >= first.0 + u32::from(waits), "{kicks} kicks");
    });
}

/// A page that a guest reaches with translations of the first generation only; after the flush it belongs to others.
struct Page(UnsafeCell<()>);

impl Page {
    fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    /// Loom reports an access that is not ordered with the owner's.
    fn guest_reads(&self) {
        self.0.with(|_| ());
    }

    fn owner_writes(&self) {
        self.0.with_mut(|_| ());
    }
}

loom::lazy_static! {
    static ref PAGE: Page = Page::new();
}

/// The virtual CPUs of `TWO`, both executing, each with its present translations.
fn both_running() -> [Runner; 2] {
    let first = started(&TWO);
    let mut second = Runner::new(&TWO, 1);
    second.vcpu.follow();
    second.vcpu.activity = Activity::Running;
    assert!(second.vcpu.prepare(Nanos(0), 0));
    [first, second]
}

/// Entries of the second virtual CPU of `TWO`, on the second CPU, while the first CPU flushes. With old translations the
/// guest stays until an interrupt if `stays`, else it leaves by itself; with new ones it always does.
pub fn a_flush_and_a_guest(stays: bool) {
    check(Some(4), move || {
        let [_first, mut second] = both_running();
        let guest = on(1, move || {
            let old = second.vcpu.hw.flushes;
            for _ in 0..2 {
                second.turn(|vcpu| {
                    if vcpu.hw.flushes == old {
                        PAGE.guest_reads();
                        if stays {
                            run_guest_until_interrupt();
                        }
                    }
                });
            }
        });
        TWO.generation.advance(TWO.id());
        PAGE.owner_writes();
        guest.join().unwrap();
    });
}

loom::lazy_static! {
    static ref IS_FLUSHED: AtomicBool = AtomicBool::new(false);
}

/// A guest that left by itself, and is back with new translations until it is interrupted for something else: the flush
/// does not wait for it.
pub fn a_flush_and_a_guest_that_comes_back() {
    check(Some(4), || {
        let [_first, mut second] = both_running();
        let guest = on(1, move || {
            let (old, mut leaves) = (second.vcpu.hw.flushes, true);
            while !IS_FLUSHED.load(Ordering::Acquire) {
                second.turn(|vcpu| {
                    let leaves = core::mem::take(&mut leaves) && vcpu.hw.flushes == old;
                    if !leaves && !IS_FLUSHED.load(Ordering::Acquire) {
                        run_guest_until_interrupt();
                    }
                });
            }
        });
        TWO.generation.advance(TWO.id());
        IS_FLUSHED.store(true, Ordering::Release);
        cpus::nudge(CpuId(1));
        guest.join().unwrap();
    });
}

/// Two CPUs leave guests and flush, of one VM or of two: neither waits for ever, since both wait in root mode.
pub fn two_flushes(vms: [u8; 2]) {
    check(Some(4), move || {
        percpu::attach(CpuId(0));
        fn cpu(own: u8, generation: &cpus::Generation) {
            if cpus::enter(VmId(own), || false) {
                cpus::returned();
            }
            generation.advance(VmId(own));
            irq::poll();
            if cpus::enter(VmId(own), || false) {
                cpus::returned();
            }
        }
        let other = on(1, move || cpu(vms[1], &TWO.generation));
        cpu(vms[0], &ONE.generation);
        other.join().unwrap();
    });
}

/// Two CPUs flush the VM whose guest they both run, one before it enters, the other after it left: with old translations
/// a guest stays until it is interrupted.
pub fn a_flush_against_a_flush() {
    check(Some(4), || {
        let [mut first, mut second] = both_running();
        fn stay(old: u32) -> impl Fn(&mut Vcpu<Guest>) {
            move |vcpu| {
                if vcpu.hw.flushes == old {
                    run_guest_until_interrupt();
                }
            }
        }
        let other = on(1, move || {
            second.turn(stay(second.vcpu.hw.flushes));
            TWO.generation.advance(TWO.id());
        });
        let old = first.vcpu.hw.flushes;
        TWO.generation.advance(TWO.id());
        // Its own flush is compared at the next entry; the other's must not be waited for here.
        first.turn(|vcpu| assert_ne!(vcpu.hw.flushes, old));
        other.join().unwrap();
    });
}

/// The guest resets its machine; in the new life its first CPU starts the second one, which gets the message although it
/// may not have begun that life when it is sent.
pub fn a_new_life_starts_its_second_cpu() {
    check(Some(2), || {
        let mut runner = started(&TWO);
        let mut second = Runner::new(&TWO, 1);
        second.vcpu.follow();
        let other = on(1, move || {
            while second.vcpu.hw.started.is_none() {
                second.turn(|_| ());
            }
            assert_eq!((second.vcpu.hw.started, TWO.life()), (Some(Start::Real { vector: 9 }), 2));
        });
        TWO.request(Request::Reset);
        let mut sent = false;
        while !sent {
            runner.turn(|_| {
                assert_eq!(TWO.life(), 2);
                let send = |delivery, vector| TWO.deliver(&message(Destination::Others, delivery, vector), Some(0));
                send(Delivery::Init, 0);
                send(Delivery::Sipi, 9);
                sent = true;
            });
        }
        other.join().unwrap();
    });
}

/// Another CPU asks for a reset and then for the end, while both virtual CPUs compute: all of it is done.
pub fn requests_are_carried_out() {
    check(Some(2), || {
        let mut runner = started(&ONE);
        let other = on(1, || {
            ONE.request(Request::Reset);
            ONE.request(Request::Kill);
        });
        while ONE.status() != Status::Killed {
            runner.turn(|_| run_guest_until_interrupt());
        }
        other.join().unwrap();
        assert!(ONE.is_stopped() && ONE.life() <= 2);
    });
}

loom::lazy_static! {
    static ref CONSOLE: Mutex<u32> = Mutex::new(0);
}

/// Others write to the console: the first CPU does not sleep unless it has a deadline for what they wrote.
pub fn writers_and_the_console() {
    check(Some(2), || {
        percpu::attach(CpuId(0));
        let deadline = || {
            let written = *CONSOLE.lock();
            (written > 0).then_some(written)
        };
        let writers = [1, 2].map(|cpu| {
            on(cpu, || {
                *CONSOLE.lock() += 1;
                cpus::console_written();
            })
        });
        let mut seen = 0;
        while seen < 2 {
            cpus::attend();
            if cpus::watch_console(deadline).is_some() {
                // The deadline comes, and it looks.
                seen += core::mem::take(&mut *CONSOLE.lock());
            } else {
                cpus::sleep(|| false);
            }
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

loom::lazy_static! {
    /// A device that is its own deadline.
    static ref DEVICE: Timed<u64> = Timed::new(u64::MAX);
}

/// Two CPUs bring a device's deadline nearer: what its home CPU waits for, when it sleeps, is the nearest.
pub fn deadlines_and_their_home() {
    check(Some(3), || {
        percpu::attach(CpuId(0));
        let others = [(1, 50), (2, 100)].map(|(cpu, deadline)| {
            on(cpu, move || {
                let ((), is_sooner) =
                    DEVICE.with(|device| *device = deadline.min(*device), |device| Some(Nanos(*device)));
                if is_sooner {
                    cpus::nudge(CpuId(0));
                }
            })
        });
        loop {
            cpus::attend();
            if DEVICE.deadline() == Some(Nanos(50)) {
                break;
            }
            cpus::sleep(|| false);
        }
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(DEVICE.deadline(), Some(Nanos(50)));
    });
}
