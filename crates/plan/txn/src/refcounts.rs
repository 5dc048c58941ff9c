//! Refcounts of the new state: qcow2 "Host cluster management".
//!
//! A block that changes is held in memory and written to a cluster of its own,
//! its *shadow*, when the transaction commits or when memory is short. What was
//! freed stays *pinned* until the commit: the old state still uses it.

use crate::{Monitor, TxnError, zeroed};
use alloc::vec::Vec;
use instar_qcow2::entries::RefcountTableEntry;
use instar_qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use instar_qcow2::refcount::RefcountWidth;
use instar_qcow2::{ClusterBits, Header};
use instar_storage::{StorageMut, Write};

/// Bytes of blocks in memory when nothing more was granted.
const MIN_CACHE_BYTES: u64 = 4 << 20;
/// The most bytes of blocks that are asked for.
const MAX_CACHE_BYTES: u64 = 64 << 20;
/// Blocks written at once.
const BLOCKS_PER_BATCH: usize = 64;

/// A refcount block of the new state.
#[derive(Debug, Default)]
pub struct Block {
    /// Where the old state has it; 0 if nowhere.
    pub home: u64,
    /// Where the new state has it, if it changes; 0 before that is known.
    pub shadow: u64,
    /// It differs from the old state.
    pub changed: bool,
    /// `data` differs from what is at `shadow`.
    dirty: bool,
    /// It counts nothing, and the new state does without it.
    gone: bool,
    data: Option<Vec<u8>>,
    /// A bit for each cluster that the old state uses and the new one does not.
    pinned: Vec<u64>,
}

/// All refcounts.
#[derive(Debug)]
pub struct Refcounts {
    pub(crate) width: RefcountWidth,
    cluster_bits: ClusterBits,
    /// By index in the refcount table; shorter than the table where the rest is empty.
    blocks: Vec<Block>,
    /// Blocks in memory.
    loaded: u64,
    budget: u64,
    /// Where the search for a victim goes on.
    hand: usize,
    /// Changed blocks without a shadow.
    homeless: Vec<usize>,
    /// Pinned clusters exist.
    pub(crate) any_pinned: bool,
}

impl Refcounts {
    /// Reads the refcount table.
    pub fn read<S: StorageMut>(
        storage: &S,
        header: &Header,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, TxnError> {
        let mut refcounts = Self::empty(header)?;
        let bytes = header.refcount_table_bytes();
        if bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(TxnError::TooLarge);
        }
        let mut table = zeroed(bytes)?;
        storage.read_at(header.refcount_table_offset.get(), &mut table)?;
        refcounts.take_table(&table)?;
        let blocks = refcounts.blocks.iter().filter(|b| b.home != 0).count() as u64;
        // And some for clusters that are to come.
        let wanted = blocks
            .saturating_add(blocks / 8)
            .saturating_add(8)
            .saturating_mul(refcounts.block_bytes())
            .min(MAX_CACHE_BYTES);
        if wanted > MIN_CACHE_BYTES {
            refcounts.budget = monitor.grant(wanted).max(MIN_CACHE_BYTES);
        }
        Ok(refcounts)
    }

    /// No block at all.
    pub fn empty(header: &Header) -> Result<Self, TxnError> {
        let width = RefcountWidth::from_order(header.refcount_order).ok_or(TxnError::Corrupt {
            what: "refcount width",
        })?;
        Ok(Self {
            width,
            cluster_bits: header.cluster_bits,
            blocks: Vec::new(),
            loaded: 0,
            budget: MIN_CACHE_BYTES,
            hand: 0,
            homeless: Vec::new(),
            any_pinned: false,
        })
    }

    /// As [`Self::empty`], with the memory that `self` may use.
    pub fn empty_like(&self, header: &Header) -> Result<Self, TxnError> {
        Ok(Self {
            budget: self.budget,
            ..Self::empty(header)?
        })
    }

    fn take_table(&mut self, table: &[u8]) -> Result<(), TxnError> {
        for (index, entry) in (0_u64..).zip(table.as_chunks::<8>().0) {
            let offset = RefcountTableEntry::from_be_bytes(*entry)
                .block_offset()
                .get();
            if offset == 0 {
                continue;
            }
            if !self.cluster_bits.is_aligned(offset) {
                return Err(TxnError::Corrupt {
                    what: "refcount block is not cluster aligned",
                });
            }
            self.block_at(index)?.home = offset;
        }
        Ok(())
    }

    /// Clusters that one block speaks of.
    pub const fn per_block(&self) -> u64 {
        self.width.entries_in(self.block_bytes())
    }

    /// Bytes of a block: a cluster.
    pub const fn block_bytes(&self) -> u64 {
        self.cluster_bits.size_bytes()
    }

    /// Blocks up to the last that is or was there.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn block_at(&mut self, index: u64) -> Result<&mut Block, TxnError> {
        let most = MAX_REFCOUNT_TABLE_BYTES / 8;
        if index >= most {
            return Err(TxnError::TooLarge);
        }
        let index = usize::try_from(index).map_err(|_| TxnError::TooLarge)?;
        let needed = index.saturating_add(1);
        if needed > self.blocks.len() {
            self.blocks
                .try_reserve(needed.saturating_sub(self.blocks.len()))
                .map_err(|_| TxnError::OutOfMemory)?;
            self.blocks.resize_with(needed, Block::default);
        }
        self.blocks.get_mut(index).ok_or(TxnError::OutOfMemory)
    }

    /// True if the block has no refcount at all, without reading it.
    pub fn is_absent(&self, index: u64) -> bool {
        let block = usize::try_from(index)
            .ok()
            .and_then(|index| self.blocks.get(index));
        block.is_none_or(|block| block.home == 0 && !block.changed)
    }

    /// The block's bytes, read if need be; an absent block is made of zeros.
    pub fn load<S: StorageMut>(&mut self, storage: &S, index: u64) -> Result<&[u8], TxnError> {
        self.load_block(storage, index)?;
        let block = self.block_at(index)?;
        block.data.as_deref().ok_or(TxnError::OutOfMemory)
    }

    fn load_block<S: StorageMut>(&mut self, storage: &S, index: u64) -> Result<(), TxnError> {
        let bytes = self.block_bytes();
        if self.block_at(index)?.data.is_some() {
            return Ok(());
        }
        if self.is_over_budget() {
            self.evict(storage)?;
        }
        let mut data = zeroed(bytes)?;
        let block = self.block_at(index)?;
        let from = if block.changed {
            block.shadow
        } else {
            block.home
        };
        if from != 0 {
            storage.read_at(from, &mut data)?;
        }
        self.block_at(index)?.data = Some(data);
        self.loaded = self.loaded.saturating_add(bytes);
        Ok(())
    }

    /// The block's bytes to be changed, and its pinned bits.
    fn load_mut<S: StorageMut>(&mut self, storage: &S, index: u64) -> Result<&mut Block, TxnError> {
        self.load_block(storage, index)?;
        let at = usize::try_from(index).map_err(|_| TxnError::TooLarge)?;
        let block = self.blocks.get_mut(at).ok_or(TxnError::OutOfMemory)?;
        block.dirty = true;
        if !block.changed || block.gone {
            block.changed = true;
            block.gone = false;
            self.homeless.push(at);
        }
        Ok(block)
    }

    /// Marks the block as changed though its refcounts stay: it is to move.
    pub fn touch<S: StorageMut>(&mut self, storage: &S, index: u64) -> Result<(), TxnError> {
        self.load_mut(storage, index).map(|_| ())
    }

    /// The refcount of a cluster.
    pub fn get<S: StorageMut>(&mut self, storage: &S, cluster: u64) -> Result<u64, TxnError> {
        let (index, at) = self.place(cluster);
        if self.is_absent(index) {
            return Ok(0);
        }
        let width = self.width;
        let block = self.load(storage, index)?;
        Ok(width.get(block, at).unwrap_or(0))
    }

    /// Sets the refcount of a cluster; one that falls to 0 is pinned.
    pub fn set<S: StorageMut>(
        &mut self,
        storage: &S,
        cluster: u64,
        value: u64,
    ) -> Result<(), TxnError> {
        if value > self.width.max() {
            return Err(TxnError::RefcountOverflow { cluster });
        }
        let old = self.get(storage, cluster)?;
        if old == value {
            return Ok(());
        }
        let (index, at) = self.place(cluster);
        let (width, per_block) = (self.width, self.per_block());
        let block = self.load_mut(storage, index)?;
        if let Some(data) = &mut block.data {
            width.set(data, at, value);
        }
        if value == 0 {
            block.pin(at, per_block);
            self.any_pinned = true;
        }
        Ok(())
    }

    /// Adds 1 to, or with `drop` takes 1 from, each of `count` refcounts.
    pub fn change<S: StorageMut>(
        &mut self,
        storage: &S,
        first: u64,
        count: u64,
        drop: bool,
    ) -> Result<(), TxnError> {
        let mut cluster = first;
        let mut left = count;
        while left > 0 {
            let (index, at) = self.place(cluster);
            let here = self.per_block().saturating_sub(at).min(left);
            let (width, per_block) = (self.width, self.per_block());
            let block = self.load_mut(storage, index)?;
            let changed = block.change(width, per_block, at, here, drop);
            match changed {
                Ok(pinned) => self.any_pinned |= pinned,
                Err(_) if drop => {
                    return Err(TxnError::Corrupt {
                        what: "refcount is too low",
                    });
                }
                Err(i) => {
                    return Err(TxnError::RefcountOverflow {
                        cluster: cluster.saturating_add(i),
                    });
                }
            }
            cluster = cluster.saturating_add(here);
            left = left.saturating_sub(here);
        }
        Ok(())
    }

    /// Index of a cluster's block, and its place in it.
    pub const fn place(&self, cluster: u64) -> (u64, u64) {
        let per_block = self.per_block();
        (
            cluster >> per_block.trailing_zeros(),
            cluster & per_block.saturating_sub(1),
        )
    }

    /// True if the old state uses the cluster and the new one does not.
    pub fn is_pinned(&self, cluster: u64) -> bool {
        let (index, at) = self.place(cluster);
        usize::try_from(index)
            .ok()
            .and_then(|index| self.blocks.get(index))
            .is_some_and(|block| block.is_pinned(at))
    }

    /// A changed block that has no shadow yet.
    pub fn next_homeless(&mut self) -> Option<usize> {
        self.homeless.pop()
    }

    /// Where the old state has a changed block, if that is still the caller's to free; else 0.
    pub fn take_home(&mut self, index: usize) -> u64 {
        let block = self.blocks.get_mut(index);
        block.map_or(0, |block| core::mem::take(&mut block.home))
    }

    /// True if a changed block has no refcount any more: it needs no place, unless it gets one again.
    pub fn set_gone(&mut self, index: usize) -> bool {
        let bytes = self.block_bytes();
        let Some(block) = self.blocks.get_mut(index) else {
            return false;
        };
        let empty = |data: &Vec<u8>| data.iter().all(|byte| *byte == 0);
        block.gone = block.data.as_ref().is_some_and(empty);
        if block.gone {
            block.dirty = false;
            block.data = None;
            self.loaded = self.loaded.saturating_sub(bytes);
        }
        block.gone
    }

    /// Gives a changed block its shadow.
    pub fn set_shadow(&mut self, index: usize, offset: u64) {
        if let Some(block) = self.blocks.get_mut(index) {
            block.shadow = offset;
        }
    }

    /// True if blocks should leave memory.
    pub const fn is_over_budget(&self) -> bool {
        self.loaded > self.budget
    }

    /// Writes changed blocks that have a shadow, and drops blocks until there is room.
    pub fn evict<S: StorageMut>(&mut self, storage: &S) -> Result<(), TxnError> {
        let mut looked = 0_usize;
        while self.loaded > self.budget / 2 && looked < self.blocks.len() {
            looked = looked.saturating_add(1);
            let at = self.hand;
            self.hand = at.saturating_add(1);
            if self.hand >= self.blocks.len() {
                self.hand = 0;
            }
            let bytes = self.block_bytes();
            let Some(block) = self.blocks.get_mut(at) else {
                continue;
            };
            block.write(storage)?;
            // A changed block without a shadow stays.
            if !block.dirty && block.data.take().is_some() {
                self.loaded = self.loaded.saturating_sub(bytes);
            }
        }
        Ok(())
    }

    /// Writes every changed block to its shadow.
    pub fn write_all<S: StorageMut>(&mut self, storage: &S) -> Result<(), TxnError> {
        let dirty = |block: &&mut Block| block.dirty && block.shadow != 0;
        let mut todo: Vec<&mut Block> = self.blocks.iter_mut().filter(dirty).collect();
        for group in todo.chunks_mut(BLOCKS_PER_BATCH) {
            let writes: Vec<Write<'_>> = group
                .iter()
                .map(|block| Write {
                    offset: block.shadow,
                    buf: block.data.as_deref().unwrap_or_default(),
                })
                .collect();
            storage.write_batch(&writes)?;
            for block in group {
                block.dirty = false;
            }
        }
        Ok(())
    }

    /// Where the new state has each block, as table entries; ends with the last block.
    pub fn table(&self) -> impl Iterator<Item = u64> {
        self.blocks.iter().map(|block| {
            if block.changed {
                block.shadow
            } else {
                block.home
            }
        })
    }

    /// Runs of pinned clusters that are free, ascending.
    pub fn for_each_pinned(&self, visit: &mut dyn FnMut(u64, u64)) {
        let mut run: Option<(u64, u64)> = None;
        for (block, index) in self.blocks.iter().zip(0_u64..) {
            let base = index.saturating_mul(self.per_block());
            for (word, at) in block.pinned.iter().zip((0_u64..).step_by(64)) {
                let mut word = *word;
                while word != 0 {
                    let bit = u64::from(word.trailing_zeros());
                    word &= word.wrapping_sub(1);
                    let cluster = base.saturating_add(at).saturating_add(bit);
                    run = match run {
                        Some((first, count)) if first.saturating_add(count) == cluster => {
                            Some((first, count.saturating_add(1)))
                        }
                        other => {
                            if let Some((first, count)) = other {
                                visit(first, count);
                            }
                            Some((cluster, 1))
                        }
                    };
                }
            }
        }
        if let Some((first, count)) = run {
            visit(first, count);
        }
    }
}

impl Block {
    fn pin(&mut self, at: u64, per_block: u64) {
        if self.pinned.is_empty() {
            let words = usize::try_from(per_block.div_ceil(64)).unwrap_or(0);
            self.pinned.resize(words, 0);
        }
        let word = usize::try_from(at / 64).unwrap_or(usize::MAX);
        if let Some(word) = self.pinned.get_mut(word) {
            *word |= 1 << (at % 64);
        }
    }

    fn is_pinned(&self, at: u64) -> bool {
        let word = usize::try_from(at / 64).unwrap_or(usize::MAX);
        self.pinned
            .get(word)
            .is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// Changes `count` refcounts from `at` on by one. True if one was pinned; the error is the index of the
    /// first that cannot be changed, counted from `at`.
    fn change(
        &mut self,
        width: RefcountWidth,
        per_block: u64,
        at: u64,
        count: u64,
        drop: bool,
    ) -> Result<bool, u64> {
        if width.bits() == 16 {
            return self.change_16(per_block, at, count, drop);
        }
        let mut pinned = false;
        for i in 0..count {
            let entry = at.saturating_add(i);
            let data = self.data.as_deref_mut().unwrap_or_default();
            let old = width.get(data, entry).unwrap_or(0);
            let new = if drop {
                old.checked_sub(1).ok_or(i)?
            } else {
                old.checked_add(1).filter(|n| *n <= width.max()).ok_or(i)?
            };
            width.set(data, entry, new);
            if new == 0 {
                self.pin(entry, per_block);
                pinned = true;
            }
        }
        Ok(pinned)
    }

    /// [`Self::change`] for the common width.
    fn change_16(&mut self, per_block: u64, at: u64, count: u64, drop: bool) -> Result<bool, u64> {
        let mut data = self.data.take().unwrap_or_default();
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let len = usize::try_from(count).unwrap_or(usize::MAX);
        let entries = data.as_chunks_mut::<2>().0.iter_mut().skip(from).take(len);
        let mut result = Ok(false);
        for (entry, i) in entries.zip(0_u64..) {
            let old = u16::from_be_bytes(*entry);
            let new = if drop {
                old.checked_sub(1)
            } else {
                old.checked_add(1)
            };
            let Some(new) = new else {
                result = Err(i);
                break;
            };
            *entry = new.to_be_bytes();
            if new == 0 {
                self.pin(at.saturating_add(i), per_block);
                result = Ok(true);
            }
        }
        self.data = Some(data);
        result
    }

    fn write<S: StorageMut>(&mut self, storage: &S) -> Result<(), TxnError> {
        if let (true, true, Some(data)) = (self.dirty, self.shadow != 0, &self.data) {
            storage.write_at(self.shadow, data)?;
            self.dirty = false;
        }
        // A changed block without a shadow stays in memory.
        Ok(())
    }
}
