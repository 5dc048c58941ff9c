//! The LUKS1 header as it stands inside qcow2 images.
//!
//! LUKS1 On-Disk Format Specification 1.2.3, "PHDR". The header is read and
//! judged, nothing is decrypted. The checks, their order and the texts of
//! [`LuksError`] are those that `qemu-img` 10.0 shows.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod cipher;
mod error;
mod header;

pub use cipher::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator};
pub use error::LuksError;
pub use header::{HEADER_BYTES, KEY_SLOTS, KeySlot, LuksInfo, RawKeySlot, RawLuksHeader, STRIPES};
