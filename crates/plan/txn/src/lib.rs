//! A change of a qcow2 image's metadata as one transaction.
//!
//! **Invariant.** At every moment, whatever was written so far and in whatever
//! order it reached the disk, the image is the old one or the new one, complete
//! and consistent: a check finds neither damage nor leak in it that was not
//! there before.
//!
//! **How.** A [`Transaction`] writes only clusters that the old state does not
//! use. Every structure that changes, refcount blocks and the refcount table
//! included, is written beside the old one. The header's first sector names them
//! all: L1 table, refcount table, snapshot table, sizes, feature bits, refcount
//! width. So the order is
//!
//! 1. new clusters, in any order; the file grows if need be;
//! 2. flush;
//! 3. the header's first sector: the *commit point*, 512 bytes, which do not tear;
//! 4. flush;
//! 5. what is not needed any more is given back to the host.
//!
//! Where the copies would make the file noticeably longer, they are put past its
//! end, and a second step of the same kind moves them down into the clusters that
//! the first one freed (`settle`); refcount structures return to where they were,
//! of which only the sectors that differ are written. The file is then cut.
//!
//! Names and extensions behind the first sector of the header are written before
//! it where the old area ends before them, or changed in steps of which each is a
//! whole sector (`header_write`).
//!
//! Modules: `transaction` (what planners build), `commit`, `refcounts`, `block` and `space` (refcounts and free
//! clusters of the new state), `tables` (L1, L2), `snapshots` (their table), `recent` (what was written a moment
//! ago), `header_write`, `settle`.
//!
//! Memory: the refcount table, at most 8 MiB; an L1 table, at most 32 MiB;
//! refcount blocks in a cache of bounded size; one batch of writes, and half a
//! MiB of the one before.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod block;
mod commit;
mod header_write;
mod recent;
mod refcounts;
mod settle;
mod snapshots;
mod space;
mod tables;
mod transaction;

pub use header_write::write_header;
pub use snapshots::SnapshotEntry;
pub use tables::{TableVisitor, for_each_l2, read_l1, references};
pub use transaction::{Footprint, Transaction};

use instar_storage::{Errno, StorageError, Write};

/// The user, or the host on its behalf, wants the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// What a change asks of its surroundings.
pub trait Monitor {
    /// Work done so far, of `total`; the units are the caller's.
    ///
    /// # Errors
    /// [`Cancelled`]: nothing is to be switched any more.
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled>;

    /// Asks for `bytes` of working memory before they are allocated; gives how
    /// much may be used. A transaction takes 4 MiB in any case.
    fn grant(&mut self, bytes: u64) -> u64;
}

/// Why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// The store failed.
    #[error("{}", Errno(.0.errno))]
    Storage(#[from] StorageError),
    /// The monitor asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// No memory.
    #[error("Cannot allocate memory")]
    OutOfMemory,
    /// A refcount would not fit its width.
    #[error("Invalid argument")]
    RefcountOverflow {
        /// The cluster's index.
        cluster: u64,
    },
    /// The image's metadata contradicts itself.
    #[error("Input/output error")]
    Corrupt {
        /// What is wrong, in a few words.
        what: &'static str,
    },
    /// The file, or a table in it, would pass a limit of the format.
    #[error("File too large")]
    TooLarge,
    /// The header's cluster cannot hold all extensions and names.
    #[error("No space left on device")]
    HeaderFull,
}

impl TxnError {
    /// The errno (Linux numbering) that stands for it.
    #[must_use]
    pub const fn errno(&self) -> u32 {
        match self {
            Self::Storage(e) => e.errno,
            Self::Cancelled => 125,
            Self::OutOfMemory => 12,
            Self::RefcountOverflow { .. } => 22,
            Self::Corrupt { .. } => 5,
            Self::TooLarge => 27,
            Self::HeaderFull => 28,
        }
    }
}

impl From<Cancelled> for TxnError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// `len` zero bytes.
pub(crate) fn zeroed(len: u64) -> Result<alloc::vec::Vec<u8>, TxnError> {
    let len = usize::try_from(len).map_err(|_| TxnError::OutOfMemory)?;
    let mut bytes = alloc::vec::Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| TxnError::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// The write of `bytes` at `offset`, without the zeros at their end where everything from `zeros_from` on is zeros
/// already; `None` if nothing is left.
pub(crate) fn without_zeros(offset: u64, bytes: &[u8], zeros_from: u64) -> Option<Write<'_>> {
    let end = if offset >= zeros_from {
        nonzero_end(bytes).next_multiple_of(512).min(bytes.len())
    } else {
        bytes.len()
    };
    let buf = bytes.get(..end).filter(|buf| !buf.is_empty())?;
    Some(Write { offset, buf })
}

/// How many bytes there are up to the last that is not 0.
pub(crate) fn nonzero_end(bytes: &[u8]) -> usize {
    let (words, tail) = bytes.as_chunks::<64>();
    if let Some(at) = tail.iter().rposition(|byte| *byte != 0) {
        return bytes
            .len()
            .saturating_sub(tail.len())
            .saturating_add(at)
            .saturating_add(1);
    }
    let used = words
        .iter()
        .rposition(|word| word.iter().fold(0, |all, byte| all | *byte) != 0);
    let Some((used, word)) = used.and_then(|at| Some((at, words.get(at)?))) else {
        return 0;
    };
    let last = word.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    used.saturating_mul(64)
        .saturating_add(last)
        .saturating_add(1)
}

#[cfg(test)]
mod tests;
