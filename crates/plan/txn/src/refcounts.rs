//! Refcounts of the new state: qcow2 "Host cluster management".
//!
//! A block that changes is held in memory and written to a cluster of its own,
//! its *shadow*, when the transaction commits or when memory is short. What was
//! freed stays *pinned* until the commit: the old state still uses it.

use crate::block::Block;
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

    /// Keeps no more than a block or two in memory.
    pub const fn keep_one_block(&mut self) {
        self.budget = self.block_bytes();
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
        let from = block.place();
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
        block.set(width, per_block, at, value);
        self.any_pinned |= value == 0;
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
        block.map_or(0, Block::take_home)
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

    /// Does `writes`, writes every changed block to its shadow, makes the store at least `end` bytes long, and
    /// makes all of it durable. Bytes from `zeros_from` on are zeros before.
    pub fn write_all<S: StorageMut>(
        &mut self,
        storage: &S,
        writes: &[Write<'_>],
        (zeros_from, end): (u64, u64),
    ) -> Result<(), TxnError> {
        let mut batch: Vec<Write<'_>> = writes.to_vec();
        let blocks = self.blocks.iter().filter_map(|b| b.write_of(zeros_from));
        let mut blocks = blocks.peekable();
        loop {
            batch.extend(blocks.by_ref().take(BLOCKS_PER_BATCH));
            if blocks.peek().is_none() {
                break;
            }
            storage.write_batch(&batch)?;
            batch.clear();
        }
        storage.write_through(&batch, end)?;
        self.blocks.iter_mut().for_each(Block::written);
        Ok(())
    }

    /// The state that was new is the old one from now on.
    pub fn switched(&mut self) {
        self.blocks.iter_mut().for_each(Block::switched);
        self.homeless.clear();
        self.any_pinned = false;
    }

    /// Where the state before the last switch had the block, if it is elsewhere now.
    pub fn place_before(&self, index: usize) -> Option<u64> {
        let block = self.blocks.get(index)?;
        Some(block.before).filter(|before| *before != 0 && *before != block.home)
    }

    /// The new state has a block where the state before the last switch had it, which nobody has written to.
    pub fn set_returned(&mut self, index: usize) {
        if let Some(block) = self.blocks.get_mut(index) {
            block.shadow = block.before;
            block.returned = true;
        }
    }

    /// True if the new state has all blocks where the state before the last switch had them.
    pub fn is_as_before(&self) -> bool {
        self.blocks.iter().all(|b| b.place() == b.before)
    }

    /// Where the new state has each block, as table entries; ends with the last block.
    pub fn table(&self) -> impl Iterator<Item = u64> {
        self.blocks.iter().map(Block::place)
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
