//! Refcounts, changed where they are: qcow2 "Host cluster management".

mod commit;
mod free;

use crate::sorted::Sorted;
use crate::{CACHE_BYTES, WriteError, zeroed};
use alloc::vec::Vec;
use instar_qcow2::entries::RefcountTableEntry;
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use instar_qcow2::refcount::RefcountWidth;
use instar_qcow2::{ClusterBits, Header};
use instar_storage::StorageMut;

/// The first byte that no entry's offset field can name: bits 9-55.
const OFFSET_LIMIT: u64 = 1 << 56;
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

    /// `count` clusters from `first` on lose a reference once nothing on the disk needs it.
    pub fn drop_later(&mut self, first: u64, count: u64) {
        match self.drops.last_mut() {
            Some((start, run)) if start.saturating_add(*run) == first => {
                *run = run.saturating_add(count);
            }
            _ => self.drops.push((first, count)),
        }
    }
}
