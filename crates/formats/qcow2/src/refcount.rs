//! Refcounts of every width, out of a refcount block.
//!
//! qcow2 "Refcount blocks": entries of 2^refcount_order bits; below 8 bits the
//! lowest bits of a byte come first, above 8 bits big endian.

/// The width of a refcount: 1, 2, 4, 8, 16, 32 or 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountWidth(u32);

impl RefcountWidth {
    /// Takes `refcount_order`, 0..=6.
    pub const fn from_order(order: u32) -> Option<Self> {
        if order <= 6 { Some(Self(order)) } else { None }
    }

    /// Bits of a refcount, 1 to 64.
    pub const fn bits(self) -> u32 {
        1 << self.0
    }

    /// The largest refcount that fits.
    pub const fn max(self) -> u64 {
        crate::bits(0, self.bits().saturating_sub(1))
    }

    /// Refcounts in `block_bytes` bytes.
    pub const fn entries_in(self, block_bytes: u64) -> u64 {
        block_bytes.saturating_mul(8) >> self.0
    }

    /// The refcount at `index`; `None` past the end of the block.
    pub fn get(self, block: &[u8], index: u64) -> Option<u64> {
        if self.0 < 3 {
            // 8, 4 or 2 refcounts in a byte.
            let per_byte_bits = 3_u32.saturating_sub(self.0);
            let byte = block.get(usize::try_from(index >> per_byte_bits).ok()?)?;
            let in_byte = u32::try_from(index & (7 >> self.0)).ok()?;
            let shift = in_byte.checked_mul(self.bits())?;
            return Some((u64::from(*byte) >> shift) & self.max());
        }
        let bytes = 1_usize << self.0.saturating_sub(3);
        let start = usize::try_from(index).ok()?.checked_mul(bytes)?;
        let entry = block.get(start..start.checked_add(bytes)?)?;
        Some(entry.iter().fold(0, |n, b| (n << 8) | u64::from(*b)))
    }

    /// Stores `value`, which fits the width, at `index`; false past the end of the block.
    pub fn set(self, block: &mut [u8], index: u64, value: u64) -> bool {
        if self.0 < 3 {
            let per_byte_bits = 3_u32.saturating_sub(self.0);
            let at = usize::try_from(index >> per_byte_bits).unwrap_or(usize::MAX);
            let Some(byte) = block.get_mut(at) else {
                return false;
            };
            let in_byte = u32::try_from(index & (7 >> self.0)).unwrap_or(0);
            let shift = in_byte.saturating_mul(self.bits());
            let mask = self.max() << shift;
            let new = (u64::from(*byte) & !mask) | ((value << shift) & mask);
            *byte = u8::try_from(new).unwrap_or(0);
            return true;
        }
        let bytes = 1_usize << self.0.saturating_sub(3);
        let start = usize::try_from(index)
            .unwrap_or(usize::MAX)
            .saturating_mul(bytes);
        let entry = block.get_mut(start..start.saturating_add(bytes));
        let raw = value.to_be_bytes();
        match (entry, raw.get(8_usize.saturating_sub(bytes)..)) {
            (Some(entry), Some(raw)) => {
                entry.copy_from_slice(raw);
                true
            }
            _ => false,
        }
    }

    /// Calls `visit` with the index and value of each refcount of the block that
    /// is not 0, in ascending order. Runs of zero bytes cost one test for eight.
    pub fn for_each_nonzero(self, block: &[u8], mut visit: impl FnMut(u64, u64)) {
        let mut chunk_start = 0_u64;
        for chunk in block.chunks(8) {
            if chunk.iter().any(|b| *b != 0) {
                let first = self.entries_in(chunk_start);
                let count = self.entries_in(chunk.len() as u64);
                for i in 0..count {
                    match self.get(chunk, i) {
                        Some(refcount) if refcount != 0 => visit(first.saturating_add(i), refcount),
                        _ => {}
                    }
                }
            }
            chunk_start = chunk_start.saturating_add(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn narrow_refcounts_start_at_the_lowest_bit() {
        let one = RefcountWidth::from_order(0).unwrap();
        assert_eq!(
            (one.get(&[0b0000_0010], 0), one.get(&[0b0000_0010], 1)),
            (Some(0), Some(1))
        );
        let four = RefcountWidth::from_order(2).unwrap();
        assert_eq!(
            (four.get(&[0xa5], 0), four.get(&[0xa5], 1)),
            (Some(5), Some(0xa))
        );
        assert_eq!(four.get(&[0xa5], 2), None);
    }

    #[test]
    fn wide_refcounts_are_big_endian() {
        let block = [0, 1, 2, 3, 4, 5, 6, 7];
        let get = |order, i| RefcountWidth::from_order(order).unwrap().get(&block, i);
        assert_eq!(get(3, 7), Some(7));
        assert_eq!(get(4, 1), Some(0x0203));
        assert_eq!(get(5, 1), Some(0x0405_0607));
        assert_eq!(get(6, 0), Some(0x0001_0203_0405_0607));
        assert_eq!(get(6, 1), None);
        assert_eq!(get(6, u64::MAX), None);
        assert_eq!(RefcountWidth::from_order(7), None);
    }

    #[test]
    fn max_fits_the_width() {
        let max = |order| RefcountWidth::from_order(order).unwrap().max();
        assert_eq!((max(0), max(2), max(4), max(6)), (1, 15, 0xffff, u64::MAX));
    }

    proptest! {
        #[test]
        fn set_changes_one_refcount_only(
            order in 0_u32..=6,
            block in proptest::collection::vec(any::<u8>(), 64),
            index in 0_u64..600,
            value: u64,
        ) {
            let width = RefcountWidth::from_order(order).unwrap();
            let value = value & width.max();
            let mut changed = block.clone();
            let entries = width.entries_in(64);
            prop_assert_eq!(width.set(&mut changed, index, value), index < entries);
            for i in 0..entries {
                let expected = if i == index { Some(value) } else { width.get(&block, i) };
                prop_assert_eq!(width.get(&changed, i), expected);
            }
        }

        #[test]
        fn for_each_nonzero_agrees_with_get(
            order in 0_u32..=6,
            block in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..64),
        ) {
            let width = RefcountWidth::from_order(order).unwrap();
            let mut seen = Vec::new();
            width.for_each_nonzero(&block, |i, n| seen.push((i, n)));
            let expected: Vec<_> = (0..width.entries_in(block.len() as u64))
                .filter_map(|i| width.get(&block, i).filter(|n| *n != 0).map(|n| (i, n)))
                .collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
