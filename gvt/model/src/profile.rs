//! Which part the model is, and how strict it is.

pub use gvt_defs::reset::Display;
use gvt_defs::{EngineMask, Nanos};

/// When a context image is written back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Save {
    /// At the switch, before the status entry.
    Prompt,
    /// Only when another context is loaded on the engine, as silicon may.
    Late,
}

/// Where a context may be preempted that an arbitration point is not needed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arbitration {
    /// Nowhere.
    Points,
    /// Before its first command as well, as silicon may (WaDisableCtxRestoreArbitration).
    Restore,
}

/// What the blitter does with register writes of unprivileged batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blitter {
    /// It checks them like other engines.
    Polices,
    /// It obeys them all, as Gen9 silicon does (CVE-2019-0155).
    ObeysLri,
}

/// Whether unknown registers and commands are reported as findings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strict {
    /// Only protocol mistakes are.
    Off,
    /// Unknown registers and commands are too.
    Report,
}

/// Whether accesses to a sleeping power domain are reported as findings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forcewake {
    /// No.
    Ignored,
    /// Yes (they still work).
    Linted,
}

/// The part to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// PCI device id.
    pub device: u16,
    /// PCI revision.
    pub revision: u8,
    /// PCI class code, 24 bits.
    pub class: u32,
    /// Engines present.
    pub engines: EngineMask,
    /// Display present or fused off.
    pub display: Display,
    /// Size of BAR2 in bytes, a power of two from 128 MiB to 4 GiB.
    pub aperture: u64,
    /// When context images are written back.
    pub save: Save,
    /// How long after the end of its ring an engine says that a context is complete: silicon saves the context first.
    pub completion: Nanos,
    /// Where contexts are preempted.
    pub arbitration: Arbitration,
    /// The blitter's manners.
    pub blitter: Blitter,
    /// Findings about the unknown.
    pub strict: Strict,
    /// Findings about forcewake.
    pub forcewake: Forcewake,
    /// Entries of the trace ring; 0 turns it off.
    pub trace: usize,
}

impl Profile {
    /// Kaby Lake GT2 desktop (0x5912, stepping F0), display fused off.
    pub const fn kaby_lake() -> Self {
        Self {
            device: 0x5912,
            revision: 4,
            class: gvt_defs::pci::CLASS_VGA,
            engines: EngineMask::GT2,
            display: Display::Fused,
            aperture: 512 << 20,
            save: Save::Prompt,
            completion: Nanos(0),
            arbitration: Arbitration::Points,
            blitter: Blitter::Polices,
            strict: Strict::Off,
            forcewake: Forcewake::Ignored,
            trace: 0,
        }
    }

    /// Skylake GT2 desktop (0x1912, stepping G0).
    pub const fn sky_lake() -> Self {
        let mut profile = Self::kaby_lake();
        profile.device = 0x1912;
        profile.revision = 6;
        profile
    }

    /// Coffee Lake GT2 desktop (0x3E92).
    pub const fn coffee_lake() -> Self {
        let mut profile = Self::kaby_lake();
        profile.device = 0x3E92;
        profile.revision = 0;
        profile
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::kaby_lake()
    }
}
