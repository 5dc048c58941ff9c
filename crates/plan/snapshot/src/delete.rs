//! `-d`: a snapshot goes, and with it what only it leads to.

use crate::error::DeleteError;
use crate::find::{ToDelete, to_delete};
use crate::guard::Guard;
use crate::walk::{
    Count, Progress, announce, change, copy_of, l1_clusters, l2_tables, table_of, write_l2,
};
use instar_plan_txn::{Monitor, Transaction, TxnError, for_each_l2, read_l1, references};
use instar_qcow2::Header;
use instar_qcow2::entries::{COPIED, L1Entry, L2Entry};
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_L1_BYTES};
use instar_qcow2::snapshot::Snapshot;
use instar_storage::StorageMut;

/// Deletes the snapshot that is shown by this name, the first of several. The image's header comes back as it is
/// then.
///
/// # Errors
/// [`DeleteError`]; the image is as it was, unless the store failed at the commit point.
pub fn delete<S: StorageMut>(
    storage: &S,
    header: &Header,
    name: &[u8],
    monitor: &mut dyn Monitor,
) -> Result<Header, DeleteError> {
    // A snapshot of an image with an external data file is never found.
    if header.incompatible.external_data_file() {
        return Err(DeleteError::NotFound);
    }
    let snapshot = match to_delete(storage, header, name)? {
        ToDelete::NotFound => return Err(DeleteError::NotFound),
        ToDelete::Lost => return Err(DeleteError::Lost),
        ToDelete::Found(snapshot) => snapshot,
    };
    check_l1(header, &snapshot)?;
    let sum = snapshot.l1_size.saturating_add(header.l1_size);
    announce(usize::try_from(sum).unwrap_or(usize::MAX), monitor);
    let dying = read_l1(storage, header, snapshot.l1_table_offset, snapshot.l1_size)?;
    let active = read_l1(storage, header, header.l1_table_offset, header.l1_size)?;
    let to_drop = l2_tables(storage, header, &dying)?;
    let to_refresh = l2_tables(storage, header, &active)?;
    let guard = Guard::new(storage, header)?;
    let tables = l1_clusters(header, active.len())
        .saturating_add(to_refresh)
        .saturating_add(2);
    let mut progress = Progress::of(to_drop.saturating_add(to_refresh));
    let header = change(storage, header, &guard, tables, monitor, |txn, monitor| {
        guard.check_counted(txn, &[&dying, &active])?;
        drop_all(txn, &guard, &dying, &mut progress, monitor)?;
        forget(txn, &snapshot)?;
        let fresh = refresh(txn, &active, &mut progress, monitor)?;
        if fresh != active {
            txn.replace_active_l1(&fresh)?;
        }
        Ok(())
    })?;
    Ok(header)
}

/// As QEMU judges the L1 table, in its order.
fn check_l1(header: &Header, snapshot: &Snapshot) -> Result<(), DeleteError> {
    let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
    if bytes > MAX_L1_BYTES {
        return Err(DeleteError::L1TooLarge);
    }
    let offset = snapshot.l1_table_offset.get();
    if !header.cluster_bits.is_aligned(offset) || offset.saturating_add(bytes) > MAX_FILE_BYTES {
        return Err(DeleteError::L1Misplaced);
    }
    Ok(())
}

/// One reference less to everything that `l1` leads to.
fn drop_all<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    guard: &Guard,
    l1: &[u64],
    progress: &mut Progress,
    monitor: &mut dyn Monitor,
) -> Result<(), TxnError> {
    let header = txn.old_header().clone();
    let storage = txn.storage();
    for_each_l2(storage, &header, l1, &mut |index, l2| {
        progress.step(monitor)?;
        let entry = l1.get(index).copied().unwrap_or(0);
        Count { txn, guard }.drop(&header, l2, entry)
    })
}

/// The snapshot's entry and its L1 table go.
fn forget<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    snapshot: &Snapshot,
) -> Result<(), TxnError> {
    let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
    txn.free(snapshot.l1_table_offset, bytes)?;
    let mut entries = txn.read_snapshots()?;
    let at = usize::try_from(snapshot.index).unwrap_or(usize::MAX);
    if at < entries.len() {
        entries.remove(at);
    }
    txn.replace_snapshots(&entries)
}

/// Sets the COPIED bits that are due in the active tables; the active L1 table's entries.
fn refresh<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    active: &[u64],
    progress: &mut Progress,
    monitor: &mut dyn Monitor,
) -> Result<alloc::vec::Vec<u64>, TxnError> {
    let header = txn.old_header().clone();
    let storage = txn.storage();
    let mut fresh = copy_of(active, active.len())?;
    // A table that a snapshot shares has no cluster of its own.
    let mut alone = copy_of(active, active.len())?;
    for (entry, alone) in fresh.iter_mut().zip(&mut alone) {
        if L1Entry(*entry).is_unallocated() {
            continue;
        }
        if txn.refcount(table_of(&header, *entry))? == 1 {
            *entry |= COPIED;
        } else {
            *entry &= !COPIED;
            *alone = 0;
        }
    }
    for_each_l2(storage, &header, &alone, &mut |index, l2| {
        progress.step(monitor)?;
        let changed = txn.refresh_copied(l2)?;
        check_in_use(txn, &header, l2)?;
        let entry = fresh.get_mut(index).filter(|_| changed);
        if let Some(entry) = entry {
            let table = table_of(&header, *entry);
            *entry = write_l2(txn, *entry, l2)? | COPIED;
            txn.drop_references(table, 1)?;
        }
        Ok(())
    })?;
    Ok(fresh)
}

/// The clusters of a table that is in use are, too. COPIED means a refcount of 1, so only the others are asked.
fn check_in_use<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    header: &Header,
    l2: &[u8],
) -> Result<(), TxnError> {
    let stride = usize::try_from(header.l2_entry_bytes()).unwrap_or(8);
    for raw in l2.chunks_exact(stride) {
        let entry = raw.first_chunk::<8>().copied().unwrap_or_default();
        if L2Entry::from_be_bytes(entry).is_copied() {
            continue;
        }
        references(header, raw, &mut |first, count| {
            for cluster in first..first.saturating_add(count) {
                if txn.refcount(cluster)? == 0 {
                    return Err(TxnError::Corrupt {
                        what: "refcount is too low",
                    });
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
