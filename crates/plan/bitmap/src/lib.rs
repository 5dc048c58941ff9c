//! Changes of the bitmaps of a qcow2 image: add, remove, clear, enable, disable, merge.
//!
//! [`change`] does the actions of one command, all of them on one bitmap, in their order, and stops at the
//! first that cannot be done. What the actions before it did stays, as with `qemu-img` 10.0.
//!
//! **Order and commit point.** The actions are judged first; nothing is written for that. What is left of them
//! is one [`Transaction`]:
//!
//! 1. new bitmap clusters, the new bitmap table, the new bitmap directory, new refcounts, all in clusters that
//!    the image does not use;
//! 2. the header's first sector, which names the directory: the commit point;
//! 3. clusters of the old directory, table and data are given back.
//!
//! **Invariant.** Before the commit point the image is the old one, after it the new one; a crash leaves one of
//! them, without leak. One directory serves all bitmaps, so a bitmap that the command does not name is carried
//! over with its table and clusters as they are.
//!
//! **Clusters that are freed** are those of the named bitmap and of the old directory. A bitmap in use may be
//! damaged: if its table has an entry that QEMU does not take, or one of its clusters is also the header's, the
//! refcount structures', an L1 or L2 table's or the snapshot table's, nothing of it is freed; nor is a cluster with
//! more than one reference. It leaks, as it does with `qemu-img`, and the next check finds it.
//!
//! **Memory.** The directory twice (64 MiB at most, as QEMU's limits are), the bitmap table (8 MiB at most), 8
//! bytes for each cluster that is freed, two bitmap clusters, 4 MiB for merge sources. Bits are never held as a
//! whole.
//!
//! Modules: `actions` (what a command asks for), `report` (how it ended, in `qemu-img`'s words), `directory`,
//! `commit` (the transaction), `merge`, `reader` (a merge source), `span` (runs of bits), `guard` (what must not
//! be freed).
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod actions;
mod commit;
mod directory;
mod guard;
mod merge;
mod reader;
mod report;
mod span;

pub use actions::{Action, Request, SourceImage};
pub use report::{ActionError, ChangeError, Lost, Reason, Report};

#[cfg(doc)]
use instar_plan_txn::Transaction;
use instar_plan_txn::{Monitor, TxnError};
use instar_qcow2::Header;
use instar_storage::{Storage, StorageMut};

/// Does the actions of `request` to the image in `storage`, whose `header` was read for a change.
///
/// A header whose bitmaps extension is not to be trusted, or with unknown autoclear bits, is written without
/// them in any case, as by every program that opens an image for writing.
///
/// # Errors
/// [`ChangeError`]: the store failed, memory ran out or the monitor asked for the end, and nothing was changed.
/// An action that cannot be done is in the [`Report`] instead.
pub fn change<S: StorageMut, T: Storage>(
    storage: &S,
    header: &Header,
    source: &SourceImage<'_, T>,
    request: &Request<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Report, ChangeError> {
    let failed = |error: TxnError| ChangeError::new(request.name, error);
    let judged = actions::judge(storage, header, source, request).map_err(failed)?;
    let mut report = Report {
        failed: judged.failed,
        lost: None,
    };
    let mut wanted = judged.wanted;
    if header.whole_sectors_size() == 0 && wanted.needs_table() {
        // A bitmap of no bits has no table, which QEMU cannot store.
        wanted.now = None;
        report.lost = Some(Lost::NoTable);
    }
    match commit::commit(storage, header, source, &wanted, request.name, monitor) {
        Ok(()) => Ok(report),
        Err(TxnError::HeaderFull) => {
            report.lost = Some(Lost::HeaderFull);
            Ok(report)
        }
        Err(e) => Err(failed(e)),
    }
}

/// What the actions of `request` come to for an image that is not qcow2: it has no bitmaps, and can hold none.
#[must_use]
pub fn refuse_raw(request: &Request<'_>) -> Report {
    Report {
        failed: actions::judge_raw(request),
        lost: None,
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
