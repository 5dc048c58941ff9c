//! The disk says nothing of its own any more: what lies below it shows, and its snapshots stay.

use crate::guard::Guard;
use crate::walk::{Count, Progress, announce, change, l1_clusters, l2_tables};
use alloc::vec::Vec;
use instar_plan_txn::{Monitor, TxnError, for_each_l2, read_l1};
use instar_qcow2::Header;
use instar_storage::StorageMut;

/// Takes everything out of the active state; its size stays. The image's header comes back as it is then. The file is
/// cut after its last cluster in use.
///
/// # Errors
/// The image is as it was, unless the store failed at the commit point.
pub fn empty<S: StorageMut>(
    storage: &S,
    header: &Header,
    monitor: &mut dyn Monitor,
) -> Result<Header, TxnError> {
    let entries = usize::try_from(header.l1_size).unwrap_or(usize::MAX);
    announce(entries, monitor);
    let active = read_l1(storage, header, header.l1_table_offset, header.l1_size)?;
    let tables = l2_tables(storage, header, &active)?;
    if tables == 0 {
        return Ok(header.clone());
    }
    let guard = Guard::new(storage, header)?;
    let mut blank: Vec<u64> = Vec::new();
    blank
        .try_reserve_exact(active.len())
        .map_err(|_| TxnError::OutOfMemory)?;
    blank.resize(active.len(), 0);
    let mut progress = Progress::of(tables);
    let new = l1_clusters(header, entries).saturating_add(1);
    change(storage, header, &guard, new, monitor, |txn, monitor| {
        guard.check_counted(txn, &[&active])?;
        for_each_l2(storage, header, &active, &mut |index, l2| {
            progress.step(monitor)?;
            let entry = active.get(index).copied().unwrap_or(0);
            let guard = &guard;
            Count { txn, guard }.drop(header, l2, entry)
        })?;
        txn.cuts_tail = true;
        txn.replace_active_l1(&blank)
    })
}
