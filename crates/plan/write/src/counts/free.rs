//! Free clusters: found, taken and given back.

use super::{Block, Counts, ENTRY_BYTES};
use crate::{WriteError, zeroed};
use instar_qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use instar_storage::{StorageError, StorageMut};

/// The errno of a device without room.
const ENOSPC: u32 = 28;

impl Counts {
    /// `count` clusters in a row that are free; their refcounts become 1. Gives the first one's offset.
    pub fn allocate<S: StorageMut>(&mut self, image: &S, count: u64) -> Result<u64, WriteError> {
        loop {
            let first = self.find(image, count)?;
            let end = first.saturating_add(count);
            if self.make_blocks(first, end)? {
                continue;
            }
            for cluster in first..end {
                self.set(image, cluster, 1)?;
            }
            if count == 1 || first == self.hint {
                self.hint = end;
            }
            self.fresh = self.fresh.max(end);
            return Ok(first << self.bits.get());
        }
    }

    /// At most `most` free clusters in a row; their refcounts become 1. Gives the first one's offset, and how many they
    /// are: fewer where no refcount block speaks of the rest.
    pub fn allocate_run<S: StorageMut>(
        &mut self,
        image: &S,
        most: u64,
    ) -> Result<(u64, u64), WriteError> {
        loop {
            let start = self.next_run.max(self.hint);
            let (first, count) = match self.find_from(image, start, most) {
                Ok(first) => (first, most),
                // One by one, wherever there is room.
                Err(_) => (self.find(image, 1)?, 1),
            };
            let end = self.end_of_blocks(first, first.saturating_add(count));
            let count = end.saturating_sub(first);
            if self.make_blocks(first, end)? {
                continue;
            }
            for cluster in first..end {
                self.set(image, cluster, 1)?;
            }
            if first == self.hint {
                self.hint = end;
            }
            self.next_run = end;
            self.fresh = self.fresh.max(end);
            return Ok((first << self.bits.get(), count));
        }
    }

    /// How far a run goes at most: a refcount block that is missing will stand in the first cluster that it speaks of.
    fn end_of_blocks(&self, first: u64, end: u64) -> u64 {
        let (_, at) = self.block_of(first);
        let mut next = first.saturating_sub(at).saturating_add(self.per_block());
        while next < end {
            let (index, _) = self.block_of(next);
            if self.table.get(index).copied().unwrap_or(0) == 0 {
                return next;
            }
            next = next.saturating_add(self.per_block());
        }
        end
    }

    /// A free cluster; its refcount becomes 1. Gives its offset, and whether it reads as zeros because nobody has ever
    /// written there.
    pub fn allocate_one<S: StorageMut>(&mut self, image: &S) -> Result<(u64, bool), WriteError> {
        let fresh = self.fresh;
        let host = self.allocate(image, 1)?;
        Ok((host, host >> self.bits.get() >= fresh))
    }

    /// Whether a cluster can be allocated.
    pub fn is_free<S: StorageMut>(&mut self, image: &S, cluster: u64) -> Result<bool, WriteError> {
        if cluster >= self.limit {
            return Ok(false);
        }
        let width = self.width;
        let (index, at) = self.block_of(cluster);
        Ok(match self.block(image, index)? {
            Some(block) => width.get(&block.bytes, at) == Some(0),
            None => true,
        })
    }

    /// Allocates a certain cluster, which is free; false if its refcount block had to be put there.
    pub fn take<S: StorageMut>(&mut self, image: &S, cluster: u64) -> Result<bool, WriteError> {
        if self.make_blocks(cluster, cluster.saturating_add(1))? {
            return Ok(false);
        }
        self.set(image, cluster, 1)?;
        self.fresh = self.fresh.max(cluster.saturating_add(1));
        Ok(true)
    }

    /// Counts one more reference to a cluster that has one; false if it has none, or as many as can be counted.
    pub fn share<S: StorageMut>(&mut self, image: &S, cluster: u64) -> Result<bool, WriteError> {
        let width = self.width;
        let (index, at) = self.block_of(cluster);
        let old = match self.block(image, index)? {
            Some(block) => width.get(&block.bytes, at).unwrap_or(0),
            None => 0,
        };
        if old == 0 || old >= width.max() {
            return Ok(false);
        }
        self.set(image, cluster, old.saturating_add(1))?;
        Ok(true)
    }

    /// The first of `count` free clusters in a row.
    fn find<S: StorageMut>(&mut self, image: &S, count: u64) -> Result<u64, WriteError> {
        self.find_from(image, self.hint, count)
    }

    /// The first of `count` free clusters in a row, at or behind `start`.
    fn find_from<S: StorageMut>(
        &mut self,
        image: &S,
        start: u64,
        count: u64,
    ) -> Result<u64, WriteError> {
        let (mut first, mut cluster) = (start, start);
        while cluster.saturating_sub(first) < count {
            if cluster >= self.limit {
                return Err(self.no_room());
            }
            let free = self.is_free(image, cluster)?;
            cluster = cluster.saturating_add(1);
            if !free {
                first = cluster;
            }
        }
        Ok(first)
    }

    const fn no_room(&self) -> WriteError {
        if self.fixed {
            WriteError::Storage(StorageError {
                errno: ENOSPC,
                offset: self.limit << self.bits.get(),
            })
        } else {
            WriteError::TooLarge
        }
    }

    /// Makes the first block that is missing for clusters before `end`, in the first of them that it speaks of; true
    /// if there was one.
    fn make_blocks(&mut self, first: u64, end: u64) -> Result<bool, WriteError> {
        let mut cluster = first;
        while cluster < end {
            let (index, at) = self.block_of(cluster);
            if index >= self.table.len() {
                self.outgrow(index)?;
            }
            if let Some(entry) = self.table.get_mut(index)
                && *entry == 0
            {
                *entry = cluster << self.bits.get();
                self.fresh = self.fresh.max(cluster.saturating_add(1));
                let mut bytes = zeroed(self.bits.size_bytes())?;
                self.width.set(&mut bytes, at, 1);
                let block = Block {
                    bytes,
                    dirty: true,
                    fresh: true,
                };
                self.blocks.insert(index, block);
                return Ok(true);
            }
            cluster = cluster.saturating_sub(at).saturating_add(self.per_block());
        }
        Ok(false)
    }

    /// Makes the table long enough for a block, and half as long again.
    fn outgrow(&mut self, index: usize) -> Result<(), WriteError> {
        let needed = index.saturating_add(1);
        let wanted = needed.saturating_add(self.table.len() / 2);
        let bytes = (wanted as u64).saturating_mul(ENTRY_BYTES);
        let bytes = self.bits.clusters_for(bytes) << self.bits.get();
        let bytes = bytes.min(MAX_REFCOUNT_TABLE_BYTES);
        let len = usize::try_from(bytes / ENTRY_BYTES).unwrap_or(0);
        if len < needed {
            return Err(WriteError::TooLarge);
        }
        let more = len.saturating_sub(self.table.len());
        let reserved = self.table.try_reserve(more);
        reserved.map_err(|_| WriteError::OutOfMemory)?;
        self.table.resize(len, 0);
        self.outgrown = true;
        Ok(())
    }

    /// Takes back clusters that were allocated and that nothing refers to.
    pub fn give_back<S: StorageMut>(&mut self, image: &S, host: u64) -> Result<(), WriteError> {
        let cluster = host >> self.bits.get();
        self.set(image, cluster, 0)?;
        self.hint = self.hint.min(cluster);
        self.next_run = self.next_run.min(cluster);
        Ok(())
    }
}
