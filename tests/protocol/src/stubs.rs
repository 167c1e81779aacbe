//! What the hypervisor's files name and the protocol does not depend on.

/// `spin::Mutex`, for loom.
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

macro_rules! say {
    ($($arg:tt)*) => { let _ = format_args!($($arg)*); };
}
pub(crate) use say;

pub(crate) mod fpu {
    pub struct GuestState;
    impl GuestState {
        pub fn new() -> Self {
            Self
        }
        pub fn reset(&mut self) {}
    }
}

pub(crate) mod trace {
    #[derive(Clone, Copy)]
    pub enum What {
        Sleeps,
        BeginsShootdown,
        EndsShootdown,
        Vm,
    }
    pub fn note(_: What, _: [u8; 3], _: [u64; 2]) {}
}

pub(crate) mod time {
    use hv_defs::Nanos;
    pub fn tsc() -> u64 {
        0
    }
    pub fn now() -> Nanos {
        Nanos(0)
    }
    pub struct Timeline;
    impl Timeline {
        pub fn nanos(self, tsc: u64) -> Nanos {
            Nanos(tsc)
        }
    }
    pub fn timeline() -> Timeline {
        Timeline
    }
}

pub(crate) mod load {
    #[derive(Clone, Copy)]
    pub enum OnCrash {
        Stop,
        Restart,
    }
    pub mod linux {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct Entry;
    }
}

pub(crate) mod vendor {
    use crate::apic::Interrupts;
    use crate::load::linux::Entry;

    pub struct Setup {
        pub nested_root: (),
        pub tag: u16,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Start {
        Real { vector: u8 },
        Long(Entry),
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Event {
        Interrupt(u8),
        Nmi,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Window {
        Closed,
        Interrupt,
        Priority { class: u8 },
    }

    /// The part of the trait that `Vcpu` calls.
    pub trait VirtualCpu: Sized {
        fn new(setup: &Setup) -> Option<Self>;
        fn start(&mut self, start: Start);
        fn inject(&mut self, event: Event);
        fn flush_tlb(&mut self);
        fn interruptible(&self) -> bool {
            true
        }
        fn nmi_allowed(&self) -> bool {
            true
        }
        fn can_carry(&self) -> bool {
            false
        }
        fn carry(&mut self, _: Option<&Interrupts>) {}
        fn set_tsc_offset(&mut self, _: u64) {}
        fn set_cr8(&mut self, _: u8) {}
        fn set_window(&mut self, _: Window) {}
        fn await_nmi(&mut self) {}
    }

    /// A guest: what was done to it.
    #[derive(Default)]
    pub struct Guest {
        pub started: Option<Start>,
        pub flushes: u32,
        pub nmis: u32,
    }

    impl VirtualCpu for Guest {
        fn new(_: &Setup) -> Option<Self> {
            Some(Self::default())
        }
        fn start(&mut self, start: Start) {
            self.started = Some(start);
        }
        fn inject(&mut self, event: Event) {
            self.nmis += u32::from(event == Event::Nmi);
        }
        fn flush_tlb(&mut self) {
            self.flushes += 1;
        }
    }
}

/// Nothing of it matters here.
pub struct Chipset;

impl Chipset {
    pub fn acknowledge(&mut self, _: hv_defs::Nanos, (): &mut ()) -> u8 {
        0
    }
    pub fn reset(&mut self, _: hv_defs::Nanos, (): &mut ()) {}
}
