//! The first sector in which bytes differ.

use instar_storage::bytes::{are_equal, is_zero};

/// Bytes of a sector: what an offset is told in.
const SECTOR_BYTES: usize = 512;

/// Where the first sector that differs starts; both are of one length.
pub(crate) fn first_difference(one: &[u8], two: &[u8]) -> Option<u64> {
    first(one, |at, sector| {
        let other = two.get(at..).and_then(|two| two.get(..sector.len()));
        other.is_none_or(|other| !are_equal(sector, other))
    })
}

/// Where the first sector that is not all zeros starts.
pub(crate) fn first_data(bytes: &[u8]) -> Option<u64> {
    first(bytes, |_, sector| !is_zero(sector))
}

/// Where the first sector for which `differs` says so starts. Asks for larger parts first.
fn first(bytes: &[u8], differs: impl Fn(usize, &[u8]) -> bool) -> Option<u64> {
    const PART_BYTES: usize = 64 << 10;
    let mut at = 0_usize;
    for part in bytes.chunks(PART_BYTES) {
        if differs(at, part) {
            for sector in part.chunks(SECTOR_BYTES) {
                if differs(at, sector) {
                    return Some(at as u64);
                }
                at = at.saturating_add(sector.len());
            }
        }
        at = at.saturating_add(part.len());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn every_place_is_looked_at() {
        for len in [1, 511, 512, 1000, 64 << 10, (64 << 10) + 700, 200_000] {
            let zeros = vec![0; len];
            assert_eq!(first_data(&zeros), None);
            assert_eq!(first_difference(&zeros, &zeros), None);
            for at in [0, 1, 63, 64, 511, 512, len / 2, len - 1] {
                let at = at.min(len - 1);
                let mut other = zeros.clone();
                other[at] = 0x10;
                if let Some(last) = other.last_mut() {
                    *last |= 1;
                }
                let sector = Some((at / 512 * 512) as u64);
                assert_eq!(first_data(&other), sector, "{at} of {len}");
                assert_eq!(first_difference(&zeros, &other), sector);
                assert_eq!(first_difference(&other, &zeros), sector);
            }
        }
    }
}
