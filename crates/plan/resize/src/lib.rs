//! Growing and shrinking qcow2 and raw images, as `qemu-img resize` does.
//!
//! **qcow2.** A growth for which the clusters of the L1 table have room, and zeros there, is one sector of the header:
//! the new size and number of entries. Everything else is one [`instar_plan_txn::Transaction`]. In order:
//!
//! 1. Into clusters that the old state does not use: reserved guest data, changed and
//!    new L2 tables, bitmap tables and directory, the L1 table. The last cluster of the
//!    old disk is overwritten in place only past the old size, where the old state has
//!    nothing to see. A data file that grows gets its new length.
//! 2. Flush; the data file first.
//! 3. The header's first sector: the commit point. It holds the new size, and names the
//!    new tables.
//! 4. Freed clusters are given back, and the file is cut. A data file that shrinks is
//!    cut last.
//!
//! *Invariant:* at every moment the image is the old one or the new one. *A crash* before
//! step 3 leaves the old image, perhaps in a file that is longer than need be; after it,
//! the new one.
//!
//! **raw.** Reserved space first, then nothing: the new length is the commit point.
//!
//! *Memory:* one L1 table, at most 32 MiB, and its copy; one L2 table; one bitmap table and
//! the bitmap directory, at most 64 MiB; what the transaction takes. It does not depend on
//! the size of the disk or on the number of clusters that are reserved.
//!
//! Modules: `request` (what is asked, and the checks of the new size), `raw`, `qcow2` (the
//! order of things), `grow` (a growth's steps), `layout` (which entries the new clusters get), `tables` (L2 tables
//! that grow), `head` (the last cluster of the old disk), `crop` (what lies past the new
//! size), `device` (files of a given length), `bitmaps`, `reserve` (space in bounded pieces), `content` (guest data read
//! through the backing chain).
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bitmaps;
mod content;
mod crop;
mod device;
mod error;
mod grow;
mod head;
mod layout;
mod qcow2;
mod raw;
mod request;
mod reserve;
mod tables;

pub use content::{Layer, Unpack, read_guest, unpack};
pub use error::{ReserveError, ResizeError, SHRINK_WARNING, Stage};
pub use qcow2::{Change, Image, Wish, resize_qcow2, resize_qcow2_to, resize_qcow2_unpacked};
pub use raw::resize_raw;
pub use request::{NewSize, Preallocation, Request, Resized};

#[cfg(test)]
mod tests;
