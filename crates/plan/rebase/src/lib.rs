//! An image put onto another backing file, as `qemu-img rebase` does it.
//!
//! [`copy_differences`] goes through the parts of the disk that the image leaves to its backing file and compares
//! what the old chain shows there with what the new one does. Where they differ, what the old one shows becomes the
//! image's own, in whole clusters (subclusters with extended L2 entries). [`set_backing`] then changes the names in
//! the header. Without the former, what is read through the image is what lies below the new name: the unsafe mode.
//!
//! **Crash safety.** What the copy writes is what is read there anyway, so the image shows the same before and after
//! every step of it; [`instar_plan_write`] keeps the image sound. It is durable before the header names the new
//! backing file, by one write of one sector ([`instar_plan_txn::write_header`]). A copy that was cut short is done
//! again by the next run, without the parts that are the image's own by then.
//!
//! What is the same bytes of the same file in both chains is not read ([`Chains::shared`]). Zeros are not read, nor
//! what the tables say is missing. The rest is read in windows of 2 MiB, some ahead, and written by requests that
//! overlap with the reads.
//!
//! Where the old chain ends before the disk does, zeros become entries of the tables; elsewhere they are written as
//! data, as `qemu-img` 10.0 was seen to do.
//!
//! Modules: `walk` (which parts have to be looked at), `window` (some of them, and their bytes), `judge` (which
//! units differ), `copy` (reads ahead and writes), `pack` (compressed clusters), `names` (the header), `error`.
//!
//! *Memory:* 12 buffers of 2 MiB, 8 MiB for parts of them, what [`instar_plan_write::WriteImage`] takes, and what
//! the chains do.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod copy;
mod error;
mod judge;
mod names;
mod pack;
mod walk;
mod window;

pub use copy::{Io, copy_differences};
pub use error::{RebaseError, Refusal};
pub use instar_plan_txn::{Cancelled, Monitor};
pub use names::{Backing, mark_corrupt, set_backing};
pub use walk::Chains;

use instar_qcow2::Header;
use instar_storage::Cipher;

/// Most bytes that a copy takes for its buffers.
pub const BUFFER_BYTES: u64 = (copy::BUFFERS as u64) * window::WINDOW_BYTES + copy::SPARE_BYTES;

/// The image that is rebased, open for a change.
#[derive(Debug)]
pub struct Image<'a, S> {
    /// Its file.
    pub storage: &'a S,
    /// Its external data file.
    pub data: Option<&'a S>,
    /// Its header.
    pub header: &'a Header,
    /// The cipher of its data, if that is encrypted.
    pub cipher: Option<&'static dyn Cipher>,
}

impl<S> Clone for Image<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Image<'_, S> {}
