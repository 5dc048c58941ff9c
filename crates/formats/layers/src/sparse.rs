//! Images whose metadata says data where their file has none: preallocated metadata.
//!
//! `qemu-img` looks for holes under the data of such an image, and of no other. An image is such a one if its
//! file has space for clearly fewer clusters than have a refcount.

use crate::error::DataError;
use crate::tables::grow;
use alloc::vec::Vec;
use core::cell::Cell;
use instar_qcow2::Header;
use instar_qcow2::entries::RefcountTableEntry;
use instar_qcow2::refcount::RefcountWidth;
use instar_storage::{Extent, Storage, StorageError};

/// Bytes read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// Longest way back that is asked about at once, in bytes.
const MOST_BACK: u64 = 1 << 30;
/// Extents that may lie on the way.
const MOST_STEPS: usize = 64;

/// The extent of a file that was asked for last: neighbours of the disk often lie in one.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    last: Cell<Option<Extent>>,
}

impl Extents {
    /// The extent that holds `offset`, as of [`Storage::extent_at`].
    pub fn find<S: Storage>(&self, store: &S, offset: u64) -> Result<Option<Extent>, StorageError> {
        let holds = |extent: &Extent| {
            let into = offset.checked_sub(extent.offset);
            into.is_some_and(|into| into < extent.len)
        };
        let last = self.last.get();
        if last.as_ref().is_some_and(holds) {
            return Ok(last);
        }
        // A store looks forward only. Whoever goes backwards gets twice as much each time.
        let back = match last {
            Some(last) if offset < last.offset => last.len.min(MOST_BACK),
            _ => 0,
        };
        let mut at = offset.saturating_sub(back);
        let mut found = None;
        for _ in 0..MOST_STEPS {
            found = store.extent_at(at)?;
            match &found {
                Some(extent) if !holds(extent) => at = extent.offset.saturating_add(extent.len),
                _ => break,
            }
        }
        if !found.as_ref().is_some_and(holds) {
            found = store.extent_at(offset)?;
        }
        self.last.set(found);
        Ok(found)
    }
}

/// Whether `image`, for whose file `allocated_bytes` are allocated, has preallocated metadata.
///
/// # Errors
/// The file failed, or there is no memory.
pub(crate) fn is_preallocated<S: Storage>(
    image: &S,
    header: &Header,
    allocated_bytes: u64,
) -> Result<bool, DataError> {
    let allocated = allocated_bytes >> header.cluster_bits.get();
    let tenth_more = u128::from(allocated).saturating_mul(10) / 9;
    let tenth_more = u64::try_from(tenth_more).unwrap_or(u64::MAX);
    let enough = tenth_more.max(allocated.saturating_add(2));
    let file_clusters = header.cluster_bits.clusters_for(image.len_bytes());
    if file_clusters < enough {
        return Ok(false);
    }
    let Some(width) = RefcountWidth::from_order(header.refcount_order) else {
        return Ok(false);
    };
    let mut count = Count {
        width,
        clusters: 0,
        enough,
    };
    count.table(image, header, file_clusters)?;
    Ok(count.clusters >= enough)
}

/// Counts clusters that have a refcount.
struct Count {
    width: RefcountWidth,
    clusters: u64,
    enough: u64,
}

impl Count {
    fn table<S: Storage>(
        &mut self,
        image: &S,
        header: &Header,
        file_clusters: u64,
    ) -> Result<(), DataError> {
        let per_block = header.refcounts_per_block().max(1);
        let entries = file_clusters.div_ceil(per_block);
        let entries = entries.min(header.refcount_table_bytes() >> 3);
        let mut table = Vec::new();
        let bytes = usize::try_from(entries.saturating_mul(8));
        grow(&mut table, bytes.map_err(|_| DataError::OutOfMemory)?)?;
        image.read_at(header.refcount_table_offset.get(), &mut table)?;
        let mut left = file_clusters;
        for entry in table.as_chunks::<8>().0 {
            let block = RefcountTableEntry::from_be_bytes(*entry).block_offset();
            let here = left.min(per_block);
            if block.get() != 0 {
                self.block(image, block.get(), here)?;
            }
            if self.clusters >= self.enough {
                break;
            }
            left = left.saturating_sub(here);
        }
        Ok(())
    }

    /// Counts the first `refcounts` of a block.
    fn block<S: Storage>(
        &mut self,
        image: &S,
        block: u64,
        refcounts: u64,
    ) -> Result<(), DataError> {
        let bits = refcounts.saturating_mul(self.width.bits().into());
        let bytes = bits.div_ceil(8);
        let mut piece = Vec::new();
        let mut done = 0;
        while done < bytes {
            let here = bytes.saturating_sub(done).min(PIECE_BYTES);
            let len = usize::try_from(here).map_err(|_| DataError::OutOfMemory)?;
            grow(&mut piece, len)?;
            piece.truncate(len);
            image.read_at(block.saturating_add(done), &mut piece)?;
            let before = self.width.entries_in(done);
            let mut found = 0_u64;
            self.width.for_each_nonzero(&piece, |index, _| {
                let counts = before.saturating_add(index) < refcounts;
                found = found.saturating_add(u64::from(counts));
            });
            self.clusters = self.clusters.saturating_add(found);
            done = done.saturating_add(here);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_storage::{MemStorage, StorageMut};

    #[test]
    fn extents_are_the_stores_in_any_order() {
        let store = MemStorage::hole(8 << 20);
        for page in [3, 4, 9, 100, 101, 300] {
            store.write_at(page << 14, &[1]).unwrap();
        }
        let forward = (0..9000_u64).map(|index| index << 10);
        let backward = (0..9000_u64).rev().map(|index| index << 10);
        let jumping = (0..9000_u64).map(|index| (index * 7919 % 9000) << 10);
        let extents = Extents::default();
        for offset in forward.chain(backward).chain(jumping) {
            let want = store.extent_at(offset).unwrap();
            let got = extents.find(&store, offset).unwrap();
            let what = |extent: Option<Extent>| {
                extent.map(|extent| (extent.offset + extent.len, extent.data))
            };
            assert_eq!(what(want), what(got), "{offset}");
            assert!(got.is_none_or(|extent| extent.offset <= offset));
        }
    }
}
