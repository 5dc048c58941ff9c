//! Refcounts, changed where they are: qcow2 "Host cluster management".

use crate::header::write_fields;
use crate::sorted::Sorted;
use crate::{CACHE_BYTES, WriteError, zeroed};
use alloc::vec::Vec;
use instar_qcow2::entries::RefcountTableEntry;
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use instar_qcow2::refcount::RefcountWidth;
use instar_qcow2::{ClusterBits, Header, HostOffset};
use instar_storage::{StorageError, StorageMut};

/// The first byte that no entry's offset field can name: bits 9-55.
const OFFSET_LIMIT: u64 = 1 << 56;
/// The errno of a device without room.
const ENOSPC: u32 = 28;
/// Bytes of a refcount table entry.
const ENTRY_BYTES: u64 = 8;

/// A refcount block in memory.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// It differs from the file's.
    dirty: bool,
    /// The file's refcount table does not name it.
    fresh: bool,
}

/// Runs of clusters: first and count.
#[derive(Debug, Default)]
struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// Adds a cluster, to the last run if it adjoins.
    fn add(&mut self, cluster: u64) {
        match self.0.last_mut() {
            Some((first, count)) if first.saturating_add(*count) == cluster => {
                *count = count.saturating_add(1);
            }
            _ => self.0.push((cluster, 1)),
        }
    }
}

/// All refcounts.
#[derive(Debug)]
pub struct Counts {
    bits: ClusterBits,
    width: RefcountWidth,
    /// Where each block lies, 0 if nowhere.
    table: Vec<u64>,
    /// The table in the file is shorter.
    outgrown: bool,
    blocks: Sorted<usize, Block>,
    /// No cluster below it is free.
    hint: u64,
    /// Runs are looked for from here on.
    next_run: u64,
    /// What lies from this cluster on was never written: it is past the end that the file had, and was not given yet.
    fresh: u64,
    /// First cluster that there can be no more.
    limit: u64,
    /// The file's length is given.
    fixed: bool,
    /// Blocks of clusters that become free go back to the host.
    pub punch: bool,
    /// Bytes of blocks in memory, unless that is less than four of them.
    pub cache: u64,
    /// Runs that are to lose a reference when nothing refers to them: first and count.
    drops: Vec<(u64, u64)>,
}

impl Counts {
    /// Reads the refcount table.
    pub fn read<S: StorageMut>(image: &S, header: &Header) -> Result<Self, WriteError> {
        let bits = header.cluster_bits;
        let what = "refcount width";
        let width = RefcountWidth::from_order(header.refcount_order);
        let width = width.ok_or(WriteError::Corrupt { what })?;
        if header.refcount_table_bytes() > MAX_REFCOUNT_TABLE_BYTES {
            return Err(WriteError::TooLarge);
        }
        let mut raw = zeroed(header.refcount_table_bytes())?;
        image.read_at(header.refcount_table_offset.get(), &mut raw)?;
        let mut table = Vec::new();
        table
            .try_reserve_exact(raw.len() / 8)
            .map_err(|_| WriteError::OutOfMemory)?;
        for entry in raw.as_chunks::<8>().0 {
            let offset = RefcountTableEntry::from_be_bytes(*entry).block_offset();
            if !bits.is_aligned(offset.get()) {
                let what = "refcount block is not cluster aligned";
                return Err(WriteError::Corrupt { what });
            }
            table.push(offset.get());
        }
        let format = MAX_FILE_BYTES.min(OFFSET_LIMIT) >> bits.get();
        let fixed = !image.can_grow();
        let limit = if fixed {
            format.min(image.len_bytes() >> bits.get())
        } else {
            format
        };
        Ok(Self {
            bits,
            width,
            table,
            outgrown: false,
            blocks: Sorted::default(),
            hint: 1,
            next_run: 1,
            fresh: if fixed {
                u64::MAX
            } else {
                bits.clusters_for(image.len_bytes())
            },
            limit,
            fixed,
            punch: false,
            cache: CACHE_BYTES,
            drops: Vec::new(),
        })
    }

    /// Where refcount blocks lie.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|place| *place != 0)
    }

    fn per_block(&self) -> u64 {
        self.width.entries_in(self.bits.size_bytes()).max(1)
    }

    fn block_of(&self, cluster: u64) -> (usize, u64) {
        let index = cluster.checked_div(self.per_block()).unwrap_or(0);
        let at = cluster.checked_rem(self.per_block()).unwrap_or(0);
        (usize::try_from(index).unwrap_or(usize::MAX), at)
    }

    /// The block in memory; `None` if there is no such block.
    fn block<S: StorageMut>(
        &mut self,
        image: &S,
        index: usize,
    ) -> Result<Option<&mut Block>, WriteError> {
        let place = self.table.get(index).copied().unwrap_or(0);
        if place == 0 {
            return Ok(None);
        }
        if self.blocks.get(index).is_none() {
            let room = self.cache >> self.bits.get();
            if self.blocks.len() as u64 >= room.max(4) {
                self.blocks.retain(|block| block.dirty || block.fresh);
            }
            let mut bytes = zeroed(self.bits.size_bytes())?;
            image.read_at(place, &mut bytes)?;
            let block = Block {
                bytes,
                dirty: false,
                fresh: false,
            };
            self.blocks.insert(index, block);
        }
        Ok(self.blocks.get_mut(index))
    }

    /// Changed blocks take more memory than they should.
    pub fn is_full(&self) -> bool {
        let changed = self
            .blocks
            .values()
            .filter(|block| block.dirty || block.fresh);
        let bytes = (changed.count() as u64) << self.bits.get();
        let most = self.cache.max(self.bits.size_bytes().saturating_mul(4));
        bytes > most || self.drops.len() > 1 << 16
    }

    /// Something is to be written.
    pub fn is_dirty(&self) -> bool {
        self.outgrown
            || !self.drops.is_empty()
            || self.blocks.values().any(|block| block.dirty || block.fresh)
    }

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

    fn set<S: StorageMut>(
        &mut self,
        image: &S,
        cluster: u64,
        value: u64,
    ) -> Result<(), WriteError> {
        let width = self.width;
        let (index, at) = self.block_of(cluster);
        let what = "refcount of a cluster without a refcount block";
        let block = self.block(image, index)?;
        let block = block.ok_or(WriteError::Corrupt { what })?;
        width.set(&mut block.bytes, at, value);
        block.dirty = true;
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

    /// `count` clusters from `first` on lose a reference once nothing on the disk needs it.
    pub fn drop_later(&mut self, first: u64, count: u64) {
        match self.drops.last_mut() {
            Some((start, run)) if start.saturating_add(*run) == first => {
                *run = run.saturating_add(count);
            }
            _ => self.drops.push((first, count)),
        }
    }

    /// Step 1 of a commit: all blocks are named by the refcount table, and that by the header.
    pub fn name_blocks<S: StorageMut>(
        &mut self,
        image: &S,
        header: &mut Header,
    ) -> Result<(), WriteError> {
        if self.outgrown {
            return self.move_table(image, header);
        }
        if !self.write_fresh(image)? {
            return Ok(());
        }
        image.flush()?;
        let start = header.refcount_table_offset.get();
        for (index, block) in self.blocks.iter_mut() {
            if let (true, Some(place)) = (block.fresh, self.table.get(*index)) {
                let at = start.saturating_add((*index as u64).saturating_mul(ENTRY_BYTES));
                image.write_at(at, &place.to_be_bytes())?;
            }
        }
        self.blocks
            .values_mut()
            .for_each(|block| block.fresh = false);
        Ok(())
    }

    /// Writes blocks that the table does not name yet; true if there are any.
    fn write_fresh<S: StorageMut>(&mut self, image: &S) -> Result<bool, WriteError> {
        let mut any = false;
        for (index, block) in self.blocks.iter_mut() {
            if let (true, Some(place)) = (block.fresh, self.table.get(*index)) {
                image.write_at(*place, &block.bytes)?;
                block.dirty = false;
                any = true;
            }
        }
        Ok(any)
    }

    /// Writes the refcount table anew and has the header name it.
    fn move_table<S: StorageMut>(
        &mut self,
        image: &S,
        header: &mut Header,
    ) -> Result<(), WriteError> {
        let (place, clusters) = loop {
            let clusters = self.table_clusters();
            let place = self.allocate(image, clusters)?;
            // The room for it may have needed a block that made it longer.
            if self.table_clusters() == clusters {
                break (place, clusters);
            }
            for cluster in (place >> self.bits.get()..).take(usize::try_from(clusters).unwrap_or(0))
            {
                self.give_back(image, cluster << self.bits.get())?;
            }
        };
        self.write_fresh(image)?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.table.len().saturating_mul(8))
            .map_err(|_| WriteError::OutOfMemory)?;
        bytes.extend(self.table.iter().flat_map(|place| place.to_be_bytes()));
        image.write_at(place, &bytes)?;
        self.write_counts(image)?;
        image.flush()?;
        let old = (header.refcount_table_offset, header.refcount_table_clusters);
        header.refcount_table_offset = HostOffset(place);
        header.refcount_table_clusters =
            u32::try_from(clusters).map_err(|_| WriteError::TooLarge)?;
        write_fields(image, header).inspect_err(|_| {
            (header.refcount_table_offset, header.refcount_table_clusters) = old;
        })?;
        self.outgrown = false;
        self.blocks
            .values_mut()
            .for_each(|block| block.fresh = false);
        self.drop_later(old.0.get() >> self.bits.get(), u64::from(old.1));
        Ok(())
    }

    fn table_clusters(&self) -> u64 {
        let bytes = (self.table.len() as u64).saturating_mul(ENTRY_BYTES);
        self.bits.clusters_for(bytes)
    }

    /// Steps 2 and 4 of a commit: writes what has changed.
    pub fn write_counts<S: StorageMut>(&mut self, image: &S) -> Result<(), WriteError> {
        for (index, block) in self.blocks.iter_mut() {
            if let (true, Some(place)) = (block.dirty, self.table.get(*index)) {
                image.write_at(*place, &block.bytes)?;
                block.dirty = false;
            }
        }
        Ok(())
    }

    /// Step 4 of a commit: lowers what is to fall.
    pub fn apply_drops<S: StorageMut>(&mut self, image: &S) -> Result<(), WriteError> {
        let mut freed = Runs::default();
        for (first, count) in core::mem::take(&mut self.drops) {
            for cluster in first..first.saturating_add(count) {
                let width = self.width;
                let (index, at) = self.block_of(cluster);
                let old = match self.block(image, index)? {
                    Some(block) => width.get(&block.bytes, at).unwrap_or(0),
                    None => 0,
                };
                // One that is 0 already was wrong before; a check says so.
                if let Some(new) = old.checked_sub(1) {
                    self.set(image, cluster, new)?;
                    if new == 0 {
                        self.hint = self.hint.min(cluster);
                        self.next_run = self.next_run.min(cluster);
                        freed.add(cluster);
                    }
                }
            }
        }
        self.write_counts(image)?;
        if self.punch {
            for (first, count) in freed.0 {
                let (offset, len) = (first << self.bits.get(), count << self.bits.get());
                let end = image.len_bytes().saturating_sub(offset);
                // It is a hint.
                let _ = image.discard(offset, len.min(end));
            }
        }
        Ok(())
    }
}
