//! From the last of the new clusters to the switch.

use crate::header_write::Switch;
use crate::transaction::Transaction;
use crate::{Monitor, TxnError, settle, zeroed};
use alloc::vec::Vec;
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
            if !self.return_block(index)? {
                let cluster = self.space.table(&mut self.refcounts, self.storage, 1)?;
                self.refcounts.set_shadow(index, cluster << bits);
            }
        }
        Ok(())
    }

    /// Gives a block the place that it had before the last switch, if it is to go there and nobody has it.
    fn return_block(&mut self, index: usize) -> Result<bool, TxnError> {
        if self.table_before.is_none() {
            return Ok(false);
        }
        let Some(place) = self.refcounts.place_before(index) else {
            return Ok(false);
        };
        let cluster = place >> self.header.cluster_bits.get();
        if self.refcounts.get(self.storage, cluster)? != 0 {
            return Ok(false);
        }
        self.refcounts.change(self.storage, cluster, 1, false)?;
        self.refcounts.set_returned(index);
        Ok(true)
    }

    /// Takes the places that refcount structures had before the last switch, before others do.
    pub(crate) fn return_refcounts(&mut self) -> Result<(), TxnError> {
        let Some((first, clusters)) = self.table_before else {
            return Ok(());
        };
        for at in 0..self.refcounts.blocks().len() {
            if self.refcounts.place_before(at).is_some() {
                self.refcounts.touch(self.storage, at as u64)?;
                self.make_room()?;
            }
        }
        self.give_homes()?;
        let mut free = true;
        for cluster in (first..).take(usize::try_from(clusters).unwrap_or(0)) {
            free &= self.refcount(cluster)? == 0;
        }
        let unchanged = u64::from(self.old.refcount_table_clusters) == clusters;
        if free && unchanged {
            self.refcounts.change(self.storage, first, clusters, false)
        } else {
            self.table_before = None;
            Ok(())
        }
    }

    /// Keeps refcount blocks within their budget.
    pub(crate) fn make_room(&mut self) -> Result<(), TxnError> {
        if self.refcounts.is_over_budget() {
            self.give_homes()?;
            self.refcounts.evict(self.storage)?;
        }
        Ok(())
    }

    /// Gives refcount blocks and table of the new state their places, if it has others than the old one. The
    /// table's offset and bytes, if it is to be written.
    fn place_refcounts(&mut self) -> Result<Option<(u64, Vec<u8>)>, TxnError> {
        self.give_homes()?;
        if !self.refcounts.blocks().iter().any(|block| block.changed) {
            return Ok(None);
        }
        let bits = self.header.cluster_bits;
        let old_clusters = self.old.refcount_table_clusters.into();
        let old_first = bits.cluster_of(self.old.refcount_table_offset).get();
        self.refcounts
            .change(self.storage, old_first, old_clusters, true)?;
        let (first, clusters) = self.place_table()?;
        let offset = HostOffset(first << bits.get());
        let as_before = self.table_before == Some((first, clusters));
        let table = if as_before && self.refcounts.is_as_before() {
            None
        } else {
            let mut table = zeroed(clusters.saturating_mul(bits.size_bytes()))?;
            let entries = self.refcounts.table();
            for (to, entry) in table.as_chunks_mut::<8>().0.iter_mut().zip(entries) {
                *to = entry.to_be_bytes();
            }
            Some((offset.get(), table))
        };
        self.header.refcount_table_offset = offset;
        self.header.refcount_table_clusters =
            u32::try_from(clusters).map_err(|_| TxnError::TooLarge)?;
        Ok(table)
    }

    /// Clusters of the refcount table: the first, and how many.
    fn place_table(&mut self) -> Result<(u64, u64), TxnError> {
        let bits = self.header.cluster_bits;
        let needed = |blocks: usize| bits.clusters_for((blocks as u64).saturating_mul(8));
        // The table's own refcounts may need blocks past those that it has room for.
        let mut clusters = u64::from(self.old.refcount_table_clusters);
        let mut place = self.table_before;
        loop {
            clusters = clusters.max(needed(self.refcounts.blocks().len())).max(1);
            if clusters.saturating_mul(bits.size_bytes()) > MAX_REFCOUNT_TABLE_BYTES {
                return Err(TxnError::TooLarge);
            }
            let (first, count) = match place.take() {
                Some(before) => before,
                None => {
                    let (refcounts, storage) = (&mut self.refcounts, self.storage);
                    (self.space.table(refcounts, storage, clusters)?, clusters)
                }
            };
            self.give_homes()?;
            if needed(self.refcounts.blocks().len()) <= count {
                return Ok((first, count));
            }
            self.refcounts.change(self.storage, first, count, true)?;
        }
    }

    /// Everything up to the switch: nothing shows yet.
    pub(crate) fn prepare(&mut self, monitor: &mut dyn Monitor) -> Result<Switch, TxnError> {
        let table = self.place_refcounts()?;
        let switch = self.plan_switch()?;
        self.send_all(table.as_ref(), &switch)?;
        monitor.progress(1, 1)?;
        Ok(switch)
    }

    /// Makes the new state the image's. Returns its header as it is on the disk.
    ///
    /// # Errors
    /// Whatever came before the switch: the image is the old one. An error of the switch itself: it is the old
    /// or the new one.
    pub fn commit(mut self, monitor: &mut dyn Monitor) -> Result<Header, TxnError> {
        let switch = match self.prepare(monitor) {
            Ok(switch) => switch,
            Err(e) => {
                self.abandon();
                return Err(e);
            }
        };
        let header = self.switch(switch)?;
        settle::after_commit(self, header)
    }

    /// Gives up: the file gets its old length back; nothing else of it has changed.
    pub fn abandon(self) {
        if self.storage.can_grow() && self.storage.len_bytes() > self.old_len {
            // The file stays longer than need be if this fails, which is no damage.
            let _ = self.storage.set_len(self.old_len);
        }
    }
}
