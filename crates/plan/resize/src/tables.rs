//! L2 tables of a disk that grows.
//!
//! A table that changes is written anew and the old one dropped. A table that a snapshot shares is copied by that:
//! the data clusters it refers to were counted for each of its users before.

use crate::ResizeError;
use crate::content::zeroed;
use crate::error::{At, Stage};
use crate::head::{Growth, Head, new_cluster};
use crate::layout::{Entry, Runs};
use crate::reserve::Work;
use alloc::vec::Vec;
use instar_plan_txn::{Transaction, TxnError, references};
use instar_qcow2::entries::{COPIED, L1Entry};
use instar_qcow2::{Header, HostOffset};
use instar_storage::StorageMut;

/// The clusters of the grown part and what they get.
#[derive(Debug)]
pub struct Part {
    /// First guest cluster that changes.
    pub first: u64,
    /// One past the last.
    pub end: u64,
    /// The entry of `first`, and whether it takes over from an old one that is dropped; `None` if `first` is past
    /// the old disk.
    pub head: Option<(Head, Entry)>,
    /// Where the clusters lie that are not in a data file.
    pub runs: Runs,
}

impl Part {
    /// L2 tables that are written.
    pub fn tables(&self, header: &Header) -> u64 {
        if self.first >= self.end {
            return 0;
        }
        let per_table = header.l2_entries();
        let last = self.end.saturating_sub(1).checked_div(per_table);
        let first = self.first.checked_div(per_table);
        last.unwrap_or(0)
            .saturating_sub(first.unwrap_or(0))
            .saturating_add(1)
    }
}

/// Writes the tables of a part and sets their entries in the L1 table, which is long enough. `header` is that of the
/// old state.
///
/// # Errors
/// The transaction's; the monitor wants the end.
pub fn write<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    header: &Header,
    growth: &Growth,
    (part, l1): (&mut Part, &mut [u64]),
    work: &mut Work<'_>,
) -> Result<(), ResizeError> {
    let per_table = header.l2_entries();
    let cluster = header.cluster_bits.size_bytes();
    let mut guest = part.first;
    while guest < part.end {
        let index = guest.checked_div(per_table).unwrap_or(u64::MAX);
        let table_end = index.saturating_add(1).saturating_mul(per_table);
        let end = table_end.min(part.end);
        let entry = usize::try_from(index).ok().and_then(|i| l1.get_mut(i));
        let entry = entry.ok_or(TxnError::TooLarge).at(Stage::L2)?;
        let old = L1Entry(*entry);
        let mut table = read_table(txn, old, cluster)?;
        let start = guest.saturating_sub(index.saturating_mul(per_table));
        let count = end.saturating_sub(guest);
        let slots = Slots {
            header,
            guest,
            start,
            count,
        };
        set_entries(txn, growth, part, &mut table, &slots)?;
        if !old.is_unallocated() {
            txn.refresh_copied(&mut table).at(Stage::L2)?;
            txn.free(old.l2_offset(), cluster).at(Stage::L2)?;
        }
        let place = txn.allocate_table(1).at(Stage::L2)?;
        txn.write(place, table).at(Stage::L2)?;
        *entry = place.get() | COPIED;
        guest = end;
        work.step(cluster)?;
    }
    Ok(())
}

/// The table of an L1 entry, or an empty one.
pub fn read_table<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    entry: L1Entry,
    len: u64,
) -> Result<Vec<u8>, ResizeError> {
    let mut table = zeroed(len)?;
    if entry.is_unallocated() {
        return Ok(table);
    }
    let offset = entry.l2_offset();
    if !txn.old_header().cluster_bits.is_aligned(offset.get()) {
        let what = "L2 table is not cluster aligned";
        return Err(TxnError::Corrupt { what }).at(Stage::L2);
    }
    txn.read(offset.get(), &mut table).at(Stage::L2)?;
    Ok(table)
}

/// Entries of one table.
struct Slots<'h> {
    header: &'h Header,
    /// The guest cluster of the first.
    guest: u64,
    /// Number of the first in the table.
    start: u64,
    /// How many.
    count: u64,
}

/// Sets entries of a table.
fn set_entries<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    growth: &Growth,
    part: &mut Part,
    table: &mut [u8],
    slots: &Slots<'_>,
) -> Result<(), ResizeError> {
    let header = slots.header;
    let guests = slots.guest..slots.guest.saturating_add(slots.count);
    let stride = usize::try_from(header.l2_entry_bytes()).unwrap_or(8);
    let extended = header.incompatible.extended_l2();
    let data_file = header.incompatible.external_data_file();
    let from = usize::try_from(slots.start).unwrap_or(usize::MAX);
    let entries = table.chunks_exact_mut(stride).skip(from);
    for (slot, cluster) in entries.zip(guests) {
        let entry = match &part.head {
            Some((head, _)) if cluster == part.first && !head.changes => continue,
            Some((head, entry)) if cluster == part.first => {
                if head.fresh {
                    drop_old(txn, header, slot)?;
                }
                *entry
            }
            _ => {
                drop_old(txn, header, slot)?;
                let place = if growth.clusters == crate::Preallocation::Off {
                    Some(0)
                } else if data_file {
                    Some(cluster)
                } else {
                    part.runs.take()
                };
                let place = place.ok_or(TxnError::TooLarge).at(Stage::L2)?;
                new_cluster(extended, growth, place << header.cluster_bits.get())
            }
        };
        let halves = entry
            .0
            .to_be_bytes()
            .into_iter()
            .chain(entry.1.to_be_bytes());
        slot.iter_mut()
            .zip(halves)
            .for_each(|(to, from)| *to = from);
    }
    Ok(())
}

/// Drops what an entry that is overwritten refers to.
fn drop_old<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    header: &Header,
    entry: &[u8],
) -> Result<(), ResizeError> {
    if entry.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    references(header, entry, &mut |first, count| {
        txn.drop_references(first, count)
    })
    .at(Stage::L2)
}

/// Host offset of a cluster by its number.
pub const fn offset_of(header: &Header, cluster: u64) -> HostOffset {
    HostOffset(cluster << header.cluster_bits.get())
}
