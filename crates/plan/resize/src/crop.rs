//! What lies past the end of a disk that shrinks.
//!
//! The L1 table keeps its length, as with `qemu-img`; its entries past the new end are cleared.

use crate::ResizeError;
use crate::error::{At, Stage};
use crate::reserve::Work;
use crate::tables::read_table;
use instar_plan_txn::{Transaction, TxnError, for_each_l2, references};
use instar_qcow2::Header;
use instar_qcow2::entries::{COPIED, L1Entry};
use instar_storage::StorageMut;

/// Drops all that the active tables refer to from byte `new_size` of the disk on. `header` is that of the old state.
///
/// # Errors
/// The tables are damaged there; the store's; the monitor wants the end.
pub fn crop<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    header: &Header,
    new_size: u64,
    work: &mut Work<'_>,
) -> Result<(), ResizeError> {
    let entries = header.l1_size;
    let mut l1 = txn
        .read_l1(header.l1_table_offset, entries)
        .at(Stage::Crop)?;
    let keep = new_size.div_ceil(header.l2_table_span());
    let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(l1.len());
    let (kept, cropped) = l1.split_at_mut(keep);
    let mut changed = crop_boundary(txn, header, new_size, kept)?;
    let storage = txn.storage();
    let cluster = header.cluster_bits.size_bytes();
    for_each_l2(storage, header, cropped, &mut |_, table| {
        references(header, table, &mut |first, count| {
            txn.drop_references(first, count)
        })?;
        work.step(cluster)?;
        Ok::<(), TxnError>(())
    })
    .at(Stage::Crop)?;
    for entry in cropped.iter_mut().filter(|entry| **entry != 0) {
        let table = L1Entry(*entry);
        if !table.is_unallocated() {
            txn.free(table.l2_offset(), cluster).at(Stage::Crop)?;
        }
        *entry = 0;
        changed = true;
    }
    if changed {
        txn.replace_active_l1(&l1).at(Stage::Crop)?;
    }
    Ok(())
}

/// Clears the rest of the table in which the new disk ends; true if there was anything.
fn crop_boundary<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    header: &Header,
    new_size: u64,
    kept: &mut [u64],
) -> Result<bool, ResizeError> {
    let clusters = header.cluster_bits.clusters_for(new_size);
    let start = clusters.checked_rem(header.l2_entries()).unwrap_or(0);
    let index = clusters.checked_div(header.l2_entries()).unwrap_or(0);
    let entry = usize::try_from(index).ok().and_then(|i| kept.get_mut(i));
    let Some(entry) = entry.filter(|entry| start != 0 && !L1Entry(**entry).is_unallocated()) else {
        return Ok(false);
    };
    let cluster = header.cluster_bits.size_bytes();
    let old = L1Entry(*entry);
    let mut table = read_table(txn, old, cluster)?;
    let from = usize::try_from(start.saturating_mul(header.l2_entry_bytes())).unwrap_or(usize::MAX);
    let past = table.get_mut(from..).unwrap_or_default();
    if past.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    references(header, past, &mut |first, count| {
        txn.drop_references(first, count)
    })
    .at(Stage::Crop)?;
    past.fill(0);
    txn.refresh_copied(&mut table).at(Stage::Crop)?;
    txn.free(old.l2_offset(), cluster).at(Stage::Crop)?;
    let place = txn.allocate_table(1).at(Stage::Crop)?;
    txn.write(place, table).at(Stage::Crop)?;
    *entry = place.get() | COPIED;
    Ok(true)
}
