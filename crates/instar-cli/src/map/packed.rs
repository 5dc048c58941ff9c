//! Extents in few bytes each: numbers of seven bits per byte, the lowest first.

use super::{EXTENT_PLACED, Extent};

/// Bits of a flag word; the depth stands above them.
const FLAG_BITS: u32 = 5;

/// Extents that follow each other without gaps.
#[derive(Default)]
pub struct Packed {
    bytes: Vec<u8>,
}

impl Packed {
    /// Appends the extent that follows.
    pub fn push(&mut self, extent: &Extent) {
        self.number(extent.len);
        self.number(u64::from(extent.depth) << FLAG_BITS | u64::from(extent.flags));
        if let Some(offset) = extent.offset {
            self.number(offset);
        }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(0x80 | low_bits(number));
            number >>= 7;
        }
        self.bytes.push(low_bits(number));
    }

    /// All extents; the first begins at `start`.
    pub fn iter(&self, start: u64) -> Iter<'_> {
        Iter {
            rest: &self.bytes,
            start,
        }
    }
}

const fn low_bits(number: u64) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

/// Goes through packed extents. What slot a place is in is not kept.
pub struct Iter<'a> {
    rest: &'a [u8],
    start: u64,
}

impl Iter<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        let mut shift = 0;
        loop {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
            shift += 7;
        }
    }
}

impl Iterator for Iter<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let len = self.number()?;
        let word = self.number()?;
        let flags = u32::try_from(word & ((1 << FLAG_BITS) - 1)).ok()?;
        let offset = if flags & EXTENT_PLACED == 0 {
            None
        } else {
            Some(self.number()?)
        };
        let start = self.start;
        self.start = start.checked_add(len)?;
        Some(Extent {
            start,
            len,
            depth: u16::try_from(word >> FLAG_BITS).ok()?,
            flags,
            offset,
            slot: 0,
        })
    }
}
