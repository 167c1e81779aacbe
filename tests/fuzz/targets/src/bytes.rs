//! Bytes as choices. When they are used up, every choice is the first.

use arbitrary::Unstructured;

/// What is left of an input.
pub struct Bytes<'a>(Unstructured<'a>);

impl<'a> Bytes<'a> {
    /// All of an input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// Whether it is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A dword.
    pub fn dword(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A qword.
    pub fn qword(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0.int_in_range(0..=end.saturating_sub(1)).unwrap_or(0)
    }

    /// Whether something happens that happens once in `times`; it does not when bytes are used up.
    pub fn rarely(&mut self, times: u32) -> bool {
        self.below(times) == times - 1
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// Fills a buffer with what is left, and zeroes behind it.
    pub fn fill(&mut self, buf: &mut [u8]) {
        buf.fill(0);
        let count = buf.len().min(self.0.len());
        if let Ok(bytes) = self.0.bytes(count) {
            buf[..count].copy_from_slice(bytes);
        }
    }
}
