//! What Prism asks of a virtualization extension. Nothing above this trait knows which vendor's CPU it runs on: the run
//! loop is generic over `Extension` and compiled once for each; CPUID chooses at run time (design D2).

use alloc::boxed::Box;
use core::fmt;

use hv_defs::{Gpa, Hpa, Nanos, Width};
use hv_dev::apic::Interrupts;
use hv_emu::Registers;
use strum::{EnumDiscriminants, VariantNames};

use crate::load::linux::Entry;
use crate::nested::{NestedMap, Pool};
use crate::percpu::CpuId;

/// Why an extension cannot be used, as one line for the user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missing(pub &'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A virtualization extension, switched on for one CPU.
pub trait Extension: Sized + Send + 'static {
    /// Its virtual CPUs.
    type Vcpu: VirtualCpu<Extension = Self>;
    /// Short name for the log.
    const NAME: &'static str;
    /// Checks that this CPU has all that Prism needs. Touches nothing.
    ///
    /// # Errors
    /// What is missing.
    fn probe() -> Result<(), Missing>;
    /// Switches the extension on for the CPU that calls.
    ///
    /// # Errors
    /// What is missing.
    fn enable() -> Result<Self, Missing>;
    /// The first of a machine's `cpus` CPUs that may run guests; those before it serve the machine only.
    fn first_for_guests(_cpus: u32) -> CpuId {
        CpuId(0)
    }
    /// Empty nested tables in this vendor's format.
    fn nested(pool: Pool) -> Option<Box<dyn NestedMap>>;
}

/// What a virtual CPU is made from.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Root of the VM's nested tables.
    pub nested_root: Hpa,
    /// Tag of its TLB entries: unique among the virtual CPUs of one physical CPU, from 1.
    pub tag: u16,
}

/// Where and how a virtual CPU starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Real mode at `vector << 12` (start-up IPI).
    Real {
        /// Vector of the start-up IPI.
        vector: u8,
    },
    /// 64-bit code, as Linux' boot protocol has it.
    Long(Entry),
}

/// An event to deliver at the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// External interrupt.
    Interrupt(u8),
    /// Non-maskable interrupt.
    Nmi,
    /// Exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Error code, for those that push one.
        error_code: Option<u32>,
    },
}

/// Which opportunity makes the guest exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// None.
    Closed,
    /// The guest can take an external interrupt (one whose priority is above its TPR waits).
    Interrupt,
    /// The guest lowers its TPR: an interrupt waits that the TPR holds back.
    Priority {
        /// Priority class that CR8 must fall below.
        class: u8,
    },
}

/// Direction of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Load, IN, RDMSR.
    Read,
    /// Store, OUT, WRMSR.
    Write,
}

/// Why a virtual CPU came back, in terms that both vendors share. `ExitKind` is the same without what belongs to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, EnumDiscriminants)]
#[strum_discriminants(name(ExitKind), derive(VariantNames), repr(u8), allow(missing_docs))]
pub enum Exit {
    /// A physical interrupt waits.
    HostInterrupt,
    /// A physical NMI was taken or waits.
    HostNmi,
    /// The window asked for has opened.
    Window,
    /// A move to CR4; not yet executed.
    MoveToCr4,
    /// A move to CR8 that may open the priority window; not yet executed.
    MoveToCr8,
    /// CR8 fell below the class asked for.
    PriorityLowered,
    /// An access to a control register, which the backend has dealt with.
    ControlRegister,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// The guest ended a level-triggered interrupt, whose APIC the CPU carries; executed.
    EndOfInterrupt(u8),
    /// RDMSR or WRMSR.
    Msr(Direction),
    /// IN or OUT between a port and RAX.
    Port {
        /// The port.
        port: u16,
        /// Its width.
        width: Width,
        /// Which way.
        direction: Direction,
        /// Length of the instruction, in bytes.
        length: u8,
    },
    /// INS or OUTS.
    StringPort,
    /// A guest-physical address without the permission that the access needs.
    NestedFault {
        /// The address.
        gpa: Gpa,
        /// Which way.
        direction: Direction,
    },
    /// XSETBV.
    Xsetbv,
    /// INVD or WBINVD.
    CacheFlush,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// An instruction that this virtual CPU does not have: #UD.
    Undefined,
    /// RDPMC: #GP.
    Rdpmc,
    /// An exception that Prism watches, to be passed on.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code.
        error_code: Option<u32>,
    },
    /// NMIs are about to be unblocked, or can be taken now.
    NmiUnblocked,
    /// A hardware task switch.
    TaskSwitch,
    /// Triple fault.
    Shutdown,
    /// The CPU refused the guest's state.
    EntryFailed(u64),
    /// A reason that this backend does not know.
    Unknown(u64),
}

impl Exit {
    /// The one word that tells most of what belongs to it.
    pub(crate) fn detail(self) -> u64 {
        match self {
            Self::NestedFault { gpa, .. } => gpa.0,
            Self::Port { port, .. } => port.into(),
            Self::EndOfInterrupt(vector) | Self::Exception { vector, .. } => vector.into(),
            Self::Msr(direction) => direction as u64,
            Self::EntryFailed(code) | Self::Unknown(code) => code,
            _ => 0,
        }
    }
}

/// One virtual CPU on one extension. All calls are made on the physical CPU that it lives on.
pub trait VirtualCpu: Sized + Send {
    /// The extension it runs on.
    type Extension;
    /// A virtual CPU, not yet started. `None` without memory.
    fn new(setup: &Setup) -> Option<Self>;
    /// Back to the state after INIT or power-on, then `start`.
    fn start(&mut self, start: Start);
    /// Runs until the next exit. Interrupts are off before and after.
    fn run(&mut self, extension: &mut Self::Extension) -> Exit;

    /// All registers that instruction emulation needs.
    fn registers(&self) -> Registers;
    /// Takes GPRs, RIP and RFLAGS back after an emulated instruction, which also ends an interrupt shadow.
    fn retire(&mut self, registers: &Registers);
    /// Skips an instruction of `length` bytes, which has been carried out.
    fn skip(&mut self, length: u8);
    /// An instruction has been carried out: queues the trap that follows if the guest single-steps. (`skip` does it.)
    fn trap(&mut self);
    /// Length of the instruction that made the last exit, if the CPU told.
    fn instruction_length(&self) -> Option<u8>;
    /// RAX, RCX, RDX, RBX ... by hardware number; 0 for a number above 15.
    fn gpr(&self, number: u8) -> u64;
    /// Sets one of them.
    fn set_gpr(&mut self, number: u8, value: u64);
    /// Instruction pointer (offset in CS).
    fn rip(&self) -> u64;
    /// Sets CR2 (before a page fault is injected).
    fn set_cr2(&mut self, value: u64);
    /// CR4.
    fn cr4(&self) -> u64;
    /// Sets CR4; the value has been checked.
    fn set_cr4(&mut self, value: u64);
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Sets EFER; the value has been checked.
    fn set_efer(&mut self, value: u64);
    /// Page attribute table.
    fn pat(&self) -> u64;
    /// Sets it; the value has been checked.
    fn set_pat(&mut self, value: u64);
    /// Reads an MSR of policy `Native`.
    fn native_msr(&self, msr: u32) -> Option<u64>;
    /// Writes an MSR of policy `Native`.
    fn set_native_msr(&mut self, msr: u32, value: u64) -> Option<()>;
    /// Guest TSC minus host TSC.
    fn set_tsc_offset(&mut self, offset: u64);
    /// CR8, as the guest left it.
    fn cr8(&self) -> u8;
    /// Sets CR8.
    fn set_cr8(&mut self, value: u8);

    /// Whether an external interrupt would be taken at the next entry.
    fn interruptible(&self) -> bool;
    /// Whether an NMI would be taken at the next entry.
    fn nmi_allowed(&self) -> bool;
    /// Whether an event is queued for the next entry already (an interrupted delivery, for instance).
    fn event_queued(&self) -> bool;
    /// Queues an event for the next entry.
    fn inject(&mut self, event: Event);
    /// Asks for an exit, instead of those asked for before.
    fn set_window(&mut self, window: Window);
    /// An NMI waits that cannot be taken yet: asks, besides the window, for an exit when it can.
    fn await_nmi(&mut self);
    /// Whether the CPU can deliver and end the interrupts of an APIC in x2APIC mode by itself.
    fn can_carry(&self) -> bool {
        false
    }
    /// What it carries from the next entry on; `None`: nothing, as after `start`.
    fn carry(&mut self, _: Option<&Interrupts>) {}
    /// After an exit: what became of that (but `level`).
    fn carried(&mut self) -> Option<Interrupts> {
        None
    }
    /// When the run loop wants the CPU back at the latest. The host's timer is set for it too, so that a backend whose
    /// guests cannot hold interrupts off may ignore it.
    fn set_deadline(&mut self, deadline: Option<Nanos>);
    /// Drops this virtual CPU's TLB entries at the next entry.
    fn flush_tlb(&mut self);
    /// Prints what explains a failed entry or a crash, one fact a line.
    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
