//! Repair of a qcow2 image: `check -r leaks` and `check -r all`.
//!
//! [`repair`] checks an image as `instar_plan_check` does, changes what is
//! wrong and determined by the rest of the metadata, and checks again.
//!
//! # What is repaired
//! [`Mode::Leaks`] lowers refcounts that are above the number of references.
//! [`Mode::All`] also
//! - raises refcounts that are too low,
//! - writes refcount blocks and table anew where they are beyond patching: not
//!   aligned, outside the file, used twice or by something else, missing,
//! - puts COPIED flags right, takes them off compressed clusters, and drops
//!   unaligned offsets of clusters that read as zeros anyway,
//! - puts the snapshot table right: extra data that is too long or missing,
//!   snapshots past QEMU's limits, the offset of a table where there are no snapshots,
//! - takes the marks "dirty" and "corrupt" off an image without errors.
//!
//! # What is not
//! Where the metadata does not say which of two things is right, both stay as
//! they are, the check goes on to tell the error, and the exit code says so:
//! entries that point outside the file or have reserved bits; unaligned data
//! clusters; corrupt subcluster bitmaps; snapshots whose L1 table cannot be
//! found; tables in whose clusters there is something else (such a cluster's
//! refcount is not raised, and the tables in it are not written). While a part of
//! the references cannot be counted, no refcount is lowered. Where the header's
//! cluster is something else too, a change of the header would change that: only
//! leaks are repaired. Refcount structures are not rebuilt where the file would
//! have to grow far over places outside it that have references.
//!
//! # Order of writes, and what a crash leaves
//! Data of the guest, active or of a snapshot, is the same at any moment.
//! 1. Version 3, unless there is nothing but leaks: the corrupt bit is set; flush.
//! 2. Refcounts that can be patched are written to their blocks; flush. Each is
//!    the old or the right one, in any order. If nothing else was wrong, clusters
//!    that are free now are then given back to the host.
//! 3. Or, if blocks or table are beyond patching: new ones, and a new snapshot
//!    table if that is wrong too, are written to clusters that neither the old
//!    structures nor anything else is in; flush; one write of the header's first
//!    sector makes them valid; flush. Where this has made the file longer, they are
//!    moved into lower clusters that are free now, as in the next step.
//!    Otherwise, if blocks speak of enough free clusters, a new snapshot table is
//!    written to the lowest of them: the file grows if need be; flush; they are
//!    given refcounts where the blocks are; the table is written; flush; the
//!    header's first sector names it; flush; the refcounts of the old one become 0.
//! 4. Flags of L1 and L2 entries are written where they are; flush. A refcount is
//!    right before the flag that depends on it.
//! 5. If step 3 has made more repairs possible, such as of flags in a table whose
//!    cluster an old refcount block was in, it is all done again, at most three times.
//! 6. The image is checked again. Without errors, the marks are cleared; flush.
//!
//! So a repair that was cut short has repaired a part, and version 3 says that it
//! is not done. It can be run again at any time.
//!
//! # Memory
//! The check's counters, in windows if the grant does not hold them; the refcount
//! table, at most 8 MiB twice; lists with caps of a few MiB.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod copied;
mod job;
mod patch;
mod places;
mod rebuild;
mod snapshots;
mod space;
mod table;

pub use instar_plan_check::{Cancelled, CheckError, CheckSummary, MessageKind, Reporter};
use instar_qcow2::Header;
use instar_storage::StorageMut;
use job::Job;

/// What may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Refcounts that are too high, and COPIED flags of an image without other errors.
    Leaks,
    /// Whatever the metadata determines.
    All,
}

/// What a repair has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// The totals of what is left, by the last check.
    pub summary: CheckSummary,
    /// Damages that are gone.
    pub corruptions_fixed: u64,
    /// Leaked clusters that are free now.
    pub leaks_fixed: u64,
}

/// Checks the image in `storage` and repairs what `mode` says.
///
/// `header` was read for check. Lines go to the reporter as `qemu-img check -r`
/// words and orders them: the findings, what is repaired, and if something was
/// changed, the findings of the check after it.
///
/// # Errors
/// [`CheckError::Failed`] where the image cannot be checked, or a write failed:
/// what has been done by then stays, and version 3 images are marked corrupt.
pub fn repair<S: StorageMut>(
    storage: &S,
    header: &Header,
    mode: Mode,
    reporter: &mut impl Reporter,
) -> Result<Repaired, CheckError> {
    let mut job = Job::new(storage, header, mode);
    match header.refcount_order {
        0..=4 => job.all::<u16, _>(reporter),
        _ => job.all::<u64, _>(reporter),
    }
}

/// What QEMU does when it opens an image with the dirty bit for writing: all is
/// repaired as by [`Mode::All`], and told, but not checked again. Gives the
/// header as it is then, no longer dirty.
///
/// # Errors
/// As [`repair`].
pub fn repair_dirty<S: StorageMut>(
    storage: &S,
    header: &Header,
    reporter: &mut impl Reporter,
) -> Result<Header, CheckError> {
    let mut job = Job::new(storage, header, Mode::All);
    match header.refcount_order {
        0..=4 => job.work::<u16, _>(reporter)?,
        _ => job.work::<u64, _>(reporter)?,
    };
    job.no_longer_dirty();
    job.unmark(false)?;
    Ok(job.header)
}
