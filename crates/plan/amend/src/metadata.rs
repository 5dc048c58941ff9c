//! Clusters that hold no guest data: whoever refers to one of them as an L2 table
//! or as a data cluster does so in a damaged image.

use crate::tables::L1Table;
use alloc::vec::Vec;
use instar_plan_txn::TxnError;
use instar_qcow2::entries::RefcountTableEntry;
use instar_qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{ClusterBits, Header};
use instar_storage::Storage;

/// Bytes of the refcount table that are read at once.
const CHUNK_BYTES: u64 = 64 << 10;

/// Header, L1 tables, refcount structures, snapshot table, encryption header; not the L2 tables.
#[derive(Debug)]
pub struct Metadata {
    bits: ClusterBits,
    /// First cluster and the one after the last; ascending, apart from one another.
    ranges: Vec<(u64, u64)>,
}

impl Metadata {
    /// That of an image with these L1 tables.
    pub fn of<S: Storage>(
        storage: &S,
        header: &Header,
        l1_tables: &[L1Table],
    ) -> Result<Self, TxnError> {
        let bits = header.cluster_bits;
        let mut found = Self {
            bits,
            ranges: Vec::new(),
        };
        found.add(0, bits.size_bytes())?;
        for table in l1_tables {
            found.add(
                table.offset.get(),
                u64::from(table.entries).saturating_mul(8),
            )?;
        }
        let table_bytes = header.refcount_table_bytes().min(MAX_REFCOUNT_TABLE_BYTES);
        found.add(header.refcount_table_offset.get(), table_bytes)?;
        found.add_blocks(storage, header.refcount_table_offset.get(), table_bytes)?;
        let mut snapshots = SnapshotTable::new(storage, header);
        while snapshots.next().is_some_and(|entry| entry.is_ok()) {}
        found.add(header.snapshots_offset.get(), snapshots.bytes_read())?;
        if let Some(crypto) = header.extensions.crypto_header {
            found.add(crypto.offset.get(), crypto.length)?;
        }
        found.merge();
        Ok(found)
    }

    fn add(&mut self, offset: u64, bytes: u64) -> Result<(), TxnError> {
        if bytes > 0 {
            let first = offset >> self.bits.get();
            let end = self.bits.clusters_for(offset.saturating_add(bytes));
            self.ranges
                .try_reserve(1)
                .map_err(|_| TxnError::OutOfMemory)?;
            self.ranges.push((first, end));
        }
        Ok(())
    }

    fn add_blocks<S: Storage>(
        &mut self,
        storage: &S,
        offset: u64,
        bytes: u64,
    ) -> Result<(), TxnError> {
        let mut chunk = Vec::new();
        let mut done = 0_u64;
        while done < bytes {
            let len = bytes.saturating_sub(done).min(CHUNK_BYTES);
            chunk.resize(usize::try_from(len).unwrap_or(0), 0);
            storage.read_at(offset.saturating_add(done), &mut chunk)?;
            for raw in chunk.as_chunks::<8>().0 {
                let block = RefcountTableEntry::from_be_bytes(*raw).block_offset().get();
                if block != 0 {
                    self.add(block, self.bits.size_bytes())?;
                }
            }
            done = done.saturating_add(len);
        }
        Ok(())
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, kept| {
            let touches = next.0 <= kept.1;
            if touches {
                kept.1 = kept.1.max(next.1);
            }
            touches
        });
    }

    /// An error that says `what` if the cluster at `offset` is one of these.
    pub fn refuse(&self, offset: u64, what: &'static str) -> Result<(), TxnError> {
        let cluster = offset >> self.bits.get();
        let after = self.ranges.partition_point(|range| range.0 <= cluster);
        let before = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        match before {
            Some(range) if cluster < range.1 => Err(TxnError::Corrupt { what }),
            _ => Ok(()),
        }
    }
}
