//! Clusters that are taken, one after the other, and their refcounts.
//!
//! Clusters are only ever taken at the end, so a refcount block is complete when the clusters after its
//! range are taken. Where the blocks are is kept in memory: it is the refcount table.

use crate::CreateError;
use crate::pages::{Pages, set_entry, zeroed};
use alloc::vec::Vec;
use instar_qcow2::Header;
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use instar_qcow2::refcount::RefcountWidth;
use instar_storage::StorageMut;

/// The cluster of the refcount table as long as one is enough.
const TABLE_CLUSTER: u64 = 1;

/// A run of bytes of the image that is packed with compressed data.
#[derive(Clone, Copy, Debug)]
struct Packed {
    /// The first byte that is free.
    next: u64,
    /// The first byte after the cluster.
    end: u64,
    /// Refcount of the cluster.
    count: u64,
}

/// The refcounts of a new image.
#[derive(Debug)]
pub struct Refcounts {
    width: RefcountWidth,
    cluster_bits: u32,
    per_block: u64,
    /// Clusters that are taken: all below this one.
    end: u64,
    /// Offsets of the refcount blocks.
    table: Vec<u64>,
    packed: Option<Packed>,
}

impl Refcounts {
    /// Nothing is taken yet.
    pub fn new(header: &Header) -> Result<Self, CreateError> {
        let width = RefcountWidth::from_order(header.refcount_order);
        Ok(Self {
            width: width.ok_or(CreateError::RefcountBits)?,
            cluster_bits: header.cluster_bits.get(),
            per_block: header.refcounts_per_block(),
            end: 0,
            table: Vec::new(),
            packed: None,
        })
    }

    /// Offset of the first byte after all clusters.
    pub const fn end_offset(&self) -> u64 {
        self.end << self.cluster_bits
    }

    const fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Takes `count` clusters in a row, and gives the offset of the first.
    ///
    /// # Errors
    /// The file would be too large for the format; the store's.
    pub fn take<S: StorageMut>(
        &mut self,
        pages: &mut Pages<'_, S>,
        count: u64,
    ) -> Result<u64, CreateError> {
        let first = self.end;
        self.end = first.checked_add(count).ok_or(CreateError::TOO_LARGE)?;
        if self.end > MAX_FILE_BYTES >> self.cluster_bits {
            return Err(CreateError::TOO_LARGE);
        }
        // A block lies in a cluster too, which may need the next one.
        while (self.table.len() as u64).saturating_mul(self.per_block) < self.end {
            let block = self.end_offset();
            if (self.table.len() as u64).saturating_mul(8) >= MAX_REFCOUNT_TABLE_BYTES {
                return Err(CreateError::TOO_LARGE);
            }
            self.table
                .try_reserve(1)
                .map_err(|_| CreateError::OutOfMemory)?;
            self.table.push(block);
            pages.fresh(block)?;
            self.end = self.end.saturating_add(1);
        }
        self.count(pages, first, self.end, 1)?;
        Ok(first << self.cluster_bits)
    }

    /// Sets the refcounts of the clusters `first..end`.
    fn count<S: StorageMut>(
        &self,
        pages: &mut Pages<'_, S>,
        first: u64,
        end: u64,
        value: u64,
    ) -> Result<(), CreateError> {
        let mut at = first;
        while at < end {
            let index = at.checked_div(self.per_block).unwrap_or(0);
            let start = index.saturating_mul(self.per_block);
            let stop = end.min(start.saturating_add(self.per_block));
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let block = *self.table.get(index).ok_or(CreateError::Range)?;
            let page = pages.get(block)?;
            for cluster in at..stop {
                self.width.set(page, cluster.saturating_sub(start), value);
            }
            at = stop;
        }
        Ok(())
    }

    /// Takes `bytes` bytes, at most a cluster, for compressed data: behind what was taken so before if it can be.
    ///
    /// # Errors
    /// As for [`Refcounts::take`].
    pub fn take_packed<S: StorageMut>(
        &mut self,
        pages: &mut Pages<'_, S>,
        bytes: u64,
    ) -> Result<u64, CreateError> {
        if let Some(packed) = self.packed.filter(|p| p.count < self.width.max()) {
            let room = packed.end.saturating_sub(packed.next);
            if bytes <= room || packed.end == self.end_offset() {
                return self.take_behind(pages, packed, bytes);
            }
        }
        let start = self.take(pages, 1)?;
        self.packed = Some(Packed {
            next: start.saturating_add(bytes),
            end: start.saturating_add(self.cluster_bytes()),
            count: 1,
        });
        Ok(start)
    }

    fn take_behind<S: StorageMut>(
        &mut self,
        pages: &mut Pages<'_, S>,
        mut packed: Packed,
        bytes: u64,
    ) -> Result<u64, CreateError> {
        let start = packed.next;
        if start < packed.end {
            packed.count = packed.count.saturating_add(1);
            let last = packed.end.saturating_sub(1) >> self.cluster_bits;
            self.count(pages, last, last.saturating_add(1), packed.count)?;
        }
        packed.next = start.saturating_add(bytes);
        if packed.next > packed.end {
            let next = self.take(pages, 1)?;
            packed.end = next.saturating_add(self.cluster_bytes());
            packed.count = 1;
        }
        self.packed = Some(packed);
        Ok(start)
    }

    /// Gives the refcount table a place at the end if its cluster is too small; returns offset and clusters.
    ///
    /// # Errors
    /// As for [`Refcounts::take`].
    pub fn place_table<S: StorageMut>(
        &mut self,
        pages: &mut Pages<'_, S>,
    ) -> Result<(u64, u64), CreateError> {
        let per_cluster = self.cluster_bytes() >> 3;
        if self.table.len() as u64 <= per_cluster {
            return Ok((TABLE_CLUSTER << self.cluster_bits, 1));
        }
        // Taking clusters can make one more block.
        let clusters = (self.table.len() as u64)
            .saturating_add(1)
            .div_ceil(per_cluster);
        let offset = self.take(pages, clusters)?;
        if self.table.len() as u64 > clusters.saturating_mul(per_cluster) {
            return Err(CreateError::TOO_LARGE);
        }
        self.count(pages, TABLE_CLUSTER, TABLE_CLUSTER.saturating_add(1), 0)?;
        Ok((offset, clusters))
    }

    /// The bytes of the table in `clusters` clusters.
    ///
    /// # Errors
    /// No memory.
    pub fn table_bytes(&self, clusters: u64) -> Result<Vec<u8>, CreateError> {
        let mut bytes = zeroed(clusters.saturating_mul(self.cluster_bytes()))?;
        for (index, block) in self.table.iter().enumerate() {
            set_entry(&mut bytes, index as u64, *block);
        }
        Ok(bytes)
    }
}
