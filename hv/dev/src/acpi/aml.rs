//! A writer of ACPI Machine Language (ACPI 6.5, chapter 20): just what the DSDT needs.

use alloc::vec::Vec;

/// AML being written.
#[derive(Default)]
pub(super) struct Aml(Vec<u8>);

/// A name of four characters.
pub(super) type Name = &'static [u8; 4];

/// One-byte operands.
pub(super) mod op {
    pub(in super::super) const ARG0: u8 = 0x68;
    pub(in super::super) const ARG1: u8 = 0x69;
    pub(in super::super) const ARG3: u8 = 0x6B;
    pub(in super::super) const LOCAL0: u8 = 0x60;
    pub(in super::super) const STORE: u8 = 0x70;
    pub(in super::super) const AND: u8 = 0x7B;
    pub(in super::super) const OR: u8 = 0x7D;
    pub(in super::super) const NOT: u8 = 0x92;
    pub(in super::super) const EQUAL: u8 = 0x93;
    pub(in super::super) const RETURN: u8 = 0xA4;
    pub(in super::super) const CREATE_DWORD_FIELD: u8 = 0x8A;
}

impl Aml {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Raw bytes: operators and one-byte operands.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn scope(&mut self, path: &[u8], body: impl FnOnce(&mut Self)) -> &mut Self {
        self.block(&[0x10], |aml| {
            aml.raw(path);
            body(aml);
        })
    }

    pub(super) fn device(&mut self, name: &[u8; 4], body: impl FnOnce(&mut Self)) -> &mut Self {
        self.block(&[0x5B, 0x82], |aml| {
            aml.raw(name);
            body(aml);
        })
    }

    /// A serialized method: those that create fields must be.
    pub(super) fn method(&mut self, name: Name, arguments: u8, body: impl FnOnce(&mut Self)) -> &mut Self {
        self.block(&[0x14], |aml| {
            aml.raw(name).raw(&[arguments & 7 | 1 << 3]);
            body(aml);
        })
    }

    pub(super) fn when(&mut self, predicate: impl FnOnce(&mut Self), body: impl FnOnce(&mut Self)) -> &mut Self {
        self.block(&[0xA0], |aml| {
            predicate(aml);
            body(aml);
        })
    }

    pub(super) fn otherwise(&mut self, body: impl FnOnce(&mut Self)) -> &mut Self {
        self.block(&[0xA1], body)
    }

    /// Begins `Name (name, ...)`: the value is written next.
    pub(super) fn name(&mut self, name: Name) -> &mut Self {
        self.raw(&[0x08]).raw(name)
    }

    /// An integer, in the shortest form.
    pub(super) fn integer(&mut self, value: u64) -> &mut Self {
        let bytes = value.to_le_bytes();
        let (prefix, count) = match value {
            0 => return self.raw(&[0x00]),
            1 => return self.raw(&[0x01]),
            2..=0xFF => (0x0A, 1),
            0x100..=0xFFFF => (0x0B, 2),
            0x1_0000..=0xFFFF_FFFF => (0x0C, 4),
            _ => (0x0E, 8),
        };
        self.raw(&[prefix]).raw(bytes.get(..count).unwrap_or(&bytes))
    }

    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        self.raw(&[0x0D]).raw(text.as_bytes()).raw(&[0])
    }

    /// A compressed PNP identifier such as `PNP0A08`.
    pub(super) fn eisa_id(&mut self, id: &[u8; 7]) -> &mut Self {
        let letter = |byte: u8| u32::from(byte.wrapping_sub(b'@') & 0x1F);
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0);
        let [a, b, c, digits @ ..] = *id;
        let vendor = letter(a) << 10 | letter(b) << 5 | letter(c);
        let product = digits.into_iter().fold(0, |value, byte| value << 4 | digit(byte));
        self.raw(&[0x0C]).raw(&(vendor << 16 | product).to_be_bytes())
    }

    pub(super) fn package(&mut self, count: u8, body: impl FnOnce(&mut Self)) -> &mut Self {
        self.block(&[0x12], |aml| {
            aml.raw(&[count]);
            body(aml);
        })
    }

    pub(super) fn buffer(&mut self, bytes: &[u8]) -> &mut Self {
        self.block(&[0x11], |aml| {
            aml.integer(bytes.len() as u64).raw(bytes);
        })
    }

    fn block(&mut self, operator: &[u8], body: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        body(&mut inner);
        self.raw(operator).length(inner.0.len()).raw(&inner.0)
    }

    /// PkgLength (20.2.4): it counts itself.
    fn length(&mut self, body: usize) -> &mut Self {
        if body + 1 < 0x40 {
            return self.raw(&[body as u8 + 1]);
        }
        let more = (1..3).find(|more| body + more + 1 < 1 << (4 + 8 * more)).unwrap_or(3);
        let total = body + more + 1;
        self.raw(&[(more << 6) as u8 | (total & 0xF) as u8]);
        let rest = (total >> 4).to_le_bytes();
        self.raw(rest.get(..more).unwrap_or(&rest))
    }
}

/// A resource template (ACPI 6.5, section 6.4).
#[derive(Default)]
pub(super) struct Resources(Vec<u8>);

impl Resources {
    /// Fixed ports.
    pub(super) fn ports(mut self, base: u16, count: u8) -> Self {
        let [low, high] = base.to_le_bytes();
        self.0.extend_from_slice(&[0x47, 0x01, low, high, low, high, 0x01, count]);
        self
    }

    /// An ISA interrupt, edge-triggered.
    pub(super) fn irq(mut self, irq: u8) -> Self {
        let [low, high] = (1u16 << irq).to_le_bytes();
        self.0.extend_from_slice(&[0x22, low, high]);
        self
    }

    /// Fixed memory.
    pub(super) fn memory(mut self, base: u32, size: u32) -> Self {
        self.0.extend_from_slice(&[0x86, 9, 0, 1]);
        self.0.extend_from_slice(&base.to_le_bytes());
        self.0.extend_from_slice(&size.to_le_bytes());
        self
    }

    /// Bus numbers that a host bridge produces.
    pub(super) fn buses(self, first: u16, last: u16) -> Self {
        self.word_window(2, 0, first, last)
    }

    /// Ports that a host bridge produces, its whole range.
    pub(super) fn port_window(self, first: u16, last: u16) -> Self {
        self.word_window(1, 3, first, last)
    }

    /// Memory below 4 GiB that a host bridge produces, read-write and not cached.
    pub(super) fn memory_window(mut self, first: u32, last: u32) -> Self {
        self.0.extend_from_slice(&[0x87, 0x17, 0, 0, 0x0C, 0x01]);
        for field in [0, first, last, 0, last - first + 1] {
            self.0.extend_from_slice(&field.to_le_bytes());
        }
        self
    }

    /// The same anywhere, prefetchable.
    pub(super) fn memory_window_64(mut self, first: u64, last: u64) -> Self {
        self.0.extend_from_slice(&[0x8A, 0x2B, 0, 0, 0x0C, 0x07]);
        for field in [0, first, last, 0, last - first + 1] {
            self.0.extend_from_slice(&field.to_le_bytes());
        }
        self
    }

    /// Word address space: resource type, type-specific flags, range (minimum and maximum fixed, positive decode).
    fn word_window(mut self, kind: u8, flags: u8, first: u16, last: u16) -> Self {
        self.0.extend_from_slice(&[0x88, 0x0D, 0, kind, 0x0C, flags]);
        for field in [0, first, last, 0, (last - first).wrapping_add(1)] {
            self.0.extend_from_slice(&field.to_le_bytes());
        }
        self
    }

    /// Writes `Name (_CRS, ...)`.
    pub(super) fn write(mut self, aml: &mut Aml) {
        // End tag; a checksum of 0 means "not checked".
        self.0.extend_from_slice(&[0x79, 0]);
        aml.name(b"_CRS").buffer(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Aml)) -> Vec<u8> {
        let mut aml = Aml::default();
        write(&mut aml);
        aml.into_bytes()
    }

    #[test]
    fn integers_are_short() {
        for (value, bytes) in [
            (0, vec![0x00]),
            (1, vec![0x01]),
            (0xFF, vec![0x0A, 0xFF]),
            (0x600, vec![0x0B, 0x00, 0x06]),
            (0xFFFF_FFFF, vec![0x0C, 0xFF, 0xFF, 0xFF, 0xFF]),
            (1 << 32, vec![0x0E, 0, 0, 0, 0, 1, 0, 0, 0]),
        ] {
            assert_eq!(written(|aml| _ = aml.integer(value)), bytes);
        }
    }

    #[test]
    fn identifiers_are_compressed() {
        assert_eq!(written(|aml| _ = aml.eisa_id(b"PNP0A08")), [0x0C, 0x41, 0xD0, 0x0A, 0x08]);
        assert_eq!(written(|aml| _ = aml.eisa_id(b"PNP0501")), [0x0C, 0x41, 0xD0, 0x05, 0x01]);
    }

    #[test]
    fn lengths_count_themselves() {
        let length = |body| written(|aml| _ = aml.length(body));
        assert_eq!(length(0), [0x01]);
        assert_eq!(length(62), [0x3F]);
        assert_eq!(length(63), [0x41, 0x04]);
        assert_eq!(length(0xFFF - 2), [0x4F, 0xFF]);
        assert_eq!(length(0xFFE), [0x81, 0x00, 0x01]);
        assert_eq!(length(0xF_FFFF - 3), [0x8F, 0xFF, 0xFF]);
        assert_eq!(length(0x10_0000), [0xC4, 0x00, 0x00, 0x01]);
    }
}
