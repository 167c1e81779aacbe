//! What of the serial line the user sees: everything but the lines that are meant for programs.

/// How the lines for programs begin.
const FOR_PROGRAMS: [&[u8]; 4] = [b"@vm ", b"@stat ", b"@gpu ", b"@end "];

/// Takes the stream as it comes, in pieces of any size.
#[derive(Debug, Default)]
pub struct Display {
    /// The beginning of a line that may yet prove to be for programs.
    held: Vec<u8>,
    inside: Inside,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Inside {
    #[default]
    LineStart,
    Shown,
    Hidden,
}

impl Display {
    /// What to show of `fresh`, with what was held back.
    pub fn show(&mut self, fresh: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(fresh.len());
        for &byte in fresh {
            self.byte(byte, &mut shown);
        }
        shown
    }

    fn byte(&mut self, byte: u8, shown: &mut Vec<u8>) {
        match self.inside {
            Inside::Shown => shown.push(byte),
            Inside::Hidden => {}
            Inside::LineStart => {
                self.held.push(byte);
                if FOR_PROGRAMS.iter().any(|start| self.held == *start) {
                    self.held.clear();
                    self.inside = Inside::Hidden;
                } else if !FOR_PROGRAMS.iter().any(|start| start.starts_with(&self.held)) {
                    shown.append(&mut self.held);
                    self.inside = Inside::Shown;
                }
            }
        }
        if byte == b'\n' {
            self.inside = Inside::LineStart;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_whole_lines_however_they_are_cut() {
        let text = b"a\r\n@vm vm=a n=1\r\n@home\n@stat x\n/ # ls @vm \n\n@";
        for size in 1..text.len() {
            let mut display = Display::default();
            let shown: Vec<u8> = text.chunks(size).flat_map(|piece| display.show(piece)).collect();
            assert_eq!(shown, b"a\r\n@home\n/ # ls @vm \n\n", "pieces of {size}");
        }
    }
}
