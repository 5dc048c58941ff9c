//! Guest data written into an existing qcow2 image.
//!
//! A [`WriteImage`] takes writes at any offset and length. Data goes to the file at once; what tables have to say of it
//! is collected and written by [`WriteImage::commit`], or earlier when it takes too much memory. A crash leaves of
//! each sector that was written the old or the new content, everything else as it was, and leaked clusters at
//! worst.
//!
//! The order of a commit:
//!
//! 1. refcount blocks that are new, flush, their entries in the refcount table; or a new refcount table, flush, the
//!    header that names it, flush;
//! 2. refcounts that rise, and L2 tables that are new; flush: data and copies that were written before are durable,
//!    too;
//! 3. entries of L2 tables and of the L1 table that lead there; flush;
//! 4. refcounts of what is not referred to any more fall.
//!
//! A cluster that is freed is not given again before step 3 is durable.
//!
//! Data comes in four ways: [`WriteImage::write_at`] writes it; [`WriteImage::place`] says where the caller writes it
//! itself, overlapped with other requests and before the next commit; [`WriteImage::reserve`] does that too, and the tables
//! name the place when [`WriteImage::link`] says that the data is there, whatever is committed meanwhile;
//! [`WriteImage::zeros`] has the tables say it.
//!
//! Bitmaps that record writes are marked as in use before the first write. [`WriteImage::finish`] records what was
//! written and takes the mark off. Other programs call what is marked inconsistent.
//!
//! Data of an encrypted image is enciphered by the [`instar_storage::Cipher`] that the image was opened with.
//!
//! Modules: `image` (writes), `place` (places, zeros), `pending` (places of data on its way), `runs` (where the disk's
//! bytes are), `mapping` (L2 entries), `tables` (L1 and L2 tables), `counts`
//! (refcounts), `header` (its fields), `record` (bitmaps), `sorted` (maps).
//!
//! Memory: the L1 table and the refcount table, [`CACHE_BYTES`] of L2 tables and refcount blocks each or four of
//! them, two clusters.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod below;
mod counts;
mod header;
mod image;
mod mapping;
mod pending;
mod place;
mod record;
mod runs;
mod sorted;
mod tables;

pub use below::{Below, NothingBelow};
pub use image::WriteImage;
pub use pending::Pending;
pub use place::Placed;
pub use runs::{TopKind, TopRun};

use instar_layers::DataError;
use instar_plan_txn::TxnError;
use instar_storage::{Errno, StorageError};

/// Bytes of L2 tables, and of refcount blocks, that stay in memory.
pub const CACHE_BYTES: u64 = 4 << 20;

/// Why data was not written. `Display` is the text of the errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The store failed.
    #[error("{}", Errno(.0.errno))]
    Storage(#[from] StorageError),
    /// Past the end of the disk.
    #[error("Input/output error")]
    PastEnd,
    /// The image's metadata contradicts itself.
    #[error("Input/output error")]
    Corrupt {
        /// What is wrong, in a few words.
        what: &'static str,
    },
    /// What a cluster held before cannot be read.
    #[error("{}", Errno(*errno))]
    OldData {
        /// The errno (Linux numbering).
        errno: u32,
    },
    /// The file, or a table in it, would pass a limit of the format.
    #[error("File too large")]
    TooLarge,
    /// No memory.
    #[error("Cannot allocate memory")]
    OutOfMemory,
    /// The image is encrypted and there is no cipher, or the other way round.
    #[error("Operation not supported")]
    Encrypted,
    /// The image cannot hold that: compressed data beside a data file.
    #[error("Operation not supported")]
    NotSupported,
    /// There is something where compressed data should go.
    #[error("Input/output error")]
    Occupied,
}

impl WriteError {
    /// The errno (Linux numbering) that stands for it.
    #[must_use]
    pub const fn errno(&self) -> u32 {
        match self {
            Self::Storage(e) => e.errno,
            Self::PastEnd | Self::Corrupt { .. } | Self::Occupied => 5,
            Self::OldData { errno } => *errno,
            Self::TooLarge => 27,
            Self::OutOfMemory => 12,
            Self::Encrypted | Self::NotSupported => 95,
        }
    }
}

impl From<TxnError> for WriteError {
    fn from(error: TxnError) -> Self {
        match error {
            TxnError::Storage(e) => Self::Storage(e),
            TxnError::OutOfMemory => Self::OutOfMemory,
            TxnError::Corrupt { what } => Self::Corrupt { what },
            TxnError::Cancelled | TxnError::RefcountOverflow { .. } => {
                Self::Corrupt { what: "refcount" }
            }
            TxnError::TooLarge | TxnError::HeaderFull => Self::TooLarge,
        }
    }
}

impl From<DataError> for WriteError {
    fn from(error: DataError) -> Self {
        Self::OldData {
            errno: error.errno(),
        }
    }
}

/// `len` zero bytes.
fn zeroed(len: u64) -> Result<alloc::vec::Vec<u8>, WriteError> {
    let len = usize::try_from(len).map_err(|_| WriteError::OutOfMemory)?;
    let mut bytes = alloc::vec::Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| WriteError::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}
