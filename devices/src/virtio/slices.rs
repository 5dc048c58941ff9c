//! Guest buffers as memory that a backend reads or writes in place.

use super::{DeviceFault, GuestBuffer, Memory};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

/// The memory of `buffers`.
///
/// # Errors
/// [`DeviceFault::Memory`].
pub fn of<'m>(
    mem: &'m Memory,
    buffers: &[GuestBuffer],
) -> Result<Vec<VolatileSlice<'m>>, DeviceFault> {
    let slice = |buffer: &GuestBuffer| mem.get_slice(buffer.addr, buffer.len as usize);
    let slices: Result<_, _> = buffers.iter().map(slice).collect();
    slices.map_err(|_| DeviceFault::Memory)
}

/// Bytes in all.
#[must_use]
pub fn len(slices: &[VolatileSlice<'_>]) -> usize {
    slices
        .iter()
        .fold(0, |sum, slice| sum.saturating_add(slice.len()))
}

/// The first `n` bytes, or all if there are fewer.
#[must_use]
pub fn front<'m>(slices: &[VolatileSlice<'m>], n: usize) -> Vec<VolatileSlice<'m>> {
    let mut left = n;
    let mut cut = |slice: &VolatileSlice<'m>| {
        let here = left.min(slice.len());
        left = left.saturating_sub(here);
        slice.subslice(0, here).ok().filter(|_| here > 0)
    };
    slices.iter().map_while(&mut cut).collect()
}

/// What follows the first `n` bytes.
#[must_use]
pub fn after<'m>(slices: &[VolatileSlice<'m>], n: usize) -> Vec<VolatileSlice<'m>> {
    let mut left = n;
    let mut cut = |slice: &VolatileSlice<'m>| {
        let here = left.min(slice.len());
        left = left.saturating_sub(here);
        slice.offset(here).ok().filter(|rest| !rest.is_empty())
    };
    slices.iter().filter_map(&mut cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fall_inside_and_between_slices() {
        let (mut a, mut b, mut c) = ([1_u8, 2, 3], [4_u8], [5_u8, 6]);
        let slices = [
            (&mut a[..]).into(),
            (&mut b[..]).into(),
            (&mut c[..]).into(),
        ];
        let bytes = |slices: Vec<VolatileSlice<'_>>| {
            let mut all = Vec::new();
            for slice in slices {
                assert!(!slice.is_empty());
                let mut part = vec![0_u8; slice.len()];
                slice.copy_to(&mut part);
                all.extend(part);
            }
            all
        };
        assert_eq!(len(&slices), 6);
        for n in 0..9 {
            let cut = n.min(6);
            let all = [1, 2, 3, 4, 5, 6];
            assert_eq!(bytes(front(&slices, n)), all[..cut]);
            assert_eq!(bytes(after(&slices, n)), all[cut..]);
        }
    }
}
