//! L1 and L2 tables: counting what they lead to, and their COPIED bits.

use crate::guard::Guard;
use alloc::vec::Vec;
use instar_plan_txn::{Footprint, Monitor, Transaction, TxnError, references};
use instar_qcow2::entries::{COPIED, L1Entry, OFFSET_MASK};
use instar_qcow2::{Header, HostOffset};
use instar_storage::StorageMut;

/// Working memory from this on is announced.
const ANNOUNCED_BYTES: u64 = 1 << 20;
/// Copies of the snapshot table that a change has in memory, a growing one counted twice.
const SNAPSHOT_COPIES: u64 = 8;
/// Memory of a snapshot's entry, its ID and name not counted.
const SNAPSHOT_ENTRY_BYTES: u64 = 256;

/// A change as one transaction: what `build` does, and the commit.
pub(crate) fn change<S: StorageMut>(
    storage: &S,
    header: &Header,
    guard: &Guard,
    tables: u64,
    monitor: &mut dyn Monitor,
    build: impl FnOnce(&mut Transaction<'_, S>, &mut dyn Monitor) -> Result<(), TxnError>,
) -> Result<Header, TxnError> {
    // Free clusters could not be told from used ones.
    if header.incompatible.dirty() {
        return Err(TxnError::Corrupt {
            what: "refcounts are not up to date",
        });
    }
    let entries = u64::from(header.nb_snapshots).saturating_mul(SNAPSHOT_ENTRY_BYTES);
    let snapshots = guard.snapshot_bytes.saturating_mul(SNAPSHOT_COPIES);
    announce_bytes(entries.saturating_add(snapshots), monitor);
    // Many new clusters need refcount blocks of their own, twice where they move down later.
    let blocks = tables
        .saturating_mul(2)
        .div_ceil(header.refcounts_per_block().max(1));
    let tables = tables.saturating_add(blocks);
    let footprint = Footprint { tables, fixed: 0 };
    let mut txn = Transaction::begin(storage, header, footprint, monitor)?;
    match build(&mut txn, monitor) {
        Ok(()) => txn.commit(monitor),
        Err(e) => {
            txn.abandon();
            Err(e)
        }
    }
}

/// Announces three copies of an L1 table.
pub(crate) fn announce(entries: usize, monitor: &mut dyn Monitor) {
    announce_bytes((entries as u64).saturating_mul(3 * 8), monitor);
}

fn announce_bytes(bytes: u64, monitor: &mut dyn Monitor) {
    if bytes >= ANNOUNCED_BYTES {
        monitor.grant(bytes);
    }
}

/// A copy, `len` entries long, zeros at its end.
pub(crate) fn copy_of<T: Copy + Default>(from: &[T], len: usize) -> Result<Vec<T>, TxnError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(len)
        .map_err(|_| TxnError::OutOfMemory)?;
    copy.extend_from_slice(from.get(..len).unwrap_or(from));
    copy.resize(len, T::default());
    Ok(copy)
}

/// L2 tables that the entries name.
///
/// # Errors
/// They are more than the file has clusters.
pub(crate) fn l2_tables<S: StorageMut>(
    storage: &S,
    header: &Header,
    l1: &[u64],
) -> Result<u64, TxnError> {
    let tables = l1.iter().filter(|e| !L1Entry(**e).is_unallocated()).count() as u64;
    // One that ends past the file's end reads as zeros there.
    if tables
        > header
            .cluster_bits
            .clusters_for(storage.len_bytes())
            .saturating_add(1)
    {
        return Err(TxnError::Corrupt {
            what: "L1 table names more L2 tables than there are clusters",
        });
    }
    Ok(tables)
}

/// Clusters of an L1 table of so many entries.
pub(crate) fn l1_clusters(header: &Header, entries: usize) -> u64 {
    header
        .cluster_bits
        .clusters_for((entries as u64).saturating_mul(8))
}

/// Counts steps of work for the monitor.
pub(crate) struct Progress {
    done: u64,
    total: u64,
}

impl Progress {
    /// None of `total` done.
    pub(crate) const fn of(total: u64) -> Self {
        Self { done: 0, total }
    }

    /// One more.
    pub(crate) fn step(&mut self, monitor: &mut dyn Monitor) -> Result<(), TxnError> {
        monitor.progress(self.done, self.total)?;
        self.done = self.done.saturating_add(1).min(self.total);
        Ok(())
    }
}

/// One reference more or less to everything that an L2 table refers to, and to that table's cluster.
pub(crate) struct Count<'a, 's, S> {
    /// The change.
    pub(crate) txn: &'a mut Transaction<'s, S>,
    /// What nothing may refer to.
    pub(crate) guard: &'a Guard,
}

impl<S: StorageMut> Count<'_, '_, S> {
    /// One more to what `l2` refers to.
    pub(crate) fn add(&mut self, header: &Header, l2: &[u8]) -> Result<(), TxnError> {
        references(header, l2, &mut |first, count| {
            self.guard.check(first, count)?;
            self.txn.add_references(first, count)
        })
    }

    /// One less to what `l2` refers to, and to the table itself, which `entry` of an L1 table names.
    pub(crate) fn drop(&mut self, header: &Header, l2: &[u8], entry: u64) -> Result<(), TxnError> {
        references(header, l2, &mut |first, count| {
            self.guard.check(first, count)?;
            self.txn.drop_references(first, count)
        })?;
        let table = table_of(header, entry);
        self.guard.check(table, 1)?;
        self.txn.drop_references(table, 1)
    }
}

/// The cluster of the L2 table that `entry` of an L1 table names.
pub(crate) fn table_of(header: &Header, entry: u64) -> u64 {
    header
        .cluster_bits
        .cluster_of(L1Entry(entry).l2_offset())
        .get()
}

/// Writes a changed L2 table into a cluster of its own, with one reference; the entry that names it, without COPIED.
pub(crate) fn write_l2<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    entry: u64,
    l2: &[u8],
) -> Result<u64, TxnError> {
    let offset = txn.allocate_table(1)?;
    txn.write(offset, copy_of(l2, l2.len())?)?;
    Ok((entry & !(OFFSET_MASK | COPIED)) | offset.get())
}

/// Clears COPIED in all standard entries of an L2 table; true if one was set.
pub(crate) fn clear_copied(header: &Header, l2: &mut [u8]) -> bool {
    let mut seen = 0_u8;
    let mut clear = |first: &mut u8| {
        // Bit 63 means nothing in a compressed entry, which has bit 62.
        let copied = if *first & 0xc0 == 0x80 { 0x80 } else { 0 };
        seen |= copied;
        *first ^= copied;
    };
    if header.incompatible.extended_l2() {
        for [first, ..] in l2.as_chunks_mut::<16>().0 {
            clear(first);
        }
    } else {
        for [first, ..] in l2.as_chunks_mut::<8>().0 {
            clear(first);
        }
    }
    seen != 0
}

/// Where the clusters of an L1 table start, and how many there are.
pub(crate) fn l1_range(header: &Header, offset: HostOffset, entries: u32) -> (u64, u64) {
    let bytes = u64::from(entries).saturating_mul(8);
    let first = header.cluster_bits.cluster_of(offset).get();
    (first, header.cluster_bits.clusters_for(bytes))
}
