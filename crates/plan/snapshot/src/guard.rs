//! Clusters that no L1 or L2 entry may lead to, whatever their refcounts say: freeing one would lose the image.

use crate::walk::l1_range;
use alloc::vec::Vec;
use instar_plan_txn::{Transaction, TxnError};
use instar_qcow2::Header;
use instar_qcow2::entries::L1Entry;
use instar_qcow2::snapshot::SnapshotTable;
use instar_storage::{Storage, StorageMut};

/// Runs of clusters, ascending: first, and one past the last.
#[derive(Debug)]
pub(crate) struct Guard {
    runs: Vec<(u64, u64)>,
    /// Bytes of the snapshot table.
    pub(crate) snapshot_bytes: u64,
}

impl Guard {
    /// The header, the active L1 table, those of snapshots, the refcount table and the snapshot table.
    ///
    /// # Errors
    /// Two of them overlap, or the store's.
    pub(crate) fn new<S: Storage>(storage: &S, header: &Header) -> Result<Self, TxnError> {
        let bits = header.cluster_bits;
        let mut runs = Vec::new();
        let mut add = |(first, count): (u64, u64)| -> Result<(), TxnError> {
            runs.try_reserve(1).map_err(|_| TxnError::OutOfMemory)?;
            if count > 0 {
                runs.push((first, first.saturating_add(count)));
            }
            Ok(())
        };
        add((0, 1))?;
        add(l1_range(header, header.l1_table_offset, header.l1_size))?;
        add((
            bits.cluster_of(header.refcount_table_offset).get(),
            header.refcount_table_clusters.into(),
        ))?;
        let mut table = SnapshotTable::new(storage, header);
        while let Some(Ok(snapshot)) = table.next() {
            add(l1_range(header, snapshot.l1_table_offset, snapshot.l1_size))?;
        }
        let snapshot_bytes = table.bytes_read();
        add((
            bits.cluster_of(header.snapshots_offset).get(),
            bits.clusters_for(snapshot_bytes),
        ))?;
        runs.sort_unstable();
        let overlap = runs
            .windows(2)
            .any(|pair| matches!(pair, [(_, end), (next, _)] if next < end));
        if overlap {
            return Err(TxnError::Corrupt {
                what: "tables overlap",
            });
        }
        Ok(Self {
            runs,
            snapshot_bytes,
        })
    }

    /// Clusters that are in use must have a refcount, or they would be given to something else: those that are
    /// guarded, and the L2 tables that these L1 tables name.
    ///
    /// # Errors
    /// One has none, or the store's.
    pub(crate) fn check_counted<S: StorageMut>(
        &self,
        txn: &mut Transaction<'_, S>,
        l1s: &[&[u64]],
    ) -> Result<(), TxnError> {
        let bits = txn.header.cluster_bits;
        let guarded = self.runs.iter().flat_map(|(first, end)| *first..*end);
        let entries = l1s.iter().copied().flatten();
        let tables = entries
            .filter(|entry| !L1Entry(**entry).is_unallocated())
            .map(|entry| bits.cluster_of(L1Entry(*entry).l2_offset()).get());
        for cluster in guarded.chain(tables) {
            if txn.refcount(cluster)? == 0 {
                return Err(TxnError::Corrupt {
                    what: "refcount of a table is 0",
                });
            }
        }
        Ok(())
    }

    /// # Errors
    /// One of `count` clusters from `first` on is guarded.
    pub(crate) fn check(&self, first: u64, count: u64) -> Result<(), TxnError> {
        let end = first.saturating_add(count);
        let at = self.runs.partition_point(|(_, run_end)| *run_end <= first);
        match self.runs.get(at) {
            Some((run, _)) if *run < end => Err(TxnError::Corrupt {
                what: "an entry leads to a cluster of other metadata",
            }),
            _ => Ok(()),
        }
    }
}
