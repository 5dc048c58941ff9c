//! All L2 tables of an image, active and of snapshots.

use crate::metadata::Metadata;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use instar_plan_txn::{Monitor, TxnError, for_each_l2, read_l1};
use instar_qcow2::entries::{L1Entry, L2Entry};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, HostOffset};
use instar_storage::Storage;

/// Tables that are counted between two requests for memory.
const TABLES_PER_GRANT: usize = 16_384;
/// Bytes of memory that an entry of a map takes, at most.
pub const BYTES_PER_ENTRY: u64 = 64;

/// An L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// L1 entries that refer to it, of all L1 tables.
    pub paths: u64,
    /// It has entries with the zero flag.
    pub has_zeros: bool,
    /// It was dealt with.
    pub done: bool,
    /// Where it is in the new state, if it was written anew.
    pub new: Option<HostOffset>,
}

/// What the L2 tables hold that version 2 does not know.
#[derive(Debug, Default)]
pub struct Survey {
    /// By host offset.
    pub tables: BTreeMap<u64, Table>,
    /// There are compressed clusters.
    pub compressed: bool,
    /// Entries with the zero flag and no cluster, each table counted once.
    pub plain_zeros: u64,
    /// Entries with the zero flag and a cluster, each table counted once.
    pub allocated_zeros: u64,
    /// Clusters of all L1 tables.
    pub l1_clusters: u64,
}

/// Where an L1 table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Table {
    /// Host offset.
    pub offset: HostOffset,
    /// Entries.
    pub entries: u32,
}

/// The active L1 table, then those of the snapshots.
pub fn l1_tables<S: Storage>(storage: &S, header: &Header) -> Result<Vec<L1Table>, TxnError> {
    let mut tables = Vec::new();
    tables.push(L1Table {
        offset: header.l1_table_offset,
        entries: header.l1_size,
    });
    for snapshot in SnapshotTable::new(storage, header) {
        let snapshot = snapshot.map_err(|_| TxnError::Corrupt {
            what: "snapshot table",
        })?;
        tables.push(L1Table {
            offset: snapshot.l1_table_offset,
            entries: snapshot.l1_size,
        });
    }
    Ok(tables)
}

impl Survey {
    /// Looks at every L2 table once, in the order of the L1 tables.
    pub fn take<S: Storage>(
        storage: &S,
        header: &Header,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, TxnError> {
        let l1_tables = l1_tables(storage, header)?;
        let metadata = Metadata::of(storage, header, &l1_tables)?;
        let mut survey = Self::default();
        let total = l1_tables.len() as u64;
        for (table, index) in l1_tables.iter().zip(0_u64..) {
            monitor.progress(index, total)?;
            let l1_bytes = u64::from(table.entries).saturating_mul(8);
            let clusters = header.cluster_bits.clusters_for(l1_bytes);
            survey.l1_clusters = survey.l1_clusters.saturating_add(clusters);
            let mut l1 = read_l1(storage, header, table.offset, table.entries)?;
            survey.count(&mut l1, &metadata, monitor)?;
            for_each_l2(storage, header, &l1, &mut |at, l2| {
                let entry = l1.get(at).copied().unwrap_or_default();
                let offset = L1Entry(entry).l2_offset().get();
                survey.look_at(offset, l2);
                Ok(())
            })?;
        }
        Ok(survey)
    }

    /// Counts the paths; the entries of tables that were met before are cleared.
    fn count(
        &mut self,
        l1: &mut [u64],
        metadata: &Metadata,
        monitor: &mut dyn Monitor,
    ) -> Result<(), TxnError> {
        for entry in l1 {
            let offset = L1Entry(*entry).l2_offset().get();
            if offset == 0 {
                continue;
            }
            metadata.refuse(offset, "L2 table lies over other metadata")?;
            let len = self.tables.len();
            if len > 0 && len.is_multiple_of(TABLES_PER_GRANT) {
                ask_for(monitor, TABLES_PER_GRANT as u64)?;
            }
            let table = self.tables.entry(offset).or_default();
            table.paths = table.paths.saturating_add(1);
            if table.paths > 1 {
                *entry = 0;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, offset: u64, l2: &[u8]) {
        let entries = l2.as_chunks::<8>().0.iter();
        let (mut plain, mut allocated) = (0_u64, 0_u64);
        for entry in entries.map(|raw| L2Entry::from_be_bytes(*raw)) {
            if entry.is_compressed() {
                self.compressed = true;
            } else if entry.has_zero_flag() {
                let zeros = if entry.host_offset().get() == 0 {
                    &mut plain
                } else {
                    &mut allocated
                };
                *zeros = zeros.saturating_add(1);
            }
        }
        self.plain_zeros = self.plain_zeros.saturating_add(plain);
        self.allocated_zeros = self.allocated_zeros.saturating_add(allocated);
        if let Some(table) = self.tables.get_mut(&offset) {
            table.has_zeros = plain > 0 || allocated > 0;
        }
    }

    /// Tables with zero flags.
    pub fn zero_tables(&self) -> u64 {
        self.tables.values().filter(|t| t.has_zeros).count() as u64
    }
}

/// Asks for the memory of `entries` entries of a map, which has as many already.
pub fn ask_for(monitor: &mut dyn Monitor, entries: u64) -> Result<(), TxnError> {
    let bytes = entries.saturating_mul(BYTES_PER_ENTRY);
    if monitor.grant(bytes) < bytes {
        return Err(TxnError::OutOfMemory);
    }
    Ok(())
}
