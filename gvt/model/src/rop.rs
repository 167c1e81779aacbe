//! Raster operations: bit `4P + 2S + D` of the code is the result for those three input bits.

/// Whether the result depends on what the destination holds.
pub(crate) const fn needs_destination(rop: u8) -> bool {
    (rop ^ rop >> 1) & 0x55 != 0
}

/// Combines byte by byte; the result replaces `destination`.
pub(crate) fn combine(rop: u8, destination: &mut [u8], source: &[u8], pattern: &[u8]) {
    for ((d, s), p) in destination.iter_mut().zip(source).zip(pattern) {
        *d = byte(rop, *p, *s, *d);
    }
}

#[inline]
fn byte(rop: u8, p: u8, s: u8, d: u8) -> u8 {
    let mut result = 0;
    for term in 0..8 {
        if rop >> term & 1 != 0 {
            let p = if term & 4 != 0 { p } else { !p };
            let s = if term & 2 != 0 { s } else { !s };
            let d = if term & 1 != 0 { d } else { !d };
            result |= p & s & d;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_codes() {
        let (p, s, d) = (0x0F, 0x35, 0x53);
        for (rop, want) in [
            (0x00, 0),
            (0xFF, 0xFF),
            (0xCC, s),
            (0xF0, p),
            (0xAA, d),
            (0x55, !d),
            (0x66, s ^ d),
            (0x88, s & d),
            (0xEE, s | d),
            (0x5A, p ^ d),
            (0x33, !s),
        ] {
            assert_eq!(byte(rop, p, s, d), want, "{rop:#x}");
        }
        assert!(!needs_destination(0xCC) && !needs_destination(0xF0) && !needs_destination(0x00));
        assert!(needs_destination(0x66) && needs_destination(0xAA));
    }
}
