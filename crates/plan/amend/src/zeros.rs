//! Zero clusters become data clusters, or unallocated ones.
//!
//! Version 2 has no zero flag. What an entry with the flag becomes:
//!
//! - without a cluster, no backing file: unallocated, which reads as zeros too;
//! - without a cluster, above a backing file: a new cluster of zeros;
//! - with a cluster to which only such entries refer: that cluster, filled with
//!   zeros where it is;
//! - with a cluster whose data another entry uses: a new cluster of zeros.
//!
//! In an encrypted image, where zeros on the disk are no zeros for the guest, an
//! entry without a backing file below becomes unallocated in any case.
//!
//! An L2 table that several L1 entries share stays shared: it is written anew once,
//! with as many references as the old one had.

use crate::metadata::Metadata;
use crate::tables::{L1Table, Survey, Table, ask_for, l1_tables};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use instar_plan_txn::{Monitor, Transaction, TxnError, for_each_l2};
use instar_qcow2::entries::{ALL_ZEROS, L1Entry, L2Entry, OFFSET_MASK};
use instar_qcow2::{Header, HostOffset};
use instar_storage::StorageMut;

/// L2 tables that are looked at between two looks at the monitor.
const TABLES_PER_STEP: usize = 1024;
/// Shared clusters that are counted between two requests for memory.
const SHARED_PER_GRANT: usize = 16_384;

/// Rewrites every L2 table that has zero flags, and what refers to it.
///
/// `survey` is that of the transaction's state. True if anything was rewritten.
pub fn expand<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    survey: &mut Survey,
    monitor: &mut dyn Monitor,
) -> Result<bool, TxnError> {
    let total = survey.zero_tables();
    if total == 0 {
        return Ok(false);
    }
    // What was queued is on the disk after this, so that tables can be read in batches.
    let mut snapshots = txn.read_snapshots()?;
    let l1_tables = l1_tables(txn.storage(), &txn.header)?;
    let metadata = Metadata::of(txn.storage(), &txn.header, &l1_tables)?;
    let encrypted = txn.header.crypt_method != instar_qcow2::header::CryptMethod::None;
    let header = txn.header.clone();
    let mut expansion = Expansion {
        header: &header,
        survey,
        metadata,
        keeps_clusters: !encrypted,
        fills: !encrypted && txn.header.backing_file.is_some(),
        released: BTreeMap::new(),
        refresh_all: false,
        run: (0, 0),
        done: 0,
        total,
        monitor,
    };
    expansion.release_shared(txn)?;
    let (active, others) = l1_tables.split_first().ok_or(TxnError::OutOfMemory)?;
    let mut l1 = expansion.rewrite_tables(txn, *active)?;
    let mut any = false;
    for (table, entry) in others.iter().zip(&mut snapshots) {
        let mut l1 = expansion.rewrite_tables(txn, *table)?;
        if expansion.redirect(&mut l1) {
            txn.free(table.offset, u64::from(table.entries).saturating_mul(8))?;
            entry.l1_table_offset = txn.write_l1(&l1)?;
            any = true;
        }
    }
    expansion.fill_run(txn.storage())?;
    if any {
        txn.replace_snapshots(&snapshots)?;
    }
    if expansion.redirect(&mut l1) {
        for entry in &mut l1 {
            *entry = txn.with_copied_by_refcount(*entry)?;
        }
        txn.replace_active_l1(&l1)?;
    }
    Ok(true)
}

struct Expansion<'a> {
    /// The transaction's, when it began.
    header: &'a Header,
    survey: &'a mut Survey,
    metadata: Metadata,
    /// Clusters of zero entries become data clusters.
    keeps_clusters: bool,
    /// Zero entries without a cluster get one.
    fills: bool,
    /// Clusters from which the references of zero entries were taken away, and how many.
    released: BTreeMap<u64, u64>,
    /// Refcounts of data clusters fell: COPIED may change in every table.
    refresh_all: bool,
    /// Bytes to be filled with zeros: where, how many.
    run: (u64, u64),
    done: u64,
    total: u64,
    monitor: &'a mut dyn Monitor,
}

impl Expansion<'_> {
    /// Finds the clusters that zero entries share with entries that use the data, and takes the former's
    /// references away.
    fn release_shared<S: StorageMut>(
        &mut self,
        txn: &mut Transaction<'_, S>,
    ) -> Result<(), TxnError> {
        if self.survey.allocated_zeros == 0 {
            return Ok(());
        }
        for (cluster, zero_paths) in self.count_shared(txn)? {
            let refcount = txn.refcount(cluster)?;
            if refcount == zero_paths && self.keeps_clusters {
                continue;
            }
            lower(txn, cluster, zero_paths)?;
            self.released.insert(cluster, zero_paths);
            self.refresh_all |= refcount > zero_paths;
        }
        Ok(())
    }

    /// Clusters of zero entries to which more refers than one L2 table, and how many paths with the zero flag
    /// lead to each.
    fn count_shared<S: StorageMut>(
        &mut self,
        txn: &mut Transaction<'_, S>,
    ) -> Result<BTreeMap<u64, u64>, TxnError> {
        let mut shared = BTreeMap::new();
        let bits = txn.header.cluster_bits;
        let header = self.header;
        let offsets: Vec<u64> = self.with_zeros().collect();
        for some in offsets.chunks(TABLES_PER_STEP) {
            self.monitor.progress(0, self.total)?;
            for_each_l2(txn.storage(), header, some, &mut |at, l2| {
                let offset = some.get(at).copied().unwrap_or_default();
                let paths = self.table(offset).paths;
                for raw in l2.as_chunks::<8>().0 {
                    let Some(host) = allocated_zero(*raw) else {
                        continue;
                    };
                    self.judge(bits.is_aligned(host), host)?;
                    let cluster = host >> bits.get();
                    let refcount = txn.refcount(cluster)?;
                    if refcount < paths {
                        return Err(TxnError::Corrupt {
                            what: "refcount is too low",
                        });
                    }
                    if refcount > paths {
                        let len = shared.len();
                        if len > 0 && len.is_multiple_of(SHARED_PER_GRANT) {
                            ask_for(self.monitor, SHARED_PER_GRANT as u64)?;
                        }
                        let count = shared.entry(cluster).or_insert(0_u64);
                        *count = count.saturating_add(paths);
                    }
                }
                Ok(())
            })?;
        }
        Ok(shared)
    }

    /// Refuses a cluster that holds, or may hold, something else than guest data.
    fn judge(&self, aligned: bool, host: u64) -> Result<(), TxnError> {
        if !aligned {
            return Err(TxnError::Corrupt {
                what: "data cluster is not cluster aligned",
            });
        }
        let what = "data cluster lies over metadata";
        if self.survey.tables.contains_key(&host) {
            return Err(TxnError::Corrupt { what });
        }
        self.metadata.refuse(host, what)
    }

    fn with_zeros(&self) -> impl Iterator<Item = u64> {
        let tables = self.survey.tables.iter();
        tables
            .filter(|(_, t)| t.has_zeros)
            .map(|(offset, _)| *offset)
    }

    fn table(&self, offset: u64) -> Table {
        self.survey.tables.get(&offset).copied().unwrap_or_default()
    }

    /// Writes the L2 tables of an L1 table anew that need it and were not met before. Gives the L1 table as it is.
    fn rewrite_tables<S: StorageMut>(
        &mut self,
        txn: &mut Transaction<'_, S>,
        at: L1Table,
    ) -> Result<Vec<u64>, TxnError> {
        let l1 = txn.read_l1(at.offset, at.entries)?;
        let header = self.header;
        let mut todo = Vec::new();
        for entries in l1.chunks(TABLES_PER_STEP) {
            self.monitor.progress(self.done, self.total)?;
            todo.clear();
            for entry in entries {
                let offset = L1Entry(*entry).l2_offset().get();
                let table = self.table(offset);
                if !table.done && (table.has_zeros || self.refresh_all) && offset != 0 {
                    todo.push(offset);
                    self.mark(offset, None);
                }
            }
            for_each_l2(txn.storage(), header, &todo, &mut |at, l2| {
                let offset = todo.get(at).copied().unwrap_or_default();
                self.rewrite(txn, offset, l2)
            })?;
        }
        Ok(l1)
    }

    fn mark(&mut self, offset: u64, new: Option<HostOffset>) {
        if let Some(table) = self.survey.tables.get_mut(&offset) {
            table.done = true;
            table.new = new;
        }
    }

    fn rewrite<S: StorageMut>(
        &mut self,
        txn: &mut Transaction<'_, S>,
        offset: u64,
        l2: &mut [u8],
    ) -> Result<(), TxnError> {
        let Table {
            paths, has_zeros, ..
        } = self.table(offset);
        if has_zeros {
            for raw in l2.as_chunks_mut::<8>().0 {
                let entry = L2Entry::from_be_bytes(*raw);
                if !entry.is_compressed() && entry.has_zero_flag() {
                    *raw = self.expand_entry(txn, entry, paths)?.to_be_bytes();
                }
            }
            self.done = self.done.saturating_add(1);
        }
        let copied_changed = txn.refresh_copied(l2)?;
        if !has_zeros && !copied_changed {
            return Ok(());
        }
        let bits = txn.header.cluster_bits;
        let new = txn.allocate_table(1)?;
        txn.set_refcount(bits.cluster_of(new).get(), paths)?;
        lower(txn, offset >> bits.get(), paths)?;
        txn.write(new, l2.to_vec())?;
        self.mark(offset, Some(new));
        Ok(())
    }

    /// The entry of version 2 for one with the zero flag, in a table to which `paths` paths lead.
    fn expand_entry<S: StorageMut>(
        &mut self,
        txn: &mut Transaction<'_, S>,
        entry: L2Entry,
        paths: u64,
    ) -> Result<u64, TxnError> {
        let bits = txn.header.cluster_bits;
        let host = entry.host_offset().get();
        let released = self.released.contains_key(&(host >> bits.get()));
        if host != 0 && !released && self.keeps_clusters {
            self.fill(txn.storage(), host, bits.size_bytes())?;
            return Ok(entry.0 & !ALL_ZEROS);
        }
        if host != 0 && !released {
            lower(txn, host >> bits.get(), paths)?;
        }
        // A cluster that is given up is replaced, as QEMU leaves such an entry allocated.
        if !self.fills && (host == 0 || !self.keeps_clusters) {
            return Ok(0);
        }
        let new = txn.allocate_fixed(1)?;
        txn.set_refcount(bits.cluster_of(new).get(), paths)?;
        self.fill(txn.storage(), new.get(), bits.size_bytes())?;
        Ok(new.get())
    }

    /// Adds to the run of bytes that become zeros.
    fn fill<S: StorageMut>(&mut self, storage: &S, at: u64, len: u64) -> Result<(), TxnError> {
        if self.run.0.saturating_add(self.run.1) == at && self.run.1 > 0 {
            self.run.1 = self.run.1.saturating_add(len);
            return Ok(());
        }
        self.fill_run(storage)?;
        self.run = (at, len);
        Ok(())
    }

    fn fill_run<S: StorageMut>(&mut self, storage: &S) -> Result<(), TxnError> {
        let (at, len) = self.run;
        self.run = (0, 0);
        if len > 0 {
            storage.write_zeroes(at, len)?;
        }
        Ok(())
    }

    /// Points the entries to the new tables; true if there are any.
    fn redirect(&self, l1: &mut [u64]) -> bool {
        let mut any = false;
        for entry in l1 {
            let offset = L1Entry(*entry).l2_offset().get();
            if let Some(new) = self.table(offset).new {
                *entry = (*entry & !OFFSET_MASK) | new.get();
                any = true;
            }
        }
        any
    }
}

/// The cluster of an entry that has both one and the zero flag.
const fn allocated_zero(raw: [u8; 8]) -> Option<u64> {
    let entry = L2Entry::from_be_bytes(raw);
    let host = entry.host_offset().get();
    if entry.is_compressed() || !entry.has_zero_flag() || host == 0 {
        return None;
    }
    Some(host)
}

/// Takes `count` references from a cluster.
fn lower<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    cluster: u64,
    count: u64,
) -> Result<(), TxnError> {
    let left = txn.refcount(cluster)?.checked_sub(count);
    let left = left.ok_or(TxnError::Corrupt {
        what: "refcount is too low",
    })?;
    txn.set_refcount(cluster, left)
}
