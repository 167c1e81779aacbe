//! `Hw`: all that the mediator asks of the physical GPU: real silicon, the software Gen9 behind vfio-user, or the
//! same model linked in. The implementation maps the BARs; the GPU's interrupt reaches the mediator as
//! `Gvt::interrupt`.

/// Where the GPU's aperture (BAR2, GMADR) lies for CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aperture {
    /// Host-physical base.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
    /// Whether guests can be given pages of it.
    pub access: ApertureAccess,
}

/// How guests reach their slice of the aperture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApertureAccess {
    /// Slices of the physical BAR2 can be mapped into guests.
    Mappable,
    /// There is no physical BAR2: pages are mapped to the frames that the GGTT names.
    Emulated,
}

/// The physical GPU. Eight calls. Register offsets are byte offsets into GTTMMADR, below 2 MiB, 4-byte aligned.
pub trait Hw {
    /// Reads a dword of PCI configuration space; `offset` is 4-byte aligned and below 256.
    fn config_read(&mut self, offset: u16) -> u32;
    /// Writes a dword of PCI configuration space.
    fn config_write(&mut self, offset: u16, value: u32);
    /// Reads a register.
    fn read(&mut self, offset: u32) -> u32;
    /// Writes a register. Writes are posted, in order; a read of any register waits for them.
    fn write(&mut self, offset: u32, value: u32);
    /// Reads a global page-table entry; `index` is the graphics address divided by 4 KiB.
    fn ggtt_read(&mut self, index: u32) -> u64;
    /// Writes a global page-table entry. The caller follows a batch of them with one GFX_FLSH_CNTL write.
    fn ggtt_write(&mut self, index: u32, pte: u64);
    /// Entries in the global page table.
    fn ggtt_entries(&mut self) -> u32;
    /// The aperture.
    fn aperture(&mut self) -> Aperture;
}
