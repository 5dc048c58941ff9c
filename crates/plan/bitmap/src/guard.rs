//! Clusters that are to be freed, and what must not be among them.
//!
//! A bitmap in use need not be sound. Whatever its table says, no cluster that holds metadata may be freed on its
//! word. Guest data is not looked at, which would mean to read every L2 table; QEMU does not either.

use crate::reader::Table;
use crate::zeroed;
use alloc::vec::Vec;
use instar_plan_txn::{Transaction, TxnError};
use instar_qcow2::bitmaps::Bitmap;
use instar_qcow2::entries::OFFSET_MASK;
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, HostOffset};
use instar_storage::{Storage, StorageMut};

/// Bytes of a table read at once.
const TABLE_BYTES: u64 = 64 << 10;
/// Bits that hold the group of a cluster.
const GROUP_BITS: u32 = 2;
/// How many groups there are at most.
const GROUPS: u64 = 1 << GROUP_BITS;

/// Clusters to be freed, in groups: if one cluster of a group must not be freed, none of them is.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// The cluster's index above, the group in the low bits.
    clusters: Vec<u64>,
    group: u64,
}

impl Freed {
    /// What is added from now on is a group of its own.
    pub(crate) fn next_group(&mut self) {
        self.group = self.group.saturating_add(1).min(GROUPS.saturating_sub(1));
    }

    /// The clusters of `bytes` bytes at `offset`.
    pub(crate) fn add(
        &mut self,
        header: &Header,
        offset: HostOffset,
        bytes: u64,
    ) -> Result<(), TxnError> {
        let bits = header.cluster_bits;
        let count = bits.clusters_for(bytes);
        let room = usize::try_from(count).map_err(|_| TxnError::OutOfMemory)?;
        self.clusters
            .try_reserve(room)
            .map_err(|_| TxnError::OutOfMemory)?;
        let first = bits.cluster_of(offset).get();
        for cluster in (first..).take(room) {
            self.clusters.push((cluster << GROUP_BITS) | self.group);
        }
        Ok(())
    }

    /// All clusters of a bitmap; none, if its table has an entry that QEMU does not take.
    pub(crate) fn add_bitmap<S: Storage>(
        &mut self,
        storage: &S,
        header: &Header,
        bitmap: &Bitmap,
    ) -> Result<(), TxnError> {
        let before = self.clusters.len();
        self.add(header, bitmap.table_offset, bitmap.table_bytes())?;
        let mut table = Table::new(storage, header, bitmap);
        for index in 0..table.len() {
            let Some(entry) = table.get(index)? else {
                self.clusters.truncate(before);
                return Ok(());
            };
            if entry.host_offset().get() != 0 {
                self.add(header, entry.host_offset(), 1)?;
            }
        }
        Ok(())
    }

    /// Frees the clusters of every group without a cluster that must not be freed.
    pub(crate) fn release<S: StorageMut>(
        mut self,
        txn: &mut Transaction<'_, S>,
    ) -> Result<(), TxnError> {
        if self.clusters.is_empty() {
            return Ok(());
        }
        self.clusters.sort_unstable();
        let mut guard = Guard {
            clusters: &self.clusters,
            bad: 0,
        };
        let header = txn.old_header().clone();
        guard.look_at_all(txn.storage(), &header)?;
        let bad = guard.bad;
        let mut run = (0_u64, 0_u64);
        for packed in &self.clusters {
            let (cluster, group) = (packed >> GROUP_BITS, packed & GROUPS.saturating_sub(1));
            // One without a reference is free already. One with several is somebody else's as well, whose COPIED
            // flag must stay true: it leaks.
            if bad & group_bit(group) != 0 || txn.refcount(cluster)? != 1 {
                continue;
            }
            if run.0.saturating_add(run.1) == cluster {
                run.1 = run.1.saturating_add(1);
                continue;
            }
            drop_run(txn, run)?;
            run = (cluster, 1);
        }
        drop_run(txn, run)
    }
}

fn drop_run<S: StorageMut>(txn: &mut Transaction<'_, S>, run: (u64, u64)) -> Result<(), TxnError> {
    if run.1 == 0 {
        return Ok(());
    }
    txn.drop_references(run.0, run.1)
}

const fn group_bit(group: u64) -> u64 {
    1 << (group & GROUPS.saturating_sub(1))
}

/// Finds the groups that have a cluster of the metadata.
struct Guard<'c> {
    /// Sorted.
    clusters: &'c [u64],
    /// A bit for each group.
    bad: u64,
}

impl Guard<'_> {
    fn look_at_all<S: Storage>(&mut self, storage: &S, header: &Header) -> Result<(), TxnError> {
        self.twice();
        self.protect(header, 0, 1);
        let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
        let l1 = header.l1_table_offset.get();
        self.protect(header, l1, l1_bytes);
        self.entries(storage, header, l1, l1_bytes)?;
        let table = header.refcount_table_offset.get();
        self.protect(header, table, header.refcount_table_bytes());
        self.entries(storage, header, table, header.refcount_table_bytes())?;
        if let Some(crypto) = header.extensions.crypto_header {
            self.protect(header, crypto.offset.get(), crypto.length);
        }
        for snapshot in SnapshotTable::new(storage, header) {
            let snapshot = snapshot.map_err(|_| TxnError::Corrupt {
                what: "snapshot table",
            })?;
            self.protect(header, snapshot.entry_offset.get(), snapshot.entry_bytes);
            let bytes = u64::from(snapshot.l1_size).saturating_mul(8);
            self.protect(header, snapshot.l1_table_offset.get(), bytes);
        }
        Ok(())
    }

    /// A cluster that is to be freed for two reasons is one of damage.
    fn twice(&mut self) {
        for pair in self.clusters.windows(2) {
            if let [a, b] = pair
                && a >> GROUP_BITS == b >> GROUP_BITS
            {
                self.bad |= group_bit(*a) | group_bit(*b);
            }
        }
    }

    /// The clusters that `bytes` bytes at `offset` touch are metadata.
    fn protect(&mut self, header: &Header, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let bits = header.cluster_bits;
        let first = bits.cluster_of(HostOffset(offset)).get();
        let last = offset.saturating_add(bytes).saturating_sub(1);
        let last = bits.cluster_of(HostOffset(last)).get();
        let at = self.clusters.partition_point(|c| c >> GROUP_BITS < first);
        let rest = self.clusters.get(at..).unwrap_or_default();
        for packed in rest.iter().take_while(|c| **c >> GROUP_BITS <= last) {
            self.bad |= group_bit(*packed);
        }
    }

    /// Every cluster that an entry of the table names is metadata.
    fn entries<S: Storage>(
        &mut self,
        storage: &S,
        header: &Header,
        offset: u64,
        bytes: u64,
    ) -> Result<(), TxnError> {
        let mut piece = zeroed(bytes.min(TABLE_BYTES))?;
        let mut done = 0_u64;
        while done < bytes {
            let len = bytes.saturating_sub(done).min(TABLE_BYTES);
            let len = usize::try_from(len).map_err(|_| TxnError::OutOfMemory)?;
            let piece = piece.get_mut(..len).unwrap_or_default();
            storage.read_at(offset.saturating_add(done), piece)?;
            for raw in piece.as_chunks::<8>().0 {
                let entry = u64::from_be_bytes(*raw) & OFFSET_MASK;
                if entry != 0 {
                    self.protect(header, entry, 1);
                }
            }
            done = done.saturating_add(TABLE_BYTES);
        }
        Ok(())
    }
}
