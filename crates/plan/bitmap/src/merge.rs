//! The table and the bits of a bitmap into which others are merged, cluster by cluster.

use crate::actions::{Base, bits_of, table_entries};
use crate::commit::Change;
use crate::guard::Freed;
use crate::reader::{Reader, Table};
use crate::span::Span;
use crate::zeroed;
use alloc::vec::Vec;
use instar_plan_txn::{Monitor, Transaction, TxnError};
use instar_qcow2::HostOffset;
use instar_qcow2::bitmaps::{Bitmap, BitmapTableEntry};
use instar_storage::{Storage, StorageMut};

/// Clusters between two looks at the monitor.
const PROGRESS_STEP: u64 = 64;

/// A merge under way.
pub(crate) struct Merge<'m, 'c, S> {
    change: &'m Change<'c, S>,
    granularity_bits: u8,
    /// The bitmap's own table; `None`: all its bits are clear.
    base: Option<Table<'c, S>>,
    /// Bytes of a cluster.
    cluster: u64,
    /// What the sources set in the cluster at hand.
    added: Vec<u8>,
    /// What the bitmap has there.
    own: Vec<u8>,
}

impl<'m, 'c, S: StorageMut> Merge<'m, 'c, S> {
    /// A merge into a bitmap of this granularity that starts as `base`, with the bits of `stored`.
    pub(crate) fn new(
        change: &'m Change<'c, S>,
        granularity_bits: u8,
        base: Base,
        stored: Option<&Bitmap>,
    ) -> Result<Self, TxnError> {
        let header = change.header;
        let cluster = header.cluster_bits.size_bytes();
        let stored = stored.filter(|_| base == Base::Stored);
        Ok(Self {
            change,
            granularity_bits,
            base: stored.map(|bitmap| Table::new(change.storage, header, bitmap)),
            cluster,
            added: zeroed(cluster)?,
            own: zeroed(cluster)?,
        })
    }

    /// The new table's entries, with zeros to the end of its last cluster. Clusters that change are written,
    /// the ones that they stand for are added to `freed`. `None` if the bitmap has all the bits already.
    pub(crate) fn run<R: Storage>(
        &mut self,
        txn: &mut Transaction<'_, S>,
        readers: &mut [Reader<'_, R>],
        freed: &mut Freed,
        monitor: &mut dyn Monitor,
    ) -> Result<Option<Vec<u8>>, TxnError> {
        let header = self.change.header;
        let entries = table_entries(header, self.granularity_bits);
        let bytes = entries.saturating_mul(8);
        let padded = header
            .cluster_bits
            .clusters_for(bytes)
            .saturating_mul(self.cluster);
        let mut table = zeroed(padded)?;
        let mut changed = self.base.is_none();
        for (raw, index) in table.as_chunks_mut::<8>().0.iter_mut().zip(0..entries) {
            if index % PROGRESS_STEP == 0 {
                monitor.progress(index, entries)?;
            }
            let old = match &mut self.base {
                Some(table) => table.sound(index)?,
                None => BitmapTableEntry::default(),
            };
            let new = match self.merge_cluster(old, index, readers)? {
                Some(bytes) => {
                    changed = true;
                    if old.host_offset().get() != 0 {
                        freed.add(header, old.host_offset(), 1)?;
                    }
                    write(txn, bytes)?.get()
                }
                None => old.0,
            };
            *raw = new.to_be_bytes();
        }
        Ok(changed.then_some(table))
    }

    /// The bits of cluster `index`, if the sources set one that is not set.
    fn merge_cluster<R: Storage>(
        &mut self,
        old: BitmapTableEntry,
        index: u64,
        readers: &mut [Reader<'_, R>],
    ) -> Result<Option<Vec<u8>>, TxnError> {
        let per_cluster = self.cluster.saturating_mul(8);
        let first = index.saturating_mul(per_cluster);
        let total = bits_of(self.change.header, self.granularity_bits);
        let mut span = Span {
            bytes: &mut self.added,
            first,
            count: total.saturating_sub(first).min(per_cluster),
            granularity_bits: self.granularity_bits,
            disk_bytes: self.change.header.whole_sectors_size(),
        };
        let mut any = false;
        for reader in readers {
            any |= reader.merge_into(&mut span)?;
        }
        if !any {
            return Ok(None);
        }
        span.clear_tail();
        let merged = self.join(old, first, total)?;
        self.added.fill(0);
        Ok(merged)
    }

    /// The cluster's own bits and the added ones, if they are more.
    fn join(
        &mut self,
        old: BitmapTableEntry,
        first: u64,
        total: u64,
    ) -> Result<Option<Vec<u8>>, TxnError> {
        match old.host_offset() {
            HostOffset(0) if old.all_ones() => self.own.fill(0xff),
            HostOffset(0) => self.own.fill(0),
            offset => self.change.storage.read_at(offset.get(), &mut self.own)?,
        }
        let mut pairs = self.own.iter().zip(&self.added);
        if pairs.all(|(own, added)| added & !own == 0) {
            return Ok(None);
        }
        let mut bytes = zeroed(self.cluster)?;
        let pairs = self.own.iter().zip(&self.added);
        bytes
            .iter_mut()
            .zip(pairs)
            .for_each(|(to, (own, added))| *to = own | added);
        let mut span = Span {
            bytes: &mut bytes,
            first,
            count: total
                .saturating_sub(first)
                .min(self.cluster.saturating_mul(8)),
            granularity_bits: self.granularity_bits,
            disk_bytes: 0,
        };
        span.clear_tail();
        Ok(Some(bytes))
    }
}

/// Writes whole clusters to a new place that stays theirs.
pub(crate) fn write<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    bytes: Vec<u8>,
) -> Result<HostOffset, TxnError> {
    let clusters = txn.header.cluster_bits.clusters_for(bytes.len() as u64);
    let offset = txn.allocate_fixed(clusters)?;
    txn.write(offset, bytes)?;
    Ok(offset)
}
