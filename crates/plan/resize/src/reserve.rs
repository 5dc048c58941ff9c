//! Space in bounded pieces, so that progress is seen and a cancel is heard.

use crate::error::ReserveError;
use crate::{Preallocation, ResizeError};
use instar_plan_txn::Monitor;
use instar_storage::{Reserve, StorageMut};

/// Bytes reserved by one request that writes.
const WRITTEN_PIECE_BYTES: u64 = 32 << 20;
/// Bytes reserved by one request that does not.
const PIECE_BYTES: u64 = 16 << 30;

/// Work done, and to be done, in bytes of guest data.
pub struct Work<'m> {
    /// Who is told.
    pub monitor: &'m mut dyn Monitor,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Work<'_> {
    /// Counts `bytes` more as done.
    ///
    /// # Errors
    /// The monitor wants the end.
    pub fn step(&mut self, bytes: u64) -> Result<(), instar_plan_txn::Cancelled> {
        self.done = self.done.saturating_add(bytes).min(self.total);
        self.monitor.progress(self.done, self.total)
    }
}

/// Reserves `start..end` of a file; what it held there stays with [`Preallocation::Falloc`], and is zeros
/// with [`Preallocation::Full`].
///
/// # Errors
/// The store's; the monitor wants the end.
pub fn reserve<S: StorageMut>(
    storage: &S,
    start: u64,
    end: u64,
    how: Preallocation,
    work: &mut Work<'_>,
) -> Result<(), ReserveError> {
    let (how, most) = match how {
        Preallocation::Off | Preallocation::Metadata => return Ok(()),
        Preallocation::Falloc => (Reserve::Blocks, PIECE_BYTES),
        Preallocation::Full => (Reserve::WrittenZeros, WRITTEN_PIECE_BYTES),
    };
    check_length(storage, end).map_err(|errno| match how {
        Reserve::WrittenZeros => ReserveError::Length(errno),
        Reserve::Blocks => ReserveError::Falloc(errno),
    })?;
    let mut at = start;
    while at < end {
        let len = most.min(end.saturating_sub(at));
        storage.allocate(at, len, how).map_err(|e| match how {
            Reserve::WrittenZeros => ReserveError::Full(e.errno),
            Reserve::Blocks => ReserveError::Falloc(e.errno),
        })?;
        at = at.saturating_add(len);
        work.step(len)?;
    }
    Ok(())
}

/// Refuses a length that the host's files cannot have, before the disk is filled on the way to it.
fn check_length<S: StorageMut>(storage: &S, end: u64) -> Result<(), u32> {
    let len = storage.len_bytes();
    if end <= len || !storage.can_grow() {
        return Ok(());
    }
    storage.set_len(end).map_err(|e| e.errno)?;
    storage.set_len(len).map_err(|e| e.errno)
}

/// Makes a range of clusters read as zeros that no state of the image uses yet: holes where the file has
/// been, nothing past its end.
///
/// # Errors
/// The store's, as that of an underlying file.
pub fn clear<S: StorageMut>(storage: &S, start: u64, end: u64) -> Result<(), ResizeError> {
    let end = end.min(storage.len_bytes());
    let len = end.saturating_sub(start);
    if len == 0 {
        return Ok(());
    }
    let failed = |e: instar_storage::StorageError| ReserveError::Length(e.errno);
    storage
        .write_zeroes(start, len)
        .map_err(failed)
        .map_err(ResizeError::Underlying)
}
