//! `-a`: the disk becomes what it was when the snapshot was made.

use crate::error::ApplyError;
use crate::find::by_id_or_name;
use crate::guard::Guard;
use crate::walk::{
    Count, Progress, announce, change, clear_copied, copy_of, l1_clusters, l2_tables, table_of,
    write_l2,
};
use alloc::vec::Vec;
use instar_plan_txn::{Monitor, Transaction, TxnError, for_each_l2, read_l1};
use instar_qcow2::Header;
use instar_qcow2::entries::{COPIED, OFFSET_MASK};
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_L1_BYTES};
use instar_qcow2::snapshot::Snapshot;
use instar_storage::StorageMut;

/// Refcounts up to this width, 8 bits, can be at their largest in a sound image.
const MAX_NARROW_ORDER: u32 = 3;

/// Makes the disk what the snapshot with this ID, else the first with this name, says: its data and its size.
/// The image's header comes back as it is then.
///
/// # Errors
/// [`ApplyError`]; the image is as it was, unless the store failed at the commit point.
pub fn apply<S: StorageMut>(
    storage: &S,
    header: &Header,
    id_or_name: &[u8],
    monitor: &mut dyn Monitor,
) -> Result<Header, ApplyError> {
    if header.extensions.bitmaps.is_some() {
        return Err(ApplyError::Bitmaps);
    }
    if header.incompatible.external_data_file() {
        return Err(ApplyError::ExternalData);
    }
    let found = by_id_or_name(storage, header, id_or_name)?;
    let snapshot = found.ok_or(ApplyError::NotFound)?;
    check_l1(header, &snapshot)?;
    let mut new = header.clone();
    resize(&mut new, &snapshot)?;
    let sum = snapshot.l1_size.saturating_add(new.l1_size);
    announce(usize::try_from(sum).unwrap_or(usize::MAX), monitor);
    let kept = read_l1(storage, header, snapshot.l1_table_offset, snapshot.l1_size)?;
    let active = read_l1(storage, header, header.l1_table_offset, header.l1_size)?;
    let to_add = l2_tables(storage, header, &kept)?;
    let to_drop = l2_tables(storage, header, &active)?;
    let guard = Guard::new(storage, header)?;
    let entries = usize::try_from(new.l1_size).unwrap_or(usize::MAX);
    let tables = l1_clusters(header, entries).saturating_add(1);
    let mut progress = Progress::of(to_add.saturating_add(to_drop));
    let header = change(storage, header, &guard, tables, monitor, |txn, monitor| {
        guard.check_counted(txn, &[&kept, &active])?;
        txn.header.virtual_size = new.virtual_size;
        let only = Only::of(header, &kept, &active)?;
        let mut l1 = copy_of(&kept, entries)?;
        l1.iter_mut().for_each(|entry| *entry &= !COPIED);
        add_all(txn, &guard, &only.kept, &mut l1, &mut progress, monitor)?;
        drop_all(txn, &guard, &only.active, &mut progress, monitor)?;
        txn.replace_active_l1(&l1)
    })?;
    Ok(header)
}

/// As QEMU judges the L1 table, in its order.
fn check_l1(header: &Header, snapshot: &Snapshot) -> Result<(), ApplyError> {
    let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
    if bytes > MAX_L1_BYTES {
        return Err(ApplyError::L1TooLarge);
    }
    let offset = snapshot.l1_table_offset.get();
    if !header.cluster_bits.is_aligned(offset) || offset.saturating_add(bytes) > MAX_FILE_BYTES {
        return Err(ApplyError::L1Misplaced);
    }
    Ok(())
}

/// Disk size and L1 entries after the change. The L1 table never gets shorter.
fn resize(new: &mut Header, snapshot: &Snapshot) -> Result<(), ApplyError> {
    let size = snapshot.disk_size.unwrap_or(new.whole_sectors_size());
    if size != new.whole_sectors_size() {
        check_size(new.version, size)?;
        new.virtual_size = size;
    }
    let needed = new.l1_entries_needed();
    if needed.saturating_mul(8) > MAX_L1_BYTES {
        return Err(ApplyError::SizeNeedsLargeL1);
    }
    let needed = u32::try_from(needed).map_err(|_| ApplyError::SizeNeedsLargeL1)?;
    new.l1_size = new.l1_size.max(snapshot.l1_size).max(needed);
    Ok(())
}

/// As QEMU judges a new size, in its order.
const fn check_size(version: u32, size: u64) -> Result<(), ApplyError> {
    if size > i64::MAX.unsigned_abs() {
        return Err(ApplyError::SizeNegative);
    }
    if size > MAX_FILE_BYTES {
        return Err(ApplyError::SizePastLimit { size });
    }
    if !size.is_multiple_of(512) {
        return Err(ApplyError::SizeNotSectors);
    }
    if version < 3 {
        return Err(ApplyError::ResizeOfVersion2);
    }
    Ok(())
}

/// The entries of both L1 tables without those that name the same L2 table at the same place: one reference is
/// added to what they lead to, and one dropped.
struct Only {
    kept: Vec<u64>,
    active: Vec<u64>,
}

impl Only {
    fn of(header: &Header, kept: &[u64], active: &[u64]) -> Result<Self, TxnError> {
        let mut only = Self {
            kept: copy_of(kept, kept.len())?,
            active: copy_of(active, active.len())?,
        };
        // QEMU adds before it drops, and says EINVAL where a refcount is at its largest. So do we.
        if header.refcount_order <= MAX_NARROW_ORDER {
            return Ok(only);
        }
        for (one, two) in only.kept.iter_mut().zip(&mut only.active) {
            if *one & OFFSET_MASK == *two & OFFSET_MASK {
                (*one, *two) = (0, 0);
            }
        }
        Ok(only)
    }
}

/// One reference more to everything that `kept` leads to; `l1` are the entries that become active.
fn add_all<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    guard: &Guard,
    kept: &[u64],
    l1: &mut [u64],
    progress: &mut Progress,
    monitor: &mut dyn Monitor,
) -> Result<(), TxnError> {
    let header = txn.old_header().clone();
    let storage = txn.storage();
    for_each_l2(storage, &header, kept, &mut |index, l2| {
        progress.step(monitor)?;
        Count { txn, guard }.add(&header, l2)?;
        let Some(entry) = l1.get_mut(index) else {
            return Ok(());
        };
        let table = table_of(&header, *entry);
        guard.check(table, 1)?;
        // A snapshot's table has no COPIED bits. If one has, the active table is another.
        if clear_copied(&header, l2) {
            *entry = write_l2(txn, *entry, l2)? | COPIED;
            return Ok(());
        }
        txn.add_references(table, 1)
    })
}

/// One reference less to everything that `active` leads to.
fn drop_all<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    guard: &Guard,
    active: &[u64],
    progress: &mut Progress,
    monitor: &mut dyn Monitor,
) -> Result<(), TxnError> {
    let header = txn.old_header().clone();
    let storage = txn.storage();
    for_each_l2(storage, &header, active, &mut |index, l2| {
        progress.step(monitor)?;
        let entry = active.get(index).copied().unwrap_or(0);
        Count { txn, guard }.drop(&header, l2, entry)
    })
}
