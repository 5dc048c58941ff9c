//! The qcow2 consistency check, report only.
//!
//! [`check`] counts how often each cluster of an image file is referred to, by
//! the L1 and L2 tables, the snapshots, the bitmaps, the LUKS header and the
//! refcount structures, and compares with the refcounts that the image stores.
//! Findings go to a [`Reporter`] as `qemu-img check` 10.0 words and orders them;
//! all of them belong on stderr. The totals come back in a [`CheckSummary`].
//!
//! Modules, in the order of the work:
//! - `stored`: refcounts that the image stores, at every width.
//! - `walk`, `l2`: L1 and L2 tables, active and of snapshots.
//! - `snapshots`, `bitmaps`: their tables.
//! - `refblocks`: the refcount table and its blocks.
//! - `compare`: references counted against refcounts stored.
//! - `copied`: the COPIED flags, looked at one by one only if the walk saw that
//!   one of them is wrong.
//! - `pages`, `counter`: refcounts in memory; `holes`: holes of the file.
//!
//! Memory: counters exist where the image has a reference or a refcount. If the
//! grant does not hold them all, the image is walked once per window of
//! clusters. Messages then come by window: overflows and refcount mismatches of
//! low clusters first. In one window the order is `qemu-img`'s.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bitmaps;
mod compare;
mod copied;
mod counter;
mod holes;
mod l2;
mod pages;
mod refblocks;
mod run;
mod snapshots;
mod stored;
mod walk;

/// The parts of a check, for the repair that follows one.
pub mod parts {
    pub use crate::counter::Counter;
    pub use crate::l2::Kind;
    pub use crate::pages::{PAGE_BITS, PAGE_CLUSTERS, Page, Pages};
    pub use crate::run::{Found, Out, Run, Span, What, zeroed};
}

use instar_qcow2::Header;
use instar_storage::Storage;
pub use run::QEMU_MAX_CLUSTERS;

/// How a line of diagnostics begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// The line as it is.
    Plain,
    /// The program's name, a colon and a space come first.
    Prefixed,
}

/// The user, or the host on its behalf, wants the check to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// Who is told what the check finds.
pub trait Reporter {
    /// One line of diagnostics for stderr, without the newline. Snapshot names
    /// are in it as the image has them, so it need not be UTF-8.
    fn message(&mut self, kind: MessageKind, line: &[u8]);

    /// Table entries done, of `total`. Both may grow when another pass is needed.
    ///
    /// # Errors
    /// [`Cancelled`] ends the check.
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled>;

    /// Asks for `bytes` of working memory before any of it is allocated. Gives
    /// how much may be used; with less, the check makes more passes. It takes
    /// the buffers for one L2 table, one refcount block and one page of counters
    /// in any case: at most 9 MiB.
    fn grant(&mut self, bytes: u64) -> u64;
}

/// Totals of a check that came to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckSummary {
    /// Damages: exit code 2 of `qemu-img check`.
    pub corruptions: u64,
    /// Clusters whose refcount is too high: exit code 3.
    pub leaks: u64,
    /// Clusters that could not be judged: exit code 1, after the summary.
    pub check_errors: u64,
    /// First byte after the last cluster in use.
    pub image_end_offset: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Guest clusters with data, compressed or not.
    pub allocated_clusters: u64,
    /// Guest clusters that are compressed.
    pub compressed_clusters: u64,
    /// Guest clusters whose data does not follow the one before.
    pub fragmented_clusters: u64,
    /// How many times the tables were walked: 1 unless memory was short.
    pub passes: u64,
}

/// Why there is no summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// `qemu-img` says `Check failed: ` and the errno's text, and exits 1.
    #[error("Check failed: {}", instar_storage::Errno(*errno))]
    Failed {
        /// Linux errno: 5 EIO, 22 EINVAL, 27 EFBIG, or what the store gave.
        errno: u32,
    },
    /// The reporter asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// Even the smallest buffers could not be allocated.
    #[error("out of memory")]
    OutOfMemory,
}

impl From<Cancelled> for CheckError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<pages::NoMemory> for CheckError {
    fn from(_: pages::NoMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Checks the image in `storage`, whose `header` was read for check.
///
/// The data of an external data file has no refcounts and is not looked at.
///
/// # Errors
/// [`CheckError::Failed`] where `qemu-img check` gives up without a summary;
/// messages may have been given before.
pub fn check<S: Storage>(
    storage: &S,
    header: &Header,
    reporter: &mut impl Reporter,
) -> Result<CheckSummary, CheckError> {
    match header.refcount_order {
        0..=4 => run::run::<S, u16, _>(storage, header, reporter),
        _ => run::run::<S, u64, _>(storage, header, reporter),
    }
}

#[cfg(test)]
mod tests;
