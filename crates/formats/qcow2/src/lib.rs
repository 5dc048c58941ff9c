//! The qcow2 format, for code that holds an untrusted image.
//!
//! Everything here reads or encodes; what is written when is the planners'. The code is generic over
//! [`instar_storage::Storage`], allocates only up to named caps that are checked
//! before each allocation, and answers every damaged image with a value. The
//! format is the one that QEMU's `docs/interop/qcow2.txt` specifies, versions 2
//! and 3; headings of that text are quoted as `qcow2 "Heading"`.
//!
//! Modules, from the bytes up:
//! - [`units`]: guest offset, host offset and cluster index, kept apart.
//! - [`header`]: the header, its checks and the texts of the refusals.
//! - [`extensions`]: header extensions.
//! - [`entries`]: L1, L2 and refcount table entries.
//! - [`refcount`]: refcounts of every width.
//! - [`snapshot`]: the snapshot table.
//! - [`bitmaps`]: the bitmap directory.
//! - [`info`]: what a user is shown of an image.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

/// Asserts at compile time where each field of a wire struct lies.
macro_rules! wire_layout {
    ($t:ty, size = $size:literal, { $($f:ident @ $off:literal),+ $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$t>() == $size);
            assert!(core::mem::align_of::<$t>() == 1);
            $(assert!(core::mem::offset_of!($t, $f) == $off);)+
        };
    };
}

pub mod bitmaps;
pub mod entries;
pub mod extensions;
pub mod header;
pub mod info;
pub mod refcount;
pub mod snapshot;
#[cfg(test)]
mod test_image;
pub mod units;
mod window;

pub use header::{Header, OpenError, OpenMode};
pub use info::ImageInfo;
pub use units::{ClusterBits, ClusterIndex, GuestOffset, HostOffset};

/// Bits `lo` to `hi`, both included, as the specification prints ranges.
///
/// Gives 0 for a range that is empty or does not fit 64 bits.
pub const fn bits(lo: u32, hi: u32) -> u64 {
    if lo > hi || hi > 63 {
        return 0;
    }
    let below_hi = if hi == 63 {
        u64::MAX
    } else {
        (2_u64 << hi).wrapping_sub(1)
    };
    below_hi & !((1_u64 << lo).wrapping_sub(1))
}

#[cfg(test)]
mod tests {
    use super::bits;

    #[test]
    fn bits_includes_both_ends() {
        assert_eq!(bits(0, 0), 1);
        assert_eq!(bits(0, 8), 0x1ff);
        assert_eq!(bits(56, 62), 0x7f00_0000_0000_0000);
        assert_eq!(bits(0, 63), u64::MAX);
        assert_eq!(bits(63, 63), 1 << 63);
        assert_eq!(bits(5, 4), 0);
        assert_eq!(bits(0, 64), 0);
    }
}
