//! Entries of the grown part, and the arithmetic of new sizes.

use crate::layout::{self, Entry, Runs};
use crate::request::target;
use crate::{NewSize, Preallocation, Request, ResizeError};
use alloc::vec;
use instar_qcow2::entries::{ALL_ZEROS, COPIED};

const EIB: u64 = 1 << 60;

fn judge(size: NewSize, old_size: u64) -> Result<u64, ResizeError> {
    let request = Request {
        size,
        preallocation: Preallocation::Off,
        shrink: true,
    };
    target(&request, old_size)
}

#[test]
fn sizes_wrap_as_64_signed_bits() {
    let not_positive = Err(ResizeError::NotPositive);
    assert_eq!(judge(NewSize::Grow(8 * EIB), 512), not_positive);
    assert_eq!(judge(NewSize::Shrink(512), 512), not_positive);
    assert_eq!(judge(NewSize::Shrink(9 * EIB), 512), Ok(7 * EIB + 512));
    assert_eq!(judge(NewSize::Grow(512), 512), Ok(1024));
    let size = 8 * EIB - 1;
    let too_large = Err(ResizeError::ExceedsMaximum { size });
    assert_eq!(judge(NewSize::Absolute(size), 512), too_large);
}

#[test]
fn runs_are_joined_and_taken_in_order() {
    let mut runs = Runs::default();
    runs.push(5, 2);
    runs.push(7, 1);
    runs.push(20, 1);
    assert_eq!(runs.all(), [(5, 3), (20, 1)]);
    let taken: vec::Vec<u64> = core::iter::from_fn(|| runs.take()).collect();
    assert_eq!(taken, [5, 6, 7, 20]);
}

#[test]
fn entries_hide_the_backing_file_only_where_it_shows() {
    assert_eq!(layout::zero(false), Entry(ALL_ZEROS, 0));
    assert_eq!(layout::zero(true), Entry(0, 0xffff_ffff_0000_0000));
    let place = 0x5_0000;
    assert_eq!(
        layout::metadata(false, place, false),
        Entry(place | COPIED, 0)
    );
    assert_eq!(
        layout::metadata(false, place, true),
        Entry(place | COPIED | 1, 0)
    );
    assert_eq!(
        layout::data(true, place, true),
        Entry(place | COPIED, 0xffff_ffff)
    );
    assert_eq!(layout::data(true, place, false), Entry(place | COPIED, 0));
}
