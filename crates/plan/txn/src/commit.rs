//! From the last of the new clusters to the switch.

use crate::transaction::Transaction;
use crate::{Monitor, TxnError, settle, write_header, zeroed};
use instar_qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use instar_qcow2::{Header, HostOffset};
use instar_storage::StorageMut;

impl<S: StorageMut> Transaction<'_, S> {
    /// Gives every changed refcount block its place.
    fn give_homes(&mut self) -> Result<(), TxnError> {
        let bits = self.header.cluster_bits.get();
        while let Some(index) = self.refcounts.next_homeless() {
            let home = self.refcounts.take_home(index);
            if home != 0 {
                self.refcounts.change(self.storage, home >> bits, 1, true)?;
            }
            // A block that counts nothing is left out of the table.
            if self.refcounts.set_gone(index) {
                continue;
            }
            let cluster = self.space.table(&mut self.refcounts, self.storage, 1)?;
            self.refcounts.set_shadow(index, cluster << bits);
        }
        Ok(())
    }

    /// Keeps refcount blocks within their budget.
    pub(crate) fn make_room(&mut self) -> Result<(), TxnError> {
        if self.refcounts.is_over_budget() {
            self.give_homes()?;
            self.refcounts.evict(self.storage)?;
        }
        Ok(())
    }

    /// Writes refcount blocks and table of the new state, if it has others than the old one.
    fn write_refcounts(&mut self) -> Result<(), TxnError> {
        self.give_homes()?;
        if !self.refcounts.blocks().iter().any(|block| block.changed) {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let old_clusters = self.old.refcount_table_clusters.into();
        let old_first = bits.cluster_of(self.old.refcount_table_offset).get();
        self.refcounts
            .change(self.storage, old_first, old_clusters, true)?;
        // The table's own refcounts may need blocks past those that it has room for.
        let mut clusters = u64::from(self.old.refcount_table_clusters);
        let first = loop {
            let needed = (self.refcounts.blocks().len() as u64).saturating_mul(8);
            clusters = clusters.max(bits.clusters_for(needed)).max(1);
            if clusters.saturating_mul(bits.size_bytes()) > MAX_REFCOUNT_TABLE_BYTES {
                return Err(TxnError::TooLarge);
            }
            let first = self
                .space
                .table(&mut self.refcounts, self.storage, clusters)?;
            self.give_homes()?;
            let needed = (self.refcounts.blocks().len() as u64).saturating_mul(8);
            if bits.clusters_for(needed) <= clusters {
                break first;
            }
            self.refcounts.change(self.storage, first, clusters, true)?;
        };
        self.refcounts.write_all(self.storage)?;
        let mut table = zeroed(clusters.saturating_mul(bits.size_bytes()))?;
        let entries = self.refcounts.table();
        for (to, entry) in table.as_chunks_mut::<8>().0.iter_mut().zip(entries) {
            *to = entry.to_be_bytes();
        }
        self.storage.write_at(first << bits.get(), &table)?;
        self.header.refcount_table_offset = HostOffset(first << bits.get());
        self.header.refcount_table_clusters =
            u32::try_from(clusters).map_err(|_| TxnError::TooLarge)?;
        Ok(())
    }

    /// Everything up to the switch: nothing shows yet.
    fn prepare(&mut self, monitor: &mut dyn Monitor) -> Result<(), TxnError> {
        self.send_queue()?;
        self.write_refcounts()?;
        let end = self.space.top() << self.header.cluster_bits.get();
        if self.storage.len_bytes() < end {
            self.storage.set_len(end)?;
        }
        self.storage.flush()?;
        monitor.progress(1, 1)?;
        Ok(())
    }

    /// Makes the new state the image's. Returns its header as it is on the disk.
    ///
    /// # Errors
    /// Whatever came before the switch: the image is the old one. An error of the switch itself: it is the old
    /// or the new one.
    pub fn commit(mut self, monitor: &mut dyn Monitor) -> Result<Header, TxnError> {
        if let Err(e) = self.prepare(monitor) {
            self.abandon();
            return Err(e);
        }
        let header = match write_header(self.storage, &self.old, &self.header) {
            Ok(header) => header,
            Err(TxnError::HeaderFull) => {
                self.abandon();
                return Err(TxnError::HeaderFull);
            }
            Err(e) => return Err(e),
        };
        settle::after_commit(self, header, monitor)
    }

    /// For [`settle`]: as [`Self::commit`], without going on to another transaction.
    pub(crate) fn commit_only(&mut self, monitor: &mut dyn Monitor) -> Result<Header, TxnError> {
        self.prepare(monitor)?;
        write_header(self.storage, &self.old, &self.header)
    }

    /// Gives up: the file gets its old length back; nothing else of it has changed.
    pub fn abandon(self) {
        if self.storage.can_grow() && self.storage.len_bytes() > self.old_len {
            // The file stays longer than need be if this fails, which is no damage.
            let _ = self.storage.set_len(self.old_len);
        }
    }
}
