//! The refcount table as the image has it.

use crate::job::failed;
use crate::{CheckError, Reporter};
use alloc::vec::Vec;
use instar_plan_check::parts::{Counter, PAGE_BITS, Run, Span, zeroed};
use instar_qcow2::entries::RefcountTableEntry;
use instar_qcow2::header::MAX_FILE_BYTES;
use instar_qcow2::{ClusterBits, Header};
use instar_storage::Storage;

/// Bytes of the table read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// The refcount table, in memory: at most 8 MiB.
pub(crate) struct BlockTable {
    entries: Vec<u64>,
    bits: ClusterBits,
    /// The logarithm of how many refcounts a block has.
    block_bits: u32,
    /// First cluster of the table.
    start: u64,
    /// Its clusters.
    len: u64,
    /// Clusters of the file.
    file_clusters: u64,
}

impl BlockTable {
    pub(crate) fn read<S: Storage>(storage: &S, header: &Header) -> Result<Self, CheckError> {
        let offset = header.refcount_table_offset.get();
        let bytes = header.refcount_table_bytes();
        let bits = header.cluster_bits;
        let mut table = Self {
            entries: Vec::new(),
            bits,
            block_bits: bits
                .get()
                .saturating_add(3)
                .saturating_sub(header.refcount_order),
            start: offset >> bits.get(),
            len: header.refcount_table_clusters.into(),
            file_clusters: bits.clusters_for(storage.len_bytes()),
        };
        // What lies past the end of the file is zeros, and cost no memory.
        let in_file = storage.len_bytes().saturating_sub(offset).min(bytes);
        let mut piece = zeroed(PIECE_BYTES.min(in_file).next_multiple_of(8))?;
        let mut at = 0;
        while at < in_file {
            storage
                .read_at(offset.saturating_add(at), &mut piece)
                .map_err(failed)?;
            let left = in_file.saturating_sub(at).div_ceil(8);
            table
                .entries
                .try_reserve(piece.len() / 8)
                .map_err(|_| CheckError::OutOfMemory)?;
            let entries = piece.as_chunks().0.iter().map(|b| u64::from_be_bytes(*b));
            table
                .entries
                .extend(entries.take(usize::try_from(left).unwrap_or(usize::MAX)));
            at = at.saturating_add(PIECE_BYTES);
        }
        while table.entries.last() == Some(&0) {
            table.entries.pop();
        }
        Ok(table)
    }

    /// The logarithm of how many refcounts a block has.
    pub(crate) const fn block_bits(&self) -> u32 {
        self.block_bits
    }

    /// How many entries there are, up to the last that is not 0.
    pub(crate) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Where a block is, if the entry names a place for one in the file.
    pub(crate) fn block(&self, index: u64) -> Option<u64> {
        let entry = self.entries.get(usize::try_from(index).ok()?)?;
        let entry = RefcountTableEntry(*entry);
        let offset = entry.block_offset().get();
        let sound = offset != 0
            && entry.reserved_bits() == 0
            && self.bits.is_aligned(offset)
            && offset >> self.bits.get() < self.file_clusters
            && offset <= MAX_FILE_BYTES;
        sound.then_some(offset)
    }

    /// Clusters of the file that the table or a block is in, ascending.
    pub(crate) fn clusters(&self) -> Result<Vec<u64>, CheckError> {
        let mut clusters = Vec::new();
        let len = self.len.min(self.file_clusters.saturating_sub(self.start));
        let most = usize::try_from(len.saturating_add(self.len())).unwrap_or(usize::MAX);
        clusters
            .try_reserve_exact(most)
            .map_err(|_| CheckError::OutOfMemory)?;
        clusters.extend(self.start..self.start.saturating_add(len));
        let blocks = (0..self.len()).filter_map(|index| self.block(index));
        clusters.extend(blocks.map(|offset| offset >> self.bits.get()));
        clusters.sort_unstable();
        clusters.dedup();
        Ok(clusters)
    }

    /// True if what the run has counted in its window shows that the refcount
    /// structures cannot be patched.
    pub(crate) fn is_broken<S: Storage, T: Counter, R: Reporter>(
        &self,
        run: &Run<'_, S, T, R>,
    ) -> bool {
        let end = self.start.saturating_add(self.len);
        if !run.bad.is_empty() || end > run.clusters.saturating_add(u64::from(run.grown)) {
            return true;
        }
        let table_is_shared =
            (self.start..end).any(|cluster| counted(run, cluster).is_some_and(|n| n != 1));
        table_is_shared || (run.out.found.low > 0 && self.misses_block(run))
    }

    /// True if a cluster of the window has references and no refcount block.
    fn misses_block<S: Storage, T: Counter, R: Reporter>(&self, run: &Run<'_, S, T, R>) -> bool {
        let zero = T::default();
        for number in run.pages.numbers() {
            let Some(page) = run.pages.get(number) else {
                continue;
            };
            let first = number << PAGE_BITS;
            for (count, cluster) in page.counted.iter().zip(first..) {
                if *count != zero && self.block(cluster >> self.block_bits).is_none() {
                    return true;
                }
            }
        }
        false
    }
}

/// True if something else is in the clusters of a table, as far as they are in the window.
pub(crate) fn is_shared<S: Storage, T: Counter, R: Reporter>(
    run: &Run<'_, S, T, R>,
    (first, last): Span,
) -> bool {
    let last = last.min(run.clusters);
    (first..=last).any(|cluster| counted(run, cluster).is_some_and(|n| n > 1))
}

/// References counted in this window; `None` if the window does not hold the cluster.
fn counted<S: Storage, T: Counter, R: Reporter>(
    run: &Run<'_, S, T, R>,
    cluster: u64,
) -> Option<u64> {
    let number = cluster >> PAGE_BITS;
    if !run.pages.covers(number) {
        return None;
    }
    let at = usize::try_from(cluster).unwrap_or(0) % instar_plan_check::parts::PAGE_CLUSTERS;
    let page = run.pages.get(number);
    Some(
        page.and_then(|page| page.counted.get(at))
            .map_or(0, |n| (*n).into()),
    )
}
