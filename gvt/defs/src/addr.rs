//! Address kinds, one type each, so that they cannot be mixed up.

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
    };
}

newtype!(
    /// Guest-physical address.
    Gpa(u64)
);
newtype!(
    /// Guest frame number: a guest-physical address divided by 4 KiB.
    Gfn(u64)
);
newtype!(
    /// Host-physical (DMA) address: what the GPU's page tables hold.
    Hpa(u64)
);
newtype!(
    /// Address in the global graphics address space (GGTT), 4 GiB at most.
    GgttAddr(u32)
);
newtype!(
    /// Address in a per-process graphics address space (PPGTT), 48 bits, not sign-extended.
    PpgttAddr(u64)
);
newtype!(
    /// Monotonic time in nanoseconds.
    Nanos(u64)
);

impl Gfn {
    /// Address of the frame's first byte.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0.wrapping_mul(PAGE_SIZE))
    }
}

impl Gpa {
    /// The frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_SIZE)
    }
}

impl GgttAddr {
    /// Index of the page-table entry that maps this address.
    pub const fn index(self) -> u32 {
        self.0 / PAGE_SIZE as u32
    }
}
