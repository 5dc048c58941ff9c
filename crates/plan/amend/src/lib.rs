//! A change of a qcow2 image's options, as `qemu-img amend` makes it: version,
//! refcount width, lazy refcounts, names, size.
//!
//! [`amend`] does all that a [`Request`] asks for, or nothing of it. The order of
//! the checks, and so which of several errors is reported, is that of
//! `qemu-img` 10.0, and the text of each [`AmendError`] is the one that it prints:
//! data file, data file raw, refcount width; then version 3 and refcounts; then
//! backing file, lazy refcounts, size; version 2 comes last.
//!
//! **Order of writes and commit point.** One [`Transaction`]: new refcount
//! structures, tables and data clusters in clusters that the old state does not
//! use, flush, the header's first sector, flush. So a crash leaves the old image
//! or the new one, complete. If only fields, names and feature bits change, the
//! header area alone is written ([`instar_plan_txn::write_header`]); its commit
//! point is the same sector. What fails before that point leaves the old image.
//!
//! `data_file` without a name is a commit of its own: everything else first, then
//! the name goes. A new size of an external data file: it grows before the commit
//! and shrinks after it ([`instar_plan_resize`]).
//!
//! **The one exception to "beside the old".** Version 2 has no zero flag, so a
//! cluster that reads as zeros by its flag though it is allocated gets zeros as
//! its data, in place, before the commit. The old state does not read that data:
//! every entry that refers to the cluster has the flag. A cluster of which this
//! is not true, because a snapshot uses its data, stays as it is, and the entries
//! with the flag get a cluster of their own.
//!
//! **What version 2 cannot hold.** Bitmaps: their clusters are freed with the
//! same commit. Zeros in an encrypted image with a backing file, which would have
//! to be encrypted: refused. Zstandard clusters, also those that only a snapshot
//! has, extended L2 entries and external data files: refused.
//!
//! Modules: `options` (checks that need no more than the header), `change` (the
//! transaction), `downgrade` (version 3 to 2), `zeros` (zero clusters to data clusters), `tables` (all L2
//! tables and how often each is referred to), `metadata` (clusters that hold no
//! guest data), `bitmaps` (giving them up), `size` (another size, in programs that have the code
//! for it).
//!
//! Memory: what a transaction takes, two L1 tables, 2 MiB of L2 tables; for
//! version 2, about 64 bytes for each L2 table of the image and for each
//! allocated zero cluster that is shared, asked for before it is used.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bitmaps;
mod change;
mod downgrade;
mod metadata;
mod options;
mod size;
mod tables;
mod zeros;

pub use instar_plan_resize::{Image, Layer};

use change::Wanted;
use instar_plan_resize::ResizeError;
use instar_plan_txn::{Monitor, TxnError};
use instar_qcow2::Header;
use instar_storage::{Errno, StorageMut};
use size::{Kept, Size};

/// What is to change; `None`: stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Virtual size in bytes, any number; 0 stands for the size that it has.
    pub size: Option<u64>,
    /// 2 or 3.
    pub version: Option<u32>,
    /// Backing file name: has to be the one that the image has.
    pub backing_file: Option<&'a [u8]>,
    /// Backing format: has to be the one that the image has.
    pub backing_format: Option<&'a [u8]>,
    /// Name of the external data file; empty for none.
    pub data_file: Option<&'a [u8]>,
    /// The data file can be read as a raw image.
    pub data_file_raw: Option<bool>,
    /// Refcount updates may be postponed.
    pub lazy_refcounts: Option<bool>,
    /// Width of a refcount in bits, any number.
    pub refcount_bits: Option<u32>,
}

/// Why nothing was changed. `Display` is `qemu-img`'s text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmendError {
    /// A name for a data file that the image does not have.
    #[error("data-file can only be set for images that use an external data file")]
    NoDataFile,
    /// The data file may differ from a raw image already.
    #[error("data-file-raw cannot be set on existing images")]
    DataFileRaw,
    /// Not 1, 2, 4, 8, 16, 32 or 64.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Version 2 has refcounts of 16 bits.
    #[error(
        "Refcount widths other than 16 bits require compatibility level 1.1 or above \
         (use compat=1.1 or greater)"
    )]
    RefcountBitsInVersion2,
    /// A refcount in use does not fit.
    #[error(
        "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {offset:#x} \
         has a refcount of {refcount}"
    )]
    RefcountTooLarge {
        /// The width asked for.
        bits: u32,
        /// Host offset of the first such cluster.
        offset: u64,
        /// Its refcount.
        refcount: u64,
    },
    /// The backing file is not to be changed this way.
    #[error("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.")]
    BackingFile,
    /// Version 2 has no lazy refcounts.
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above \
         (use compat=1.1 or greater)"
    )]
    LazyRefcountsInVersion2,
    /// A size of 2^63 or more.
    #[error("Image size cannot be negative")]
    NegativeSize,
    /// Another size was asked of [`amend_keeping_size`].
    #[error("the size cannot be changed along with it")]
    SizeIsKept,
    /// The size could not be changed.
    #[error("{0}")]
    Resize(ResizeError),
    /// Version 2 has refcounts of 16 bits, and the image has others.
    #[error("compat=0.10 requires refcount_bits=16")]
    DowngradeRefcountBits,
    /// Version 2 has no external data files.
    #[error("Cannot downgrade an image with a data file")]
    DowngradeDataFile,
    /// A snapshot's disk or VM state has a size that version 2 cannot express.
    #[error("Internal snapshots prevent downgrade of image")]
    DowngradeSnapshots,
    /// Version 2 has no feature bits.
    #[error("Cannot downgrade an image with incompatible features {bits:#x} set")]
    DowngradeFeatures {
        /// Those that stand in the way.
        bits: u64,
    },
    /// Version 2 has deflate only.
    #[error(
        "Cannot downgrade an image with zstd compression type and existing compressed clusters"
    )]
    DowngradeZstd,
    /// Zeros would have to be encrypted. QEMU stores them in the clear, which damages the disk.
    #[error(
        "Failed to turn zero into data clusters: the image is encrypted, and its zeros hide the data \
         of a backing file"
    )]
    DowngradeEncryptedZeros,
    /// Zero clusters could not become data clusters.
    #[error("Failed to turn zero into data clusters: {}", Errno(.0.errno()))]
    Zeros(#[source] TxnError),
    /// Refcounts of the new width could not be written.
    #[error("Failed to write refblock: {}", Errno(.0.errno()))]
    Refcounts(#[source] TxnError),
    /// The header could not be written.
    #[error("Failed to update the image header: {}", Errno(.0.errno()))]
    Header(#[source] TxnError),
    /// The monitor asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// No memory.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

impl AmendError {
    /// Says of an error of the transaction in which step it came up.
    fn in_step(step: fn(TxnError) -> Self) -> impl Fn(TxnError) -> Self {
        move |e| match e {
            TxnError::Cancelled => Self::Cancelled,
            TxnError::OutOfMemory => Self::OutOfMemory,
            e => step(e),
        }
    }
}

impl From<ResizeError> for AmendError {
    fn from(e: ResizeError) -> Self {
        match e {
            ResizeError::Cancelled => Self::Cancelled,
            ResizeError::OutOfMemory => Self::OutOfMemory,
            e => Self::Resize(e),
        }
    }
}

/// Judges the values of the options as far as `qemu-img` does before it changes anything.
///
/// # Errors
/// The first that the image cannot have.
pub fn check(header: &Header, request: &Request<'_>) -> Result<(), AmendError> {
    options::check(header, request).map(|_| ())
}

/// Changes the options of `image`, whose header was read for a change. `below` is its backing chain, the
/// nearest first; empty if it has none.
///
/// Returns the header as it is on the disk now.
///
/// # Errors
/// [`AmendError`]: nothing has changed, unless the store failed at a commit itself; then the image is in one of
/// the states that the crate's documentation names.
pub fn amend<S: StorageMut>(
    image: Image<'_, S>,
    below: &[Layer<'_, S>],
    request: &Request<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Header, AmendError> {
    amend_by::<S, instar_plan_resize::Change<'_, S>>(image, below, request, monitor)
}

/// As [`amend`], for a program without the code for another size: a request for one is refused.
///
/// # Errors
/// As [`amend`]; [`AmendError::SizeIsKept`].
pub fn amend_keeping_size<S: StorageMut>(
    image: Image<'_, S>,
    request: &Request<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Header, AmendError> {
    amend_by::<S, Kept>(image, &[], request, monitor)
}

fn amend_by<'a, S: StorageMut, Z: Size<'a, S>>(
    image: Image<'a, S>,
    below: &[Layer<'a, S>],
    request: &Request<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Header, AmendError> {
    let wanted = Wanted {
        request: *request,
        changes: options::check(image.header, request)?,
    };
    let header = change::change::<S, Z>(image, below, &wanted, monitor)?;
    if request.data_file == Some(b"") && header.extensions.data_file_name.is_some() {
        return change::remove_data_file_name(image.storage, &header)
            .map_err(AmendError::in_step(AmendError::Header));
    }
    Ok(header)
}
