//! The interrupts of the device: eventfds that the client arms, one for INTx and one a message vector.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::wire::SetIrqs;

/// MSI vectors that the device has.
const MSI_VECTORS: u32 = 1;
const INDEX_INTX: u32 = 0;
const INDEX_MSI: u32 = 1;
/// `VFIO_IRQ_INFO_EVENTFD`.
const INFO_EVENTFD: u32 = 0x1;
/// `VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED`.
const INFO_MASKABLE: u32 = 0x2 | 0x4;
/// `VFIO_IRQ_INFO_NORESIZE`.
const INFO_NORESIZE: u32 = 0x8;

/// What the client armed.
#[derive(Debug, Default)]
pub struct Irqs {
    intx: Option<OwnedFd>,
    intx_masked: bool,
    intx_asserted: bool,
    msi: Option<OwnedFd>,
    /// Messages and INTx edges signalled.
    signalled: u64,
    /// Interrupts that nobody had armed an eventfd for.
    lost: u64,
}

impl Irqs {
    /// Flags and number of vectors of an interrupt kind.
    pub fn info(index: u32) -> (u32, u32) {
        match index {
            INDEX_INTX => (INFO_EVENTFD | INFO_MASKABLE, 1),
            INDEX_MSI => (INFO_EVENTFD | INFO_NORESIZE, MSI_VECTORS),
            _ => (INFO_EVENTFD | INFO_NORESIZE, 0),
        }
    }

    /// Carries out DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// The errno for the reply: an interrupt or an action that the device does not have.
    pub fn set(&mut self, request: SetIrqs, data: &[u8], mut files: Vec<OwnedFd>) -> Result<(), Errno> {
        let (_, vectors) = Self::info(request.index);
        let end = request.start.checked_add(request.count).ok_or(Errno::INVAL)?;
        if end > vectors {
            return Err(Errno::INVAL);
        }
        let kind = request.flags & (SetIrqs::DATA_NONE | SetIrqs::DATA_BOOL | SetIrqs::DATA_EVENTFD);
        let action = request.flags & (SetIrqs::MASK | SetIrqs::UNMASK | SetIrqs::TRIGGER);
        match (action, kind) {
            // No data and no vectors: all vectors of the kind are disarmed.
            (SetIrqs::TRIGGER, SetIrqs::DATA_NONE) if request.count == 0 => self.arm(request.index, None),
            (SetIrqs::TRIGGER, SetIrqs::DATA_NONE) => self.signal(request.index),
            (SetIrqs::TRIGGER, SetIrqs::DATA_BOOL) if data.first() == Some(&0) => {}
            (SetIrqs::TRIGGER, SetIrqs::DATA_BOOL) => self.signal(request.index),
            (SetIrqs::TRIGGER, SetIrqs::DATA_EVENTFD) if request.count > 0 => self.arm(request.index, files.pop()),
            (SetIrqs::TRIGGER, SetIrqs::DATA_EVENTFD) => {}
            // The client keeps its own unmask eventfd; without one it asks by message, which is what is offered.
            (SetIrqs::MASK, SetIrqs::DATA_NONE) if request.index == INDEX_INTX => self.intx_masked = true,
            (SetIrqs::UNMASK, SetIrqs::DATA_NONE) if request.index == INDEX_INTX => self.unmask(),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// The device sends its message.
    pub fn message(&mut self) {
        if self.msi.is_some() {
            self.signal(INDEX_MSI);
        }
    }

    /// The device drives its interrupt line; it matters only while no message is armed.
    pub fn line(&mut self, asserted: bool) {
        let rises = asserted && !self.intx_asserted;
        self.intx_asserted = asserted;
        if rises && self.msi.is_none() && self.intx.is_some() && !self.intx_masked {
            self.intx_masked = true;
            self.signal(INDEX_INTX);
        }
    }

    /// Interrupts signalled, and those that found nothing armed.
    pub fn counts(&self) -> (u64, u64) {
        (self.signalled, self.lost)
    }

    /// What is armed and raised, in words.
    pub fn describe(&self) -> String {
        let armed = |file: &Option<OwnedFd>| if file.is_some() { "armed" } else { "not armed" };
        let (level, masked) = (self.intx_asserted, self.intx_masked);
        let (msi, line) = (armed(&self.msi), armed(&self.intx));
        format!(
            "message {msi}; line {line}, asserted: {level}, masked: {masked}; {} sent, {} lost",
            self.signalled, self.lost
        )
    }

    fn arm(&mut self, index: u32, file: Option<OwnedFd>) {
        match index {
            INDEX_INTX => {
                self.intx = file;
                self.unmask();
            }
            INDEX_MSI => self.msi = file,
            _ => {}
        }
    }

    /// A level that is still up when the line is unmasked interrupts again.
    fn unmask(&mut self) {
        self.intx_masked = false;
        if std::mem::take(&mut self.intx_asserted) {
            self.line(true);
        }
    }

    fn signal(&mut self, index: u32) {
        let file = if index == INDEX_MSI { &self.msi } else { &self.intx };
        // A counter that is full has been signalled already: the client will see it.
        match file.as_ref().map(|file| rustix::io::write(file, &1u64.to_ne_bytes())) {
            Some(Ok(_) | Err(Errno::AGAIN)) => self.signalled += 1,
            _ => self.lost += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn eventfd_pair() -> (OwnedFd, OwnedFd) {
        let ours = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        (ours.try_clone().unwrap(), ours)
    }

    fn count(file: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(file, &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }

    fn request(index: u32, flags: u32, count: u32) -> SetIrqs {
        SetIrqs { flags, index, start: 0, count }
    }

    #[test]
    fn a_message_reaches_its_eventfd_until_disarmed() {
        let mut irqs = Irqs::default();
        let (ours, theirs) = eventfd_pair();
        irqs.message();
        irqs.set(request(1, SetIrqs::DATA_EVENTFD | SetIrqs::TRIGGER, 1), &[], vec![theirs]).unwrap();
        assert_eq!(count(&ours), 0);
        irqs.message();
        irqs.message();
        assert_eq!(count(&ours), 2);
        irqs.set(request(1, SetIrqs::DATA_NONE | SetIrqs::TRIGGER, 0), &[], vec![]).unwrap();
        irqs.message();
        assert_eq!(count(&ours), 0);
        assert_eq!(irqs.counts(), (2, 0));
    }

    #[test]
    fn an_eventfd_request_without_a_descriptor_disarms() {
        let mut irqs = Irqs::default();
        let (ours, theirs) = eventfd_pair();
        irqs.set(request(1, SetIrqs::DATA_EVENTFD | SetIrqs::TRIGGER, 1), &[], vec![theirs]).unwrap();
        irqs.set(request(1, SetIrqs::DATA_EVENTFD | SetIrqs::TRIGGER, 1), &[], vec![]).unwrap();
        irqs.message();
        assert_eq!(count(&ours), 0);
    }

    #[test]
    fn the_line_interrupts_once_a_level_and_again_after_unmask() {
        let mut irqs = Irqs::default();
        let (ours, theirs) = eventfd_pair();
        irqs.set(request(0, SetIrqs::DATA_EVENTFD | SetIrqs::TRIGGER, 1), &[], vec![theirs]).unwrap();
        irqs.line(true);
        irqs.line(true);
        assert_eq!(count(&ours), 1);
        irqs.set(request(0, SetIrqs::DATA_NONE | SetIrqs::UNMASK, 1), &[], vec![]).unwrap();
        assert_eq!(count(&ours), 1);
        irqs.line(false);
        irqs.set(request(0, SetIrqs::DATA_NONE | SetIrqs::UNMASK, 1), &[], vec![]).unwrap();
        assert_eq!(count(&ours), 0);
        irqs.line(true);
        assert_eq!(count(&ours), 1);
    }

    #[test]
    fn vectors_that_do_not_exist_are_refused() {
        let mut irqs = Irqs::default();
        let armed = SetIrqs::DATA_EVENTFD | SetIrqs::TRIGGER;
        assert_eq!(irqs.set(request(1, armed, 2), &[], vec![]), Err(Errno::INVAL));
        assert_eq!(irqs.set(request(2, armed, 1), &[], vec![]), Err(Errno::INVAL));
        assert_eq!(irqs.set(SetIrqs { start: u32::MAX, ..request(1, armed, 1) }, &[], vec![]), Err(Errno::INVAL));
        assert_eq!(irqs.set(request(1, SetIrqs::DATA_BOOL | SetIrqs::MASK, 1), &[], vec![]), Err(Errno::INVAL));
        irqs.set(request(3, SetIrqs::DATA_NONE | SetIrqs::TRIGGER, 0), &[], vec![]).unwrap();
    }
}
