//! `-c`: the active tables are shared with a new snapshot.

use crate::error::CreateError;
use crate::find::next_id;
use crate::guard::Guard;
use crate::walk::{
    Count, Progress, announce, change, clear_copied, copy_of, l1_clusters, l2_tables, table_of,
    write_l2,
};
use alloc::string::ToString;
use instar_plan_txn::{Monitor, SnapshotEntry, Transaction, TxnError, for_each_l2, read_l1};
use instar_qcow2::Header;
use instar_qcow2::entries::{COPIED, L1Entry};
use instar_qcow2::header::MAX_SNAPSHOTS;
use instar_qcow2::snapshot::SHOWN_NAME_BYTES;
use instar_storage::StorageMut;

/// The snapshot that is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewSnapshot<'a> {
    /// Any bytes but NUL; cut at 255 bytes. May be empty, and a name that others have.
    pub name: &'a [u8],
    /// Seconds since the epoch.
    pub date_sec: u32,
    /// Nanoseconds, below 10^9.
    pub date_nsec: u32,
}

/// Makes a snapshot of the disk as it is. The image's header comes back as it is then.
///
/// # Errors
/// [`CreateError`]; the image is as it was, unless the store failed at the commit point.
pub fn create<S: StorageMut>(
    storage: &S,
    header: &Header,
    new: &NewSnapshot<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Header, CreateError> {
    if header.incompatible.external_data_file() {
        return Err(CreateError::ExternalData);
    }
    if header.nb_snapshots >= MAX_SNAPSHOTS {
        return Err(CreateError::TooMany);
    }
    let entries = usize::try_from(header.l1_size).unwrap_or(usize::MAX);
    announce(entries, monitor);
    let l1 = read_l1(storage, header, header.l1_table_offset, header.l1_size)?;
    let total = l2_tables(storage, header, &l1)?;
    let guard = Guard::new(storage, header)?;
    let copied = l1.iter().filter(|e| is_copied(**e)).count() as u64;
    let l1s = l1_clusters(header, entries).saturating_mul(2);
    let tables = copied.saturating_add(l1s).saturating_add(2);
    let header = change(storage, header, &guard, tables, monitor, |txn, monitor| {
        guard.check_counted(txn, &[&l1])?;
        let shared = share(txn, &guard, &l1, Progress::of(total), monitor)?;
        let l1_table_offset = txn.write_l1(&shared)?;
        if shared != l1 {
            txn.replace_active_l1(&shared)?;
        }
        let mut snapshots = txn.read_snapshots()?;
        let id = next_id(snapshots.iter().map(|s| until_nul(&s.id)));
        let cut = new.name.get(..SHOWN_NAME_BYTES).unwrap_or(new.name);
        snapshots.push(SnapshotEntry {
            l1_table_offset,
            l1_size: txn.header.l1_size,
            id: id.to_string().into_bytes(),
            name: cut.to_vec(),
            date_sec: new.date_sec,
            date_nsec: new.date_nsec,
            vm_clock_nsec: 0,
            vm_state_size: 0,
            disk_size: txn.header.whole_sectors_size(),
            icount: 0,
            unknown_extra: alloc::vec::Vec::new(),
        });
        txn.replace_snapshots(&snapshots)
    })?;
    Ok(header)
}

fn is_copied(entry: u64) -> bool {
    !L1Entry(entry).is_unallocated() && L1Entry(entry).is_copied()
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|b| *b == 0).next().unwrap_or_default()
}

/// One reference more to everything; the entries of both L1 tables.
fn share<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    guard: &Guard,
    l1: &[u64],
    mut progress: Progress,
    monitor: &mut dyn Monitor,
) -> Result<alloc::vec::Vec<u64>, TxnError> {
    let header = txn.old_header().clone();
    let storage = txn.storage();
    let mut shared = copy_of(l1, l1.len())?;
    for_each_l2(storage, &header, l1, &mut |index, l2| {
        progress.step(monitor)?;
        let mut count = Count { txn, guard };
        count.add(&header, l2)?;
        let Some(entry) = shared.get_mut(index) else {
            return Ok(());
        };
        let table = table_of(&header, *entry);
        guard.check(table, 1)?;
        if clear_copied(&header, l2) {
            *entry = write_l2(txn, *entry, l2)?;
            txn.add_references(table_of(&header, *entry), 1)?;
            txn.drop_references(table, 1)
        } else {
            *entry &= !COPIED;
            txn.add_references(table, 1)
        }
    })?;
    Ok(shared)
}
