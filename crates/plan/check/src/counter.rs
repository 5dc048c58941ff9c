//! The integer that holds a refcount.
//!
//! Two serve all widths: the walk is compiled once for each, and an operation
//! binary has to stay small.

/// A refcount in memory.
pub trait Counter: Copy + Eq + Default + Into<u64> {
    /// The refcount of a cluster that one thing refers to.
    const ONE: Self;

    /// `self + 1`; the caller has seen that `self` is below the image's maximum.
    fn next(self) -> Self;

    /// Takes the image's maximum, which fits.
    fn from_u64(value: u64) -> Self;

    /// Decodes refcounts from a slice of a refcount block, from its first byte
    /// on, at width `1 << order` bits. Stops at the shorter of the two.
    fn decode(order: u32, bytes: &[u8], out: &mut [Self]);
}

/// Widths up to 16 bits.
impl Counter for u16 {
    const ONE: Self = 1;

    fn next(self) -> Self {
        self.wrapping_add(1)
    }

    fn from_u64(value: u64) -> Self {
        Self::try_from(value).unwrap_or(Self::MAX)
    }

    fn decode(order: u32, bytes: &[u8], out: &mut [Self]) {
        match order {
            0..=2 => decode_below_a_byte(order, bytes, out),
            3 => out
                .iter_mut()
                .zip(bytes)
                .for_each(|(slot, byte)| *slot = (*byte).into()),
            _ => {
                let (entries, _) = bytes.as_chunks();
                out.iter_mut()
                    .zip(entries)
                    .for_each(|(slot, entry)| *slot = Self::from_be_bytes(*entry));
            }
        }
    }
}

/// Widths of 32 and 64 bits.
impl Counter for u64 {
    const ONE: Self = 1;

    fn next(self) -> Self {
        self.wrapping_add(1)
    }

    fn from_u64(value: u64) -> Self {
        value
    }

    fn decode(order: u32, bytes: &[u8], out: &mut [Self]) {
        if order == 5 {
            let (entries, _) = bytes.as_chunks();
            out.iter_mut()
                .zip(entries)
                .for_each(|(slot, entry)| *slot = u32::from_be_bytes(*entry).into());
        } else {
            let (entries, _) = bytes.as_chunks();
            out.iter_mut()
                .zip(entries)
                .for_each(|(slot, entry)| *slot = Self::from_be_bytes(*entry));
        }
    }
}

/// Widths below 8 bits fill each byte from its least significant bit up:
/// qcow2 "Refcount block entry".
fn decode_below_a_byte(order: u32, bytes: &[u8], out: &mut [u16]) {
    let width = 1_u32 << order;
    let per_byte = 8_usize >> order;
    let mask = u16::from(u8::MAX >> 8_u32.saturating_sub(width));
    for (group, byte) in out.chunks_mut(per_byte).zip(bytes) {
        let mut left = u16::from(*byte);
        for slot in group {
            *slot = left & mask;
            left = left.wrapping_shr(width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_refcounts_start_at_the_low_bits() {
        let mut out = [9_u16; 8];
        u16::decode(0, &[0b1000_0001], &mut out);
        assert_eq!(out, [1, 0, 0, 0, 0, 0, 0, 1]);
        let mut out = [9_u16; 4];
        u16::decode(1, &[0b1101_0010], &mut out);
        assert_eq!(out, [2, 0, 1, 3]);
        let mut out = [9_u16; 3];
        u16::decode(2, &[0xa5, 0x0f], &mut out);
        assert_eq!(out, [5, 10, 15]);
    }

    #[test]
    fn wide_refcounts_are_big_endian() {
        let mut out = [0_u16; 2];
        u16::decode(4, &[1, 2, 3, 4], &mut out);
        assert_eq!(out, [0x102, 0x304]);
        let mut out = [0_u64; 1];
        u64::decode(6, &[0, 0, 0, 0, 0, 0, 1, 0], &mut out);
        assert_eq!(out, [256]);
    }
}
