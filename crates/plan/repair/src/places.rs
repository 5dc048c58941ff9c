//! Structures put elsewhere while the refcounts are right.
//!
//! A new place is counted in the refcount block where it is; the structure is
//! written; flush; one sector names the new place instead of the old one; flush;
//! the old place is free. What a crash leaves between the steps is a leak.

use crate::job::{Job, failed};
use crate::snapshots::{self, NewTable};
use crate::table::BlockTable;
use crate::{CheckError, rebuild};
use alloc::vec::Vec;
use instar_plan_check::parts::zeroed;
use instar_qcow2::HostOffset;
use instar_qcow2::header::MAX_FILE_BYTES;
use instar_qcow2::refcount::RefcountWidth;
use instar_storage::StorageMut;

/// What never tears.
const SECTOR: usize = 512;
/// Refcount blocks that are moved at once, at most.
const MAX_MOVES: usize = 1 << 16;
/// How often everything is moved: what has moved leaves room for what has not.
const ROUNDS: usize = 2;

/// Refcounts that are changed in their blocks.
pub(crate) struct Places<'j, 'a, S> {
    job: &'j mut Job<'a, S>,
    table: BlockTable,
    width: RefcountWidth,
    block: Vec<u8>,
    /// The block that is in memory.
    loaded: Option<u64>,
    /// Bytes of it that were changed.
    dirty: Option<(usize, usize)>,
}

/// A refcount block on its way.
struct Move {
    index: u64,
    from: u64,
    to: u64,
}

impl<'j, 'a, S: StorageMut> Places<'j, 'a, S> {
    pub(crate) fn new(job: &'j mut Job<'a, S>) -> Result<Self, CheckError> {
        let table = BlockTable::read(job.storage, &job.header)?;
        let width = RefcountWidth::from_order(job.header.refcount_order);
        let block = zeroed(job.header.cluster_bits.size_bytes())?;
        Ok(Self {
            job,
            table,
            width: width.ok_or(CheckError::OutOfMemory)?,
            block,
            loaded: None,
            dirty: None,
        })
    }

    /// Writes the snapshot table anew: in the file, or behind its end if
    /// `may_grow`. False if there is no room that refcount blocks speak of.
    pub(crate) fn replace_snapshots(
        mut self,
        new: &NewTable,
        may_grow: bool,
    ) -> Result<bool, CheckError> {
        let storage = self.job.storage;
        let bits = self.job.header.cluster_bits;
        let limit = match may_grow {
            true => MAX_FILE_BYTES >> bits.get(),
            false => bits.clusters_for(storage.len_bytes()),
        };
        let clusters = bits.clusters_for(new.bytes);
        let Some(first) = self.find(clusters, limit)? else {
            return Ok(false);
        };
        let old = new.kept_span(&self.job.header);
        self.job.mark(true)?;
        // First: a refcount past the end of the file would never be put right.
        let end = first.saturating_add(clusters) << bits.get();
        if clusters > 0 && storage.len_bytes() < end {
            storage.set_len(end).map_err(failed)?;
            self.job.flush()?;
        }
        self.set(first, clusters, 1)?;
        snapshots::write(storage, &self.job.header, new, first << bits.get())?;
        self.job.flush()?;
        self.job.header.nb_snapshots = new.count;
        self.switch_snapshots(first)?;
        if let Some((first, last)) = old {
            self.set(first, last.saturating_sub(first).saturating_add(1), 0)?;
        }
        Ok(true)
    }

    /// Moves refcount structures and snapshot table, if they lie behind the first
    /// `len` bytes of the file, to lower places, and cuts the file.
    pub(crate) fn move_down(mut self, snapshots: u64, len: u64) -> Result<(), CheckError> {
        let bits = self.job.header.cluster_bits;
        let start = bits.clusters_for(len);
        for _ in 0..ROUNDS {
            let offset = self.job.header.snapshots_offset.get();
            if let Some(to) = self.copy_down(offset, bits.clusters_for(snapshots), start)? {
                self.switch_snapshots(to)?;
                self.set(offset >> bits.get(), bits.clusters_for(snapshots), 0)?;
            }
            let offset = self.job.header.refcount_table_offset.get();
            let clusters = self.job.header.refcount_table_clusters;
            if let Some(to) = self.copy_down(offset, clusters.into(), start)? {
                self.job.header.refcount_table_offset = HostOffset(to << bits.get());
                rebuild::write_places(self.job)?;
                self.set(offset >> bits.get(), clusters.into(), 0)?;
            }
            self.move_blocks(start)?;
        }
        let storage = self.job.storage;
        let mut end = bits.clusters_for(storage.len_bytes());
        while end > start && self.is_free(end.saturating_sub(1))? {
            end = end.saturating_sub(1);
        }
        let end = len.max(end << bits.get());
        // The last cluster of the file may have been there in part.
        if end < storage.len_bytes() {
            storage.set_len(end).map_err(failed)?;
        }
        Ok(())
    }

    fn switch_snapshots(&mut self, cluster: u64) -> Result<(), CheckError> {
        let header = &mut self.job.header;
        let offset = cluster << header.cluster_bits.get();
        header.snapshots_offset = HostOffset(if header.nb_snapshots == 0 { 0 } else { offset });
        rebuild::write_places(self.job)
    }

    /// Where something that lies at cluster `from` or behind it may go to: not
    /// where the file was not before, if references point there.
    fn lower(&mut self, from: u64, count: u64, start: u64) -> Result<Option<u64>, CheckError> {
        let limit = if self.job.grown_over { start } else { from };
        self.find(count, limit)
    }

    /// Copies a table that lies at cluster `start` or behind it down, durably;
    /// the first cluster of the copy.
    fn copy_down(
        &mut self,
        offset: u64,
        clusters: u64,
        start: u64,
    ) -> Result<Option<u64>, CheckError> {
        let bits = self.job.header.cluster_bits.get();
        let from = offset >> bits;
        if clusters == 0 || from < start {
            return Ok(None);
        }
        let Some(to) = self.lower(from, clusters, start)? else {
            return Ok(None);
        };
        self.set(to, clusters, 1)?;
        for at in 0..clusters {
            self.copy(from.saturating_add(at), to.saturating_add(at))?;
        }
        self.job.flush()?;
        Ok(Some(to))
    }

    /// Moves refcount blocks. Old and new ones are the same until the table names the
    /// new ones.
    fn move_blocks(&mut self, start: u64) -> Result<(), CheckError> {
        let bits = self.job.header.cluster_bits.get();
        let mut moves = Vec::new();
        for index in 0..self.table.len() {
            let from = self.table.block(index).unwrap_or(0) >> bits;
            if from < start.max(1) || moves.len() >= MAX_MOVES {
                continue;
            }
            let Some(to) = self.lower(from, 1, start)? else {
                break;
            };
            self.set(to, 1, 1)?;
            moves.try_reserve(1).map_err(|_| CheckError::OutOfMemory)?;
            moves.push(Move { index, from, to });
        }
        if moves.is_empty() {
            return Ok(());
        }
        for moved in &moves {
            self.copy(moved.from, moved.to)?;
        }
        self.job.flush()?;
        for moved in &moves {
            self.name_block(moved.index, moved.to << bits)?;
        }
        self.job.flush()?;
        self.table = BlockTable::read(self.job.storage, &self.job.header)?;
        moves.iter().try_for_each(|old| self.set(old.from, 1, 0))
    }

    /// Writes an entry of the refcount table.
    fn name_block(&self, index: u64, offset: u64) -> Result<(), CheckError> {
        let start = self.job.header.refcount_table_offset.get();
        let at = start.saturating_add(index.saturating_mul(8));
        let mut sector = [0; SECTOR];
        let first = at & !(SECTOR as u64).saturating_sub(1);
        let storage = self.job.storage;
        storage.read_at(first, &mut sector).map_err(failed)?;
        let place = usize::try_from(at.saturating_sub(first) / 8).unwrap_or(SECTOR);
        if let Some(entry) = sector.as_chunks_mut::<8>().0.get_mut(place) {
            *entry = offset.to_be_bytes();
        }
        storage.write_at(first, &sector).map_err(failed)
    }

    fn copy(&self, from: u64, to: u64) -> Result<(), CheckError> {
        let bits = self.job.header.cluster_bits;
        let mut cluster = zeroed(bits.size_bytes())?;
        let storage = self.job.storage;
        let read = storage.read_at(from << bits.get(), &mut cluster);
        read.map_err(failed)?;
        storage.write_at(to << bits.get(), &cluster).map_err(failed)
    }

    /// The first of `count` free clusters in a row below `limit`, if there are so many.
    fn find(&mut self, count: u64, limit: u64) -> Result<Option<u64>, CheckError> {
        let (mut first, mut cluster) = (1_u64, 1_u64);
        let known = self.table.len() << self.table.block_bits();
        while cluster.saturating_sub(first) < count {
            if cluster >= limit.min(known) {
                return Ok(None);
            }
            let at = self.load(cluster)?;
            let used = at.is_none_or(|at| self.width.get(&self.block, at) != Some(0));
            // A block that is missing is passed over as a whole.
            let last = match at {
                Some(_) => cluster,
                None => cluster | (1_u64 << self.table.block_bits()).saturating_sub(1),
            };
            cluster = last.saturating_add(1);
            if used {
                first = cluster;
            }
        }
        Ok(Some(first))
    }

    /// True if a refcount block says that nothing is in the cluster.
    fn is_free(&mut self, cluster: u64) -> Result<bool, CheckError> {
        let at = self.load(cluster)?;
        Ok(at.and_then(|at| self.width.get(&self.block, at)) == Some(0))
    }

    /// Has the block of a cluster in memory; the cluster's place in it, if it exists.
    fn load(&mut self, cluster: u64) -> Result<Option<u64>, CheckError> {
        let bits = self.table.block_bits();
        let index = cluster >> bits;
        let Some(offset) = self.table.block(index) else {
            return Ok(None);
        };
        if self.loaded != Some(index) {
            self.store()?;
            self.loaded = None;
            let storage = self.job.storage;
            storage.read_at(offset, &mut self.block).map_err(failed)?;
            self.loaded = Some(index);
        }
        Ok(Some(cluster & (1_u64 << bits).saturating_sub(1)))
    }

    /// Gives clusters a refcount, those of which a block speaks.
    fn set(&mut self, first: u64, count: u64, value: u64) -> Result<(), CheckError> {
        let known = self.table.len() << self.table.block_bits();
        for cluster in first..first.saturating_add(count).min(known) {
            let Some(at) = self.load(cluster)? else {
                continue;
            };
            self.width.set(&mut self.block, at, value);
            let byte = (at << self.job.header.refcount_order) / 8;
            let from = usize::try_from(byte).unwrap_or(0) & !SECTOR.saturating_sub(1);
            let to = from.saturating_add(SECTOR);
            self.dirty = Some(match self.dirty {
                Some((low, high)) => (low.min(from), high.max(to)),
                None => (from, to),
            });
        }
        self.store()
    }

    /// Writes what of the block in memory was changed.
    fn store(&mut self) -> Result<(), CheckError> {
        let (Some((from, to)), Some(index)) = (self.dirty.take(), self.loaded) else {
            return Ok(());
        };
        let Some(offset) = self.table.block(index) else {
            return Ok(());
        };
        let bytes = self.block.get(from..to).unwrap_or_default();
        let at = offset.saturating_add(from as u64);
        self.job.storage.write_at(at, bytes).map_err(failed)
    }
}
