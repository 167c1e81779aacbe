//! What of a guest's batches lies in a context's arena: the way back from a copy to the guest's own addresses.

use crate::audit::{BatchCopy, MANY, Target};
use crate::host::NoFrame;
use alloc::vec::Vec;
use gvt_defs::{GgttAddr, PpgttAddr};

/// Copies remembered for a context; it has as much room in its arena that is not in use as it can fill before it is
/// prepared anew.
const COPIES: usize = 4 * MANY;

/// The copies in one arena.
#[derive(Debug)]
pub(crate) struct Copies(Vec<BatchCopy>);

impl Copies {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(COPIES))
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds copies that begin `used` bytes into the arena.
    ///
    /// # Errors
    /// `NoFrame` if there are too many.
    pub(crate) fn add(&mut self, used: u32, copies: &[BatchCopy]) -> Result<(), NoFrame> {
        if self.0.len() + copies.len() > COPIES {
            return Err(NoFrame);
        }
        self.0.extend(copies.iter().map(|copy| BatchCopy { start: used / 4 + copy.start, ..*copy }));
        Ok(())
    }

    /// What the guest has where the arena's byte `offset` was copied from.
    pub(crate) fn guest(&self, offset: u32) -> Option<Target> {
        let ahead = |copy: &BatchCopy| (offset / 4).checked_sub(copy.start).filter(|ahead| *ahead < copy.dwords);
        let (copy, ahead) = self.0.iter().find_map(|copy| Some((copy, 4 * ahead(copy)?)))?;
        Some(match copy.guest {
            Target::Global(at) => Target::Global(GgttAddr(at.0.wrapping_add(ahead))),
            Target::Process(at) => Target::Process(PpgttAddr(at.0.wrapping_add(u64::from(ahead)))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Level;

    #[test]
    fn a_place_in_a_copy_is_the_guests() {
        let copy = |guest, start, dwords| BatchCopy { guest, level: Level::First, start, dwords };
        let mut copies = Copies::new();
        let (global, process) = (Target::Global(GgttAddr(0x1000)), Target::Process(PpgttAddr(0x12_0000_0040)));
        copies.add(64, &[copy(global, 0, 6), copy(process, 16, 3)]).unwrap();
        assert_eq!(copies.guest(60), None);
        assert_eq!(copies.guest(64), Some(global));
        assert_eq!(copies.guest(84), Some(Target::Global(GgttAddr(0x1014))));
        assert_eq!(copies.guest(88), None);
        assert_eq!(copies.guest(136), Some(Target::Process(PpgttAddr(0x12_0000_0048))));
        assert_eq!(copies.guest(140), None);
        assert_eq!(copies.add(0, &[copy(global, 0, 1); COPIES - 1]), Err(NoFrame));
        copies.clear();
        assert_eq!(copies.guest(64), None);
    }
}
