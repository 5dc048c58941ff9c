//! Raw images and the probe for headers of other formats.
//!
//! A raw image has no header: its bytes are the disk. [`probe`] tells from a
//! file's first bytes what `qemu-img` would take it for, so that a caller can
//! open qcow2, treat a file without a known signature as raw, and name the rest.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod probe;

pub use probe::{ImageFormat, PROBE_BYTES, TRAILER_BYTES, probe, probe_trailer};

/// Bytes of a sector.
pub const SECTOR_BYTES: u64 = 512;

/// A raw image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawInfo {
    /// Length of the file in bytes.
    pub file_length: u64,
}

impl RawInfo {
    /// An image in a file of `file_length` bytes.
    pub const fn new(file_length: u64) -> Self {
        Self { file_length }
    }

    /// The virtual size in bytes as `qemu-img` shows it: the file's length
    /// rounded up to whole sectors. A length within 511 bytes of 2^64 is cut.
    pub const fn virtual_size(&self) -> u64 {
        match self.file_length.checked_next_multiple_of(SECTOR_BYTES) {
            Some(size) => size,
            None => !(SECTOR_BYTES.saturating_sub(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_size_is_rounded_up_to_sectors() {
        let size = |len| RawInfo::new(len).virtual_size();
        assert_eq!(
            (size(0), size(1), size(512), size(513)),
            (0, 512, 512, 1024)
        );
        assert_eq!(size(u64::MAX), u64::MAX - 511);
    }
}
