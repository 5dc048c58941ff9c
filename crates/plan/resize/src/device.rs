//! What a file whose length is given, as a block device's, does not do for a disk that grows.
//!
//! Its end is known before anything is asked of it: what would fail there fails before anything is written.

use crate::error::{At, Stage};
use crate::{Preallocation, ResizeError};
use instar_plan_txn::{Transaction, TxnError};
use instar_storage::StorageMut;

/// ENOSPC.
const ENOSPC: u32 = 28;

/// Clusters that a growth takes of an image file.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Of a longer L1 table; 0 if it keeps its length.
    pub l1: u64,
    /// L2 tables.
    pub tables: u64,
    /// Data clusters of all L2 tables but the last.
    pub before_last: u64,
}

/// Refuses reserved space in an image on a device. Tables that do not fit come first, as in `qemu-img`.
///
/// # Errors
/// Always, unless the image's file can grow or nothing is reserved in it.
pub fn refuse_reserving<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    how: Preallocation,
    need: Need,
) -> Result<(), ResizeError> {
    if txn.storage().can_grow() || !matches!(how, Preallocation::Falloc | Preallocation::Full) {
        return Ok(());
    }
    check_l1(txn, need)?;
    txn.allocate_fixed(1).at(Stage::Refcounts)?;
    Err(ResizeError::underlying_on_device(how))
}

/// Why `preallocation=metadata` failed with `e` after it took `taken` data clusters of an image on a device: it is
/// the device's end that data has passed, or there is no room for the tables either.
///
/// The transaction is of no further use.
pub fn why_no_room<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    e: TxnError,
    stage: Stage,
    need: Need,
    taken: u64,
) -> ResizeError {
    let on_device = !txn.storage().can_grow();
    if on_device && stage == Stage::Allocate && e.errno() == ENOSPC {
        if taken == 0
            && let Err(e) = check_l1(txn, need)
        {
            return e;
        }
        if taken >= need.before_last && txn.allocate_fixed(need.tables).is_ok() {
            return ResizeError::DeviceFull;
        }
    }
    ResizeError::at_stage(e, stage)
}

/// Refuses a longer L1 table that does not fit.
fn check_l1<S: StorageMut>(txn: &mut Transaction<'_, S>, need: Need) -> Result<(), ResizeError> {
    if need.l1 > 0 {
        txn.allocate_fixed(need.l1).at(Stage::L1)?;
    }
    Ok(())
}

/// Judges a new length of an external data file, in bytes, if that is on a device: it has the disk's length with
/// `preallocation=off`, and at least `end` bytes with the others.
///
/// # Errors
/// The device has another length, or less.
pub fn check_data_file<S: StorageMut>(
    data: &S,
    how: Preallocation,
    end: u64,
) -> Result<(), ResizeError> {
    let len = data.len_bytes();
    if data.can_grow() {
        return Ok(());
    }
    match how {
        Preallocation::Off if end != len => Err(ResizeError::DeviceLength),
        Preallocation::Metadata if end > len => Err(ResizeError::DeviceFull),
        Preallocation::Falloc | Preallocation::Full if end > len => {
            Err(ResizeError::PreallocationOnDevice(how))
        }
        _ => Ok(()),
    }
}
