//! The mailbox of a vCPU's local APIC: every CPU may post to it at any time, without a lock.

use core::borrow::Borrow;

use super::vectors::{AtomicVectorSet, WORDS};
use crate::message::{Delivery, Destination, Message, Trigger};
use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::wires::Level;

bitflags::bitflags! {
    /// What was posted besides vectors. The page number of a start-up lies in bits 23:16.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Flags: u32 {
        const NMI = 1 << 0;
        const INIT = 1 << 1;
        const SIPI = 1 << 2;
        /// An ExtINT message arrived (from an I/O APIC pin in that mode).
        const EXTINT = 1 << 3;
        /// Level of LINT0; a state, the others are events.
        const LINT0 = 1 << 8;
        /// Something was posted since the last `sync`.
        const PENDING = 1 << 31;
        const EVENTS = Self::NMI.bits() | Self::INIT.bits() | Self::SIPI.bits() | Self::EXTINT.bits() | Self::PENDING.bits();
        const _ = !0;
    }
}

const SIPI_SHIFT: u32 = 16;

impl Flags {
    pub(super) fn sipi_page(self) -> u8 {
        (self.bits() >> SIPI_SHIFT) as u8
    }
}

/// How a local APIC answers to destinations; published by its owner, read by senders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Addressing {
    /// Logical Destination Register.
    pub(super) ldr: u32,
    pub(super) model: Model,
    /// APIC_BASE.EN.
    pub(super) present: bool,
    /// SVR bit 8.
    pub(super) enabled: bool,
}

/// Interpretation of a logical destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Model {
    Flat,
    Cluster,
    X2Apic,
}

impl Addressing {
    /// After power-on.
    const RESET: Self = Self { ldr: 0, model: Model::Flat, present: true, enabled: false };

    fn pack(self) -> u64 {
        u64::from(self.ldr) | (self.model as u64) << 32 | u64::from(self.present) << 34 | u64::from(self.enabled) << 35
    }

    fn unpack(bits: u64) -> Self {
        Self {
            ldr: bits as u32,
            model: match bits >> 32 & 3 {
                0 => Model::Flat,
                1 => Model::Cluster,
                _ => Model::X2Apic,
            },
            present: bits & 1 << 34 != 0,
            enabled: bits & 1 << 35 != 0,
        }
    }

    /// SDM Vol. 3A, 11.6.2.2 (xAPIC) and 11.12.10 (x2APIC).
    fn matches_logical(self, mask: u32) -> bool {
        match self.model {
            Model::Flat => mask <= 0xFF && (self.ldr >> 24) & mask != 0,
            Model::Cluster => {
                let cluster = mask >> 4;
                mask <= 0xFF && (cluster == 0xF || cluster == self.ldr >> 28) && (self.ldr >> 24) & mask & 0xF != 0
            }
            Model::X2Apic => mask >> 16 == self.ldr >> 16 && mask & self.ldr & 0xFFFF != 0,
        }
    }
}

/// Mailbox of one vCPU. Shared by all CPUs; only [`super::Lapic::sync`], run by the owner, takes things out.
#[derive(Default, Debug)]
pub struct Posted {
    id: u32,
    flags: AtomicU32,
    addressing: AtomicU64,
    /// Processor priority (PPR) at the last `sync`, for lowest-priority arbitration.
    priority: AtomicU8,
    requested: AtomicVectorSet,
    level: AtomicVectorSet,
}

impl Posted {
    /// Makes the mailbox of the local APIC with this ID, in the state after power-on.
    pub fn new(id: u32) -> Self {
        Self { id, addressing: AtomicU64::new(Addressing::RESET.pack()), ..Self::default() }
    }

    /// Back to that state, but for the level of LINT0; what was posted is void. To be called while neither the owner
    /// nor any other vCPU of its VM runs: what they send each other later must not be lost.
    pub fn reset(&self) {
        self.publish(Addressing::RESET, 0);
        let _ = self.take_flags();
        self.take_vectors().for_each(drop);
    }

    /// APIC ID of the owner.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether the owner has something to take. The owner checks this with interrupts off before it enters the guest
    /// or halts; a poster that finds it already set need not kick.
    pub fn is_pending(&self) -> bool {
        self.flags.load(Ordering::Acquire) & Flags::PENDING.bits() != 0
    }

    /// Posts a message whose destination has been matched. True if the owner must be kicked.
    #[must_use = "the owner may sleep"]
    pub fn post(&self, delivery: Delivery, vector: u8, trigger: Trigger) -> bool {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                match trigger {
                    Trigger::Level => self.level.insert(vector),
                    Trigger::Edge => self.level.remove(vector),
                }
                self.requested.insert(vector);
                self.raise(Flags::empty())
            }
            Delivery::Nmi => self.raise(Flags::NMI),
            Delivery::Init => self.raise(Flags::INIT),
            Delivery::ExtInt => self.raise(Flags::EXTINT),
            Delivery::Sipi => {
                let page = u32::from(vector) << SIPI_SHIFT;
                let set = page | (Flags::SIPI | Flags::PENDING).bits();
                let update = |flags| Some(flags & !(0xFF << SIPI_SHIFT) | set);
                let (Ok(before) | Err(before)) = self.flags.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
                before & Flags::PENDING.bits() == 0
            }
            Delivery::Ignored => false,
        }
    }

    /// Drives LINT0, to which the 8259 pair's INTR output is wired. True if the owner must be kicked.
    #[must_use = "the owner may sleep"]
    pub fn set_lint0(&self, level: Level) -> bool {
        match level {
            Level::High => self.raise(Flags::LINT0),
            Level::Low => {
                self.flags.fetch_and(!Flags::LINT0.bits(), Ordering::AcqRel);
                false
            }
        }
    }

    /// Makes the owner come out of the guest and look again, with nothing posted. True if it must be kicked.
    #[must_use = "the owner may sleep"]
    pub fn nudge(&self) -> bool {
        self.raise(Flags::empty())
    }

    fn raise(&self, flags: Flags) -> bool {
        let before = self.flags.fetch_or((flags | Flags::PENDING).bits(), Ordering::AcqRel);
        before & Flags::PENDING.bits() == 0
    }

    fn accepts(&self, to: Destination, sender: Option<u32>) -> bool {
        let addressing = self.addressing();
        addressing.present
            && match to {
                Destination::Physical(id) => id == self.id,
                Destination::Logical(mask) => addressing.matches_logical(mask),
                Destination::Everyone => true,
                Destination::Others => sender != Some(self.id),
            }
    }

    fn addressing(&self) -> Addressing {
        Addressing::unpack(self.addressing.load(Ordering::Acquire))
    }

    pub(super) fn publish(&self, addressing: Addressing, priority: u8) {
        let packed = addressing.pack();
        if self.addressing.load(Ordering::Relaxed) != packed {
            self.addressing.store(packed, Ordering::Release);
        }
        if self.priority.load(Ordering::Relaxed) != priority {
            self.priority.store(priority, Ordering::Relaxed);
        }
    }

    /// Takes the events; yields them with the level of LINT0.
    pub(super) fn take_flags(&self) -> Flags {
        Flags::from_bits_retain(self.flags.fetch_and(!Flags::EVENTS.bits(), Ordering::AcqRel))
    }

    /// The flags as they are, nothing taken.
    pub(super) fn peek_flags(&self) -> Flags {
        Flags::from_bits_retain(self.flags.load(Ordering::Acquire))
    }

    /// Takes the requested vectors: for each word (its index, the vectors, which of them are level-triggered).
    pub(super) fn take_vectors(&self) -> impl Iterator<Item = (usize, u64, u64)> {
        (0..WORDS).map(|index| {
            let requested = self.requested.take(index);
            (index, requested, requested & self.level.peek(index))
        })
    }
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// At least one local APIC took it.
    Accepted,
    /// Nobody did.
    Nobody,
}

/// Delivers `message` to the local APICs of a VM. `sender` is the APIC ID of the sender, if a local APIC it is.
/// `wake` is called with the index of each vCPU that has something new and has not been kicked for it yet.
/// Takes no lock, and its work is bounded by the number of vCPUs.
pub fn deliver<P: Borrow<Posted>>(
    vcpus: &[P],
    message: &Message,
    sender: Option<u32>,
    mut wake: impl FnMut(usize),
) -> Delivered {
    let matching =
        || vcpus.iter().map(Borrow::borrow).enumerate().filter(|(_, posted)| posted.accepts(message.to, sender));
    let needs_enabled = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority | Delivery::ExtInt);
    let able = || matching().filter(|(_, posted)| !needs_enabled || posted.addressing().enabled);
    let mut delivered = Delivered::Nobody;
    let mut post = |(index, posted): (usize, &Posted)| {
        delivered = Delivered::Accepted;
        if posted.post(message.delivery, message.vector, message.trigger) {
            wake(index);
        }
    };
    if message.delivery == Delivery::LowestPriority {
        let lowest = able().min_by_key(|(_, posted)| posted.priority.load(Ordering::Relaxed));
        lowest.into_iter().for_each(&mut post);
    } else {
        able().for_each(&mut post);
    }
    delivered
}
