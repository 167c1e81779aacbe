//! Address kinds and other units, one type each, so that they cannot be mixed up.

use core::fmt;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Offset into the 4 KiB page, in bytes.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
            /// The same address rounded down to `align` bytes (a power of two).
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align - 1))
            }
            /// The address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }
            /// The address `bytes` further on, wrapping at 2^64.
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// Guest-virtual (linear) address.
    Gva
);
address!(
    /// Guest-physical address.
    Gpa
);
address!(
    /// Host-physical address.
    Hpa
);

/// Guest frame number: a guest-physical address divided by 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Gfn(pub u64);

impl Gfn {
    /// Address of the frame's first byte.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 * PAGE_SIZE)
    }
}

impl Gpa {
    /// The frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_SIZE)
    }
}

/// A 4 KiB frame of host memory, by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Frame(pub u64);

impl Frame {
    /// Address of the frame's first byte.
    pub const fn hpa(self) -> Hpa {
        Hpa(self.0 * PAGE_SIZE)
    }
}

impl Hpa {
    /// The frame that holds this address.
    pub const fn frame(self) -> Frame {
        Frame(self.0 / PAGE_SIZE)
    }
}

/// Host time since Prism started, in nanoseconds. Monotonic; never wall-clock time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Nanos(pub u64);

/// How wide one access is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    B1 = 1,
    /// 2 bytes.
    B2 = 2,
    /// 4 bytes.
    B4 = 4,
    /// 8 bytes.
    B8 = 8,
}

impl Width {
    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }
    /// All ones in this width: what an access that nobody answers reads.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
    /// The width of `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_exactly_the_width() {
        assert_eq!(Width::B1.mask(), 0xFF);
        assert_eq!(Width::B2.mask(), 0xFFFF);
        assert_eq!(Width::B4.mask(), 0xFFFF_FFFF);
        assert_eq!(Width::B8.mask(), u64::MAX);
    }

    #[test]
    fn frames_and_addresses_agree() {
        assert_eq!(Gpa(0x1_2345).gfn().gpa(), Gpa(0x1_2000));
        assert_eq!(Hpa(0x1_2345).frame().hpa(), Hpa(0x1_2000));
        assert_eq!(Gpa(0x1_2345).page_offset(), 0x345);
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
    }
}
