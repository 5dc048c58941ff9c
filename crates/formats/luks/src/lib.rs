//! LUKS1 volumes as they stand inside qcow2 images: header, keys, key slots.
//!
//! LUKS1 On-Disk Format Specification 1.2.3. The checks of a header, their order and the texts of [`LuksError`]
//! and [`KeyError`] are those that `qemu-img` 10.0 shows.
//!
//! Modules:
//! - `header`: the header's wire layout ("PHDR") and its checks; `cipher`: the names in it.
//! - `volume`: a header with its place, and how a password opens it.
//! - `af`: anti-forensic stripes of a key.
//! - `create`: a new volume; `calibrate`: how many iterations a password is worth.
//! - `slots`: adding and erasing keys of a volume that is there.
//!
//! A header's numbers are hostile: iterations are bounded by [`MAX_ITERATIONS`], what is read by the room that
//! the image sets aside for the header, memory by the largest key. Keys are overwritten when they are dropped, and
//! compared in constant time.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod af;
mod calibrate;
mod cipher;
mod create;
mod error;
mod header;
mod slots;
mod volume;

pub use calibrate::{Clock, iterations};
pub use create::{NewVolume, check_spec, create, payload_offset};
pub use error::{KeyError, LuksError};
pub use header::{HEADER_BYTES, KEY_SLOTS, KeySlot, LuksInfo, RawKeySlot, RawLuksHeader, STRIPES};
pub use instar_crypt::{CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvGenerator};
pub use slots::{Erase, NewKey, add_key, erase_slot, replace_key, slots_to_erase};
pub use volume::{LuksVolume, MAX_ITERATIONS, MasterKey};
