//! Looking at many bytes at a time.

/// Bytes that one round of a loop looks at: a few vector registers.
const LANE_BYTES: usize = 64;

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (lanes, tail) = bytes.as_chunks::<LANE_BYTES>();
    let zero = lanes.iter().all(|lane| {
        let words = lane.as_chunks::<8>().0.iter();
        words.fold(0, |set, word| set | u64::from_ne_bytes(*word)) == 0
    });
    zero && tail.iter().all(|byte| *byte == 0)
}

/// Whether both hold the same. The guests' `memcmp`, which `==` is, takes byte after byte.
#[must_use]
pub fn are_equal(one: &[u8], two: &[u8]) -> bool {
    if one.len() != two.len() {
        return false;
    }
    let (one, one_tail) = one.as_chunks::<LANE_BYTES>();
    let (two, two_tail) = two.as_chunks::<LANE_BYTES>();
    let equal = one.iter().zip(two).all(|(one, two)| {
        let words = one.as_chunks::<8>().0.iter().zip(two.as_chunks::<8>().0);
        words.fold(0, |different, (one, two)| {
            different | (u64::from_ne_bytes(*one) ^ u64::from_ne_bytes(*two))
        }) == 0
    });
    equal && one_tail == two_tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn every_byte_is_looked_at() {
        for len in [0, 1, 7, 8, 31, 63, 64, 65, 511, 512, 1037] {
            let zeros = vec![0; len];
            assert!(is_zero(&zeros) && are_equal(&zeros, &zeros));
            for at in 0..len {
                let mut other = zeros.clone();
                other[at] = 1;
                assert!(!is_zero(&other), "{at} of {len}");
                assert!(!are_equal(&zeros, &other) && !are_equal(&other, &zeros));
                assert!(are_equal(&other, &other));
            }
            assert!(!are_equal(&zeros, &vec![0; len + 1]));
        }
    }
}
