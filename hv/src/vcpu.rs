//! A virtual CPU: the vendor's part, its local APIC, and the state that Prism emulates. It is only ever touched by the
//! physical CPU that it lives on.

use hv_defs::{Nanos, msr};
use hv_dev::apic::{Bootstrap, Interrupt, Lapic, Mode, Posted};

use crate::clock::{GuestTsc, KvmClock};
use crate::fpu::GuestState;
use crate::time;
use crate::vendor::{Event, Setup, Start, VirtualCpu, Window};
use crate::vm::{Request, Vm};

/// Rate of the emulated APIC timer.
const APIC_TIMER_HZ: u32 = 1_000_000_000;

/// What a virtual CPU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Activity {
    /// The VM is not running.
    Parked,
    /// Waiting for a start-up IPI.
    WaitForSipi,
    /// Executing.
    Running,
    /// Stopped by HLT.
    Halted,
}

/// One virtual CPU.
pub(crate) struct Vcpu<V> {
    pub vm: &'static Vm,
    /// Its number in the VM, which is its APIC id.
    pub index: usize,
    pub hw: V,
    pub lapic: Lapic,
    pub guest: GuestState,
    pub tsc: GuestTsc,
    pub stored: [u64; msr::STORED],
    pub clock: KvmClock,
    pub activity: Activity,
    life: u32,
    generation: u64,
    nmi: bool,
}

impl<V: VirtualCpu> Vcpu<V> {
    /// A parked virtual CPU.
    pub fn new(vm: &'static Vm, index: usize, tag: u16) -> Option<Self> {
        let hw = V::new(&Setup { nested_root: vm.nested_root(), tag })?;
        Some(Self {
            vm,
            index,
            hw,
            lapic: Self::power_on(index),
            guest: GuestState::new(),
            tsc: GuestTsc::default(),
            stored: msr::stored_reset(),
            clock: KvmClock::default(),
            activity: Activity::Parked,
            life: 0,
            generation: 0,
            nmi: false,
        })
    }

    fn power_on(index: usize) -> Lapic {
        let bootstrap = if index == 0 { Bootstrap::Yes } else { Bootstrap::No };
        Lapic::new(index as u32, bootstrap, APIC_TIMER_HZ)
    }

    /// Its mailbox.
    pub fn posted(&self) -> Option<&'static Posted> {
        self.vm.posted().get(self.index)
    }

    /// Follows what was asked of the VM: starts over in a new life, or parks. True if state in the CPU was replaced.
    pub fn follow(&mut self) -> Followed {
        let life = self.vm.life();
        if life != self.life {
            self.life = life;
            self.begin();
            return Followed::StartedOver;
        }
        if self.vm.must_park() && self.activity != Activity::Parked {
            self.activity = Activity::Parked;
            self.vm.parked();
        }
        Followed::Nothing
    }

    fn begin(&mut self) {
        self.lapic = Self::power_on(self.index);
        self.guest.reset();
        self.tsc = GuestTsc::starting_at(self.vm.tsc_base());
        self.hw.set_tsc_offset(self.tsc.offset);
        self.stored = msr::stored_reset();
        self.clock = KvmClock::default();
        self.nmi = false;
        self.activity = Activity::WaitForSipi;
        if self.index == 0
            && let Some(entry) = self.vm.entry()
        {
            self.lapic.virtual_wire();
            self.hw.start(Start::Long(entry));
            self.activity = Activity::Running;
        }
    }

    /// Whether it might have something to do: worth a call of `prepare`.
    pub fn is_runnable(&self, now: Nanos, tsc: u64) -> bool {
        let posted = || self.posted().is_some_and(Posted::is_pending);
        match self.activity {
            Activity::Running => true,
            Activity::Halted => posted() || self.is_due(now, tsc) || self.has_work(),
            Activity::WaitForSipi => posted(),
            Activity::Parked => false,
        }
    }

    /// Whether the VM asks something of it.
    pub fn is_asked(&self) -> bool {
        self.vm.life() != self.life || (self.vm.must_park() && self.activity != Activity::Parked)
    }

    fn is_due(&self, now: Nanos, tsc: u64) -> bool {
        self.lapic.deadline().is_some_and(|deadline| self.tsc.is_due(deadline, now, tsc))
    }

    fn has_work(&self) -> bool {
        (self.nmi && self.hw.nmi_allowed()) || (self.lapic.has_pending() && self.hw.interruptible())
    }

    /// When its APIC timer fires. None if it is due: that makes it runnable, and it waits for its slice.
    pub fn deadline(&self, now: Nanos, tsc: u64) -> Option<Nanos> {
        if matches!(self.activity, Activity::Parked | Activity::WaitForSipi) {
            return None;
        }
        let ahead = self.lapic.deadline().filter(|deadline| !self.tsc.is_due(*deadline, now, tsc));
        ahead.map(|deadline| self.tsc.when(deadline, tsc, time::timeline()))
    }

    /// Takes what was posted, and queues the event to deliver. False if it has nothing to execute.
    pub fn prepare(&mut self, now: Nanos, tsc: u64) -> bool {
        let Some(posted) = self.posted() else {
            return false;
        };
        self.lapic.expire(now, self.tsc.read(tsc));
        let signals = self.lapic.sync(posted);
        self.nmi |= signals.nmi;
        if signals.init {
            self.take_init();
        }
        if let (Some(vector), Activity::WaitForSipi) = (signals.sipi, self.activity) {
            self.hw.start(Start::Real { vector });
            self.activity = Activity::Running;
        }
        if self.activity == Activity::Halted && self.has_work() {
            self.activity = Activity::Running;
        }
        if self.activity != Activity::Running {
            return false;
        }
        self.hw.set_cr8(self.lapic.cr8());
        self.deliver(now);
        self.flush_if_stale();
        true
    }

    /// INIT: an application processor waits for a start-up IPI; the first one has no firmware to restart in.
    fn take_init(&mut self) {
        self.lapic.reset_init();
        self.nmi = false;
        if self.index == 0 {
            self.vm.request(Request::Restart);
        } else {
            self.activity = Activity::WaitForSipi;
        }
    }

    /// Queues the most urgent event, and asks for a window if another must wait.
    fn deliver(&mut self, now: Nanos) {
        let carried = self.hw.can_carry() && self.lapic.mode() == Mode::X2Apic;
        // What the CPU carries, it delivers; a vector of the 8259 pair passes the APIC by.
        let next = |lapic: &Lapic| lapic.next().filter(|next| !carried || *next == Interrupt::ExtInt);
        if self.nmi && self.hw.nmi_allowed() {
            self.nmi = false;
            self.hw.inject(Event::Nmi);
        } else if self.hw.interruptible()
            && let Some(interrupt) = next(&self.lapic)
        {
            let vector = match interrupt {
                Interrupt::Fixed(vector) => {
                    self.lapic.ack(vector);
                    vector
                }
                Interrupt::ExtInt => {
                    let vector = self.vm.with_chipset(|chipset, wires| chipset.acknowledge(now, wires));
                    self.lapic.ack_extint();
                    vector
                }
            };
            self.hw.inject(Event::Interrupt(vector));
            self.vm.stats().injected(1);
        }
        let window = match self.lapic.tpr_threshold() {
            _ if next(&self.lapic).is_some() => Window::Interrupt,
            0 => Window::Closed,
            _ if carried => Window::Closed,
            class => Window::Priority { class },
        };
        self.hw.set_window(window);
        self.hw.carry(carried.then(|| self.lapic.interrupts()).as_ref());
        if self.nmi {
            self.hw.await_nmi();
        }
    }

    fn flush_if_stale(&mut self) {
        let generation = self.vm.generation();
        if generation != self.generation {
            self.generation = generation;
            self.hw.flush_tlb();
        }
    }

    /// Flushes if the generation is new; whether something was posted since `prepare`. Call after the CPU has published
    /// that it enters.
    pub fn must_look_again(&mut self) -> bool {
        self.flush_if_stale();
        self.is_asked() || self.posted().is_some_and(Posted::is_pending)
    }
}

/// What `Vcpu::follow` did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Followed {
    /// Nothing that matters to the CPU.
    Nothing,
    /// All guest state is new; what is left in the CPU is void.
    StartedOver,
}

#[cfg(test)]
mod tests;
