//! Refcount blocks, found through the refcount table: qcow2 "Host cluster management".

use crate::counter::Counter;
use crate::pages::{PAGE_BITS, PAGE_CLUSTERS};
use crate::run::{Run, TABLE_BYTES, zeroed};
use crate::{CheckError, MessageKind, Reporter};
use instar_qcow2::entries::RefcountTableEntry;
use instar_storage::Storage;

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Counts every refcount block.
    pub(crate) fn count_refcount_blocks(&mut self) -> Result<(), CheckError> {
        let start = self.header.refcount_table_offset.get();
        let bytes = self.header.refcount_table_bytes();
        let mut piece = zeroed(TABLE_BYTES.min(bytes))?;
        let mut at = 0_u64;
        while at < bytes {
            let len = TABLE_BYTES.min(bytes.saturating_sub(at));
            let piece = piece
                .get_mut(..usize::try_from(len).unwrap_or(0))
                .unwrap_or_default();
            self.read(start.saturating_add(at), piece)
                .map_err(|e| CheckError::Failed { errno: e.errno })?;
            for (entry, index) in piece.as_chunks::<8>().0.iter().zip(at / 8..) {
                let entry = RefcountTableEntry::from_be_bytes(*entry);
                if entry.0 != 0 {
                    self.count_block(index, entry)?;
                }
            }
            at = at.saturating_add(len);
            self.out.progress(len / 8)?;
        }
        Ok(())
    }

    fn count_block(&mut self, index: u64, entry: RefcountTableEntry) -> Result<(), CheckError> {
        let bits = self.header.cluster_bits;
        let offset = entry.block_offset().get();
        let cluster = offset >> bits.get();
        let outside = cluster >= self.clusters.saturating_add(u64::from(self.grown));
        self.out.found.broken_refcounts |=
            entry.reserved_bits() != 0 || !bits.is_aligned(offset) || outside;
        if entry.reserved_bits() != 0 {
            self.out.corruption(format_args!(
                "ERROR refcount table entry {index} has reserved bits set"
            ));
            return Ok(());
        }
        if !bits.is_aligned(offset) {
            self.out.corruption(format_args!(
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ));
            return Ok(());
        }
        if outside {
            self.out.corruption(format_args!(
                "ERROR refcount block {index} is outside image"
            ));
            return Ok(());
        }
        self.count_region(offset, bits.size_bytes())?;
        self.judge_block(index, cluster);
        Ok(())
    }

    /// A refcount block must be referred to once, by the refcount table.
    fn judge_block(&mut self, index: u64, cluster: u64) {
        let at = usize::try_from(cluster).unwrap_or(0) % PAGE_CLUSTERS;
        let page = self.pages.get(cluster >> PAGE_BITS);
        let Some(count) = page.and_then(|page| page.counted.get(at)).copied() else {
            return;
        };
        let count: u64 = count.into();
        self.out.found.broken_refcounts |= count != 1;
        if count != 1 && self.pages.tell(cluster >> PAGE_BITS) {
            self.out.sum.corruptions = self.out.sum.corruptions.saturating_add(1);
            self.out.print(
                MessageKind::Plain,
                format_args!("ERROR refcount block {index} refcount={count}"),
            );
        }
    }
}
