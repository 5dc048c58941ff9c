//! Lines of numbers, many of them: made without the standard library's formatter, which takes half the time of
//! a large map.

use super::{EXTENT_COMPRESSED, EXTENT_DATA, EXTENT_PRESENT, EXTENT_ZERO, Extent};

/// The first line of the text form.
pub const HEADING: &[u8] = b"Offset          Length          Mapped to       File\n";
/// Columns of a number in the text form.
const COLUMN: usize = 16;
/// Decimal digits of the largest number.
const MOST_DIGITS: usize = 20;

/// A line that is being made.
#[derive(Default)]
pub struct Line(Vec<u8>);

impl Line {
    /// What was made so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends text.
    pub fn text(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
    }

    /// Appends a number as C's `%#-16x` prints it.
    pub fn hexadecimal(&mut self, number: u64) {
        let before = self.0.len();
        match number {
            0 => self.text(b"0"),
            _ => self.text(format!("{number:#x}").as_bytes()),
        }
        let width = (self.0.len() - before).max(COLUMN);
        self.0.resize(before + width, b' ');
    }

    fn decimal(&mut self, mut number: u64) {
        let mut digits = [b'0'; MOST_DIGITS];
        let mut first = MOST_DIGITS;
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            first = at;
            if number == 0 {
                break;
            }
        }
        self.text(digits.get(first..).unwrap_or_default());
    }

    fn flag(&mut self, name: &[u8], set: bool) {
        self.text(name);
        self.text(if set { b"true" } else { b"false" });
    }

    /// Appends the JSON form of an extent.
    pub fn json(&mut self, extent: &Extent) {
        self.text(b"{ \"start\": ");
        self.decimal(extent.start);
        self.text(b", \"length\": ");
        self.decimal(extent.len);
        self.text(b", \"depth\": ");
        self.decimal(extent.depth.into());
        self.flag(b", \"present\": ", extent.has(EXTENT_PRESENT));
        self.flag(b", \"zero\": ", extent.has(EXTENT_ZERO));
        self.flag(b", \"data\": ", extent.has(EXTENT_DATA));
        self.flag(b", \"compressed\": ", extent.has(EXTENT_COMPRESSED));
        if let Some(offset) = extent.offset {
            self.text(b", \"offset\": ");
            self.decimal(offset);
        }
        self.text(b"}");
    }
}
