//! Registers as bytes: what guests read and write at any offset and width.

/// Copies what `image` has from `offset` on to `data`; zeros past its end.
pub(crate) fn read_image(image: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (to, from) in data.iter_mut().zip(image.iter().skip(start)) {
        *to = *from;
    }
}

/// The little-endian number that `data` is, if it has at most 8 bytes.
pub(crate) fn value(data: &[u8]) -> Option<u64> {
    let mut bytes = [0; 8];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    Some(u64::from_le_bytes(bytes))
}

/// Whether `data.len()` bytes at `offset` touch `len` bytes at `start`.
pub(crate) fn touches(offset: u64, data: &[u8], start: u64, len: u64) -> bool {
    let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
    offset < start.saturating_add(len) && start < end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_end_in_zeros() {
        let mut data = [9; 4];
        read_image(&[1, 2, 3], 1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        read_image(&[1, 2, 3], u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn values_are_little_endian() {
        assert_eq!(value(&[]), Some(0));
        assert_eq!(value(&[1, 2]), Some(0x201));
        assert_eq!(value(&[0xff; 8]), Some(u64::MAX));
        assert_eq!(value(&[0; 9]), None);
    }

    #[test]
    fn ranges_touch_if_they_share_a_byte() {
        assert!(touches(3, &[0; 2], 4, 4));
        assert!(!touches(2, &[0; 2], 4, 4));
        assert!(touches(7, &[0], 4, 4));
        assert!(!touches(8, &[0], 4, 4));
        assert!(!touches(u64::MAX, &[0; 8], 4, 4));
    }
}
